//! Connections: TLS with the system's certificates, proxies, and a time limit on everything that can stall.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use libmsb::cli::error::Failure;
use libmsb::state::write::read_bounded;
use ureq::http::{Response, Uri};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, Proxy};

use super::proxy::Proxies;
use super::retry::{Patience, Trouble};

/// Time without a byte after which a connection is given up, when nobody says another.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes a second, over the time of a timeout, below which a connection is given up: it is not slow, it is stuck.
const RATE_MIN: u64 = 1024;
/// Bytes of a response's header.
const HEADER_BYTES_MAX: usize = 64 << 10;
/// Bytes of a file of certificates.
const CERTIFICATES_BYTES_MAX: u64 = 16 << 20;

/// Where systems keep the certificates of authorities, all in one file.
const BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// How connections are made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// Certificates need not be right, and TLS need not be spoken.
    pub(crate) insecure: bool,
    /// Further authorities, in PEM.
    pub(crate) ca_certs: Vec<PathBuf>,
    /// Time without a byte.
    pub(crate) timeout: Option<Duration>,
}

/// The way to servers.
pub(crate) struct Http {
    direct: Agent,
    /// Through the proxies for `https:` and `http:`.
    proxied: [Option<Agent>; 2],
    proxies: Proxies,
    timeout: Duration,
}

impl Http {
    pub(crate) fn new(options: &Options) -> Result<Http> {
        let timeout = options.timeout.unwrap_or(TIMEOUT);
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::Specific(Arc::new(authorities(
                &options.ca_certs,
            )?)))
            .disable_verification(options.insecure)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let agent = |proxy: Option<Proxy>| {
            Agent::config_builder()
                .tls_config(tls.clone())
                .proxy(proxy)
                .user_agent(concat!("msb/", env!("CARGO_PKG_VERSION")))
                .http_status_as_error(false)
                // Redirects are followed by hand: see the client.
                .max_redirects(0)
                .max_redirects_will_error(false)
                .max_response_header_size(HEADER_BYTES_MAX)
                // What is too long must fit, to be seen as such.
                .input_buffer_size(2 * HEADER_BYTES_MAX)
                .timeout_connect(Some(timeout))
                .timeout_per_read(Some(timeout))
                .timeout_per_write(Some(timeout))
                // Against headers that come a byte at a time.
                .timeout_recv_response(Some(timeout * 2))
                .build()
                .new_agent()
        };
        let proxies = Proxies::from_env();
        let through = |name: Option<&str>| -> Result<Option<Agent>> {
            let Some(name) = name else { return Ok(None) };
            let proxy = Proxy::new(name)
                .map_err(|error| anyhow!("the proxy of the environment: {error}"))?;
            Ok(Some(agent(Some(proxy))))
        };
        Ok(Http {
            direct: agent(None),
            proxied: [
                through(proxies.named(true))?,
                through(proxies.named(false))?,
            ],
            proxies,
            timeout,
        })
    }

    /// How long it is worth trying.
    pub(crate) fn patience(&self) -> Patience {
        Patience::of(self.timeout)
    }

    /// Asks once. A status that is no success is no error here.
    pub(crate) fn get(
        &self,
        uri: &Uri,
        headers: &[(&str, &str)],
    ) -> Result<Response<Body>, Problem> {
        let mut request = self.agent(uri).get(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.call().map_err(Problem)
    }

    /// Sends a form once.
    pub(crate) fn post(&self, uri: &Uri, form: &[(&str, &str)]) -> Result<Response<Body>, Problem> {
        let request = self.agent(uri).post(uri);
        request.send_form(form.iter().copied()).map_err(Problem)
    }

    fn agent(&self, uri: &Uri) -> &Agent {
        let secure = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let wanted = self
            .proxies
            .of(secure, uri.host().unwrap_or_default(), port);
        let proxied = &self.proxied[usize::from(!secure)];
        match (wanted, proxied) {
            (Some(_), Some(agent)) => agent,
            _ => &self.direct,
        }
    }

    /// The body of a response, which must come at a certain speed at least.
    pub(crate) fn body(&self, response: Response<Body>) -> BodyReader {
        BodyReader {
            inner: response.into_body().into_reader(),
            pace: Pace::new(self.timeout),
        }
    }

    /// A whole body, which must not be longer than `bytes_max`.
    pub(crate) fn document(
        &self,
        response: Response<Body>,
        bytes_max: u64,
    ) -> Result<Vec<u8>, Trouble> {
        let too_long = || anyhow!("the answer is longer than {bytes_max} bytes");
        if response
            .body()
            .content_length()
            .is_some_and(|length| length > bytes_max)
        {
            return Err(Trouble::Final(too_long()));
        }
        let mut bytes = Vec::new();
        let mut body = self.body(response).take(bytes_max + 1);
        body.read_to_end(&mut bytes).map_err(broken)?;
        if bytes.len() as u64 > bytes_max {
            return Err(Trouble::Final(too_long()));
        }
        Ok(bytes)
    }
}

/// A body that broke off is worth another try.
pub(crate) fn broken(error: io::Error) -> Trouble {
    Trouble::passing(anyhow!("the connection broke: {}", plain(&error)))
}

/// A body on its way.
pub(crate) struct BodyReader {
    inner: ureq::BodyReader<'static>,
    pace: Pace,
}

impl Read for BodyReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.pace.note(count as u64, Instant::now())?;
        Ok(count)
    }
}

/// Looks whether bytes come fast enough: a server could keep a connection with one byte now and then.
#[derive(Debug)]
struct Pace {
    window: Duration,
    since: Option<Instant>,
    bytes: u64,
}

impl Pace {
    fn new(window: Duration) -> Pace {
        Pace {
            window,
            since: None,
            bytes: 0,
        }
    }

    fn note(&mut self, bytes: u64, now: Instant) -> io::Result<()> {
        self.bytes += bytes;
        let since = *self.since.get_or_insert(now);
        let passed = now.saturating_duration_since(since);
        if bytes == 0 || passed < self.window {
            return Ok(());
        }
        if self.bytes < RATE_MIN * passed.as_secs().max(1) {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("{} bytes in {} seconds", self.bytes, passed.as_secs()),
            ));
        }
        (self.since, self.bytes) = (Some(now), 0);
        Ok(())
    }
}

/// Why there is no response.
#[derive(Debug)]
pub(crate) struct Problem(ureq::Error);

impl Problem {
    /// What became of the attempt. Once a server has answered, whatever keeps it from answering again may pass.
    pub(crate) fn trouble(self, reached: bool) -> Trouble {
        let passing = match &self.0 {
            ureq::Error::Io(error) if self.tls().is_none() => {
                reached || error.kind() != io::ErrorKind::ConnectionRefused
            }
            ureq::Error::Timeout(_) | ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => {
                reached
            }
            _ => false,
        };
        let error = self.into_error();
        if passing {
            Trouble::passing(error)
        } else {
            Trouble::Final(error)
        }
    }

    /// Whether the other side may be one that speaks no TLS, or is not there at all.
    pub(crate) fn is_no_tls(&self) -> bool {
        match (self.tls(), &self.0) {
            (Some(error), _) => matches!(error, rustls::Error::InvalidMessage(_)),
            (None, ureq::Error::Io(error)) => matches!(
                error.kind(),
                io::ErrorKind::UnexpectedEof
                    | io::ErrorKind::ConnectionReset
                    | io::ErrorKind::ConnectionRefused
            ),
            _ => false,
        }
    }

    fn tls(&self) -> Option<&rustls::Error> {
        match &self.0 {
            ureq::Error::Rustls(error) => Some(error),
            ureq::Error::Io(error) => error.get_ref()?.downcast_ref(),
            _ => None,
        }
    }

    pub(crate) fn into_error(self) -> anyhow::Error {
        match (self.tls(), &self.0) {
            (Some(rustls::Error::InvalidCertificate(reason)), _) => Failure::failed(format!(
                "its certificate is not to be trusted: {}",
                certificate(reason)
            ))
            .hint("name a file with the certificate of its authority: --ca-certs FILE")
            .into(),
            (Some(rustls::Error::InvalidMessage(_)), _) => Failure::failed("it does not speak TLS")
                .hint("if the way to it is to be trusted all the same: --insecure")
                .into(),
            (Some(error), _) => anyhow!("TLS: {error}"),
            (None, ureq::Error::Timeout(_)) => anyhow!("it does not answer in time"),
            (None, ureq::Error::HostNotFound) => anyhow!("there is no host of this name"),
            (None, ureq::Error::LargeResponseHeader(..)) => {
                anyhow!("the header of its answer is longer than {HEADER_BYTES_MAX} bytes")
            }
            (None, ureq::Error::Io(error)) => anyhow!("{}", plain(error)),
            (None, error) => anyhow!("{error}"),
        }
    }
}

/// An error of a connection in one line, without the words that ureq puts around it.
fn plain(error: &io::Error) -> String {
    let text = match error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<ureq::Error>())
    {
        Some(ureq::Error::Timeout(_)) => "no byte came in time".to_owned(),
        Some(inner) => inner.to_string(),
        None => error.to_string(),
    };
    libmsb::cli::error::clean(&text).into_owned()
}

fn certificate(reason: &rustls::CertificateError) -> String {
    use rustls::CertificateError as Error;
    match reason {
        Error::UnknownIssuer => "nobody who is trusted has signed it".to_owned(),
        Error::NotValidForName | Error::NotValidForNameContext { .. } => {
            "it is for another name".to_owned()
        }
        Error::Expired | Error::ExpiredContext { .. } => "it has expired".to_owned(),
        Error::NotValidYet | Error::NotValidYetContext { .. } => "it is not valid yet".to_owned(),
        other => other.to_string(),
    }
}

/// The authorities that the system trusts (or `SSL_CERT_FILE` names), and those of further files.
fn authorities(further: &[PathBuf]) -> Result<Vec<Certificate<'static>>> {
    let chosen = std::env::var_os("SSL_CERT_FILE").filter(|path| !path.is_empty());
    let mut certificates = match chosen {
        Some(path) => certificates_in(Path::new(&path))?,
        // Without any no certificate will do, and that is said then.
        None => match BUNDLES.iter().find(|path| Path::new(path).exists()) {
            Some(path) => certificates_in(Path::new(path))?,
            None => Vec::new(),
        },
    };
    for path in further {
        let found = certificates_in(path)?;
        ensure!(
            !found.is_empty(),
            "'{}' holds no certificate in the form PEM",
            path.display()
        );
        certificates.extend(found);
    }
    Ok(certificates)
}

fn certificates_in(path: &Path) -> Result<Vec<Certificate<'static>>> {
    let bytes = read_bounded(path, CERTIFICATES_BYTES_MAX)?
        .with_context(|| format!("there is no file '{}'", path.display()))?;
    let mut certificates = Vec::new();
    for item in parse_pem(&bytes) {
        let item = item.with_context(|| format!("cannot understand '{}'", path.display()))?;
        if let PemItem::Certificate(certificate) = item {
            certificates.push(certificate);
        }
    }
    Ok(certificates)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trickle_is_a_stall_and_a_slow_line_is_not() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let run = |bytes| {
            let mut pace = Pace::new(30 * second);
            (0..100).try_for_each(|n| pace.note(bytes, start + n * second))
        };
        assert!(run(10).is_err());
        assert!(run(RATE_MIN * 2).is_ok());
    }

    #[test]
    fn a_file_without_certificates_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        assert!(authorities(std::slice::from_ref(&path)).is_err());
        std::fs::write(&path, "hello").unwrap();
        assert!(authorities(&[path]).is_err());
    }
}
