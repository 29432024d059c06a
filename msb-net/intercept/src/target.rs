//! The host that a request names: it must be the one of the TLS connection, whose certificate was
//! verified.

use hyper::header::HOST;
use hyper::http::request::Parts;
use hyper::http::uri::Authority;
use libmsb::net::name::HostName;

/// Returns why a request is not one to this host and port. `None`: it is.
pub fn mismatch(parts: &Parts, host: &HostName, port: u16) -> Option<&'static str> {
    let mut hosts = parts.headers.get_all(HOST).iter();
    let header = hosts.next();
    if hosts.next().is_some() {
        return Some("it has several Host headers");
    }
    if header.is_none() && parts.uri.authority().is_none() {
        return Some("it has no host");
    }
    if let Some(authority) = parts.uri.authority()
        && !names(authority, host, port)
    {
        return Some("its URL names another host");
    }
    if let Some(header) = header {
        let authority = header.to_str().ok().and_then(|text| text.parse::<Authority>().ok());
        if !authority.is_some_and(|authority| names(&authority, host, port)) {
            return Some("its Host header names another host");
        }
    }
    None
}

/// Returns whether an authority is this host, at this port or without one. Without a port it is the
/// connection's own, since that is where the request goes.
fn names(authority: &Authority, host: &HostName, port: u16) -> bool {
    let is_port = authority.port_u16().is_none_or(|named| named == port);
    let has_strange_port = authority.port_u16().is_none() && authority.as_str().ends_with(':');
    let is_plain = !authority.as_str().contains('@') && !has_strange_port;
    let is_host = authority.host().parse::<HostName>().is_ok_and(|named| named == *host);
    is_plain && is_port && is_host
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::Request;

    fn check(uri: &str, hosts: &[&str]) -> Option<&'static str> {
        let mut request = Request::builder().uri(uri);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        mismatch(&parts, &"a.test".parse().unwrap(), 8443)
    }

    #[test]
    fn one_host_is_named_and_it_is_that_of_the_connection() {
        for (uri, host) in [
            ("/", "a.test"),
            ("/", "A.test."),
            ("/", "a.test:8443"),
            ("https://a.test/x", "a.test"),
            ("https://a.test:8443/x", "a.test:8443"),
        ] {
            assert_eq!(check(uri, &[host]), None, "{uri} {host}");
        }
        assert_eq!(check("https://a.test/", &[]), None);
        for (uri, hosts) in [
            ("/", vec!["e.test"]),
            ("/", vec![]),
            ("/", vec!["a.test", "a.test"]),
            ("/", vec!["a.test:443"]),
            ("/", vec!["a.test:"]),
            ("/", vec!["x@a.test"]),
            ("/", vec!["a.test@e.test"]),
            ("/", vec![""]),
            ("/", vec!["a.test, e.test"]),
            ("/", vec!["*.test"]),
            ("https://e.test/", vec!["a.test"]),
            ("https://a.test/", vec!["e.test"]),
            ("https://u:p@a.test/", vec!["a.test"]),
        ] {
            assert!(check(uri, &hosts).is_some(), "{uri} {hosts:?}");
        }
    }
}
