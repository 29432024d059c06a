//! Certificate authorities that the guest trusts besides those of its image.
//!
//! Programs find authorities in different ways, so that all of these are needed: a certificate in
//! every bundle that the image has, in the directories of the distributions' own tools, and variables
//! for programs with a bundle of their own. It is done at each boot and changes nothing the second
//! time. A read-only or unusual root is reported on the console and does not stop the boot.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use msb_wire::boot::BootTrust;
use msb_wire::text::Text;

use crate::console::{log, reason};

/// The certificates alone.
const CERTIFICATES: &str = "/run/msb/tls/ca.pem";
/// Bundles of distributions: Debian, Alpine and Arch; Fedora, old and new; openSUSE; Alpine, macOS's
/// spelling; Nix.
const BUNDLES: [&str; 9] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/var/lib/ca-certificates/ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/etc/pki/tls/cert.pem",
    "/etc/ssl/certs/ca-bundle.crt",
    "/etc/ca-certificates/extracted/tls-ca-bundle.pem",
];
/// Directories from which the tools of distributions make their bundles, with the file's name.
const ANCHORS: [(&str, &str); 4] = [
    ("/usr/local/share/ca-certificates", "msb-sandbox.crt"),
    ("/etc/pki/ca-trust/source/anchors", "msb-sandbox.pem"),
    ("/etc/ca-certificates/trust-source/anchors", "msb-sandbox.pem"),
    ("/etc/pki/trust/anchors", "msb-sandbox.pem"),
];
/// Variables with the path of a bundle.
const BUNDLE_VARIABLES: [&str; 9] = [
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "PIP_CERT",
    "CARGO_HTTP_CAINFO",
    "AWS_CA_BUNDLE",
    "DENO_CERT",
    "PERL_LWP_SSL_CA_FILE",
];
/// Variable with the path of certificates that are trusted in addition.
const EXTRA_VARIABLE: &str = "NODE_EXTRA_CA_CERTS";
/// Longest bundle, in bytes.
const BUNDLE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Lines around the certificates in a bundle.
const BEGIN: &[u8] = b"# msb: begin of the certificates of this sandbox\n";
const END: &[u8] = b"# msb: end of the certificates of this sandbox\n";

/// Makes the guest trust certificates; without any, those of earlier boots are removed. `env` are the
/// variables of the sandbox; returns those to set before them.
pub(crate) fn install(trust: &BootTrust, env: &[Text]) -> Vec<Text> {
    let certificates = trust.certificates.as_bytes();
    if certificates.is_empty() {
        remove(env);
        return Vec::new();
    }
    let report = |what: &Path, error: io::Error| {
        log(&format!("cannot add a certificate to '{}': {}", what.display(), reason(error)));
    };
    if let Err(error) = write_new(Path::new(CERTIFICATES), certificates) {
        report(Path::new(CERTIFICATES), error);
    }
    let mut bundles: Vec<PathBuf> = BUNDLES.iter().map(PathBuf::from).collect();
    bundles.extend(named_bundles(env));
    let mut real: Vec<PathBuf> =
        bundles.iter().filter_map(|path| fs::canonicalize(path).ok()).collect();
    if real.is_empty() {
        // An image without a bundle gets one.
        let path = Path::new(BUNDLES[0]);
        if let Err(error) = write_new(path, &with_block(&[], certificates)) {
            report(path, error);
        }
    }
    real.sort();
    real.dedup();
    for path in &real {
        if let Err(error) = change_bundle(path, |bundle| with_block(bundle, certificates)) {
            report(path, error);
        }
    }
    for (directory, name) in ANCHORS {
        let (directory, path) = (Path::new(directory), Path::new(directory).join(name));
        if directory.is_dir()
            && let Err(error) = write_new(&path, certificates)
        {
            report(&path, error);
        }
    }
    let bundle = BUNDLES.iter().find(|path| Path::new(path).is_file()).unwrap_or(&CERTIFICATES);
    let variables = BUNDLE_VARIABLES.iter().map(|name| format!("{name}={bundle}"));
    let extra = format!("{EXTRA_VARIABLE}={CERTIFICATES}");
    variables.chain([extra]).map(Text::from).collect()
}

/// Removes the certificates of earlier boots.
fn remove(env: &[Text]) {
    let report = |what: &Path, error: io::Error| {
        log(&format!("cannot remove a certificate from '{}': {}", what.display(), reason(error)));
    };
    let mut bundles: Vec<PathBuf> = BUNDLES.iter().map(PathBuf::from).collect();
    bundles.extend(named_bundles(env));
    for path in bundles.iter().filter_map(|path| fs::canonicalize(path).ok()) {
        if let Err(error) = change_bundle(&path, without_block) {
            report(&path, error);
        }
    }
    let anchors = ANCHORS.iter().map(|(directory, name)| Path::new(directory).join(name));
    for path in anchors.chain([PathBuf::from(CERTIFICATES)]) {
        match fs::remove_file(&path) {
            Err(error) if !is_missing(&error) => report(&path, error),
            _ => {}
        }
    }
}

/// Returns whether an error means that there is no such file.
fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Returns the bundles that variables of the sandbox name.
fn named_bundles(env: &[Text]) -> Vec<PathBuf> {
    let names = BUNDLE_VARIABLES.iter().chain([&EXTRA_VARIABLE]);
    let values = names.flat_map(|name| {
        let prefix = format!("{name}=");
        env.iter().filter_map(move |entry| entry.as_bytes().strip_prefix(prefix.as_bytes()))
    });
    let paths = values.map(|value| PathBuf::from(OsStr::from_bytes(value)));
    paths.filter(|path| path.is_absolute()).collect()
}

/// Returns a bundle with one block of these certificates at its end.
fn with_block(bundle: &[u8], certificates: &[u8]) -> Vec<u8> {
    let mut out = without_block(bundle);
    if out.last().is_some_and(|byte| *byte != b'\n') {
        out.push(b'\n');
    }
    out.extend_from_slice(BEGIN);
    out.extend_from_slice(certificates);
    if certificates.last() != Some(&b'\n') {
        out.push(b'\n');
    }
    out.extend_from_slice(END);
    out
}

/// Returns a bundle without the blocks that were added to it. An incomplete block is left.
fn without_block(bundle: &[u8]) -> Vec<u8> {
    let find = |text: &[u8], line: &[u8]| text.windows(line.len()).position(|part| part == line);
    let (mut out, mut rest) = (Vec::new(), bundle);
    while let Some(start) = find(rest, BEGIN)
        && let Some(end) = find(&rest[start..], END)
    {
        out.extend_from_slice(&rest[..start]);
        rest = &rest[start + end + END.len()..];
    }
    out.extend_from_slice(rest);
    out
}

/// Replaces a bundle by what `change` makes of it, with its owner and mode.
fn change_bundle(path: &Path, change: impl FnOnce(&[u8]) -> Vec<u8>) -> io::Result<()> {
    let facts = fs::metadata(path)?;
    if !facts.is_file() || facts.len() > BUNDLE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a bundle of certificates"));
    }
    let mut bundle = Vec::new();
    File::open(path)?.take(BUNDLE_BYTES_MAX).read_to_end(&mut bundle)?;
    let wanted = change(&bundle);
    if wanted == bundle {
        return Ok(());
    }
    replace(path, &wanted, |file| {
        fchown(file, Some(facts.uid()), Some(facts.gid()))?;
        file.set_permissions(fs::Permissions::from_mode(facts.mode() & 0o7777))
    })
}

/// Writes a file that every user may read, unless it has these contents.
fn write_new(path: &Path, contents: &[u8]) -> io::Result<()> {
    if fs::read(path).is_ok_and(|old| old == contents) {
        return Ok(());
    }
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    replace(path, contents, |file| file.set_permissions(fs::Permissions::from_mode(0o644)))
}

/// Replaces a file, so that no program reads a half of it.
fn replace(
    path: &Path,
    contents: &[u8],
    prepare: impl FnOnce(&File) -> io::Result<()>,
) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".msb-new");
    let temporary = PathBuf::from(name);
    let _ = fs::remove_file(&temporary);
    let mut file = File::options().write(true).create_new(true).open(&temporary)?;
    let written = prepare(&file).and_then(|()| file.write_all(contents));
    let renamed = written.and_then(|()| fs::rename(&temporary, path));
    if renamed.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    renamed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_has_one_block_however_often_it_is_added() {
        let once = with_block(b"one", b"cert\n");
        assert_eq!(once, [b"one\n", BEGIN, b"cert\n", END].concat());
        assert_eq!(with_block(&once, b"cert\n"), once);
        let other = with_block(&once, b"other");
        assert_eq!(other, [b"one\n", BEGIN, b"other\n", END].concat());
        assert_eq!(without_block(&[&other[..], b"two\n"].concat()), b"one\ntwo\n");
        assert_eq!(without_block(&[b"one\n", BEGIN].concat()), [b"one\n", BEGIN].concat());
        let latin = with_block(b"# \xe9\n", b"cert\n");
        assert!(latin.starts_with(b"# \xe9\n"));
    }

    #[test]
    fn a_bundle_keeps_its_mode_and_is_not_written_twice() {
        let directory =
            std::env::temp_dir().join(format!("msb-agent-trust-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join("bundle");
        fs::write(&path, "one\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let add = |path: &Path| change_bundle(path, |bundle| with_block(bundle, b"cert\n"));
        add(&path).unwrap();
        let first = fs::metadata(&path).unwrap();
        assert_eq!(first.mode() & 0o7777, 0o640);
        add(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().ino(), first.ino());
        assert!(add(&directory).is_err());
        change_bundle(&path, without_block).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"one\n");
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn bundles_that_the_image_names_are_found() {
        let env = ["SSL_CERT_FILE=/opt/a.pem".into(), "PIP_CERT=b.pem".into(), "X=/c".into()];
        assert_eq!(named_bundles(&env), [PathBuf::from("/opt/a.pem")]);
    }
}
