//! Bytes that no server would send: nothing panics, and little memory is taken.

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use tokio_util::codec::Decoder;
use walhold::protocol::{BackupStream, BaseBackup, Framer, Phase, Reply, ServerVersion, StreamMessage, TablespaceRow};

fn phase() -> impl Strategy<Value = Phase> {
    prop_oneof![Just(Phase::Login), Just(Phase::Command), Just(Phase::Streaming), Just(Phase::Copying)]
}

/// A message with an honest length: what is in it is then looked at.
fn framed() -> impl Strategy<Value = Vec<u8>> {
    let tag = prop_oneof![prop::sample::select(b"CDEGHINRSTWZcdnt?".to_vec()), any::<u8>()];
    (tag, prop::collection::vec(any::<u8>(), 0..200)).prop_map(|(tag, body)| super::server::message(tag, &body))
}

fn wire() -> impl Strategy<Value = Vec<u8>> {
    let noise = prop::collection::vec(any::<u8>(), 0..50);
    let pieces = prop::collection::vec(prop_oneof![9 => framed(), 1 => noise], 0..20);
    pieces.prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn any_bytes_are_frames_or_an_error(phase in phase(), wire in wire(), new in any::<bool>()) {
        let mut framer = Framer::new();
        framer.enter(phase);
        let mut buffer = BytesMut::from(&wire[..]);
        let main = TablespaceRow { oid: None, location: None, size_kb: None };
        let version = ServerVersion::new(if new { 170_000 } else { 130_000 });
        let mut backup = BackupStream::new(version, &[main], &BaseBackup::new(String::new()));
        while let Ok(Some(frame)) = framer.decode(&mut buffer) {
            let Ok(reply) = Reply::decode(frame) else { continue };
            if let Reply::CopyData(body) = &reply {
                let _ = StreamMessage::decode(body);
            }
            let _ = backup.feed(reply);
        }
        prop_assert!(buffer.capacity() <= 17 << 20);
    }

    #[test]
    fn any_stream_message_is_read_or_refused(body in prop::collection::vec(any::<u8>(), 0..64)) {
        for kind in [&b"w"[..], b"k", b""] {
            let body = Bytes::from([kind, &body].concat());
            if let Ok(StreamMessage::Wal { start, data, .. }) = StreamMessage::decode(&body) {
                prop_assert!(start.checked_add(data.len() as u64).is_some());
            }
        }
    }
}
