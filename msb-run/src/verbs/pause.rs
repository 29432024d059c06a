//! `msb pause` and `msb resume`: stop and continue the virtual processors of guests.

use clap::Parser;
use libmsb::cli::args::SandboxName;
use libmsb::cli::error::{Code, ErrorKind, Failure};
use libmsb::cli::escape::escape;
use libmsb::state::Home;
use msb_wire::sandbox::{PauseEvent, PauseFailure, Request};

use super::selection::{NamesArgs, SelectionArgs, for_each};
use super::{answer, connect, refusal};

const PAUSE: &str = "msb-pause";
const RESUME: &str = "msb-resume";

/// Pause running sandboxes: stop their virtual CPUs
#[derive(Debug, Parser)]
#[command(
    name = PAUSE,
    version,
    after_help = "Examples:\n  msb pause web\n  msb pause --label team=ml"
)]
pub(crate) struct PauseArgs {
    #[command(flatten)]
    selection: SelectionArgs,
    #[command(flatten)]
    names: NamesArgs,
}

/// Resume paused sandboxes
#[derive(Debug, Parser)]
#[command(
    name = RESUME,
    version,
    after_help = "Examples:\n  msb resume web\n  msb resume --label team=ml"
)]
pub(crate) struct ResumeArgs {
    #[command(flatten)]
    selection: SelectionArgs,
    #[command(flatten)]
    names: NamesArgs,
}

pub(crate) fn pause(args: PauseArgs) -> anyhow::Result<()> {
    change_all(PAUSE, &args.selection, &args.names, &Request::Pause)
}

pub(crate) fn resume(args: ResumeArgs) -> anyhow::Result<()> {
    change_all(RESUME, &args.selection, &args.names, &Request::Resume)
}

fn change_all(
    tool: &'static str,
    selection: &SelectionArgs,
    printed: &NamesArgs,
    request: &Request,
) -> anyhow::Result<()> {
    let home = Home::from_env()?;
    let names = selection.names(tool, &home)?;
    for_each(tool, &names, |name| {
        change(&home, name, request)?;
        Ok(printed.line(name))
    })
}

fn change(home: &Home, name: &SandboxName, request: &Request) -> anyhow::Result<()> {
    let message = answer(connect(home, name)?, request)?;
    match serde_json::from_slice(&message) {
        Ok(PauseEvent::Paused | PauseEvent::Resumed) => Ok(()),
        Ok(PauseEvent::Failed { kind, message, hint }) => {
            Err(failure(kind, &message, hint.as_deref()).into())
        }
        Err(_) => Err(refusal(name, &message).into()),
    }
}

fn failure(kind: PauseFailure, message: &str, hint: Option<&str>) -> Failure {
    let (kind, code) = match kind {
        PauseFailure::WrongState => (ErrorKind::WrongState, Code::WrongState),
        PauseFailure::UnsupportedOperation => (ErrorKind::Failed, Code::UnsupportedOperation),
        PauseFailure::Other => (ErrorKind::Failed, Code::Failed),
    };
    let failure = Failure::new(kind, escape(message).into_owned()).code(code);
    match hint {
        Some(hint) => failure.hint(escape(hint).into_owned()),
        None => failure,
    }
}
