//! Scripted peers and captured bytes.

#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking; clippy.toml's exception covers test functions alone"
)]

mod captured;
mod hostile;
mod login;
mod scram;
mod server;
mod session;
