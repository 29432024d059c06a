//! `msb cp`: files into and out of sandboxes.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use clap::{Parser, ValueHint};
use libmsb::cli::args::SandboxName;
use libmsb::cli::error::{Failure, clean, print_error, print_hint, print_warning};
use libmsb::state::Home;
use libmsb::state::status::State;
use msb_wire::file::receive::PrivilegedFiles;
use msb_wire::file::record::Severity;
use msb_wire::text::Text;
use rustix::fs::Mode;
use rustix::process::umask;

use super::{connect, paused};
use crate::copy::{End, Options, copy};

const TOOL: &str = "msb-cp";

/// Copy files and folders between the host and sandboxes, or between sandboxes
#[derive(Debug, Parser)]
#[command(
    name = TOOL,
    version,
    override_usage = "msb cp [OPTIONS] SOURCE DESTINATION",
    after_help = "Examples:\n  msb cp data worker:/srv\n  msb cp worker:/etc/os-release .\n  msb cp worker:/etc - | tar t"
)]
pub(crate) struct CpArgs {
    /// What to copy: NAME:/PATH in a sandbox, a path of the host, or - for an archive on standard input
    #[arg(value_name = "SOURCE", value_hint = ValueHint::AnyPath)]
    source: OsString,
    /// Where to: the same; - writes an archive to standard output
    #[arg(value_name = "DESTINATION", value_hint = ValueHint::AnyPath)]
    destination: OsString,
    /// Keep owners, and the bits set-user-id, set-group-id and sticky; on the host only root can
    #[arg(short, long)]
    archive: bool,
    /// If the source is a symbolic link, copy what it names
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Keep extended attributes (on the host those of users)
    #[arg(short = 'X', long)]
    xattrs: bool,
    /// User, and group, to read or write as in the guest (default: root)
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<OsString>,
    /// Say nothing of fifos, sockets and devices, which are left out
    #[arg(short, long)]
    quiet: bool,
}

/// One end as it was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Typed {
    Stream,
    Host(PathBuf),
    Guest(SandboxName, Vec<u8>),
}

pub(crate) fn run(args: CpArgs) -> anyhow::Result<()> {
    let (source, destination) = (parse(&args.source)?, parse(&args.destination)?);
    let is_guest = |end: &Typed| matches!(end, Typed::Guest(..));
    if !is_guest(&source) && !is_guest(&destination) {
        return Err(Failure::usage("neither end of the copy is in a sandbox")
            .hint("name a path in a sandbox as in: worker:/etc/hosts")
            .into());
    }
    let home = Home::from_env()?;
    let names = [&source, &destination].map(guest);
    let (source, destination) = (open(&home, source)?, open(&home, destination)?);
    let options = Options {
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
            Severity::Skipped => print_warning(TOOL, &format!("left out: {text}")),
        }
    });
    let received = received.map_err(|error| if_paused(&home, &names).unwrap_or(error))?;
    if let Some(files) = &received.privileged {
        warn_of_privileged(files);
    }
    if received.complete {
        return Ok(());
    }
    Err(Failure::failed("not everything was copied").into())
}

/// Returns the mask of this process. There is no call that only reads it; no thread makes files meanwhile.
fn current_umask() -> u32 {
    let mask = umask(Mode::from_raw_mode(0o077));
    umask(mask);
    mask.bits()
}

/// Names what a guest could have planted on a host whose root copies with `--archive`.
fn warn_of_privileged(files: &PrivilegedFiles) {
    let first = files.first.display();
    let what = match files.count {
        1 => format!("'{first}' runs as its owner or group, whoever starts it"),
        count => format!(
            "{count} files run as their owner or group, whoever starts them: '{first}' is the first"
        ),
    };
    print_warning(
        TOOL,
        &clean(&format!("{what} (set-user-id or set-group-id)")),
    );
    print_hint(
        TOOL,
        "if the guest is not trusted, copy without --archive, or to a file system mounted with nosuid",
    );
}

/// Returns the name of the sandbox that an end of the copy is in.
fn guest(end: &Typed) -> Option<SandboxName> {
    match end {
        Typed::Guest(name, _) => Some(name.clone()),
        Typed::Host(_) | Typed::Stream => None,
    }
}

/// Returns the reason of a copy's failure, if that is a sandbox that is paused.
fn if_paused(home: &Home, names: &[Option<SandboxName>]) -> Option<anyhow::Error> {
    let is_paused = |name: &&SandboxName| {
        let seen = home.sandboxes().named(name).look();
        seen.is_ok_and(|seen| seen.state == State::Paused)
    };
    names
        .iter()
        .flatten()
        .find(is_paused)
        .map(|name| paused(name).into())
}

/// A colon behind a sandbox's name makes it a path in a guest; a path of the host with such a colon begins with `./`.
fn parse(typed: &OsString) -> anyhow::Result<Typed> {
    let bytes = typed.as_bytes();
    if bytes == b"-" {
        return Ok(Typed::Stream);
    }
    let colon = bytes.iter().position(|byte| *byte == b':');
    let name = colon.and_then(|colon| {
        let name = std::str::from_utf8(&bytes[..colon]).ok()?;
        Some((name.parse::<SandboxName>().ok()?, &bytes[colon + 1..]))
    });
    match name {
        Some((name, path)) if path.starts_with(b"/") => Ok(Typed::Guest(name, path.to_vec())),
        Some((name, path)) => {
            let path = String::from_utf8_lossy(path);
            Err(
                Failure::usage(format!("the path '{path}' in '{name}' is not absolute"))
                    .hint(format!(
                        "write {name}:/{path}, or for a file of the host ./{name}:{path}"
                    ))
                    .into(),
            )
        }
        None if bytes.is_empty() => Err(Failure::usage("a path is empty").into()),
        None => Ok(Typed::Host(PathBuf::from(OsString::from_vec(
            bytes.to_vec(),
        )))),
    }
}

fn open(home: &Home, typed: Typed) -> anyhow::Result<End> {
    Ok(match typed {
        Typed::Stream => End::Stream,
        Typed::Host(path) => End::Host(path),
        Typed::Guest(name, path) => End::Guest(connect(home, &name)?, Text(path)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_behind_a_name_makes_a_path_of_a_guest() {
        let parsed = |text: &str| parse(&OsString::from(text)).unwrap();
        let guest =
            |name: &str, path: &str| Typed::Guest(name.parse().unwrap(), path.as_bytes().to_vec());
        assert_eq!(parsed("web:/etc/a:b"), guest("web", "/etc/a:b"));
        assert_eq!(parsed("./web:/etc"), Typed::Host("./web:/etc".into()));
        assert_eq!(parsed("a/b:c"), Typed::Host("a/b:c".into()));
        assert_eq!(parsed("-"), Typed::Stream);
        assert!(parse(&OsString::from("web:etc")).is_err());
        assert!(parse(&OsString::from("")).is_err());
    }
}
