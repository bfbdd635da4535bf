//! What is broken on purpose on real servers, and the matrix of what came of it.
//!
//! Each scenario breaks something so many [rounds](crate::crash::rounds) long while writers commit, compares
//! what comes back with what had been acknowledged, and leaves a [`Row`]. `integration/faults` makes the page
//! of them.

pub(crate) mod disk;
pub(crate) mod flips;
mod frames;
pub(crate) mod inject;
pub(crate) mod killed;
pub(crate) mod matrix;
pub(crate) mod network;
pub(crate) mod packets;
pub(crate) mod power;
pub(crate) mod proxy;
pub(crate) mod servers;
mod stage;
mod volume;
