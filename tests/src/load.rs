//! The load generator: thousands of devices in one process, each with its own certificate and its own link.
//!
//! A [`Fleet`] has the certificates, a [`Target`] is where to dial, and a [`Swarm`] holds the connections and tells what
//! becomes of them. Beside the real link protocol a swarm speaks OpenVPN, and as much MQTT and NATS as it takes to be
//! connected, over the same TLS code, so that other servers can be measured with the same clients.

pub mod device;
pub mod dial;
pub mod fleet;
pub mod link;
pub mod mqtt;
pub mod nats;
pub mod openvpn;
pub mod storm;
pub mod swarm;

pub use dial::Target;
pub use fleet::{Credential, Fleet};
pub use swarm::{Event, Pace, Protocol, Swarm};
