//! Scripted peers and captured bytes.

mod login;
mod scram;
mod server;
mod session;
