//! A server and a client on a wire where anything may happen: see `script.rs` of the tests for how bytes are read.

#![no_main]
#![allow(dead_code)]

#[path = "../../tests/openvpn/quick.rs"]
mod quick;
#[path = "../../tests/openvpn/script.rs"]
mod script;
#[path = "../../tests/openvpn/wire.rs"]
mod wire;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| script::run(bytes));
