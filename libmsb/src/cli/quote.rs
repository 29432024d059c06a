//! Quoting for a POSIX shell.

/// Returns the word as a shell needs it: unchanged, or in single quotes.
pub fn shell_quoted<T: AsRef<[u8]> + ?Sized>(word: &T) -> Vec<u8> {
    let word = word.as_ref();
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"%+,-./:=@_".contains(byte);
    if !word.is_empty() && word.iter().all(plain) {
        return word.to_owned();
    }
    let mut quoted = vec![b'\''];
    for byte in word {
        match byte {
            b'\'' => quoted.extend_from_slice(b"'\\''"),
            _ => quoted.push(*byte),
        }
    }
    quoted.push(b'\'');
    quoted
}

/// Quotes words and joins them with blanks.
pub fn shell_line<T: AsRef<[u8]>>(words: impl IntoIterator<Item = T>) -> Vec<u8> {
    let words: Vec<Vec<u8>> = words.into_iter().map(|word| shell_quoted(&word)).collect();
    words.join(&b' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_as_a_shell_needs_them() {
        assert_eq!(shell_quoted("a/b-c=1"), b"a/b-c=1");
        assert_eq!(shell_quoted(""), b"''");
        assert_eq!(shell_quoted("a b"), b"'a b'");
        assert_eq!(shell_quoted("it's"), b"'it'\\''s'");
        assert_eq!(shell_quoted(b"\xff\n"), b"'\xff\n'");
        assert_eq!(shell_line(["a", "$b"]), b"a '$b'");
    }
}
