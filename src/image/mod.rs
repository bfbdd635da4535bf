//! What a base backup is made of, as the server writes it: tar archives in one closed dialect
//! ([`TarReader`]), the manifest ([`Manifest`]), `backup_label` and `tablespace_map`
//! ([`BackupLabel`], [`TablespaceMap`]), and `pg_control` ([`ControlFile`]).
//!
//! Pure: bytes in, values out; no file, socket or clock. Nothing read here is trusted. A name is a
//! [`MemberPath`] or it is refused, so that nothing can lead out of the directory it is laid down
//! in; every size, count and length is checked before memory is taken; and each reader refuses
//! what a server does not write rather than guessing what it could mean.
//!
//! The order in which they meet, in a backup as in a restore: [`TarReader`] gives members and
//! their bytes, [`Names`] refuses names that clash, a [`Hasher`] of the manifest's algorithm
//! digests each file, [`Comparison`] collects the digests, and when the manifest is there
//! [`Comparison::check`] says whether what was laid out is what the server sent.

mod control;
mod label;
mod manifest;
mod names;
mod path;
mod tar;

pub use control::{ClusterState, ControlError, ControlFile, WalLevel};
pub use label::{BackupLabel, BackupMethod, BackupSource, LabelError, Tablespace, TablespaceMap, TablespaceMapError};
pub use manifest::{
    Checksum, Compared, Comparison, Difference, Hasher, Manifest, ManifestAlgorithm, ManifestError, ManifestFile,
    UnknownAlgorithm, WalRange,
};
pub use names::{NameClash, Names};
pub use path::{BadPath, MemberPath, PathFault};
pub use tar::{FeedError, Member, MemberKind, TarEnd, TarError, TarEvent, TarReader};
