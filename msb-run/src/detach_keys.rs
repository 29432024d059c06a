//! The key sequence that detaches from a job, searched in the typed input.

use std::str::FromStr;

/// A key sequence, with the number of its keys typed so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DetachKeys {
    keys: Vec<u8>,
    typed: usize,
}

impl FromStr for DetachKeys {
    type Err = String;

    /// Parses keys separated by commas: one character, or `ctrl-` and a letter or one of `@[\\]^_`,
    /// as in docker.
    fn from_str(text: &str) -> Result<DetachKeys, String> {
        let keys: Option<Vec<u8>> = text.split(',').map(key).collect();
        let keys = keys.filter(|keys| !keys.is_empty());
        keys.map(|keys| DetachKeys { keys, typed: 0 })
            .ok_or_else(|| "not keys, such as ctrl-] or ctrl-p,ctrl-q".to_owned())
    }
}

fn key(text: &str) -> Option<u8> {
    let (control, letter) = match text.strip_prefix("ctrl-") {
        Some(letter) => (true, letter),
        None => (false, text),
    };
    let [byte] = letter.as_bytes() else {
        return None;
    };
    match (control, byte.to_ascii_uppercase()) {
        // A terminal sends control characters as the character without its two highest bits.
        (true, upper @ b'@'..=b'_') => Some(upper & 0x1f),
        (true, _) => None,
        (false, _) => byte.is_ascii_graphic().then_some(*byte),
    }
}

impl DetachKeys {
    /// Returns whether a prefix of the sequence is held back.
    pub(crate) fn is_pending(&self) -> bool {
        self.typed > 0
    }

    /// Returns the prefix that is held back, which is not part of the sequence then.
    pub(crate) fn take_pending(&mut self) -> Vec<u8> {
        self.keys[..std::mem::take(&mut self.typed)].to_vec()
    }

    /// Returns the part of the input to forward, and whether the sequence was completed. A prefix
    /// of the sequence is held back until it is complete or fails to match.
    pub(crate) fn filter(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut forwarded = Vec::with_capacity(typed.len());
        for byte in typed {
            if self.keys[self.typed] != *byte {
                forwarded.extend_from_slice(&self.keys[..self.typed]);
                self.typed = 0;
            }
            if self.keys[self.typed] != *byte {
                forwarded.push(*byte);
                continue;
            }
            self.typed += 1;
            if self.typed == self.keys.len() {
                self.typed = 0;
                return (forwarded, true);
            }
        }
        (forwarded, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_written_as_docker_has_them() {
        let keys = |text: &str| text.parse().map(|keys: DetachKeys| keys.keys);
        assert_eq!(keys("ctrl-]"), Ok(vec![0x1d]));
        assert_eq!(keys("ctrl-p,ctrl-Q"), Ok(vec![0x10, 0x11]));
        assert_eq!(keys("~,."), Ok(b"~.".to_vec()));
        for wrong in ["", "ctrl-", "ctrl-1", "ab", "ctrl-p,", "\u{e9}"] {
            assert!(keys(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_prefix_of_the_keys_is_forwarded_later() {
        let mut keys: DetachKeys = "~,.".parse().unwrap();
        assert_eq!(keys.filter(b"a~"), (b"a".to_vec(), false));
        assert_eq!(keys.filter(b"~x"), (b"~~x".to_vec(), false));
        assert_eq!(keys.filter(b"b~."), (b"b".to_vec(), true));
        assert_eq!(keys.filter(b"c~"), (b"c".to_vec(), false));
        assert!(keys.is_pending());
        assert_eq!(keys.take_pending(), b"~");
        assert!(!keys.is_pending());
        assert_eq!(keys.filter(b"."), (b".".to_vec(), false));
    }
}
