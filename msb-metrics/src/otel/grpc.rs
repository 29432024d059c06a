//! OTLP over gRPC: <https://opentelemetry.io/docs/specs/otlp/#otlpgrpc>.

use std::time::Duration;

use anyhow::Context;
use libmsb::cli::error::Failure;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceResponse;
use prost::Message;
use prost::bytes::{Buf, BufMut};
use tonic::client::Grpc as Client;
use tonic::codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::{Ascii, MetadataKey, MetadataMap, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status, TimeoutExpired};

use super::http::partly;
use super::{Outcome, Transport, authorities, headers};
use crate::args::{Compression, OtelArgs};

/// The one call.
const EXPORT: &str = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export";
/// What is said of an answer that does not come in time, whoever's clock was the first: ours, that of the client's library, which
/// knows the header `grpc-timeout`, or the collector's.
const TOO_LONG: &str = "it took too long";
/// In the details of a status: when to try again (`google.rpc.RetryInfo`).
const RETRY_INFO: &str = "type.googleapis.com/google.rpc.RetryInfo";

/// The way to a collector.
pub(super) struct Grpc {
    runtime: tokio::runtime::Runtime,
    channel: Channel,
    headers: MetadataMap,
    gzip: bool,
    timeout: Duration,
}

impl Grpc {
    pub(super) fn new(args: &OtelArgs) -> anyhow::Result<Grpc> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .context("cannot begin to wait for the network")?;
        let channel = {
            let _inside = runtime.enter();
            endpoint(args)?.connect_lazy()
        };
        let mut metadata = MetadataMap::new();
        for (name, value) in headers::of(args)? {
            let key: MetadataKey<Ascii> = name.parse().map_err(|_| headers::wrong(&name))?;
            let value: MetadataValue<Ascii> = value.parse().map_err(|_| headers::wrong(&name))?;
            metadata.insert(key, value);
        }
        Ok(Grpc {
            runtime,
            channel,
            headers: metadata,
            gzip: args.compression == Compression::Gzip,
            timeout: args.export_timeout,
        })
    }
}

/// A bare `HOST:PORT` is without TLS.
fn endpoint(args: &OtelArgs) -> anyhow::Result<Endpoint> {
    let text = &args.endpoint;
    let whole = if text.contains("://") {
        text.clone()
    } else {
        format!("http://{text}")
    };
    let wrong = || {
        Failure::usage(format!(
            "'{}' is no address of gRPC",
            libmsb::cli::escape::escape(&super::without_secrets(text))
        ))
        .hint("as http://127.0.0.1:4317, or with https for TLS")
    };
    let endpoint = Endpoint::from_shared(whole.clone()).map_err(|_| wrong())?;
    let secure = match endpoint.uri().scheme_str() {
        Some("http") => false,
        Some("https") => true,
        _ => return Err(wrong().into()),
    };
    if endpoint.uri().host().is_none_or(str::is_empty) {
        return Err(wrong().into());
    }
    let endpoint = endpoint
        .connect_timeout(args.export_timeout)
        .user_agent(concat!("msb-metrics/", env!("CARGO_PKG_VERSION")))?;
    if !secure {
        return Ok(endpoint);
    }
    let tls = match &args.ca_cert {
        Some(path) => {
            let pem = authorities::read(path)?.pem;
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem))
        }
        None => ClientTlsConfig::new().with_native_roots(),
    };
    endpoint
        .tls_config(tls)
        .context("cannot use the certificates")
}

impl Transport for Grpc {
    fn send(&mut self, request: &[u8]) -> Outcome {
        let mut client = Client::new(self.channel.clone());
        if self.gzip {
            client = client.send_compressed(CompressionEncoding::Gzip);
        }
        let mut request = Request::new(request.to_vec());
        *request.metadata_mut() = self.headers.clone();
        request.set_timeout(self.timeout);
        let path = PathAndQuery::from_static(EXPORT);
        let call = async {
            client
                .ready()
                .await
                .map_err(|error| Status::from_error(error.into()))?;
            client.unary(request, path, Encoded).await
        };
        let answer = self
            .runtime
            .block_on(async { tokio::time::timeout(self.timeout, call).await });
        match answer {
            Err(_) => Outcome::Later {
                why: TOO_LONG.to_owned(),
                after: None,
            },
            Ok(Ok(answer)) => partly(answer.into_inner()),
            Ok(Err(status)) => refused(&status),
        }
    }
}

/// Which refusals are worth another try: all but those of the request itself.
fn refused(status: &Status) -> Outcome {
    let why = format!("it answered {:?}: {}", status.code(), status.message());
    match status.code() {
        Code::InvalidArgument => Outcome::Never { why },
        Code::DeadlineExceeded => Outcome::Later {
            why: TOO_LONG.to_owned(),
            after: retry_info(status.details()),
        },
        _ => Outcome::Later {
            why: std::error::Error::source(status).map_or(why, trouble),
            after: retry_info(status.details()),
        },
    }
}

/// What went wrong before there was an answer.
fn trouble(error: &(dyn std::error::Error + 'static)) -> String {
    if links(error).any(|link| link.is::<TimeoutExpired>()) {
        return TOO_LONG.to_owned();
    }
    authorities::complaint(error).unwrap_or_else(|| words(error))
}

/// An error, and what caused it.
fn links<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

/// The chain of an error, since its first link says little.
fn words(error: &(dyn std::error::Error + 'static)) -> String {
    let mut words: Vec<String> = links(error).map(ToString::to_string).collect();
    words.dedup();
    words.join(": ")
}

/// `google.rpc.Status`, as it is in the details.
#[derive(Clone, PartialEq, Message)]
struct Details {
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// `google.rpc.RetryInfo`.
#[derive(Clone, PartialEq, Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<Span>,
}

/// `google.protobuf.Duration`.
#[derive(Clone, PartialEq, Message)]
struct Span {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

fn retry_info(details: &[u8]) -> Option<Duration> {
    let details = Details::decode(details).ok()?.details;
    let info = details.iter().find(|any| any.type_url == RETRY_INFO)?;
    let span = RetryInfo::decode(info.value.as_slice()).ok()?.retry_delay?;
    let nanos = u32::try_from(span.nanos)
        .ok()
        .filter(|nanos| *nanos < 1_000_000_000)?;
    Some(Duration::new(u64::try_from(span.seconds).ok()?, nanos))
}

/// Requests that are encoded already, and answers as they are defined.
#[derive(Clone, Copy)]
struct Encoded;

impl Codec for Encoded {
    type Encode = Vec<u8>;
    type Decode = ExportMetricsServiceResponse;
    type Encoder = Encoded;
    type Decoder = Encoded;

    fn encoder(&mut self) -> Encoded {
        Encoded
    }

    fn decoder(&mut self) -> Encoded {
        Encoded
    }
}

impl Encoder for Encoded {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, request: Vec<u8>, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put_slice(&request);
        Ok(())
    }
}

impl Decoder for Encoded {
    type Item = ExportMetricsServiceResponse;
    type Error = Status;

    fn decode(&mut self, answer: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        let bytes = answer.copy_to_bytes(answer.remaining());
        let decoded = ExportMetricsServiceResponse::decode(bytes);
        decoded
            .map(Some)
            .map_err(|error| Status::internal(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_collectors_wish_is_in_the_details_of_a_status() {
        let info = RetryInfo {
            retry_delay: Some(Span {
                seconds: 3,
                nanos: 500_000_000,
            }),
        };
        let details = Details {
            details: vec![Any {
                type_url: RETRY_INFO.to_owned(),
                value: info.encode_to_vec(),
            }],
        };
        let wish = retry_info(&details.encode_to_vec());
        assert_eq!(wish, Some(Duration::from_millis(3500)));
        assert_eq!(retry_info(b"nonsense"), None);
        assert_eq!(retry_info(b""), None);
    }

    #[test]
    fn every_clock_says_the_same() {
        let own = Status::from_error(Box::new(TimeoutExpired(())));
        let said = Status::new(Code::DeadlineExceeded, "Deadline Exceeded");
        for status in [own, said] {
            let why = match refused(&status) {
                Outcome::Later { why, .. } => why,
                _ => String::new(),
            };
            assert_eq!(why, TOO_LONG, "{status:?}");
        }
    }

    #[test]
    fn only_what_is_wrong_with_the_request_itself_is_final() {
        let never = |code| matches!(refused(&Status::new(code, "x")), Outcome::Never { .. });
        assert!(never(Code::InvalidArgument));
        for code in [
            Code::Unavailable,
            Code::ResourceExhausted,
            Code::Unauthenticated,
            Code::DeadlineExceeded,
            Code::Unimplemented,
        ] {
            assert!(!never(code), "{code:?}");
        }
    }
}
