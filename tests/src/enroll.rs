//! Enrollment by hand (docs/LINK-PROTOCOL.md, section 1).

use std::sync::Arc;

use anyhow::bail;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use cloudlink_certs::pem::certificates_from_pem;
use cloudlink_certs::{PrivateKey, create_request};
use cloudlink_proto::link::ENROLL_PATH;
use cloudlink_proto::link::message::{Welcome, server_message};
use data_encoding::BASE64;
use reqwest::{Certificate, Client};
use serde_json::{Value, json};

use crate::api::{Answer, install_provider, text};
use crate::dial::{Credentials, Heard, Link, hello};
use crate::fleet::Fleet;
use crate::server::{ENROLL_NAME, SERVER_NAME, Server};

/// A new P-256 key.
pub fn new_key() -> anyhow::Result<PrivateKey> {
    let pkcs8 = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING)?.to_pkcs8v1()?;
    Ok(PrivateKey::from_pkcs8_der(pkcs8.as_ref())?)
}

/// A certificate request as PEM.
#[must_use]
pub fn request_pem(der: &[u8]) -> String {
    format!("-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n", BASE64.encode(der))
}

/// An HTTPS client without a certificate, for a name of the device port.
pub fn client(server: &Server, name: &str) -> anyhow::Result<Client> {
    install_provider();
    let ca = Certificate::from_pem(&std::fs::read(server.ca_file())?)?;
    Ok(Client::builder().tls_certs_only([ca]).no_proxy().resolve(name, server.device).build()?)
}

/// Trades a token and a request for a certificate, or for a refusal.
pub async fn enroll(server: &Server, token: &str, request_pem: &str) -> anyhow::Result<Answer> {
    post(server, json!({ "token": token, "csr_pem": request_pem }).to_string()).await
}

/// Posts whatever it is to where devices enroll.
pub async fn post(server: &Server, body: String) -> anyhow::Result<Answer> {
    let url = format!("https://{ENROLL_NAME}:{}{ENROLL_PATH}", server.device.port());
    let request = client(server, ENROLL_NAME)?.post(url).header("content-type", "application/json").body(body);
    let answer = request.send().await?;
    let (status, headers) = (answer.status(), answer.headers().clone());
    let text = answer.text().await?;
    Ok(Answer { status, headers, body: serde_json::from_str(&text).unwrap_or(Value::String(text)) })
}

/// A device that exists as a certificate and a key only.
#[derive(Clone, Debug)]
pub struct Enrolled {
    pub id: String,
    pub credentials: Credentials,
}

impl Fleet {
    /// Enrolls a device without an agent.
    pub async fn enrolled(&self, name: &str) -> anyhow::Result<Enrolled> {
        let key = new_key()?;
        let token = self.enrollment_token(name).await?;
        let answer = enroll(&self.server, &token, &request_pem(&create_request(&key)?)).await?.success()?;
        let certificate = certificates_from_pem(text(&answer, "certificate_pem")?.as_bytes())?.swap_remove(0);
        Ok(Enrolled { id: text(&answer, "device_id")?, credentials: Credentials { certificate, key: Arc::new(key) } })
    }

    /// Opens a link as this device.
    pub async fn open(&self, credentials: &Credentials) -> anyhow::Result<Link> {
        Link::open(self.server.device, SERVER_NAME, &self.server.ca_file(), credentials).await
    }

    /// Opens a link as this device and is welcomed. Nobody answers the server's pings, so it does not live for ever.
    pub async fn live(&self, device: &Enrolled) -> anyhow::Result<(Link, Welcome)> {
        let mut link = self.open(&device.credentials).await?;
        let heard = link.hello(hello("first boot")).await?;
        let Heard::Message(server_message::Kind::Welcome(welcome)) = heard else { bail!("not welcome: {heard:?}") };
        Ok((link, welcome))
    }
}
