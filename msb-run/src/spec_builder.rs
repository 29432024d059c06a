//! The specification of a sandbox, built from the typed options and the image's configuration.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use libmsb::cli::args::{EnvVar, SandboxName, is_reserved_label};
use libmsb::cli::error::Failure;
use libmsb::cli::escape::escape;
use libmsb::machine::EngineChoice;
use libmsb::net::NetSpec;
use libmsb::signal_number::SignalNumber;
use libmsb::state::guest::GuestChange;
use libmsb::state::images::Config;
use libmsb::state::mounts::Mount;
use libmsb::state::spec::{BootMode, MainLimits, MetricsSpec, RootSource, SPEC_VERSION, Spec};
use msb_wire::exec::Rlimit;
use msb_wire::guest::{INIT_PATHS, InitRequest};
use msb_wire::text::Text;

use crate::guest::{GuestOptions, change_list};
use crate::pull::RegistryLogin;

/// Default size of the writable disk in MiB, as in microsandbox. The disk is a sparse file.
const UPPER_MIB: u64 = 4096;

/// Longest host name, in bytes: `__NEW_UTS_LEN` of Linux.
const HOSTNAME_BYTES_MAX: usize = 64;

/// Maximum number of volumes of an image; further ones are ignored.
const DIRECTORIES_MAX: usize = 256;

/// Longest path, in bytes: `PATH_MAX` of Linux without the NUL byte.
const PATH_BYTES_MAX: usize = 4095;

/// The checked command-line options.
#[derive(Debug)]
pub(crate) struct SpecOptions {
    /// `--cpus`.
    pub(crate) cpus: u32,
    /// `--memory`, in MiB.
    pub(crate) memory_mib: u32,
    /// `--engine`.
    pub(crate) engine: EngineChoice,
    /// `--env`.
    pub(crate) env: Vec<EnvVar>,
    /// `--workdir`.
    pub(crate) workdir: Option<OsString>,
    /// `--user`.
    pub(crate) user: Option<OsString>,
    /// `--cold`, `--from-memory`.
    pub(crate) boot: Option<BootMode>,
    /// `--hostname`.
    pub(crate) hostname: Option<String>,
    /// `--entrypoint`.
    pub(crate) entrypoint: Option<OsString>,
    /// `--label`.
    pub(crate) labels: BTreeMap<String, String>,
    /// `--volume`, `--mount-disk`, `--tmpfs`.
    pub(crate) mounts: Vec<Mount>,
    /// `--idle-timeout`.
    pub(crate) idle_timeout: Option<Duration>,
    /// `--max-duration`.
    pub(crate) max_duration: Option<Duration>,
    /// `--metrics-sample-interval`, `--disable-metrics-sample`.
    pub(crate) metrics: MetricsSpec,
    /// Complete main command in place of the image's.
    pub(crate) imported_command: Vec<OsString>,
    /// False if the sandbox ends with its main command though none was typed.
    pub(crate) lasting: bool,
    /// `--net` and the other network options.
    pub(crate) net: NetSpec,
    /// Machine ID of the guest, 32 hexadecimal digits.
    pub(crate) machine_id: String,
    /// Values of `--rlimit` and `--timeout` for a detached main command.
    pub(crate) main: MainLimits,
    /// Options for the setup of the guest.
    pub(crate) guest: GuestOptions,
    /// Size of an image's writable disk in the user's configuration.
    pub(crate) default_upper_mib: Option<u64>,
    /// Words after `--`.
    pub(crate) command: Vec<OsString>,
}

/// Parts of an imported configuration that no option expresses. Typed options modify them.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ImportedSpec {
    /// Complete main command; the image's if it is empty.
    pub(crate) command: Vec<OsString>,
    /// Network.
    pub(crate) net: Option<NetSpec>,
    /// Credentials for the pull of the image, which are not stored.
    pub(crate) login: Option<RegistryLogin>,
    /// True to remove an existing sandbox of the name first.
    pub(crate) replace: bool,
    /// Resource limits of all commands.
    pub(crate) rlimits: Vec<Rlimit>,
    /// Complete scripts, by name.
    pub(crate) scripts: BTreeMap<String, String>,
    /// Changes of files, before the typed ones.
    pub(crate) changes: Vec<GuestChange>,
}

impl ImportedSpec {
    /// Adds the imported settings of the guest to the typed ones.
    pub(crate) fn guest(&self, mut typed: GuestOptions) -> Result<GuestOptions, Failure> {
        let ImportedSpec { rlimits, scripts, changes, .. } = self;
        typed.spec.rlimits.clone_from(rlimits);
        typed.spec.changes =
            change_list::with_imported(typed.spec.changes, scripts.clone(), changes.clone())?;
        change_list::check(&typed.spec.changes)?;
        Ok(typed)
    }
}

/// Builds the specification of a sandbox.
pub(crate) fn spec(
    name: &SandboxName,
    ephemeral: bool,
    (root, config): (RootSource, &Config),
    options: SpecOptions,
) -> Result<Spec, Failure> {
    refuse_upper(&root, &options.guest)?;
    let upper_mib = root.image().map(|_| options.default_upper_mib.unwrap_or(UPPER_MIB));
    let image_env = config.env().clone().unwrap_or_default();
    let mut labels: BTreeMap<String, String> =
        config.labels().clone().unwrap_or_default().into_iter().collect();
    labels.retain(|key, _| !is_reserved_label(key));
    labels.extend(options.labels);
    let is_untyped = options.command.is_empty();
    let mut guest = options.guest.spec;
    guest.stop_signal = guest.stop_signal.or_else(|| stop_signal(config).ok().flatten());
    guest.directories = directories(config, guest.directories);
    let mut command = if is_untyped && !options.imported_command.is_empty() {
        options.imported_command.into_iter().map(Text::from).collect()
    } else {
        command(
            options.entrypoint,
            options.command,
            config.entrypoint().clone().unwrap_or_default(),
            config.cmd().clone().unwrap_or_default(),
        )
    };
    if let Some(init) = &mut guest.init {
        move_init(init, &mut command);
    }
    Ok(Spec {
        version: SPEC_VERSION,
        name: name.to_string(),
        root,
        ephemeral,
        created_at: jiff::Timestamp::now(),
        labels,
        cpus: options.cpus,
        memory_mib: options.memory_mib,
        engine: options.engine,
        boot: options.boot,
        upper_mib: options.guest.upper_mib.or(upper_mib).unwrap_or(0),
        hostname: hostname(options.hostname, name)?,
        env: merge_env(image_env.into_iter().map(Text::from).collect(), &options.env),
        workdir: options.workdir.map(Text::from).or_else(|| non_empty(config.working_dir())),
        user: options.user.map(Text::from).or_else(|| non_empty(config.user())),
        command,
        persistent: is_untyped && options.lasting,
        mounts: options.mounts,
        idle_timeout_ms: options.idle_timeout.map(milliseconds),
        max_duration_ms: options.max_duration.map(milliseconds),
        metrics: options.metrics,
        net: options.net,
        machine_id: Some(options.machine_id),
        main: options.main,
        snapshot: None,
        guest,
        other: serde_json::Map::new(),
    })
}

/// Returns the stop signal of the image, or its text if it is unknown.
fn stop_signal(config: &Config) -> Result<Option<SignalNumber>, &str> {
    match config.stop_signal().as_deref().filter(|text| !text.is_empty()) {
        Some(text) => text.parse().map(Some).map_err(|_| text),
        None => Ok(None),
    }
}

/// Returns the warnings about settings of the image that the sandbox does not have.
pub(crate) fn image_warnings(config: &Config, spec: &Spec) -> Vec<String> {
    let reserved = config.labels().iter().flatten().map(|(key, _)| key);
    let mut reserved: Vec<&str> =
        reserved.filter(|key| is_reserved_label(key)).map(String::as_str).collect();
    reserved.sort_unstable();
    let labels = (!reserved.is_empty()).then(|| {
        let keys = escape(&reserved.join("', '")).into_owned();
        format!("labels of the image with a reserved prefix are ignored: '{keys}'")
    });
    stop_signal_warning(config, spec).into_iter().chain(labels).collect()
}

/// Returns the warning about a stop signal of the image that is unknown, and ignored as by docker.
fn stop_signal_warning(config: &Config, spec: &Spec) -> Option<String> {
    let unknown = stop_signal(config).err().filter(|_| spec.guest.stop_signal.is_none())?;
    let shown = escape(unknown.as_bytes());
    Some(format!("the stop signal '{shown}' of the image is unknown; SIGTERM is used instead"))
}

/// Returns the volumes of the image as absolute paths without `.` and `..`, and the imported
/// directories, sorted.
fn directories(config: &Config, imported: Vec<Text>) -> Vec<Text> {
    let volumes = config.volumes().iter().flatten();
    let volumes = volumes.filter_map(|path| absolute(path));
    let mut directories: Vec<Text> = volumes.chain(imported).collect();
    directories.sort_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
    directories.dedup();
    directories.truncate(DIRECTORIES_MAX);
    directories
}

/// Resolves a path against the root directory. Returns `None` for the root itself, and for an
/// invalid path.
fn absolute(path: &str) -> Option<Text> {
    if path.contains('\0') || path.len() > PATH_BYTES_MAX {
        return None;
    }
    let mut names = Vec::new();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    (!names.is_empty()).then(|| Text::from(format!("/{}", names.join("/"))))
}

/// Refuses options for the upper layer when the root is not an image: such a root is written to
/// directly.
fn refuse_upper(root: &RootSource, guest: &GuestOptions) -> Result<(), Failure> {
    let is_given = guest.upper_mib.is_some() || !guest.spec.root_disk.is_managed();
    if root.image().is_some() || !is_given {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "'{}' is written to directly and has no upper disk",
        escape(root.name().as_bytes())
    ))
    .hint("omit --root-disk and --oci-upper-size, which apply to images"))
}

/// Moves an init program from the command to the init request. An image made to boot names its init
/// as its command; then that command starts the init, and there is no other command.
fn move_init(init: &mut InitRequest, command: &mut Vec<Text>) {
    let names_init = command.first().is_some_and(|program| {
        init.path.as_ref() == Some(program)
            || INIT_PATHS.iter().any(|path| path.as_bytes() == program.as_bytes())
    });
    if !names_init {
        return;
    }
    let mut words = std::mem::take(command).into_iter();
    let program = words.next();
    if init.path.is_none() {
        init.path = program;
    }
    if init.args.is_empty() {
        init.args = words.collect();
    }
}

/// Converts a duration to milliseconds, the unit of times in the specification.
pub(crate) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Returns a value of the image configuration, without the empty strings that docker writes for
/// unset values.
fn non_empty(value: &Option<String>) -> Option<Text> {
    value.clone().filter(|value| !value.is_empty()).map(Text::from)
}

/// Returns the host name of the guest. A sandbox name that is too long is cut; an invalid name
/// chosen by the user is refused.
pub(crate) fn hostname(chosen: Option<String>, name: &SandboxName) -> Result<String, Failure> {
    let Some(chosen) = chosen else {
        return Ok(name.as_str().chars().take(HOSTNAME_BYTES_MAX).collect());
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    if chosen.is_empty() || chosen.len() > HOSTNAME_BYTES_MAX || !chosen.chars().all(plain) {
        return Err(Failure::usage(format!("invalid host name '{}'", escape(&chosen)))
            .hint(format!("use at most {HOSTNAME_BYTES_MAX} letters, digits, '-' and '.'")));
    }
    Ok(chosen)
}

/// Removes environment variables by name.
pub(crate) fn remove_env(env: &mut Vec<Text>, names: &[OsString]) {
    env.retain(|assignment| {
        let bytes = assignment.as_bytes();
        let name = bytes.split(|byte| *byte == b'=').next();
        !names.iter().any(|gone| Some(gone.as_bytes()) == name)
    });
}

/// Merges environment variables: the existing ones, then the user's. Of several with the same name
/// the last one counts.
pub(crate) fn merge_env(existing: Vec<Text>, user: &[EnvVar]) -> Vec<Text> {
    let mut merged: Vec<(Vec<u8>, Text)> = Vec::new();
    let mut positions = std::collections::HashMap::new();
    let user = user.iter().map(|variable| Text::from(variable.to_assignment()));
    for assignment in existing.into_iter().chain(user) {
        let bytes = assignment.as_bytes();
        let Some(end) = bytes.iter().position(|byte| *byte == b'=').filter(|end| *end > 0) else {
            continue;
        };
        let name = bytes[..end].to_vec();
        match positions.get(&name) {
            Some(position) => merged[*position] = (name, assignment),
            None => {
                positions.insert(name.clone(), merged.len());
                merged.push((name, assignment));
            }
        }
    }
    merged.into_iter().map(|(_, assignment)| assignment).collect()
}

/// Builds the command by docker's rule. Typed words replace the image's arguments. A typed
/// entrypoint replaces the image's entrypoint and also drops the image's arguments, which belong to
/// that entrypoint.
fn command(
    entrypoint: Option<OsString>,
    typed: Vec<OsString>,
    image_entrypoint: Vec<String>,
    image_cmd: Vec<String>,
) -> Vec<Text> {
    let typed: Vec<Text> = typed.into_iter().map(Text::from).collect();
    let texts = |strings: Vec<String>| strings.into_iter().map(Text::from).collect::<Vec<_>>();
    let (mut command, default) = match entrypoint {
        Some(program) if program.is_empty() => (Vec::new(), Vec::new()),
        Some(program) => (vec![Text::from(program)], Vec::new()),
        None => (texts(image_entrypoint), texts(image_cmd)),
    };
    command.extend(if typed.is_empty() { default } else { typed });
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(
        entrypoint: Option<&str>,
        typed: &[&str],
        image_entrypoint: &[&str],
        image_cmd: &[&str],
    ) -> Vec<String> {
        let strings =
            |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let typed = typed.iter().map(OsString::from).collect();
        let command = command(
            entrypoint.map(OsString::from),
            typed,
            strings(image_entrypoint),
            strings(image_cmd),
        );
        command.iter().map(Text::to_lossy).collect()
    }

    #[test]
    fn typed_words_replace_the_images_arguments_and_not_its_entrypoint() {
        assert_eq!(resolved(None, &[], &["e"], &["c"]), ["e", "c"]);
        assert_eq!(resolved(None, &["x", "y"], &["e"], &["c"]), ["e", "x", "y"]);
        assert_eq!(resolved(None, &[], &[], &["c"]), ["c"]);
    }

    #[test]
    fn a_typed_entrypoint_drops_the_images_command() {
        assert_eq!(resolved(Some("t"), &[], &["e"], &["c"]), ["t"]);
        assert_eq!(resolved(Some("t"), &["x"], &["e"], &["c"]), ["t", "x"]);
        assert_eq!(resolved(Some(""), &["x"], &["e"], &["c"]), ["x"]);
    }

    #[test]
    fn an_image_made_to_boot_names_its_init_as_the_command() {
        let taken = |path: Option<&str>, words: &[&str]| {
            let mut command: Vec<Text> = words.iter().map(|word| Text::from(*word)).collect();
            let mut init = InitRequest { path: path.map(Text::from), ..InitRequest::default() };
            move_init(&mut init, &mut command);
            (init.path.map(|path| path.to_lossy()), init.args.len(), command.len())
        };
        let init = Some("/sbin/init".to_owned());
        assert_eq!(taken(None, &["/sbin/init", "--x"]), (init.clone(), 1, 0));
        assert_eq!(taken(Some("/sbin/init"), &["/lib/systemd/systemd"]), (init, 0, 0));
        let own = Some("/own".to_owned());
        assert_eq!(taken(Some("/own"), &["/own"]), (own.clone(), 0, 0));
        assert_eq!(taken(Some("/own"), &["bash", "-l"]), (own, 0, 2));
        assert_eq!(taken(None, &[]), (None, 0, 0));
    }

    #[test]
    fn the_users_variables_take_the_place_of_the_images() {
        let image = ["A=1", "B=2", "broken", "=x"].map(Text::from).to_vec();
        let user = [
            EnvVar { name: "A".into(), value: "9".into() },
            EnvVar { name: "C".into(), value: "".into() },
        ];
        let merged: Vec<String> = merge_env(image, &user).iter().map(Text::to_lossy).collect();
        assert_eq!(merged, ["A=9", "B=2", "C="]);
    }

    #[test]
    fn volumes_of_an_image_are_paths_below_the_root() {
        let path = |text: &str| absolute(text).map(|path| path.to_lossy());
        assert_eq!(path("/data"), Some("/data".to_owned()));
        assert_eq!(path("data//x/./y/../z/"), Some("/data/x/z".to_owned()));
        assert_eq!(path("/../../etc"), Some("/etc".to_owned()));
        for text in ["", "/", "..", "/./", "a\0b", &"x".repeat(5000)] {
            assert_eq!(path(text), None);
        }
    }

    #[test]
    fn a_long_name_is_cut_to_a_valid_host_name() {
        let name: SandboxName = "x".repeat(128).parse().unwrap();
        assert_eq!(hostname(None, &name).unwrap().len(), HOSTNAME_BYTES_MAX);
        assert!(hostname(Some("a b".into()), &name).is_err());
    }
}
