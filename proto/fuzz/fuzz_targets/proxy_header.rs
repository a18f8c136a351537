//! Whatever may come where a load balancer's header is expected.

#![no_main]

#[path = "../../tests/proxy_header/run.rs"]
mod run;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| run::run(bytes));
