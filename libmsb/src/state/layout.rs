//! The name of every file and folder of the state directory. man page msb-state(5) lists them all.

/// The state directory in the user's home, when `MSB_HOME` is not set.
pub const HOME: &str = ".msb";
/// Holds the version of the layout; a program that knows another one touches nothing.
pub const VERSION: &str = "version";
/// The version of the layout.
pub const VERSION_NUMBER: &str = "1";

/// What happened to sandboxes, as JSON lines.
pub const EVENTS: &str = "events.log";
/// What users set: registries. Written by them only.
pub const CONFIG: &str = "config.json";

/// Folder of all that belongs to images.
pub const IMAGES: &str = "images";
/// One file a reference: which manifest it names.
pub const REFS: &str = "refs";
/// Manifests as raw JSON, named by the hexadecimal digits of their SHA-256.
pub const MANIFESTS: &str = "manifests";
/// Configurations as raw JSON, named likewise.
pub const CONFIGS: &str = "configs";
/// Converted layers, two files each, named by the digits of their diff_id.
pub const LAYERS: &str = "layers";
/// Suffix of a layer's file contents.
pub const LAYER_DATA: &str = ".data";
/// Suffix of everything else of a layer's tar.
pub const LAYER_INDEX: &str = ".index";
/// Layers as they came, compressed, named by the digits of their SHA-256: only if that was asked for.
pub const BLOBS: &str = "blobs";
/// Blobs on their way from a registry, whole or not, named by the digits of their digest.
pub const DOWNLOADS: &str = "downloads";
/// Disks, two files each, named by the digits of their manifest.
pub const DISKS: &str = "disks";
/// Suffix of a disk's EROFS metadata; the format's version is part of it.
pub const DISK_EROFS: &str = ".v1.erofs";
/// Suffix of the descriptor that strings metadata and layers together.
pub const DISK_VMDK: &str = ".v1.vmdk";

/// Folder of sandboxes, one folder each.
pub const SANDBOXES: &str = "sandboxes";
/// Held as long as the sandbox lives; in the image store: shared by users of images, exclusive for removal.
pub const LOCK: &str = "lock";
/// What the sandbox should be.
pub const SPEC: &str = "spec.json";
/// Held by who changes the specification.
pub const SPEC_LOCK: &str = "spec.lock";
/// What the sandbox is.
pub const STATUS: &str = "status.json";
/// The writable disk: ext4, sparse.
pub const UPPER: &str = "upper.img";
/// What the main command printed, as JSON lines.
pub const EXEC_LOG: &str = "exec.log";
/// Commands that run, or ran, without a client.
pub const JOBS: &str = "jobs.json";
/// What the guest's kernel and agent printed.
pub const CONSOLE_LOG: &str = "console.log";
/// What the guest's network did, as JSON lines.
pub const NET_LOG: &str = "net.log";
/// What the supervisor and the VMM printed.
pub const SUPERVISOR_LOG: &str = "supervisor.log";

/// Folder of what SSH needs: of a sandbox, and of the state directory.
pub const SSH: &str = "ssh";
/// The private key by which SSH clients know a sandbox.
pub const HOST_KEY: &str = "host_key";
/// The private key by which the owner of the state directory is let in to every sandbox.
pub const OWNER_KEY: &str = "id_ed25519";
/// The public keys that are let in.
pub const AUTHORIZED_KEYS: &str = "authorized_keys";
/// The host key of a sandbox, for clients that we start.
pub const KNOWN_HOSTS: &str = "known_hosts";

/// Folder of named volumes, one folder each, with a [`LOCK`] that is held as long as a sandbox uses the volume.
pub const VOLUMES: &str = "volumes";
/// What the volume is.
pub const VOLUME: &str = "volume.json";
/// The image of a volume of the kind `disk`: ext4, sparse.
pub const VOLUME_DISK: &str = "disk.img";
/// The contents of a volume of the kind `dir`.
pub const VOLUME_DATA: &str = "data";

/// Folder of initial RAM disks, one for each kernel and agent, named by a digest of both.
pub const BOOT: &str = "boot";

/// Suffix of the state of a guest that later guests start from, in [`BOOT`], named by a digest of the machine's kind.
pub const BOOT_STATE: &str = ".state";
/// Suffix of the file that says why no such state could be made.
pub const BOOT_STATE_FAILED: &str = ".failed";
/// Held by who makes such a state.
pub const BOOT_STATE_LOCK: &str = "state.lock";

/// What was said about the engine, so that it is said once.
pub const ENGINE_NOTE: &str = "engine.note";

/// Folder of sockets in the state directory.
pub const RUN: &str = "run";
/// Folder of sockets in `$XDG_RUNTIME_DIR`.
pub const RUNTIME: &str = "msb";
/// Folder of the slots for boots, beside those of sandboxes, whose names do not begin with a dot.
pub const BOOT_SLOTS: &str = ".slots";
/// Held by the first of those who wait for a slot.
pub const BOOT_QUEUE: &str = "queue";
/// The socket of a sandbox's supervisor.
pub const AGENT_SOCKET: &str = "agent.sock";
/// What the sandbox costs; see [`crate::samples`].
pub const SAMPLES: &str = "samples";

/// Begins the name of a folder that is being made and does not count yet. No sandbox's name begins so.
pub const NEW_PREFIX: &str = ".new-";
/// Begins the name of a folder that is being removed and counts no more.
pub const GONE_PREFIX: &str = ".gone-";
