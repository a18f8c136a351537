//! The benchmarks: what a link costs beside other servers, how fast a command is, and what a support session is like.
//!
//! Each one starts what it measures in a process of its own, loads it from this one, and writes [`report::Line`]s. What a
//! server takes is read from `/proc`, so that all are measured by the same yardstick from outside.

pub mod command;
pub mod connect;
pub mod openvpn;
pub mod peer;
pub mod poll;
pub mod report;
pub mod rollout;
pub mod scale;
pub mod seed;
pub mod storm;
pub mod support;
pub mod telemetry;
pub mod usage;
