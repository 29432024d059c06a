//! Fuzz targets of msb-intercept: the search for placeholders and the grammar of secrets. Any input
//! is valid; a panic is a bug.

#![cfg_attr(fuzzing, no_main)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by a panic"
)]

use libmsb::net::secret::SecretSpec;
use libmsb::net::tls::TlsSpec;

use msb_intercept::search::{StreamSearch, TextSearch};
use msb_intercept::secrets::{BodyFormat, RequestPart, SecretTable};
use msb_intercept::text_forms;

msb_test_fuzz::fuzz_targets! {
    "search" => fuzz_search,
    "secret" => fuzz_secret,
    "substitution" => fuzz_substitution,
}

/// Searches a stream in chunks, and the whole text. Both find the same.
fn fuzz_search(bytes: &[u8]) {
    let [count, size, rest @ ..] = bytes else {
        return;
    };
    let (count, size) = (usize::from(count % 4) + 1, usize::from(size % 16) + 1);
    let texts: Vec<(Vec<u8>, usize)> = rest
        .chunks(5)
        .take(count)
        .enumerate()
        .map(|(index, text)| (text.to_vec(), index))
        .collect();
    let search = TextSearch::new(texts);
    let whole: Vec<usize> = search.find(rest).map(|found| found.tag).collect();
    let mut stream = StreamSearch::default();
    let mut tags = Vec::new();
    for chunk in rest.chunks(size) {
        tags.extend(stream.push(&search, chunk, false));
    }
    tags.extend(stream.finish(&search));
    assert_eq!(tags, whole);
}

/// Parses a secret. What is printed as JSON reads the same.
fn fuzz_secret(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(secret) = text.parse::<SecretSpec>() {
        let json = serde_json::to_string(&secret).unwrap();
        assert_eq!(serde_json::from_str::<SecretSpec>(&json).unwrap(), secret);
    }
}

/// Replaces placeholders in a text: a value is in the result only for a bound host, and then
/// exactly as often as it was used.
fn fuzz_substitution(bytes: &[u8]) {
    let secret: SecretSpec = "K:query,body,placeholder=$MSB_@a.test".parse().unwrap();
    let tls = TlsSpec { secrets: vec![secret], ..TlsSpec::default() };
    let value = "\u{1f511}value";
    let values = [("K".to_owned(), value.to_owned())].into();
    let table = SecretTable::new(&tls, values).unwrap();
    let (bound, other) = ("a.test".parse().unwrap(), "e.test".parse().unwrap());
    for part in [RequestPart::Query, RequestPart::Body(BodyFormat::Json)] {
        let sent = table.process(part, bytes, &table.standings(&bound, true));
        assert_eq!(sent.replaced.is_some(), !sent.used.is_empty());
        assert!(sent.violation.is_none());
        for standings in [table.standings(&bound, false), table.standings(&other, true)] {
            let refused = table.process(part, bytes, &standings);
            assert!(refused.replaced.is_none() && refused.used.is_empty());
            assert_eq!(
                refused.violation.is_some(),
                !sent.used.is_empty() || !sent.inert.is_empty()
            );
        }
    }
    let _ = table.process_header("authorization", bytes, &table.standings(&bound, true));
    for form in text_forms::base64(bytes) {
        assert!(form.len() >= 4);
    }
}
