//! Syntax of `--mount`, docker's form of a mount: `type=bind,source=/src,target=/dst,readonly`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use libmsb::cli::error::Failure;
use libmsb::cli::escape::escape;
use libmsb::state::mounts::{Mount, Source};
use msb_wire::text::Text;

use super::syntax::{invalid_mount, named_volume, parse_size_mib, set_flag, target};

const MIB: u64 = 1024 * 1024;

/// The pairs of one mount, as typed.
#[derive(Default)]
struct MountPairs<'a> {
    kind: Option<&'a [u8]>,
    source: Option<&'a [u8]>,
    target: Option<&'a [u8]>,
    size: Option<&'a [u8]>,
    flags: Vec<&'static str>,
}

/// Parses `--mount`.
pub(super) fn mount(typed: &OsStr) -> Result<Mount, Failure> {
    let pairs = parse(typed)?;
    let target =
        self::target(pairs.target.ok_or_else(|| {
            invalid_mount(typed, "the target is missing").hint("add target=PATH")
        })?)?;
    let source = source(typed, &pairs)?;
    let mut mount = Mount::new(target, source);
    for flag in pairs.flags {
        set_flag(&mut mount, flag)?;
    }
    Ok(mount)
}

fn source(typed: &OsStr, pairs: &MountPairs<'_>) -> Result<Source, Failure> {
    let kind = pairs.kind.unwrap_or(b"volume");
    if pairs.size.is_some() && kind != b"tmpfs" {
        return Err(invalid_mount(typed, "tmpfs-size needs type=tmpfs"));
    }
    let given = pairs.source.filter(|source| !source.is_empty());
    let required = || {
        given.ok_or_else(|| invalid_mount(typed, "the source is missing").hint("add source=SOURCE"))
    };
    match kind {
        b"bind" => Ok(Source::Bind { source: Text(required()?.to_vec()) }),
        b"volume" => named_volume(typed, required()?),
        b"tmpfs" if given.is_some() => Err(invalid_mount(typed, "a tmpfs has no source")),
        b"tmpfs" => Ok(Source::Tmpfs { size_mib: pairs.size.map(size_mib).transpose()? }),
        _ => Err(invalid_mount(typed, "the type is not bind, volume or tmpfs")),
    }
}

/// Parses a size: in bytes without a unit, as with docker.
fn size_mib(size: &[u8]) -> Result<u64, Failure> {
    let text = String::from_utf8_lossy(size);
    match text.parse::<u64>() {
        Ok(bytes) if bytes > 0 => Ok(bytes.div_ceil(MIB)),
        _ => parse_size_mib(&text),
    }
}

fn parse(typed: &OsStr) -> Result<MountPairs<'_>, Failure> {
    let mut pairs = MountPairs::default();
    for word in typed.as_bytes().split(|byte| *byte == b',') {
        let equals = word.iter().position(|byte| *byte == b'=');
        let (key, value) = match equals {
            Some(at) => (&word[..at], Some(&word[at + 1..])),
            None => (word, None),
        };
        let place = match key {
            b"type" => &mut pairs.kind,
            b"source" | b"src" => &mut pairs.source,
            b"target" | b"dst" | b"destination" => &mut pairs.target,
            b"tmpfs-size" => &mut pairs.size,
            _ => {
                pairs.flags.extend(flag(typed, key, value)?);
                continue;
            }
        };
        if value.is_none() || place.is_some() {
            let problem = if value.is_none() { "has no value" } else { "is given twice" };
            return Err(invalid_mount(typed, &format!("'{}' {problem}", escape(key))));
        }
        *place = value;
    }
    Ok(pairs)
}

/// Parses a flag: `readonly`, or with a value `readonly=false`.
fn flag(typed: &OsStr, key: &[u8], value: Option<&[u8]>) -> Result<Option<&'static str>, Failure> {
    let flag = match key {
        b"readonly" | b"ro" => "ro",
        b"noexec" => "noexec",
        b"nosuid" => "nosuid",
        b"nodev" => "nodev",
        _ => {
            let problem = format!("unknown key '{}'", escape(key));
            return Err(invalid_mount(typed, &problem).hint(
                "the keys are type, source, target, readonly, noexec, nosuid, nodev and tmpfs-size",
            ));
        }
    };
    match value {
        None | Some(b"true" | b"1") => Ok(Some(flag)),
        Some(b"false" | b"0") => Ok(None),
        Some(_) => Err(invalid_mount(typed, &format!("'{}' is not true or false", escape(key)))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::syntax;
    use super::*;

    fn parsed(typed: &str) -> Result<Mount, String> {
        mount(OsStr::new(typed)).map_err(|failure| failure.to_string())
    }

    #[test]
    fn a_mount_in_pairs_is_that_of_the_short_form() {
        let short = |typed: &str| syntax::volume(OsStr::new(typed)).map_err(|e| e.to_string());
        assert_eq!(parsed("type=bind,src=/a,dst=/b,readonly"), short("/a:/b:ro"));
        assert_eq!(parsed("type=bind,source=/a,target=/b,ro=false"), short("/a:/b"));
        assert_eq!(
            parsed("source=v,destination=/b,noexec,nosuid,nodev"),
            short("v:/b:noexec,nosuid,nodev")
        );
        let tmpfs = |typed: &str| syntax::tmpfs(OsStr::new(typed)).map_err(|e| e.to_string());
        assert_eq!(parsed("type=tmpfs,target=/t"), tmpfs("/t"));
        assert_eq!(parsed("type=tmpfs,target=/t,tmpfs-size=67108864"), tmpfs("/t:64M"));
        assert_eq!(parsed("type=tmpfs,target=/t,tmpfs-size=64M"), tmpfs("/t:64M"));
        let Source::Bind { source } = parsed("type=bind,src=/a:b,dst=/b").unwrap().source else {
            panic!("not a bind mount")
        };
        assert_eq!(source.as_bytes(), b"/a:b");
    }

    #[test]
    fn a_mount_that_is_incomplete_or_unknown_is_refused() {
        for typed in [
            "",
            "type=bind",
            "type=bind,src=/a",
            "type=bind,dst=/b",
            "type=bind,src=,dst=/b",
            "type=npipe,src=/a,dst=/b",
            "type=tmpfs,src=/a,dst=/b",
            "type=tmpfs,dst=/b,tmpfs-size=0",
            "type=volume,src=../x,dst=/b",
            "type=bind,src=/a,dst=/b,dst=/c",
            "type=bind,src=/a,dst=b",
            "type=bind,src=/a,dst=/b,tmpfs-size=1",
            "type=bind,src=/a,dst=/b,bind-propagation=shared",
            "type=bind,src=/a,dst=/b,readonly=perhaps",
            "type,src=/a,dst=/b",
        ] {
            assert!(parsed(typed).is_err(), "{typed}");
        }
    }
}
