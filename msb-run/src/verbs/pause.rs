//! `msb pause` and `msb resume`: stop the processors of guests, and let them run again.

use clap::Parser;
use libmsb::cli::args::SandboxName;
use libmsb::cli::error::{Code, Failure, Kind};
use libmsb::cli::escape::escape;
use libmsb::state::Home;
use msb_wire::sandbox::{PauseEvent, PauseFailure, Request};

use super::selection::{Selection, for_each};
use super::{answer, connect, refusal};

const PAUSE: &str = "msb-pause";
const RESUME: &str = "msb-resume";

/// Pause sandboxes: stop the processors of their guests
#[derive(Debug, Parser)]
#[command(
    name = PAUSE,
    version,
    after_help = "Examples:\n  msb pause web\n  msb pause --label team=ml"
)]
pub(crate) struct PauseArgs {
    #[command(flatten)]
    selection: Selection,
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
    selection: Selection,
}

pub(crate) fn pause(args: PauseArgs) -> anyhow::Result<()> {
    change_all(PAUSE, &args.selection, &Request::Pause)
}

pub(crate) fn resume(args: ResumeArgs) -> anyhow::Result<()> {
    change_all(RESUME, &args.selection, &Request::Resume)
}

fn change_all(tool: &'static str, selection: &Selection, request: &Request) -> anyhow::Result<()> {
    let home = Home::from_env()?;
    let names = selection.names(tool, &home)?;
    for_each(tool, &names, |name| change(&home, name, request))
}

fn change(home: &Home, name: &SandboxName, request: &Request) -> anyhow::Result<()> {
    let message = answer(connect(home, name)?, request)?;
    match serde_json::from_slice(&message) {
        Ok(PauseEvent::Paused | PauseEvent::Resumed) => Ok(()),
        Ok(PauseEvent::Failed {
            kind,
            message,
            hint,
        }) => Err(failure(kind, &message, hint.as_deref()).into()),
        Err(_) => Err(refusal(name, &message).into()),
    }
}

fn failure(kind: PauseFailure, message: &str, hint: Option<&str>) -> Failure {
    let (kind, code) = match kind {
        PauseFailure::WrongState => (Kind::WrongState, Code::WrongState),
        PauseFailure::UnsupportedOperation => (Kind::Failed, Code::UnsupportedOperation),
        PauseFailure::Other => (Kind::Failed, Code::Failed),
    };
    let failure = Failure::new(kind, escape(message).into_owned()).code(code);
    match hint {
        Some(hint) => failure.hint(escape(hint).into_owned()),
        None => failure,
    }
}
