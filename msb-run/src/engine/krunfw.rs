//! libkrunfw: a guest's kernel as a shared library, as distributions have it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use libmsb::cli::error::Failure;
use libmsb::tools;

use super::distribution::{self, Part};

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

/// Offsets in the header of an ELF file (elf(5)), and what stands there in a library for x86-64.
const TYPE_AT: usize = 16;
const TYPE_LIBRARY: u16 = 3;
const MACHINE_AT: usize = 18;
const MACHINE_X86_64: u16 = 62;

/// The library that [`VARIABLE`] names, else the one in `lib` of the state directory, else the system's, else the one that
/// was installed with these programs.
pub(crate) fn find(home: &Path) -> anyhow::Result<PathBuf> {
    if let Some(chosen) = std::env::var_os(VARIABLE).filter(|value| !value.is_empty()) {
        let path = std::path::absolute(chosen)?;
        let file = File::open(&path).map_err(|error| {
            Failure::failed(format!(
                "cannot use the library '{}' that {VARIABLE} names: {error}",
                path.display()
            ))
            .hint(format!(
                "name another file, or leave {VARIABLE} unset to use the one that is installed"
            ))
        })?;
        check(&file, &path)?;
        return Ok(path);
    }
    let found = places(home).into_iter().find(|path| path.is_file());
    let Some(path) = found else {
        return Err(Failure::failed(format!(
            "cannot find '{NAME}', the guest's kernel for the engine krun"
        ))
        .hint(format!(
            "install it: {}; or name the file: {VARIABLE}=/path/to/{NAME}",
            distribution::how_to_install(Part::Krunfw)
        ))
        .into());
    };
    let file = File::open(&path).with_context(|| format!("cannot open '{}'", path.display()))?;
    check(&file, &path)?;
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
        .chain(installed(tools::home_folders()))
        .collect()
}

/// Returns where `libmsb/install` puts the library, of the folders of this installation.
fn installed(folders: Vec<PathBuf>) -> Option<PathBuf> {
    let folder = folders
        .into_iter()
        .find(|folder| folder.ends_with("lib/msb"))?;
    // Messages name it without the way from one folder to the other.
    Some(folder.canonicalize().unwrap_or(folder).join(NAME))
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
fn check(file: &File, path: &Path) -> anyhow::Result<()> {
    let mut head = [0; 20];
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

#[cfg(test)]
mod tests {
    use super::*;

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
            let file = File::open(&path).unwrap();
            let error = check(&file, &path).unwrap_err().to_string();
            assert!(
                error.contains(NAME) && error.contains("no shared library"),
                "{error}"
            );
        }
        let ours = std::env::current_exe().unwrap();
        check(&File::open(&ours).unwrap(), &ours).unwrap();
    }

    #[test]
    fn the_library_of_this_installation_is_beside_its_plumbing() {
        let prefix = tempfile::tempdir().unwrap();
        let plumbing = prefix.path().join("lib/msb");
        std::fs::create_dir_all(&plumbing).unwrap();
        std::fs::create_dir(prefix.path().join("bin")).unwrap();
        let bin = prefix.path().join("bin");
        let expected = plumbing.canonicalize().unwrap().join(NAME);
        let beside = bin.join("../lib/msb");
        assert_eq!(installed(vec![bin.clone(), beside]), Some(expected.clone()));
        assert_eq!(installed(vec![plumbing, bin]), Some(expected));
        assert_eq!(installed(vec!["/usr/bin".into()]), None);
    }

    #[test]
    fn the_state_directorys_own_library_comes_first() {
        assert_eq!(places(Path::new("/h"))[0], Path::new("/h/lib").join(NAME));
        assert!(places(Path::new("/h")).contains(&Path::new("/usr/lib").join(NAME)));
    }
}
