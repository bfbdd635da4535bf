//! The server's language: framing, messages, replication commands and their answers, and what
//! flows inside a copy stream. Pure: bytes and values in, values and bytes out.

// What comes from outside never ends the program: no read beyond the end, no number that loses bits or overflows.
#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::string_slice,
        clippy::unwrap_used
    )
)]

mod authentication;
mod backup;
mod error;
mod framing;
mod messages;
mod replication;
mod stream;
mod version;

pub use authentication::Authentication;
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
