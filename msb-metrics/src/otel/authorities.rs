//! Whom the exporter trusts, and what is wrong with a collector that it does not.

use std::error::Error;
use std::io;
use std::path::Path;

use anyhow::Context;
use libmsb::state::write::read_bounded;
use rustls::{CertificateError, Error as TlsError};
use ureq::tls::{Certificate, PemItem, parse_pem};

/// Longest file of certificates, in bytes.
const CERTIFICATES_BYTES_MAX: u64 = 16 << 20;

/// The user's own authorities: the text of a file, in which there is one certificate at least.
pub(super) struct Authorities {
    /// The text, in PEM.
    pub(super) pem: Vec<u8>,
    /// What is in it.
    pub(super) certificates: Vec<Certificate<'static>>,
}

/// Reads a file of certificates.
pub(super) fn read(path: &Path) -> anyhow::Result<Authorities> {
    let pem = read_bounded(path, CERTIFICATES_BYTES_MAX)?
        .with_context(|| format!("there is no file '{}'", path.display()))?;
    let mut certificates = Vec::new();
    for item in parse_pem(&pem) {
        let item = item.with_context(|| format!("cannot read '{}'", path.display()))?;
        if let PemItem::Certificate(certificate) = item {
            certificates.push(certificate);
        }
    }
    anyhow::ensure!(
        !certificates.is_empty(),
        "there is no certificate in '{}'",
        path.display()
    );
    Ok(Authorities { pem, certificates })
}

/// What is wrong with the collector's certificate, if that is what an error is about.
pub(super) fn complaint(error: &(dyn Error + 'static)) -> Option<String> {
    let mut chain = std::iter::successors(Some(error), |error| within(*error));
    let wrong = chain.find_map(|error| match error.downcast_ref() {
        Some(TlsError::InvalidCertificate(wrong)) => Some(wrong),
        _ => None,
    })?;
    let words = match wrong {
        CertificateError::UnknownIssuer => {
            "no authority that is trusted has signed it; --ca-cert names another one".to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "it is of another host".to_owned()
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "it has expired".to_owned()
        }
        other => other.to_string(),
    };
    Some(format!("its certificate is refused: {words}"))
}

/// The next error of a chain. That of TLS is wrapped in one of input and output, which does not call it its source.
fn within<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    match error.downcast_ref::<io::Error>().map(io::Error::get_ref) {
        Some(Some(inner)) => Some(inner),
        _ => error.source(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_certificate_is_told_from_other_troubles_wherever_it_is_wrapped() {
        let bad = TlsError::InvalidCertificate(CertificateError::UnknownIssuer);
        let wrapped = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, bad));
        let words = complaint(&wrapped).unwrap();
        assert!(words.contains("no authority that is trusted"), "{words}");
        assert_eq!(complaint(&io::Error::other("no way")), None);
        assert_eq!(complaint(&TlsError::DecryptError), None);
    }
}
