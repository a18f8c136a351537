//! Control messages: what the sides say to each other inside TLS once keys are there (wire page §3.8).

use std::time::Duration;

/// The longest control message, its NUL included, that any version takes; a record longer than this ends the session.
pub const MESSAGE_BYTES_MAX: usize = 2048;
/// Characters of a peer's reason that are kept.
pub const REASON_CHARS_MAX: usize = 256;

/// A control message, as far as it is understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Message<'a> {
    PushRequest,
    /// Options, separated by commas.
    PushReply(&'a str),
    AuthFailed(Reason),
    Restart(Reason),
    Halt(Reason),
    /// For people to read.
    Info(Reason),
    /// The server needs longer.
    AuthPending(Option<Duration>),
    Exit,
    /// Something that this side does not know or not want: ignored.
    Other,
}

/// Why the peer ended the session, in its own words. Printable characters only, at most [`REASON_CHARS_MAX`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reason(String);

impl Reason {
    fn new(text: &str) -> Self {
        Self(text.trim_start_matches(',').chars().filter(|char| !char.is_control()).take(REASON_CHARS_MAX).collect())
    }

    /// The words; may be empty.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() { f.write_str("no reason given") } else { write!(f, "{:?}", self.0) }
    }
}

/// The messages in one TLS record, each ended by a NUL. What has no NUL, or characters that are no text, is no message.
pub(super) fn messages(record: &[u8]) -> impl Iterator<Item = Message<'_>> {
    let whole = record.iter().rposition(|byte| *byte == 0).map_or(&[][..], |end| &record[..end]);
    let is_any = !whole.is_empty();
    whole.split(|byte| *byte == 0).filter(move |_| is_any).map(Message::decode)
}

impl<'a> Message<'a> {
    fn decode(bytes: &'a [u8]) -> Self {
        let text = bytes.trim_ascii_end();
        let is_text = !text.iter().any(u8::is_ascii_control);
        let Some(text) = std::str::from_utf8(text).ok().filter(|_| is_text) else { return Self::Other };
        // By prefix and in this order, as stock peers do.
        if text.starts_with("PUSH_REQUEST") {
            Self::PushRequest
        } else if let Some(options) = text.strip_prefix("PUSH_REPLY") {
            Self::PushReply(options.strip_prefix(',').unwrap_or_default())
        } else if let Some(reason) = text.strip_prefix("AUTH_FAILED") {
            Self::AuthFailed(Reason::new(reason))
        } else if let Some(reason) = text.strip_prefix("RESTART") {
            Self::Restart(Reason::new(reason))
        } else if let Some(reason) = text.strip_prefix("HALT") {
            Self::Halt(Reason::new(reason))
        } else if text.starts_with("INFO_PRE") {
            Self::Other
        } else if let Some(info) = text.strip_prefix("INFO") {
            Self::Info(Reason::new(info))
        } else if let Some(arguments) = text.strip_prefix("AUTH_PENDING") {
            let seconds = arguments.split(',').find_map(|argument| argument.strip_prefix("timeout ")?.parse().ok());
            Self::AuthPending(seconds.map(Duration::from_secs))
        } else if text.starts_with("EXIT") {
            Self::Exit
        } else {
            Self::Other
        }
    }
}

/// A message of this side, with its NUL. Whatever is no printable ASCII is left away: 2.6 ignores a message with such bytes.
pub(super) fn encode(text: &str) -> Vec<u8> {
    let printable = text.bytes().filter(|byte| (0x20..0x7f).contains(byte));
    printable.take(MESSAGE_BYTES_MAX - 1).chain([0]).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(record: &[u8]) -> Vec<Message<'_>> {
        messages(record).collect()
    }

    #[test]
    fn known_messages_are_understood() {
        assert_eq!(all(b"PUSH_REQUEST\0"), [Message::PushRequest]);
        assert_eq!(all(b"PUSH_REPLY,a 1,b\0"), [Message::PushReply("a 1,b")]);
        assert_eq!(all(b"AUTH_FAILED\0"), [Message::AuthFailed(Reason::default())]);
        assert_eq!(all(b"AUTH_FAILED,no\0"), [Message::AuthFailed(Reason::new("no"))]);
        assert_eq!(all(b"RESTART,[N]moved\0"), [Message::Restart(Reason::new("[N]moved"))]);
        assert_eq!(all(b"HALT\0"), [Message::Halt(Reason::default())]);
        assert_eq!(all(b"AUTH_PENDING,timeout 30\0"), [Message::AuthPending(Some(Duration::from_secs(30)))]);
        assert_eq!(all(b"INFO_PRE,x\0INFO,x\0"), [Message::Other, Message::Info(Reason::new("x"))]);
        assert_eq!(all(b"EXIT\r\n\0"), [Message::Exit]);
    }

    #[test]
    fn two_in_a_record_are_two_and_one_without_end_is_none() {
        assert_eq!(all(b"EXIT\0PUSH_REQUEST\0"), [Message::Exit, Message::PushRequest]);
        assert_eq!(all(b"EXIT\0PUSH_REQ"), [Message::Exit]);
        assert_eq!(all(b"EXIT"), []);
        assert_eq!(all(b""), []);
        assert_eq!(all(b"\0"), []);
    }

    #[test]
    fn what_is_no_text_is_ignored() {
        assert_eq!(all(b"AUTH_FAILED,\x1b[31mred\0"), [Message::Other]);
        assert_eq!(all(b"AUTH_FAILED,\xff\0"), [Message::Other]);
        assert_eq!(all(b"HELLO\0"), [Message::Other]);
    }

    #[test]
    fn own_messages_are_printable_and_bounded() {
        assert_eq!(encode("AUTH_FAILED,a\nb\u{e9}c"), b"AUTH_FAILED,abc\0");
        assert_eq!(encode(&"x".repeat(5000)).len(), MESSAGE_BYTES_MAX);
    }

    proptest! {
        #[test]
        fn arbitrary_records_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            messages(&bytes).for_each(drop);
        }
    }
}
