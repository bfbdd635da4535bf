//! What no receiver can be faster than, for `integration/bench`: a stream that is thrown away, and plain direct writes.
//!
//! `limits discard CONNINFO START END` streams the WAL between two positions and keeps none of it.
//! `limits write DIRECTORY BYTES` writes files of 16 MiB past the page cache, each synced.

use std::error::Error;
use std::path::Path;

use walhold::connection::{Conninfo, Flags, Purpose, Session, Started, Streamed, Surroundings};
use walhold::disk::{Access, AlignedBuf, Disk, Real};
use walhold::protocol::StreamMessage;
use walhold::wal::{Lsn, Pos, SegmentSize};

/// As large as walhold's own writes.
const WRITE: usize = 4 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["discard", conninfo, start, end] => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(discard(conninfo, start.parse()?, end.parse()?))
        }
        ["write", directory, bytes] => write(Path::new(directory), bytes.parse()?),
        _ => Err("limits discard CONNINFO START END | limits write DIRECTORY BYTES".into()),
    }
}

async fn discard(conninfo: &str, start: Lsn, end: Lsn) -> Result<(), Box<dyn Error>> {
    let flags = Flags { conninfo: Some(conninfo.to_owned()), ..Flags::default() };
    let conninfo = Conninfo::new(&flags, &Surroundings::of_this_process())?;
    let mut session = Session::connect(&conninfo, Purpose::Replication, "limits").await?;
    let now = session.identify_system().await?.position;
    let size = session.segment_size().await?.bytes();
    let begin = Pos::new(now.tli(), Lsn::new(start.get() / size * size));
    let Started::Streaming = session.start_replication(None, begin).await? else { return Err("no stream".into()) };
    loop {
        match session.next_stream().await? {
            Streamed::Message(StreamMessage::Wal { start, data, .. })
                if start.get() + data.len() as u64 >= end.get() =>
            {
                return Ok(());
            }
            Streamed::Message(_) => {}
            _ => return Err("the stream ended early".into()),
        }
    }
}

fn write(directory: &Path, bytes: u64) -> Result<(), Box<dyn Error>> {
    let disk = Real::new();
    let size = SegmentSize::DEFAULT.bytes();
    let mut buffer = AlignedBuf::zeroed(WRITE);
    buffer.fill(0x5a);
    for number in 0..bytes.div_ceil(size) {
        let path = directory.join(format!("limit{number}"));
        drop(disk.create(&path, 0o600)?);
        let mut file = disk.open(&path, Access::WriteDirect)?;
        for at in (0..size).step_by(WRITE) {
            file.write_at(at, &buffer)?;
        }
        let (_file, _synced) = file.sync()?;
    }
    let _names = disk.sync_dir(directory)?;
    Ok(())
}
