//! From a connection string to a session with a server: settings, hosts, password file, sockets,
//! TLS, login, and the commands of `protocol` as calls.

// What comes from outside never ends the program: no read beyond the end, no number that loses bits or overflows.
#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::string_slice,
        clippy::unwrap_used
    )
)]

mod client_cert;
mod connect;
mod connect_error;
mod conninfo;
mod dial;
mod encryption;
mod end_point;
mod error;
mod hosts;
mod login;
mod method;
mod pairs;
mod passfile;
mod service;
mod session;
mod setting;
mod standby;
mod surroundings;
mod tls;
mod uri;
mod verifier;
mod wire;

pub use connect_error::{ConnectError, LoginError};
pub use conninfo::{Conninfo, ConninfoError, Flags};
pub use error::Error;
pub use login::Purpose;
pub use session::{BackupStarted, Session, SlotAnswer, Started, StreamEnd, Streamed};
pub(crate) use surroundings::user_name;
pub use surroundings::{Surroundings, Variable};
pub use tls::TlsError;
