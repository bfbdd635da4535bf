//! Scripted peers and captured bytes.
