//! The verbs of `msb image`, a file for each. No verb imports another one.

/// `msb image check`.
mod check;
/// `msb image df`.
mod df;
/// `msb image import`.
mod import;
/// `msb image inspect`.
mod inspect;
/// `msb image list`.
mod list;
/// `msb image load`.
mod load;
/// `msb image registry`: login, logout and list.
mod login;
/// `msb image prune`.
mod prune;
/// `msb image pull`.
mod pull;
/// `msb image remove`.
mod remove;
/// `msb image save`.
mod save;
/// `msb image tag`.
mod tag;

use crate::args::Command;

/// Runs a verb.
pub(crate) fn run(command: Command) -> anyhow::Result<()> {
    let home = libmsb::state::Home::from_env()?;
    match command {
        Command::Load(args) => load::run(&home, args),
        Command::Save(args) => save::run(&home, args),
        Command::Pull(args) => pull::run(&home, args),
        Command::Registry(args) => login::run(&home, args),
        Command::Import(args) => import::run(&home, args),
        Command::List(args) => list::run(&home, args),
        Command::Inspect(args) => inspect::run(&home, args),
        Command::Tag(args) => tag::run(&home, args),
        Command::Remove(args) => remove::run(&home, args),
        Command::Prune(args) => prune::run(&home, args),
        Command::Df(args) => df::run(&home, args),
        Command::Check(args) => check::run(&home, args),
    }
}
