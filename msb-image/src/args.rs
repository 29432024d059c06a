//! What users type.

use std::path::PathBuf;

use clap::{Args as Options, Parser, Subcommand, ValueEnum};

/// Images of msb: pull, load archives, import root file systems, list, inspect, remove
#[derive(Debug, Parser)]
#[command(
    name = "msb-image",
    version,
    about,
    disable_help_subcommand = true,
    arg_required_else_help = true
)]
#[command(after_help = "Example:\n  docker save alpine:3.20 | msb image load\n  msb image list")]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Pull(Pull),
    Load(Load),
    Import(Import),
    #[command(visible_alias = "ls")]
    List(List),
    Inspect(Inspect),
    #[command(visible_alias = "rm")]
    Remove(Remove),
    Registry(Registry),
}

/// Pull an image from a registry
///
/// What the store has is not fetched again, and a download that broke off goes on where it stopped.
#[derive(Debug, Options)]
#[command(
    after_help = "Examples:\n  msb image pull alpine:3.20\n  msb image pull --ca-certs ca.pem registry.example:5000/team/app"
)]
pub(crate) struct Pull {
    /// The image
    #[arg(value_name = "REF")]
    pub(crate) reference: String,
    /// Take the image for this platform, not the one for this machine
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub(crate) platform: Option<String>,
    /// Fetch everything, even what is there
    #[arg(short, long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) way: Way,
    /// Print events as JSON, one a line
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<Format>,
    /// Show no progress, and no name
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// How a registry is reached.
#[derive(Clone, Debug, Options)]
pub(crate) struct Way {
    /// Do without TLS, or with certificates that nobody vouches for
    #[arg(long)]
    pub(crate) insecure: bool,
    /// Trust the authorities in this file too (PEM)
    #[arg(long, value_name = "PATH")]
    pub(crate) ca_certs: Option<PathBuf>,
}

/// Log in to registries and out of them
///
/// Credentials are kept where Docker keeps them: in its config.json, or with the credential helpers that it names.
#[derive(Debug, Options)]
#[command(
    arg_required_else_help = true,
    after_help = "Example:\n  msb image registry login ghcr.io -u alice --password-stdin < token"
)]
pub(crate) struct Registry {
    #[command(subcommand)]
    pub(crate) command: RegistryCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RegistryCommand {
    Login(Login),
    Logout(Logout),
    #[command(visible_alias = "ls")]
    List(Logins),
}

/// Log in: try credentials at a registry and keep them
#[derive(Debug, Options)]
pub(crate) struct Login {
    /// The registry
    #[arg(value_name = "REGISTRY", default_value = "docker.io")]
    pub(crate) registry: String,
    /// The user
    #[arg(short, long, value_name = "NAME")]
    pub(crate) username: Option<String>,
    /// Read the password, or token, from standard input
    #[arg(long)]
    pub(crate) password_stdin: bool,
    #[command(flatten)]
    pub(crate) way: Way,
}

/// Log out: forget the credentials for a registry
#[derive(Debug, Options)]
pub(crate) struct Logout {
    /// The registry
    #[arg(value_name = "REGISTRY", default_value = "docker.io")]
    pub(crate) registry: String,
}

/// List the registries that there are credentials for
#[derive(Debug, Options)]
pub(crate) struct Logins {
    /// Print JSON
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<Format>,
}

/// Load images from an archive of docker, podman, skopeo or buildah
///
/// The archive is a docker-archive or an OCI archive, itself perhaps compressed with gzip or zstd. It is read once, from
/// standard input or a file; nothing of it is unpacked on the host.
#[derive(Debug, Options)]
#[command(
    after_help = "Example:\n  docker save alpine:3.20 | msb image load\n  msb image load -i python.tar -t python:dev"
)]
pub(crate) struct Load {
    /// Read the archive from this file, not from standard input
    #[arg(short, long, value_name = "PATH")]
    pub(crate) input: Option<PathBuf>,
    /// Also give the first image of the archive this name (may be repeated)
    #[arg(short, long = "tag", value_name = "REF")]
    pub(crate) tags: Vec<String>,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// Make an image of one layer from a tar of a root file system
#[derive(Debug, Options)]
#[command(
    after_help = "Example:\n  mmdebstrap --variant=minbase bookworm - | msb image import debian:12"
)]
pub(crate) struct Import {
    /// Name of the new image
    pub(crate) name: String,
    /// Read the tar from this file, not from standard input
    #[arg(short, long, value_name = "PATH")]
    pub(crate) input: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// List images
#[derive(Debug, Options)]
#[command(after_help = "Example:\n  msb image list --format json")]
pub(crate) struct List {
    /// Print JSON
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<Format>,
    /// Print names only
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// Show what is known of an image
#[derive(Debug, Options)]
#[command(after_help = "Example:\n  msb image inspect alpine:3.20")]
pub(crate) struct Inspect {
    /// The image
    #[arg(value_name = "REF")]
    pub(crate) reference: String,
    /// Print JSON
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<Format>,
}

/// Remove images, and what only they need
#[derive(Debug, Options)]
#[command(after_help = "Example:\n  msb image remove alpine:3.20 python:dev")]
pub(crate) struct Remove {
    /// The images
    #[arg(value_name = "REF", required = true)]
    pub(crate) references: Vec<String>,
    /// Remove even if sandboxes were made from it; they cannot start any more
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Say nothing
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// What a command that brings images says.
#[derive(Clone, Copy, Debug, Options)]
pub(crate) struct Output {
    /// Print one JSON object for each image
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<Format>,
    /// Show no progress, and no names of images
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// Formats for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Json,
}
