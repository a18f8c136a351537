//! OpenVPN over TCP, both sides, without I/O: `dev tun`, mutual TLS 1.3, AEAD ciphers.
//!
//! A [`Session`] is one end of one TCP connection. Its owner moves bytes and time, and nothing else:
//!
//! 1. what comes from the connection goes into [`Session::handle_input`], again and again until all of it is consumed; IP
//!    packets come out of it decrypted in place;
//! 2. IP packets for the peer go through [`Session::seal`], which encrypts them in place into frames for the connection;
//! 3. after each of these [`Session::poll_output`] is drained: bytes for the connection, events, or the end;
//! 4. [`Session::poll_timeout`] says when [`Session::handle_timeout`] is to be called.
//!
//! The way of a packet allocates nothing and copies nothing, but for packets that the connection cuts in two.
//!
//! ```
//! # use std::time::Instant;
//! # use cloudlink_proto::openvpn::{Output, Session};
//! fn received(session: &mut Session, now: Instant, mut bytes: &mut [u8]) -> Vec<Output> {
//!     while !bytes.is_empty() {
//!         let received = session.handle_input(now, bytes);
//!         if let Some(packet) = received.packet {
//!             println!("{} bytes for the tun device", packet.len());
//!         }
//!         let consumed = received.consumed;
//!         bytes = &mut bytes[consumed..];
//!     }
//!     std::iter::from_fn(|| session.poll_output()).collect()
//! }
//! ```
//!
//! What is out of scope: UDP, retransmission (TCP does it), static-key mode, key method 1, compression, CBC ciphers, `dev
//! tap`, user names and passwords. Comments that say "wire page" mean `docs/OPENVPN.md`.
//!
//! Where to read on: [`state`] has the table of states, [`session`] the way of packets, then `control` for control packets and
//! `exchange` for what happens inside TLS.

pub mod budget;
pub mod cipher;
mod client;
mod client_key;
mod close;
mod config;
mod control;
mod counters;
pub mod data;
pub mod epoch;
mod exchange;
pub mod inner;
mod key;
mod key_material;
mod key_method;
mod message;
pub mod opcode;
mod options;
pub mod packet;
pub mod peer_info;
pub mod push;
mod random;
mod reliable;
mod replay;
mod server;
pub mod session;
pub mod sniff;
pub mod state;
mod static_key;
pub mod stream;
mod timer;
mod tls;
mod wire;
mod wrap;

pub use cipher::Cipher;
pub use client::{ClientEvent, PENDING_WITHIN_MAX};
pub use client_key::{ClientKeyError, KeyMetadata, METADATA_BYTES_MAX};
pub use close::{CloseReason, Refusal, Waited};
pub use config::{
    ClientConfig, ClientWrapping, MTU_DEFAULT, ServerConfig, ServerWrapping, Start, tls_client_config,
    tls_server_config,
};
pub use control::CONTROL_PAYLOAD_BYTES_MAX;
pub use counters::Counters;
pub use data::{Format, HEADROOM, OpenError, SealError, TAILROOM};
pub use key_method::{CREDENTIAL_BYTES_MAX, KeyExchangeError, OPTIONS_BYTES_MAX, PEER_INFO_BYTES_MAX};
pub use message::{MESSAGE_BYTES_MAX, REASON_CHARS_MAX, Reason};
pub use packet::{PacketError, SessionId};
pub use peer_info::{Abilities, PeerInfo};
pub use push::{Admission, AdmissionV6, PushError, Pushed};
pub use random::Random;
pub use reliable::{IN_FLIGHT_MAX, RECEIVE_WINDOW};
pub use replay::{ReplayError, WINDOW_IDS};
pub use server::{AdmitError, Authenticated, Farewell, PUSH_REPLY_INTERVAL, PUSH_REQUESTS_MAX, ServerEvent};
pub use session::{Agreed, Event, Output, Received, Session};
pub use sniff::{Sniffed, sniff};
pub use state::State;
pub use static_key::{KeyFileError, StaticKey, V2ClientKey, V2ServerKey};
pub use stream::{FRAME_BYTES_MAX, FrameError};
pub use timer::{
    END_WITHIN, FIRST_PACKET_WITHIN, HANDSHAKE_WITHIN, RENEGOTIATION_INTERVAL_MIN, RETIRED_FOR, SWITCH_AFTER, Timer,
};
pub use wrap::{AuthDigest, KeyDirection, UnwrapError};
