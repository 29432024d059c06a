//! Syntax of one mount argument: `SOURCE:TARGET[:OPTION,…]`, `TARGET[:SIZE][:OPTION,…]`.
//!
//! The start of the source decides its kind, never what exists on the host. A name is a volume; a
//! path (`/…`, `./…`, `../…`, `.`, `..`) is a directory or file of the host. So a typing mistake
//! cannot turn one into the other.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use libmsb::cli::args::parse_memory;
use libmsb::cli::error::Failure;
use libmsb::cli::escape::escape;
use libmsb::machine::DiskImageFormat;
use libmsb::state::mounts::{Mount, Source};
use msb_wire::text::Text;

/// Longest target, in bytes: `PATH_MAX` of Linux.
const TARGET_BYTES_MAX: usize = 4096;

/// Longest file system name, in bytes.
const FSTYPE_BYTES_MAX: usize = 32;

/// Directories below which nothing may be mounted: the guest's kernel uses them.
const RESERVED: [&str; 3] = ["/proc", "/sys", "/dev"];

/// Options of microsandbox that are refused rather than ignored, with the reason.
const REFUSED: [(&str, &str); 2] = [
    ("stat-virt", "a shared directory always has the owners and permissions of its files"),
    ("host-perms", "permissions set by the guest always apply to the files on the host"),
];

/// Parses `-v`: a volume name, or the path of a directory or file.
pub(crate) fn volume(typed: &OsStr) -> Result<Mount, Failure> {
    let (source, target, options) = split(typed)?;
    let source = if is_path(source) {
        Source::Bind { source: Text(source.to_vec()) }
    } else {
        named_volume(typed, source)?
    };
    with_flags(Mount::new(self::target(target)?, source), &options)
}

/// Parses `--mount-dir` or `--mount-file`. The option states the kind, so the source may be any
/// path.
pub(crate) fn path(typed: &OsStr) -> Result<Mount, Failure> {
    let (source, target, options) = split(typed)?;
    let source = Source::Bind { source: Text(source.to_vec()) };
    with_flags(Mount::new(self::target(target)?, source), &options)
}

/// Parses `--mount-named`: the name of an existing volume.
pub(crate) fn named(typed: &OsStr) -> Result<Mount, Failure> {
    let (source, target, options) = split(typed)?;
    with_flags(Mount::new(self::target(target)?, named_volume(typed, source)?), &options)
}

pub(super) fn named_volume(typed: &OsStr, source: &[u8]) -> Result<Source, Failure> {
    let name = std::str::from_utf8(source)
        .map_err(|_| invalid_mount(typed, "the volume name is not UTF-8"))?;
    Ok(Source::Volume { name: name.parse()? })
}

fn with_flags(mut mount: Mount, options: &[&str]) -> Result<Mount, Failure> {
    for option in options {
        set_flag(&mut mount, option)?;
    }
    Ok(mount)
}

/// Parses `--mount-disk`: an image with a file system. The format is given or follows from the end
/// of the name. It is never guessed from the contents, which a guest may have written.
pub(crate) fn disk(typed: &OsStr) -> Result<Mount, Failure> {
    let (source, target, options) = split(typed)?;
    let mut format = format_of_name(source);
    let mut fstype = None;
    let mut flags = Vec::new();
    for option in options {
        match option.split_once('=') {
            Some(("format", word)) => format = Some(parse_format(word)?),
            Some(("fstype", word)) => fstype = Some(parse_fstype(word)?),
            _ => flags.push(option),
        }
    }
    let format = format.ok_or_else(|| {
        invalid_mount(typed, "the disk format is missing").hint("add format=raw or format=qcow2")
    })?;
    let source = Source::Disk { source: Text(source.to_vec()), format, fstype };
    with_flags(Mount::new(self::target(target)?, source), &flags)
}

/// Parses `--tmpfs`: a target, then optionally a size and options.
pub(crate) fn tmpfs(typed: &OsStr) -> Result<Mount, Failure> {
    let mut parts = typed.as_bytes().split(|byte| *byte == b':');
    let target = self::target(parts.next().unwrap_or_default())?;
    let mut size_mib = None;
    let mut flags = Vec::new();
    for part in parts {
        for word in words(typed, part)? {
            let size = word
                .strip_prefix("size=")
                .or_else(|| word.starts_with(|c: char| c.is_ascii_digit()).then_some(word));
            match size {
                Some(_) if size_mib.is_some() => {
                    return Err(invalid_mount(typed, "the size is given twice"));
                }
                Some(size) => size_mib = Some(parse_size_mib(size)?),
                None => flags.push(word),
            }
        }
    }
    with_flags(Mount::new(target, Source::Tmpfs { size_mib }), &flags)
}

/// Parses a size in MiB, in the same syntax as memory.
pub(crate) fn parse_size_mib(text: &str) -> Result<u64, Failure> {
    parse_memory(text).map(u64::from).map_err(|_| {
        Failure::usage(format!(
            "invalid size '{}': expected a value such as 512M or 1.5G",
            escape(text)
        ))
    })
}

type MountParts<'a> = (&'a [u8], &'a [u8], Vec<&'a str>);

fn split(typed: &OsStr) -> Result<MountParts<'_>, Failure> {
    let mut parts = typed.as_bytes().split(|byte| *byte == b':');
    let (source, target) = (parts.next().unwrap_or_default(), parts.next());
    let (options, more) = (parts.next(), parts.next());
    let Some(target) = target.filter(|_| !source.is_empty() && more.is_none()) else {
        return Err(invalid_mount(typed, "not of the form SOURCE:TARGET[:OPTIONS]")
            .hint("to mount a path that contains ':', create a symbolic link to it"));
    };
    if target.contains(&b',') {
        return Err(invalid_mount(typed, "the target contains ','")
            .hint("separate the options by ':', as in /src:/dst:ro,noexec"));
    }
    let options = options.map_or(Ok(Vec::new()), |options| words(typed, options))?;
    Ok((source, target, options))
}

fn words<'a>(typed: &OsStr, options: &'a [u8]) -> Result<Vec<&'a str>, Failure> {
    let text = std::str::from_utf8(options)
        .map_err(|_| invalid_mount(typed, "the options are not UTF-8"))?;
    let words: Vec<&str> = text.split(',').collect();
    if words.contains(&"") {
        return Err(invalid_mount(typed, "an option is empty"));
    }
    let option_name = |word: &str| word.split('=').next().unwrap_or_default().to_owned();
    for (number, word) in words.iter().enumerate() {
        let is_duplicate =
            words[..number].iter().any(|other| option_name(other) == option_name(word));
        if is_duplicate {
            return Err(invalid_mount(
                typed,
                &format!("'{}' is given twice", escape(&option_name(word))),
            ));
        }
    }
    if words.contains(&"ro") && words.contains(&"rw") {
        return Err(invalid_mount(typed, "ro and rw exclude each other"));
    }
    Ok(words)
}

pub(super) fn set_flag(mount: &mut Mount, option: &str) -> Result<(), Failure> {
    match option {
        "ro" => mount.read_only = true,
        "rw" => mount.read_only = false,
        "noexec" => mount.noexec = true,
        "nosuid" => mount.nosuid = true,
        "nodev" => mount.nodev = true,
        _ => {
            let name = option.split('=').next().unwrap_or_default();
            let why = REFUSED.iter().find(|(refused, _)| *refused == name);
            let failure = Failure::usage(format!("unknown mount option '{}'", escape(option)));
            return Err(match why {
                Some((_, why)) => failure.hint(*why),
                None => failure.hint("the mount options are ro, rw, noexec, nosuid and nodev"),
            });
        }
    }
    Ok(())
}

/// Checks the target of a mount: an absolute path in the guest. Normalizes it.
pub(crate) fn target(target: &[u8]) -> Result<Text, Failure> {
    let path = Path::new(OsStr::from_bytes(target));
    let refuse =
        |why: &str| Err(Failure::usage(format!("cannot mount at '{}': {why}", escape(target))));
    if !path.is_absolute() {
        return refuse("not an absolute path");
    }
    if target.len() > TARGET_BYTES_MAX {
        return refuse("path too long");
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return refuse("the path contains '..'");
    }
    // Normalize the path: '/a//b/' is '/a/b'.
    let plain: std::path::PathBuf = path.components().collect();
    if plain == Path::new("/") {
        return refuse("it is the root directory");
    }
    if RESERVED.iter().any(|reserved| plain.starts_with(reserved)) {
        return refuse("reserved for a file system of the guest's kernel");
    }
    Ok(Text(plain.into_os_string().as_bytes().to_vec()))
}

/// Returns whether a source is a path, judged by its start.
pub(crate) fn is_path(source: &[u8]) -> bool {
    let prefixes = [&b"/"[..], b"./", b"../"];
    prefixes.iter().any(|prefix| source.starts_with(prefix)) || source == b"." || source == b".."
}

/// Returns the format of a disk image, judged by the end of its name.
pub(crate) fn format_of_name(source: &[u8]) -> Option<DiskImageFormat> {
    let suffixes: [(&[u8], DiskImageFormat); 3] = [
        (b".raw", DiskImageFormat::Raw),
        (b".img", DiskImageFormat::Raw),
        (b".qcow2", DiskImageFormat::Qcow2),
    ];
    suffixes.iter().find(|(end, _)| source.ends_with(end)).map(|(_, format)| *format)
}

/// Parses the name of a disk format.
pub(crate) fn parse_format(word: &str) -> Result<DiskImageFormat, Failure> {
    match word {
        "raw" => Ok(DiskImageFormat::Raw),
        "qcow2" => Ok(DiskImageFormat::Qcow2),
        _ => Err(Failure::usage(format!("unknown disk format '{}'", escape(word)))
            .hint("use raw or qcow2")),
    }
}

/// Parses the name of a file system, as the guest's kernel spells it.
pub(crate) fn parse_fstype(word: &str) -> Result<String, Failure> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'.';
    if word.is_empty() || word.len() > FSTYPE_BYTES_MAX || !word.bytes().all(plain) {
        return Err(Failure::usage(format!("invalid file system name '{}'", escape(word))));
    }
    Ok(word.to_owned())
}

pub(super) fn invalid_mount(typed: &OsStr, why: &str) -> Failure {
    Failure::usage(format!("invalid mount '{}': {why}", escape(typed.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(mount: Result<Mount, Failure>) -> String {
        serde_json::to_string(&mount.unwrap()).unwrap()
    }

    fn refused(mount: Result<Mount, Failure>) -> String {
        mount.unwrap_err().to_string()
    }

    #[test]
    fn a_path_is_a_bind_and_a_name_is_a_volume() {
        assert_eq!(
            parsed(volume(OsStr::new("./src:/work//src/:ro,nodev"))),
            r#"{"target":"/work/src","kind":"bind","source":"./src","read_only":true,"nodev":true}"#
        );
        assert_eq!(
            parsed(volume(OsStr::new("data:/data"))),
            r#"{"target":"/data","kind":"volume","name":"data"}"#
        );
    }

    #[test]
    fn the_format_of_a_disk_is_given_or_follows_from_its_name() {
        let disk = |text: &str| disk(OsStr::new(text));
        assert!(
            parsed(disk("/x.qcow2:/d:fstype=ext4")).contains(r#""format":"qcow2","fstype":"ext4""#)
        );
        assert!(parsed(disk("/x:/d:format=raw,ro")).contains(r#""format":"raw","read_only":true"#));
        assert!(refused(disk("/x:/d")).contains("format is missing"));
        assert!(refused(disk("/x:/d:format=vmdk")).contains("vmdk"));
    }

    #[test]
    fn memory_has_a_size_once_and_anywhere() {
        let tmpfs = |text: &str| tmpfs(OsStr::new(text));
        let same = r#"{"target":"/t","kind":"tmpfs","size_mib":64,"noexec":true}"#;
        assert_eq!(parsed(tmpfs("/t:64M:noexec")), same);
        assert_eq!(parsed(tmpfs("/t:noexec,size=64")), same);
        assert!(!parsed(tmpfs("/t")).contains("size"));
        assert!(refused(tmpfs("/t:64M:size=1G")).contains("twice"));
    }

    #[test]
    fn unsupported_options_are_refused_and_not_ignored() {
        for wrong in [
            "a:/b:suid",
            "a:/b:ro,ro",
            "a:/b:ro,rw",
            "a:/b,ro",
            "a:/b:",
            "a",
            ":/b",
            "a:b",
            "a:/",
            "a:/x/../..",
            "a:/proc/x",
            "a:/dev",
            "a:/b:ro:x",
            "a/b:/c",
            "a:/b:stat-virt=off",
        ] {
            assert!(volume(OsStr::new(wrong)).is_err(), "{wrong}");
        }
        assert!(volume(OsStr::new("a:/devices")).is_ok());
    }
}
