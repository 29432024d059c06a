//! The keys that leave a job alone again, found in what is typed.

use std::str::FromStr;

/// A sequence of keys, and how much of it has just been typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DetachKeys {
    keys: Vec<u8>,
    typed: usize,
}

impl FromStr for DetachKeys {
    type Err = String;

    /// Keys between commas: one character, or `ctrl-` and a letter or one of `@[\\]^_`. The form of docker.
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
        // What a terminal sends: the character without its two highest bits.
        (true, upper @ b'@'..=b'_') => Some(upper & 0x1f),
        (true, _) => None,
        (false, _) => byte.is_ascii_graphic().then_some(*byte),
    }
}

impl DetachKeys {
    /// Gives what is to be passed on of what was typed, and whether the keys were all there. The begin of the sequence is
    /// kept back until it is known to be none.
    pub(crate) fn filter(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(typed.len());
        for byte in typed {
            if self.keys[self.typed] != *byte {
                passed.extend_from_slice(&self.keys[..self.typed]);
                self.typed = 0;
            }
            if self.keys[self.typed] != *byte {
                passed.push(*byte);
                continue;
            }
            self.typed += 1;
            if self.typed == self.keys.len() {
                self.typed = 0;
                return (passed, true);
            }
        }
        (passed, false)
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
    fn what_only_begins_like_the_keys_is_passed_on_later() {
        let mut keys: DetachKeys = "~,.".parse().unwrap();
        assert_eq!(keys.filter(b"a~"), (b"a".to_vec(), false));
        assert_eq!(keys.filter(b"~x"), (b"~~x".to_vec(), false));
        assert_eq!(keys.filter(b"b~."), (b"b".to_vec(), true));
    }
}
