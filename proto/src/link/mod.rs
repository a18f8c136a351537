//! The control link between a device and a node. `link.proto` beside this file is the protocol's reference.
//!
//! [`Session<Server>`] and [`Session<Device>`](Session) are the two ends. They hold no socket and no clock. A driver
//!
//! 1. gives each binary WebSocket message to [`Session::handle_message`], and acts on what comes out;
//! 2. calls [`Session::handle_timeout`] when [`Session::poll_timeout`] has passed (one timer, asked anew in each round);
//! 3. calls [`Session::send`], [`Session::welcome`] or [`Session::goodbye`] when there is something to say;
//! 4. after each of these sends all that [`Session::poll_transmit`] gives, each as one binary WebSocket message;
//! 5. then, once [`Session::close`] gives a reason, sends a WebSocket close frame with [`Close::close_code`] and
//!    [`Close::close_text`], and reads on until the socket ends or the session is [`State::Closed`].
//!
//! Whatever the WebSocket layer itself finds wrong goes to [`Session::violated`]; the end of the socket goes to
//! [`Session::transport_lost`].
//!
//! ```
//! use std::time::{Duration, Instant};
//!
//! use cloudlink_proto::ids::{CommandId, DeviceId, TenantId};
//! use cloudlink_proto::link::message::{CommandReceipt, Hello};
//! use cloudlink_proto::link::{Admission, FromDevice, FromServer, Session, State, Timing};
//! use uuid::Uuid;
//!
//! // Any instant serves as the start: time is a parameter.
//! # #[expect(clippy::disallowed_methods)]
//! let mut now = Instant::now();
//! let mut server = Session::server(now, &Timing::default());
//! let hello = Hello { boot_id: "3f0c".to_owned(), capabilities: vec!["device.reboot".to_owned()], ..Hello::default() };
//! let mut device = Session::device(now, hello)?;
//!
//! // What one end transmits, the other is given.
//! while let Some(message) = device.poll_transmit() {
//!     if let Some(FromDevice::Hello(hello)) = server.handle_message(now, &message)? {
//!         assert_eq!(hello.boot_id, "3f0c");
//!         let (device_id, tenant_id) = (DeviceId::from_uuid(Uuid::nil()), TenantId::from_uuid(Uuid::nil()));
//!         let metrics_interval = Duration::from_secs(60);
//!         server.welcome(now, &Admission { device_id, tenant_id, epoch: 7, clock_unix_ms: 0, metrics_interval })?;
//!     }
//! }
//! let id = CommandId::from_uuid(Uuid::nil());
//! server.send(now, CommandReceipt { id: id.to_wire() })?;
//!
//! let mut incoming = Vec::new();
//! while let Some(message) = server.poll_transmit() {
//!     incoming.extend(device.handle_message(now, &message)?);
//! }
//! assert!(matches!(&incoming[..], [FromServer::Welcome(_), FromServer::CommandReceipt { .. }]));
//!
//! // Nobody speaks for as long as the server allows: the device asks whether it is there, and the server is.
//! now = device.poll_timeout().expect("the link is live");
//! device.handle_timeout(now);
//! let ping = device.poll_transmit().expect("a ping is due");
//! assert_eq!(server.handle_message(now, &ping)?, None);
//! let pong = server.poll_transmit().expect("a pong is due");
//! device.handle_message(now, &pong)?;
//! assert_eq!(device.last_proven(), now);
//!
//! // The device goes dark: the server ends the link, and says why.
//! while server.state() == State::Live {
//!     now = server.poll_timeout().expect("the link is live");
//!     server.handle_timeout(now);
//! }
//! assert_eq!(server.close().map(|close| close.close_code()), Some(4005));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The server's end is small (see the test of its size) and holds no buffer while nothing is to be transmitted, because
//! there are tens of thousands.

use std::time::Duration;

pub use close::{Close, Party, close_code, goodbye_code};
pub use device::{Device, FromServer, ToServer};
pub use failure::{FAILURE_CODES, is_failure_code};
pub use image::{image_repository, is_container_name};
pub use limit::{
    BUSY_LEFT_MS_MAX, CAPABILITIES_MAX, CERTIFICATE_BYTES_MAX, CHAIN_MAX, CONFIGURATION_BYTES_MAX,
    CONFIGURATION_ERROR_BYTES_MAX, CONFIGURATION_VERSION_MAX, CONTAINER_BYTES_MAX, CSR_BYTES_MAX, DATA_JSON_BYTES_MAX,
    FAILURE_CODE_BYTES_MAX, FieldError, FieldFault, GRANT_STATEMENT_BYTES_MAX, HOST_BYTES_MAX, IMAGE_BYTES_MAX,
    MISSED_PINGS_MAX, PATH_BYTES_MAX, PERCENT_MAX, PING_INTERVAL_MS_MAX, PING_INTERVAL_MS_MIN, REASON_BYTES_MAX,
    SERVICE_BYTES_MAX, SHA256_BYTES, STATUS_MESSAGE_BYTES_MAX, STREAM_TOKEN_BYTES, STRING_BYTES_MAX, TERM_BYTES_MAX,
    TERMINAL_CELLS_MAX, TRANSPORT_FAILURES_MAX, URL_BYTES_MAX, VERSION_BYTES_MAX, VERSIONS_MAX,
};
pub use server::{Admission, FromDevice, Server, ToDevice};
pub use session::{Common, SendError, Session, Side, Timing};
pub use state::{Event, State};
pub use violation::Violation;

mod close;
mod device;
mod failure;
mod image;
pub(crate) mod limit;
mod server;
mod session;
mod state;
mod violation;

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
/// The protocol versions that a [`Session`] speaks, best first.
pub const VERSIONS: &[u32] = &[VERSION];
/// How long the server may take from the `Hello` to its `Welcome`, before it says that it is overloaded.
pub const WELCOME_WITHIN: Duration = Duration::from_secs(20);
/// How long a device waits for the `Welcome`: longer than the server takes, so that the server's reason is heard.
pub const WELCOME_WAIT_MAX: Duration = Duration::from_secs(30);
/// How long the peer may take to close after a goodbye.
pub const CLOSE_WITHIN: Duration = Duration::from_secs(5);
/// The messages of the caller that wait to be transmitted on one link. One more is refused with [`SendError::QueueFull`].
pub const OUTGOING_MAX: usize = 256;
