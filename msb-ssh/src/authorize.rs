//! `msb ssh authorize` and `msb ssh keys`: the file of keys that are let in to every sandbox of this user.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use libmsb::cli::error::{self, Failure, print_hint, print_note, print_warning};
use libmsb::cli::escape::escape;
use libmsb::cli::output;
use libmsb::state::lock::Lock;
use libmsb::state::{Home, layout, write};
use russh::keys::HashAlg;
use serde::Serialize;

use crate::TOOL;
use crate::arguments::{AuthorizeArgs, KeysArgs};
use crate::authorized::{self, Entry};
use crate::identity;
use crate::limits::KEYS_FILE_BYTES;

/// Bits of a mode that let others write.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// The file of authorized keys.
pub(crate) fn path(home: &Home) -> PathBuf {
    identity::folder(home).join(layout::AUTHORIZED_KEYS)
}

/// All entries of the file that can be used; nothing when there is no file.
pub(crate) fn entries(
    home: &Home,
    mut unusable: impl FnMut(usize, String),
) -> anyhow::Result<Vec<Entry>> {
    let text = read(&path(home))?;
    let mut entries = Vec::new();
    for (number, entry) in authorized::parse(&text) {
        match entry {
            Ok(entry) => entries.push(entry),
            Err(why) => unusable(number, why.to_string()),
        }
    }
    Ok(entries)
}

/// Says why the file lets nobody in, while the server goes on: the owner's own key counts without it.
pub(crate) fn warn(error: &anyhow::Error) {
    let why = error::message(error);
    print_warning(
        TOOL,
        &format!("no key of the file of keys is let in: {why}"),
    );
    if let Some(hint) = error::hint(error) {
        print_hint(TOOL, hint);
    }
}

/// A file that others could have written says nothing about who may come in. As StrictModes of sshd_config(5).
fn read(path: &Path) -> anyhow::Result<String> {
    let Some(bytes) = write::read_bounded(path, KEYS_FILE_BYTES)? else {
        return Ok(String::new());
    };
    let real = path
        .canonicalize()
        .with_context(|| format!("cannot read '{}'", path.display()))?;
    // The file, its folder, and that one's, which is the state directory unless the file is a link: who can write to a
    // folder can put another file there.
    for place in real.ancestors().take(3) {
        ours_alone(place)?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Whether nobody but root and us can write there.
fn ours_alone(place: &Path) -> anyhow::Result<()> {
    let metadata =
        std::fs::metadata(place).with_context(|| format!("cannot read '{}'", place.display()))?;
    let us = rustix::process::geteuid().as_raw();
    let hint = if !is_trusted(metadata.uid(), us) {
        format!("if they have not: chown {us} '{}'", place.display())
    } else if metadata.mode() & WRITABLE_BY_OTHERS != 0 {
        format!("if they have not: chmod go-w '{}'", place.display())
    } else {
        return Ok(());
    };
    let message = format!(
        "others can let keys in: they can write to '{}'",
        place.display()
    );
    Err(Failure::failed(message).hint(hint).into())
}

/// Whether what this user owns may be believed.
fn is_trusted(owner: u32, us: u32) -> bool {
    owner == us || owner == 0
}

/// Adds keys. One that is there already stays as it is.
pub(crate) fn run(args: &AuthorizeArgs) -> anyhow::Result<()> {
    let home = Home::from_env()?;
    let added = given(args)?;
    home.prepare()?;
    write::create_dir(&identity::folder(&home))?;
    let path = path(&home);
    let _held = Lock::exclusive(&identity::folder(&home).join(layout::LOCK))?;
    let mut text = read(&path)?;
    let mut known: Vec<_> = authorized::parse(&text)
        .filter_map(|(_, entry)| Some(entry.ok()?.key.key_data().clone()))
        .collect();
    for (line, entry) in added {
        let print = entry.key.fingerprint(HashAlg::Sha256);
        if known.contains(entry.key.key_data()) {
            print_note(TOOL, &format!("the key {print} is let in already"));
            continue;
        }
        known.push(entry.key.key_data().clone());
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str(&line);
        text.push('\n');
        print_note(TOOL, &format!("the key {print} is let in now"));
    }
    write::replace(&path, text.as_bytes())
}

/// The lines that were given, each with a key.
fn given(args: &AuthorizeArgs) -> anyhow::Result<Vec<(String, Entry)>> {
    let (text, what) = match (&args.file, &args.key) {
        (Some(file), _) => {
            let bytes = write::read_bounded(file, KEYS_FILE_BYTES)?;
            let bytes = bytes.ok_or_else(|| {
                Failure::not_found(format!("there is no file '{}'", file.display()))
            })?;
            let text = String::from_utf8_lossy(&bytes).into_owned();
            (text, format!("'{}'", file.display()))
        }
        (None, Some(key)) => (key.clone(), "what was given".to_owned()),
        (None, None) => (read_stdin()?, "standard input".to_owned()),
    };
    if text.contains("PRIVATE KEY") {
        let failure = Failure::failed(format!("{what} is a private key"));
        return Err(failure
            .hint("give the public one: its name ends in .pub")
            .into());
    }
    let mut keys = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let entry = authorized::parse_line(line)
            .map_err(|why| Failure::failed(format!("cannot use '{}': {why}", escape(line))))?;
        keys.push((line.to_owned(), entry));
    }
    if keys.is_empty() {
        return Err(Failure::failed(format!("there is no key in {what}")).into());
    }
    Ok(keys)
}

fn read_stdin() -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    std::io::stdin()
        .take(KEYS_FILE_BYTES)
        .read_to_end(&mut bytes)
        .context("cannot read standard input")?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// One key, for programs.
#[derive(Serialize)]
struct Record<'a> {
    algorithm: String,
    fingerprint: String,
    comment: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    options: &'a str,
}

impl<'a> Record<'a> {
    fn of(entry: &'a Entry) -> Record<'a> {
        Record {
            algorithm: entry.key.algorithm().to_string(),
            fingerprint: entry.key.fingerprint(HashAlg::Sha256).to_string(),
            comment: entry.key.comment().as_str_lossy().to_string(),
            options: &entry.options,
        }
    }
}

/// Lists the keys.
pub(crate) fn list(args: &KeysArgs) -> anyhow::Result<()> {
    let home = Home::from_env()?;
    let path = path(&home);
    let entries = entries(&home, |number, why| {
        let place = format!("line {number} of '{}'", path.display());
        print_warning(TOOL, &format!("{place} lets nobody in: {why}"));
    })?;
    let records: Vec<Record> = entries.iter().map(Record::of).collect();
    if args.format.is_some() {
        return Ok(output::print_json(&records)?);
    }
    for record in &records {
        let line = format!(
            "{} {} {} {}",
            record.fingerprint,
            record.algorithm,
            escape(&record.comment),
            escape(record.options)
        );
        output::print(line.trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, set_permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_that_others_could_have_written_is_not_read() {
        let home = tempfile::tempdir().unwrap();
        let root = home.path().canonicalize().unwrap();
        let folder = root.join("ssh");
        write::create_dir(&folder).unwrap();
        let path = folder.join("authorized_keys");
        assert_eq!(read(&path).unwrap(), "");
        write::replace(&path, b"# nobody").unwrap();
        assert_eq!(read(&path).unwrap(), "# nobody");
        for (place, mode) in [(&path, 0o620), (&folder, 0o702), (&root, 0o720)] {
            set_permissions(place, Permissions::from_mode(mode)).unwrap();
            let error = read(&path).unwrap_err();
            let told = format!("they can write to '{}'", place.display());
            assert!(error.to_string().ends_with(&told), "{error}");
            let failure: &Failure = error.downcast_ref().unwrap();
            let remedy = format!("if they have not: chmod go-w '{}'", place.display());
            assert_eq!(failure.hint_text(), Some(&*remedy));
            set_permissions(place, Permissions::from_mode(0o700)).unwrap();
        }
        // What all may read is no harm.
        set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        assert!(read(&path).is_ok());
    }

    #[test]
    fn a_file_is_to_be_ones_own_or_roots() {
        assert!(is_trusted(1000, 1000) && is_trusted(0, 1000));
        assert!(!is_trusted(1001, 1000) && !is_trusted(1000, 0));
    }
}
