//! What users type.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args as Options, Parser, Subcommand, ValueEnum};

use crate::stream::BlobCompression;

/// Manage images: pull, load, save, import, list, inspect, tag, remove, prune, check
#[derive(Debug, Parser)]
#[command(
    name = "msb-image",
    version,
    about,
    disable_help_subcommand = true,
    arg_required_else_help = true
)]
#[command(after_help = "Example:\n  docker save alpine:3.20 | msb image load\n  msb image list")]
pub struct Args {
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
/// Layers that the store already has are not fetched, and an interrupted download resumes; see
/// **REGISTRY ACCESS**. Images with a manifest of schema 1, the format before 2016, are refused,
/// and so are images with foreign layers, which are not in the registry.
#[derive(Debug, Options)]
#[command(
    after_help = "Examples:\n  msb image pull alpine:3.20\n  msb image pull --ca-certs ca.pem registry.example:5000/team/app"
)]
pub(crate) struct Pull {
    /// Image to pull
    #[arg(value_name = "REF")]
    pub(crate) reference: String,
    /// Pull the image for this platform [default: that of this host]
    ///
    /// An example is `linux/arm64`. An image for another platform can be saved but not run.
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub(crate) platform: Option<String>,
    /// Fetch all layers again, even those in the store
    ///
    /// The fetched layers replace those in the store. This repairs a store with damaged files.
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Keep compressed layers too, so that save keeps the manifest digest
    ///
    /// The compressed layers take additional disk space. The `save` command then writes them and
    /// the manifest unchanged, for users who pin an image by the digest of its manifest.
    #[arg(long)]
    pub(crate) keep_blobs: bool,
    /// User name for this pull, instead of stored credentials
    #[arg(short, long, value_name = "NAME", requires = "password_stdin")]
    pub(crate) username: Option<String>,
    /// Read the password or token for this pull from standard input
    #[arg(long, requires = "username")]
    pub(crate) password_stdin: bool,
    #[command(flatten)]
    pub(crate) connection: ConnectionArgs,
    /// Print events as JSON, one per line
    ///
    /// See msb-events(5).
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<OutputFormat>,
    /// Print no progress and no name
    ///
    /// Otherwise one line for each layer is shown on a terminal.
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// Options for the connection to a registry.
#[derive(Clone, Debug, Options)]
pub(crate) struct ConnectionArgs {
    /// Allow plain HTTP and skip certificate verification
    ///
    /// This applies to the registry and to its token server. A registry on this host (`localhost`,
    /// `127.0.0.1`) may always use plain HTTP.
    #[arg(long)]
    pub(crate) insecure: bool,
    /// Trust the certificate authorities in this file too (PEM)
    #[arg(long, value_name = "PATH")]
    pub(crate) ca_certs: Option<PathBuf>,
}

/// Manage credentials for registries
///
/// Credentials are stored where docker(1) stores them; see **CREDENTIALS**.
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

/// Log in to a registry and store the credentials
///
/// The registry verifies the user name and the password, or a token in its place, before they are
/// stored.
#[derive(Debug, Options)]
pub(crate) struct Login {
    /// Host name of the registry
    #[arg(value_name = "REGISTRY", default_value = "docker.io")]
    pub(crate) registry: String,
    /// User name; prompted for on a terminal if omitted
    #[arg(short, long, value_name = "NAME")]
    pub(crate) username: Option<String>,
    /// Read the password or token from standard input
    ///
    /// Otherwise it is prompted for on a terminal, without echo.
    #[arg(long)]
    pub(crate) password_stdin: bool,
    #[command(flatten)]
    pub(crate) connection: ConnectionArgs,
}

/// Log out of a registry: delete its credentials
#[derive(Debug, Options)]
pub(crate) struct Logout {
    /// Host name of the registry
    #[arg(value_name = "REGISTRY", default_value = "docker.io")]
    pub(crate) registry: String,
}

/// List registries with stored credentials
#[derive(Debug, Options)]
pub(crate) struct Logins {
    /// Print JSON
    ///
    /// The output is one array of objects with `registry`, `username` and `source`.
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<OutputFormat>,
}

/// Load images from an archive of docker, podman, skopeo or buildah
///
/// The archive is a docker-archive or an OCI archive, plain or compressed with gzip or zstd; see
/// **IMAGE ARCHIVES**. It is read once, from standard input or a file. Nothing is unpacked on the
/// host.
#[derive(Debug, Options)]
#[command(
    after_help = "Example:\n  docker save alpine:3.20 | msb image load\n  msb image load -i python.tar -t python:dev"
)]
pub(crate) struct Load {
    /// Read the archive from this file [default: standard input]
    #[arg(short, long, value_name = "PATH")]
    pub(crate) input: Option<PathBuf>,
    /// Add this name to the first image of the archive
    #[arg(short, long = "tag", value_name = "REF")]
    pub(crate) tags: Vec<String>,
    /// Keep compressed layers too, so that save keeps the manifest digest
    ///
    /// The compressed layers take additional disk space. The `save` command then writes them and
    /// the manifest unchanged, for users who pin an image by the digest of its manifest.
    #[arg(long)]
    pub(crate) keep_blobs: bool,
    #[command(flatten)]
    pub(crate) output: ReportArgs,
}

/// Save images as an archive for docker, podman, skopeo and 'msb image load'
///
/// Each layer is written byte for byte as it was loaded, so that image IDs do not change; see
/// **IMAGE ARCHIVES**. An archive is not written to a terminal.
#[derive(Debug, Options)]
#[command(
    after_help = "Example:\n  msb image save alpine:3.20 | ssh host msb image load\n  msb image save -o both.tar alpine:3.20 python:dev"
)]
pub(crate) struct Save {
    /// Images to save
    #[arg(value_name = "REF", required = true)]
    pub(crate) references: Vec<String>,
    /// Write the archive to this file [default: standard output]
    ///
    /// The file appears, or is replaced, when the archive is complete.
    #[arg(short, long, value_name = "PATH")]
    pub(crate) output: Option<PathBuf>,
    /// Set the archive format; json also prints one JSON object per image [default: docker]
    ///
    /// The objects have the fields of the `load` command; `digest` is that of the manifest in the
    /// archive. The format `json` needs --output.
    #[arg(long = "format", value_name = "FORMAT")]
    pub(crate) formats: Vec<SaveFormat>,
    /// Compress the layers, which changes the manifest digest
    ///
    /// The compressed layers are first collected in the state directory, since the archive must
    /// contain their length.
    #[arg(long, value_name = "ALGORITHM")]
    pub(crate) compress: Option<Compression>,
    /// Print no progress and no image names
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// Create an image of one layer from a tar of a root file system
///
/// The tar is plain or compressed with gzip or zstd. The default command of the image is `/bin/sh`,
/// if it exists. Arguments with spaces are passed unchanged; no shell parses them.
#[derive(Debug, Options)]
#[command(
    after_help = "Example:\n  mmdebstrap --variant=minbase bookworm - | msb image import debian:12\n  msb image import --cmd '[\"python3\"]' --env LANG=C.UTF-8 python:mine < root.tar"
)]
pub(crate) struct Import {
    /// Name of the new image
    pub(crate) name: String,
    /// Read the tar from this file [default: standard input]
    #[arg(short, long, value_name = "PATH")]
    pub(crate) input: Option<PathBuf>,
    /// Set an environment variable; NAME alone copies it from this environment
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<OsString>,
    /// Command of the image; repeat for arguments, or give a JSON array
    ///
    /// A single value that starts with `[` is the array.
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    pub(crate) cmd: Vec<String>,
    /// Entrypoint of the image; repeat for arguments, or give a JSON array
    ///
    /// A single value that starts with `[` is the array.
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    pub(crate) entrypoint: Vec<String>,
    /// Set the working directory of commands
    #[arg(short, long, value_name = "PATH")]
    pub(crate) workdir: Option<String>,
    /// Set the user of commands
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<String>,
    /// Add a label
    #[arg(long = "label", value_name = "KEY[=VALUE]")]
    pub(crate) labels: Vec<String>,
    #[command(flatten)]
    pub(crate) output: ReportArgs,
}

/// List images
#[derive(Debug, Options)]
#[command(after_help = "Example:\n  msb image list --format json")]
pub(crate) struct List {
    /// Print JSON
    ///
    /// The output is one array of objects with `reference`, `digest`, `size_bytes`, `architecture`,
    /// `os`, `layer_count` and `created_at`.
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<OutputFormat>,
    /// Print local times instead of ages
    #[arg(long)]
    pub(crate) absolute: bool,
    /// Print references only, one per line
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// Show the configuration and the layers of an image
#[derive(Debug, Options)]
#[command(after_help = "Example:\n  msb image inspect alpine:3.20")]
pub(crate) struct Inspect {
    /// Image to show
    #[arg(value_name = "REF")]
    pub(crate) reference: String,
    /// Print JSON
    ///
    /// The output is one object with the fields of the `list` command, `config` and `layers`.
    #[arg(short, long, value_name = "FORMAT")]
    pub(crate) format: Option<OutputFormat>,
}

/// Add a name to an image
#[derive(Debug, Options)]
#[command(after_help = "Example:\n  msb image tag python:3.13 python:mine")]
pub(crate) struct Tag {
    /// Image to name
    #[arg(value_name = "REF")]
    pub(crate) source: String,
    /// New name; it is removed from any other image
    #[arg(value_name = "NEW")]
    pub(crate) name: String,
    /// Print nothing
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// Remove unused images, and files that no image needs
///
/// An image is unused if no sandbox was created from it; see **GARBAGE COLLECTION**.
#[derive(Debug, Default, Options)]
#[command(
    after_help = "Example:\n  msb image prune --yes --filter until=720h\n  msb image prune --yes --format json"
)]
pub(crate) struct Prune {
    /// Do not ask for confirmation
    ///
    /// Without a terminal this option is required.
    #[arg(short, long)]
    pub(crate) yes: bool,
    /// Remove only images that match until=TIME, label=KEY[=VALUE] or label!=KEY[=VALUE]
    ///
    /// An image must match all filters.
    ///
    /// - `until=TIME`: Images stored before a time: a duration ago such as `24h`, the start of a
    ///   day such as `2026-01-31`, or a time of RFC 3339.
    ///
    /// - `label=KEY[=VALUE]`: Images with this label.
    ///
    /// - `label!=KEY[=VALUE]`: Images without this label.
    #[arg(long = "filter", value_name = "FILTER")]
    pub(crate) filters: Vec<String>,
    /// Remove no image with a name, only files that no image needs
    #[arg(long, conflicts_with = "filters")]
    pub(crate) dangling: bool,
    /// Print JSON
    ///
    /// The output is one object. The numbers of removed files are `image_refs_removed`,
    /// `manifests_removed`, `layers_removed`, `fsmeta_removed`, `vmdk_removed`, `configs_removed`,
    /// `blobs_removed`, `downloads_removed`, `boot_states_removed` and `leftovers_removed`. The
    /// freed disk space is `bytes_reclaimed`. The removed names are `references`.
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<OutputFormat>,
    /// Print nothing
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// Show the disk usage of images
///
/// For each image, the output has its total size, the size that it shares with other images, and
/// the size that it alone occupies. It also has the size that `prune` would free.
#[derive(Debug, Options)]
#[command(after_help = "Example:\n  msb image df")]
pub(crate) struct Df {
    /// Print JSON
    ///
    /// The output is one object. Its array `images` holds objects with `references`, `digest`,
    /// `sandboxes`, `snapshots`, `size_bytes`, `shared_bytes` and `unique_bytes`. The sums are
    /// `total_bytes`, `reclaimable_bytes` and `downloads_bytes`. The size of the files that guests
    /// boot from, `boot_bytes`, is not part of the total.
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<OutputFormat>,
}

/// Verify every file of the image store against its digest
///
/// Each problem is one line on standard output. The exit status is 1 if there are problems. See
/// **STORE VERIFICATION**.
#[derive(Debug, Options)]
#[command(after_help = "Example:\n  msb image check")]
pub(crate) struct Check {
    /// Print JSON
    ///
    /// The output is one object. The verified `references`, `images`, `layers` and `bytes` are
    /// numbers. The array `problems` holds objects with `path` and `problem`.
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<OutputFormat>,
    /// Print problems only
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// Remove images, and files that only they need
#[derive(Debug, Options)]
#[command(after_help = "Example:\n  msb image remove alpine:3.20 python:dev")]
pub(crate) struct Remove {
    /// Images to remove
    #[arg(value_name = "REF", required = true)]
    pub(crate) references: Vec<String>,
    /// Remove an image that sandboxes were created from
    ///
    /// These sandboxes cannot start again.
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Print nothing
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// Output options of a command that stores images.
#[derive(Clone, Copy, Debug, Options)]
pub(crate) struct ReportArgs {
    /// Print one JSON object per image
    ///
    /// The fields are `reference`, `digest` (of the manifest), `image_id` (digest of the
    /// configuration), `layers` (their number) and `size_bytes` (of the layers' tars).
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<OutputFormat>,
    /// Print no progress and no image names
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// Values of `save --format`: an archive format, or a format of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SaveFormat {
    /// Archive of docker save since version 25, with manifest.json and index.json
    Docker,
    /// OCI image layout, with index.json alone
    Oci,
    /// Print one JSON object per image
    Json,
}

/// Compression of layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Compression {
    Gzip,
    Zstd,
}

impl From<Compression> for BlobCompression {
    fn from(compression: Compression) -> BlobCompression {
        match compression {
            Compression::Gzip => BlobCompression::Gzip,
            Compression::Zstd => BlobCompression::Zstd,
        }
    }
}

/// Output format for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    Json,
}
