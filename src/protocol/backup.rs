//! The copy streams of a base backup. Until 14 the server sends one for each archive and one for
//! the manifest; from 15 on a single one in which every message says what it is. What comes out
//! here is the same for both.

use std::collections::VecDeque;

use bytes::Bytes;

use super::replication::backup_position;
use super::{BaseBackup, ProtocolError, Reply, Row, ServerError, ServerVersion, TablespaceRow};
use crate::cursor::Cursor;
use crate::wal::Pos;

/// What a base backup consists of, in order: archives (each with its data, unless it goes elsewhere), the
/// manifest if one was asked for, the stop position, completion. Notices and progress come at any time before the stop position.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BackupEvent {
    /// An archive begins.
    Archive(TablespaceRow),
    /// Bytes of its tar, cut anywhere.
    Data(Bytes),
    /// It has ended. Until 14 the tar then lacks its two closing blocks of zeros.
    ArchiveEnd,
    /// The manifest begins.
    Manifest,
    /// Bytes of the manifest.
    ManifestData(Bytes),
    /// The manifest has ended.
    ManifestEnd,
    /// So many bytes of the data directory and the tablespaces have been read (from 15 on only).
    Progress(u64),
    /// The server has something to say, such as a page whose checksum is wrong.
    Notice(ServerError),
    /// All is copied; WAL is needed up to here (exclusive). The backup can still fail.
    Stop(Pos),
    /// The server has ended the backup, and found nothing wrong.
    Complete,
}

/// Follows a base backup after its list of tablespaces.
#[derive(Debug)]
pub struct BackupStream {
    /// Archives that have not come yet.
    expected: Vec<TablespaceRow>,
    single_copy: bool,
    /// What the names of archives end in.
    suffix: &'static str,
    manifest: bool,
    state: State,
    stop: Vec<Row>,
    events: VecDeque<BackupEvent>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// The next message opens a copy.
    BetweenCopies,
    /// In the only copy, before its first archive.
    InCopy,
    InArchive,
    InManifest,
    /// The copies are over; the row with the stop position is to come.
    Stopping,
    /// It has come; the end is near.
    Stopped,
    Complete,
}

const DURING: &str = "copying a base backup";

impl BackupStream {
    /// At the point where the list of tablespaces has been read, in answer to `asked`.
    pub fn new(version: ServerVersion, tablespaces: &[TablespaceRow], asked: &BaseBackup) -> Self {
        Self {
            expected: tablespaces.to_vec(),
            single_copy: version.is_15_or_later(),
            suffix: asked
                .compression
                .as_ref()
                .and_then(|asked| asked.method())
                .map_or("", |method| method.codec().suffix()),
            manifest: asked.manifest.is_some(),
            state: State::BetweenCopies,
            stop: Vec::new(),
            events: VecDeque::new(),
        }
    }

    /// The next thing that happened, if what was fed so far tells one.
    pub fn next_event(&mut self) -> Option<BackupEvent> {
        self.events.pop_front()
    }

    /// Whether the stop position has come. An error after it means that the server did copy
    /// everything, but found fault with it.
    pub const fn is_stopped(&self) -> bool {
        matches!(self.state, State::Stopped | State::Complete)
    }

    /// Takes the server's next message.
    ///
    /// # Errors
    /// When it has no place in a base backup at this point.
    pub fn feed(&mut self, reply: Reply) -> Result<(), ProtocolError> {
        match (self.state, reply) {
            (_, Reply::Notice(notice)) => self.emit(BackupEvent::Notice(notice)),
            (State::BetweenCopies, Reply::CopyOut) => self.open_copy()?,
            (_, Reply::CopyData(data)) if self.single_copy => self.typed(&data)?,
            (State::InArchive, Reply::CopyData(data)) => self.emit(BackupEvent::Data(data)),
            (State::InManifest, Reply::CopyData(data)) => self.emit(BackupEvent::ManifestData(data)),
            (State::InArchive, Reply::CopyDone) if !self.single_copy => {
                self.emit(BackupEvent::ArchiveEnd);
                self.state = if self.is_last() { State::Stopping } else { State::BetweenCopies };
            }
            (State::InArchive, Reply::CopyDone) if self.is_last() => {
                self.emit(BackupEvent::ArchiveEnd);
                self.state = State::Stopping;
            }
            (State::InManifest, Reply::CopyDone) => {
                self.emit(BackupEvent::ManifestEnd);
                self.state = State::Stopping;
            }
            (State::Stopping, Reply::RowDescription(_)) => {}
            (State::Stopping, Reply::Row(row)) if self.stop.is_empty() => self.stop.push(row),
            (State::Stopping, Reply::Complete(_)) => {
                self.emit(BackupEvent::Stop(backup_position(&self.stop)?));
                self.state = State::Stopped;
            }
            (State::Stopped, Reply::Complete(_)) => {}
            (State::Stopped, Reply::Ready) => {
                self.emit(BackupEvent::Complete);
                self.state = State::Complete;
            }
            (_, reply) => return Err(reply.unexpected(DURING)),
        }
        Ok(())
    }

    /// Nothing comes after this archive.
    const fn is_last(&self) -> bool {
        !self.manifest && self.expected.is_empty()
    }

    fn emit(&mut self, event: BackupEvent) {
        self.events.push_back(event);
    }

    /// Until 14 the copies come in the order of the list, then the manifest's.
    fn open_copy(&mut self) -> Result<(), ProtocolError> {
        if self.single_copy {
            self.state = State::InCopy;
        } else if self.expected.is_empty() {
            self.begin_manifest()?;
        } else {
            let next = self.expected.remove(0);
            self.begin_archive(next);
        }
        Ok(())
    }

    fn begin_archive(&mut self, archive: TablespaceRow) {
        self.emit(BackupEvent::Archive(archive));
        self.state = State::InArchive;
    }

    fn begin_manifest(&mut self) -> Result<(), ProtocolError> {
        if !self.expected.is_empty() {
            return Err(ProtocolError::Malformed("base backup (an archive is missing)"));
        }
        if !self.manifest {
            return Err(ProtocolError::Malformed("base backup (a manifest that was not asked for)"));
        }
        self.emit(BackupEvent::Manifest);
        self.state = State::InManifest;
        Ok(())
    }

    /// From 15 on the first byte of each message says what follows (`basebackup_copy.c`).
    fn typed(&mut self, body: &Bytes) -> Result<(), ProtocolError> {
        let mut cursor = Cursor::new(body);
        let kind = cursor.u8().ok_or(ProtocolError::Malformed("backup message"))?;
        match (kind, self.state) {
            (b'n', State::InCopy | State::InArchive) => {
                let next = self.take_named(cursor)?;
                self.end_archive();
                self.begin_archive(next);
            }
            (b'm', State::InArchive) => {
                self.end_archive();
                self.begin_manifest()?;
            }
            (b'd', State::InArchive) => self.emit(BackupEvent::Data(body.slice_ref(cursor.rest()))),
            (b'd', State::InManifest) => self.emit(BackupEvent::ManifestData(body.slice_ref(cursor.rest()))),
            (b'p', State::InCopy | State::InArchive | State::InManifest) => {
                let done = cursor.u64_be().filter(|_| cursor.end().is_some());
                self.emit(BackupEvent::Progress(done.ok_or(ProtocolError::Malformed("progress report"))?));
            }
            (tag, _) => return Err(ProtocolError::Unexpected { tag, during: DURING }),
        }
        Ok(())
    }

    fn end_archive(&mut self) {
        if self.state == State::InArchive {
            self.emit(BackupEvent::ArchiveEnd);
        }
    }

    /// The archive on the list that a name such as `base.tar` or `16385.tar` means. The location
    /// after it repeats the list, which alone counts.
    fn take_named(&mut self, mut body: Cursor<'_>) -> Result<TablespaceRow, ProtocolError> {
        let (Some(name), Some(_location), Some(())) = (body.text(), body.text(), body.end()) else {
            return Err(ProtocolError::Malformed("archive name"));
        };
        let stem = name.strip_suffix(self.suffix.as_bytes()).unwrap_or_default();
        let is_named = |row: &TablespaceRow| match row.oid {
            None => stem == b"base.tar",
            Some(oid) => stem == format!("{oid}.tar").as_bytes(),
        };
        let at = self.expected.iter().position(is_named).ok_or_else(|| ProtocolError::value("archive name", name))?;
        Ok(self.expected.remove(at))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ManifestAsked, ServerCompression};
    use super::*;
    use crate::image::ManifestAlgorithm;
    use crate::wal::{Lsn, TimelineId};

    const OLD: ServerVersion = ServerVersion::new(130_023);
    const NEW: ServerVersion = ServerVersion::new(170_012);

    fn tablespaces() -> [TablespaceRow; 2] {
        [
            TablespaceRow { oid: Some(16385), location: Some("/ts".into()), size_kb: None },
            TablespaceRow { oid: None, location: None, size_kb: None },
        ]
    }

    fn data(bytes: &'static [u8]) -> Reply {
        Reply::CopyData(Bytes::from_static(bytes))
    }

    fn ending() -> [Reply; 5] {
        let row = Row::new(vec![Some(Bytes::from_static(b"0/400")), Some(Bytes::from_static(b"1"))]);
        [
            Reply::RowDescription(2),
            Reply::Row(row),
            Reply::Complete("SELECT".into()),
            Reply::Complete("BASE_BACKUP".into()),
            Reply::Ready,
        ]
    }

    fn asked() -> BaseBackup {
        let manifest = Some(ManifestAsked { algorithm: ManifestAlgorithm::Crc32c, force_encode: false });
        BaseBackup { manifest, ..BaseBackup::new(String::new()) }
    }

    fn run(
        version: ServerVersion,
        replies: impl IntoIterator<Item = Reply>,
    ) -> Result<Vec<BackupEvent>, ProtocolError> {
        run_asked(&asked(), version, replies)
    }

    fn run_asked(
        asked: &BaseBackup,
        version: ServerVersion,
        replies: impl IntoIterator<Item = Reply>,
    ) -> Result<Vec<BackupEvent>, ProtocolError> {
        let mut stream = BackupStream::new(version, &tablespaces(), asked);
        let mut events = Vec::new();
        for reply in replies {
            stream.feed(reply)?;
            events.extend(std::iter::from_fn(|| stream.next_event()));
        }
        Ok(events)
    }

    fn expected(progress: bool) -> Vec<BackupEvent> {
        let [one, main] = tablespaces();
        let mut events = vec![
            BackupEvent::Archive(one),
            BackupEvent::Data(Bytes::from_static(b"tar1")),
            BackupEvent::ArchiveEnd,
            BackupEvent::Archive(main),
            BackupEvent::Data(Bytes::from_static(b"tar2")),
            BackupEvent::ArchiveEnd,
            BackupEvent::Manifest,
            BackupEvent::ManifestData(Bytes::from_static(b"{}")),
            BackupEvent::ManifestEnd,
            BackupEvent::Stop(Pos::new(TimelineId::FIRST, Lsn::new(0x400))),
            BackupEvent::Complete,
        ];
        if progress {
            events.insert(5, BackupEvent::Progress(256));
        }
        events
    }

    #[test]
    fn one_copy_an_archive_until_14() {
        let copy = |bytes| [Reply::CopyOut, data(bytes), Reply::CopyDone];
        let replies = [copy(b"tar1"), copy(b"tar2"), copy(b"{}")].concat();
        assert_eq!(run(OLD, replies.into_iter().chain(ending())).unwrap(), expected(false));
    }

    #[test]
    fn one_copy_for_all_from_15_on() {
        let replies = [
            Reply::CopyOut,
            data(b"n16385.tar\0/ts\0"),
            data(b"dtar1"),
            data(b"nbase.tar\0\0"),
            data(b"dtar2"),
            data(b"p\0\0\0\0\0\0\x01\0"),
            data(b"m"),
            data(b"d{}"),
            Reply::CopyDone,
        ];
        assert_eq!(run(NEW, replies.into_iter().chain(ending())).unwrap(), expected(true));
    }

    #[test]
    fn without_a_manifest_the_last_archive_is_the_end() {
        let asked = BaseBackup { manifest: None, ..asked() };
        let is_manifests = |event: &BackupEvent| {
            matches!(event, BackupEvent::Manifest | BackupEvent::ManifestData(_) | BackupEvent::ManifestEnd)
        };
        let expected: Vec<_> = expected(false).into_iter().filter(|event| !is_manifests(event)).collect();
        let copy = |bytes| [Reply::CopyOut, data(bytes), Reply::CopyDone];
        let old = [copy(b"tar1"), copy(b"tar2")].concat();
        assert_eq!(run_asked(&asked, OLD, old.into_iter().chain(ending())).unwrap(), expected);
        let mut new = vec![Reply::CopyOut, data(b"n16385.tar\0/ts\0"), data(b"dtar1")];
        let cut = new.iter().cloned().chain([Reply::CopyDone]);
        assert_eq!(run_asked(&asked, NEW, cut), Err(ProtocolError::Unexpected { tag: b'c', during: DURING }));
        new.extend([data(b"nbase.tar\0\0"), data(b"dtar2")]);
        let unasked = new.iter().cloned().chain([data(b"m")]);
        let error = ProtocolError::Malformed("base backup (a manifest that was not asked for)");
        assert_eq!(run_asked(&asked, NEW, unasked), Err(error));
        new.push(Reply::CopyDone);
        assert_eq!(run_asked(&asked, NEW, new.into_iter().chain(ending())).unwrap(), expected);
    }

    #[test]
    fn compressed_archives_bear_the_suffix_of_what_was_asked_for() {
        let compression = Some(ServerCompression { name: "gzip".into(), detail: None });
        let asked = BaseBackup { compression, ..asked() };
        let named = |name| run_asked(&asked, NEW, [Reply::CopyOut, data(name)]);
        let [one, _] = tablespaces();
        assert_eq!(named(b"n16385.tar.gz\0/ts\0").unwrap(), [BackupEvent::Archive(one)]);
        for name in ["16385.tar", "16385.tar.zst", ".gz", "16385.tar.gz.gz"] {
            let message = format!("n{name}\0\0").into_bytes();
            let replies = [Reply::CopyOut, Reply::CopyData(message.into())];
            let error = ProtocolError::value("archive name", name.as_bytes());
            assert_eq!(run_asked(&asked, NEW, replies), Err(error));
        }
    }

    #[test]
    fn what_has_no_place_is_refused() {
        let unexpected = |tag| ProtocolError::Unexpected { tag, during: DURING };
        let begin = [Reply::CopyOut, data(b"n16385.tar\0/ts\0")];
        for (more, error) in [
            (vec![data(b"")], ProtocolError::Malformed("backup message")),
            (vec![data(b"q")], unexpected(b'q')),
            (vec![data(b"m")], ProtocolError::Malformed("base backup (an archive is missing)")),
            (vec![data(b"n16385.tar\0/ts\0")], ProtocolError::value("archive name", b"16385.tar")),
            (vec![data(b"n../x.tar\0\0")], ProtocolError::value("archive name", b"../x.tar")),
            (vec![data(b"nbase.tar\0")], ProtocolError::Malformed("archive name")),
            (vec![data(b"p123")], ProtocolError::Malformed("progress report")),
            (vec![Reply::CopyDone], unexpected(b'c')),
            (vec![Reply::CopyOut], unexpected(b'H')),
            (vec![Reply::Ready], unexpected(b'Z')),
            (vec![data(b"nbase.tar\0\0"), data(b"m"), data(b"nbase.tar\0\0")], unexpected(b'n')),
            (vec![data(b"nbase.tar\0\0"), data(b"m"), Reply::CopyDone, data(b"dx")], unexpected(b'd')),
        ] {
            assert_eq!(run(NEW, begin.iter().cloned().chain(more)), Err(error));
        }
        assert_eq!(run(NEW, [data(b"dx")]), Err(unexpected(b'd')));
        assert_eq!(run(OLD, [data(b"dx")]), Err(unexpected(b'd')));
        assert_eq!(run(OLD, [Reply::CopyOut, Reply::CopyDone, Reply::RowDescription(2)]), Err(unexpected(b'T')));
    }

    #[test]
    fn the_stop_row_must_be_there_once() {
        let copies = [Reply::CopyOut, Reply::CopyDone].into_iter().cycle().take(6);
        let mut replies: Vec<_> = copies.chain(ending()).collect();
        let row = replies.remove(7);
        assert_eq!(run(OLD, replies.clone()), Err(ProtocolError::Shape("BASE_BACKUP")));
        replies.splice(7..7, [row.clone(), row]);
        assert_eq!(run(OLD, replies), Err(ProtocolError::Unexpected { tag: b'D', during: DURING }));
    }
}
