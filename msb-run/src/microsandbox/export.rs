//! Export of a specification in the form of microsandbox 0.5, for `msb inspect --as microsandbox`.
//!
//! The result is what [`super::read`] takes: a sandbox created from it has the same root, resources,
//! commands, mounts and network. Settings without a field in that form are named in a list.

use libmsb::machine::DiskImageFormat;
use libmsb::net::NetSpec;
use libmsb::net::ports::PublishedPort;
use libmsb::net::rule::{Direction, Group, Rule, Target};
use libmsb::state::guest::{FileBody, GuestChange, GuestSpec, RootDisk};
use libmsb::state::mounts::{Mount, Source};
use libmsb::state::spec::{RootSource, Spec};
use msb_wire::guest::InitRequest;
use msb_wire::text::Text;
use serde_json::{Map, Value, json};

use super::SAMPLE_INTERVAL_MS;
use super::secrets;

/// An exported configuration.
#[derive(Debug, PartialEq)]
pub(crate) struct ExportedConfig {
    /// The configuration, without the settings in `omitted`.
    pub(crate) config: Value,
    /// Settings that the form has no field for.
    pub(crate) omitted: Vec<&'static str>,
}

/// Converts a specification.
pub(crate) fn export(spec: &Spec) -> ExportedConfig {
    let mut omitted = Vec::new();
    let guest = &spec.guest;
    let interval = spec.metrics.sample_interval_ms;
    let digest = spec.root.image().map(|image| image.manifest_digest.to_string());
    let mut config = json!({
        "name": spec.name,
        "image": root(spec),
        "manifest_digest": digest,
        "cpus": spec.cpus,
        "memory_mib": spec.memory_mib,
        "hostname": spec.hostname,
        "workdir": spec.workdir.as_ref().map(Text::to_lossy),
        "user": spec.user.as_ref().map(Text::to_lossy),
        "shell": guest.shell.as_ref().map(Text::to_lossy),
        "env": pairs(&spec.env),
        "labels": spec.labels,
        // The entrypoint and the arguments were joined when the sandbox was created.
        "entrypoint": words(&spec.command),
        "cmd": null,
        "init": guest.init.as_ref().map(init),
        "security_profile": if guest.security.is_restricted() { "restricted" } else { "default" },
        "rlimits": rlimits(guest),
        "mounts": spec.mounts.iter().map(mount).collect::<Vec<_>>(),
        "network": network(&spec.net, &mut omitted),
        "policy": {
            "idle_timeout_secs": seconds(spec.idle_timeout_ms),
            "max_duration_secs": seconds(spec.max_duration_ms),
        },
        "metrics_sample_interval_ms": interval.unwrap_or(SAMPLE_INTERVAL_MS),
        "disable_metrics_sample": interval == Some(0),
        "pull_policy": "IfMissing",
        "log_level": null,
    });
    let (scripts, patches) = changes(&guest.changes);
    config["scripts"] = scripts;
    config["patches"] = patches;
    let unnamed = [
        ("stop_signal", guest.stop_signal.is_some()),
        ("root_disk", guest.root_disk != RootDisk::Managed),
        ("boot", spec.boot.is_some()),
        ("net.nat64", !spec.net.nat64.is_empty()),
        ("snapshot", spec.snapshot.is_some()),
    ];
    omitted.extend(unnamed.iter().filter(|(_, is_set)| *is_set).map(|(name, _)| *name));
    ExportedConfig { config, omitted }
}

fn root(spec: &Spec) -> Value {
    match &spec.root {
        RootSource::Image(image) => {
            json!({"Oci": {"reference": image.reference, "upper_size_mib": spec.upper_mib}})
        }
        RootSource::RootDirectory { path } => json!({"Bind": path.to_lossy()}),
        RootSource::RootImage { path, format, fstype } => json!({"DiskImage": {
            "path": path.to_lossy(), "format": disk_format(*format), "fstype": fstype,
        }}),
    }
}

fn disk_format(format: DiskImageFormat) -> &'static str {
    match format {
        DiskImageFormat::Raw => "Raw",
        DiskImageFormat::Qcow2 => "Qcow2",
        DiskImageFormat::Vmdk => "Vmdk",
    }
}

fn words(words: &[Text]) -> Vec<String> {
    words.iter().map(Text::to_lossy).collect()
}

/// Splits `NAME=value` at the first equals sign.
fn pairs(env: &[Text]) -> Vec<(String, String)> {
    let split = |text: &Text| {
        let text = text.to_lossy();
        let (name, value) = text.split_once('=').unwrap_or((&text, ""));
        (name.to_owned(), value.to_owned())
    };
    env.iter().map(split).collect()
}

/// Returns whole seconds, rounded up: 0 would be no limit.
fn seconds(ms: Option<u64>) -> Option<u64> {
    ms.map(|ms| ms.div_ceil(1000))
}

fn init(init: &InitRequest) -> Value {
    let path = init.path.as_ref().map_or("auto".to_owned(), Text::to_lossy);
    json!({"cmd": path, "args": words(&init.args), "env": pairs(&init.env)})
}

fn rlimits(guest: &GuestSpec) -> Vec<Value> {
    let limits = guest.rlimits.iter().map(|limit| {
        json!({
            "resource": limit.resource,
            "soft": limit.soft.unwrap_or(u64::MAX),
            "hard": limit.hard.unwrap_or(u64::MAX),
        })
    });
    limits.collect()
}

fn mount(mount: &Mount) -> Value {
    let mut fields = match &mount.source {
        Source::Bind { source } => json!({"type": "Bind", "host": source.to_lossy()}),
        Source::Volume { name } => json!({"type": "Named", "name": name.as_str()}),
        Source::Disk { source, format, fstype } => json!({
            "type": "DiskImage", "host": source.to_lossy(),
            "format": disk_format(*format), "fstype": fstype,
        }),
        Source::Tmpfs { size_mib } => json!({"type": "Tmpfs", "size_mib": size_mib}),
    };
    fields["guest"] = mount.target.to_lossy().into();
    fields["options"] = json!({
        "readonly": mount.read_only, "noexec": mount.noexec,
        "nosuid": mount.nosuid, "nodev": mount.nodev,
    });
    fields
}

/// Returns the scripts by name, and the other changes in order.
fn changes(changes: &[GuestChange]) -> (Value, Value) {
    let (mut scripts, mut patches) = (Map::new(), Vec::new());
    for change in changes {
        let patch = match change {
            GuestChange::Script { name, body } => {
                scripts.insert(name.clone(), body.to_lossy().into());
                continue;
            }
            GuestChange::Copy { from, to, mode, exclusive } => json!({"CopyFile": {
                "src": from.to_lossy(), "dst": to.to_lossy(), "mode": mode, "replace": !exclusive,
            }}),
            GuestChange::Write { path, body, mode, exclusive } => json!({"File": {
                "path": path.to_lossy(), "content": bytes(body), "mode": mode,
                "replace": !exclusive,
            }}),
            GuestChange::Append { path, body } => json!({"Append": {
                "path": path.to_lossy(), "content": String::from_utf8_lossy(bytes(body)),
            }}),
            GuestChange::Link { path, target, exclusive } => json!({"Symlink": {
                "link": path.to_lossy(), "target": target.to_lossy(), "replace": !exclusive,
            }}),
            GuestChange::MakeDirectory { path, mode } => {
                json!({"Mkdir": {"path": path.to_lossy(), "mode": mode}})
            }
            GuestChange::Remove { path } => json!({"Remove": {"path": path.to_lossy()}}),
        };
        patches.push(patch);
    }
    (Value::Object(scripts), Value::Array(patches))
}

fn bytes(body: &FileBody) -> &[u8] {
    &body.0
}

fn network(net: &NetSpec, omitted: &mut Vec<&'static str>) -> Value {
    let rules = net.policy.rules.iter().filter_map(|stored| {
        let exported = rule(stored);
        if exported.is_none() && !omitted.contains(&"net.policy.rules") {
            omitted.push("net.policy.rules");
        }
        exported
    });
    let rules: Vec<Value> = rules.collect();
    let (tls, secrets) = secrets::stored(&net.tls, omitted);
    json!({
        "enabled": net.enabled,
        "policy": {
            "default_egress": net.policy.egress, "default_ingress": net.policy.ingress,
            "rules": rules,
        },
        "ports": net.ports.iter().flat_map(|ports| ports.each()).map(port).collect::<Vec<_>>(),
        "dns": {
            "nameservers": net.dns.nameservers.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "query_timeout_ms": net.dns.query_timeout_ms,
            "rebind_protection": net.dns.rebind_protection,
        },
        "max_connections": net.max_connections,
        "tls": tls,
        "secrets": secrets,
        "interface": {
            "ipv4_pool": net.ipv4_pool.to_string(), "ipv6_pool": net.ipv6_pool.to_string(),
        },
    })
}

fn port(port: PublishedPort) -> Value {
    json!({
        "host_bind": port.host.ip(), "host_port": port.host.port(),
        "guest_port": port.guest, "protocol": port.transport.to_string(),
    })
}

/// Returns a rule, unless its target has no counterpart: DNS queries for any name.
fn rule(rule: &Rule) -> Option<Value> {
    let destination = match &rule.target {
        Target::Any => json!("any"),
        Target::Group(Group::LinkLocal) => json!({"group": "link_local"}),
        Target::Group(Group::Meta) => json!({"group": "metadata"}),
        Target::Group(group) => json!({"group": group.name()}),
        Target::Range(range) => json!({"cidr": range.to_string()}),
        Target::Name(name) => json!({"domain": name.to_string()}),
        Target::Suffix(name) => json!({"domain_suffix": name.to_string()}),
        Target::Dns => return None,
    };
    let direction = match rule.direction {
        Some(Direction::Egress) => "egress",
        Some(Direction::Ingress) => "ingress",
        None => "any",
    };
    let protocols: Vec<String> = rule.protocol.iter().map(ToString::to_string).collect();
    let ports = rule.ports.iter().map(|range| json!({"start": range.first(), "end": range.last()}));
    Some(json!({
        "action": rule.action, "direction": direction, "destination": destination,
        "protocols": protocols, "ports": ports.collect::<Vec<_>>(),
    }))
}
