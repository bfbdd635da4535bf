//! The proof, repeated from the bytes on disk.
