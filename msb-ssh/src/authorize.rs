//! `msb ssh authorize` and `msb ssh keys`: the authorized_keys file, which holds for every sandbox
//! of this user.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use libmsb::cli::error::{self, Failure, print_note, print_warning, print_warning_with_hint};
use libmsb::cli::escape::escape;
use libmsb::cli::output;
use libmsb::state::lock::Lock;
use libmsb::state::{Home, layout, write};
use russh::keys::HashAlg;
use russh::keys::ssh_key::Fingerprint;
use serde::Serialize;

use crate::args::{AuthorizeArgs, KeysArgs};
use crate::authorized::{self, AuthorizedKey};
use crate::identity;
use crate::limits::KEYS_FILE_BYTES;
use crate::tool::TOOL;

/// Mode bits that allow group or others to write.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// Returns the path of the authorized_keys file.
pub(crate) fn path(home: &Home) -> PathBuf {
    identity::directory(home).join(layout::AUTHORIZED_KEYS)
}

/// Returns the usable entries of the file, and none if there is no file. Calls `unusable` with the
/// line number and the reason for each of the others.
pub(crate) fn entries(
    home: &Home,
    mut unusable: impl FnMut(usize, String),
) -> anyhow::Result<Vec<AuthorizedKey>> {
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

/// Warns that the file cannot be used. The server continues: the owner's own key is accepted
/// without it.
pub(crate) fn warn_unusable_file(error: &anyhow::Error) {
    let why = error::message(error);
    let warning = format!("the authorized_keys file is not used: {why}");
    match error::hint(error) {
        Some(hint) => print_warning_with_hint(TOOL, &warning, hint),
        None => print_warning(TOOL, &warning),
    }
}

/// Reads the file, and refuses it if another user could have written it. Same as StrictModes of
/// sshd_config(5).
fn read(path: &Path) -> anyhow::Result<String> {
    let Some(bytes) = write::read_bounded(path, KEYS_FILE_BYTES)? else {
        return Ok(String::new());
    };
    let real = path.canonicalize().with_context(|| format!("cannot read '{}'", path.display()))?;
    // Check the file, its directory, and the parent of that, which is the state directory unless
    // the file is a symbolic link: write access to a directory is enough to replace the file.
    for place in real.ancestors().take(3) {
        check_not_writable_by_others(place)?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Checks that only root and this user can write to `path`.
fn check_not_writable_by_others(place: &Path) -> anyhow::Result<()> {
    let metadata =
        std::fs::metadata(place).with_context(|| format!("cannot read '{}'", place.display()))?;
    let us = rustix::process::geteuid().as_raw();
    let hint = if !is_trusted(metadata.uid(), us) {
        format!("check its contents, then: chown {us} '{}'", place.display())
    } else if metadata.mode() & WRITABLE_BY_OTHERS != 0 {
        format!("check its contents, then: chmod go-w '{}'", place.display())
    } else {
        return Ok(());
    };
    let message = format!("cannot trust '{}': other users can write to it", place.display());
    Err(Failure::failed(message).hint(hint).into())
}

/// Returns whether files of this owner are trusted: root or this user.
fn is_trusted(owner: u32, us: u32) -> bool {
    owner == us || owner == 0
}

/// Adds keys. A key that is there already gets the new options if they are at least as strict.
pub(crate) fn run(args: &AuthorizeArgs) -> anyhow::Result<()> {
    let home = Home::from_env()?;
    let added = read_keys(args)?;
    home.prepare()?;
    write::create_dir(&identity::directory(&home))?;
    let path = path(&home);
    let _held = lock(&home)?;
    let mut text = read(&path)?;
    let mut notes = Vec::new();
    for (line, entry) in added {
        let (changed, note) = add_key(&text, &line, &entry)?;
        text = changed;
        notes.push(note);
    }
    write::replace(&path, text.as_bytes())?;
    for note in notes {
        print_note(TOOL, &note);
    }
    Ok(())
}

/// Locks the file for a change.
fn lock(home: &Home) -> anyhow::Result<Lock> {
    Lock::exclusive(&identity::directory(home).join(layout::LOCK))
}

/// Returns the file with the key added or changed, and a note for the user. Options are never
/// loosened here: a restriction stays until the key is removed.
fn add_key(file: &str, line: &str, entry: &AuthorizedKey) -> anyhow::Result<(String, String)> {
    let print = entry.key.fingerprint(HashAlg::Sha256);
    let is_same = |other: &AuthorizedKey| other.key.key_data() == entry.key.key_data();
    let there: Vec<(usize, AuthorizedKey)> = authorized::parse(file)
        .filter_map(|(number, entry)| Some((number, entry.ok()?)))
        .filter(|(_, other)| is_same(other))
        .collect();
    let Some((first, _)) = there.first() else {
        let end = if file.is_empty() || file.ends_with('\n') { "" } else { "\n" };
        let note = format!("the key {print} is authorized now");
        return Ok((format!("{file}{end}{line}\n"), note));
    };
    if there.iter().all(|(_, other)| other.grant == entry.grant) {
        let note = format!("the key {print} is authorized already");
        return Ok((file.to_owned(), note));
    }
    let looser = |(_, other): &&(usize, AuthorizedKey)| !entry.grant.is_as_strict_as(&other.grant);
    if let Some((_, other)) = there.iter().find(looser) {
        let message = format!(
            "the key {print} is authorized already, with the options '{}': the new options would allow more",
            escape(&other.options)
        );
        let hint = format!("to change its options, remove it first: msb ssh keys --remove {print}");
        return Err(Failure::wrong_state(message).hint(hint).into());
    }
    let numbers: Vec<usize> = there.iter().map(|(number, _)| *number).collect();
    let mut changed = String::with_capacity(file.len() + line.len());
    for (at, old) in file.lines().enumerate() {
        match at + 1 {
            number if number == *first => changed.extend([line, "\n"]),
            number if numbers.contains(&number) => {}
            _ => changed.extend([old, "\n"]),
        }
    }
    let options = escape(&entry.options);
    let note = format!("the key {print} is authorized with the options '{options}' now");
    Ok((changed, note))
}

/// Removes a key with all of its lines, including unusable ones.
fn remove(home: &Home, key: &str) -> anyhow::Result<()> {
    let path = path(home);
    let print = fingerprint(key)?;
    let missing = || {
        Failure::not_found(format!("the key {print} is not authorized"))
            .hint("list the keys: msb ssh keys")
    };
    if !path.exists() {
        return Err(missing().into());
    }
    let _held = lock(home)?;
    let text = read(&path)?;
    let is_it = |line: &str| {
        authorized::key_of(line)
            .is_some_and(|key| key.fingerprint(HashAlg::Sha256).to_string() == print)
    };
    let mut left = String::with_capacity(text.len());
    for line in text.lines().filter(|line| !is_it(line)) {
        left.extend([line, "\n"]);
    }
    if text.lines().count() == left.lines().count() {
        return Err(missing().into());
    }
    write::replace(&path, left.as_bytes())?;
    print_note(TOOL, &format!("the key {print} was removed"));
    Ok(())
}

/// Returns the fingerprint for an argument, which is a fingerprint or a public key.
fn fingerprint(typed: &str) -> anyhow::Result<String> {
    if let Some(key) = authorized::key_of(typed) {
        return Ok(key.fingerprint(HashAlg::Sha256).to_string());
    }
    typed
        .trim()
        .parse::<Fingerprint>()
        .ok()
        .filter(|print| print.algorithm() == HashAlg::Sha256)
        .map(|print| print.to_string())
        .ok_or_else(|| {
            let message = format!("'{}' is neither a public key nor a fingerprint", escape(typed));
            Failure::usage(message)
                .hint("give SHA256:... as 'msb ssh keys' prints it, or the public key in quotes")
                .into()
        })
}

/// Reads the lines that are to be added, and parses each.
fn read_keys(args: &AuthorizeArgs) -> anyhow::Result<Vec<(String, AuthorizedKey)>> {
    let (text, what) = match (&args.file, &args.key) {
        (Some(file), _) => {
            let bytes = write::read_bounded(file, KEYS_FILE_BYTES)?;
            let bytes = bytes.ok_or_else(|| {
                Failure::not_found(format!(
                    "cannot open '{}': no such file or directory",
                    file.display()
                ))
            })?;
            let text = String::from_utf8_lossy(&bytes).into_owned();
            (text, format!("'{}'", file.display()))
        }
        (None, Some(key)) => (key.clone(), "the argument of --key".to_owned()),
        (None, None) => (read_stdin()?, "standard input".to_owned()),
    };
    if text.contains("PRIVATE KEY") {
        let failure = Failure::failed(format!("{what} is a private key"));
        return Err(failure.hint("give the public key: its file name ends in .pub").into());
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
        return Err(Failure::failed(format!("{what} contains no key")).into());
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

/// One key in the JSON output.
#[derive(Serialize)]
struct KeyRecord<'a> {
    algorithm: String,
    fingerprint: String,
    comment: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    options: &'a str,
}

impl<'a> KeyRecord<'a> {
    fn of(entry: &'a AuthorizedKey) -> KeyRecord<'a> {
        KeyRecord {
            algorithm: entry.key.algorithm().to_string(),
            fingerprint: entry.key.fingerprint(HashAlg::Sha256).to_string(),
            comment: entry.key.comment().as_str_lossy().to_string(),
            options: &entry.options,
        }
    }
}

/// Lists the keys, or removes one.
pub(crate) fn keys(args: &KeysArgs) -> anyhow::Result<()> {
    let home = Home::from_env()?;
    match &args.remove {
        Some(key) => remove(&home, key),
        None => list(&home, args),
    }
}

fn list(home: &Home, args: &KeysArgs) -> anyhow::Result<()> {
    let path = path(home);
    let entries = entries(home, |number, why| {
        let place = format!("line {number} of '{}'", path.display());
        print_warning(TOOL, &format!("ignoring {place}: {why}"));
    })?;
    let records: Vec<KeyRecord> = entries.iter().map(KeyRecord::of).collect();
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
    fn a_file_that_others_can_write_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let root = home.path().canonicalize().unwrap();
        let directory = root.join("ssh");
        write::create_dir(&directory).unwrap();
        let path = directory.join("authorized_keys");
        assert_eq!(read(&path).unwrap(), "");
        write::replace(&path, b"# nobody").unwrap();
        assert_eq!(read(&path).unwrap(), "# nobody");
        for (place, mode) in [(&path, 0o620), (&directory, 0o702), (&root, 0o720)] {
            set_permissions(place, Permissions::from_mode(mode)).unwrap();
            let error = read(&path).unwrap_err();
            let told = format!("cannot trust '{}': other users can write to it", place.display());
            assert!(error.to_string().ends_with(&told), "{error}");
            let failure: &Failure = error.downcast_ref().unwrap();
            let remedy = format!("check its contents, then: chmod go-w '{}'", place.display());
            assert_eq!(failure.hint_text(), Some(&*remedy));
            set_permissions(place, Permissions::from_mode(0o700)).unwrap();
        }
        // Read access for others is harmless.
        set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        assert!(read(&path).is_ok());
    }

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti";

    /// Returns the file after `line` was added, or the error.
    fn after(file: &str, line: &str) -> Result<String, String> {
        let entry = authorized::parse_line(line).unwrap();
        add_key(file, line, &entry).map(|(file, _)| file).map_err(|error| error.to_string())
    }

    #[test]
    fn stricter_options_replace_existing_ones() {
        let plain = format!("# mine\n{KEY} ann\nnonsense\npty {KEY}\n");
        let strict = format!("restrict,command=\"ls\" {KEY}");
        let file = after(&plain, &strict).unwrap();
        assert_eq!(file, format!("# mine\n{strict}\nnonsense\n"));
        // Looser options are refused; equal ones change nothing.
        let refused = after(&file, KEY).unwrap_err();
        assert!(refused.contains("would allow more"), "{refused}");
        assert!(after(&file, &format!("restrict,command=\"id\" {KEY}")).is_err());
        assert_eq!(after(&file, &format!("{strict} again")).unwrap(), file);
        assert_eq!(after("# no end", KEY).unwrap(), format!("# no end\n{KEY}\n"));
    }

    #[test]
    fn a_key_is_named_by_itself_or_its_fingerprint() {
        let print = fingerprint(&format!("restrict {KEY} ann")).unwrap();
        assert!(print.starts_with("SHA256:"), "{print}");
        assert_eq!(fingerprint(&print).unwrap(), print);
        for bad in ["", "SHA256:", "ann", "MD5:00", "SHA256:short"] {
            assert!(fingerprint(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_trusted_file_belongs_to_this_user_or_root() {
        assert!(is_trusted(1000, 1000) && is_trusted(0, 1000));
        assert!(!is_trusted(1001, 1000) && !is_trusted(1000, 0));
    }
}
