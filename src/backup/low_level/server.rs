//! The server's side of a backup whose files it does not send itself: the calls that start and stop it, in
//! one session, for with the session the backup ends.

use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use crate::backup::BackupError;
use crate::connection::{Conninfo, Purpose, Session};
use crate::image::ControlFile;
use crate::protocol::Checkpoint;
use crate::repository::BackupId;
use crate::wal::{Lsn, Pos, TimelineId};

/// How often a `pg_control` is read again that was being written.
const CONTROL_TRIES: u32 = 5;

/// `pg_default` and `pg_global`, which lie in the data directory.
const OWN_TABLESPACES: &str = "1663, 1664";

/// A session that holds a backup, or none yet.
pub(super) struct Server {
    session: Session,
}

/// What the server says when the backup has ended.
pub(super) struct Stopped {
    /// Exclusive end of the WAL that is needed.
    pub(super) stop: Lsn,
    /// The content of `backup_label`, byte for byte.
    pub(super) label: Vec<u8>,
    /// The content of `tablespace_map`, byte for byte.
    pub(super) map: Vec<u8>,
}

impl Server {
    pub(super) async fn connect(conninfo: &Conninfo, application_name: &str) -> Result<Self, BackupError> {
        let session = Session::connect(conninfo, Purpose::Sql, application_name).await;
        Ok(Self { session: session.map_err(|e| BackupError::Sql(Box::new(e)))? })
    }

    /// Starts a backup; where its WAL begins. Waits for the checkpoint.
    pub(super) async fn start(&mut self, label: &str, checkpoint: Checkpoint) -> Result<Lsn, BackupError> {
        let (label, fast) = (literal(label), checkpoint == Checkpoint::Fast);
        let sql = if self.session.server_version().is_15_or_later() {
            format!("select pg_backup_start({label}, {fast})")
        } else {
            format!("select pg_start_backup({label}, {fast}, false)")
        };
        let rows = self.session.query(&sql).await?;
        parsed(rows.first().and_then(|row| row.first()), "start of the backup")
    }

    /// Ends the backup, without waiting for the server's own archiver.
    pub(super) async fn stop(&mut self) -> Result<Stopped, BackupError> {
        let call = if self.session.server_version().is_15_or_later() {
            "pg_backup_stop(false)"
        } else {
            "pg_stop_backup(false, false)"
        };
        let raw = |column: &str| format!("encode(convert_to({column}, getdatabaseencoding()), 'hex')");
        let (label, map) = (raw("labelfile"), raw("spcmapfile"));
        let rows = self.session.query(&format!("select lsn, {label}, {map} from {call}")).await?;
        match rows.into_iter().next().as_deref() {
            Some([lsn, label, map]) => Ok(Stopped {
                stop: parsed(Some(lsn), "end of the backup")?,
                label: bytes(label.as_ref(), "backup_label")?,
                map: bytes(map.as_ref(), "tablespace_map")?,
            }),
            _ => Err(BackupError::Lacks("end of the backup")),
        }
    }

    /// The tablespaces that lie outside the data directory.
    pub(super) async fn tablespaces(&mut self) -> Result<Vec<(u32, PathBuf)>, BackupError> {
        let sql = format!(
            "select oid, encode(convert_to(pg_tablespace_location(oid), getdatabaseencoding()), 'hex')
             from pg_tablespace where oid not in ({OWN_TABLESPACES}) order by oid"
        );
        let mut found = Vec::new();
        for row in self.session.look_up(&sql).await? {
            let [oid, location] = row.as_slice() else { return Err(BackupError::Lacks("list of tablespaces")) };
            let location = std::ffi::OsString::from_vec(bytes(location.as_ref(), "location of a tablespace")?);
            found.push((parsed(Some(oid), "number of a tablespace")?, PathBuf::from(location)));
        }
        found.retain(|(_, location)| location.is_absolute());
        Ok(found)
    }

    pub(super) async fn in_recovery(&mut self) -> Result<bool, BackupError> {
        let rows = self.session.look_up("select pg_is_in_recovery()").await?;
        match rows.first().and_then(|row| row.first()?.as_deref()) {
            Some("t") => Ok(true),
            Some("f") => Ok(false),
            _ => Err(BackupError::Lacks("word on whether it is a standby")),
        }
    }

    /// The content of `pg_control` as it is now; an error if the role may not read it.
    pub(super) async fn control(&mut self) -> Result<Vec<u8>, BackupError> {
        let sql = "select encode(pg_read_binary_file('global/pg_control'), 'hex')";
        let mut tries = 1;
        loop {
            let rows = self.session.look_up(sql).await?;
            let content = bytes(rows.first().and_then(|row| row.first()?.as_ref()), "pg_control")?;
            match ControlFile::parse(&content) {
                Ok(_) => return Ok(content),
                Err(_) if tries < CONTROL_TRIES => tries += 1,
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Makes a checkpoint; the position from which a server that crashes now recovers.
    pub(super) async fn redo(&mut self) -> Result<Pos, BackupError> {
        self.session.query("checkpoint").await?;
        let rows = self.session.look_up("select redo_lsn, timeline_id from pg_control_checkpoint()").await?;
        match rows.first().map(Vec::as_slice) {
            Some([redo, timeline]) => {
                let timeline: u32 = parsed(Some(timeline), "timeline of its last checkpoint")?;
                let tli = TimelineId::new(timeline).ok_or(BackupError::Lacks("timeline of its last checkpoint"))?;
                Ok(Pos::new(tli, parsed(Some(redo), "position of its last checkpoint")?))
            }
            _ => Err(BackupError::Lacks("position of its last checkpoint")),
        }
    }

    /// Writes a record and has it flushed, with all before it; its exclusive end. Recovery can be told to
    /// end there by the name of the backup.
    pub(super) async fn mark(&mut self, id: BackupId) -> Result<Lsn, BackupError> {
        // No commit may wait for a standby that is not there.
        self.session.query("set synchronous_commit = local").await?;
        // It is the commit of a transaction that flushes it.
        let sql = format!("select pg_create_restore_point('walhold {id}'), txid_current()");
        let rows = self.session.query(&sql).await?;
        parsed(rows.first().and_then(|row| row.first()), "position of the restore point")
    }

    /// Fails if the session is gone.
    pub(super) async fn must_live(&mut self) -> Result<(), BackupError> {
        self.session.look_up("select 1").await?;
        Ok(())
    }

    /// Ends the session, and with it a backup that was not stopped.
    pub(super) async fn close(self) {
        self.session.close().await;
    }
}

/// A string constant, whatever `standard_conforming_strings` says.
fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

fn parsed<T: std::str::FromStr>(value: Option<&Option<String>>, what: &'static str) -> Result<T, BackupError> {
    value.and_then(|value| value.as_ref()?.parse().ok()).ok_or(BackupError::Lacks(what))
}

fn bytes(hex: Option<&String>, what: &'static str) -> Result<Vec<u8>, BackupError> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (pairs, rest) = hex.ok_or(BackupError::Lacks(what))?.as_bytes().as_chunks::<2>();
    let bytes: Option<Vec<u8>> = pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect();
    bytes.filter(|_| rest.is_empty()).ok_or(BackupError::Lacks(what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_quoted() {
        assert_eq!(literal(r"it's a \ "), r"E'it''s a \\ '");
    }

    #[test]
    fn bytes_come_as_digits() {
        let read = |text: &str| bytes(Some(&text.to_owned()), "x").ok();
        assert_eq!(read("00ff7A"), Some(vec![0, 255, 122]));
        assert_eq!((read(""), read("0"), read("0g"), read("é0")), (Some(Vec::new()), None, None, None));
        assert!(bytes(None, "x").is_err());
    }
}
