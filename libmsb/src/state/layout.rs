//! Names of all files and directories of the state directory. man page msb-state(5) lists them.

/// The state directory in the user's home, if `MSB_HOME` is not set.
pub const HOME: &str = ".msb";
/// Version of the layout. A program of another version changes nothing.
pub const VERSION: &str = "version";
/// Current version of the layout.
pub const VERSION_NUMBER: &str = "1";

/// Event log of all sandboxes, as JSON lines.
pub const EVENTS: &str = "events.log";
/// Configuration: registries. Written only by users.
pub const CONFIG: &str = "config.json";

/// Directory of the image store.
pub const IMAGES: &str = "images";
/// Records of references, one file each, with the digest of the manifest.
pub const REFS: &str = "refs";
/// Manifests as raw JSON, named by the hexadecimal digits of their SHA-256.
pub const MANIFESTS: &str = "manifests";
/// Configurations as raw JSON, named by the hexadecimal digits of their SHA-256.
pub const CONFIGS: &str = "configs";
/// Converted layers, two files each, named by the digits of their diff_id.
pub const LAYERS: &str = "layers";
/// Suffix of a layer's file contents.
pub const LAYER_DATA: &str = ".data";
/// Suffix of a layer's index: all of its tar but the file contents.
pub const LAYER_INDEX: &str = ".index";
/// Compressed layers as downloaded, named by the digits of their SHA-256. Kept on request only.
pub const BLOBS: &str = "blobs";
/// Blobs that are being downloaded from a registry, complete or not, named by the digits of their
/// digest.
pub const DOWNLOADS: &str = "downloads";
/// Disks, two files each, named by the digits of their manifest.
pub const DISKS: &str = "disks";
/// Suffix of a disk's EROFS metadata. It contains the format's version.
pub const DISK_EROFS: &str = ".v1.erofs";
/// Suffix of the descriptor that joins metadata and layers.
pub const DISK_VMDK: &str = ".v1.vmdk";

/// Directory of sandboxes, one directory each.
pub const SANDBOXES: &str = "sandboxes";
/// Lock that is held while the sandbox is live. In the image store: shared by users of images,
/// exclusive for removal.
pub const LOCK: &str = "lock";
/// Specification of a sandbox.
pub const SPEC: &str = "spec.json";
/// Lock for changes of the specification.
pub const SPEC_LOCK: &str = "spec.lock";
/// Status of a sandbox.
pub const STATUS: &str = "status.json";
/// The upper: a writable disk, ext4, sparse.
pub const UPPER: &str = "upper.img";
/// Memory of a running guest: of a snapshot, or of a sandbox that continues from it at its next start.
pub const MEMORY: &str = "memory.state";
/// Output of the main command, as JSON lines.
pub const EXEC_LOG: &str = "exec.log";
/// Jobs: commands that run, or ran, without a client.
pub const JOBS: &str = "jobs.json";
/// Output of the guest's kernel and agent.
pub const CONSOLE_LOG: &str = "console.log";
/// Log of the guest's network, as JSON lines.
pub const NET_LOG: &str = "net.log";
/// Certificate authority of a sandbox whose TLS connections are intercepted: certificate and private
/// key.
pub const TLS_AUTHORITY: &str = "tls-ca.pem";
/// Output of the supervisor and the VMM process.
pub const SUPERVISOR_LOG: &str = "supervisor.log";

/// Directory of SSH files: of a sandbox, and of the state directory.
pub const SSH: &str = "ssh";
/// Host key of a sandbox, private.
pub const HOST_KEY: &str = "host_key";
/// Private key of the state directory's owner, which every sandbox accepts.
pub const OWNER_KEY: &str = "id_ed25519";
/// Authorized public keys.
pub const AUTHORIZED_KEYS: &str = "authorized_keys";
/// Host key of a sandbox, for SSH clients that msb starts.
pub const KNOWN_HOSTS: &str = "known_hosts";

/// Directory of named volumes, one directory each, with a [`LOCK`] that is held while a sandbox
/// uses the volume.
pub const VOLUMES: &str = "volumes";
/// Record of a volume.
pub const VOLUME: &str = "volume.json";
/// The image of a volume of the kind `disk`: ext4, sparse.
pub const VOLUME_DISK: &str = "disk.img";
/// Contents of a volume of the kind `dir`.
pub const VOLUME_DATA: &str = "data";

/// Directory of aliases, scripts that `msb install` writes.
pub const ALIASES: &str = "bin";

/// Directory of snapshots, one directory each, or a symbolic link to one elsewhere.
pub const SNAPSHOTS: &str = "snapshots";
/// Manifest of a snapshot.
pub const SNAPSHOT_MANIFEST: &str = "manifest.json";
/// Disk of a snapshot: a copy of an [`UPPER`].
pub const SNAPSHOT_DISK: &str = "upper.ext4";

/// Directory of initial RAM disks (initramfs), one for each kernel and agent, named by a digest of
/// both.
pub const BOOT: &str = "boot";

/// Suffix of a boot state, from which later guests start, in [`BOOT`]. Named by a digest of the
/// virtual machine's configuration.
pub const BOOT_STATE: &str = ".state";
/// Suffix of the file with the reason why no boot state could be saved.
pub const BOOT_STATE_FAILED: &str = ".failed";
/// Lock that is held while a boot state is saved.
pub const BOOT_STATE_LOCK: &str = "state.lock";

/// Last warning about unknown fields of the configuration.
pub const CONFIG_NOTE: &str = "config.note";
/// Notes about the engine that were printed already.
pub const ENGINE_NOTE: &str = "engine.note";

/// Directory of sockets in the state directory.
pub const RUN: &str = "run";
/// Directory of sockets in `$XDG_RUNTIME_DIR`.
pub const RUNTIME: &str = "msb";
/// Directory of the boot slots, beside the directories of sandboxes, whose names do not start with
/// a dot.
pub const BOOT_SLOTS: &str = ".slots";
/// Lock that is held by the first process in the queue for a slot.
pub const BOOT_QUEUE: &str = "queue";
/// Socket of a sandbox's supervisor.
pub const AGENT_SOCKET: &str = "agent.sock";
/// Sample file of a sandbox; see [`crate::samples`].
pub const SAMPLES: &str = "samples";

/// Prefix of the name of a directory that is being created and not valid yet. No sandbox's name
/// starts with it.
pub const NEW_PREFIX: &str = ".new-";
/// Prefix of the name of a directory that is being removed.
pub const GONE_PREFIX: &str = ".gone-";
