//! TLS connections to servers, verified with the authorities that the host trusts and those of the
//! settings.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use libmsb::net::name::HostName;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{AlertDescription, CertificateError, ClientConfig, Error, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::limits::HANDSHAKE_TIMEOUT;

/// Verification of servers.
pub(crate) struct Upstream(ClientConfig);

/// Reason why a server's connection cannot be used, and the option that helps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UpstreamFailure(pub(crate) String);

impl Upstream {
    /// Reads the authorities: those of the host, and those in files.
    pub(crate) fn open(files: &[PathBuf]) -> anyhow::Result<Upstream> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        for path in files {
            let cannot = || format!("cannot read certificates from '{}'", path.display());
            let certificates = CertificateDer::pem_file_iter(path).with_context(cannot)?;
            let before = roots.len();
            for certificate in certificates {
                roots.add(certificate.with_context(cannot)?).with_context(cannot)?;
            }
            anyhow::ensure!(roots.len() > before, "{}: there are none", cannot());
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Upstream(config))
    }

    /// Connects TLS over a connected socket, and offers these ALPN protocols.
    pub(crate) async fn connect(
        &self,
        socket: TcpStream,
        name: &HostName,
        protocols: &[Vec<u8>],
    ) -> Result<TlsStream<TcpStream>, UpstreamFailure> {
        let mut config = self.0.clone();
        config.alpn_protocols = protocols.to_vec();
        let server = ServerName::try_from(name.as_str().to_owned())
            .map_err(|_| UpstreamFailure("the server name is not valid".to_owned()))?;
        let connect = TlsConnector::from(Arc::new(config)).connect(server, socket);
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, connect).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(failure(&error)),
            Err(_) => {
                Err(UpstreamFailure("the TLS handshake with the server timed out".to_owned()))
            }
        }
    }
}

/// Describes a failed handshake.
fn failure(error: &io::Error) -> UpstreamFailure {
    let bypass = "--tls-bypass HOST exempts the host from interception";
    let inner = error.get_ref().and_then(|error| error.downcast_ref::<Error>());
    UpstreamFailure(match inner {
        Some(Error::InvalidCertificate(certificate)) => {
            let (why, hint) = match certificate {
                CertificateError::UnknownIssuer => (
                    "unknown issuer".to_owned(),
                    "; --tls-upstream-ca-cert FILE adds a certificate authority",
                ),
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    ("expired".to_owned(), "")
                }
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    ("not valid yet".to_owned(), "")
                }
                CertificateError::NotValidForName
                | CertificateError::NotValidForNameContext { .. } => {
                    ("not valid for this name".to_owned(), "")
                }
                CertificateError::Revoked => ("revoked".to_owned(), ""),
                other => (format!("not acceptable ({other})"), ""),
            };
            format!("certificate verification failed: {why}{hint}")
        }
        Some(Error::AlertReceived(AlertDescription::CertificateRequired)) => {
            format!("the server asks for a client certificate; {bypass}")
        }
        Some(Error::AlertReceived(alert)) => {
            format!("the server refused the TLS handshake ({alert:?}); {bypass}")
        }
        Some(other) => format!("the TLS handshake with the server failed: {other}"),
        None => format!("the TLS handshake with the server failed: {error}"),
    })
}
