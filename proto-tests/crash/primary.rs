//! A server that answers all that backups ask, of files and a log made by hand.

use std::sync::Arc;

use walhold::wal::{Lsn, Segment, TimelineId};

use super::world::{SIZE, at, size};
use crate::basebackup::{CONTROL, LABEL, Member, archive, dir, file, manifest_from, system_id};
use crate::server::{
    Door, Peer, Server, columns, complete, copy_both, copy_data, copy_done, copy_out, keepalive, message, ready, row,
    single_row, wal,
};
use crate::wal::Log;

/// Where its log begins: a little before the checkpoint of the captured `pg_control`.
pub(super) const FIRST: u64 = 0x150_0000;
const PIECE: usize = 60_000;

/// One backup that it gives, and its log to some way behind it.
pub(super) struct Primary {
    pub(super) log: Log,
    pub(super) start: u64,
    pub(super) stop: u64,
    pub(super) members: Vec<Member>,
    manifest: String,
}

/// The captured `pg_control`, as it was while that server ran.
fn control() -> Vec<u8> {
    let mut control = CONTROL.to_vec();
    let sum = |bytes: &[u8]| crc32c::crc32c(bytes).to_le_bytes();
    let at = (100..400).find(|at| control[*at..*at + 4] == sum(&control[..*at])).unwrap();
    control[16..20].copy_from_slice(&6_u32.to_le_bytes());
    let sum = sum(&control[..at]);
    control[at..at + 4].copy_from_slice(&sum);
    control
}

fn label(start: u64, since: Option<u64>) -> String {
    let segment = Segment::containing(at(start), size());
    let label = LABEL
        .replace("0/2000028 (file 000000010000000000000002)", &format!("{} (file {segment})", Lsn::new(start)))
        .replace("0/2000060", &Lsn::new(start).to_string());
    let since = since.map(Lsn::new);
    label + &since.map_or_else(String::new, |lsn| format!("INCREMENTAL FROM LSN: {lsn}\nINCREMENTAL FROM TLI: 1\n"))
}

impl Primary {
    /// A full backup, from the first record of the log on.
    pub(super) fn new() -> Self {
        Self::of(Log::new(FIRST, SIZE, 1, system_id()), None)
    }

    /// The next one, which holds what has changed since this one; the log goes on.
    pub(super) fn incremental(&self) -> Self {
        Self::of(self.log.clone(), Some(self.start))
    }

    fn of(mut log: Log, since: Option<u64>) -> Self {
        let start = log.next_record();
        log.record(0, 0x10, &[1; 90]);
        for n in 0..30_usize {
            log.record(10, 0, &vec![n as u8 | 1; n * 7919 % 60_000 + 1]);
        }
        log.backup_end(start);
        let stop = log.at();
        log.record(10, 0, &[3; 5_000]);
        let members = vec![
            file("backup_label", label(start, since).as_bytes()),
            dir("pg_wal"),
            dir("pg_tblspc"),
            file("base/1/1259", &[7; 20_000]),
            file("base/1/2619", &[8; 70_001]),
            file("postgresql.auto.conf", b"a = 1\n"),
            file("PG_VERSION", b"17\n"),
            file("global/pg_control", &control()),
        ];
        let manifest = manifest_from(&members, &Lsn::new(start).to_string(), &Lsn::new(stop).to_string());
        Self { log, start, stop, members, manifest }
    }

    /// Its files by name.
    pub(super) fn files(&self) -> impl Iterator<Item = (&'static str, &[u8])> {
        self.members.iter().filter(|member| member.1 == b'0').map(|(name, _, _, content, _)| (*name, &content[..]))
    }

    /// Lets everybody in.
    pub(super) async fn serve(self: &Arc<Self>) -> Server {
        let this = Arc::clone(self);
        Server::serve(async move |mut door: Door| {
            loop {
                let peer = door.next().await;
                tokio::spawn(Arc::clone(&this).answer(peer));
            }
        })
        .await
    }

    async fn answer(self: Arc<Self>, mut peer: Peer) {
        peer.log_in("17.2").await;
        let mut uploading = false;
        while let Some((tag, body)) = peer.next().await {
            let answer = match tag {
                b'Q' => self.answer_to(String::from_utf8_lossy(&body).trim_end_matches('\0'), &mut uploading),
                b'c' if uploading => {
                    uploading = false;
                    [complete("UPLOAD_MANIFEST"), ready()].concat()
                }
                b'c' => {
                    let ends = ["START_STREAMING", "START_REPLICATION"].map(complete);
                    [copy_done(), ends.concat(), ready()].concat()
                }
                b'X' => return,
                _ => continue,
            };
            peer.try_send(&answer).await;
        }
    }

    fn answer_to(&self, query: &str, uploading: &mut bool) -> Vec<u8> {
        let text = |lsn: u64| Lsn::new(lsn).to_string();
        let value = |value: &str| single_row(&[Some(value)]);
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let (first, _) = query.split_once(' ').unwrap_or((query, ""));
        match first {
            "IDENTIFY_SYSTEM" => {
                single_row(&[Some(&system_id().to_string()), Some("1"), Some(&text(self.log.at())), None])
            }
            "SHOW" => value(match query.trim_matches(|c| c != '"') {
                "\"wal_segment_size\"" => "1MB",
                "\"wal_sender_timeout\"" => "1min",
                "\"data_directory_mode\"" => "0700",
                "\"summarize_wal\"" | "\"synchronous_commit\"" => "on",
                _ => "/srv/data",
            }),
            "CREATE_REPLICATION_SLOT" => single_row(&[Some("x"), Some(&text(FIRST)), None, None]),
            "READ_REPLICATION_SLOT" => single_row(&[Some("physical"), Some(&text(FIRST)), Some("1")]),
            "START_REPLICATION" => self.stream(query),
            "UPLOAD_MANIFEST" => {
                *uploading = true;
                message(b'G', &[0, 0, 0])
            }
            "BASE_BACKUP" => self.base_backup(),
            _ if query.contains("pg_is_in_recovery") => value("f"),
            _ if query.contains("pg_backup_start") => value(&text(self.start)),
            _ if query.contains("pg_backup_stop") => {
                let label = self.files().find(|(name, _)| *name == "backup_label").map(|(_, content)| hex(content));
                single_row(&[Some(&text(self.stop)), label.as_deref(), Some("")])
            }
            _ if query.contains("pg_tablespace") => [columns(2), complete("SELECT 0"), ready()].concat(),
            "select" => value("1"),
            _ => panic!("{query:?} is asked"),
        }
    }

    /// All of the log from the position in the command on.
    fn stream(&self, query: &str) -> Vec<u8> {
        let from = query.split(' ').find_map(|word| word.parse::<Lsn>().ok().filter(|_| word.contains('/')));
        let mut from = from.unwrap().get();
        let mut messages = vec![copy_both()];
        for piece in self.log.bytes[(from - FIRST) as usize..].chunks(PIECE) {
            messages.push(wal(from, piece));
            from += piece.len() as u64;
        }
        messages.push(keepalive(from, false));
        messages.concat()
    }

    fn base_backup(&self) -> Vec<u8> {
        let position =
            |lsn: u64| [columns(2), row(&[Some(&Lsn::new(lsn).to_string()), Some("1")]), complete("SELECT")].concat();
        let tablespaces = [columns(3), row(&[None, None, None]), complete("SELECT")].concat();
        let mut messages = vec![position(self.start), tablespaces, copy_out(), copy_data(b"nbase.tar\0\0")];
        let data = |part: &[u8]| copy_data(&[b"d", part].concat());
        messages.extend(archive(&self.members).chunks(30_000).map(data));
        messages.push(copy_data(b"m"));
        messages.extend(self.manifest.as_bytes().chunks(1_000_000).map(data));
        messages.extend([copy_done(), position(self.stop), complete("BASE_BACKUP"), ready()]);
        messages.concat()
    }
}

/// All of its log is on timeline 1.
pub(super) const TLI: TimelineId = TimelineId::FIRST;
