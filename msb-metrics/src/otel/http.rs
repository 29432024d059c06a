//! OTLP over HTTP with protobuf: <https://opentelemetry.io/docs/specs/otlp/#otlphttp>.

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use flate2::Compression as Level;
use flate2::write::GzEncoder;
use jiff::Timestamp;
use libmsb::cli::error::Failure;
use prost::Message;
use ureq::http::{HeaderMap, HeaderName, HeaderValue, Uri};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::outcome::{ExportOutcome, ExportTransport};
use super::response::ExportMetricsServiceResponse;
use super::{certificates, headers};
use crate::args::{Compression, OtelArgs};

/// Maximum size of a response in bytes.
const RESPONSE_BYTES_MAX: u64 = 64 << 10;
/// Maximum number of characters of a response in messages.
const MESSAGE_CHARS_MAX: usize = 200;

/// An HTTP connection to a collector.
pub(super) struct HttpTransport {
    agent: Agent,
    endpoint: Uri,
    headers: HeaderMap,
    gzip: bool,
}

impl HttpTransport {
    pub(super) fn new(args: &OtelArgs) -> anyhow::Result<HttpTransport> {
        let endpoint = endpoint(&args.endpoint)?;
        let tls = TlsConfig::builder()
            .root_certs(roots(args, endpoint.scheme_str() == Some("https"))?)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .user_agent(concat!("msb-metrics/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            // A redirect could send the headers, and secrets in them, to another host.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_global(Some(args.export_timeout))
            .build()
            .new_agent();
        let mut all = HeaderMap::new();
        for (name, value) in headers::request_headers(args)? {
            let key = HeaderName::try_from(&name).map_err(|_| headers::invalid_header(&name))?;
            let value = HeaderValue::try_from(value).map_err(|_| headers::invalid_header(&name))?;
            all.insert(key, value);
        }
        Ok(HttpTransport {
            agent,
            endpoint,
            headers: all,
            gzip: args.compression == Compression::Gzip,
        })
    }

    fn post(&self, request: &[u8]) -> Result<ureq::http::Response<Body>, ureq::Error> {
        let mut post =
            self.agent.post(&self.endpoint).header("content-type", "application/x-protobuf");
        for (name, value) in &self.headers {
            post = post.header(name, value);
        }
        if !self.gzip {
            return post.send(request);
        }
        let mut packed = GzEncoder::new(Vec::new(), Level::fast());
        packed.write_all(request)?;
        post.header("content-encoding", "gzip").send(&packed.finish()?[..])
    }
}

impl ExportTransport for HttpTransport {
    fn send(&mut self, request: &[u8]) -> ExportOutcome {
        let response = match self.post(request) {
            Ok(response) => response,
            Err(error) => return retry(describe_error(&error), None),
        };
        let status = response.status().as_u16();
        let after = retry_after(response.headers(), Timestamp::now());
        let mut body = Vec::new();
        let read =
            response.into_body().into_reader().take(RESPONSE_BYTES_MAX).read_to_end(&mut body);
        match (status, read) {
            // The status means success, but a truncated response may come from a proxy.
            (200..=299, Err(error)) => retry(format!("incomplete response: {error}"), None),
            (200..=299, Ok(_)) => accepted(&body),
            // The request itself is invalid, and a retry would fail the same way (RFC 9110, 15.5).
            (400 | 413 | 414 | 415 | 422, _) => {
                ExportOutcome::Rejected { why: status_text(status, &body) }
            }
            _ => retry(status_text(status, &body), after),
        }
    }
}

fn retry(why: String, after: Option<Duration>) -> ExportOutcome {
    ExportOutcome::Retry { why, after }
}

/// Decodes a response. An empty or malformed one means no more than the status.
fn accepted(body: &[u8]) -> ExportOutcome {
    ExportMetricsServiceResponse::decode(body).unwrap_or_default().outcome()
}

fn status_text(status: u16, body: &[u8]) -> String {
    let words: String = String::from_utf8_lossy(body)
        .chars()
        .filter(|c| !c.is_control() && *c != char::REPLACEMENT_CHARACTER)
        .take(MESSAGE_CHARS_MAX)
        .collect();
    match words.trim() {
        "" => format!("HTTP status {status}"),
        words => format!("HTTP status {status}: {words}"),
    }
}

fn describe_error(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Timeout(_) => "timed out".to_owned(),
        ureq::Error::Io(error) => {
            certificates::verification_error(error).unwrap_or_else(|| error.to_string())
        }
        error => error.to_string(),
    }
}

/// Parses Retry-After: seconds or a date (RFC 9110, 10.2.3).
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get("retry-after")?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    Some(date.duration_since(now).try_into().unwrap_or_default())
}

fn endpoint(text: &str) -> Result<Uri, Failure> {
    let uri: Option<Uri> = text.parse().ok();
    uri.filter(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some())
        .ok_or_else(|| {
            Failure::usage(format!(
                "invalid HTTP endpoint '{}'",
                libmsb::cli::escape::escape(&super::endpoint::without_secrets(text))
            ))
            .hint("give the full URL: http://127.0.0.1:4318/v1/metrics")
        })
}

/// Returns the trusted root certificates: those given by the user, else the system's.
fn roots(args: &OtelArgs, secure: bool) -> anyhow::Result<RootCerts> {
    let mut certificates = Vec::new();
    if let Some(path) = &args.ca_cert {
        certificates = certificates::read(path)?.certificates;
    } else if secure {
        let system = rustls_native_certs::load_native_certs().certs;
        certificates
            .extend(system.iter().map(|certificate| Certificate::from_der(certificate).to_owned()));
    }
    Ok(RootCerts::Specific(Arc::new(certificates)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(value: &str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert("retry-after", HeaderValue::from_str(value).unwrap());
        retry_after(&headers, "1994-11-06T08:49:30Z".parse().unwrap())
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        assert_eq!(after("120"), Some(Duration::from_secs(120)));
        assert_eq!(after("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::from_secs(7)));
        assert_eq!(after("Sun, 06 Nov 1994 08:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(after("soon"), None);
        assert_eq!(after("-3"), None);
    }

    #[test]
    fn an_endpoint_is_used_as_it_is() {
        let uri = endpoint("http://h:1/a/b?c=d").unwrap();
        assert_eq!(uri.path_and_query().unwrap(), "/a/b?c=d");
        for invalid in ["h:4318", "ftp://h/x", "/v1/metrics", ""] {
            assert!(endpoint(invalid).is_err(), "{invalid}");
        }
    }
}
