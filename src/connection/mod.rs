//! From a connection string to a session with a server: settings, password file, sockets, TLS,
//! login, and the commands of `protocol` as calls.

mod conninfo;
mod error;
mod login;
mod passfile;
mod session;
mod setting;
mod tls;
mod wire;

pub use conninfo::{Conninfo, ConninfoError, Flags, Surroundings, Variable};
pub use error::{ConnectError, Error, LoginError};
pub use session::{BackupStarted, Purpose, Session, SlotAnswer, Started, StreamEnd, Streamed};
pub use tls::TlsError;
