//! `msb cp`: copies files into and out of sandboxes.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use clap::{Parser, ValueHint};
use libmsb::cli::args::SandboxName;
use libmsb::cli::error::{Failure, clean, print_error, print_warning, print_warning_with_hint};
use libmsb::state::Home;
use libmsb::state::status::State;
use msb_wire::file::receive::PrivilegedFiles;
use msb_wire::file::record::Severity;
use msb_wire::text::Text;
use rustix::fs::Mode;
use rustix::process::umask;

use super::{connect, paused};
use crate::copy::{CopyEnd, CopyOptions, copy};

const TOOL: &str = "msb-cp";

/// Copy files into and out of running sandboxes
#[derive(Debug, Parser)]
#[command(
    name = TOOL,
    version,
    override_usage = "msb cp [OPTIONS] SOURCE DESTINATION",
    after_help = "Examples:\n  msb cp data worker:/srv\n  msb cp worker:/etc/os-release .\n  msb cp worker:/etc - | tar t"
)]
pub(crate) struct CpArgs {
    /// Source: NAME:/PATH in a sandbox, a path of the host, or - for an archive on stdin
    #[arg(value_name = "SOURCE", value_hint = ValueHint::AnyPath)]
    source: OsString,
    /// Destination, in the same forms; - writes an archive to stdout
    #[arg(value_name = "DESTINATION", value_hint = ValueHint::AnyPath)]
    destination: OsString,
    /// Preserve owners and the set-user-ID, set-group-ID and sticky bits
    ///
    /// Owners are preserved by number, and the umask does not apply. On the host only root can
    /// change owners. For other users, copied files belong to the caller and get neither
    /// set-user-ID nor set-group-ID bit: a program of the guest never becomes a program that runs
    /// as the caller. When root copies such programs to the host, a warning names the first one.
    #[arg(short, long)]
    archive: bool,
    /// Follow a symbolic link that is the source itself
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Preserve extended attributes
    ///
    /// On the host, only attributes whose names start with `user.` are set.
    #[arg(short = 'X', long)]
    xattrs: bool,
    /// Read or write in the guest as this user and group [default: root]
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<OsString>,
    /// Do not warn about skipped FIFOs, sockets and devices
    #[arg(short, long)]
    quiet: bool,
}

/// One end of the copy, as typed.
#[derive(Clone, Debug, PartialEq, Eq)]
enum CopyArg {
    Stream,
    Host(PathBuf),
    Guest(SandboxName, Vec<u8>),
}

pub(crate) fn run(args: CpArgs) -> anyhow::Result<()> {
    let (source, destination) = (parse(&args.source)?, parse(&args.destination)?);
    let is_guest = |end: &CopyArg| matches!(end, CopyArg::Guest(..));
    if !is_guest(&source) && !is_guest(&destination) {
        return Err(Failure::usage("neither end of the copy is in a sandbox")
            .hint("give a path in a sandbox as NAME:/PATH, for example worker:/etc/hosts")
            .into());
    }
    let home = Home::from_env()?;
    let names = [&source, &destination].map(guest);
    let (source, destination) = (open(&home, source)?, open(&home, destination)?);
    let options = CopyOptions {
        archive: args.archive,
        xattrs: args.xattrs,
        follow: args.follow_link,
        user: args.user.map(Text::from),
        umask: current_umask(),
    };
    let received = copy(source, destination, &options, &mut |severity, text| {
        let text = clean(text);
        match severity {
            Severity::Error => print_error(TOOL, &text),
            Severity::Skipped if args.quiet => {}
            Severity::Skipped => print_warning(TOOL, &format!("skipped: {text}")),
        }
    });
    let received = received.map_err(|error| paused_error(&home, &names).unwrap_or(error))?;
    if let Some(files) = &received.privileged {
        warn_about_privileged(files);
    }
    if received.complete {
        return Ok(());
    }
    Err(Failure::failed("not everything was copied").into())
}

/// Returns the umask of this process. No call only reads it; no other thread creates files
/// meanwhile.
fn current_umask() -> u32 {
    let mask = umask(Mode::from_raw_mode(0o077));
    umask(mask);
    mask.bits()
}

/// Warns about set-user-id and set-group-id files, which a guest could plant on a host when root
/// copies with `--archive`.
fn warn_about_privileged(files: &PrivilegedFiles) {
    let first = files.first.display();
    let what = match files.count {
        1 => format!("'{first}' runs as its owner or group for every user"),
        count => format!(
            "{count} files run as their owner or group for every user; the first is '{first}'"
        ),
    };
    print_warning_with_hint(
        TOOL,
        &clean(&format!("{what} (set-user-id or set-group-id)")),
        "for an untrusted guest copy without --archive, or to a file system mounted with nosuid",
    );
}

/// Returns the name of the sandbox that an end of the copy is in.
fn guest(end: &CopyArg) -> Option<SandboxName> {
    match end {
        CopyArg::Guest(name, _) => Some(name.clone()),
        CopyArg::Host(_) | CopyArg::Stream => None,
    }
}

/// Returns the error for a paused sandbox, if that is why the copy failed.
fn paused_error(home: &Home, names: &[Option<SandboxName>]) -> Option<anyhow::Error> {
    let is_paused = |name: &&SandboxName| {
        let seen = home.sandboxes().named(name).snapshot();
        seen.is_ok_and(|seen| seen.state == State::Paused)
    };
    names.iter().flatten().find(is_paused).map(|name| paused(name).into())
}

/// Parses one end of the copy. A sandbox name and a colon start a path in a guest; a path of the
/// host with such a colon must start with `./`.
fn parse(typed: &OsString) -> anyhow::Result<CopyArg> {
    let bytes = typed.as_bytes();
    if bytes == b"-" {
        return Ok(CopyArg::Stream);
    }
    let colon = bytes.iter().position(|byte| *byte == b':');
    let name = colon.and_then(|colon| {
        let name = std::str::from_utf8(&bytes[..colon]).ok()?;
        Some((name.parse::<SandboxName>().ok()?, &bytes[colon + 1..]))
    });
    match name {
        Some((name, path)) if path.starts_with(b"/") => Ok(CopyArg::Guest(name, path.to_vec())),
        Some((name, path)) => {
            let path = String::from_utf8_lossy(path);
            Err(Failure::usage(format!("the path '{path}' in '{name}' is not absolute"))
                .hint(format!("use {name}:/{path}, or ./{name}:{path} for a file of the host"))
                .into())
        }
        None if bytes.is_empty() => Err(Failure::usage("empty path").into()),
        None => Ok(CopyArg::Host(PathBuf::from(OsString::from_vec(bytes.to_vec())))),
    }
}

fn open(home: &Home, typed: CopyArg) -> anyhow::Result<CopyEnd> {
    Ok(match typed {
        CopyArg::Stream => CopyEnd::Stream,
        CopyArg::Host(path) => CopyEnd::Host(path),
        CopyArg::Guest(name, path) => CopyEnd::Guest(connect(home, &name)?, Text(path)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_behind_a_name_makes_a_path_of_a_guest() {
        let parsed = |text: &str| parse(&OsString::from(text)).unwrap();
        let guest = |name: &str, path: &str| {
            CopyArg::Guest(name.parse().unwrap(), path.as_bytes().to_vec())
        };
        assert_eq!(parsed("web:/etc/a:b"), guest("web", "/etc/a:b"));
        assert_eq!(parsed("./web:/etc"), CopyArg::Host("./web:/etc".into()));
        assert_eq!(parsed("a/b:c"), CopyArg::Host("a/b:c".into()));
        assert_eq!(parsed("-"), CopyArg::Stream);
        assert!(parse(&OsString::from("web:etc")).is_err());
        assert!(parse(&OsString::from("")).is_err());
    }
}
