//! Bytes to and from the server, as frames.

use std::io;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_util::codec::Decoder;

use crate::protocol::{Frame, Framer, FramingError, Phase};

/// A TCP, Unix or TLS stream.
pub(super) trait Socket: AsyncRead + AsyncWrite + Send + Sync + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Sync + Unpin> Socket for S {}

/// A connection as a source of frames and a sink of bytes. What waits here may be cancelled at any
/// await: nothing that was read or is to be written is lost.
pub(super) struct Wire {
    socket: Box<dyn Socket>,
    framer: Framer,
    inbox: BytesMut,
    outbox: BytesMut,
}

impl Wire {
    pub(super) fn new(socket: Box<dyn Socket>) -> Self {
        Self { socket, framer: Framer::new(), inbox: BytesMut::new(), outbox: BytesMut::new() }
    }

    /// From here on the limits of `phase` hold.
    pub(super) const fn enter(&mut self, phase: Phase) {
        self.framer.enter(phase);
    }

    /// The next message, if all of it has been read already.
    pub(super) fn buffered(&mut self) -> Result<Option<Frame>, FramingError> {
        self.framer.decode(&mut self.inbox)
    }

    /// Waits until something has been read. Call it only after [`Wire::buffered`] found no message:
    /// that made the room for this.
    pub(super) async fn fill(&mut self) -> io::Result<()> {
        match self.socket.read_buf(&mut self.inbox).await? {
            0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection")),
            _ => Ok(()),
        }
    }

    /// Where messages to the server are put for [`Wire::flush`].
    pub(super) const fn outbox(&mut self) -> &mut BytesMut {
        &mut self.outbox
    }

    /// Sends everything in the outbox.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        while !self.outbox.is_empty() {
            if self.socket.write_buf(&mut self.outbox).await? == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        self.socket.flush().await
    }
}
