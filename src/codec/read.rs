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
fn begins<R: Read>(codec: Codec, source: &mut Source<R>, otherwise: Fault) -> io::Result<bool> {
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

fn wrong(codec: Codec, fault: Fault) -> io::Error {
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
