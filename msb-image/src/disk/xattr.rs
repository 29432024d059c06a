//! Extended attributes in EROFS format: a header, then entries of name and value, each padded to 4
//! bytes.
//!
//! Kept are those that a guest's kernel supports: `user.`, `trusted.`, `security.` (with file
//! capabilities) and POSIX ACLs. `trusted.overlay.` is dropped: the guest's root is an overlayfs,
//! and an image must not control it.

/// Bytes of `struct erofs_xattr_ibody_header`, before the entries.
pub(crate) const IBODY_HEADER_BYTES: usize = 12;
const NAME_BYTES_MAX: usize = 255;

const EROFS_XATTR_INDEX_USER: u8 = 1;
const EROFS_XATTR_INDEX_POSIX_ACL_ACCESS: u8 = 2;
const EROFS_XATTR_INDEX_POSIX_ACL_DEFAULT: u8 = 3;
const EROFS_XATTR_INDEX_TRUSTED: u8 = 4;
const EROFS_XATTR_INDEX_SECURITY: u8 = 6;

/// `e_name_index` of each name prefix.
const PREFIXES: [(u8, &[u8]); 5] = [
    (EROFS_XATTR_INDEX_POSIX_ACL_ACCESS, b"system.posix_acl_access"),
    (EROFS_XATTR_INDEX_POSIX_ACL_DEFAULT, b"system.posix_acl_default"),
    (EROFS_XATTR_INDEX_USER, b"user."),
    (EROFS_XATTR_INDEX_TRUSTED, b"trusted."),
    (EROFS_XATTR_INDEX_SECURITY, b"security."),
];

/// Encodes the extended attributes of a file, sorted; empty if none is kept.
pub(crate) fn encode(xattrs: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut kept: Vec<(u8, &[u8], &[u8])> =
        xattrs.iter().filter_map(|(name, value)| split(name, value)).collect();
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
    let is_acl =
        matches!(prefix, EROFS_XATTR_INDEX_POSIX_ACL_ACCESS | EROFS_XATTR_INDEX_POSIX_ACL_DEFAULT);
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
        assert_eq!(encode(&[xattr("system.posix_acl_access", b"v")]), b"\0\x02\x01\0v\0\0\0");
    }
}
