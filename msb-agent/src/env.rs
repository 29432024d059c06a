//! Environment of a command.
//!
//! The sandbox's own environment may be a megabyte and is the same for every command: it is
//! prepared once, and commands borrow it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ffi::{CStr, CString};

use msb_wire::guest::SCRIPTS;
use msb_wire::text::Text;

/// Default search path for programs.
pub(crate) const DEFAULT_PATH: &str =
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Variables of every command, in the order in which they were first set; each name once.
#[derive(Debug, Default)]
pub(crate) struct BaseEnvironment {
    entries: Vec<Option<CString>>,
    indices: HashMap<Vec<u8>, usize>,
}

/// Variables of one command.
#[derive(Debug)]
pub(crate) struct Environment<'a> {
    base: &'a BaseEnvironment,
    entries: Vec<Option<Cow<'a, CStr>>>,
    /// Names that are not in the base.
    indices: HashMap<Vec<u8>, usize>,
}

/// Splits `NAME=value`. A name alone removes the variable, as with docker. Returns `None` without a
/// name or with a NUL byte.
fn split(entry: &[u8]) -> Option<(&[u8], Option<CString>)> {
    let equals = entry.iter().position(|byte| *byte == b'=');
    let name = &entry[..equals.unwrap_or(entry.len())];
    if name.is_empty() || entry.contains(&0) {
        return None;
    }
    Some((name, equals.and_then(|_| CString::new(entry).ok())))
}

impl BaseEnvironment {
    /// Returns PATH and HOSTNAME, which docker also sets for every command, and the variables of
    /// the sandbox. If the sandbox has scripts, their directory comes first in PATH.
    pub(crate) fn new(hostname: &str, entries: &[Text], scripts: bool) -> BaseEnvironment {
        let mut base = BaseEnvironment::default();
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
        let path = self.indices.get(&b"PATH"[..]);
        let path = path.and_then(|index| self.entries.get(*index)?.as_deref());
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
        match self.indices.get(name) {
            Some(index) => self.entries[*index] = value,
            None => {
                self.indices.insert(name.to_vec(), self.entries.len());
                self.entries.push(value);
            }
        }
    }

    /// Returns the environment of a command, with or without a terminal.
    pub(crate) fn environment(&self, terminal: bool) -> Environment<'_> {
        let entries =
            self.entries.iter().map(|entry| entry.as_deref().map(Cow::Borrowed)).collect();
        let mut environment = Environment { base: self, entries, indices: HashMap::new() };
        if terminal && !self.indices.contains_key(&b"TERM"[..]) {
            environment.set(b"TERM=xterm");
        }
        environment
    }
}

impl<'a> Environment<'a> {
    fn index(&self, name: &[u8]) -> Option<usize> {
        self.base.indices.get(name).or_else(|| self.indices.get(name)).copied()
    }

    /// Sets a variable (`NAME=value`) or removes it (`NAME`).
    pub(crate) fn set(&mut self, entry: &[u8]) {
        let Some((name, value)) = split(entry) else {
            return;
        };
        let value = value.map(Cow::Owned);
        match self.index(name) {
            Some(index) => self.entries[index] = value,
            None => {
                self.indices.insert(name.to_vec(), self.entries.len());
                self.entries.push(value);
            }
        }
    }

    /// Returns the value of a variable.
    pub(crate) fn get(&self, name: &str) -> Option<&[u8]> {
        let entry = self.entries.get(self.index(name.as_bytes())?)?.as_deref()?;
        entry.to_bytes().get(name.len() + 1..)
    }

    /// Sets a variable that is missing or empty.
    pub(crate) fn set_missing(&mut self, name: &str, value: &[u8]) {
        if self.get(name).is_none_or(<[u8]>::is_empty) {
            self.set(&[name.as_bytes(), b"=", value].concat());
        }
    }

    /// Returns the strings for execve(2).
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
        let base = BaseEnvironment::new(
            "box",
            &["A=image".into(), "B=image".into(), "AB=x".into(), "PATH=/bin".into()],
            false,
        );
        let mut environment = base.environment(false);
        for entry in ["A=own", "C=a=b", "A=last", "C=d"] {
            environment.set(entry.as_bytes());
        }
        assert_eq!(
            joined(environment),
            ["PATH=/bin", "HOSTNAME=box", "A=last", "B=image", "AB=x", "C=d"]
        );
    }

    #[test]
    fn a_name_alone_removes_a_variable() {
        let base =
            BaseEnvironment::new("box", &["HOSTNAME".into(), "=strange".into(), "".into()], false);
        let mut environment = base.environment(true);
        assert_eq!(environment.get("TERM"), Some(&b"xterm"[..]));
        environment.set(b"TERM");
        assert_eq!(environment.get("TERM"), None);
        assert_eq!(joined(environment), [format!("PATH={DEFAULT_PATH}")]);
    }

    #[test]
    fn a_terminal_of_the_sandbox_is_kept() {
        let base = BaseEnvironment::new("box", &["TERM=vt100".into()], false);
        assert_eq!(base.environment(true).get("TERM"), Some(&b"vt100"[..]));
        assert_eq!(BaseEnvironment::new("box", &[], false).environment(false).get("TERM"), None);
    }

    #[test]
    fn defaults_fill_missing_or_empty_variables_only() {
        let base = BaseEnvironment::new("box", &["HOME=".into(), "X=1".into()], false);
        let mut environment = base.environment(false);
        environment.set_missing("HOME", b"/root");
        environment.set_missing("X", b"2");
        assert_eq!(
            (environment.get("HOME"), environment.get("X")),
            (Some(&b"/root"[..]), Some(&b"1"[..]))
        );
    }

    #[test]
    fn scripts_come_first_in_any_path() {
        for (entries, path) in [
            (vec![], DEFAULT_PATH),
            (vec!["PATH=/bin".into()], "/bin"),
            (vec!["PATH=".into()], DEFAULT_PATH),
        ] {
            let base = BaseEnvironment::new("box", &entries, true);
            let expected = format!("{SCRIPTS}:{path}");
            let environment = base.environment(false);
            assert_eq!(environment.get("PATH"), Some(expected.as_bytes()));
        }
    }
}
