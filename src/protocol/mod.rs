//! The server's language: framing, messages, replication commands and their answers, and what
//! flows inside a copy stream. Pure: bytes and values in, values and bytes out.

mod backup;
mod error;
mod framing;
mod messages;
mod replication;
mod stream;
mod version;

pub use backup::{BackupEvent, BackupStream};
pub use error::{Condition, ProtocolError, ServerError};
pub use framing::{Frame, Framer, FramingError, Phase};
pub use messages::{Reply, Row};
pub use replication::{
    BackupTarget, BaseBackup, Checkpoint, ManifestAsked, MaxRate, NextTimeline, Retention, ServerCompression, SlotKind,
    SlotName, SlotNameError, SlotState, SystemIdentity, TablespaceRow, backup_position, command, duration_setting,
    mode_setting,
};
pub use stream::{StandbyStatus, StreamMessage};
pub use version::ServerVersion;
