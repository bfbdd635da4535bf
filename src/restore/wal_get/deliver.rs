//! Putting what is given where the server looks for it: under its name when all of it is there and
//! checked.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, ScopedJoinHandle};

use super::{Holdings, Request};
use crate::archive::{Archive, ArchiveError, SegmentReader};
use crate::disk::{DiskError, Real, Unnamed};
use crate::wal::{Broken, Chain, Seed};

/// The server's umask leaves of this what its files have.
const MODE: u32 = 0o640;

/// So much is checked at a time.
const PIECE: usize = 256 << 10;

/// Gives a complete segment, if its records go on to its end: a damaged one would look like the end of
/// WAL to the server, and end the recovery.
pub(super) fn give_complete(request: &Request, archive: &Archive, mut reader: SegmentReader) -> Result<(), String> {
    let segment = reader.segment();
    let size = archive.size();
    let seed = Seed { start: segment.start(), size, system_id: archive.system_id(), newest_tli: segment.tli() };
    let mut chain = Chain::new(seed);
    let given = write_out(request, |out| match copy(&mut reader, &mut chain, out)? {
        Copied { broken: Some(broken), .. } => Err(format!(
            "segment {segment} in the archive is damaged: {broken}; with --end-at-gap {segment} recovery ends there"
        )),
        Copied { fault: Some(e), .. } => Err(e.to_string()),
        Copied { bytes, .. } if bytes != size.bytes() => {
            Err(format!("segment {segment} in the archive has {bytes} bytes and must have {}", size.bytes()))
        }
        _ => Ok(true),
    });
    given.map(|_| ())
}

/// Gives what a partial, or a segment in which the recovery is meant to end, holds in whole records,
/// and zeros from there on; `false` if it holds none.
pub(super) fn give_valid_part(
    request: &Request,
    archive: &Archive,
    holdings: &Holdings,
    mut reader: SegmentReader,
) -> Result<bool, String> {
    let segment = reader.segment();
    let route = holdings.route(segment.tli());
    let mut chain = archive.chain_before(&route, segment).map_err(|e| e.to_string())?;
    write_out(request, |out| {
        let copied = copy(&mut reader, &mut chain, out)?;
        let whole = copied.broken.map_or_else(|| chain.whole(), |broken| broken.whole).max(segment.start());
        pad(out, whole - segment.start(), archive.size().bytes()).map_err(|e| e.to_string())?;
        Ok(whole > segment.start())
    })
}

/// Gives a file of a few bytes.
pub(super) fn give_bytes(request: &Request, content: &[u8]) -> Result<(), String> {
    let put = |out: &Unnamed| out.write_at(0, content).map(|()| true).map_err(|e| e.to_string());
    write_out(request, put).map(|_| ())
}

struct Copied {
    /// Bytes of the segment.
    bytes: u64,
    broken: Option<Broken>,
    /// Why the file cannot be decoded to its end.
    fault: Option<ArchiveError>,
}

/// How far the copying is.
#[derive(Default)]
struct Progress {
    written: AtomicU64,
    ended: AtomicBool,
}

/// Copies bytes as long as the chain goes on. What has been written is checked by a second thread: the
/// server waits for both.
fn copy(reader: &mut SegmentReader, chain: &mut Chain, out: &Unnamed) -> Result<Copied, String> {
    let progress = Progress::default();
    thread::scope(|scope| {
        let check = || check(chain, out, &progress);
        let checker = thread::Builder::new().spawn_scoped(scope, check).map_err(|e| format!("cannot start: {e}"))?;
        let copied = copy_bytes(reader, out, &progress, &checker);
        progress.ended.store(true, Ordering::Release);
        checker.thread().unpark();
        let broken = checker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let broken = broken.map_err(|e| e.to_string())?;
        match copied {
            Ok(bytes) => Ok(Copied { bytes, broken, fault: None }),
            Err(e) if e.is_of_content() => Ok(Copied { bytes: 0, broken, fault: Some(e) }),
            Err(e) => Err(e.to_string()),
        }
    })
}

/// Copies until the file's end, or until nobody checks what comes; bytes of the segment.
fn copy_bytes<T>(
    reader: &mut SegmentReader,
    out: &Unnamed,
    progress: &Progress,
    checker: &ScopedJoinHandle<'_, T>,
) -> Result<u64, ArchiveError> {
    let size = reader.segment().size().bytes();
    let mut bytes = 0;
    loop {
        let piece = reader.fill()?;
        // A byte more than a segment has is enough to know that it is too long.
        if piece.is_empty() || bytes > size || checker.is_finished() {
            return Ok(bytes);
        }
        let n = piece.len();
        let room = usize::try_from(size.saturating_sub(bytes)).unwrap_or(usize::MAX).min(n);
        out.write_at(bytes, piece.get(..room).unwrap_or(piece))?;
        reader.consume(n);
        bytes += n as u64;
        progress.written.store(bytes.min(size), Ordering::Release);
        checker.thread().unpark();
    }
}

/// Feeds the chain with what has been written, until the copying has ended.
fn check(chain: &mut Chain, out: &Unnamed, progress: &Progress) -> Result<Option<Broken>, DiskError> {
    let mut buffer = vec![0; PIECE];
    let mut at = 0;
    loop {
        // In this order: what was written before the end is seen with it.
        let ended = progress.ended.load(Ordering::Acquire);
        let written = progress.written.load(Ordering::Acquire);
        if at == written {
            if ended {
                return Ok(None);
            }
            thread::park();
            continue;
        }
        let n = usize::try_from(written - at).unwrap_or(usize::MAX).min(PIECE);
        let piece = buffer.get_mut(..n).unwrap_or_default();
        out.read_at(at, piece)?;
        if let Err(broken) = chain.feed(piece, &mut |_| {}) {
            return Ok(Some(broken));
        }
        at += n as u64;
    }
}

/// Makes everything from `from` to `to` zeros.
fn pad(out: &Unnamed, from: u64, to: u64) -> Result<(), DiskError> {
    let zeros = vec![0; 256 << 10];
    let mut at = from;
    while at < to {
        let n = usize::try_from(to - at).unwrap_or(usize::MAX).min(zeros.len());
        out.write_at(at, zeros.get(..n).unwrap_or(&zeros))?;
        at += n as u64;
    }
    Ok(())
}

/// Writes the destination anew. It gets its name when `put` says that it is to be given, so that no half
/// of a file is seen whatever ends this process, nor by another that wants the same name. Not synced: the
/// server renames it durably itself (`KeepFileRestoredFromArchive`).
fn write_out(request: &Request, put: impl FnOnce(&Unnamed) -> Result<bool, String>) -> Result<bool, String> {
    let path = request.data_directory.join(&request.destination);
    let out = Real::create_unnamed(&path, MODE).map_err(|e| e.to_string())?;
    let given = put(&out)?;
    if given {
        out.name().map_err(|e| e.to_string())?;
    }
    Ok(given)
}
