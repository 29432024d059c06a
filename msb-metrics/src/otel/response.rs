//! Responses of collectors: the definitions of OTLP's `metrics_service.proto`.

use prost::Message;

use super::outcome::ExportOutcome;

/// `opentelemetry.proto.collector.metrics.v1.ExportMetricsServiceResponse`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ExportMetricsServiceResponse {
    #[prost(message, optional, tag = "1")]
    partial_success: Option<ExportMetricsPartialSuccess>,
}

/// `opentelemetry.proto.collector.metrics.v1.ExportMetricsPartialSuccess`.
#[derive(Clone, PartialEq, Message)]
struct ExportMetricsPartialSuccess {
    #[prost(int64, tag = "1")]
    rejected_data_points: i64,
    #[prost(string, tag = "2")]
    error_message: String,
}

impl ExportMetricsServiceResponse {
    /// Returns the outcome: the response may report partial success.
    pub(super) fn outcome(self) -> ExportOutcome {
        let partial = self.partial_success.unwrap_or_default();
        ExportOutcome::Accepted {
            rejected: u64::try_from(partial.rejected_data_points).unwrap_or(0),
            message: partial.error_message,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry_proto::tonic::collector::metrics::v1 as proto;

    #[test]
    fn a_response_is_read_as_opentelemetry_writes_it() {
        let written = proto::ExportMetricsServiceResponse {
            partial_success: Some(proto::ExportMetricsPartialSuccess {
                rejected_data_points: 3,
                error_message: "too old".to_owned(),
            }),
        };
        let read = ExportMetricsServiceResponse::decode(&written.encode_to_vec()[..]).unwrap();
        assert!(matches!(
            read.outcome(),
            ExportOutcome::Accepted { rejected: 3, message } if message == "too old"
        ));
        let empty = ExportMetricsServiceResponse::decode(&b""[..]).unwrap();
        assert!(matches!(
            empty.outcome(),
            ExportOutcome::Accepted { rejected: 0, message } if message.is_empty()
        ));
    }
}
