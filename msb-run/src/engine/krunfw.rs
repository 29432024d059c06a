//! libkrunfw: a guest kernel as a shared library, as distributions ship it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use libmsb::cli::error::Failure;
use libmsb::tools;

use super::distribution::{self, HostPackage};

/// Environment variable with the library to use.
pub(crate) const VARIABLE: &str = "MSB_KRUNFW";

/// File name of the library; 5 is the version of its interface, which libkrun requires.
const NAME: &str = "libkrunfw.so.5";

/// Library directories of distributions and package managers.
const LIBRARY_DIRECTORIES: [&str; 8] = [
    "/usr/local/lib64",
    "/usr/local/lib",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/home/linuxbrew/.linuxbrew/lib",
    "/run/current-system/sw/lib",
    "/nix/var/nix/profiles/default/lib",
];

/// Cache of the dynamic linker (ldconfig(8)).
const CACHE: &str = "/etc/ld.so.cache";

/// Offsets in the header of an ELF file (elf(5)), and the values for a shared library for x86-64.
const E_TYPE: usize = 16;
const ET_DYN: u16 = 3;
const E_MACHINE: usize = 18;
const EM_X86_64: u16 = 62;

/// Returns the library that [`VARIABLE`] names, else the one in `lib` of the state directory, else
/// the system's, else the one that was installed with msb.
pub(crate) fn find(home: &Path) -> anyhow::Result<PathBuf> {
    if let Some(chosen) = std::env::var_os(VARIABLE).filter(|value| !value.is_empty()) {
        let path = std::path::absolute(chosen)?;
        let file = File::open(&path).map_err(|error| {
            Failure::failed(format!(
                "cannot use the library '{}' that {VARIABLE} names: {error}",
                path.display()
            ))
            .hint(format!("name another file, or unset {VARIABLE} to use the installed one"))
        })?;
        check(&file, &path)?;
        return Ok(path);
    }
    let found = candidates(home).into_iter().find(|path| path.is_file());
    let Some(path) = found else {
        return Err(Failure::failed(format!(
            "cannot find '{NAME}', the guest's kernel for the engine krun"
        ))
        .hint(format!(
            "install it: {}; or name the file: {VARIABLE}=/path/to/{NAME}",
            distribution::how_to_install(HostPackage::Krunfw)
        ))
        .into());
    };
    let file = File::open(&path).with_context(|| format!("cannot open '{}'", path.display()))?;
    check(&file, &path)?;
    Ok(path)
}

fn candidates(home: &Path) -> Vec<PathBuf> {
    let mut directories = vec![home.join("lib")];
    let variable_value = |name: &str| std::env::var_os(name).unwrap_or_default();
    directories.extend(
        std::env::split_paths(&variable_value("LD_LIBRARY_PATH"))
            .filter(|directory| directory.is_absolute()),
    );
    directories.extend(LIBRARY_DIRECTORIES.iter().map(PathBuf::from));
    let prefixes = [("HOMEBREW_PREFIX", "lib"), ("HOME", ".nix-profile/lib")];
    for (variable, directory) in prefixes {
        let prefix = PathBuf::from(variable_value(variable));
        directories.extend(prefix.is_absolute().then(|| prefix.join(directory)));
    }
    let known = directories.into_iter().map(|directory| directory.join(NAME));
    known
        .chain(cached(&std::fs::read(CACHE).unwrap_or_default()))
        .chain(installed(tools::home_directories()))
        .collect()
}

/// Returns the path at which `libmsb/install` puts the library, given the directories of this
/// installation.
fn installed(directories: Vec<PathBuf>) -> Option<PathBuf> {
    let directory = directories.into_iter().find(|directory| directory.ends_with("lib/msb"))?;
    // Messages show it without `..` components.
    Some(directory.canonicalize().unwrap_or(directory).join(NAME))
}

/// Returns the paths in the dynamic linker's cache. The cache is a table followed by strings; the
/// strings are enough here.
fn cached(cache: &[u8]) -> Vec<PathBuf> {
    let strings = cache.split(|byte| *byte == 0);
    let paths = strings.filter(|text| text.starts_with(b"/") && text.ends_with(NAME.as_bytes()));
    paths
        .map(|path| PathBuf::from(OsString::from_vec(path.to_vec())))
        .filter(|path| path.file_name() == Some(OsStr::new(NAME)))
        .collect()
}

/// Checks that the file is a shared library for this processor. Other errors show up when it is
/// loaded.
fn check(file: &File, path: &Path) -> anyhow::Result<()> {
    let mut head = [0; 20];
    let whole = file.read_exact_at(&mut head, 0).is_ok();
    let number = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
    if whole
        && head.starts_with(b"\x7fELF\x02\x01")
        && number(E_TYPE) == ET_DYN
        && number(E_MACHINE) == EM_X86_64
    {
        return Ok(());
    }
    Err(Failure::failed(format!(
        "'{}' is not a shared library for x86-64",
        path.display()
    ))
    .hint(format!(
        "{NAME} is required: reinstall libkrunfw, or name another file: {VARIABLE}=/path/to/{NAME}"
    ))
    .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_linkers_list_gives_whole_paths_of_this_very_name() {
        let cache = b"head\0libkrunfw.so.5\0/opt/lib/libkrunfw.so.5\0\
            /opt/lib/notlibkrunfw.so.5\0/opt/libkrunfw.so.55\0";
        assert_eq!(cached(cache), [PathBuf::from("/opt/lib/libkrunfw.so.5")]);
    }

    #[test]
    fn a_file_that_is_no_library_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(NAME);
        for contents in [&b""[..], b"\x7fELF", b"#!/bin/sh\necho this is no library\n"] {
            std::fs::write(&path, contents).unwrap();
            let file = File::open(&path).unwrap();
            let error = check(&file, &path).unwrap_err().to_string();
            assert!(error.contains(NAME) && error.contains("not a shared library"), "{error}");
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
        assert_eq!(candidates(Path::new("/h"))[0], Path::new("/h/lib").join(NAME));
        assert!(candidates(Path::new("/h")).contains(&Path::new("/usr/lib").join(NAME)));
    }
}
