//! What is said on one stream of a support session, on each of its two legs: device to node, and node to client.
//!
//! A leg is a WebSocket with the subprotocol [`SUBPROTOCOL`]. A binary message is bytes of the stream as they are: of the
//! terminal, the TCP connection, or the file. A text message is one [`Control`], as JSON. The node passes bytes on, takes
//! note of them, and has a word of its own in between: who may say what is in [`Control::may_come_from`].
//!
//! | kind of stream | the client says | the device says |
//! |---|---|---|
//! | terminal | bytes, `resize`, `signal`, `eof` | `ready`, bytes, `exit` |
//! | forward | bytes, `eof` | `ready`, bytes, `eof` |
//! | file to the device | `file`, bytes, `done` | `ready`, `done` when it is on the disk under its name |
//! | file from the device | nothing | `ready`, `file`, bytes, `done` |
//!
//! The node says `warning`, `joined`, `left`, and `closed` as the last of all, to both. There is no window and no acknowledgement:
//! whoever does not read holds up whoever writes, by TCP. To cut a stream is to close its sockets.

pub mod control;

pub use control::{Control, ControlError, Mode, Party, Signal};

/// The WebSocket subprotocol of both legs.
pub const SUBPROTOCOL: &str = "cloudlink.stream.v1";
/// Where a device opens a stream that it was asked for.
pub const STREAM_PATH: &str = "/v1/stream";
/// The largest binary message of either direction, in bytes.
pub const DATA_BYTES_MAX: usize = 65_536;
/// How much whoever has more to say than fits a message puts into one, in bytes: with its header, that is whole TLS records.
pub const CHUNK_BYTES: usize = DATA_BYTES_MAX - 16;
/// The largest text message of either direction, in bytes.
pub const CONTROL_BYTES_MAX: usize = 8_192;

/// Among the capabilities of a `Hello`: the device opens terminals.
pub const CAPABILITY_TERMINAL: &str = "stream.terminal";
/// It connects to targets of its network.
pub const CAPABILITY_FORWARD: &str = "stream.forward";
/// It writes and reads files.
pub const CAPABILITY_FILE: &str = "stream.file";
