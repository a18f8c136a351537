//! `proto::openvpn` from the outside: against itself, against hostile peers, and against the real thing.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod hostile;
mod insider;
mod interop;
mod measure;
mod pair;
mod property;
mod quick;
mod raw;
mod script;
mod stock;
mod stranger;
mod wire;
