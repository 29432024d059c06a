//! A command's environment.
//!
//! That of the sandbox may be a megabyte and is the same for every command: it is put in order once, and a command
//! borrows it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ffi::{CStr, CString};

use msb_wire::guest::SCRIPTS;
use msb_wire::text::Text;

/// Where programs are looked for when nobody says.
pub(crate) const DEFAULT_PATH: &str =
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The variables of every command, in the order in which they were first set; each name once.
#[derive(Debug, Default)]
pub(crate) struct Base {
    entries: Vec<Option<CString>>,
    places: HashMap<Vec<u8>, usize>,
}

/// The variables of one command.
#[derive(Debug)]
pub(crate) struct Environment<'a> {
    base: &'a Base,
    entries: Vec<Option<Cow<'a, CStr>>>,
    /// Names that are not in the base.
    places: HashMap<Vec<u8>, usize>,
}

/// Splits `NAME=value`; a name alone (as with docker) takes the variable away. `None` without a name, or with a NUL byte.
fn split(entry: &[u8]) -> Option<(&[u8], Option<CString>)> {
    let equals = entry.iter().position(|byte| *byte == b'=');
    let name = &entry[..equals.unwrap_or(entry.len())];
    if name.is_empty() || entry.contains(&0) {
        return None;
    }
    Some((name, equals.and_then(|_| CString::new(entry).ok())))
}

impl Base {
    /// A path and the host's name, as docker gives them to every command, then the variables of the sandbox. Programs are
    /// looked for among the sandbox's scripts first, if it has some.
    pub(crate) fn new(hostname: &str, entries: &[Text], scripts: bool) -> Base {
        let mut base = Base::default();
        base.set(format!("PATH={DEFAULT_PATH}").as_bytes());
        base.set(format!("HOSTNAME={hostname}").as_bytes());
        for entry in entries {
            base.set(entry.as_bytes());
        }
        if scripts {
            base.put_scripts_first();
        }
        base
    }

    fn put_scripts_first(&mut self) {
        let path = self.places.get(&b"PATH"[..]);
        let path = path.and_then(|place| self.entries.get(*place)?.as_deref());
        let path = path.and_then(|entry| entry.to_bytes().strip_prefix(b"PATH="));
        let path = path.filter(|path| !path.is_empty());
        let path = path.unwrap_or(DEFAULT_PATH.as_bytes());
        let entry = [b"PATH=", SCRIPTS.as_bytes(), b":", path].concat();
        self.set(&entry);
    }

    fn set(&mut self, entry: &[u8]) {
        let Some((name, value)) = split(entry) else {
            return;
        };
        match self.places.get(name) {
            Some(place) => self.entries[*place] = value,
            None => {
                self.places.insert(name.to_vec(), self.entries.len());
                self.entries.push(value);
            }
        }
    }

    /// The environment of a command on a terminal or not.
    pub(crate) fn environment(&self, terminal: bool) -> Environment<'_> {
        let entries = self
            .entries
            .iter()
            .map(|entry| entry.as_deref().map(Cow::Borrowed))
            .collect();
        let mut environment = Environment {
            base: self,
            entries,
            places: HashMap::new(),
        };
        if terminal && !self.places.contains_key(&b"TERM"[..]) {
            environment.set(b"TERM=xterm");
        }
        environment
    }
}

impl<'a> Environment<'a> {
    fn place(&self, name: &[u8]) -> Option<usize> {
        self.base
            .places
            .get(name)
            .or_else(|| self.places.get(name))
            .copied()
    }

    /// Sets a variable (`NAME=value`), or takes it away (`NAME`).
    pub(crate) fn set(&mut self, entry: &[u8]) {
        let Some((name, value)) = split(entry) else {
            return;
        };
        let value = value.map(Cow::Owned);
        match self.place(name) {
            Some(place) => self.entries[place] = value,
            None => {
                self.places.insert(name.to_vec(), self.entries.len());
                self.entries.push(value);
            }
        }
    }

    /// The value of a variable.
    pub(crate) fn get(&self, name: &str) -> Option<&[u8]> {
        let entry = self.entries.get(self.place(name.as_bytes())?)?.as_deref()?;
        entry.to_bytes().get(name.len() + 1..)
    }

    /// Sets a variable that is missing or empty.
    pub(crate) fn set_missing(&mut self, name: &str, value: &[u8]) {
        if self.get(name).is_none_or(<[u8]>::is_empty) {
            self.set(&[name.as_bytes(), b"=", value].concat());
        }
    }

    /// For execve(2).
    pub(crate) fn into_strings(self) -> Vec<Cow<'a, CStr>> {
        self.entries.into_iter().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(environment: Environment<'_>) -> Vec<String> {
        environment
            .into_strings()
            .into_iter()
            .map(|text| text.to_str().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn a_later_layer_overrides_an_earlier_one_by_name() {
        let base = Base::new(
            "box",
            &[
                "A=image".into(),
                "B=image".into(),
                "AB=x".into(),
                "PATH=/bin".into(),
            ],
            false,
        );
        let mut environment = base.environment(false);
        for entry in ["A=own", "C=a=b", "A=last", "C=d"] {
            environment.set(entry.as_bytes());
        }
        assert_eq!(
            joined(environment),
            [
                "PATH=/bin",
                "HOSTNAME=box",
                "A=last",
                "B=image",
                "AB=x",
                "C=d"
            ]
        );
    }

    #[test]
    fn a_name_alone_takes_a_variable_away() {
        let base = Base::new(
            "box",
            &["HOSTNAME".into(), "=strange".into(), "".into()],
            false,
        );
        let mut environment = base.environment(true);
        assert_eq!(environment.get("TERM"), Some(&b"xterm"[..]));
        environment.set(b"TERM");
        assert_eq!(environment.get("TERM"), None);
        assert_eq!(joined(environment), [format!("PATH={DEFAULT_PATH}")]);
    }

    #[test]
    fn a_terminal_of_the_sandbox_is_kept() {
        let base = Base::new("box", &["TERM=vt100".into()], false);
        assert_eq!(base.environment(true).get("TERM"), Some(&b"vt100"[..]));
        assert_eq!(
            Base::new("box", &[], false).environment(false).get("TERM"),
            None
        );
    }

    #[test]
    fn defaults_fill_what_is_missing_or_empty_only() {
        let base = Base::new("box", &["HOME=".into(), "X=1".into()], false);
        let mut environment = base.environment(false);
        environment.set_missing("HOME", b"/root");
        environment.set_missing("X", b"2");
        assert_eq!(
            (environment.get("HOME"), environment.get("X")),
            (Some(&b"/root"[..]), Some(&b"1"[..]))
        );
    }

    #[test]
    fn scripts_are_found_before_other_programs_whatever_the_path_is() {
        for (entries, path) in [
            (vec![], DEFAULT_PATH),
            (vec!["PATH=/bin".into()], "/bin"),
            (vec!["PATH=".into()], DEFAULT_PATH),
        ] {
            let base = Base::new("box", &entries, true);
            let expected = format!("{SCRIPTS}:{path}");
            let environment = base.environment(false);
            assert_eq!(environment.get("PATH"), Some(expected.as_bytes()));
        }
    }
}
