//! Real servers.

fn main() {}
