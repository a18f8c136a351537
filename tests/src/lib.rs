//! End-to-end tests, demonstration, load generator and benchmarks.
//!
//! Everything here is real: `cloudlinkd` with its own Postgres, `cloudlink-agent` and `cloudlink` are started as processes,
//! in a directory of their own, on loopback ports of their own, and freed when dropped. Nothing is mocked. What no test
//! machine can do (reboot) is done by [`machine`], which takes the agent down and brings it back with another boot id.
//!
//! Start reading at [`fleet`]: most tests need nothing else. Each file under `tests/` is one journey.
//!
//! [`load`] is the load generator, [`mod@bench`] what is measured with it.
//!
//! Waits are level-triggered, bounded and named: [`poll::wait_for`].

pub mod api;
pub mod artifact;
pub mod attack;
pub mod balancer;
pub mod bench;
pub mod certificate;
pub mod chaos;
pub mod check;
pub mod cli;
pub mod clock;
pub mod cluster;
pub mod collector;
pub mod dial;
pub mod engine;
pub mod enroll;
pub mod fleet;
pub mod history;
pub mod load;
pub mod machine;
pub mod middlebox;
pub mod netns;
pub mod oidc;
pub mod openvpn;
pub mod ordeal;
pub mod poll;
pub mod port;
pub mod program;
pub mod receiver;
pub mod rights;
pub mod server;
pub mod smtp;
pub mod support;
pub mod terminal;
pub mod traffic;
pub mod upgrade;
pub mod vm;
