//! Against the real thing: stock OpenVPN from Debian's package, both ways.

use std::time::Duration;

use crate::stock::{self, Connection, Files, OpenVpn, Server, in_namespace, now, ping, wait_for};
use crate::wire::{CLIENT_IP_V6, End, PKI, SERVER_IP, SERVER_IP_V6, admission, start};
use cloudlink_proto::openvpn::{
    Admission, AdmissionV6, AuthDigest, Cipher, ClientConfig, ClientWrapping, CloseReason, Farewell, Format,
    KeyDirection, KeyMetadata, Random, Refusal, ServerConfig, ServerWrapping, Session, State, StaticKey, V2ClientKey,
    V2ServerKey,
};

const GENKEY: &[&str] = &["--genkey", "secret"];

/// A stock client gets a tunnel and its pings come back.
fn stock_client_pings(files: &Files, config: ServerConfig, arguments: &[&str]) -> (Server, OpenVpn) {
    let server = Server::new(config);
    let client = OpenVpn::client(files, arguments);
    client.wait_for_line("Initialization Sequence Completed");
    ping(SERVER_IP, 5, "0.1", 56);
    assert_eq!(client.complaints(), Vec::<String>::new());
    (server, client)
}

#[test]
fn stock_client_plain() {
    in_namespace("stock_client_plain", || {
        let (server, client) = stock_client_pings(&Files::new(), PKI.server_config(), &[]);
        let agreed = server.seen().agreed.unwrap();
        assert_eq!(agreed.cipher, Cipher::Aes256Gcm);
        assert_eq!(agreed.format, Format::V2 { peer_id: 5 });
        assert!(agreed.is_tls_ekm && agreed.is_dynamic_tls_crypt && agreed.has_exit);
        assert!(client.has_line("Data Channel: cipher 'AES-256-GCM', peer-id: 5"));
        // The largest packet that fits, and one that is fragmented before it gets here.
        ping(SERVER_IP, 3, "0.1", 1472);
    });
}

#[test]
fn stock_client_with_each_cipher() {
    in_namespace("stock_client_with_each_cipher", || {
        for cipher in Cipher::ALL {
            let (server, client) =
                stock_client_pings(&Files::new(), PKI.server_config(), &["--data-ciphers", cipher.name()]);
            assert_eq!(server.seen().agreed.map(|agreed| agreed.cipher), Some(cipher));
            assert!(client.has_line(&format!("Data Channel: cipher '{}'", cipher.name())));
        }
    });
}

#[test]
fn stock_client_without_key_export() {
    in_namespace("stock_client_without_key_export", || {
        let config = ServerConfig { has_tls_key_export: false, ..PKI.server_config() };
        let (_server, client) = stock_client_pings(&Files::new(), config, &[]);
        assert!(!client.has_line("tls-ekm"));
    });
}

#[test]
fn stock_client_with_tls_auth() {
    in_namespace("stock_client_with_tls_auth", || {
        let files = Files::new();
        let key = StaticKey::from_pem(&files.generate(GENKEY, "ta.key")).unwrap();
        let config = |direction, digest| ServerConfig {
            wrapping: ServerWrapping::TlsAuth { key: key.clone(), direction, digest },
            ..PKI.server_config()
        };
        let ta = files.named("ta.key");
        stock_client_pings(&files, config(KeyDirection::Zero, AuthDigest::Sha1), &["--tls-auth", &ta, "1"]);
        let arguments = ["--tls-auth", &ta, "1", "--auth", "SHA256"];
        stock_client_pings(&files, config(KeyDirection::Zero, AuthDigest::Sha256), &arguments);
        stock_client_pings(
            &files,
            config(KeyDirection::Both, AuthDigest::Sha512),
            &["--tls-auth", &ta, "--auth", "SHA512"],
        );
    });
}

#[test]
fn stock_client_with_tls_crypt() {
    in_namespace("stock_client_with_tls_crypt", || {
        let files = Files::new();
        let key = StaticKey::from_pem(&files.generate(GENKEY, "ta.key")).unwrap();
        let config = ServerConfig { wrapping: ServerWrapping::TlsCrypt(key), ..PKI.server_config() };
        stock_client_pings(&files, config, &["--tls-crypt", &files.named("ta.key")]);
    });
}

#[test]
fn stock_client_with_tls_crypt_v2() {
    in_namespace("stock_client_with_tls_crypt_v2", || {
        let files = Files::new();
        let server_key = files.generate(&["--genkey", "tls-crypt-v2-server"], "v2s.key");
        let arguments = ["--tls-crypt-v2", &files.named("v2s.key"), "--genkey", "tls-crypt-v2-client"];
        files.generate(&arguments, "v2c.key");
        let server_key = V2ServerKey::from_pem(&server_key).unwrap();
        let config =
            || ServerConfig { wrapping: ServerWrapping::TlsCryptV2(server_key.clone()), ..PKI.server_config() };
        let (server, client) = stock_client_pings(&files, config(), &["--tls-crypt-v2", &files.named("v2c.key")]);
        // A time of creation, which the stock tool writes into it.
        assert_eq!(server.seen().key_metadata.as_ref().map(|metadata| (metadata[0], metadata.len())), Some((1, 9)));
        drop((server, client));

        // A key that this side has issued.
        let issued = server_key.issue(StaticKey::from_bytes([0x5a; 256]), b"\0device 7").unwrap();
        files.write("own.key", &issued.to_pem());
        let (server, _client) = stock_client_pings(&files, config(), &["--tls-crypt-v2", &files.named("own.key")]);
        assert_eq!(server.seen().key_metadata.as_deref(), Some(b"\0device 7".as_slice()));
    });
}

#[test]
fn stock_client_with_keys_made_here() {
    in_namespace("stock_client_with_keys_made_here", || {
        let files = Files::new();
        let mut random = Random::from_seed([0x5e; 32]);
        let key = StaticKey::generate(&mut random);
        let server_key = V2ServerKey::generate(&mut random);
        let device_key =
            server_key.issue(StaticKey::generate(&mut random), &KeyMetadata::Issuer(b"7").to_bytes()).unwrap();
        let shared = files.write("shared.key", &key.to_pem());
        let own = files.write("own.key", &device_key.to_pem());

        let auth =
            ServerWrapping::TlsAuth { key: key.clone(), direction: KeyDirection::Zero, digest: AuthDigest::Sha1 };
        let config = |wrapping| ServerConfig { wrapping, ..PKI.server_config() };
        stock_client_pings(&files, config(auth), &["--tls-auth", &shared, "1"]);
        stock_client_pings(&files, config(ServerWrapping::TlsCrypt(key)), &["--tls-crypt", &shared]);
        let v2 = ServerWrapping::TlsCryptV2(server_key);
        let (server, _client) = stock_client_pings(&files, config(v2), &["--tls-crypt-v2", &own]);
        let metadata = server.seen().key_metadata.clone().unwrap();
        assert_eq!(KeyMetadata::parse(&metadata), KeyMetadata::Issuer(b"7"));
    });
}

#[test]
fn stock_tool_reads_and_writes_the_same_key_files() {
    in_namespace("stock_tool_reads_and_writes_the_same_key_files", || {
        let files = Files::new();
        let text = files.generate(GENKEY, "ta.key");
        let (comment, block) = text.split_at(text.find("-----BEGIN").unwrap());
        assert!(comment.lines().all(|line| line.starts_with('#')));
        assert_eq!(StaticKey::from_pem(&text).unwrap().to_pem(), block);
        let text = files.generate(&["--genkey", "tls-crypt-v2-server"], "v2s.key");
        assert_eq!(V2ServerKey::from_pem(&text).unwrap().to_pem(), text);

        // The stock tool issues a client's key under a server's key that was made here.
        let server_key = V2ServerKey::generate(&mut Random::from_seed([0x5f; 32]));
        let own = files.write("own.key", &server_key.to_pem());
        let text = files.generate(&["--tls-crypt-v2", &own, "--genkey", "tls-crypt-v2-client"], "v2c.key");
        let client_key = V2ClientKey::from_pem(&text).unwrap();
        assert_eq!(client_key.to_pem(), text);
        // A server has unwrapped it if it answers.
        let mut server = Session::server(
            now(),
            ServerConfig { wrapping: ServerWrapping::TlsCryptV2(server_key), ..PKI.server_config() }.into(),
            start(1),
        );
        let config = ClientConfig { wrapping: ClientWrapping::TlsCryptV2(client_key), ..PKI.client_config() };
        let mut client = End::new(Session::client(now(), config.into(), start(2)));
        let mut first = client.drain();
        server.handle_input(now(), &mut first);
        assert_eq!(server.state(), State::Handshaking);
        // And a stock server reads it when it starts.
        drop(OpenVpn::server(&files, &["--tls-crypt-v2", &own]));
    });
}

/// Pings five times a second for 24 s; none may be lost.
fn renegotiates(files: &Files, config: ServerConfig, arguments: &[&str]) {
    let (server, client) = stock_client_pings(files, config, arguments);
    ping(SERVER_IP, 120, "0.2", 56);
    let rekeyed = server.seen().rekeyed;
    assert!(rekeyed >= 3, "only {rekeyed} renegotiations");
    assert_eq!(client.complaints(), Vec::<String>::new());
    assert_eq!(server.seen().connected, 1);
}

#[test]
fn stock_client_renegotiates() {
    in_namespace("stock_client_renegotiates", || {
        renegotiates(&Files::new(), PKI.server_config(), &["--reneg-sec", "5"]);
    });
}

#[test]
fn stock_client_renegotiates_with_tls_crypt() {
    in_namespace("stock_client_renegotiates_with_tls_crypt", || {
        let files = Files::new();
        let key = StaticKey::from_pem(&files.generate(GENKEY, "ta.key")).unwrap();
        let config = ServerConfig { wrapping: ServerWrapping::TlsCrypt(key), ..PKI.server_config() };
        renegotiates(&files, config, &["--reneg-sec", "5", "--tls-crypt", &files.named("ta.key")]);
    });
}

#[test]
fn stock_client_renegotiates_the_old_way() {
    in_namespace("stock_client_renegotiates_the_old_way", || {
        let config = ServerConfig { has_tls_key_export: false, has_dynamic_tls_crypt: false, ..PKI.server_config() };
        renegotiates(&Files::new(), config, &["--reneg-sec", "5"]);
    });
}

#[test]
fn stock_client_is_renegotiated() {
    in_namespace("stock_client_is_renegotiated", || {
        let config = ServerConfig { renegotiate_every: Some(Duration::from_secs(5)), ..PKI.server_config() };
        renegotiates(&Files::new(), config, &["--reneg-sec", "0"]);
    });
}

#[test]
fn both_renegotiate_with_a_stock_client() {
    in_namespace("both_renegotiate_with_a_stock_client", || {
        let config = ServerConfig { renegotiate_every: Some(Duration::from_secs(5)), ..PKI.server_config() };
        renegotiates(&Files::new(), config, &["--reneg-sec", "5"]);
    });
}

#[test]
fn stock_client_under_load_renegotiates_without_loss() {
    in_namespace("stock_client_under_load_renegotiates_without_loss", || {
        let config = ServerConfig { renegotiate_every: Some(Duration::from_secs(7)), ..PKI.server_config() };
        let (server, client) = stock_client_pings(&Files::new(), config, &["--reneg-sec", "5"]);
        let end = stock::now() + Duration::from_secs(20);
        while stock::now() < end {
            ping(SERVER_IP, 2000, "0", 1400);
        }
        assert!(server.seen().rekeyed >= 3, "only {} renegotiations", server.seen().rekeyed);
        assert!(server.seen().echoes >= 2000);
        assert_eq!(client.complaints(), Vec::<String>::new());
    });
}

#[test]
fn stock_client_with_small_packets() {
    in_namespace("stock_client_with_small_packets", || {
        stock_client_pings(&Files::new(), PKI.server_config(), &["--max-packet-size", "300"]);
    });
}

#[test]
fn stock_client_with_compression_configured() {
    in_namespace("stock_client_with_compression_configured", || {
        for arguments in
            [["--compress"].as_slice(), &["--comp-lzo", "no"], &["--allow-compression", "asym", "--compress", "lz4"]]
        {
            let server = Server::new(PKI.server_config());
            let files = Files::new();
            let client = OpenVpn::client(&files, arguments);
            client.wait_for_line("Initialization Sequence Completed");
            ping(SERVER_IP, 5, "0.1", 56);
            drop((client, server));
        }
    });
}

#[test]
fn stock_client_without_a_common_cipher_hears_so() {
    in_namespace("stock_client_without_a_common_cipher_hears_so", || {
        let server = Server::new(PKI.server_config());
        let files = Files::new();
        let mut client = OpenVpn::client(&files, &["--data-ciphers", "AES-256-CBC"]);
        client.wait_for_line("AUTH_FAILED,Data channel cipher negotiation failed (no shared cipher)");
        assert_eq!(client.wait_for_exit(), Some(0));
        let closed = wait_for("end", Duration::from_secs(10), || server.seen().closed.pop());
        assert_eq!(closed, CloseReason::Refused(Refusal::NoSharedCipher));
    });
}

#[test]
fn stock_client_with_an_ethernet_interface_hears_so() {
    in_namespace("stock_client_with_an_ethernet_interface_hears_so", || {
        let _server = Server::new(PKI.server_config());
        let files = Files::new();
        let mut client = OpenVpn::client(&files, &["--dev-type", "tap"]);
        client.wait_for_line("AUTH_FAILED,Only dev tun is supported");
        client.wait_for_exit();
    });
}

#[test]
fn stock_client_of_another_authority_hears_so() {
    in_namespace("stock_client_of_another_authority_hears_so", || {
        let server = Server::new(PKI.server_config());
        let files = Files::new();
        let stranger = stock::stranger();
        files.write("device.crt", &stranger.device.certificate_pem());
        files.write("device.key", &stranger.device.key.to_pem());
        let client = OpenVpn::client(&files, &[]);
        client.wait_for_line("Received fatal SSL alert: unknown CA");
        let closed = wait_for("end", Duration::from_secs(10), || server.seen().closed.pop());
        assert!(matches!(closed, CloseReason::Tls(_)), "{closed:?}");
    });
}

#[test]
fn stock_client_that_distrusts_the_server_shows_here() {
    in_namespace("stock_client_that_distrusts_the_server_shows_here", || {
        let server = Server::new(PKI.server_config());
        let files = Files::new();
        files.write("ca.crt", &stock::stranger().authority.certificate_pem());
        let _client = OpenVpn::client(&files, &[]);
        let closed = wait_for("end", Duration::from_secs(10), || server.seen().closed.pop());
        assert!(matches!(closed, CloseReason::PeerAlert(_) | CloseReason::PeerClosed), "{closed:?}");
    });
}

#[test]
fn stock_client_with_old_tls_only_hears_so() {
    in_namespace("stock_client_with_old_tls_only_hears_so", || {
        let server = Server::new(PKI.server_config());
        let files = Files::new();
        let client = OpenVpn::client(&files, &["--tls-version-max", "1.2"]);
        client.wait_for_line("alert protocol version");
        let closed = wait_for("end", Duration::from_secs(10), || server.seen().closed.pop());
        assert!(matches!(closed, CloseReason::Tls(_)), "{closed:?}");
    });
}

#[test]
fn stock_client_obeys_farewells() {
    in_namespace("stock_client_obeys_farewells", || {
        let files = Files::new();
        for (farewell, line, comes_again) in [
            (Farewell::Restart(String::new()), "server-pushed-connection-reset", true),
            (Farewell::Silent, "Connection reset, restarting", true),
            (
                Farewell::AuthFailedTemporarily { backoff_seconds: 2, text: "busy".to_owned() },
                "AUTH_FAILED,TEMP[backoff 2]:busy",
                true,
            ),
            (Farewell::Halt(String::new()), "server-pushed-halt", false),
            (Farewell::AuthFailed("gone".to_owned()), "AUTH_FAILED,gone", false),
        ] {
            let (server, mut client) = stock_client_pings(&files, PKI.server_config(), &[]);
            server.say_farewell(farewell);
            client.wait_for_line(line);
            if comes_again {
                wait_for("second connection", Duration::from_secs(20), || (server.seen().connected == 2).then_some(()));
            } else {
                client.wait_for_exit();
            }
        }
    });
}

#[test]
fn stock_client_takes_many_routes() {
    in_namespace("stock_client_takes_many_routes", || {
        let options: Vec<String> = (0..60).map(|net| format!("route 10.78.{net}.0 255.255.255.0")).collect();
        let _server = Server::with(PKI.server_config(), Admission { options, ..admission() });
        let files = Files::new();
        let client = OpenVpn::client(&files, &[]);
        client.wait_for_line("Initialization Sequence Completed");
        let routes = std::process::Command::new("ip").args(["route", "show"]).output().unwrap();
        let routes = String::from_utf8(routes.stdout).unwrap();
        assert_eq!(routes.lines().filter(|route| route.starts_with("10.78.")).count(), 60, "{routes}");
    });
}

#[test]
fn stock_client_with_ipv6_inside() {
    in_namespace("stock_client_with_ipv6_inside", || {
        let ipv6 = AdmissionV6 { address: CLIENT_IP_V6, prefix_bits: 64, gateway: SERVER_IP_V6 };
        let server = Server::with(PKI.server_config(), Admission { ipv6: Some(ipv6), ..admission() });
        let files = Files::new();
        let client = OpenVpn::client(&files, &[]);
        client.wait_for_line("Initialization Sequence Completed");
        ping(SERVER_IP_V6, 5, "0.1", 56);
        ping(SERVER_IP, 5, "0.1", 56);
        assert_eq!(server.seen().counters.map(|counters| counters.source), Some(0));
    });
}

#[test]
fn packets_from_other_sources_are_dropped_and_counted() {
    in_namespace("packets_from_other_sources_are_dropped_and_counted", || {
        let (server, _client) = stock_client_pings(&Files::new(), PKI.server_config(), &[]);
        let ip = |arguments: &[&str]| {
            assert!(std::process::Command::new("ip").args(arguments).status().unwrap().success());
        };
        ip(&["addr", "add", "10.9.9.9/32", "dev", "tun0"]);
        let echoes = server.seen().echoes;
        let arguments = ["-c", "3", "-i", "0.1", "-W", "1", "-I", "10.9.9.9", "10.77.0.1"];
        assert!(!std::process::Command::new("ping").args(arguments).output().unwrap().status.success());
        assert_eq!(server.seen().echoes, echoes);
        assert_eq!(server.seen().counters.map(|counters| counters.source), Some(3));
    });
}

/// Our client gets a tunnel to a stock server, and its pings come back.
fn our_client_pings(files: &Files, config: ClientConfig, arguments: &[&str], seconds: u16) -> Connection {
    let server = OpenVpn::server(files, arguments);
    let mut connection = Connection::client(config);
    let end = stock::now() + Duration::from_secs(20);
    while connection.end.pushed().is_none() {
        let log = || server.log().join("\n");
        assert!(connection.turn(), "{:?}\n{}", connection.end.closed, log());
        assert!(stock::now() < end, "not connected:\n{}", log());
    }
    connection.ping(5 + seconds * 5, Duration::from_millis(if seconds > 0 { 200 } else { 20 }));
    assert_eq!(server.complaints(), Vec::<String>::new());
    connection
}

#[test]
fn our_client_plain() {
    in_namespace("our_client_plain", || {
        let connection = our_client_pings(&Files::new(), PKI.client_config(), &[], 0);
        let pushed = connection.end.pushed().unwrap();
        assert_eq!(pushed.gateway, Some(SERVER_IP));
        let agreed = connection.end.session.agreed().unwrap();
        assert!(agreed.is_tls_ekm && agreed.is_dynamic_tls_crypt && agreed.has_exit);
    });
}

#[test]
fn our_client_with_each_cipher() {
    in_namespace("our_client_with_each_cipher", || {
        for cipher in Cipher::ALL {
            let arguments = ["--data-ciphers", cipher.name()];
            let connection = our_client_pings(&Files::new(), PKI.client_config(), &arguments, 0);
            assert_eq!(connection.end.session.agreed().map(|agreed| agreed.cipher), Some(cipher));
        }
    });
}

#[test]
fn our_client_the_old_way() {
    in_namespace("our_client_the_old_way", || {
        let peer_info = "IV_VER=2.4.12\nIV_PLAT=linux\nIV_PROTO=2\nIV_NCP=2\nIV_CIPHERS=AES-256-GCM:AES-128-GCM\n";
        let config = ClientConfig { peer_info: peer_info.into(), ..PKI.client_config() };
        let connection = our_client_pings(&Files::new(), config, &[], 0);
        assert!(!connection.end.session.agreed().unwrap().is_tls_ekm);
    });
}

#[test]
fn our_client_wrapped() {
    in_namespace("our_client_wrapped", || {
        let files = Files::new();
        let key = StaticKey::from_pem(&files.generate(GENKEY, "ta.key")).unwrap();
        files.generate(&["--genkey", "tls-crypt-v2-server"], "v2s.key");
        let arguments = ["--tls-crypt-v2", &files.named("v2s.key"), "--genkey", "tls-crypt-v2-client"];
        let v2_client = V2ClientKey::from_pem(&files.generate(&arguments, "v2c.key")).unwrap();
        let (ta, v2s) = (files.named("ta.key"), files.named("v2s.key"));
        let auth = ClientWrapping::TlsAuth { key: key.clone(), direction: KeyDirection::One, digest: AuthDigest::Sha1 };
        for (wrapping, arguments) in [
            (auth, vec!["--tls-auth", &ta, "0"]),
            (ClientWrapping::TlsCrypt(key), vec!["--tls-crypt", &ta]),
            (ClientWrapping::TlsCryptV2(v2_client), vec!["--tls-crypt-v2", &v2s]),
        ] {
            let config = ClientConfig { wrapping, ..PKI.client_config() };
            our_client_pings(&files, config, &arguments, 0);
        }
    });
}

#[test]
fn our_client_renegotiates() {
    in_namespace("our_client_renegotiates", || {
        let config = ClientConfig { renegotiate_every: Some(Duration::from_secs(5)), ..PKI.client_config() };
        let connection = our_client_pings(&Files::new(), config, &["--reneg-sec", "0"], 24);
        assert!(connection.end.rekeyed().len() >= 3, "{:?}", connection.end.rekeyed());
    });
}

#[test]
fn our_client_is_renegotiated() {
    in_namespace("our_client_is_renegotiated", || {
        let connection = our_client_pings(&Files::new(), PKI.client_config(), &["--reneg-sec", "5"], 24);
        assert!(connection.end.rekeyed().len() >= 3, "{:?}", connection.end.rekeyed());
    });
}
