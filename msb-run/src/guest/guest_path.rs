//! Paths in the guest that are changed.

use libmsb::cli::error::Failure;
use libmsb::cli::escape::escape;
use msb_wire::text::Text;

/// Checks that a path in the guest is absolute, is not the root and does not contain `..`.
pub(crate) fn guest_path(bytes: &[u8]) -> Result<Text, Failure> {
    let wrong = |why: &str| {
        Err(Failure::usage(format!("invalid path in the guest '{}': {why}", escape(bytes))))
    };
    let parts = || {
        let parts = bytes.split(|byte| *byte == b'/');
        parts.filter(|part| !part.is_empty() && *part != b".")
    };
    if !bytes.starts_with(b"/") {
        return wrong("not absolute");
    }
    if parts().any(|part| part == b"..") {
        return wrong("contains '..'");
    }
    if parts().next().is_none() {
        return wrong("it is the root directory");
    }
    Ok(Text(bytes.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_in_the_guest_is_absolute_and_below_its_root() {
        for path in ["/a", "/a/", "/a/./b", "/a..b"] {
            guest_path(path.as_bytes()).unwrap();
        }
        for path in ["", "a", "/", "//", "/.", "/..", "/a/../b"] {
            assert!(guest_path(path.as_bytes()).is_err(), "{path}");
        }
    }
}
