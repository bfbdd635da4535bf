//! What the fuzz targets call.

#[path = "../fuzz/entries.rs"]
pub mod entries;
