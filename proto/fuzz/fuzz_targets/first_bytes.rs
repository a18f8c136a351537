//! Whatever a stranger may send to a server: see `stranger.rs` of the tests for how bytes are read.

#![no_main]
#![allow(dead_code)]

#[path = "../../tests/openvpn/stranger.rs"]
mod stranger;
#[path = "../../tests/openvpn/wire.rs"]
mod wire;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| stranger::run(bytes));
