//! OTLP over gRPC: <https://opentelemetry.io/docs/specs/otlp/#otlpgrpc>.

use std::time::Duration;

use anyhow::Context;
use libmsb::cli::error::Failure;
use prost::Message;
use prost::bytes::{Buf, BufMut};
use tonic::client::Grpc as Client;
use tonic::codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::{Ascii, MetadataKey, MetadataMap, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status, TimeoutExpired};

use super::outcome::{ExportOutcome, ExportTransport};
use super::response::ExportMetricsServiceResponse;
use super::{certificates, headers};
use crate::args::{Compression, OtelArgs};

/// Path of the RPC.
const EXPORT: &str = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export";
/// Reason of a timeout, independent of which clock expired first: this program's, that of the
/// client library, which enforces the header `grpc-timeout`, or the collector's.
const TIMED_OUT: &str = "timed out";
/// Type of the status detail with the retry delay (`google.rpc.RetryInfo`).
const RETRY_INFO: &str = "type.googleapis.com/google.rpc.RetryInfo";

/// A gRPC connection to a collector.
pub(super) struct GrpcTransport {
    runtime: tokio::runtime::Runtime,
    channel: Channel,
    headers: MetadataMap,
    gzip: bool,
    timeout: Duration,
}

impl GrpcTransport {
    pub(super) fn new(args: &OtelArgs) -> anyhow::Result<GrpcTransport> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .context("cannot start the async runtime")?;
        let channel = {
            let _inside = runtime.enter();
            endpoint(args)?.connect_lazy()
        };
        let mut metadata = MetadataMap::new();
        for (name, value) in headers::request_headers(args)? {
            let key: MetadataKey<Ascii> =
                name.parse().map_err(|_| headers::invalid_header(&name))?;
            let value: MetadataValue<Ascii> =
                value.parse().map_err(|_| headers::invalid_header(&name))?;
            metadata.insert(key, value);
        }
        Ok(GrpcTransport {
            runtime,
            channel,
            headers: metadata,
            gzip: args.compression == Compression::Gzip,
            timeout: args.export_timeout,
        })
    }
}

/// Parses the endpoint. `HOST:PORT` without a scheme means no TLS.
fn endpoint(args: &OtelArgs) -> anyhow::Result<Endpoint> {
    let text = &args.endpoint;
    let whole = if text.contains("://") { text.clone() } else { format!("http://{text}") };
    let invalid = || {
        Failure::usage(format!(
            "invalid gRPC endpoint '{}'",
            libmsb::cli::escape::escape(&super::endpoint::without_secrets(text))
        ))
        .hint("give a URL: http://127.0.0.1:4317, or https:// for TLS")
    };
    let endpoint = Endpoint::from_shared(whole.clone()).map_err(|_| invalid())?;
    let secure = match endpoint.uri().scheme_str() {
        Some("http") => false,
        Some("https") => true,
        _ => return Err(invalid().into()),
    };
    if endpoint.uri().host().is_none_or(str::is_empty) {
        return Err(invalid().into());
    }
    let endpoint = endpoint
        .connect_timeout(args.export_timeout)
        .user_agent(concat!("msb-metrics/", env!("CARGO_PKG_VERSION")))?;
    if !secure {
        return Ok(endpoint);
    }
    let tls = match &args.ca_cert {
        Some(path) => {
            let pem = certificates::read(path)?.pem;
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem))
        }
        None => ClientTlsConfig::new().with_native_roots(),
    };
    endpoint.tls_config(tls).context("cannot use the certificates")
}

impl ExportTransport for GrpcTransport {
    fn send(&mut self, request: &[u8]) -> ExportOutcome {
        let mut client = Client::new(self.channel.clone());
        if self.gzip {
            client = client.send_compressed(CompressionEncoding::Gzip);
        }
        let mut request = Request::new(request.to_vec());
        *request.metadata_mut() = self.headers.clone();
        request.set_timeout(self.timeout);
        let path = PathAndQuery::from_static(EXPORT);
        let call = async {
            client.ready().await.map_err(|error| Status::from_error(error.into()))?;
            client.unary(request, path, RawCodec).await
        };
        let answer =
            self.runtime.block_on(async { tokio::time::timeout(self.timeout, call).await });
        match answer {
            Err(_) => ExportOutcome::Retry { why: TIMED_OUT.to_owned(), after: None },
            Ok(Ok(answer)) => answer.into_inner().outcome(),
            Ok(Err(status)) => outcome_of_status(&status),
        }
    }
}

/// Converts a status to an outcome. Only errors in the request itself are final.
fn outcome_of_status(status: &Status) -> ExportOutcome {
    let why = format!("status {:?}: {}", status.code(), status.message());
    match status.code() {
        Code::InvalidArgument => ExportOutcome::Rejected { why },
        Code::DeadlineExceeded => {
            ExportOutcome::Retry { why: TIMED_OUT.to_owned(), after: retry_info(status.details()) }
        }
        _ => ExportOutcome::Retry {
            why: std::error::Error::source(status).map_or(why, describe_error),
            after: retry_info(status.details()),
        },
    }
}

/// Describes an error that occurred before there was a response.
fn describe_error(error: &(dyn std::error::Error + 'static)) -> String {
    if error_chain(error).any(|link| link.is::<TimeoutExpired>()) {
        return TIMED_OUT.to_owned();
    }
    certificates::verification_error(error).unwrap_or_else(|| chain_text(error))
}

/// Returns an error and the chain of its sources.
fn error_chain<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

/// Formats the chain of an error, because its first link says little.
fn chain_text(error: &(dyn std::error::Error + 'static)) -> String {
    let mut parts: Vec<String> = error_chain(error).map(ToString::to_string).collect();
    parts.dedup();
    parts.join(": ")
}

/// `google.rpc.Status`, as in the status details.
#[derive(Clone, PartialEq, Message)]
struct StatusDetails {
    #[prost(message, repeated, tag = "3")]
    details: Vec<AnyMessage>,
}

/// `google.protobuf.AnyMessage`.
#[derive(Clone, PartialEq, Message)]
struct AnyMessage {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// `google.rpc.RetryInfo`.
#[derive(Clone, PartialEq, Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<DurationMessage>,
}

/// `google.protobuf.Duration`.
#[derive(Clone, PartialEq, Message)]
struct DurationMessage {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

fn retry_info(details: &[u8]) -> Option<Duration> {
    let details = StatusDetails::decode(details).ok()?.details;
    let info = details.iter().find(|any| any.type_url == RETRY_INFO)?;
    let span = RetryInfo::decode(info.value.as_slice()).ok()?.retry_delay?;
    let nanos = u32::try_from(span.nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    Some(Duration::new(u64::try_from(span.seconds).ok()?, nanos))
}

/// Codec for requests that are encoded already, with normal decoding of responses.
#[derive(Clone, Copy)]
struct RawCodec;

impl Codec for RawCodec {
    type Encode = Vec<u8>;
    type Decode = ExportMetricsServiceResponse;
    type Encoder = RawCodec;
    type Decoder = RawCodec;

    fn encoder(&mut self) -> RawCodec {
        RawCodec
    }

    fn decoder(&mut self) -> RawCodec {
        RawCodec
    }
}

impl Encoder for RawCodec {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, request: Vec<u8>, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put_slice(&request);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = ExportMetricsServiceResponse;
    type Error = Status;

    fn decode(&mut self, answer: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        let bytes = answer.copy_to_bytes(answer.remaining());
        let decoded = ExportMetricsServiceResponse::decode(bytes);
        decoded.map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_retry_delay_is_in_the_details_of_a_status() {
        let info =
            RetryInfo { retry_delay: Some(DurationMessage { seconds: 3, nanos: 500_000_000 }) };
        let details = StatusDetails {
            details: vec![AnyMessage {
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
    fn all_timeouts_have_the_same_message() {
        let own = Status::from_error(Box::new(TimeoutExpired(())));
        let said = Status::new(Code::DeadlineExceeded, "Deadline Exceeded");
        for status in [own, said] {
            let why = match outcome_of_status(&status) {
                ExportOutcome::Retry { why, .. } => why,
                _ => String::new(),
            };
            assert_eq!(why, TIMED_OUT, "{status:?}");
        }
    }

    #[test]
    fn only_an_invalid_request_is_final() {
        let never = |code| {
            matches!(outcome_of_status(&Status::new(code, "x")), ExportOutcome::Rejected { .. })
        };
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
