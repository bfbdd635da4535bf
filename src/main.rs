//! The `walhold` program: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    walhold::cli::run(std::env::args_os().collect())
}
