//! Why a link ends, as a `Goodbye` and as a WebSocket close frame.

use std::time::Duration;

use super::limit;
use super::message::Goodbye;
use super::message::goodbye::Code;

/// Added to a goodbye code to make the WebSocket close code (RFC 6455, section 7.4.2: 4000 to 4999 are private).
const CLOSE_CODE_BASE: u16 = 4000;
/// The longest text that a WebSocket close frame carries (RFC 6455, section 5.5: 125 bytes less the code).
const CLOSE_TEXT_BYTES_MAX: usize = 123;

/// Who ended a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Party {
    /// This side.
    Us,
    /// The other side, with a goodbye or a WebSocket close frame.
    Peer,
    /// Nobody said goodbye: the connection broke.
    Transport,
}

/// Why a link ended, or is about to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Close {
    /// Who ended it.
    pub by: Party,
    /// The reason. A code that this version does not know reads as `Unspecified`.
    pub code: Code,
    /// Words for people. The peer's own if `by` is the peer: not to be trusted, at most
    /// [`STRING_BYTES_MAX`](super::STRING_BYTES_MAX) bytes.
    pub message: String,
    /// Do not dial again before this long. Zero: the usual back-off.
    pub retry_after: Duration,
}

impl Close {
    /// The code for the WebSocket close frame.
    #[must_use]
    pub fn close_code(&self) -> u16 {
        close_code(self.code)
    }

    /// The text for the WebSocket close frame: the message, cut to what such a frame may carry.
    #[must_use]
    pub fn close_text(&self) -> &str {
        &self.message[..self.message.floor_char_boundary(CLOSE_TEXT_BYTES_MAX)]
    }

    pub(super) fn from_goodbye(goodbye: Goodbye) -> Self {
        Self {
            by: Party::Peer,
            code: goodbye.code(),
            retry_after: Duration::from_millis(goodbye.retry_after_ms),
            message: goodbye.message,
        }
    }

    pub(super) fn to_goodbye(&self) -> Goodbye {
        Goodbye {
            code: self.code.into(),
            message: self.message[..self.message.floor_char_boundary(limit::STRING_BYTES_MAX)].to_owned(),
            retry_after_ms: u64::try_from(self.retry_after.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// For a WebSocket that was closed, or broke (`None`), without a `Goodbye`.
    pub(super) fn from_transport(close_code: Option<u16>) -> Self {
        Self {
            by: if close_code.is_some() { Party::Peer } else { Party::Transport },
            code: close_code.map_or(Code::Unspecified, goodbye_code),
            message: String::new(),
            retry_after: Duration::ZERO,
        }
    }
}

/// The WebSocket close code for a goodbye code.
#[must_use]
pub fn close_code(code: Code) -> u16 {
    u16::try_from(i32::from(code)).map_or(CLOSE_CODE_BASE, |value| CLOSE_CODE_BASE.saturating_add(value))
}

/// The goodbye code that a WebSocket close code stands for; `Unspecified` if it is none of ours.
#[must_use]
pub fn goodbye_code(close_code: u16) -> Code {
    close_code
        .checked_sub(CLOSE_CODE_BASE)
        .and_then(|value| Code::try_from(i32::from(value)).ok())
        .unwrap_or(Code::Unspecified)
}
