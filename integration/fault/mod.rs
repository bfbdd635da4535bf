//! What is broken on purpose on real servers, and the matrix of what came of it.
//!
//! Each scenario breaks something so many [rounds](crate::crash::rounds) long while writers commit, compares
//! what comes back with what had been acknowledged, and leaves a [`Row`]. `integration/faults` makes the page
//! of them.

pub(crate) mod killed;
pub(crate) mod matrix;
pub(crate) mod servers;
mod stage;
