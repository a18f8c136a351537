//! Whatever a stranger may send to a server, and everything else that reads bytes of strangers.

use std::sync::{Arc, LazyLock};

use cloudlink_proto::openvpn::inner::InnerPolicy;
use cloudlink_proto::openvpn::{PeerInfo, ServerConfig, Session, StaticKey, V2ClientKey, V2ServerKey, sniff};

use crate::wire::*;

static CONFIGS: LazyLock<Vec<Arc<ServerConfig>>> = LazyLock::new(|| {
    let config = |wrapping| Arc::new(ServerConfig { wrapping, ..PKI.server_config() });
    wrappings().into_iter().map(|(_, wrapping, _)| config(wrapping)).collect()
});

/// Takes a fuzzer's bytes: the first chooses the wrapping, the second how the stream is cut.
pub(crate) fn run(bytes: &[u8]) {
    let [wrapping, cut, bytes @ ..] = bytes else { return };
    let config = &CONFIGS[usize::from(*wrapping) % CONFIGS.len()];
    let mut server = End::new(Session::server(beginning(), Arc::clone(config), start(1)));
    server.feed(beginning(), bytes, usize::from(*cut) + 1);
    assert!(server.packets.is_empty() && server.events.is_empty(), "a stranger got through");

    _ = sniff(bytes);
    _ = PeerInfo::parse(bytes);
    let policy = InnerPolicy { ipv4: CLIENT_IP, ipv6: None, mtu: 1500 };
    _ = policy.check(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        _ = StaticKey::from_pem(text);
        _ = V2ServerKey::from_pem(text);
        _ = V2ClientKey::from_pem(text);
    }
}
