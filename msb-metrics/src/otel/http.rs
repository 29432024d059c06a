//! OTLP over HTTP, as protobuf: <https://opentelemetry.io/docs/specs/otlp/#otlphttp>.

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use flate2::Compression as Level;
use flate2::write::GzEncoder;
use jiff::Timestamp;
use libmsb::cli::error::Failure;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceResponse;
use prost::Message;
use ureq::http::{HeaderMap, HeaderName, HeaderValue, Uri};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::{Outcome, Transport, authorities, headers};
use crate::args::{Compression, OtelArgs};

/// Longest answer that is read, in bytes.
const ANSWER_BYTES_MAX: u64 = 64 << 10;
/// Characters of an answer that are told.
const WORDS_MAX: usize = 200;

/// The way to a collector.
pub(super) struct Http {
    agent: Agent,
    endpoint: Uri,
    headers: HeaderMap,
    gzip: bool,
}

impl Http {
    pub(super) fn new(args: &OtelArgs) -> anyhow::Result<Http> {
        let endpoint = endpoint(&args.endpoint)?;
        let tls = TlsConfig::builder()
            .root_certs(roots(args, endpoint.scheme_str() == Some("https"))?)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .user_agent(concat!("msb-metrics/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            // A redirect could lead the headers, and their secrets, elsewhere.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_global(Some(args.export_timeout))
            .build()
            .new_agent();
        let mut all = HeaderMap::new();
        for (name, value) in headers::of(args)? {
            let key = HeaderName::try_from(&name).map_err(|_| headers::wrong(&name))?;
            let value = HeaderValue::try_from(value).map_err(|_| headers::wrong(&name))?;
            all.insert(key, value);
        }
        Ok(Http {
            agent,
            endpoint,
            headers: all,
            gzip: args.compression == Compression::Gzip,
        })
    }

    fn post(&self, request: &[u8]) -> Result<ureq::http::Response<Body>, ureq::Error> {
        let mut post = self
            .agent
            .post(&self.endpoint)
            .header("content-type", "application/x-protobuf");
        for (name, value) in &self.headers {
            post = post.header(name, value);
        }
        if !self.gzip {
            return post.send(request);
        }
        let mut packed = GzEncoder::new(Vec::new(), Level::fast());
        packed.write_all(request)?;
        post.header("content-encoding", "gzip")
            .send(&packed.finish()?[..])
    }
}

impl Transport for Http {
    fn send(&mut self, request: &[u8]) -> Outcome {
        let response = match self.post(request) {
            Ok(response) => response,
            Err(error) => return later(plain(&error), None),
        };
        let status = response.status().as_u16();
        let after = retry_after(response.headers(), Timestamp::now());
        let mut body = Vec::new();
        let read = response
            .into_body()
            .into_reader()
            .take(ANSWER_BYTES_MAX)
            .read_to_end(&mut body);
        match (status, read) {
            // The status says that it was taken; but an answer that is cut off may be of somebody in between.
            (200..=299, Err(error)) => later(format!("the answer broke off: {error}"), None),
            (200..=299, Ok(_)) => taken(&body),
            // The request itself is wrong, and stays so (RFC 9110, 15.5).
            (400 | 413 | 414 | 415 | 422, _) => Outcome::Never {
                why: said(status, &body),
            },
            _ => later(said(status, &body), after),
        }
    }
}

fn later(why: String, after: Option<Duration>) -> Outcome {
    Outcome::Later { why, after }
}

/// An empty answer, and one of another form, say no more than the status.
fn taken(body: &[u8]) -> Outcome {
    let answer = ExportMetricsServiceResponse::decode(body).unwrap_or_default();
    partly(answer)
}

/// What a collector says of what it took.
pub(super) fn partly(answer: ExportMetricsServiceResponse) -> Outcome {
    let partial = answer.partial_success.unwrap_or_default();
    Outcome::Taken {
        rejected: u64::try_from(partial.rejected_data_points).unwrap_or(0),
        message: partial.error_message,
    }
}

fn said(status: u16, body: &[u8]) -> String {
    let words: String = String::from_utf8_lossy(body)
        .chars()
        .filter(|c| !c.is_control() && *c != char::REPLACEMENT_CHARACTER)
        .take(WORDS_MAX)
        .collect();
    match words.trim() {
        "" => format!("it answered with status {status}"),
        words => format!("it answered with status {status}: {words}"),
    }
}

fn plain(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Timeout(_) => "it took too long".to_owned(),
        ureq::Error::Io(error) => {
            authorities::complaint(error).unwrap_or_else(|| error.to_string())
        }
        error => error.to_string(),
    }
}

/// Seconds, or a date (RFC 9110, 10.2.3).
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
                "'{}' is no address of HTTP",
                libmsb::cli::escape::escape(&super::without_secrets(text))
            ))
            .hint("give the whole one: http://127.0.0.1:4318/v1/metrics")
        })
}

/// The user's own, else the system's.
fn roots(args: &OtelArgs, secure: bool) -> anyhow::Result<RootCerts> {
    let mut certificates = Vec::new();
    if let Some(path) = &args.ca_cert {
        certificates = authorities::read(path)?.certificates;
    } else if secure {
        let system = rustls_native_certs::load_native_certs().certs;
        certificates.extend(
            system
                .iter()
                .map(|certificate| Certificate::from_der(certificate).to_owned()),
        );
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
    fn a_wish_is_in_seconds_or_a_date() {
        assert_eq!(after("120"), Some(Duration::from_secs(120)));
        assert_eq!(
            after("Sun, 06 Nov 1994 08:49:37 GMT"),
            Some(Duration::from_secs(7))
        );
        assert_eq!(after("Sun, 06 Nov 1994 08:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(after("soon"), None);
        assert_eq!(after("-3"), None);
    }

    #[test]
    fn an_endpoint_is_used_as_it_is() {
        let uri = endpoint("http://h:1/a/b?c=d").unwrap();
        assert_eq!(uri.path_and_query().unwrap(), "/a/b?c=d");
        for wrong in ["h:4318", "ftp://h/x", "/v1/metrics", ""] {
            assert!(endpoint(wrong).is_err(), "{wrong}");
        }
    }
}
