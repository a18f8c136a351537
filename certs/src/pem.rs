//! PEM in and out (RFC 7468).

use data_encoding::BASE64;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use zeroize::Zeroizing;

/// Certificates in one PEM text: a chain, or a bundle of roots while one replaces another.
pub const CERTIFICATES_MAX: usize = 16;

/// Columns of base64 in a line (RFC 7468 section 2).
const LINE_CHARS: usize = 64;

/// Why a PEM text is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum PemError {
    #[error("this is not PEM")]
    Malformed(#[source] rustls_pki_types::pem::Error),
    #[error("the PEM text holds no certificate")]
    NoCertificate,
    #[error("the PEM text holds more than {CERTIFICATES_MAX} certificates")]
    TooManyCertificates,
}

/// The certificates of a PEM text, in its order; at least one. Anything else in it is passed over.
pub fn certificates_from_pem(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let mut certificates = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        if certificates.len() == CERTIFICATES_MAX {
            return Err(PemError::TooManyCertificates);
        }
        certificates.push(certificate.map_err(PemError::Malformed)?);
    }
    if certificates.is_empty() { Err(PemError::NoCertificate) } else { Ok(certificates) }
}

/// A certificate as PEM.
#[must_use]
pub fn certificate_to_pem(certificate: &CertificateDer<'_>) -> String {
    std::mem::take(&mut *encode("CERTIFICATE", certificate))
}

/// A revocation list as PEM.
#[must_use]
pub fn revocation_list_to_pem(list: &CertificateRevocationListDer<'_>) -> String {
    std::mem::take(&mut *encode("X509 CRL", list))
}

/// The only buffers are the result and one line, both wiped: this encodes private keys as well.
pub(crate) fn encode(label: &str, der: &[u8]) -> Zeroizing<String> {
    let chars = BASE64.encode_len(der.len());
    let mut pem = Zeroizing::new(String::with_capacity(chars + chars / LINE_CHARS + 2 * label.len() + 40));
    pem.push_str("-----BEGIN ");
    pem.push_str(label);
    pem.push_str("-----\n");
    for bytes in der.chunks(LINE_CHARS / 4 * 3) {
        BASE64.encode_append(bytes, &mut pem);
        pem.push('\n');
    }
    pem.push_str("-----END ");
    pem.push_str(label);
    pem.push_str("-----\n");
    pem
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_read_back_whatever_its_length() {
        for len in [1, 47, 48, 49, 96, 500] {
            let der = CertificateDer::from((0..len).map(|i| (i % 251) as u8).collect::<Vec<_>>());
            let pem = certificate_to_pem(&der);
            assert!(pem.lines().all(|line| line.len() <= LINE_CHARS), "{pem}");
            assert_eq!(certificates_from_pem(pem.as_bytes()).unwrap(), [der]);
        }
    }

    #[test]
    fn a_bundle_keeps_its_order() {
        let (first, second) = (CertificateDer::from(vec![1]), CertificateDer::from(vec![2]));
        let pem = format!("a comment\n{}{}", certificate_to_pem(&first), certificate_to_pem(&second));
        assert_eq!(certificates_from_pem(pem.as_bytes()).unwrap(), [first, second]);
    }

    #[test]
    fn refuses_texts_without_and_with_too_many_certificates() {
        assert!(matches!(certificates_from_pem(b""), Err(PemError::NoCertificate)));
        assert!(matches!(certificates_from_pem(b"\xff\x00 no PEM"), Err(PemError::NoCertificate)));
        let many = certificate_to_pem(&CertificateDer::from(vec![1])).repeat(CERTIFICATES_MAX + 1);
        assert!(matches!(certificates_from_pem(many.as_bytes()), Err(PemError::TooManyCertificates)));
        assert!(matches!(
            certificates_from_pem(b"-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n"),
            Err(PemError::Malformed(_))
        ));
    }
}
