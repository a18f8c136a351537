//! The public-key infrastructure of a Cloudlink fleet, without I/O.
//!
//! One fleet has one [`Authority`]: a self-signed root that signs device certificates (client authentication only), server
//! certificates (server authentication only), certificates for [`statement`]s (neither) and revocation lists, and nothing else. Who a device is, is written in its
//! certificate as a [`DeviceIdentity`]. What a tenant allows, it can sign itself, with keys of its own: [`grant`].
//!
//! This crate reads no clock, opens no file or socket and makes no keys or serials: keys come in as PKCS#8, serials as
//! random bytes, times as arguments. (An ECDSA signature draws its nonce inside the cryptography library.) Nothing here
//! panics on bytes of a peer, whatever they are.
//!
//! # From a new fleet to a proven device
//!
//! ```
//! # use cloudlink_certs::*;
//! # use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
//! # use time::{Duration, macros::datetime};
//! # use uuid::Uuid;
//! # fn new_key() -> Result<PrivateKey, Box<dyn std::error::Error>> {
//! // The caller's business: where randomness comes from.
//! let pkcs8 = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING)?.to_pkcs8v1()?;
//! let key = PrivateKey::from_pkcs8_der(pkcs8.as_ref())?;
//! # Ok(key)
//! # }
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (random, more_random) = ([7; 16], [8; 16]);
//! # let now = datetime!(2026-01-01 00:00 UTC);
//! let authority = Authority::create(
//!     new_key()?,
//!     "Example fleet CA",
//!     Serial::from_random(random),
//!     Validity::starting_at(now, profile::AUTHORITY_LIFETIME)?,
//! )?;
//!
//! // On the device.
//! let device_key = new_key()?;
//! let request_der = create_request(&device_key)?;
//!
//! // On the server: who the device is, is the server's decision, never the request's.
//! let request = CertificateRequest::from_der(&request_der)?;
//! let identity =
//!     DeviceIdentity { trust_domain: "fleet.example".parse()?, tenant: Uuid::from_u128(1), device: Uuid::from_u128(2) };
//! let certificate = authority.issue_device(
//!     &request,
//!     &identity,
//!     Serial::from_random(more_random),
//!     Validity::starting_at(now, profile::DEVICE_LIFETIME)?,
//! )?;
//!
//! // On each connect, after TLS has proven that the peer holds the key.
//! assert_eq!(DeviceCertificate::parse(&certificate)?.identity, identity);
//! # Ok(())
//! # }
//! ```
//!
//! Start reading at [`identity`], then [`issue`].

pub mod ca;
pub mod csr;
pub mod grant;
pub mod identity;
pub mod issue;
mod jws;
pub mod key;
pub mod pem;
pub mod profile;
pub mod receipt;
pub mod renew;
pub mod revoke;
pub mod signing_key;
pub mod statement;
pub mod verify;

pub use ca::{Authority, CreateAuthorityError, LoadAuthorityError};
pub use csr::{CertificateRequest, CreateRequestError, RequestError, create_request};
pub use grant::{GrantStatement, GrantStatementError, GrantUse, SignGrantError};
pub use identity::{DeviceCertificate, DeviceCertificateError, DeviceIdentity, IdentityError, TrustDomain};
pub use issue::{IssueError, ServerName};
pub use key::{KeyAlgorithm, PrivateKey, PrivateKeyError, PublicKey, PublicKeyError};
pub use profile::{Serial, Validity, ValidityError};
pub use revoke::{Revocation, RevocationListError, RevocationReason};
pub use signing_key::KeyId;
pub use statement::{Statement, StatementCertificate, StatementCertificateError, StatementError, StatementKind};
pub use verify::{TrustAnchor, TrustAnchorError, VerifyError};
