//! `msb install`: makes an alias, a command that runs an image.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use clap::{Parser, ValueEnum};
use libmsb::cli::args::{parse_cpus, parse_env_with, parse_memory};
use libmsb::cli::error::{Failure, print_note};
use libmsb::cli::output;
use libmsb::cli::style::Table;
use libmsb::state::Home;
use libmsb::state::aliases::{Alias, AliasMode, AliasName, AliasSpec, Aliases, path_line};
use libmsb::state::image_name::ImageName;
use serde::Serialize;

use crate::mounts;
use crate::pull::PullPolicy;
use crate::root::RootArg;

const TOOL: &str = "msb-install";

/// Make a command that runs an image
#[derive(Debug, Parser)]
#[command(
    name = TOOL,
    version,
    override_usage = "msb install [OPTIONS] IMAGE [COMMAND...]\n       msb install --list",
    after_help = "Examples:\n  msb install --tmp -v .:/work -w /work --name py python python3\n  msb install --list"
)]
pub(crate) struct InstallArgs {
    /// Image that the command runs
    #[arg(required_unless_present = "list", value_name = "IMAGE")]
    image: Option<ImageName>,
    /// Program and its first arguments, instead of those of the image
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
    /// Set the name of the command [default: the last part of the image's name]
    #[arg(short, long, value_name = "NAME")]
    name: Option<AliasName>,
    /// Run in a new sandbox each time
    ///
    /// Without this option the first call creates a sandbox of the command's name, and each later
    /// call starts it again with the same disk. Calls at the same time share the sandbox, which
    /// ends with the last of them.
    #[arg(long)]
    tmp: bool,
    /// Replace a command of the same name
    ///
    /// A file that **msb install** did not write is never replaced.
    #[arg(short, long)]
    force: bool,
    /// Do not pull the image now, even if it is missing
    #[arg(long)]
    no_pull: bool,
    #[command(flatten)]
    sandbox: AliasSandboxArgs,
    /// List the installed commands
    #[arg(short, long, conflicts_with_all = ["image", "name", "tmp", "force", "no_pull"])]
    list: bool,
    /// Print the list as an array of JSON objects
    #[arg(long, value_enum, requires = "list")]
    format: Option<ListFormat>,
}

/// Options that are passed to `msb run`.
#[derive(Debug, clap::Args)]
struct AliasSandboxArgs {
    /// Set the number of virtual CPUs
    #[arg(short, long, value_parser = parse_cpus, value_name = "N")]
    cpus: Option<u8>,
    /// Set the memory, such as 512M or 1.5G
    #[arg(short, long, value_parser = parse_memory, value_name = "SIZE")]
    memory: Option<u32>,
    /// Mount a volume, or a directory or file of the host
    ///
    /// A relative path is relative to the directory in which the command is called.
    #[arg(short, long, value_name = "SOURCE:TARGET[:OPTION,...]")]
    volume: Vec<OsString>,
    /// Set the working directory in the guest
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<OsString>,
    /// Set the shell of the sandbox
    #[arg(long, value_name = "PROGRAM")]
    shell: Option<OsString>,
    /// Set an environment variable; NAME alone copies it at each call
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<OsString>,
}

impl AliasSandboxArgs {
    /// Returns the options of `msb run`, checked.
    fn options(&self) -> Result<Vec<OsString>, Failure> {
        for volume in &self.volume {
            mounts::parse_volume(volume)?;
        }
        for variable in &self.env {
            parse_env_with(variable, |_| Some(OsString::new()))?;
        }
        let cpus = self.cpus.map(|cpus| OsString::from(cpus.to_string()));
        let memory = self.memory.map(|mib| OsString::from(format!("{mib}M")));
        let pairs = cpus
            .map(|value| ("-c", value))
            .into_iter()
            .chain(memory.map(|value| ("-m", value)))
            .chain(self.volume.iter().map(|value| ("-v", value.clone())))
            .chain(self.workdir.iter().map(|value| ("-w", value.clone())))
            .chain(self.shell.iter().map(|value| ("--shell", value.clone())))
            .chain(self.env.iter().map(|value| ("-e", value.clone())));
        Ok(pairs.flat_map(|(option, value)| [OsString::from(option), value]).collect())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ListFormat {
    Json,
}

#[derive(Serialize)]
struct AliasRow<'a> {
    name: &'a str,
    image: &'a str,
    mode: &'a str,
    command: &'a str,
}

pub(crate) fn run(args: InstallArgs) -> anyhow::Result<()> {
    let home = Home::from_env()?;
    let Some(image) = &args.image else {
        return list(&home.aliases().list()?, args.format);
    };
    let name = match &args.name {
        Some(name) => name.clone(),
        None => default_name(image)?,
    };
    let root = RootArg::Image(image.clone());
    let spec = AliasSpec {
        image: root.to_string(),
        mode: if args.tmp { AliasMode::Temporary } else { AliasMode::Persisted },
        options: args.sandbox.options()?,
        command: args.command,
    };
    if !args.no_pull {
        drop(root.resolve(&home, PullPolicy::IfMissing, None)?);
    }
    home.prepare()?;
    let aliases = home.aliases();
    aliases.install(&name, &spec, args.force)?;
    output::print(&name)?;
    if !is_in_path(&aliases) {
        let line = path_line(aliases.root());
        print_note(TOOL, &format!("add to the profile of your shell: {line}"));
    }
    Ok(())
}

/// Returns the last part of the image's name.
fn default_name(image: &ImageName) -> Result<AliasName, Failure> {
    let no_name =
        || Failure::usage("an image ID gives the command no name").hint("add --name NAME");
    if image.is_id() {
        return Err(no_name());
    }
    image.reference().path().rsplit('/').next().ok_or_else(no_name)?.parse()
}

fn is_in_path(aliases: &Aliases) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    path.as_bytes()
        .split(|byte| *byte == b':')
        .any(|directory| directory == aliases.root().as_os_str().as_bytes())
}

fn list(aliases: &[Alias], format: Option<ListFormat>) -> anyhow::Result<()> {
    let rows: Vec<AliasRow<'_>> = aliases
        .iter()
        .map(|alias| AliasRow {
            name: alias.name.as_str(),
            image: &alias.image,
            mode: &alias.mode,
            command: &alias.command,
        })
        .collect();
    if format == Some(ListFormat::Json) {
        return Ok(output::print_json(&rows)?);
    }
    if rows.is_empty() {
        libmsb::cli::error::print_remark(TOOL, "no installed commands");
        return Ok(());
    }
    let mut table = Table::new(&["NAME", "IMAGE", "MODE", "COMMAND"]);
    for row in &rows {
        table.row([row.name, row.image, row.mode, row.command].map(str::to_owned));
    }
    Ok(table.print()?)
}
