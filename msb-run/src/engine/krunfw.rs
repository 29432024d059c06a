//! libkrunfw: a guest's kernel as a shared library, as distributions have it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use libmsb::cli::error::Failure;

/// A library to use.
pub(crate) const VARIABLE: &str = "MSB_KRUNFW";

/// Its name; 5 is the version of its interface, which libkrun asks for.
const NAME: &str = "libkrunfw.so.5";

/// Where distributions and package managers put libraries.
const FOLDERS: [&str; 8] = [
    "/usr/local/lib64",
    "/usr/local/lib",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/home/linuxbrew/.linuxbrew/lib",
    "/run/current-system/sw/lib",
    "/nix/var/nix/profiles/default/lib",
];

/// The dynamic linker's list of libraries.
const CACHE: &str = "/etc/ld.so.cache";

/// What kind of system this is (os-release(5)).
const SYSTEM: &str = "/etc/os-release";

/// Offsets in the header of an ELF file (elf(5)), and what stands there in a library for x86-64.
const TYPE_AT: usize = 16;
const TYPE_LIBRARY: u16 = 3;
const MACHINE_AT: usize = 18;
const MACHINE_X86_64: u16 = 62;

/// The library that [`VARIABLE`] names, else the one in `lib` of the state directory, else the system's.
pub(crate) fn find(home: &Path) -> anyhow::Result<PathBuf> {
    if let Some(chosen) = std::env::var_os(VARIABLE).filter(|value| !value.is_empty()) {
        let path = std::path::absolute(chosen)?;
        check(&path).with_context(|| format!("cannot use the library that {VARIABLE} names"))?;
        return Ok(path);
    }
    let found = places(home).into_iter().find(|path| path.is_file());
    let Some(path) = found else {
        let system = std::fs::read_to_string(SYSTEM).unwrap_or_default();
        return Err(Failure::failed(format!(
            "cannot find '{NAME}', the guest's kernel for the engine krun"
        ))
        .hint(format!(
            "{}; or name the file: {VARIABLE}=/path/to/{NAME}",
            how_to_install(&system)
        ))
        .into());
    };
    check(&path)?;
    Ok(path)
}

fn places(home: &Path) -> Vec<PathBuf> {
    let mut folders = vec![home.join("lib")];
    let listed = |name: &str| std::env::var_os(name).unwrap_or_default();
    folders.extend(
        std::env::split_paths(&listed("LD_LIBRARY_PATH")).filter(|folder| folder.is_absolute()),
    );
    folders.extend(FOLDERS.iter().map(PathBuf::from));
    let prefixes = [("HOMEBREW_PREFIX", "lib"), ("HOME", ".nix-profile/lib")];
    for (variable, folder) in prefixes {
        let prefix = PathBuf::from(listed(variable));
        folders.extend(prefix.is_absolute().then(|| prefix.join(folder)));
    }
    let known = folders.into_iter().map(|folder| folder.join(NAME));
    known
        .chain(cached(&std::fs::read(CACHE).unwrap_or_default()))
        .collect()
}

/// The paths that the dynamic linker knows. Its list is a table and behind it strings, of which paths are enough for us.
fn cached(cache: &[u8]) -> Vec<PathBuf> {
    let strings = cache.split(|byte| *byte == 0);
    let paths = strings.filter(|text| text.starts_with(b"/") && text.ends_with(NAME.as_bytes()));
    paths
        .map(|path| PathBuf::from(OsString::from_vec(path.to_vec())))
        .filter(|path| path.file_name() == Some(OsStr::new(NAME)))
        .collect()
}

/// Whether it is a library for this processor: what else is wrong, loading it tells.
fn check(path: &Path) -> anyhow::Result<()> {
    let mut head = [0; 20];
    let file = File::open(path).with_context(|| format!("cannot open '{}'", path.display()))?;
    let whole = file.read_exact_at(&mut head, 0).is_ok();
    let number = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
    if whole
        && head.starts_with(b"\x7fELF\x02\x01")
        && number(TYPE_AT) == TYPE_LIBRARY
        && number(MACHINE_AT) == MACHINE_X86_64
    {
        return Ok(());
    }
    Err(Failure::failed(format!(
        "'{}' is no shared library for x86-64",
        path.display()
    ))
    .hint(format!(
        "it should be {NAME}: reinstall libkrunfw, or name another file: {VARIABLE}=/path/to/{NAME}"
    ))
    .into())
}

/// How to get it on a system, by its own name or that of the family that it belongs to.
fn how_to_install(system: &str) -> &'static str {
    let value = |key: &str| {
        let line = system
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or_default().trim_matches('"').to_owned()
    };
    let family = format!("{} {}", value("ID"), value("ID_LIKE"));
    let known = family.split_whitespace().find_map(|id| {
        INSTALL
            .iter()
            .find(|(ids, _)| ids.contains(&id))
            .map(|(_, how)| *how)
    });
    known.unwrap_or("install libkrunfw 5 with the system's package manager, or with Homebrew: brew install libkrunfw")
}

/// By names of systems.
const INSTALL: [(&[&str], &str); 6] = [
    (
        &["debian", "ubuntu"],
        "install libkrunfw5: apt-get install libkrunfw5 where the release has it, else with Homebrew: brew install libkrunfw",
    ),
    (
        &["fedora", "rhel", "centos"],
        "install it: sudo dnf install libkrunfw",
    ),
    (&["arch"], "install it: sudo pacman -S libkrunfw"),
    (
        &["suse", "opensuse", "opensuse-tumbleweed"],
        "install it: sudo zypper install libkrunfw5",
    ),
    (&["alpine"], "install it: sudo apk add libkrunfw"),
    (
        &["nixos"],
        "install it: nix profile install nixpkgs#libkrunfw",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_of_systems_has_its_own_command() {
        let hint = |text: &str| how_to_install(text);
        assert!(hint("ID=debian\nVERSION_ID=\"12\"\n").contains("apt-get install libkrunfw5"));
        assert!(hint("NAME=x\nID=linuxmint\nID_LIKE=\"ubuntu debian\"\n").contains("apt-get"));
        assert!(hint("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n").contains("dnf"));
        assert!(hint("ID=arch\n").contains("pacman"));
        assert!(hint("ID=\"opensuse-leap\"\nID_LIKE=\"suse opensuse\"\n").contains("zypper"));
        assert!(hint("ID=nixos\n").contains("nix"));
        assert!(hint("").contains("brew"));
    }

    #[test]
    fn the_linkers_list_gives_whole_paths_of_this_very_name() {
        let cache = b"head\0libkrunfw.so.5\0/opt/lib/libkrunfw.so.5\0/opt/lib/notlibkrunfw.so.5\0/opt/libkrunfw.so.55\0";
        assert_eq!(cached(cache), [PathBuf::from("/opt/lib/libkrunfw.so.5")]);
    }

    #[test]
    fn a_file_that_is_no_library_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(NAME);
        for contents in [
            &b""[..],
            b"\x7fELF",
            b"#!/bin/sh\necho this is no library\n",
        ] {
            std::fs::write(&path, contents).unwrap();
            let error = check(&path).unwrap_err().to_string();
            assert!(
                error.contains(NAME) && error.contains("no shared library"),
                "{error}"
            );
        }
        check(&std::env::current_exe().unwrap()).unwrap();
    }

    #[test]
    fn the_state_directorys_own_library_comes_first() {
        assert_eq!(places(Path::new("/h"))[0], Path::new("/h/lib").join(NAME));
        assert!(places(Path::new("/h")).contains(&Path::new("/usr/lib").join(NAME)));
    }
}
