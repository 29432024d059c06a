//! What users type.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args as Options, Parser, Subcommand, ValueEnum};

use crate::stream::Packing;

/// Images of msb: pull, load, save, import, list, inspect, tag, remove, prune, check
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
    Save(Save),
    Import(Import),
    #[command(visible_alias = "ls")]
    List(List),
    Inspect(Inspect),
    Tag(Tag),
    #[command(visible_alias = "rm")]
    Remove(Remove),
    Prune(Prune),
    Df(Df),
    Check(Check),
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
    /// Keep compressed layers as they came too, so that a saved image has the same manifest digest
    #[arg(long)]
    pub(crate) keep_blobs: bool,
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
    /// Keep compressed layers as they came too, so that a saved image has the same manifest digest
    #[arg(long)]
    pub(crate) keep_blobs: bool,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// Save images as an archive for docker, podman, skopeo and `msb image load`
///
/// Each layer is written byte for byte as it was loaded, so that image IDs stay what they are.
#[derive(Debug, Options)]
#[command(
    after_help = "Example:\n  msb image save alpine:3.20 | ssh host msb image load\n  msb image save -o both.tar alpine:3.20 python:dev"
)]
pub(crate) struct Save {
    /// The images
    #[arg(value_name = "REF", required = true)]
    pub(crate) references: Vec<String>,
    /// Write the archive to this file, which appears when it is whole, not to standard output
    #[arg(short, long, value_name = "PATH")]
    pub(crate) output: Option<PathBuf>,
    /// Form of the archive (docker, if none is named); json prints one JSON object for each image besides
    #[arg(long = "format", value_name = "FORMAT")]
    pub(crate) formats: Vec<SaveFormat>,
    /// Compress the layers; their manifest gets another digest
    #[arg(long, value_name = "HOW")]
    pub(crate) compress: Option<Compression>,
    /// Show no progress, and no names of images
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// Make an image of one layer from a tar of a root file system
#[derive(Debug, Options)]
#[command(
    after_help = "Example:\n  mmdebstrap --variant=minbase bookworm - | msb image import debian:12\n  msb image import --cmd '[\"python3\"]' --env LANG=C.UTF-8 python:mine < root.tar"
)]
pub(crate) struct Import {
    /// Name of the new image
    pub(crate) name: String,
    /// Read the tar from this file, not from standard input
    #[arg(short, long, value_name = "PATH")]
    pub(crate) input: Option<PathBuf>,
    /// A variable of the image, NAME=VALUE, or NAME for its value here (may be repeated)
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<OsString>,
    /// A word of the image's command (may be repeated), or all of them as a JSON array
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    pub(crate) cmd: Vec<String>,
    /// A word of what stands before the command (may be repeated), or all of them as a JSON array
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    pub(crate) entrypoint: Vec<String>,
    /// Directory in which commands run
    #[arg(short, long, value_name = "PATH")]
    pub(crate) workdir: Option<String>,
    /// User as whom commands run
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<String>,
    /// A label of the image (may be repeated)
    #[arg(long = "label", value_name = "KEY[=VALUE]")]
    pub(crate) labels: Vec<String>,
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

/// Give an image one more name
#[derive(Debug, Options)]
#[command(after_help = "Example:\n  msb image tag python:3.13 python:mine")]
pub(crate) struct Tag {
    /// The image
    #[arg(value_name = "REF")]
    pub(crate) source: String,
    /// The new name; if another image has it, that one loses it
    #[arg(value_name = "NEW")]
    pub(crate) name: String,
    /// Say nothing
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// Remove all images that no sandbox was made from, and whatever is left over
///
/// Waits for loads, pulls and starts that go on. Downloads that broke off go as well.
#[derive(Debug, Default, Options)]
#[command(
    after_help = "Example:\n  msb image prune --yes --filter until=720h\n  msb image prune --yes --format json"
)]
pub(crate) struct Prune {
    /// Do not ask
    #[arg(short, long)]
    pub(crate) yes: bool,
    /// Only images like that: until=24h, until=2026-01-31, label=KEY[=VALUE], label!=KEY[=VALUE] (may be repeated)
    #[arg(long = "filter", value_name = "FILTER")]
    pub(crate) filters: Vec<String>,
    /// Keep every image that has a name; only what is left over goes
    #[arg(long, conflicts_with = "filters")]
    pub(crate) dangling: bool,
    /// Print JSON
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<Format>,
    /// Say nothing
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// Show what images take on the disk: each alone, and together with others
#[derive(Debug, Options)]
#[command(after_help = "Example:\n  msb image df")]
pub(crate) struct Df {
    /// Print JSON
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<Format>,
}

/// Check every file of the image store against its digest
///
/// Each problem is printed on a line of its own; with one or more the exit code is 1.
#[derive(Debug, Options)]
#[command(after_help = "Example:\n  msb image check")]
pub(crate) struct Check {
    /// Print JSON
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<Format>,
    /// Print problems only
    #[arg(short, long)]
    pub(crate) quiet: bool,
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

/// What `save --format` takes: a form of archive, or what is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SaveFormat {
    /// manifest.json and index.json
    Docker,
    /// index.json alone
    Oci,
    /// Print one JSON object for each image
    Json,
}

/// How layers are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Compression {
    Gzip,
    Zstd,
}

impl From<Compression> for Packing {
    fn from(compression: Compression) -> Packing {
        match compression {
            Compression::Gzip => Packing::Gzip,
            Compression::Zstd => Packing::Zstd,
        }
    }
}

/// Formats for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Json,
}
