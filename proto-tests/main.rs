//! Scripted peers and captured bytes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking; clippy.toml's exception covers test functions alone"
)]

mod backup;
mod basebackup;
mod captured;
mod client_tls;
mod crash;
mod fuzz;
mod hostile;
mod hosts;
mod login;
mod receive;
mod scram;
mod server;
mod session;
mod slow;
#[allow(unreachable_pub, reason = "shared with the tests beside the code")]
mod wal;
