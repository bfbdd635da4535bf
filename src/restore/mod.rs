//! Getting the data back.
