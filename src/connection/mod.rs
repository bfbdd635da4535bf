//! From a connection string to a session with a server: settings, hosts, password file, sockets,
//! TLS, login, and the commands of `protocol` as calls.

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
