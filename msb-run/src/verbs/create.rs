//! `msb create`: creates a persistent sandbox.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::error::ContextKind;
use clap::parser::ValueSource;
use clap::{ArgGroup, Args, CommandFactory, FromArgMatches, Parser};
use libmsb::cli::args::SandboxName;
use libmsb::cli::error::{Failure, code, message, print_warning};
use libmsb::cli::escape::escape;
use libmsb::cli::{output, verbosity};
use libmsb::state::Home;
use libmsb::state::spec::Spec;

use super::start::KeepaliveArgs;
use super::{CommandContextArgs, QuietArgs};
use crate::command_words;
use crate::launch::launch_with;
use crate::microsandbox::{self, GivenValues};
use crate::new_sandbox::{SandboxArgs, create_sandbox, discard, discard_unstarted};
use crate::root::{RootArg, parse_root};
use crate::secrets;
use crate::snapshot::option::SnapshotOption;

const TOOL: &str = "msb-create";

/// Create a persistent sandbox and start it
#[derive(Debug, Parser)]
#[command(
    name = TOOL,
    version,
    group = ArgGroup::new("named").args(["name", "file"]).multiple(true),
    override_usage = "msb create [OPTIONS] IMAGE [COMMAND...]\n       msb create [OPTIONS] --file FILE [COMMAND...]",
    after_help = "Examples:\n  msb create --name web --label team=ml nginx\n  name=$(msb create --no-start alpine)\n  msb inspect web --format json | msb create --file - --name copy"
)]
pub(crate) struct CreateArgs {
    /// Image, or the path of a directory or disk image as the root
    ///
    /// A path is that of **Root from a host path** in msb-run(1).
    #[arg(
        required_unless_present_any = ["from_microsandbox", "snapshot", "file"],
        value_parser = OsStringValueParser::new().try_map(parse_root)
    )]
    image: Option<RootArg>,
    /// Main command and arguments, instead of the command of the image
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
    /// Name the sandbox [default: a generated name]
    #[arg(short, long)]
    name: Option<SandboxName>,
    #[command(flatten)]
    quiet: QuietArgs,
    #[command(flatten)]
    from: ImportArgs,
    /// Create the sandbox without starting it
    #[arg(long, conflicts_with = "bond_fd", help_heading = "Lifetime")]
    no_start: bool,
    #[command(flatten)]
    keepalive: KeepaliveArgs,
    #[command(flatten)]
    context: CommandContextArgs,
    #[command(flatten)]
    sandbox_args: SandboxArgs,
    #[command(flatten)]
    from_snapshot: SnapshotOption,
}

/// Options to create a sandbox from a configuration of another program.
#[derive(Debug, Args)]
struct ImportArgs {
    /// Import a stored configuration of microsandbox 0.5; other options override it
    ///
    /// FILE holds what `inspect --format json` of that program prints, or its field `config`; `-` is
    /// standard input. The image argument can be omitted. The sandbox runs until it is stopped. Every field is
    /// imported, or it is an error that names the field. Unsupported are a secret for
    /// every host, an authority or `verify_upstream` of TLS interception, VMware disks,
    /// `stat_virtualization` and `host_permissions` with other values than the defaults, fixed
    /// addresses of the interface and `trust_host_cas`. `registry_auth` is used for the pull of the
    /// image and is not stored. The values of secrets are not stored either: those on standard input
    /// are for the start of the new sandbox, those in a file are ignored. A warning names `log_level`, which has no meaning
    /// here, a volume that is new, and an image with another digest than the stored one.
    #[arg(long, value_name = "FILE", conflicts_with = "file", help_heading = "Guest setup")]
    from_microsandbox: Option<PathBuf>,
    /// With --from-microsandbox, import the rest without an unsupported field
    ///
    /// FIELD is the name in the error, such as `mounts.2`; several are separated by commas. A
    /// warning repeats each. A field without which the sandbox would be less restricted, and a
    /// field that this version does not know, cannot be left out: `network.tls`,
    /// `network.policy.rules.N`, `network.dns.nameservers.N` and `network.max_connections`.
    #[arg(
        long,
        value_name = "FIELD",
        value_delimiter = ',',
        requires = "from_microsandbox",
        help_heading = "Guest setup"
    )]
    leave_out: Vec<String>,
}

impl ImportArgs {
    /// Returns whether the configuration is read from standard input.
    fn is_stdin(&self) -> bool {
        self.from_microsandbox.as_deref() == Some(Path::new(microsandbox::STDIN))
    }
}

/// Arguments with those of a stored configuration.
struct ImportedArgs {
    args: CreateArgs,
    /// Digest of the stored image, unless another image is typed.
    stored_digest: Option<String>,
    /// Values of secrets, for the start that follows.
    secret_values: GivenValues,
}

/// Adds the arguments of a stored configuration before the typed ones.
fn import(home: &Home, typed: CreateArgs, words: Vec<OsString>) -> anyhow::Result<ImportedArgs> {
    let Some(path) = &typed.from.from_microsandbox else {
        let (stored_digest, secret_values) = (None, GivenValues::default());
        return Ok(ImportedArgs { args: typed, stored_digest, secret_values });
    };
    let command = verbosity::with_options(CreateArgs::command());
    let words = command_words::separate(&command, words);
    let matches = command.clone().ignore_errors(true).get_matches_from(&words);
    let import = microsandbox::import(path, &typed.from.leave_out, |option| {
        let id = option.replace('-', "_");
        matches.value_source(&id) == Some(ValueSource::CommandLine)
    })?;
    for warning in &import.warnings {
        print_warning(TOOL, warning);
    }
    let imported = [OsString::from(TOOL)].into_iter().chain(import.arguments);
    let all = imported.chain(words.into_iter().skip(1));
    let merged = command.try_get_matches_from(all);
    let args = merged.and_then(|matches| CreateArgs::from_arg_matches(&matches));
    let mut args = args.map_err(|error| invalid_value(path, &error))?;
    args.sandbox_args.imported = import.spec;
    args.name = match args.name {
        None => import.name.as_deref().map(str::parse).transpose()?,
        typed => typed,
    };
    let stored_digest = import.manifest_digest.filter(|_| args.image.is_none());
    args.image = args.image.or(import.root);
    warn_of_new_volumes(home, &import.volume_names);
    Ok(ImportedArgs { args, stored_digest, secret_values: import.secret_values })
}

/// Returns the error about a value of a stored configuration that an option does not take. Values
/// are never printed: some are secrets.
fn invalid_value(path: &Path, error: &clap::Error) -> Failure {
    let option = error.get(ContextKind::InvalidArg).map(ToString::to_string).unwrap_or_default();
    let option = option.split([' ', '=']).next().unwrap_or_default().to_owned();
    Failure::usage(format!("'{}' has an invalid value for {option}", path.display()))
}

/// Warns of volumes that are created now: their data are those of the other program.
fn warn_of_new_volumes(home: &Home, names: &[String]) {
    for name in names {
        let found = name.parse().is_ok_and(|name| home.volumes().find(&name).is_ok());
        if !found {
            let name = escape(name);
            print_warning(
                TOOL,
                &format!("the volume '{name}' is new: copy the data of microsandbox's"),
            );
        }
    }
}

/// Warns of an image whose contents are not those of the stored sandbox.
fn warn_of_another_image(spec: &Spec, stored_digest: Option<&str>) {
    let (Some(stored), Some(image)) = (stored_digest, spec.root.image()) else {
        return;
    };
    let found = image.manifest_digest.to_string();
    if found != stored {
        let (reference, stored) = (escape(&image.reference), escape(stored));
        print_warning(
            TOOL,
            &format!("the image '{reference}' is {found}; the stored sandbox had {stored}"),
        );
    }
}

/// Returns the error of an imported sandbox that failed to start, without a hint at its logs.
fn removed_import(error: &anyhow::Error) -> Failure {
    Failure::failed(message(error))
        .code(code(error))
        .hint("the sandbox was removed again; correct the configuration, or leave a field out")
}

pub(crate) fn run(args: CreateArgs) -> anyhow::Result<()> {
    args.quiet.apply();
    args.sandbox_args.apply_log_level();
    let home = Home::from_env()?;
    if (args.from.is_stdin() || args.sandbox_args.is_stdin_file())
        && args.keepalive.number() == Some(0)
    {
        let message = "standard input cannot be both the configuration and the keepalive pipe";
        return Err(Failure::usage(message).into());
    }
    // Before anything is created: a wrong descriptor leaves no sandbox behind.
    let keepalive = args.keepalive.open()?;
    let imported = import(&home, args, std::env::args_os().collect())?;
    let ImportedArgs { mut args, stored_digest, secret_values } = imported;
    let file = args.sandbox_args.read_file(&home, args.name.as_ref())?;
    args.name = args.name.or(file.name);
    args.image = args.image.or(file.root);
    let ephemeral = args.sandbox_args.removes_sandbox();
    if ephemeral && args.no_start {
        return Err(Failure::usage("--rm without a path cannot be used with --no-start").into());
    }
    let root = if args.from_snapshot.is_given() || args.image.is_some() {
        args.from_snapshot.root(args.image.as_ref())?
    } else {
        return Err(Failure::usage("the configuration names no image").into());
    };
    let created = create_sandbox(
        &home,
        &root,
        args.name.as_ref(),
        ephemeral,
        (&args.sandbox_args, &args.context, &args.command),
        args.sandbox_args.file_main(),
        |spec| {
            warn_of_another_image(spec, stored_digest.as_deref());
            Ok(())
        },
    )?;
    for warning in &created.warnings {
        print_warning(TOOL, warning);
    }
    let name = created.sandbox.name.clone();
    if !args.no_start {
        let started = secrets::resolve_with(&created.sandbox.spec()?, &secret_values.0)
            .and_then(|secrets| launch_with(&name, created.lock, keepalive, secrets))
            .and_then(|mut new| new.wait_until_ready());
        if let Err(error) = started {
            if args.from.from_microsandbox.is_some() {
                // The imported sandbox is still in microsandbox: a second attempt starts afresh.
                discard(&created.sandbox)?;
                created.volumes.discard();
                return Err(removed_import(&error).into());
            }
            return Err(discard_unstarted(&created.sandbox, error)?);
        }
    }
    created.volumes.keep();
    Ok(output::print(&name)?)
}
