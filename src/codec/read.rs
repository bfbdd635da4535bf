//! Reading compressed files whole: every frame of them, and not a byte less.

use std::fmt;
use std::io::{self, BufRead, Read};

use flate2::bufread::GzDecoder;
use lz4_flex::frame::FrameDecoder;
use thiserror::Error;
use zstd::stream::raw::{DParameter, Decoder as ZstdContext, Operation};

use super::Codec;
use super::source::Source;

/// Memory that one zstd frame may ask for, as a power of two: 128 MiB, which is also the most that
/// `zstd -d` gives without being told to, and what the highest level takes.
const MAX_WINDOW_LOG: u32 = 27;

/// Compressed data that cannot be decoded; found inside the [`io::Error`] of a read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{fault} ({codec})")]
pub struct DecodeError {
    /// What it should be.
    pub codec: Codec,
    /// What is wrong.
    pub fault: Fault,
}

/// What is wrong with compressed data.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Fault {
    /// It stops inside a frame, or there is none.
    #[error("the compressed data is truncated")]
    Truncated,
    /// It does not begin as such data does.
    #[error("this is no compressed data")]
    Foreign,
    /// Something that is no frame follows the last one.
    #[error("the compressed data is followed by something else")]
    Trailing,
    /// A frame is not valid, does not match its checksum, or asks for too much memory.
    #[error("the compressed data is damaged: {0}")]
    Damaged(String),
}

/// Decodes a whole file of one or more frames. With [`Codec::Plain`] the bytes are as they are.
///
/// An error of a read that carries a [`DecodeError`] is about the data, any other one is an error
/// of `from`. After an error every further read fails: what was cut short never looks complete.
///
/// # Errors
/// When nothing can be read, or the file does not begin with a frame.
pub fn reader<'a>(codec: Codec, from: impl Read + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
    let mut source = Source::new(from);
    let engine = match codec {
        Codec::Plain => return Ok(Box::new(source)),
        _ if !begins(codec, &mut source, Fault::Foreign)? => return Err(wrong(codec, Fault::Truncated)),
        Codec::Zstd => Engine::Zstd(ZstdDecoder::new(source)?),
        Codec::Lz4 => Engine::Lz4(FrameDecoder::new(source)),
        Codec::Gzip => Engine::Gzip(GzDecoder::new(source)),
    };
    Ok(Box::new(Frames { codec, state: State::Inside(Box::new(engine)) }))
}

struct Frames<R: Read> {
    codec: Codec,
    state: State<R>,
}

enum State<R: Read> {
    Inside(Box<Engine<R>>),
    Ended,
    Failed,
}

/// A decoder in a frame. It reads nothing past the frame's end.
enum Engine<R: Read> {
    Zstd(ZstdDecoder<R>),
    Lz4(FrameDecoder<Source<R>>),
    Gzip(GzDecoder<Source<R>>),
}

impl<R: Read> Read for Frames<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        loop {
            // Left in place by every error return.
            match std::mem::replace(&mut self.state, State::Failed) {
                State::Failed => return Err(io::Error::other("reading failed before")),
                State::Ended => {
                    self.state = State::Ended;
                    return Ok(0);
                }
                State::Inside(mut engine) => {
                    let count = engine.read(self.codec, into)?;
                    if count > 0 {
                        self.state = State::Inside(engine);
                        return Ok(count);
                    }
                    let more = begins(self.codec, engine.source(), Fault::Trailing)?;
                    self.state = if more { State::Inside(Box::new(engine.next())) } else { State::Ended };
                }
            }
        }
    }
}

impl<R: Read> Engine<R> {
    /// Decodes some bytes, none only at the end of the frame.
    fn read(&mut self, codec: Codec, into: &mut [u8]) -> io::Result<usize> {
        let read = match self {
            Self::Zstd(decoder) => decoder.read(into),
            Self::Lz4(decoder) => decoder.read(into),
            Self::Gzip(decoder) => decoder.read(into),
        };
        match read {
            // The LZ4 decoder takes an end of its input between two blocks for the frame's end. At a
            // real one no decoder has looked further.
            Ok(0) if self.source().ended() => Err(wrong(codec, Fault::Truncated)),
            Err(error) if self.source().failed() => Err(error),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(wrong(codec, Fault::Truncated)),
            Err(error) => Err(wrong(codec, Fault::Damaged(error.to_string()))),
            Ok(count) => Ok(count),
        }
    }

    fn source(&mut self) -> &mut Source<R> {
        match self {
            Self::Zstd(decoder) => &mut decoder.source,
            Self::Lz4(decoder) => decoder.get_mut(),
            Self::Gzip(decoder) => decoder.get_mut(),
        }
    }

    /// At the next frame.
    fn next(self) -> Self {
        match self {
            Self::Zstd(_) | Self::Lz4(_) => self,
            Self::Gzip(decoder) => Self::Gzip(GzDecoder::new(decoder.into_inner())),
        }
    }
}

/// Whether a frame begins here; `false` at the end of the file.
pub(super) fn begins<R: Read>(codec: Codec, source: &mut Source<R>, otherwise: Fault) -> io::Result<bool> {
    let found = source.peek(4)?;
    let magic = match codec {
        _ if found.is_empty() => return Ok(false),
        Codec::Plain => true,
        // The second is a frame that holds no data and is skipped; parallel compressors write such.
        Codec::Zstd => found == [0x28, 0xB5, 0x2F, 0xFD] || matches!(found, [0x50..=0x5F, 0x2A, 0x4D, 0x18]),
        Codec::Lz4 => found == [0x04, 0x22, 0x4D, 0x18],
        Codec::Gzip => matches!(found, [0x1F, 0x8B, 8, _]),
    };
    if magic { Ok(true) } else { Err(wrong(codec, otherwise)) }
}

pub(super) fn wrong(codec: Codec, fault: Fault) -> io::Error {
    let kind = match fault {
        Fault::Truncated => io::ErrorKind::UnexpectedEof,
        _ => io::ErrorKind::InvalidData,
    };
    io::Error::new(kind, DecodeError { codec, fault })
}

struct ZstdDecoder<R> {
    source: Source<R>,
    context: ZstdContext<'static>,
    /// All of the frame has been given, and its end not yet told.
    whole: bool,
}

impl<R: Read> ZstdDecoder<R> {
    fn new(source: Source<R>) -> io::Result<Self> {
        let mut context = ZstdContext::new()?;
        context.set_parameter(DParameter::WindowLogMax(MAX_WINDOW_LOG))?;
        Ok(Self { source, context, whole: false })
    }

    /// Decodes some bytes, none only at the end of the frame. Then it is at the next one.
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while !self.whole {
            let input = self.source.fill_buf()?;
            let at_end = input.is_empty();
            let status = self.context.run_on_buffers(input, into)?;
            self.source.consume(status.bytes_read);
            self.whole = status.remaining == 0;
            if status.bytes_written > 0 {
                return Ok(status.bytes_written);
            }
            if at_end && !self.whole {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        self.whole = false;
        Ok(0)
    }
}

impl<R> fmt::Debug for ZstdDecoder<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ZstdDecoder").finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use lz4_flex::frame::{BlockSize, FrameEncoder, FrameInfo};
    use proptest::prelude::*;

    use super::*;

    const COMPRESSED: [Codec; 3] = [Codec::Zstd, Codec::Lz4, Codec::Gzip];

    /// One frame, in several blocks where there is enough data for them.
    fn packed(codec: Codec, data: &[u8]) -> Vec<u8> {
        match codec {
            Codec::Plain => data.to_vec(),
            Codec::Zstd => {
                let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
                encoder.include_checksum(true).unwrap();
                encoder.write_all(data).unwrap();
                encoder.finish().unwrap()
            }
            Codec::Lz4 => {
                let info = FrameInfo::new().block_size(BlockSize::Max64KB).content_checksum(true);
                let mut encoder = FrameEncoder::with_frame_info(info, Vec::new());
                encoder.write_all(data).unwrap();
                encoder.finish().unwrap()
            }
            Codec::Gzip => {
                let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
                encoder.write_all(data).unwrap();
                encoder.finish().unwrap()
            }
        }
    }

    fn unpacked(codec: Codec, from: impl Read + Send) -> Result<Vec<u8>, io::Error> {
        let mut data = Vec::new();
        reader(codec, from)?.read_to_end(&mut data)?;
        Ok(data)
    }

    fn fault(codec: Codec, bytes: &[u8]) -> Fault {
        let error = unpacked(codec, bytes).unwrap_err();
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<DecodeError>());
        let DecodeError { codec: named, fault } = inner.unwrap_or_else(|| panic!("{error:?}")).clone();
        assert_eq!(named, codec);
        fault
    }

    /// Text that takes several blocks and still packs into little.
    fn text() -> Vec<u8> {
        let line = |number| format!("line {}\n", number % 100);
        (0..20_000).map(line).collect::<String>().into_bytes()
    }

    /// Gives a byte or two at a time, with interruptions, and in the end what `last` says.
    struct Trickle<'a> {
        bytes: &'a [u8],
        turn: usize,
        last: Option<io::ErrorKind>,
    }

    impl Read for Trickle<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            self.turn += 1;
            if self.turn.is_multiple_of(5) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            match (self.bytes, self.last) {
                ([], Some(kind)) => Err(kind.into()),
                _ => self.bytes.read(&mut into[..self.turn % 2 + 1]),
            }
        }
    }

    #[test]
    fn whole_files_of_one_frame_or_more() {
        for codec in COMPRESSED {
            for data in [&b""[..], b"x", &text()] {
                let one = packed(codec, data);
                assert_eq!(unpacked(codec, &one[..]).unwrap(), data);
                let frames = [&one[..], &packed(codec, b""), &packed(codec, b"more"), &one].concat();
                let all = [data, b"more", data].concat();
                assert_eq!(unpacked(codec, &frames[..]).unwrap(), all);
                let trickle = Trickle { bytes: &frames, turn: 0, last: None };
                assert_eq!(unpacked(codec, trickle).unwrap(), all);
            }
        }
        assert_eq!(unpacked(Codec::Plain, &b"\x28\xB5\x2F\xFD"[..]).unwrap(), b"\x28\xB5\x2F\xFD");
    }

    #[test]
    fn a_file_cut_anywhere_is_truncated() {
        for codec in COMPRESSED {
            let one = packed(codec, &text());
            let two = [&one[..], &packed(codec, b"two")].concat();
            for cut in (0..two.len()).filter(|cut| *cut != one.len()) {
                // Less than the four bytes that tell what it is.
                let magic = cut - if cut > one.len() { one.len() } else { 0 };
                let expected = match magic {
                    0 | 4.. => Fault::Truncated,
                    _ if cut > one.len() => Fault::Trailing,
                    _ => Fault::Foreign,
                };
                assert_eq!(fault(codec, &two[..cut]), expected, "{codec} cut at {cut} of {}", two.len());
            }
        }
    }

    #[test]
    fn what_follows_the_last_frame_is_no_part_of_it() {
        for codec in COMPRESSED {
            for tail in [&b"\0"[..], b"garbage", &[0; 4096]] {
                assert_eq!(fault(codec, &[&packed(codec, b"data"), tail].concat()), Fault::Trailing);
            }
            assert_eq!(fault(codec, b"garbage"), Fault::Foreign);
            assert_eq!(fault(codec, b""), Fault::Truncated);
        }
    }

    #[test]
    fn a_changed_byte_never_changes_the_data() {
        for codec in COMPRESSED {
            let data = text();
            let one = packed(codec, &data);
            for at in 0..one.len() {
                let mut one = one.clone();
                one[at] ^= 0x04;
                if let Ok(read) = unpacked(codec, &one[..]) {
                    assert!(read == data, "{codec}, byte {at}");
                }
            }
        }
    }

    #[test]
    fn an_error_stays_an_error() {
        for codec in COMPRESSED {
            let one = packed(codec, &text());
            let mut cut = reader(codec, &one[..one.len() - 1]).unwrap();
            let mut data = Vec::new();
            assert_eq!(cut.read_to_end(&mut data).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
            assert_eq!(cut.read(&mut [0; 8]).unwrap_err().to_string(), "reading failed before");
            // An error of the file is not taken for damage of the data.
            let failing = Trickle { bytes: &one[..one.len() / 2], turn: 0, last: Some(io::ErrorKind::TimedOut) };
            let error = unpacked(codec, failing).unwrap_err();
            assert!(error.kind() == io::ErrorKind::TimedOut && error.get_ref().is_none(), "{codec}: {error:?}");
        }
    }

    #[test]
    fn p6_a_frame_cannot_ask_for_more_memory_than_the_limit() {
        // A header with this window, and an empty last block.
        let frame = |window_log: u8| [0x28, 0xB5, 0x2F, 0xFD, 0, (window_log - 10) << 3, 1, 0, 0];
        assert_eq!(unpacked(Codec::Zstd, &frame(27)[..]).unwrap(), b"");
        assert!(matches!(fault(Codec::Zstd, &frame(28)), Fault::Damaged(_)));
    }

    #[test]
    fn frames_that_hold_no_data_are_skipped() {
        let skipped = [&[0x53, 0x2A, 0x4D, 0x18, 2, 0, 0, 0, 9, 9][..], &packed(Codec::Zstd, b"data")].concat();
        assert_eq!(unpacked(Codec::Zstd, &skipped[..]).unwrap(), b"data");
        for cut in 4..10 {
            assert_eq!(fault(Codec::Zstd, &skipped[..cut]), Fault::Truncated);
        }
    }

    /// What the program makes of `input`; `None` where it is not installed.
    pub(crate) fn stock(program: &str, arguments: &[&str], input: Vec<u8>) -> Option<Vec<u8>> {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let Ok(mut child) = command.spawn() else {
            eprintln!("{program} is not installed: not compared with it");
            return None;
        };
        let mut stdin = child.stdin.take().unwrap();
        let feeder = std::thread::spawn(move || stdin.write_all(&input));
        let output = child.wait_with_output().unwrap();
        feeder.join().unwrap().unwrap();
        assert!(output.status.success(), "{program} {arguments:?}: {}", output.status);
        Some(output.stdout)
    }

    #[test]
    fn p7_what_stock_programs_write_can_be_read() {
        let programs: [(&str, &[&str], Codec); 6] = [
            ("zstd", &["-c"], Codec::Zstd),
            ("zstd", &["-c", "--ultra", "-22"], Codec::Zstd),
            ("lz4", &["-c"], Codec::Lz4),
            ("lz4", &["-c", "-9", "-B4", "-BD"], Codec::Lz4),
            ("gzip", &["-c"], Codec::Gzip),
            ("gzip", &["-9c"], Codec::Gzip),
        ];
        for (program, arguments, codec) in programs {
            if let Some(bytes) = stock(program, arguments, text()) {
                assert!(unpacked(codec, &bytes[..]).unwrap() == text(), "{program} {arguments:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn p6_no_bytes_do_harm(which in 0usize..3, tail: Vec<u8>, keep in 4usize..20) {
            let codec = COMPRESSED[which];
            let mut bytes = packed(codec, b"some data");
            bytes.truncate(keep);
            bytes.extend(&tail);
            if let Ok(data) = unpacked(codec, &bytes[..]) {
                prop_assert!(data.len() < 1 << 20);
            }
        }
    }
}
