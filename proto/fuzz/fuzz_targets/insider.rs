//! A peer that has got through TLS and says anything: see `insider.rs` of the tests for how bytes are read.

#![no_main]
#![allow(dead_code)]

#[path = "../../tests/openvpn/insider.rs"]
mod insider;
#[path = "../../tests/openvpn/quick.rs"]
mod quick;
#[path = "../../tests/openvpn/raw.rs"]
mod raw;
#[path = "../../tests/openvpn/script.rs"]
mod script;
#[path = "../../tests/openvpn/wire.rs"]
mod wire;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| insider::run(bytes));
