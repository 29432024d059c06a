//! HTTP connections: TLS with the system's certificates, proxies, and a timeout for each step that
//! can stall.

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

use super::proxy::ProxySettings;
use super::retry::{FetchError, RetryBackoff};

/// Default time without a byte after which a connection is closed.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes per second, averaged over the timeout, below which a connection is closed as stalled.
const RATE_MIN: u64 = 1024;
/// Bytes of a response header.
const HEADER_BYTES_MAX: usize = 64 << 10;
/// Bytes of a certificate file.
const CERTIFICATES_BYTES_MAX: u64 = 16 << 20;

/// Bundles of CA certificates on common distributions.
const CA_BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Options of connections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HttpOptions {
    /// Accept invalid certificates and plain HTTP.
    pub(crate) insecure: bool,
    /// Additional CA certificates, in PEM format.
    pub(crate) ca_certs: Vec<PathBuf>,
    /// Time without a byte after which a connection is closed.
    pub(crate) timeout: Option<Duration>,
}

/// An HTTP client with and without proxies.
pub(crate) struct HttpClient {
    direct: Agent,
    /// Agents through the proxies for `https:` and `http:`.
    proxied: [Option<Agent>; 2],
    proxies: ProxySettings,
    timeout: Duration,
}

impl HttpClient {
    pub(crate) fn new(options: &HttpOptions) -> Result<HttpClient> {
        let timeout = options.timeout.unwrap_or(TIMEOUT);
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::Specific(Arc::new(root_certificates(&options.ca_certs)?)))
            .disable_verification(options.insecure)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let agent = |proxy: Option<Proxy>| {
            Agent::config_builder()
                .tls_config(tls.clone())
                .proxy(proxy)
                .user_agent(concat!("msb/", env!("CARGO_PKG_VERSION")))
                .http_status_as_error(false)
                // The registry client follows redirects itself.
                .max_redirects(0)
                .max_redirects_will_error(false)
                .max_response_header_size(HEADER_BYTES_MAX)
                // A header above the limit must fit, to be detected.
                .input_buffer_size(2 * HEADER_BYTES_MAX)
                .timeout_connect(Some(timeout))
                .timeout_per_read(Some(timeout))
                .timeout_per_write(Some(timeout))
                // Against headers sent one byte at a time.
                .timeout_recv_response(Some(timeout * 2))
                .build()
                .new_agent()
        };
        let proxies = ProxySettings::from_env();
        let proxy_agent = |name: Option<&str>| -> Result<Option<Agent>> {
            let Some(name) = name else { return Ok(None) };
            let proxy = Proxy::new(name)
                .map_err(|error| anyhow!("invalid proxy in the environment: {error}"))?;
            Ok(Some(agent(Some(proxy))))
        };
        Ok(HttpClient {
            direct: agent(None),
            proxied: [proxy_agent(proxies.named(true))?, proxy_agent(proxies.named(false))?],
            proxies,
            timeout,
        })
    }

    /// Returns a backoff for retries.
    pub(crate) fn backoff(&self) -> RetryBackoff {
        RetryBackoff::new(self.timeout)
    }

    /// Sends a GET request. An error status is not an error here.
    pub(crate) fn get(
        &self,
        uri: &Uri,
        headers: &[(&str, &str)],
    ) -> Result<Response<Body>, TransportError> {
        let mut request = self.agent(uri).get(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.call().map_err(TransportError)
    }

    /// Sends a form in a POST request.
    pub(crate) fn post(
        &self,
        uri: &Uri,
        form: &[(&str, &str)],
    ) -> Result<Response<Body>, TransportError> {
        let request = self.agent(uri).post(uri);
        request.send_form(form.iter().copied()).map_err(TransportError)
    }

    fn agent(&self, uri: &Uri) -> &Agent {
        let secure = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let wanted = self.proxies.of(secure, uri.host().unwrap_or_default(), port);
        let proxied = &self.proxied[usize::from(!secure)];
        match (wanted, proxied) {
            (Some(_), Some(agent)) => agent,
            _ => &self.direct,
        }
    }

    /// Returns a reader of a response body that fails when the transfer stalls.
    pub(crate) fn body(&self, response: Response<Body>) -> BodyReader {
        BodyReader {
            inner: response.into_body().into_reader(),
            stall: StallDetector::new(self.timeout),
        }
    }

    /// Reads a whole body of at most `bytes_max`.
    pub(crate) fn document(
        &self,
        response: Response<Body>,
        bytes_max: u64,
    ) -> Result<Vec<u8>, FetchError> {
        let too_long = || anyhow!("the response is longer than {bytes_max} bytes");
        if response.body().content_length().is_some_and(|length| length > bytes_max) {
            return Err(FetchError::Permanent(too_long()));
        }
        let mut bytes = Vec::new();
        let mut body = self.body(response).take(bytes_max + 1);
        body.read_to_end(&mut bytes).map_err(broken)?;
        if bytes.len() as u64 > bytes_max {
            return Err(FetchError::Permanent(too_long()));
        }
        Ok(bytes)
    }
}

/// Returns the transient error for a body that broke off.
pub(crate) fn broken(error: io::Error) -> FetchError {
    FetchError::transient(anyhow!("the connection broke: {}", describe_io_error(&error)))
}

/// A reader of a response body.
pub(crate) struct BodyReader {
    inner: ureq::BodyReader<'static>,
    stall: StallDetector,
}

impl Read for BodyReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.stall.note(count as u64, Instant::now())?;
        Ok(count)
    }
}

/// Detection of a stalled transfer: a server could keep a connection open with a byte now and then.
#[derive(Debug)]
struct StallDetector {
    window: Duration,
    since: Option<Instant>,
    bytes: u64,
}

impl StallDetector {
    fn new(window: Duration) -> StallDetector {
        StallDetector { window, since: None, bytes: 0 }
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

/// A failure to get a response.
#[derive(Debug)]
pub(crate) struct TransportError(ureq::Error);

impl TransportError {
    /// Classifies the failure. Once a server has answered, later network errors are transient.
    pub(crate) fn into_fetch_error(self, reached: bool) -> FetchError {
        match self.lookup_failure() {
            Some(LookupFailure::NoAnswer) => return FetchError::Unresolved(self.into_error()),
            Some(LookupFailure::NoSuchHost) if !reached => {
                return FetchError::Permanent(self.into_error());
            }
            _ => {}
        }
        let transient = match &self.0 {
            ureq::Error::Io(error) if self.tls().is_none() => {
                reached || error.kind() != io::ErrorKind::ConnectionRefused
            }
            ureq::Error::Timeout(_) | ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => {
                reached
            }
            _ => false,
        };
        let error = self.into_error();
        if transient { FetchError::transient(error) } else { FetchError::Permanent(error) }
    }

    /// Returns whether the peer may not speak TLS, or refuses connections.
    pub(crate) fn speaks_no_tls(&self) -> bool {
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

    fn lookup_failure(&self) -> Option<LookupFailure> {
        match &self.0 {
            ureq::Error::HostNotFound => Some(LookupFailure::NoSuchHost),
            ureq::Error::Io(error) => LookupFailure::of(&error.to_string()),
            _ => None,
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
        if let Some(failure) = self.lookup_failure() {
            return anyhow!(failure.describe());
        }
        match (self.tls(), &self.0) {
            (Some(rustls::Error::InvalidCertificate(reason)), _) => Failure::failed(format!(
                "certificate verification failed: {}",
                describe_certificate_error(reason)
            ))
            .hint("trust the certificate of its authority: --ca-certs FILE")
            .into(),
            (Some(rustls::Error::InvalidMessage(_)), _) => {
                Failure::failed("the server does not speak TLS")
                    .hint("to use plain HTTP: --insecure")
                    .into()
            }
            (Some(error), _) => anyhow!("TLS: {error}"),
            (None, ureq::Error::Timeout(_)) => anyhow!("the server did not answer in time"),
            (None, ureq::Error::LargeResponseHeader(..)) => {
                anyhow!("the response header is longer than {HEADER_BYTES_MAX} bytes")
            }
            (None, ureq::Error::Io(error)) => anyhow!("{}", describe_io_error(error)),
            (None, error) => anyhow!("{error}"),
        }
    }
}

/// Failure of a name lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LookupFailure {
    /// The name does not exist. Another lookup gives the same answer.
    NoSuchHost,
    /// No name server has answered.
    NoAnswer,
}

impl LookupFailure {
    /// Classifies an error of getaddrinfo(3), of which the standard library keeps only the text.
    /// EAI_AGAIN has these texts in glibc and musl; Rust programs do not change the locale.
    fn of(text: &str) -> Option<LookupFailure> {
        let reason = text.strip_prefix("failed to lookup address information: ")?;
        let is_again = ["Temporary failure in name resolution", "Try again"].contains(&reason);
        Some(if is_again { LookupFailure::NoAnswer } else { LookupFailure::NoSuchHost })
    }

    fn describe(self) -> &'static str {
        match self {
            LookupFailure::NoSuchHost => "no such host",
            LookupFailure::NoAnswer => "no name server answers",
        }
    }
}

/// Formats a connection error in one line, without ureq's prefixes.
fn describe_io_error(error: &io::Error) -> String {
    let text = match error.get_ref().and_then(|inner| inner.downcast_ref::<ureq::Error>()) {
        Some(ureq::Error::Timeout(_)) => "timed out".to_owned(),
        Some(inner) => inner.to_string(),
        None => error.to_string(),
    };
    libmsb::cli::error::clean(&text).into_owned()
}

fn describe_certificate_error(reason: &rustls::CertificateError) -> String {
    use rustls::CertificateError as Error;
    match reason {
        Error::UnknownIssuer => "unknown issuer".to_owned(),
        Error::NotValidForName | Error::NotValidForNameContext { .. } => {
            "the certificate is for another name".to_owned()
        }
        Error::Expired | Error::ExpiredContext { .. } => "the certificate has expired".to_owned(),
        Error::NotValidYet | Error::NotValidYetContext { .. } => {
            "the certificate is not valid yet".to_owned()
        }
        other => other.to_string(),
    }
}

/// Reads the CA certificates of the system (or `SSL_CERT_FILE`) and of further files.
fn root_certificates(further: &[PathBuf]) -> Result<Vec<Certificate<'static>>> {
    let chosen = std::env::var_os("SSL_CERT_FILE").filter(|path| !path.is_empty());
    let mut certificates = match chosen {
        Some(path) => read_certificates(Path::new(&path))?,
        // Without a bundle every certificate is rejected, with an error that says so.
        None => match CA_BUNDLES.iter().find(|path| Path::new(path).exists()) {
            Some(path) => read_certificates(Path::new(path))?,
            None => Vec::new(),
        },
    };
    for path in further {
        let found = read_certificates(path)?;
        ensure!(!found.is_empty(), "'{}' contains no PEM certificate", path.display());
        certificates.extend(found);
    }
    Ok(certificates)
}

fn read_certificates(path: &Path) -> Result<Vec<Certificate<'static>>> {
    let bytes = read_bounded(path, CERTIFICATES_BYTES_MAX)?
        .with_context(|| format!("'{}' does not exist", path.display()))?;
    let mut certificates = Vec::new();
    for item in parse_pem(&bytes) {
        let item = item.with_context(|| format!("cannot parse '{}'", path.display()))?;
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
    fn a_trickle_is_a_stall_and_a_slow_connection_is_not() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let run = |bytes| {
            let mut stall = StallDetector::new(30 * second);
            (0..100).try_for_each(|n| stall.note(bytes, start + n * second))
        };
        assert!(run(10).is_err());
        assert!(run(RATE_MIN * 2).is_ok());
    }

    #[test]
    fn a_name_that_does_not_exist_is_told_from_a_name_server_that_does_not_answer() {
        use std::net::ToSocketAddrs as _;
        // No label has more than 63 bytes, so no name server is asked.
        let error = (format!("{}.test", "a".repeat(64)), 1).to_socket_addrs().unwrap_err();
        assert_eq!(LookupFailure::of(&error.to_string()), Some(LookupFailure::NoSuchHost));
        let again = "failed to lookup address information: Temporary failure in name resolution";
        assert_eq!(LookupFailure::of(again), Some(LookupFailure::NoAnswer));
        assert_eq!(LookupFailure::of("connection refused"), None);
    }

    #[test]
    fn a_file_without_certificates_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ca.pem");
        assert!(root_certificates(std::slice::from_ref(&path)).is_err());
        std::fs::write(&path, "hello").unwrap();
        assert!(root_certificates(&[path]).is_err());
    }
}
