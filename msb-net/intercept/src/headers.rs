//! Headers in which placeholders are not replaced by default, because servers, proxies and tracing
//! systems repeat them in answers and logs.

/// Names, and prefixes that end with `*`.
const UNUSUAL: [&str; 48] = [
    "host",
    "origin",
    "referer",
    "user-agent",
    "from",
    "via",
    "forwarded",
    "x-forwarded-*",
    "x-real-ip",
    "x-client-ip",
    "true-client-ip",
    "x-request-id",
    "x-correlation-id",
    "x-amzn-trace-id",
    "traceparent",
    "tracestate",
    "baggage",
    "b3",
    "x-b3-*",
    "idempotency-key",
    "access-control-request-*",
    "sec-websocket-*",
    "sec-ch-*",
    "sec-fetch-*",
    "accept",
    "accept-*",
    "content-*",
    "if-*",
    "range",
    "expect",
    "prefer",
    "cache-control",
    "pragma",
    "te",
    "trailer",
    "connection",
    "upgrade",
    "date",
    "last-event-id",
    "keep-alive",
    "transfer-encoding",
    "proxy-*",
    "max-forwards",
    "priority",
    "dnt",
    "upgrade-insecure-requests",
    "alt-used",
    "http2-settings",
];

/// Returns whether a placeholder in this header, in lower case, is replaced by default.
pub(crate) fn is_usual(name: &str) -> bool {
    !UNUSUAL.iter().any(|unusual| match unusual.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => name == *unusual,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_that_servers_repeat_get_nothing() {
        for name in ["authorization", "cookie", "x-api-key", "private-token", "api-key"] {
            assert!(is_usual(name), "{name}");
        }
        for name in ["user-agent", "x-forwarded-for", "origin", "accept-language", "content-type"] {
            assert!(!is_usual(name), "{name}");
        }
    }
}
