//! Whatever a stranger may send to a server, and everything else that reads bytes of strangers. The first byte chooses the
//! wrapping, the second how the stream is cut.

#![no_main]
#![allow(dead_code)]

#[path = "../../tests/openvpn/wire.rs"]
mod wire;

use std::sync::{Arc, LazyLock};

use cloudlink_proto::openvpn::inner::InnerPolicy;
use cloudlink_proto::openvpn::{PeerInfo, ServerConfig, Session, StaticKey, V2ClientKey, V2ServerKey, sniff};

static CONFIGS: LazyLock<Vec<Arc<ServerConfig>>> = LazyLock::new(|| {
    let config = |wrapping| Arc::new(ServerConfig { wrapping, ..wire::PKI.server_config() });
    wire::wrappings().into_iter().map(|(_, wrapping, _)| config(wrapping)).collect()
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let [wrapping, cut, bytes @ ..] = bytes else { return };
    let config = &CONFIGS[usize::from(*wrapping) % CONFIGS.len()];
    let session = Session::server(wire::beginning(), Arc::clone(config), wire::start(1));
    let mut server = wire::End::new(session);
    server.feed(wire::beginning(), bytes, usize::from(*cut) + 1);

    _ = sniff(bytes);
    _ = PeerInfo::parse(bytes);
    let policy = InnerPolicy { ipv4: wire::CLIENT_IP, ipv6: None, mtu: 1500 };
    _ = policy.check(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        _ = StaticKey::from_pem(text);
        _ = V2ServerKey::from_pem(text);
        _ = V2ClientKey::from_pem(text);
    }
});
