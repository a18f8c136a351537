//! What a peer may do wrong, and what it is told then.

use super::limit::FieldError;
use super::message::goodbye::Code;
use super::state::State;

/// The peer broke the protocol. The session has moved to [`State::Closing`], with a goodbye to be transmitted.
///
/// The words name fields and numbers and never repeat what the peer sent, so they are safe to log and to send back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A message over [`MESSAGE_BYTES_MAX`](super::MESSAGE_BYTES_MAX).
    #[error("a message is longer than {max} bytes", max = super::MESSAGE_BYTES_MAX)]
    TooLarge,
    /// A WebSocket text message, or one that is not UTF-8. Reported by the driver with [`super::Session::violated`].
    #[error("a text message came; this protocol uses binary messages")]
    Text,
    /// Not protobuf, or not of `link.proto`.
    #[error("a message cannot be decoded")]
    Undecodable(#[source] prost::DecodeError),
    /// A field breaks its limit.
    #[error("a message breaks a limit: {0}")]
    Field(FieldError),
    /// The first message was another one.
    #[error("the first message is not a Hello")]
    HelloExpected,
    /// A `Hello` did not come in time.
    #[error("no Hello came in time")]
    HelloMissing,
    /// A message that is not allowed in this state.
    #[error("a {kind} is not allowed in state {state:?}")]
    Unexpected {
        /// The message's name in `link.proto`.
        kind: &'static str,
        /// The state it came in.
        state: State,
    },
    /// No version in common.
    #[error("no protocol version in common; this side speaks {versions:?}", versions = super::VERSIONS)]
    NoCommonVersion,
}

impl Violation {
    /// The goodbye code that the peer is sent.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::NoCommonVersion => Code::Version,
            Self::HelloMissing => Code::TimedOut,
            Self::TooLarge
            | Self::Text
            | Self::Undecodable(_)
            | Self::Field(_)
            | Self::HelloExpected
            | Self::Unexpected { .. } => Code::ProtocolError,
        }
    }

    /// The code for the WebSocket close frame.
    #[must_use]
    pub fn close_code(&self) -> u16 {
        super::close_code(self.code())
    }
}
