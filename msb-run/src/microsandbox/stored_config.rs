//! A stored configuration with its fields parsed.

use std::collections::BTreeMap;
use std::ffi::OsString;

use libmsb::net::NetSpec;
use msb_wire::exec::Rlimit;
use serde::Deserialize;

use super::fields::{StringPairs, UnsupportedField};
use super::patches::StoredPatch;
use super::secrets::GivenValues;
use crate::pull::{PullPolicy, RegistryLogin};
use crate::root::RootArg;

/// A stored sandbox, with its fields parsed.
#[derive(Debug, Default, PartialEq)]
pub(super) struct StoredConfig {
    /// Name.
    pub(super) name: Option<String>,
    /// Image reference.
    pub(super) image: Option<String>,
    /// Manifest digest of the image.
    pub(super) manifest_digest: Option<String>,
    /// Pull policy of the image.
    pub(super) pull: Option<PullPolicy>,
    /// Credentials for the pull.
    pub(super) login: Option<RegistryLogin>,
    /// True to remove an existing sandbox of the name first.
    pub(super) replace: bool,
    /// Directory or disk image of the host that is the root, in place of an image.
    pub(super) root_path: Option<RootArg>,
    /// Virtual processors.
    pub(super) cpus: Option<u8>,
    /// Memory in MiB.
    pub(super) memory_mib: Option<u32>,
    /// Size of the writable disk in MiB.
    pub(super) upper_mib: Option<u64>,
    /// Mounts, in the form of `--volume`.
    pub(super) volumes: Vec<String>,
    /// Names of mounted volumes.
    pub(super) volume_names: Vec<String>,
    /// Mounts, in the form of `--mount-disk`.
    pub(super) disks: Vec<String>,
    /// Mounts, in the form of `--tmpfs`.
    pub(super) tmpfs: Vec<String>,
    /// Init program of the guest, in place of msb's agent.
    pub(super) init: Option<StoredInit>,
    /// Restricted security profile.
    pub(super) restricted: bool,
    /// Resource limits of all commands.
    pub(super) rlimits: Vec<Rlimit>,
    /// Shell of the sandbox.
    pub(super) shell: Option<String>,
    /// Complete scripts, by name.
    pub(super) scripts: BTreeMap<String, String>,
    /// Changes of files, in order.
    pub(super) patches: Vec<StoredPatch>,
    /// Network, if the configuration has one.
    pub(super) network: Option<NetSpec>,
    /// Values of the network's secrets.
    pub(super) secret_values: GivenValues,
    /// Environment variables.
    pub(super) env: Vec<(String, String)>,
    /// Labels.
    pub(super) labels: BTreeMap<String, String>,
    /// Working directory of commands.
    pub(super) workdir: Option<String>,
    /// User of commands.
    pub(super) user: Option<String>,
    /// Host name.
    pub(super) hostname: Option<String>,
    /// Entrypoint and arguments, already resolved from the image. If empty, the image's are used.
    pub(super) command: Vec<OsString>,
    /// Idle timeout in seconds.
    pub(super) idle_timeout_s: Option<u64>,
    /// Maximum duration in seconds.
    pub(super) max_duration_s: Option<u64>,
    /// Interval of metric samples in milliseconds; 0 disables them.
    pub(super) sample_interval_ms: Option<u64>,
    /// Unsupported fields.
    pub(super) unsupported: Vec<UnsupportedField>,
    /// Fields without meaning here, described for the user.
    pub(super) unused: Vec<String>,
}

/// The init program of the guest.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StoredInit {
    /// A path in the guest, or `auto`.
    pub(super) cmd: String,
    /// Arguments, without the program's name.
    #[serde(default)]
    pub(super) args: Vec<String>,
    /// Environment variables.
    #[serde(default)]
    pub(super) env: StringPairs,
}
