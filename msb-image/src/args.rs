//! What users type.

use std::path::PathBuf;

use clap::{Args as Options, Parser, Subcommand, ValueEnum};

use crate::stream::Packing;

/// Images of msb: load archives, import root file systems, list, inspect, remove
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
    Load(Load),
    Save(Save),
    Import(Import),
    #[command(visible_alias = "ls")]
    List(List),
    Inspect(Inspect),
    #[command(visible_alias = "rm")]
    Remove(Remove),
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
