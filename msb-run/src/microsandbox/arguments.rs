//! A stored configuration in the terms of `msb create`: arguments, and the parts of a specification
//! that no argument expresses.

use std::ffi::OsString;

use libmsb::cli::error::Failure;

use super::patches::guest_change;
use super::secrets::GivenValues;
use super::stored_config::StoredConfig;
use crate::pull::PullPolicy;
use crate::root::RootArg;
use crate::spec_builder::ImportedSpec;

/// A stored configuration that was translated.
#[derive(Debug)]
pub(crate) struct Import {
    /// Arguments of `msb create`, to be followed by the typed ones.
    pub(crate) arguments: Vec<OsString>,
    /// Name, if the configuration has one.
    pub(crate) name: Option<String>,
    /// Root, if the configuration names one.
    pub(crate) root: Option<RootArg>,
    /// Parts that no argument expresses.
    pub(crate) spec: ImportedSpec,
    /// Values of secrets, which are not stored.
    pub(crate) secret_values: GivenValues,
    /// Names of mounted volumes.
    pub(crate) volume_names: Vec<String>,
    /// Manifest digest of the image.
    pub(crate) manifest_digest: Option<String>,
    /// Warnings about fields that are left out or have no meaning here.
    pub(crate) warnings: Vec<String>,
}

/// Translates a configuration. `is_typed` returns whether the user has given an option, by its long
/// name: typed options override stored ones, and typed values of a list follow stored ones.
pub(super) fn translate(
    stored: StoredConfig,
    is_typed: impl Fn(&str) -> bool,
) -> anyhow::Result<Import> {
    let arguments = arguments(&stored, &is_typed);
    let left_out = stored.unsupported.iter().map(|field| format!("left out: {field}"));
    let unused = stored.unused.iter().map(|what| format!("ignored: {what}"));
    Ok(Import {
        arguments,
        root: stored.root()?,
        warnings: left_out.chain(unused).collect(),
        spec: ImportedSpec {
            command: if is_typed("entrypoint") { Vec::new() } else { stored.command },
            net: stored.network,
            login: stored.login,
            replace: stored.replace,
            rlimits: stored.rlimits,
            scripts: stored.scripts,
            changes: stored.patches.iter().map(guest_change).collect::<Result<_, _>>()?,
        },
        name: stored.name,
        secret_values: stored.secret_values,
        volume_names: stored.volume_names,
        manifest_digest: stored.manifest_digest,
    })
}

fn arguments(stored: &StoredConfig, is_typed: &dyn Fn(&str) -> bool) -> Vec<OsString> {
    let text = |value: &Option<String>| value.clone();
    let seconds = |value: Option<u64>| value.filter(|s| *s > 0).map(|s| format!("{s}s"));
    let pull = stored.pull.map(|pull| match pull {
        PullPolicy::Always => "always",
        PullPolicy::IfMissing => "if-missing",
        PullPolicy::Never => "never",
    });
    let samples_are_typed =
        is_typed("metrics-sample-interval") || is_typed("disable-metrics-sample");
    let disk_is_typed = is_typed("oci-upper-size") || is_typed("root-disk");
    let single = [
        ("cpus", stored.cpus.map(|cpus| cpus.to_string()), is_typed("cpus")),
        ("memory", stored.memory_mib.map(|mib| format!("{mib}M")), is_typed("memory")),
        ("hostname", text(&stored.hostname), is_typed("hostname")),
        ("idle-timeout", seconds(stored.idle_timeout_s), is_typed("idle-timeout")),
        ("max-duration", seconds(stored.max_duration_s), is_typed("max-duration")),
        ("pull", pull.map(str::to_owned), is_typed("pull")),
        ("workdir", text(&stored.workdir), is_typed("workdir")),
        ("user", text(&stored.user), is_typed("user")),
        ("shell", text(&stored.shell), is_typed("shell")),
        ("security", stored.restricted.then(|| "restricted".to_owned()), is_typed("security")),
        ("oci-upper-size", stored.upper_mib.map(|mib| format!("{mib}M")), disk_is_typed),
        (
            "metrics-sample-interval",
            stored.sample_interval_ms.map(|ms| format!("{ms}ms")),
            samples_are_typed,
        ),
    ];
    let mut arguments = ArgumentList::default();
    for (option, value, is_overridden) in single {
        arguments.extend(option, value.filter(|_| !is_overridden));
    }
    if let Some(init) = stored.init.as_ref().filter(|_| !is_typed("init")) {
        arguments.extend("init", [init.cmd.clone()]);
        arguments.extend("init-arg", init.args.clone());
        arguments.extend("init-env", pairs(&init.env.0));
    }
    arguments.extend("env", pairs(&stored.env));
    arguments.extend("label", stored.labels.iter().map(|(key, value)| format!("{key}={value}")));
    arguments.extend("volume", stored.volumes.clone());
    arguments.extend("mount-disk", stored.disks.clone());
    arguments.extend("tmpfs", stored.tmpfs.clone());
    arguments.0
}

fn pairs(variables: &[(String, String)]) -> impl Iterator<Item = String> {
    variables.iter().map(|(name, value)| format!("{name}={value}"))
}

/// Arguments of the form `--option=value`, in which a value may start with `-`.
#[derive(Default)]
struct ArgumentList(Vec<OsString>);

impl ArgumentList {
    fn extend(&mut self, option: &str, values: impl IntoIterator<Item = String>) {
        self.0.extend(values.into_iter().map(|value| format!("--{option}={value}").into()));
    }
}

impl StoredConfig {
    /// Returns the root file system, if the configuration names one.
    fn root(&self) -> Result<Option<RootArg>, Failure> {
        if self.root_path.is_some() {
            return Ok(self.root_path.clone());
        }
        let image = self.image.as_deref().map(str::parse).transpose()?;
        Ok(image.map(RootArg::Image))
    }
}

#[cfg(test)]
mod tests {
    use super::super::stored;
    use super::*;

    fn translated(json: serde_json::Value, typed: &[&str]) -> Import {
        let serde_json::Value::Object(fields) = json else { panic!("no object") };
        translate(stored(fields).unwrap(), |option| typed.contains(&option)).unwrap()
    }

    fn config() -> serde_json::Value {
        serde_json::json!({
            "name": "web", "image": {"Oci": {"reference": "python", "upper_size_mib": 8192}},
            "cpus": 2, "memory_mib": 1024, "hostname": "h", "workdir": "/w", "user": "u",
            "shell": "bash", "security_profile": "restricted", "pull_policy": "Never",
            "policy": {"idle_timeout_secs": 30, "max_duration_secs": 0},
            "metrics_sample_interval_ms": 500, "env": [["A", "-1"]], "labels": {"k": "v"},
            "init": {"cmd": "auto", "args": ["--x"], "env": [["B", "2"]]},
            "mounts": [{"type": "Tmpfs", "guest": "/m", "size_mib": 64}],
            "entrypoint": ["python"], "cmd": ["-m", "http.server"]
        })
    }

    #[test]
    fn a_configuration_becomes_arguments() {
        let import = translated(config(), &[]);
        let arguments: Vec<&str> = import.arguments.iter().map(|a| a.to_str().unwrap()).collect();
        assert_eq!(
            arguments,
            [
                "--cpus=2",
                "--memory=1024M",
                "--hostname=h",
                "--idle-timeout=30s",
                "--pull=never",
                "--workdir=/w",
                "--user=u",
                "--shell=bash",
                "--security=restricted",
                "--oci-upper-size=8192M",
                "--metrics-sample-interval=500ms",
                "--init=auto",
                "--init-arg=--x",
                "--init-env=B=2",
                "--env=A=-1",
                "--label=k=v",
                "--tmpfs=/m:64M",
            ]
        );
        assert_eq!(import.name.as_deref(), Some("web"));
        assert_eq!(import.root, Some(RootArg::Image("python".parse().unwrap())));
        assert_eq!(import.spec.command, ["python", "-m", "http.server"]);
    }

    #[test]
    fn typed_options_take_the_place_of_stored_ones_and_lists_are_kept() {
        let typed = [
            "cpus",
            "memory",
            "hostname",
            "idle-timeout",
            "pull",
            "workdir",
            "user",
            "shell",
            "security",
            "root-disk",
            "disable-metrics-sample",
            "init",
            "entrypoint",
            "env",
            "tmpfs",
        ];
        let import = translated(config(), &typed);
        assert_eq!(import.arguments, ["--env=A=-1", "--label=k=v", "--tmpfs=/m:64M"]);
        assert!(import.spec.command.is_empty());
    }
}
