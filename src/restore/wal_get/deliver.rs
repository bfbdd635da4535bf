//! Putting what is given where the server looks for it: under its name when all of it is there and
//! checked.

use std::sync::mpsc;
use std::thread;

use super::{Holdings, Request};
use crate::archive::{Archive, SegmentReader};
use crate::disk::{DiskError, Real, Unnamed};
use crate::wal::{Broken, Chain, Seed};

/// The server's umask leaves of this what its files have.
const MODE: u32 = 0o640;

/// So many pieces may be written and not checked yet.
const AHEAD: usize = 4;

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
    let put = |out: &mut Unnamed| out.write_at(0, content).map(|()| true).map_err(|e| e.to_string());
    write_out(request, put).map(|_| ())
}

struct Copied {
    bytes: u64,
    broken: Option<Broken>,
}

/// Copies bytes as long as the chain goes on. They are checked beside the copying: the server waits for
/// both.
fn copy(reader: &mut SegmentReader, chain: &mut Chain, out: &mut Unnamed) -> Result<Copied, String> {
    let (to_check, pieces) = mpsc::sync_channel::<Vec<u8>>(AHEAD);
    let (checked, spare) = mpsc::channel();
    let check = move || {
        for piece in pieces {
            chain.feed(&piece, &mut |_| {})?;
            // Nobody may want its memory any more.
            let _ = checked.send(piece);
        }
        Ok(())
    };
    let (bytes, broken) = thread::scope(|scope| {
        let checker = thread::Builder::new().spawn_scoped(scope, check).map_err(|e| format!("cannot start: {e}"))?;
        let bytes = copy_pieces(reader, out, &to_check, &spare);
        drop(to_check);
        let broken = checker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok::<_, String>((bytes?, broken.err()))
    })?;
    Ok(Copied { bytes, broken })
}

/// Copies until the file's end, or until nobody checks what comes; bytes of the segment.
fn copy_pieces(
    reader: &mut SegmentReader,
    out: &mut Unnamed,
    to_check: &mpsc::SyncSender<Vec<u8>>,
    spare: &mpsc::Receiver<Vec<u8>>,
) -> Result<u64, String> {
    let size = reader.segment().size().bytes();
    let mut bytes = 0;
    loop {
        let read = reader.fill().map_err(|e| e.to_string())?;
        // A byte more than a segment has is enough to know that it is too long.
        if read.is_empty() || bytes > size {
            return Ok(bytes);
        }
        let n = read.len();
        let room = usize::try_from(size.saturating_sub(bytes)).unwrap_or(usize::MAX).min(n);
        let mut piece = spare.try_recv().unwrap_or_default();
        piece.clear();
        piece.extend_from_slice(read);
        out.write_at(bytes, piece.get(..room).unwrap_or(&piece)).map_err(|e| e.to_string())?;
        reader.consume(n);
        bytes += n as u64;
        if to_check.send(piece).is_err() {
            return Ok(bytes);
        }
    }
}

/// Makes everything from `from` to `to` zeros.
fn pad(out: &mut Unnamed, from: u64, to: u64) -> Result<(), DiskError> {
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
fn write_out(request: &Request, put: impl FnOnce(&mut Unnamed) -> Result<bool, String>) -> Result<bool, String> {
    let path = request.data_directory.join(&request.destination);
    let mut out = Real::create_unnamed(&path, MODE).map_err(|e| e.to_string())?;
    let given = put(&mut out)?;
    if given {
        out.name().map_err(|e| e.to_string())?;
    }
    Ok(given)
}
