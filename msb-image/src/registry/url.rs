//! URLs that registries send, in redirects and challenges.
//!
//! Many contain bytes that a URL must percent-encode: spaces, quotes, letters that are not ASCII.
//! They are encoded here as the URL standard (url.spec.whatwg.org) does.

use ureq::http::Uri;

/// Percent-encodes the bytes of a URL that must be, and removes its fragment. The scheme and the
/// authority are unchanged.
pub(crate) fn encode_url(url: &[u8]) -> String {
    let url = url.trim_ascii();
    let url = url.split(|byte| *byte == b'#').next().unwrap_or_default();
    let start = authority_end(url);
    let mut encoded = String::from_utf8_lossy(&url[..start]).into_owned();
    let mut is_query = false;
    for byte in &url[start..] {
        is_query |= *byte == b'?';
        if must_encode(*byte, is_query) {
            encoded.push_str(&format!("%{byte:02X}"));
        } else {
            encoded.push(char::from(*byte));
        }
    }
    encoded
}

/// Resolves a reference, such as the value of Location, against the URL of the request (RFC 3986,
/// 5.2).
pub(crate) fn resolve(from: &Uri, reference: &[u8]) -> String {
    let reference = encode_url(reference);
    let scheme = from.scheme_str().unwrap_or("https");
    let authority = from.authority().map(|authority| authority.as_str()).unwrap_or_default();
    if has_scheme(&reference) {
        return reference;
    }
    if reference.starts_with("//") {
        return format!("{scheme}:{reference}");
    }
    let (path, query) = match reference.find('?') {
        Some(at) => reference.split_at(at),
        None => (reference.as_str(), ""),
    };
    let path = if path.is_empty() {
        from.path().to_owned()
    } else if path.starts_with('/') {
        without_dots(path)
    } else {
        let directory = from.path().rsplit_once('/').map_or("", |(directory, _)| directory);
        without_dots(&format!("{directory}/{path}"))
    };
    format!("{scheme}://{authority}{path}{query}")
}

fn must_encode(byte: u8, is_query: bool) -> bool {
    match byte {
        0..=b' ' | 0x7f.. | b'"' | b'<' | b'>' => true,
        b'`' | b'{' | b'}' | b'^' => !is_query,
        _ => false,
    }
}

/// Returns the offset after the scheme and authority, if there are any.
fn authority_end(url: &[u8]) -> usize {
    let start = match url.windows(3).position(|window| window == b"://") {
        Some(at) if is_scheme(&url[..at]) => at + 3,
        _ if url.starts_with(b"//") => 2,
        _ => return 0,
    };
    let rest = &url[start..];
    start + rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len())
}

fn has_scheme(url: &str) -> bool {
    url.split_once(':').is_some_and(|(scheme, _)| is_scheme(scheme.as_bytes()))
}

fn is_scheme(text: &[u8]) -> bool {
    text.first().is_some_and(u8::is_ascii_alphabetic)
        && text.iter().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(byte))
}

/// Removes the segments `.` and `..` from an absolute path (RFC 3986, 5.2.4).
fn without_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    for segment in path.split('/').skip(1) {
        match segment {
            "." => {}
            ".." => drop(kept.pop()),
            segment => kept.push(segment),
        }
    }
    let ends_in_dots = path.ends_with("/.") || path.ends_with("/..");
    let end = if ends_in_dots && !kept.is_empty() { "/" } else { "" };
    format!("/{}{end}", kept.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(location: &str) -> String {
        resolve(&"https://r.example:5000/v2/a/blobs/x?q".parse().unwrap(), location.as_bytes())
    }

    #[test]
    fn bytes_that_a_url_cannot_contain_are_percent_encoded() {
        for (location, expected) in [
            ("/s?x=\"a\"", "/s?x=%22a%22"),
            ("/s?name=a b", "/s?name=a%20b"),
            ("/s?x=\u{e9}#part", "/s?x=%C3%A9"),
            ("/a b/\u{4e2d}/{c}^`?d={e}[1]^`|", "/a%20b/%E4%B8%AD/%7Bc%7D%5E%60?d={e}[1]^`|"),
            ("/s?x=%2B%zz+", "/s?x=%2B%zz+"),
            ("/s?to=http://other.example/y z", "/s?to=http://other.example/y%20z"),
        ] {
            assert_eq!(to(location), format!("https://r.example:5000{expected}"));
            assert!(to(location).parse::<Uri>().is_ok(), "{location}");
        }
        assert_eq!(encode_url(b"https://h.example/\xe9"), "https://h.example/%E9");
        assert_eq!(encode_url(b"https://h.example?a b"), "https://h.example?a%20b");
    }

    #[test]
    fn relative_references_are_resolved() {
        for (location, expected) in [
            ("y", "https://r.example:5000/v2/a/blobs/y"),
            ("./y?z", "https://r.example:5000/v2/a/blobs/y?z"),
            ("../../../../y", "https://r.example:5000/y"),
            ("?z=1", "https://r.example:5000/v2/a/blobs/x?z=1"),
            ("/a/./b/..", "https://r.example:5000/a/"),
            ("//cdn.example/a b", "https://cdn.example/a%20b"),
            ("HTTPS://cdn.example/x", "HTTPS://cdn.example/x"),
        ] {
            assert_eq!(to(location), expected);
        }
    }
}
