//! A command's environment.

use std::collections::HashMap;
use std::ffi::CString;

use msb_wire::text::Text;

/// Where programs are looked for when nobody says.
pub(crate) const DEFAULT_PATH: &str =
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Variables in the order in which they were first set; each name once.
#[derive(Debug, Default)]
pub(crate) struct Environment {
    entries: Vec<Option<Vec<u8>>>,
    places: HashMap<Vec<u8>, usize>,
}

impl Environment {
    /// What docker gives to every command: a path, the host's name, and on a terminal its type.
    pub(crate) fn base(hostname: &str, terminal: bool) -> Environment {
        let mut environment = Environment::default();
        environment.set(format!("PATH={DEFAULT_PATH}").as_bytes());
        environment.set(format!("HOSTNAME={hostname}").as_bytes());
        if terminal {
            environment.set(b"TERM=xterm");
        }
        environment
    }

    /// Sets a variable (`NAME=value`), or takes it away (`NAME`, as with docker).
    pub(crate) fn set(&mut self, entry: &[u8]) {
        let equals = entry.iter().position(|byte| *byte == b'=');
        let name = &entry[..equals.unwrap_or(entry.len())];
        if name.is_empty() {
            return;
        }
        let value = equals.map(|_| entry.to_vec());
        match self.places.get(name) {
            Some(place) => self.entries[*place] = value,
            None => {
                self.places.insert(name.to_vec(), self.entries.len());
                self.entries.push(value);
            }
        }
    }

    /// Sets several variables.
    pub(crate) fn set_all(&mut self, entries: &[Text]) {
        for entry in entries {
            self.set(entry.as_bytes());
        }
    }

    /// The value of a variable.
    pub(crate) fn get(&self, name: &str) -> Option<&[u8]> {
        let entry = self
            .entries
            .get(*self.places.get(name.as_bytes())?)?
            .as_deref()?;
        entry.get(name.len() + 1..)
    }

    /// Sets a variable that is missing or empty.
    pub(crate) fn set_missing(&mut self, name: &str, value: &[u8]) {
        if self.get(name).is_none_or(<[u8]>::is_empty) {
            self.set(&[name.as_bytes(), b"=", value].concat());
        }
    }

    /// For execve(2). `None` when an entry holds a NUL byte.
    pub(crate) fn into_strings(self) -> Option<Vec<CString>> {
        self.entries
            .into_iter()
            .flatten()
            .map(|entry| CString::new(entry).ok())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(environment: Environment) -> Vec<String> {
        environment
            .into_strings()
            .unwrap()
            .into_iter()
            .map(|text| text.into_string().unwrap())
            .collect()
    }

    #[test]
    fn a_later_layer_overrides_an_earlier_one_by_name() {
        let mut environment = Environment::default();
        environment.set_all(&["A=image".into(), "B=image".into(), "AB=x".into()]);
        environment.set_all(&["A=own".into(), "C=a=b".into(), "A=last".into()]);
        assert_eq!(joined(environment), ["A=last", "B=image", "AB=x", "C=a=b"]);
    }

    #[test]
    fn a_name_alone_takes_a_variable_away() {
        let mut environment = Environment::base("box", true);
        environment.set_all(&["TERM".into(), "=strange".into(), "".into()]);
        assert_eq!(environment.get("TERM"), None);
        assert_eq!(
            joined(environment),
            [format!("PATH={DEFAULT_PATH}"), "HOSTNAME=box".into()]
        );
    }

    #[test]
    fn defaults_fill_what_is_missing_or_empty_only() {
        let mut environment = Environment::default();
        environment.set_all(&["HOME=".into(), "X=1".into()]);
        environment.set_missing("HOME", b"/root");
        environment.set_missing("X", b"2");
        assert_eq!(
            (environment.get("HOME"), environment.get("X")),
            (Some(&b"/root"[..]), Some(&b"1"[..]))
        );
    }
}
