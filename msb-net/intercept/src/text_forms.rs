//! Encoded forms of a text: those that programs give to it in URLs, forms, JSON and Basic
//! authentication.

use base64::Engine;
use base64::prelude::BASE64_STANDARD_NO_PAD;

/// Returns the percent-encoded form of a text: all but unreserved characters (RFC 3986, 2.3).
pub fn percent(text: &[u8], digits: Digits) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    for byte in text {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) {
            out.push(*byte);
        } else {
            out.extend(match digits {
                Digits::Upper => format!("%{byte:02X}").into_bytes(),
                Digits::Lower => format!("%{byte:02x}").into_bytes(),
            });
        }
    }
    out
}

/// Case of hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Digits {
    /// `A` to `F`.
    Upper,
    /// `a` to `f`.
    Lower,
}

/// Returns a text as it is inside of a JSON string.
pub fn json(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    for byte in text {
        match byte {
            b'"' | b'\\' => out.extend([b'\\', *byte]),
            0..=0x1f => out.extend(format!("\\u{byte:04x}").into_bytes()),
            _ => out.push(*byte),
        }
    }
    out
}

/// Returns a text as it is inside of a JSON string whose writer escapes everything but letters,
/// digits and `_`.
pub fn json_escaped(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    for byte in text {
        if byte.is_ascii_alphanumeric() || *byte == b'_' {
            out.push(*byte);
        } else {
            out.extend(format!("\\u{byte:04x}").into_bytes());
        }
    }
    out
}

/// Returns the three texts of which one occurs in the base64 form of any bytes that contain the
/// text, by its position modulo 3. Letters that depend on neighbouring bytes are left out.
pub fn base64(text: &[u8]) -> Vec<Vec<u8>> {
    (0..3)
        .map(|before| {
            let padded = [&vec![0; before][..], text].concat();
            let encoded = BASE64_STANDARD_NO_PAD.encode(&padded).into_bytes();
            let start = [0, 2, 3][before];
            let end = padded.len() * 8 / 6;
            // Of a text of less than two bytes nothing may be left.
            encoded.get(start..end).unwrap_or_default().to_vec()
        })
        .filter(|form| form.len() >= 4)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_those_of_common_programs() {
        assert_eq!(percent(b"$MSB_A b", Digits::Upper), b"%24MSB_A%20b");
        assert_eq!(percent(b"a/~\xff", Digits::Lower), b"a%2f~%ff");
        assert_eq!(json(b"a\"b\\c\n"), b"a\\\"b\\\\c\\u000a");
        assert_eq!(json_escaped(b"$MSB_A"), b"\\u0024MSB_A");
    }

    #[test]
    fn base64_forms_occur_whatever_surrounds_the_text() {
        let text = b"$MSB_TOKEN";
        let forms = base64(text);
        assert_eq!(forms.len(), 3);
        for before in 0..7 {
            for after in 0..4 {
                let whole = [&vec![b'x'; before][..], text, &vec![b'y'; after][..]].concat();
                let encoded = BASE64_STANDARD_NO_PAD.encode(whole).into_bytes();
                let found =
                    |form: &Vec<u8>| encoded.windows(form.len()).any(|window| window == &form[..]);
                assert!(forms.iter().any(found), "{before} {after}");
            }
        }
    }
}
