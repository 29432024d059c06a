//! Request headers: from the command line, and from `OTEL_EXPORTER_OTLP_HEADERS`, which keeps
//! secrets off it.

use libmsb::cli::error::Failure;

use crate::args::OtelArgs;

/// Environment variable of OpenTelemetry: `key=value,key=value`, with percent-encoded values.
const VARIABLE: &str = "OTEL_EXPORTER_OTLP_HEADERS";

/// Returns all headers with names in lower case. The command line takes precedence.
pub(super) fn request_headers(args: &OtelArgs) -> Result<Vec<(String, String)>, Failure> {
    let variable = std::env::var(VARIABLE).unwrap_or_default();
    let mut headers: Vec<(String, String)> = Vec::new();
    let pairs = variable.split(',').map(str::trim);
    for pair in pairs.filter(|pair| !pair.is_empty()) {
        let Some((key, value)) = pair.split_once('=') else {
            // The value may be a secret, so it is not repeated.
            return Err(Failure::usage(format!("invalid {VARIABLE}: expected key=value pairs"))
                .hint("separate pairs by commas, and write a comma in a value as %2C"));
        };
        headers.push((key.trim().to_lowercase(), decode(value.trim())));
    }
    for (key, value) in &args.header {
        let key = key.to_lowercase();
        headers.retain(|(of, _)| *of != key);
        headers.push((key, value.clone()));
    }
    Ok(headers)
}

/// Returns the error for an invalid header.
pub(super) fn invalid_header(name: &str) -> Failure {
    Failure::usage(format!("invalid header '{}'", libmsb::cli::escape::escape(name)))
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let hex = after.get(..2).filter(|_| *first == b'%');
        let byte = hex
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match byte {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_percent_encoded() {
        assert_eq!(decode("Bearer%20a%2Cb"), "Bearer a,b");
        assert_eq!(decode("100%"), "100%");
        assert_eq!(decode("%zz%4"), "%zz%4");
    }
}
