//! Scripts: small programs that the user adds to the guest and runs by name.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::Context;
use clap::Args;
use libmsb::cli::error::Failure;
use libmsb::cli::escape::escape;
use libmsb::state::guest::GuestChange;
use msb_wire::text::Text;

/// Longest script, in bytes. Scripts are part of the sandbox's specification, which has its own
/// limit.
const BODY_BYTES_MAX: u64 = 1024 * 1024;
/// Longest name, in bytes: `NAME_MAX` of Linux.
const NAME_BYTES_MAX: usize = 255;

/// Default interpreter of scripts.
const SHELL: &[u8] = b"/bin/sh";

/// Options that add scripts.
#[derive(Debug, Args)]
pub(super) struct ScriptArgs {
    /// Add a script for the shell of the sandbox; \n, \t, \r, \\, \" and \' as in C
    ///
    /// The script is the file NAME in `/.msb/scripts` of the guest. That directory comes first in
    /// the `$PATH` of commands; a login shell may set another `$PATH`. Without a first line that
    /// starts with `#!`, the script is run by the shell of the sandbox.
    #[arg(long, value_name = "NAME=BODY", help_heading = "Guest setup")]
    script: Vec<String>,
    /// Add a script without processing escapes
    #[arg(long, value_name = "NAME=BODY", help_heading = "Guest setup")]
    script_raw: Vec<String>,
    /// Add a script from a file of the host
    ///
    /// The file is read when the sandbox is created.
    #[arg(long, value_name = "NAME:PATH", help_heading = "Guest setup")]
    script_path: Vec<String>,
}

impl ScriptArgs {
    /// Returns whether any script was given.
    pub(super) fn is_given(&self) -> bool {
        !self.script.is_empty() || !self.script_raw.is_empty() || !self.script_path.is_empty()
    }

    /// Returns the scripts. Reads the script files.
    pub(super) fn changes(&self, shell: Option<&Text>) -> anyhow::Result<Vec<GuestChange>> {
        let mut scripts: Vec<(String, Vec<u8>)> = Vec::new();
        for typed in &self.script {
            let (name, body) = split(typed, '=')?;
            scripts.push((name, complete_script(body, shell)));
        }
        for typed in &self.script_raw {
            let (name, body) = split(typed, '=')?;
            scripts.push((name, body.as_bytes().to_vec()));
        }
        for typed in &self.script_path {
            let (name, path) = split(typed, ':')?;
            scripts.push((name, read(Path::new(path))?));
        }
        check_names(&scripts)?;
        scripts.iter().try_for_each(|(name, body)| check_body(name, body))?;
        let script = |(name, body)| GuestChange::Script { name, body: Text(body) };
        Ok(scripts.into_iter().map(script).collect())
    }
}

fn split(typed: &str, at: char) -> Result<(String, &str), Failure> {
    let (name, rest) = typed.split_once(at).ok_or_else(|| {
        let form = if at == '=' { "NAME=BODY" } else { "NAME:PATH" };
        Failure::usage(format!("'{}' is not of the form {form}", escape(typed)))
    })?;
    check_name(name)?;
    Ok((name.to_owned(), rest))
}

pub(super) fn check_name(name: &str) -> Result<(), Failure> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let is_name = name.len() <= NAME_BYTES_MAX
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(plain);
    if !is_name {
        return Err(Failure::usage(format!("invalid script name '{}'", escape(name)))
            .hint("use letters, digits, '.', '_' and '-'; start with a letter or digit"));
    }
    Ok(())
}

/// Completes a body typed on the command line: resolves escapes, adds a `#!` line and a final
/// newline.
fn complete_script(body: &str, shell: Option<&Text>) -> Vec<u8> {
    let mut body = unescape(body).into_bytes();
    if !body.starts_with(b"#!") {
        let shell = shell.map_or(SHELL, Text::as_bytes);
        let prefix: &[u8] = if shell.contains(&b'/') { b"" } else { b"/usr/bin/env " };
        body = [b"#!", prefix, shell, b"\n", &body].concat();
    }
    if !body.ends_with(b"\n") {
        body.push(b'\n');
    }
    body
}

/// Resolves backslash escapes. Leaves unknown ones unchanged.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        if letter != '\\' {
            out.push(letter);
            continue;
        }
        match letters.next() {
            Some('n') => out.push('\n'),
            Some('t') => out.push('\t'),
            Some('r') => out.push('\r'),
            Some(same @ ('\\' | '"' | '\'')) => out.push(same),
            Some(other) => out.extend(['\\', other]),
            None => out.push('\\'),
        }
    }
    out
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let shown = path.display();
    let file = File::open(path).with_context(|| format!("cannot open the script '{shown}'"))?;
    let mut body = Vec::new();
    file.take(BODY_BYTES_MAX + 1)
        .read_to_end(&mut body)
        .with_context(|| format!("cannot read the script '{shown}'"))?;
    Ok(body)
}

fn check_names(scripts: &[(String, Vec<u8>)]) -> Result<(), Failure> {
    let mut names = HashSet::new();
    match scripts.iter().find(|(name, _)| !names.insert(name)) {
        Some((name, _)) => Err(Failure::usage(format!("duplicate script name '{name}'"))),
        None => Ok(()),
    }
}

/// Checks a complete script.
pub(super) fn check_body(name: &str, body: &[u8]) -> Result<(), Failure> {
    if body.len() as u64 > BODY_BYTES_MAX {
        let message = format!("the script '{name}' is longer than {BODY_BYTES_MAX} bytes");
        return Err(Failure::usage(message).hint("copy it: --copy-file SRC:DST"));
    }
    if body.contains(&0) {
        let message = format!("the script '{name}' contains a NUL byte");
        return Err(Failure::usage(message).hint("copy a program: --copy-file SRC:DST"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::options;
    use super::*;

    fn bodies(args: &[&str]) -> Vec<(String, String)> {
        let changes = options(args).unwrap().spec.changes;
        let script = |change| match change {
            GuestChange::Script { name, body } => Some((name, body.to_lossy())),
            _ => None,
        };
        changes.into_iter().filter_map(script).collect()
    }

    #[test]
    fn a_typed_body_becomes_a_complete_script() {
        for (args, body) in [
            (&["--script", r"a=echo\tx\n\q\\"][..], "#!/bin/sh\necho\tx\n\\q\\\n"),
            (&["--script", "a=x", "--shell", "bash"], "#!/usr/bin/env bash\nx\n"),
            (&["--script", "a=x\n", "--shell", "/bin/ash"], "#!/bin/ash\nx\n"),
            (&["--script", "a=#!/bin/cat\n1"], "#!/bin/cat\n1\n"),
            (&["--script-raw", r"a=x\n"], r"x\n"),
            (&["--script", "a=b=c\\"], "#!/bin/sh\nb=c\\\n"),
        ] {
            assert_eq!(bodies(args), [("a".to_owned(), body.to_owned())], "{args:?}");
        }
    }

    #[test]
    fn a_file_is_taken_as_it_is() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "as\\n it is").unwrap();
        let typed = format!("run.sh:{}", file.path().display());
        let expected = [("run.sh".to_owned(), "as\\n it is".to_owned())];
        assert_eq!(bodies(&["--script-path", &typed]), expected);
    }

    #[test]
    fn names_are_names_and_given_once() {
        for args in [
            &["--script", "a"][..],
            &["--script", "=x"],
            &["--script", "a/b=x"],
            &["--script", "..=x"],
            &["--script", "a=x", "--script-raw", "a=y"],
            &["--script-path", "a:/nowhere"],
        ] {
            assert!(options(args).is_err(), "{args:?}");
        }
    }
}
