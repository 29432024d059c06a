//! Scripts: small programs of the sandbox's user, found by their names in the guest.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::Context;
use clap::Args;
use libmsb::cli::error::Failure;
use libmsb::cli::escape::escape;
use libmsb::state::guest::Change;
use msb_wire::text::Text;

/// Longest script, in bytes. They stand in the sandbox's specification, which has a limit of its own.
const BODY_BYTES_MAX: u64 = 1024 * 1024;
/// All of a sandbox's scripts together, in bytes.
const BODIES_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Longest name, in bytes: that of Linux.
const NAME_BYTES_MAX: usize = 255;

/// What runs a script when no shell is chosen.
const SHELL: &[u8] = b"/bin/sh";

/// The scripts that are typed.
#[derive(Debug, Args)]
pub(super) struct ScriptArgs {
    /// Script for the sandbox's shell; \n, \t, \r, \\, \" and \' in it are what they are in C
    #[arg(long, value_name = "NAME=BODY")]
    script: Vec<String>,
    /// Script, taken as it is
    #[arg(long, value_name = "NAME=BODY")]
    script_raw: Vec<String>,
    /// Script from a file of the host, taken as it is
    #[arg(long, value_name = "NAME:PATH")]
    script_path: Vec<String>,
}

impl ScriptArgs {
    /// Whether there are any.
    pub(super) fn is_given(&self) -> bool {
        !self.script.is_empty() || !self.script_raw.is_empty() || !self.script_path.is_empty()
    }

    /// The scripts. Files are read.
    pub(super) fn changes(&self, shell: Option<&Text>) -> anyhow::Result<Vec<Change>> {
        let mut scripts: Vec<(String, Vec<u8>)> = Vec::new();
        for typed in &self.script {
            let (name, body) = split(typed, '=')?;
            scripts.push((name, complete(body, shell)));
        }
        for typed in &self.script_raw {
            let (name, body) = split(typed, '=')?;
            scripts.push((name, body.as_bytes().to_vec()));
        }
        for typed in &self.script_path {
            let (name, path) = split(typed, ':')?;
            scripts.push((name, read(Path::new(path))?));
        }
        check(&scripts)?;
        let script = |(name, body)| Change::Script {
            name,
            body: Text(body),
        };
        Ok(scripts.into_iter().map(script).collect())
    }
}

fn split(typed: &str, at: char) -> Result<(String, &str), Failure> {
    let (name, rest) = typed.split_once(at).ok_or_else(|| {
        let form = if at == '=' { "NAME=BODY" } else { "NAME:PATH" };
        Failure::usage(format!("'{}' is not of the form {form}", escape(typed)))
    })?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let is_name = name.len() <= NAME_BYTES_MAX
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(plain);
    if !is_name {
        return Err(
            Failure::usage(format!("'{}' cannot be the name of a script", escape(name)))
                .hint("letters, digits, '.', '_' and '-', beginning with a letter or digit"),
        );
    }
    Ok((name.to_owned(), rest))
}

/// A body that was typed on a command line: escapes are resolved, and it gets what a file of a script has.
fn complete(body: &str, shell: Option<&Text>) -> Vec<u8> {
    let mut body = unescape(body).into_bytes();
    if !body.starts_with(b"#!") {
        let shell = shell.map_or(SHELL, Text::as_bytes);
        let finder: &[u8] = if shell.contains(&b'/') {
            b""
        } else {
            b"/usr/bin/env "
        };
        body = [b"#!", finder, shell, b"\n", &body].concat();
    }
    if !body.ends_with(b"\n") {
        body.push(b'\n');
    }
    body
}

/// Other escapes are left as they are.
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

fn check(scripts: &[(String, Vec<u8>)]) -> Result<(), Failure> {
    let mut names = HashSet::new();
    for (name, body) in scripts {
        if !names.insert(name) {
            return Err(Failure::usage(format!("there are two scripts '{name}'")));
        }
        if body.len() as u64 > BODY_BYTES_MAX {
            let message = format!("the script '{name}' is longer than {BODY_BYTES_MAX} bytes");
            return Err(Failure::usage(message).hint("copy it: --copy-file SRC:DST"));
        }
        if body.contains(&0) {
            let message = format!("the script '{name}' holds a NUL byte, as no text does");
            return Err(Failure::usage(message).hint("copy a program: --copy-file SRC:DST"));
        }
    }
    if scripts.iter().map(|(_, body)| body.len()).sum::<usize>() > BODIES_BYTES_MAX {
        return Err(Failure::usage(format!(
            "the scripts are longer than {BODIES_BYTES_MAX} bytes together"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::choices;
    use super::*;

    fn bodies(args: &[&str]) -> Vec<(String, String)> {
        let changes = choices(args).unwrap().spec.changes;
        let script = |change| match change {
            Change::Script { name, body } => Some((name, body.to_lossy())),
            _ => None,
        };
        changes.into_iter().filter_map(script).collect()
    }

    #[test]
    fn a_typed_body_becomes_a_whole_script() {
        for (args, body) in [
            (
                &["--script", r"a=echo\tx\n\q\\"][..],
                "#!/bin/sh\necho\tx\n\\q\\\n",
            ),
            (
                &["--script", "a=x", "--shell", "bash"],
                "#!/usr/bin/env bash\nx\n",
            ),
            (
                &["--script", "a=x\n", "--shell", "/bin/ash"],
                "#!/bin/ash\nx\n",
            ),
            (&["--script", "a=#!/bin/cat\n1"], "#!/bin/cat\n1\n"),
            (&["--script-raw", r"a=x\n"], r"x\n"),
            (&["--script", "a=b=c\\"], "#!/bin/sh\nb=c\\\n"),
        ] {
            assert_eq!(
                bodies(args),
                [("a".to_owned(), body.to_owned())],
                "{args:?}"
            );
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
            assert!(choices(args).is_err(), "{args:?}");
        }
    }
}
