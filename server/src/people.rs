//! The people port: the API's router behind TLS 1.3.

use std::sync::Arc;

use axum::Router;
use rustls::server::NoServerSessionStorage;
use rustls::version::TLS13;

use crate::config;
use crate::http;
use crate::http_server::{Bounds, Figures, HttpServer};
use crate::metrics::Metrics;
use crate::pki::ServerCertificate;
use crate::proxy::Proxies;

/// What the API is told of the configuration.
#[must_use]
pub fn settings(config: &config::People, sign_in: &config::SignIn) -> http::Settings {
    http::Settings {
        token_requests_per_second: config.token_requests_per_second,
        token_requests_burst: config.token_requests_burst,
        failures_burst: config.failures_burst,
        lock_after_failures: sign_in.lock_after_failures,
        lock_for: sign_in.lock_seconds.duration(),
        streams_max: config.streams_max as usize,
        streams_per_tenant_max: config.streams_per_tenant_max as usize,
        streams_per_person_max: config.streams_per_person_max as usize,
        ..http::Settings::default()
    }
}

/// How the people port is served.
#[must_use]
pub fn server(
    config: &config::People,
    certificate: Arc<ServerCertificate>,
    router: Router,
    metrics: &Metrics,
) -> HttpServer {
    let mut tls = rustls::ServerConfig::builder_with_protocol_versions(&[&TLS13])
        .with_no_client_auth()
        .with_cert_resolver(certificate);
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // People are few and their connections are long: nothing to gain from resumption.
    tls.session_storage = Arc::new(NoServerSessionStorage {});
    tls.send_tls13_tickets = 0;
    HttpServer {
        name: "people",
        router,
        tls: Some(Arc::new(tls)),
        proxies: Proxies::new("people.proxy_from", &config.proxy_from),
        bounds: Bounds {
            connections_max: config.connections_max,
            per_address_max: config.connections_per_address_max,
            handshake: config.handshake_timeout_seconds.duration(),
            header: config.header_timeout_seconds.duration(),
            idle: config.idle_timeout_seconds.duration(),
        },
        figures: Some(Figures {
            connections: metrics.people_connections.clone(),
            refused: metrics.people_connections_refused.clone(),
            proxy_refused: metrics.people_proxy_refused.clone(),
        }),
    }
}
