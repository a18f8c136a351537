//! The control link between a device and a node. `link.proto` beside this file is the protocol's reference.

/// The messages, generated from `link.proto`.
#[expect(missing_docs, reason = "the documentation is in link.proto")]
pub mod message {
    include!(concat!(env!("OUT_DIR"), "/cloudlink.link.v1.rs"));
}

/// The largest message of either direction, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 65_536;
/// The WebSocket subprotocol that a device must ask for.
pub const SUBPROTOCOL: &str = "cloudlink.v1";
/// Where a device opens its link.
pub const LINK_PATH: &str = "/v1/link";
/// Where a device trades a token and a certificate request for a certificate.
pub const ENROLL_PATH: &str = "/v1/enroll";
/// The protocol version that `link.proto` describes.
pub const VERSION: u32 = 1;
