//! `msb run`: a command in a sandbox of its own.
//!
//! Without a name the sandbox goes when its command ends. With one it stays, stopped, and a later `run` of the same name
//! starts it again, its disk as it was left.

use std::ffi::OsString;

use anyhow::Context;
use clap::Parser;
use clap::builder::{OsStringValueParser, TypedValueParser};
use libmsb::cli::args::SandboxName;
use libmsb::cli::error::{Code, Failure, print_error, print_warning};
use libmsb::cli::escape::escape;
use libmsb::cli::output;
use libmsb::state::Home;
use libmsb::state::lock::Lock;
use libmsb::state::sandboxes::Sandbox;
use libmsb::state::spec::{MainBounds, Spec};
use msb_wire::client::Connection;
use msb_wire::exec::ExecRequest;
use msb_wire::text::Text;

use super::start::wait_while_stopping;
use super::{CommandArgs, PROGRAM, tell_end};
use crate::launch::{Bond, Launched, launch};
use crate::make::{MakeArgs, discard_unchanged, make};
use crate::root::{TypedRoot, parse_root};
use crate::session::{self, Streams};
use crate::startup::{Stamps, monotonic_ns};

const TOOL: &str = "msb-run";

/// Run a command in a microVM of its own, from an image
#[derive(Debug, Parser)]
#[command(
    name = TOOL,
    version,
    override_usage = "msb run [OPTIONS] IMAGE [-- COMMAND...]",
    after_help = "Examples:\n  msb run alpine -- uname -a\n  msb run -d --name worker python\n  tar c . | msb run alpine -- tar t"
)]
pub(crate) struct RunArgs {
    /// The image; or a folder or disk image of the host as the whole root, by its path
    #[arg(value_parser = OsStringValueParser::new().try_map(parse_root))]
    image: TypedRoot,
    /// The command and its arguments, in place of the image's
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
    /// Name of the sandbox, which then stays when the command ends
    #[arg(short, long)]
    name: Option<SandboxName>,
    /// Leave it running and print its name
    #[arg(short, long)]
    detach: bool,
    #[command(flatten)]
    connected: CommandArgs,
    #[command(flatten)]
    making: MakeArgs,
    /// Tell afterwards where the time went
    #[arg(long)]
    time: bool,
}

/// A sandbox that is ours to start.
struct Taken {
    sandbox: Sandbox,
    spec: Spec,
    lock: Lock,
    /// It was there before, with a specification of its own.
    existed: bool,
}

pub(crate) fn run(args: RunArgs) -> anyhow::Result<u8> {
    let begin_ns = monotonic_ns();
    let home = Home::from_env()?;
    let tty = !args.detach && args.connected.is_tty();
    let taken = take(&home, &args, tty)?;
    let argv = command(&args, &taken.spec, taken.existed, tty)?;
    let (sandbox, existed) = (taken.sandbox.clone(), taken.existed);
    let ran = if args.detach {
        detach(taken)
    } else {
        stay(&args, taken, argv, tty, begin_ns)
    };
    if ran.is_err() && !existed {
        discard_unchanged(&sandbox)?;
    }
    ran
}

fn detach(taken: Taken) -> anyhow::Result<u8> {
    let name = taken.sandbox.name.clone();
    // It is told when the guest takes commands.
    let mut launched = launch(&name, taken.lock, Bond::None)?;
    launched.wait_until_ready()?;
    output::print(&name)?;
    Ok(0)
}

/// Runs the command to its end.
fn stay(
    args: &RunArgs,
    taken: Taken,
    argv: Vec<Text>,
    tty: bool,
    begin_ns: u64,
) -> anyhow::Result<u8> {
    let request = ExecRequest {
        main: true,
        ..request(args, &taken, argv, tty)?
    };
    let streams = Streams::take(tty)?.with_timeout(args.connected.timeout());
    let image_ns = monotonic_ns();
    let launched = launch(&taken.sandbox.name, taken.lock, Bond::Client)?;
    let (code, stamps) = attach(launched, request, streams)?;
    if args.time {
        let end_ns = monotonic_ns();
        tell_times(&Times {
            begin_ns,
            image_ns,
            stamps,
            end_ns,
        });
    }
    Ok(code)
}

/// Makes the sandbox, or takes the one of that name.
fn take(home: &Home, args: &RunArgs, tty: bool) -> anyhow::Result<Taken> {
    if let Some(name) = &args.name
        && args.making.replace().is_none()
    {
        let sandbox = home.sandboxes().named(name);
        if sandbox.dir.is_dir() {
            return take_existing(sandbox, args);
        }
    }
    let main = if args.detach {
        args.connected.main_bounds()
    } else {
        MainBounds::default()
    };
    let made = make(
        home,
        &args.image,
        args.name.as_ref(),
        args.name.is_none(),
        (&args.making, &args.connected.setting, &args.command),
        main,
        |spec| command(args, spec, false, tty).map(drop),
    )?;
    Ok(Taken {
        sandbox: made.sandbox,
        spec: made.spec,
        lock: made.lock,
        existed: false,
    })
}

/// A sandbox of that name is there: it is started as it is, and what was said about its making is said to be ignored.
fn take_existing(sandbox: Sandbox, args: &RunArgs) -> anyhow::Result<Taken> {
    let name = sandbox.name.clone();
    wait_while_stopping(&sandbox)?;
    let lock = sandbox.try_lock()?.with_context(|| {
        Failure::wrong_state(format!("the sandbox '{name}' is running"))
            .code(Code::SandboxStillRunning)
            .hint(format!("run a command in it: msb exec {name} -- COMMAND"))
    })?;
    let spec = sandbox.spec()?;
    if !args.image.is(&spec.root)? {
        return Err(Failure::wrong_state(format!(
            "the sandbox '{name}' was made from '{}', not from '{}'",
            escape(spec.root.name().as_bytes()),
            args.image
        ))
        .hint(format!("choose another name, or remove it: msb rm {name}"))
        .into());
    }
    let bounded = args.detach && !args.connected.main_bounds().is_empty();
    if args.making.is_given() || bounded {
        print_warning(
            TOOL,
            &format!("the sandbox '{name}' is there already: what it is made of stays as it was"),
        );
    }
    Ok(Taken {
        sandbox,
        spec,
        lock,
        existed: true,
    })
}

/// What runs: of a new sandbox its main command; of one that was there what is typed, else its main command. There must be
/// one, unless somebody sits at a terminal or it is left running.
fn command(args: &RunArgs, spec: &Spec, existed: bool, tty: bool) -> anyhow::Result<Vec<Text>> {
    let typed: Vec<Text> = args.command.iter().cloned().map(Text::from).collect();
    let argv = if existed && !typed.is_empty() {
        typed
    } else {
        spec.command.clone()
    };
    if !argv.is_empty() || args.detach {
        return Ok(argv);
    }
    if tty {
        let shell = spec.guest.shell.clone();
        return Ok(vec![shell.unwrap_or_else(|| Text::from("/bin/sh"))]);
    }
    Err(Failure::usage(match &args.image {
        TypedRoot::Image(image) => {
            format!("the image '{}' names no command to run", image.familiar())
        }
        root => format!("the root '{root}' names no command to run"),
    })
    .hint("say which: msb run IMAGE -- COMMAND")
    .into())
}

/// A new sandbox has variables, directory and user in its specification; one that was there gets them with the command.
fn request(
    args: &RunArgs,
    taken: &Taken,
    argv: Vec<Text>,
    tty: bool,
) -> anyhow::Result<ExecRequest> {
    let mut request = args.connected.request(argv, tty);
    if taken.existed {
        request.env.extend(
            args.connected
                .setting
                .env()?
                .iter()
                .map(|variable| Text::from(variable.to_assignment())),
        );
    } else {
        (request.cwd, request.user) = (None, None);
    }
    Ok(request)
}

/// Runs the command and stays until the sandbox has come to its end.
fn attach(
    mut launched: Launched,
    request: ExecRequest,
    streams: Streams,
) -> anyhow::Result<(u8, Option<Stamps>)> {
    let session = (|| {
        let client = launched
            .client
            .take()
            .context("there is no connection to the supervisor")?;
        session::run(Connection::over(client, PROGRAM)?, request, streams)
    })();
    let (outcome, mut reader) = match session {
        Ok(session) => session,
        // The supervisor knows better why it did not serve us.
        Err(error) => return Err(launched.wait_until_gone()?.error.unwrap_or(error)),
    };
    if outcome.interrupted_by.is_none() {
        // The supervisor closes the connection when the sandbox has come to its end.
        while matches!(reader.receive(), Ok(Some(_))) {}
    }
    drop(reader);
    let gone = launched.wait_until_gone()?;
    match (tell_end(TOOL, &outcome), gone.error) {
        (Ok(code), Some(error)) if outcome.event.is_some() => {
            print_error(TOOL, &libmsb::cli::error::message(&error));
            Ok((code, gone.stamps))
        }
        (Ok(code), _) => Ok((code, gone.stamps)),
        (Err(_), Some(error)) => Err(error),
        (Err(error), None) => Err(error),
    }
}

struct Times {
    begin_ns: u64,
    image_ns: u64,
    stamps: Option<Stamps>,
    end_ns: u64,
}

fn tell_times(times: &Times) {
    let Some(stamps) = times.stamps else { return };
    let guest = stamps.guest_ready_ns;
    let until_ready = stamps.ready_ns.saturating_sub(times.image_ns);
    let rows = [
        (
            "image",
            times.image_ns.saturating_sub(times.begin_ns),
            "find the image, make the sandbox",
        ),
        (
            "vmm",
            until_ready.saturating_sub(guest),
            if stamps.from_memory {
                "start the virtual machine, until its guest goes on"
            } else {
                "start the virtual machine, until its kernel runs"
            },
        ),
        ("kernel", stamps.guest_agent_ns, "until the agent runs"),
        (
            "agent",
            guest.saturating_sub(stamps.guest_agent_ns),
            "until the guest takes commands",
        ),
        (
            "command",
            times.end_ns.saturating_sub(stamps.ready_ns),
            "the command, and the sandbox's end",
        ),
        ("total", times.end_ns.saturating_sub(times.begin_ns), ""),
    ];
    for (name, ns, what) in rows {
        eprintln!(
            "{}",
            format!("{name:<8} {:>8.3} s   {what}", ns as f64 / 1e9).trim_end()
        );
    }
}
