//! The key that signs statements, with its certificate.

use std::sync::Arc;

use arc_swap::ArcSwap;
use cloudlink_certs as certs;
use cloudlink_certs::ca::Authority;
use cloudlink_certs::identity::TrustDomain;
use cloudlink_certs::key::PrivateKey;
use cloudlink_certs::profile::{BACKDATE, STATEMENT_LIFETIME, Validity};
use cloudlink_certs::statement::{SignError, StatementCertificate, StatementKind, sign};
use rustls::pki_types::CertificateDer;
use serde::Serialize;
use time::{Duration, OffsetDateTime};

use super::{Files, PkiError, read, read_or_make_key, serial};
use crate::config::Config;
use crate::file;

/// A certificate with less left than this is made anew. Old statements stay valid: they were made while it was.
const REISSUE_BELOW: Duration = Duration::days(30);

/// Signs statements as this fleet.
#[derive(Debug)]
pub struct StatementSigner {
    current: ArcSwap<Current>,
}

#[derive(Debug)]
struct Current {
    key: PrivateKey,
    der: CertificateDer<'static>,
    certificate: StatementCertificate,
}

impl StatementSigner {
    /// For which fleet.
    #[must_use]
    pub fn trust_domain(&self) -> TrustDomain {
        self.current.load().certificate.trust_domain.clone()
    }

    /// Signs what is to be said. The content has the trust domain, and `made_at`, which is now.
    pub fn sign(&self, kind: StatementKind, content: &impl Serialize) -> Result<String, SignError> {
        let current = self.current.load();
        sign(kind, content, &current.der, &current.key)
    }

    pub(super) fn load_or_issue(
        config: &Config,
        files: &Files,
        authority: &Authority,
        now: OffsetDateTime,
    ) -> Result<Self, PkiError> {
        let key = read_or_make_key(&files.statement_key)?;
        let trust_domain: TrustDomain = config.trust_domain.parse()?;
        let path = &files.statement_certificate;
        let stored = if path.exists() { certificate_in(&read(path)?) } else { None };
        let fitting = stored.filter(|(_, certificate)| {
            let ends_with_authority = certificate.not_after == authority.validity().not_after();
            certificate.trust_domain == trust_domain
                && certificate.public_key_der == key.public_key_der()
                && (certificate.not_after - now > REISSUE_BELOW || ends_with_authority)
        });
        let (der, certificate) = match fitting {
            Some(fitting) => fitting,
            None => {
                let until = (now + STATEMENT_LIFETIME).min(authority.validity().not_after());
                let validity = Validity::new(now - BACKDATE, until)?;
                let der = authority.issue_statement(&key.public_key(), &trust_domain, serial()?, validity)?;
                let pem = certs::pem::certificate_to_pem(&der);
                file::replace(path, pem.as_bytes(), file::PUBLIC).map_err(|source| PkiError::File {
                    verb: "replace",
                    path: path.clone(),
                    source,
                })?;
                tracing::info!(until = %validity.not_after(), "issued the certificate for statements");
                certificate_in(pem.as_bytes()).ok_or_else(|| PkiError::Malformed { path: path.clone() })?
            }
        };
        Ok(Self { current: ArcSwap::from_pointee(Current { key, der, certificate }) })
    }

    /// Takes the place of one that was loaded before.
    pub(super) fn replace(&self, fresh: Self) {
        let fresh: Arc<Current> = fresh.current.into_inner();
        self.current.store(fresh);
    }
}

/// The certificate of a file, if it is one for statements: what is in the file is made anew otherwise.
fn certificate_in(pem: &[u8]) -> Option<(CertificateDer<'static>, StatementCertificate)> {
    let der = certs::pem::certificates_from_pem(pem).ok()?.into_iter().next()?;
    let certificate = StatementCertificate::parse(&der).ok()?;
    Some((der, certificate))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;
    use std::sync::LazyLock;

    use cloudlink_certs::{StatementError, TrustAnchor};
    use time::format_description::well_known::Rfc3339;
    use time::macros::datetime;

    use super::*;
    use crate::pki::{Pki, init};

    /// A signer whose certificate is valid now, and who believes it.
    pub(crate) static SIGNER: LazyLock<(Arc<StatementSigner>, TrustAnchor)> = LazyLock::new(|| {
        let dir = tempfile::tempdir().unwrap();
        let config = Config { data_dir: dir.path().join("data"), ..Config::default() };
        init(&config, crate::clock::now()).unwrap();
        let pki = Pki::load(&config, crate::clock::now()).unwrap();
        (pki.statements, TrustAnchor::from_pem(pki.authority.certificate_pem().as_bytes()).unwrap())
    });

    const NOW: OffsetDateTime = datetime!(2030-01-01 00:00 UTC);

    struct Home {
        _dir: tempfile::TempDir,
        config: Config,
    }

    impl Home {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let config = Config { data_dir: dir.path().join("data"), ..Config::default() };
            init(&config, NOW).unwrap();
            Self { _dir: dir, config }
        }

        fn file(&self, name: &str) -> Vec<u8> {
            fs::read(self.config.data_dir.join("pki").join(name)).unwrap()
        }

        fn signed_at(&self, at: OffsetDateTime) -> String {
            let pki = Pki::load(&self.config, at).unwrap();
            let content = serde_json::json!({
                "trust_domain": pki.statements.trust_domain().as_str(), "made_at": at.format(&Rfc3339).unwrap(),
            });
            pki.statements.sign(StatementKind::Isolation, &content).unwrap()
        }

        fn judge(&self, text: &str) -> Result<(), StatementError> {
            let trust = TrustAnchor::from_pem(&self.file("ca.pem")).unwrap();
            trust.verify_statement(StatementKind::Isolation, text).map(drop)
        }
    }

    #[test]
    fn what_is_signed_stays_valid_when_the_certificate_is_made_anew_with_the_same_key() {
        let home = Home::new();
        let (key, certificate) = (home.file("statement.key"), home.file("statement.pem"));
        let first = home.signed_at(NOW + Duration::days(300));
        assert_eq!(home.file("statement.pem"), certificate);
        let second = home.signed_at(NOW + Duration::days(340));
        assert_ne!(home.file("statement.pem"), certificate);
        assert_eq!(home.file("statement.key"), key);
        assert_eq!((home.judge(&first), home.judge(&second)), (Ok(()), Ok(())));
    }

    #[test]
    fn a_server_of_before_statements_gets_its_key_at_the_next_start() {
        let home = Home::new();
        for name in ["statement.key", "statement.pem"] {
            fs::remove_file(home.config.data_dir.join("pki").join(name)).unwrap();
        }
        assert_eq!(home.judge(&home.signed_at(NOW)), Ok(()));
    }

    #[test]
    fn a_certificate_that_does_not_fit_is_made_anew() {
        let mut home = Home::new();
        let path = home.config.data_dir.join("pki/statement.pem");
        fs::write(&path, home.file("server.pem")).unwrap();
        assert_eq!(home.judge(&home.signed_at(NOW)), Ok(()));
        fs::remove_file(home.config.data_dir.join("pki/statement.key")).unwrap();
        assert_eq!(home.judge(&home.signed_at(NOW)), Ok(()), "another key");
        home.config.trust_domain = "another.example".to_owned();
        let pki = Pki::load(&home.config, NOW).unwrap();
        assert_eq!(pki.statements.trust_domain().as_str(), "another.example");
    }

    #[test]
    fn it_ends_no_later_than_the_authority_and_is_then_made_no_more() {
        let home = Home::new();
        let end = NOW + Duration::days(home.config.certificate.ca_days.into());
        let late = end - Duration::days(10);
        let config = Config {
            certificate: crate::config::Certificate {
                server_days: 2,
                server_reissue_days: 1,
                ..home.config.certificate.clone()
            },
            ..home.config.clone()
        };
        Pki::load(&config, late).unwrap();
        let certificate = home.file("statement.pem");
        assert_eq!(certificate_in(&certificate).unwrap().1.not_after, end);
        Pki::load(&config, late + Duration::DAY).unwrap();
        assert_eq!(home.file("statement.pem"), certificate);
    }
}
