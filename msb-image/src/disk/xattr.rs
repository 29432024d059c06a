//! Extended attributes in the form of EROFS: a header, then entries of name and value, each filled up to 4 bytes.
//!
//! Kept are those that a guest's kernel knows: `user.`, `trusted.`, `security.` (with file capabilities) and POSIX access
//! lists. `trusted.overlay.` is left out: the guest's root is an overlay, and an image must not give it orders.

/// Bytes of the header in front of the entries.
pub(crate) const HEADER_BYTES: usize = 12;
const NAME_BYTES_MAX: usize = 255;

/// Number of a name's prefix, and the prefix itself.
const PREFIXES: [(u8, &[u8]); 5] = [
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (1, b"user."),
    (4, b"trusted."),
    (6, b"security."),
];

/// The entries of a file in the form of EROFS, sorted; nothing when none is kept.
pub(crate) fn encode(xattrs: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut kept: Vec<(u8, &[u8], &[u8])> = xattrs
        .iter()
        .filter_map(|(name, value)| split(name, value))
        .collect();
    kept.sort_unstable();
    let mut bytes = Vec::new();
    for (prefix, name, value) in kept {
        bytes.extend_from_slice(&[name.len() as u8, prefix]);
        bytes.extend_from_slice(&(value.len() as u16).to_le_bytes());
        bytes.extend_from_slice(name);
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

fn split<'a>(name: &'a [u8], value: &'a [u8]) -> Option<(u8, &'a [u8], &'a [u8])> {
    if name.starts_with(b"trusted.overlay.") || value.len() > usize::from(u16::MAX) {
        return None;
    }
    let (prefix, rest) = PREFIXES
        .iter()
        .find_map(|(number, prefix)| Some((*number, name.strip_prefix(*prefix)?)))?;
    let is_acl = matches!(prefix, 2 | 3);
    (is_acl == rest.is_empty() && rest.len() <= NAME_BYTES_MAX).then_some((prefix, rest, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn xattr(name: &str, value: &[u8]) -> (Vec<u8>, Vec<u8>) {
        (name.as_bytes().to_vec(), value.to_vec())
    }

    #[test]
    fn entries_are_sorted_and_filled_up() {
        let bytes = encode(&[xattr("security.capability", b"12345"), xattr("user.a", b"")]);
        assert_eq!(bytes, b"\x01\x01\0\0a\0\0\0\x0a\x06\x05\0capability12345\0");
    }

    #[test]
    fn only_attributes_that_a_guest_can_have_are_kept() {
        let dropped = [
            "trusted.overlay.opaque",
            "system.nfs4_acl",
            "com.apple.x",
            "user.",
            "system.posix_acl_access.x",
        ];
        for name in dropped {
            assert!(encode(&[xattr(name, b"y")]).is_empty(), "{name}");
        }
        assert_eq!(
            encode(&[xattr("system.posix_acl_access", b"v")]),
            b"\0\x02\x01\0v\0\0\0"
        );
    }
}
