//! One mount as it is typed: `SOURCE:TARGET[:OPTION,…]`, `TARGET[:SIZE][:OPTION,…]`.
//!
//! The kind is told by how the source begins, and never by what lies there: a name is a volume; a path (`/…`, `./…`,
//! `../…`, `.`, `..`) a folder or a file of the host. So a typing mistake cannot turn one into the other.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use libmsb::cli::args::parse_memory;
use libmsb::cli::error::Failure;
use libmsb::cli::escape::escape;
use libmsb::machine::Format;
use libmsb::state::mounts::{Mount, Source};
use msb_wire::text::Text;

/// Longest target, in bytes: `PATH_MAX` of Linux.
const TARGET_BYTES_MAX: usize = 4096;

/// Longest name of a file system, in bytes.
const FSTYPE_BYTES_MAX: usize = 32;

/// Where nothing may be mounted: the guest needs them as they are.
const RESERVED: [&str; 3] = ["/proc", "/sys", "/dev"];

/// Options of the reference that are not here, and why they are refused and not ignored.
const REFUSED: [(&str, &str); 2] = [
    (
        "stat-virt",
        "owners and permissions of a shared folder are those of its files",
    ),
    (
        "host-perms",
        "permissions that the guest sets are those of the files on the host",
    ),
];

/// `-v`: a volume by its name, or a folder or file by its path.
pub(crate) fn volume(typed: &OsStr) -> Result<Mount, Failure> {
    let (source, target, options) = split(typed)?;
    let source = if is_path(source) {
        Source::Bind {
            source: Text(source.to_vec()),
        }
    } else {
        named_volume(typed, source)?
    };
    with_flags(Mount::new(self::target(target)?, source), &options)
}

/// `--mount-dir`, `--mount-file`: what it is to be is said, and the source may be any path.
pub(crate) fn path(typed: &OsStr) -> Result<Mount, Failure> {
    let (source, target, options) = split(typed)?;
    let source = Source::Bind {
        source: Text(source.to_vec()),
    };
    with_flags(Mount::new(self::target(target)?, source), &options)
}

/// `--mount-named`: a volume, which must be there.
pub(crate) fn named(typed: &OsStr) -> Result<Mount, Failure> {
    let (source, target, options) = split(typed)?;
    with_flags(
        Mount::new(self::target(target)?, named_volume(typed, source)?),
        &options,
    )
}

fn named_volume(typed: &OsStr, source: &[u8]) -> Result<Source, Failure> {
    let name =
        std::str::from_utf8(source).map_err(|_| wrong(typed, "a volume has a plain name"))?;
    Ok(Source::Volume {
        name: name.parse()?,
    })
}

fn with_flags(mut mount: Mount, options: &[&str]) -> Result<Mount, Failure> {
    for option in options {
        set_flag(&mut mount, option)?;
    }
    Ok(mount)
}

/// `--mount-disk`: an image with a file system. The format is said, or told by the name's end; it is never guessed from
/// the contents, which a guest may have written.
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
        wrong(typed, "its format is not known").hint("say it: format=raw or format=qcow2")
    })?;
    let source = Source::Disk {
        source: Text(source.to_vec()),
        format,
        fstype,
    };
    with_flags(Mount::new(self::target(target)?, source), &flags)
}

/// `--tmpfs`: a target, then a size, then options; any of the two may be left out.
pub(crate) fn tmpfs(typed: &OsStr) -> Result<Mount, Failure> {
    let mut parts = typed.as_bytes().split(|byte| *byte == b':');
    let target = self::target(parts.next().unwrap_or_default())?;
    let mut size_mib = None;
    let mut flags = Vec::new();
    for part in parts {
        for word in words(typed, part)? {
            let size = word.strip_prefix("size=").or_else(|| {
                word.starts_with(|c: char| c.is_ascii_digit())
                    .then_some(word)
            });
            match size {
                Some(_) if size_mib.is_some() => {
                    return Err(wrong(typed, "the size is given twice"));
                }
                Some(size) => size_mib = Some(parse_size_mib(size)?),
                None => flags.push(word),
            }
        }
    }
    with_flags(Mount::new(target, Source::Tmpfs { size_mib }), &flags)
}

/// A size in MiB, written as memory is.
pub(crate) fn parse_size_mib(text: &str) -> Result<u64, Failure> {
    parse_memory(text).map(u64::from).map_err(|_| {
        Failure::usage(format!(
            "'{}' is not a size, such as 512M or 1.5G",
            escape(text)
        ))
    })
}

type Parts<'a> = (&'a [u8], &'a [u8], Vec<&'a str>);

fn split(typed: &OsStr) -> Result<Parts<'_>, Failure> {
    let mut parts = typed.as_bytes().split(|byte| *byte == b':');
    let (source, target) = (parts.next().unwrap_or_default(), parts.next());
    let (options, more) = (parts.next(), parts.next());
    let Some(target) = target.filter(|_| !source.is_empty() && more.is_none()) else {
        return Err(wrong(typed, "it is not of the form SOURCE:TARGET[:OPTIONS]")
            .hint("a path with a ':' in it cannot be mounted; give it another name with a symbolic link"));
    };
    if target.contains(&b',') {
        return Err(wrong(typed, "there is a ',' in the target")
            .hint("options stand behind another ':', as in /src:/dst:ro,noexec"));
    }
    let options = options.map_or(Ok(Vec::new()), |options| words(typed, options))?;
    Ok((source, target, options))
}

fn words<'a>(typed: &OsStr, options: &'a [u8]) -> Result<Vec<&'a str>, Failure> {
    let text =
        std::str::from_utf8(options).map_err(|_| wrong(typed, "its options are no words"))?;
    let words: Vec<&str> = text.split(',').collect();
    if words.contains(&"") {
        return Err(wrong(typed, "an option is empty"));
    }
    let known = |word: &str| word.split('=').next().unwrap_or_default().to_owned();
    for (number, word) in words.iter().enumerate() {
        let twice = words[..number]
            .iter()
            .any(|other| known(other) == known(word));
        if twice {
            return Err(wrong(
                typed,
                &format!("'{}' is given twice", escape(&known(word))),
            ));
        }
    }
    if words.contains(&"ro") && words.contains(&"rw") {
        return Err(wrong(typed, "it cannot be both ro and rw"));
    }
    Ok(words)
}

fn set_flag(mount: &mut Mount, option: &str) -> Result<(), Failure> {
    match option {
        "ro" => mount.read_only = true,
        "rw" => mount.read_only = false,
        "noexec" => mount.noexec = true,
        "nosuid" => mount.nosuid = true,
        "nodev" => mount.nodev = true,
        _ => {
            let name = option.split('=').next().unwrap_or_default();
            let why = REFUSED.iter().find(|(refused, _)| *refused == name);
            let failure = Failure::usage(format!("there is no mount option '{}'", escape(option)));
            return Err(match why {
                Some((_, why)) => failure.hint(*why),
                None => failure.hint("options are ro, rw, noexec, nosuid and nodev"),
            });
        }
    }
    Ok(())
}

fn target(target: &[u8]) -> Result<Text, Failure> {
    let path = Path::new(OsStr::from_bytes(target));
    let refuse = |why: &str| {
        Err(Failure::usage(format!(
            "nothing can be mounted at '{}': {why}",
            escape(target)
        )))
    };
    if !path.is_absolute() {
        return refuse("it is not an absolute path of the guest");
    }
    if target.len() > TARGET_BYTES_MAX {
        return refuse("it is too long");
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return refuse("it goes up by '..'");
    }
    // Without what is said twice: '/a//b/' is '/a/b'.
    let plain: std::path::PathBuf = path.components().collect();
    if plain == Path::new("/") {
        return refuse("that is the root itself");
    }
    if RESERVED.iter().any(|reserved| plain.starts_with(reserved)) {
        return refuse("the guest's kernel has its own there");
    }
    Ok(Text(plain.into_os_string().as_bytes().to_vec()))
}

/// Whether it is a path, by how it begins.
pub(crate) fn is_path(source: &[u8]) -> bool {
    let begins = [&b"/"[..], b"./", b"../"];
    begins.iter().any(|begin| source.starts_with(begin)) || source == b"." || source == b".."
}

/// The format of a disk image, by how its name ends.
pub(crate) fn format_of_name(source: &[u8]) -> Option<Format> {
    let ends: [(&[u8], Format); 3] = [
        (b".raw", Format::Raw),
        (b".img", Format::Raw),
        (b".qcow2", Format::Qcow2),
    ];
    ends.iter()
        .find(|(end, _)| source.ends_with(end))
        .map(|(_, format)| *format)
}

/// The word for a disk image's format.
pub(crate) fn parse_format(word: &str) -> Result<Format, Failure> {
    match word {
        "raw" => Ok(Format::Raw),
        "qcow2" => Ok(Format::Qcow2),
        _ => Err(
            Failure::usage(format!("there is no disk format '{}'", escape(word)))
                .hint("formats are raw and qcow2"),
        ),
    }
}

/// The name of a file system, as the guest's kernel has it.
pub(crate) fn parse_fstype(word: &str) -> Result<String, Failure> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'.';
    if word.is_empty() || word.len() > FSTYPE_BYTES_MAX || !word.bytes().all(plain) {
        return Err(Failure::usage(format!(
            "'{}' cannot be the name of a file system",
            escape(word)
        )));
    }
    Ok(word.to_owned())
}

fn wrong(typed: &OsStr, why: &str) -> Failure {
    Failure::usage(format!(
        "cannot understand the mount '{}': {why}",
        escape(typed.as_bytes())
    ))
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
    fn the_format_of_a_disk_is_said_or_told_by_its_name() {
        let disk = |text: &str| disk(OsStr::new(text));
        assert!(
            parsed(disk("/x.qcow2:/d:fstype=ext4")).contains(r#""format":"qcow2","fstype":"ext4""#)
        );
        assert!(parsed(disk("/x:/d:format=raw,ro")).contains(r#""format":"raw","read_only":true"#));
        assert!(refused(disk("/x:/d")).contains("format is not known"));
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
    fn what_is_not_done_is_refused_and_not_ignored() {
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
