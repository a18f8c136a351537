//! Streams that devices were asked for, and that have not come yet. Each waits under the hash of a token that is good for one
//! connection, of one device.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_lc_rs::digest;
use bytes::Bytes;
use cloudlink_proto::ids::{DeviceId, StreamId};
use cloudlink_proto::link::STREAM_TOKEN_BYTES;
use data_encoding::BASE64URL_NOPAD;
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use crate::link::stream::Stream;

/// Streams that are awaited at once, of all devices. One more is not asked for.
pub(crate) const AWAITED_MAX: usize = 4_096;

/// What a device shows when it comes: the node keeps a hash only.
pub(crate) struct StreamToken(Zeroizing<[u8; STREAM_TOKEN_BYTES]>);

/// The beginning of a token tells which node made it: the device may come to another one.
const MAKER_BYTES: usize = 8;

/// Which node made a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Maker([u8; MAKER_BYTES]);

impl Maker {
    pub(crate) fn named(node: &str) -> Self {
        let mut maker = [0; MAKER_BYTES];
        maker.copy_from_slice(&digest::digest(&digest::SHA256, node.as_bytes()).as_ref()[..MAKER_BYTES]);
        Self(maker)
    }

    /// Of what stands in a header.
    pub(crate) fn of_presented(text: &str) -> Option<Self> {
        let token = Zeroizing::new(BASE64URL_NOPAD.decode(text.as_bytes()).ok()?);
        Some(Self(token.first_chunk().copied().filter(|_| token.len() == STREAM_TOKEN_BYTES)?))
    }
}

impl StreamToken {
    fn draw(maker: Maker) -> Self {
        let mut bytes = Zeroizing::new([0; STREAM_TOKEN_BYTES]);
        bytes[..MAKER_BYTES].copy_from_slice(&maker.0);
        aws_lc_rs::rand::fill(&mut bytes[MAKER_BYTES..])
            .expect("the system's random source has no way to fail once it is seeded");
        Self(bytes)
    }

    /// For the request to the device, and for nothing else.
    pub(crate) fn to_wire(&self) -> Bytes {
        Bytes::copy_from_slice(self.0.as_ref())
    }
}

impl fmt::Debug for StreamToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StreamToken(redacted)")
    }
}

/// SHA-256 of a token. Looking up by hash leaks nothing by its timing.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Hash([u8; 32]);

impl Hash {
    fn of(token: &[u8]) -> Self {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest::digest(&digest::SHA256, token).as_ref());
        Self(hash)
    }

    /// Of what stands in a header.
    fn of_presented(text: &str) -> Option<Self> {
        let token = Zeroizing::new(BASE64URL_NOPAD.decode(text.as_bytes()).ok()?);
        (token.len() == STREAM_TOKEN_BYTES).then(|| Self::of(&token))
    }
}

/// What became of a request for a stream.
#[derive(Debug)]
pub(crate) enum Answer {
    /// It is there, and the WebSocket is open.
    Arrived {
        stream: Box<Stream>,
        read_ahead: Bytes,
    },
    Refused {
        code: String,
        message: String,
    },
}

#[derive(Debug, Default)]
pub(crate) struct Expectations {
    maker: Maker,
    awaited: Mutex<HashMap<Hash, Expected>>,
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hash(..)")
    }
}

#[derive(Debug)]
struct Expected {
    device: DeviceId,
    stream: StreamId,
    answer: oneshot::Sender<Answer>,
}

/// A device's right to bring one stream, now.
#[derive(Debug)]
pub(crate) struct Ticket(oneshot::Sender<Answer>);

impl Ticket {
    /// Hands the stream over. Who waited for it may have gone: then it is closed.
    pub(crate) fn arrive(self, stream: Stream, read_ahead: Bytes) {
        let _ = self.0.send(Answer::Arrived { stream: Box::new(stream), read_ahead });
    }
}

/// Waits for a stream. Whoever gives up takes the token back.
#[derive(Debug)]
pub(crate) struct Awaited {
    expectations: Arc<Expectations>,
    hash: Hash,
    answer: oneshot::Receiver<Answer>,
}

impl Awaited {
    /// `None`: the token was taken back.
    pub(crate) async fn answer(&mut self) -> Option<Answer> {
        (&mut self.answer).await.ok()
    }
}

impl Drop for Awaited {
    fn drop(&mut self) {
        self.expectations.lock().remove(&self.hash);
    }
}

impl Expectations {
    /// Of this node.
    pub(crate) fn of(node: &str) -> Self {
        Self { maker: Maker::named(node), awaited: Mutex::default() }
    }

    /// `None`: too many are awaited.
    pub(crate) fn expect(self: &Arc<Self>, device: DeviceId, stream: StreamId) -> Option<(StreamToken, Awaited)> {
        let token = StreamToken::draw(self.maker);
        let hash = Hash::of(token.0.as_ref());
        let (sender, answer) = oneshot::channel();
        let mut awaited = self.lock();
        if awaited.len() >= AWAITED_MAX {
            return None;
        }
        awaited.insert(hash, Expected { device, stream, answer: sender });
        drop(awaited);
        Some((token, Awaited { expectations: Arc::clone(self), hash, answer }))
    }

    /// Takes a token that a device presents: it is used up with that. One of another device stays where it is.
    pub(crate) fn admit(&self, device: DeviceId, token: &str) -> Option<Ticket> {
        let hash = Hash::of_presented(token)?;
        let mut awaited = self.lock();
        awaited.get(&hash).filter(|expected| expected.device == device)?;
        awaited.remove(&hash).map(|expected| Ticket(expected.answer))
    }

    /// A device will not open a stream that it was asked for.
    pub(crate) fn refuse(&self, device: DeviceId, stream: StreamId, code: String, message: String) {
        let mut awaited = self.lock();
        let refused = awaited
            .iter()
            .find(|(_, expected)| expected.stream == stream && expected.device == device)
            .map(|(hash, _)| *hash);
        if let Some(expected) = refused.and_then(|hash| awaited.remove(&hash)) {
            drop(awaited);
            let _ = expected.answer.send(Answer::Refused { code, message });
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Hash, Expected>> {
        // Consistent after each statement.
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn device(id: u128) -> DeviceId {
        DeviceId::from_uuid(Uuid::from_u128(id))
    }

    fn stream(id: u128) -> StreamId {
        StreamId::from_uuid(Uuid::from_u128(id))
    }

    fn presented(token: &StreamToken) -> String {
        BASE64URL_NOPAD.encode(token.0.as_ref())
    }

    #[test]
    fn a_token_is_good_for_its_device_and_once() {
        let expectations = Arc::new(Expectations::default());
        let (token, _awaited) = expectations.expect(device(1), stream(1)).unwrap();
        let text = presented(&token);
        assert!(expectations.admit(device(2), &text).is_none(), "of another device");
        assert!(expectations.admit(device(1), &text[1..]).is_none());
        assert!(expectations.admit(device(1), &text).is_some());
        assert!(expectations.admit(device(1), &text).is_none(), "used up");
        assert_eq!(format!("{token:?}"), "StreamToken(redacted)");
    }

    #[test]
    fn whoever_gives_up_takes_the_token_back() {
        let expectations = Arc::new(Expectations::default());
        let (token, awaited) = expectations.expect(device(1), stream(1)).unwrap();
        drop(awaited);
        assert!(expectations.admit(device(1), &presented(&token)).is_none());
        assert!(expectations.lock().is_empty());
    }

    #[test]
    fn no_more_are_awaited_than_may_be() {
        let expectations = Arc::new(Expectations::default());
        let awaited: Vec<_> = (0..AWAITED_MAX).map(|_| expectations.expect(device(1), stream(1)).unwrap()).collect();
        assert!(expectations.expect(device(1), stream(1)).is_none());
        drop(awaited);
        assert!(expectations.expect(device(1), stream(1)).is_some());
    }

    #[test]
    fn a_token_tells_which_node_made_it() {
        let expectations = Arc::new(Expectations::of("node-1"));
        let (token, _awaited) = expectations.expect(device(1), stream(1)).unwrap();
        assert_eq!(Maker::of_presented(&presented(&token)), Some(Maker::named("node-1")));
        assert_ne!(Maker::named("node-1"), Maker::named("node-2"));
        assert_eq!(Maker::of_presented(&presented(&token)[..12]), None);
        assert_eq!(Maker::of_presented("!"), None);
    }

    #[tokio::test]
    async fn a_refusal_is_of_the_device_that_was_asked() {
        let expectations = Arc::new(Expectations::default());
        let (token, mut awaited) = expectations.expect(device(1), stream(7)).unwrap();
        expectations.refuse(device(2), stream(7), "busy".into(), String::new());
        expectations.refuse(device(1), stream(8), "busy".into(), String::new());
        expectations.refuse(device(1), stream(7), "not_allowed".into(), String::new());
        assert!(matches!(awaited.answer().await, Some(Answer::Refused { code, .. }) if code == "not_allowed"));
        assert!(expectations.admit(device(1), &presented(&token)).is_none(), "it is settled");
    }
}
