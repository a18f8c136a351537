//! Wire formats and protocol state machines of Cloudlink, without I/O.
//!
//! Nothing here opens a socket, reads a clock, draws a random number or spawns a task: callers feed bytes and the time,
//! and take out bytes, events and the next time-out. Both sides of each protocol live here, so that the server, the agent,
//! the load generator and the tests speak it from one source.
//!
//! * [`ids`]: the typed identifiers of everything that has one.
//! * [`enroll`]: how a device gets its first certificate.
//! * [`link`]: the control link between a device and a node. Start reading there.
//! * [`poll`]: what stands in for it when none comes about.
//! * [`stream`]: what is said on one stream of a support session.
//! * [`ndt`]: how fast the way between a device and a node is.
//! * [`openvpn`]: OpenVPN over TCP, server and client.
//! * [`trace_parent`]: whose doing something is, across programs.
//! * [`proxy_header`]: what a load balancer says before it passes a connection on.

#![warn(missing_docs)]

pub mod enroll;
pub mod ids;
pub mod link;
pub mod ndt;
pub mod openvpn;
pub mod poll;
pub mod proxy_header;
pub mod stream;
pub mod trace_parent;
