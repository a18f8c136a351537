//! The keys and certificates of this server, in `<data_dir>/pki`: `ca.key` and `ca.pem` (the fleet's root), `server.key` and
//! `server.pem` (what devices and people see), `statement.key` and `statement.pem` (what signs statements), `cluster.key` and
//! `cluster.pem` (the root of what nodes show one another). Keys are for their owner only, are never logged and never overwritten.

pub(crate) mod node;
pub(crate) mod statement;

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use cloudlink_certs as certs;
use cloudlink_certs::ca::Authority;
use cloudlink_certs::key::PrivateKey;
use cloudlink_certs::profile::{Serial, Validity};
use rustls::client::verify_server_name;
use rustls::pki_types::CertificateDer;
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use time::{Duration, OffsetDateTime};
use tokio_util::sync::CancellationToken;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::config::{Config, HostName};
use crate::file;
use crate::metrics::Metrics;
pub(crate) use node::NodeCredentials;
pub use statement::StatementSigner;

/// How often the age of the server's certificate is looked at.
const LOOK_EVERY: std::time::Duration = std::time::Duration::from_secs(3600);

/// After so many looks, of an hour each, the node makes itself another certificate for other nodes: long before that ends.
const NODE_REISSUE_LOOKS: u32 = 24;

/// Why there are no keys and certificates.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error("{} exists already, and is never overwritten", path.display())]
    Exists { path: PathBuf },
    #[error("there is no fleet CA in {} yet. Make one: cloudlinkd pki init --config …", path.display())]
    Missing { path: PathBuf },
    #[error("cannot {verb} {}", path.display())]
    File {
        verb: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the system gives no randomness")]
    Random,
    #[error("cannot make a key")]
    Key(#[from] certs::key::PrivateKeyError),
    #[error("cannot read the key {}", path.display())]
    ReadKey {
        path: PathBuf,
        #[source]
        source: certs::key::PrivateKeyError,
    },
    #[error("cannot make the fleet CA")]
    Create(#[from] certs::ca::CreateAuthorityError),
    #[error("cannot use the fleet CA {}", path.display())]
    Load {
        path: PathBuf,
        #[source]
        source: certs::ca::LoadAuthorityError,
    },
    #[error("cannot make a validity")]
    Validity(#[from] certs::profile::ValidityError),
    #[error("trust_domain is not one")]
    TrustDomain(#[from] certs::identity::IdentityError),
    #[error("cannot issue a certificate of the server")]
    Issue(#[from] certs::issue::IssueError),
    #[error("{} is not a certificate", path.display())]
    Malformed { path: PathBuf },
    #[error("the server's key cannot be used for TLS")]
    Tls(#[source] rustls::Error),
}

/// What `pki init` made.
#[derive(Debug)]
pub struct Made {
    pub ca_certificate: PathBuf,
    pub server_certificate: PathBuf,
}

/// Makes a fleet CA and the server's certificate. Touches nothing that exists.
pub fn init(config: &Config, now: OffsetDateTime) -> Result<Made, PkiError> {
    let files = Files::of(&config.data_dir);
    for path in files.all() {
        if path.exists() {
            return Err(PkiError::Exists { path: path.clone() });
        }
    }
    make_dir(&config.data_dir, 0o711)?;
    make_dir(&files.dir, 0o755)?;

    let key = generate_key()?;
    create(&files.ca_key, key.to_pem().as_bytes(), file::PRIVATE)?;
    let validity = Validity::starting_at(now, days(config.certificate.ca_days))?;
    let authority =
        Authority::create(key, &format!("Cloudlink fleet {}", short(&config.trust_domain)), serial()?, validity)?;
    create(&files.ca_certificate, authority.certificate_pem().as_bytes(), file::PUBLIC)?;
    ServerCertificate::load_or_issue(config, &files, &authority, now)?;
    StatementSigner::load_or_issue(config, &files, &authority, now)?;
    NodeCredentials::load_or_make(config, &files, now)?;
    Ok(Made { ca_certificate: files.ca_certificate, server_certificate: files.server_certificate })
}

/// The keys and certificates of a running server.
#[derive(Clone, Debug)]
pub struct Pki {
    /// Signs device certificates.
    pub authority: Arc<Authority>,
    /// What devices and people see. Follows a reissue.
    pub server: Arc<ServerCertificate>,
    /// Signs statements. Follows a reissue, too.
    pub statements: Arc<StatementSigner>,
    /// For other nodes.
    pub(crate) node: Arc<NodeCredentials>,
    config: Config,
}

impl Pki {
    /// Reads them; reissues a certificate of the server that is close to its end, or lacks a name. A server of before statements,
    /// or before there could be several nodes, gets the keys for them here.
    pub fn load(config: &Config, now: OffsetDateTime) -> Result<Self, PkiError> {
        let files = Files::of(&config.data_dir);
        if !files.ca_key.exists() && !files.ca_certificate.exists() {
            return Err(PkiError::Missing { path: files.dir });
        }
        let key = read_key(&files.ca_key)?;
        let authority = Authority::load(&read(&files.ca_certificate)?, key)
            .map_err(|source| PkiError::Load { path: files.ca_certificate.clone(), source })?;
        let server = ServerCertificate::load_or_issue(config, &files, &authority, now)?;
        let statements = Arc::new(StatementSigner::load_or_issue(config, &files, &authority, now)?);
        let node = Arc::new(NodeCredentials::load_or_make(config, &files, now)?);
        Ok(Self { authority: Arc::new(authority), server: Arc::new(server), statements, node, config: config.clone() })
    }

    /// Reissues the server's certificates before they end, for as long as the node runs.
    pub async fn keep_fresh(self, metrics: Arc<Metrics>, stop: CancellationToken) {
        let files = Files::of(&self.config.data_dir);
        let mut looks = 0_u32;
        loop {
            metrics.server_certificate_expiry.set(self.server.current.load().not_after.unix_timestamp());
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            looks = looks.wrapping_add(1);
            let refreshed = self.refresh(&files).and_then(|()| {
                if looks.is_multiple_of(NODE_REISSUE_LOOKS) { self.node.refresh(crate::clock::now()) } else { Ok(()) }
            });
            if let Err(error) = refreshed {
                metrics.task_failures.with_label_values(&["certificate"]).inc();
                tracing::error!(error = &error as &dyn std::error::Error, "cannot renew the server's certificates");
            }
        }
    }
}

impl Pki {
    fn refresh(&self, files: &Files) -> Result<(), PkiError> {
        let now = crate::clock::now();
        let server = ServerCertificate::load_or_issue(&self.config, files, &self.authority, now)?;
        self.server.current.store(server.current.into_inner());
        self.statements.replace(StatementSigner::load_or_issue(&self.config, files, &self.authority, now)?);
        Ok(())
    }
}

/// The server's certificate with its key, for TLS.
#[derive(Debug)]
pub struct ServerCertificate {
    current: ArcSwap<Current>,
}

#[derive(Debug)]
struct Current {
    key: Arc<CertifiedKey>,
    common_name: Option<String>,
    not_after: OffsetDateTime,
}

impl ServerCertificate {
    fn load_or_issue(
        config: &Config,
        files: &Files,
        authority: &Authority,
        now: OffsetDateTime,
    ) -> Result<Self, PkiError> {
        let key = read_or_make_key(&files.server_key)?;
        let names = names(config);
        let common_name = common_name(config)?;
        let reissue_below = days(config.certificate.server_reissue_days);
        let current = if files.server_certificate.exists() {
            let current = Current::new(&files.server_certificate, &key)?;
            let fits = current.key.keys_match().is_ok() && current.has(&names) && current.is_called(&common_name);
            (fits && current.not_after - now > reissue_below).then_some(current)
        } else {
            None
        };
        let current = match current {
            Some(current) => current,
            None => {
                let validity = Validity::starting_at(now, days(config.certificate.server_days))?;
                let names: Vec<_> = names.iter().map(|name| name.to_string().parse()).collect::<Result<_, _>>()?;
                let certificate = authority.issue_server(&key.public_key(), &names, serial()?, validity)?;
                let pem = certs::pem::certificate_to_pem(&certificate);
                // The key stays, so that replacing one file is replacing all.
                file::replace(&files.server_certificate, pem.as_bytes(), file::PUBLIC).map_err(|source| {
                    PkiError::File { verb: "replace", path: files.server_certificate.clone(), source }
                })?;
                tracing::info!(until = %validity.not_after(), "issued the server's certificate");
                Current::new(&files.server_certificate, &key)?
            }
        };
        Ok(Self { current: ArcSwap::from_pointee(current) })
    }

    /// The certificate and key now in use.
    #[must_use]
    pub fn certified_key(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.current.load().key)
    }
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.certified_key())
    }
}

impl Current {
    fn new(path: &Path, key: &PrivateKey) -> Result<Self, PkiError> {
        let malformed = || PkiError::Malformed { path: path.to_owned() };
        let chain = certs::pem::certificates_from_pem(&read(path)?).map_err(|_| malformed())?;
        let leaf = chain.first().ok_or_else(malformed)?;
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| malformed())?;
        let not_after = parsed.validity().not_after.to_datetime();
        let common_name = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        let common_name = common_name.map(str::to_owned);
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key.as_pkcs8_der().clone_key().into())
            .map_err(PkiError::Tls)?;
        Ok(Self { key: Arc::new(CertifiedKey::new(chain, key)), common_name, not_after })
    }

    fn has(&self, names: &[HostName]) -> bool {
        let leaf: Option<&CertificateDer<'_>> = self.key.cert.first();
        let parsed = leaf.and_then(|leaf| ParsedCertificate::try_from(leaf).ok());
        parsed.is_some_and(|leaf| names.iter().all(|name| verify_server_name(&leaf, name.server_name()).is_ok()))
    }

    fn is_called(&self, common_name: &str) -> bool {
        self.common_name.as_deref() == Some(common_name)
    }
}

/// The common name of the server's certificate: OpenVPN clients look at no other name.
pub fn common_name(config: &Config) -> Result<String, PkiError> {
    let name: certs::issue::ServerName = config.device.server_name.to_string().parse()?;
    Ok(name.common_name())
}

/// Every name that somebody dials; first the one that linked devices do.
fn names(config: &Config) -> Vec<HostName> {
    let mut names = vec![config.device.server_name.clone(), config.device.enroll_name()];
    names.extend(config.people.names.iter().cloned());
    // People who listen on one address reach the API by it.
    let ip = config.people.listen.ip();
    if !ip.is_unspecified() {
        names.extend(ip_name(ip));
    }
    let mut unique: Vec<HostName> = Vec::new();
    for name in names {
        if !unique.contains(&name) {
            unique.push(name);
        }
    }
    unique
}

fn ip_name(ip: IpAddr) -> Option<HostName> {
    ip.to_string().parse().ok()
}

struct Files {
    dir: PathBuf,
    ca_key: PathBuf,
    ca_certificate: PathBuf,
    server_key: PathBuf,
    server_certificate: PathBuf,
    statement_key: PathBuf,
    statement_certificate: PathBuf,
    cluster_key: PathBuf,
    cluster_certificate: PathBuf,
}

impl Files {
    fn of(data_dir: &Path) -> Self {
        let dir = data_dir.join("pki");
        Self {
            ca_key: dir.join("ca.key"),
            ca_certificate: dir.join("ca.pem"),
            server_key: dir.join("server.key"),
            server_certificate: dir.join("server.pem"),
            statement_key: dir.join("statement.key"),
            statement_certificate: dir.join("statement.pem"),
            cluster_key: dir.join("cluster.key"),
            cluster_certificate: dir.join("cluster.pem"),
            dir,
        }
    }

    fn all(&self) -> [&PathBuf; 8] {
        let Self {
            ca_key, ca_certificate, server_key, server_certificate, statement_key, statement_certificate, ..
        } = self;
        let Self { cluster_key, cluster_certificate, .. } = self;
        [
            ca_key,
            ca_certificate,
            server_key,
            server_certificate,
            statement_key,
            statement_certificate,
            cluster_key,
            cluster_certificate,
        ]
    }
}

/// The key of a file, made there if there is none.
fn read_or_make_key(path: &Path) -> Result<PrivateKey, PkiError> {
    if path.exists() {
        return read_key(path);
    }
    let key = generate_key()?;
    create(path, key.to_pem().as_bytes(), file::PRIVATE)?;
    Ok(key)
}

fn generate_key() -> Result<PrivateKey, PkiError> {
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map_err(|_| PkiError::Random)?;
    let der = pair.to_pkcs8v1().map_err(|_| PkiError::Random)?;
    Ok(PrivateKey::from_pkcs8_der(der.as_ref())?)
}

fn serial() -> Result<Serial, PkiError> {
    let mut random = [0; Serial::LEN];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| PkiError::Random)?;
    Ok(Serial::from_random(random))
}

fn days(days: u32) -> Duration {
    Duration::days(days.into())
}

/// What fits into a common name.
fn short(trust_domain: &str) -> &str {
    &trust_domain[..trust_domain.len().min(40)]
}

fn read_key(path: &Path) -> Result<PrivateKey, PkiError> {
    let pem = zeroize::Zeroizing::new(read(path)?);
    PrivateKey::from_pem(&pem).map_err(|source| PkiError::ReadKey { path: path.to_owned(), source })
}

fn read(path: &Path) -> Result<Vec<u8>, PkiError> {
    fs::read(path).map_err(|source| PkiError::File { verb: "read", path: path.to_owned(), source })
}

fn make_dir(path: &Path, mode: u32) -> Result<(), PkiError> {
    file::make_dir(path, mode).map_err(|source| PkiError::File { verb: "make", path: path.to_owned(), source })
}

fn create(path: &Path, bytes: &[u8], mode: u32) -> Result<(), PkiError> {
    file::create(path, bytes, mode).map_err(|source| {
        let path = path.to_owned();
        if source.kind() == std::io::ErrorKind::AlreadyExists {
            PkiError::Exists { path }
        } else {
            PkiError::File { verb: "write", path, source }
        }
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn config(dir: &tempfile::TempDir) -> Config {
        Config { data_dir: dir.path().join("data"), ..Config::default() }
    }

    fn now() -> OffsetDateTime {
        time::macros::datetime!(2030-01-01 00:00 UTC)
    }

    #[test]
    fn init_makes_what_load_reads_and_keys_are_for_their_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(&dir);
        let made = init(&config, now()).unwrap();
        let pki = Pki::load(&config, now()).unwrap();
        assert_eq!(pki.authority.certificate_pem().as_bytes(), fs::read(&made.ca_certificate).unwrap());
        for key in ["ca.key", "server.key", "statement.key", "cluster.key"] {
            let mode = fs::metadata(config.data_dir.join("pki").join(key)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{key}");
        }
        let leftover = fs::read_dir(config.data_dir.join("pki")).unwrap().count();
        assert_eq!(leftover, 8);
    }

    #[test]
    fn init_overwrites_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(&dir);
        init(&config, now()).unwrap();
        let before = fs::read(config.data_dir.join("pki/ca.key")).unwrap();
        assert!(matches!(init(&config, now()), Err(PkiError::Exists { .. })));
        assert_eq!(fs::read(config.data_dir.join("pki/ca.key")).unwrap(), before);
    }

    #[test]
    fn without_a_ca_the_error_names_the_command_to_type() {
        let dir = tempfile::tempdir().unwrap();
        let error = Pki::load(&config(&dir), now()).unwrap_err();
        assert!(error.to_string().contains("cloudlinkd pki init"), "{error}");
    }

    #[test]
    fn a_server_certificate_close_to_its_end_is_reissued_with_the_same_key() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(&dir);
        init(&config, now()).unwrap();
        let path = config.data_dir.join("pki/server.pem");
        let (before, key) = (fs::read(&path).unwrap(), fs::read(config.data_dir.join("pki/server.key")).unwrap());
        Pki::load(&config, now() + Duration::days(300)).unwrap();
        assert_eq!(fs::read(&path).unwrap(), before);
        Pki::load(&config, now() + Duration::days(340)).unwrap();
        assert_ne!(fs::read(&path).unwrap(), before);
        assert_eq!(fs::read(config.data_dir.join("pki/server.key")).unwrap(), key);
    }

    #[test]
    fn a_new_name_gets_into_the_certificate_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(&dir);
        init(&config, now()).unwrap();
        config.device.server_name = "link.example.com".parse().unwrap();
        let pki = Pki::load(&config, now()).unwrap();
        let enroll = "enroll.link.example.com".parse().unwrap();
        assert!(pki.server.current.load().has(&[config.device.server_name.clone(), enroll]));
    }

    #[test]
    fn a_certificate_is_called_by_the_name_that_devices_dial_also_when_it_had_that_name_before() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(&dir);
        config.people.names.extend(["link.example.com".parse().unwrap(), "enroll.link.example.com".parse().unwrap()]);
        init(&config, now()).unwrap();
        config.device.server_name = "link.example.com".parse().unwrap();
        let pki = Pki::load(&config, now()).unwrap();
        assert!(pki.server.current.load().is_called("link.example.com"));
        assert_eq!(common_name(&config).unwrap(), "link.example.com");
    }
}
