//! Headers of requests: from the command line, and from `OTEL_EXPORTER_OTLP_HEADERS`, which keeps secrets off it.

use libmsb::cli::error::Failure;

use crate::args::OtelArgs;

/// As OpenTelemetry has it: `key=value,key=value`, the values percent-encoded.
const VARIABLE: &str = "OTEL_EXPORTER_OTLP_HEADERS";

/// All headers, names in lower case; the command line has the last word.
pub(super) fn of(args: &OtelArgs) -> Result<Vec<(String, String)>, Failure> {
    let variable = std::env::var(VARIABLE).unwrap_or_default();
    let mut headers: Vec<(String, String)> = Vec::new();
    let pairs = variable.split(',').map(str::trim);
    for pair in pairs.filter(|pair| !pair.is_empty()) {
        let Some((key, value)) = pair.split_once('=') else {
            // What is wrong may be a secret: it is not repeated.
            return Err(
                Failure::usage(format!("{VARIABLE} is not a list of key=value"))
                    .hint("several are separated by commas; a comma in a value is %2C"),
            );
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

/// A header that cannot be sent.
pub(super) fn wrong(name: &str) -> Failure {
    Failure::usage(format!(
        "'{}' cannot be sent as a header",
        libmsb::cli::escape::escape(name)
    ))
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
