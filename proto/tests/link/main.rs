//! The link protocol: two sessions against each other in virtual time, what a peer may do wrong, and the bytes on the wire.

#![expect(clippy::unwrap_used, clippy::panic, reason = "the helpers of tests fail as the tests do")]

mod example;
mod liveness;
mod pair;
mod property;
mod refusal;
mod table;
mod vector;
