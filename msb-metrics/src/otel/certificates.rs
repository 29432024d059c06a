//! Certificates of the collector: the CA file of `--ca-cert`, and certificate verification errors.

use std::error::Error;
use std::io;
use std::path::Path;

use anyhow::Context;
use libmsb::state::write::read_bounded;
use rustls::{CertificateError, Error as TlsError};
use ureq::tls::{Certificate, PemItem, parse_pem};

/// Maximum size of a certificate file in bytes.
const CERTIFICATES_BYTES_MAX: u64 = 16 << 20;

/// CA certificates of a file, at least one.
pub(super) struct CaFile {
    /// File contents in PEM.
    #[cfg(feature = "grpc")]
    pub(super) pem: Vec<u8>,
    /// Certificates of the file.
    pub(super) certificates: Vec<Certificate<'static>>,
}

/// Reads a certificate file.
pub(super) fn read(path: &Path) -> anyhow::Result<CaFile> {
    let pem = read_bounded(path, CERTIFICATES_BYTES_MAX)?
        .with_context(|| format!("cannot open '{}': no such file or directory", path.display()))?;
    let mut certificates = Vec::new();
    for item in parse_pem(&pem) {
        let item = item.with_context(|| format!("cannot read '{}'", path.display()))?;
        if let PemItem::Certificate(certificate) = item {
            certificates.push(certificate);
        }
    }
    anyhow::ensure!(!certificates.is_empty(), "'{}' contains no certificate", path.display());
    Ok(CaFile {
        #[cfg(feature = "grpc")]
        pem,
        certificates,
    })
}

/// Returns the reason why certificate verification failed, if that is the cause of an error.
pub(super) fn verification_error(error: &(dyn Error + 'static)) -> Option<String> {
    let mut chain = std::iter::successors(Some(error), |error| next_error(*error));
    let invalid_header = chain.find_map(|error| match error.downcast_ref() {
        Some(TlsError::InvalidCertificate(invalid_header)) => Some(invalid_header),
        _ => None,
    })?;
    let words = match invalid_header {
        CertificateError::UnknownIssuer => {
            "unknown issuer; trust another CA with --ca-cert".to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "not valid for this host name".to_owned()
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "expired".to_owned(),
        other => other.to_string(),
    };
    Some(format!("certificate verification failed: {words}"))
}

/// Returns the next error of a chain. The TLS error is wrapped in an I/O error, which does not
/// return it as its source.
fn next_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    match error.downcast_ref::<io::Error>().map(io::Error::get_ref) {
        Some(Some(inner)) => Some(inner),
        _ => error.source(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificate_errors_are_found_inside_other_errors() {
        let bad = TlsError::InvalidCertificate(CertificateError::UnknownIssuer);
        let wrapped = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, bad));
        let words = verification_error(&wrapped).unwrap();
        assert!(words.contains("unknown issuer"), "{words}");
        assert_eq!(verification_error(&io::Error::other("no way")), None);
        assert_eq!(verification_error(&TlsError::DecryptError), None);
    }
}
