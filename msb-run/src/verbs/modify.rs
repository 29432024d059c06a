//! `msb modify`: changes the configuration of a sandbox. Labels and the network's policy change at
//! once, all else at the next start.

use std::ffi::OsString;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use libmsb::cli::args::{SandboxName, parse_cpus, parse_duration, parse_memory, parse_new_label};
use libmsb::cli::error::{Failure, print_remark};
use libmsb::cli::escape::escape;
use libmsb::cli::output;
use libmsb::net::args::NetArgs;
use libmsb::net::ports::PublishedPorts;
use libmsb::net::{NetSpec, dns, host_addresses};
use libmsb::state::Home;
use libmsb::state::mounts::Mount;
use libmsb::state::sandboxes::Sandbox;
use libmsb::state::spec::Spec;
use msb_wire::client::ClientError;
use msb_wire::network::{NetworkEvent, NetworkRequest};
use msb_wire::sandbox::Request;
use serde::Serialize;
use serde_json::Value;

use super::{CommandContextArgs, answer, connect, refusal};
use crate::guest::root_disk::{self, parse_size};
use crate::metrics::MetricsArgs;
use crate::mounts::{self, MountArgs, SandboxVolumes};
use crate::spec_builder;

const TOOL: &str = "msb-modify";

/// Change the configuration of a sandbox and its network policy
#[derive(Debug, Parser)]
#[command(
    name = TOOL,
    version,
    after_help = "Examples:\n  msb modify web --memory 2G --cpus 2 && msb restart web\n  msb modify web --label stage=test --label-rm old --dry-run\n  msb modify web --net-rule allow@example.com --port 8080:80"
)]
pub(crate) struct ModifyArgs {
    /// Name of the sandbox
    name: SandboxName,
    /// Set the number of virtual CPUs
    #[arg(short, long, value_parser = parse_cpus, value_name = "N", help_heading = "Resources")]
    cpus: Option<u8>,
    /// Set the memory, such as 512M or 1.5G
    ///
    /// A number without a unit is in MiB.
    #[arg(
        short,
        long,
        value_parser = parse_memory,
        value_name = "SIZE",
        help_heading = "Resources"
    )]
    memory: Option<u32>,
    /// Set the host name of the guest
    #[arg(short = 'H', long, help_heading = "Guest setup")]
    hostname: Option<String>,
    /// Grow the writable disk to SIZE
    ///
    /// Its file system grows at the next start. The disk cannot shrink.
    #[arg(
        long,
        value_name = "SIZE",
        value_parser = parse_size,
        visible_alias = "root-disk",
        help_heading = "Storage"
    )]
    oci_upper_size: Option<u64>,
    /// Set a label
    #[arg(
        long,
        value_name = "KEY[=VALUE]",
        value_parser = parse_new_label,
        help_heading = "Guest setup"
    )]
    label: Vec<(String, String)>,
    /// Remove a label
    #[arg(long, value_name = "KEY", help_heading = "Guest setup")]
    label_rm: Vec<String>,
    /// Remove an environment variable
    #[arg(long, value_name = "NAME", help_heading = "Command")]
    env_rm: Vec<OsString>,
    #[command(flatten)]
    context: CommandContextArgs,
    /// Stop the sandbox when it has been idle for DURATION; 0 removes the limit
    ///
    /// See msb-run(1).
    #[arg(long, value_parser = parse_duration, value_name = "DURATION", help_heading = "Lifetime")]
    idle_timeout: Option<Duration>,
    /// Stop the sandbox when it has run for DURATION; 0 removes the limit
    #[arg(long, value_parser = parse_duration, value_name = "DURATION", help_heading = "Lifetime")]
    max_duration: Option<Duration>,
    #[command(flatten)]
    mounts: MountArgs,
    /// Remove the mount at TARGET
    #[arg(long, value_name = "TARGET", help_heading = "Storage")]
    mount_rm: Vec<OsString>,
    #[command(flatten)]
    metrics: MetricsArgs,
    #[command(flatten)]
    net: NetArgs,
    /// Stop publishing a port
    #[arg(long, value_name = "[BIND:]HOST:GUEST[/udp]", help_heading = "Network")]
    port_rm: Vec<PublishedPorts>,
    /// Remove a secret
    #[arg(long, value_name = "NAME", help_heading = "Secrets and TLS")]
    secret_rm: Vec<String>,
    /// Do not intercept TLS connections any more; no secret may remain
    ///
    /// At its next start, the guest no longer trusts the certificate of the sandbox.
    #[arg(long, conflicts_with = "tls_intercept", help_heading = "Secrets and TLS")]
    no_tls_intercept: bool,
    /// Print the changes without applying them
    #[arg(long, help_heading = "Output")]
    dry_run: bool,
    /// Print a JSON object
    ///
    /// The object has `name`, `changes` (each with `field`, `from` and `to`), `applied` and
    /// `restart_needed`.
    #[arg(long, value_enum, help_heading = "Output")]
    format: Option<ModifyFormat>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ModifyFormat {
    Json,
}

#[derive(Serialize)]
struct ModifyReport {
    name: SandboxName,
    changes: Vec<FieldChange>,
    /// `false` for a dry run.
    applied: bool,
    /// Set when some changes only take effect at the next start.
    restart_needed: bool,
}

/// A changed field of `spec.json`; `null` if it is missing.
#[derive(Debug, PartialEq, Serialize)]
struct FieldChange {
    field: String,
    from: serde_json::Value,
    to: serde_json::Value,
}

pub(crate) fn run(args: ModifyArgs) -> anyhow::Result<()> {
    let home = Home::from_env()?;
    let sandbox = home.sandboxes().find(&args.name)?;
    let before = sandbox.spec()?;
    let mounts = args.mounts.mounts(&home)?;
    let mut immediate = vec!["labels"];
    let after = if args.dry_run {
        let mut spec = before.clone();
        change(&mut spec, &args, &mounts)?;
        spec
    } else {
        let volumes = SandboxVolumes::create(&home, &mounts)?;
        let spec = sandbox.modify(|spec| {
            let old_net = spec.net.clone();
            change(spec, &args, &mounts)?;
            if spec.net != old_net && update_network(&home, &sandbox, &old_net, &spec.net)? {
                immediate.push("net");
            }
            Ok(())
        })?;
        volumes.keep();
        spec
    };
    report(&sandbox, &args, &immediate, changes(&before, &after)?)
}

/// Changes the network of a running sandbox, before the specification is written. So an interrupted
/// command never reports a change that was not made. Returns `false` if the change has to wait for
/// the next start.
fn update_network(
    home: &Home,
    sandbox: &Sandbox,
    old_net: &NetSpec,
    net: &NetSpec,
) -> anyhow::Result<bool> {
    let same_link = old_net.enabled
        && net.enabled
        && (old_net.ipv4_pool, old_net.ipv6_pool) == (net.ipv4_pool, net.ipv6_pool);
    if !same_link || !sandbox.is_alive()? {
        return Ok(false);
    }
    let request = Request::Network(NetworkRequest {
        net: serde_json::to_value(net)?,
        nameservers: dns::upstreams(&net.dns)?,
        own: host_addresses::addresses(),
    });
    let reply = match answer(connect(home, &sandbox.name)?, &request) {
        Ok(reply) => reply,
        // A supervisor of an older version applies the change at its next start.
        Err(error) if is_unsupported(&error) => return Ok(false),
        Err(error) => return Err(error),
    };
    match serde_json::from_slice(&reply) {
        Ok(NetworkEvent::Changed) => Ok(true),
        Ok(NetworkEvent::Failed { message, hint }) => {
            let failure = Failure::failed(escape(&message).into_owned());
            Err(match hint {
                Some(hint) => failure.hint(escape(&hint).into_owned()),
                None => failure,
            }
            .into())
        }
        Err(_) => Err(refusal(&sandbox.name, &reply).into()),
    }
}

fn is_unsupported(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref::<ClientError>(), Some(ClientError::Unsupported(_)))
}

fn change(spec: &mut Spec, args: &ModifyArgs, mounts: &[Mount]) -> anyhow::Result<()> {
    if let Some(cpus) = args.cpus {
        spec.cpus = u32::from(cpus);
    }
    if let Some(memory) = args.memory {
        spec.memory_mib = memory;
    }
    if let Some(hostname) = &args.hostname {
        spec.hostname = spec_builder::hostname(Some(hostname.clone()), &args.name)?;
    }
    if let Some(size_mib) = args.oci_upper_size {
        root_disk::grow(spec, size_mib)?;
    }
    spec.labels.retain(|key, _| !args.label_rm.contains(key));
    spec.labels.extend(args.label.iter().cloned());
    spec_builder::remove_env(&mut spec.env, &args.env_rm);
    spec.env = spec_builder::merge_env(std::mem::take(&mut spec.env), &args.context.env()?);
    if let Some(workdir) = &args.context.workdir {
        spec.workdir = Some(workdir.clone().into());
    }
    if let Some(user) = &args.context.user {
        spec.user = Some(user.clone().into());
    }
    spec.mounts = mounts::apply_changes(&spec.mounts, &args.mount_rm, mounts)?;
    spec.net.ports.retain(|port| !args.port_rm.contains(port));
    spec.net.tls.secrets.retain(|secret| !args.secret_rm.contains(&secret.name));
    spec.net.tls.intercept &= !args.no_tls_intercept;
    args.net.change(&mut spec.net)?;
    if args.no_tls_intercept && spec.net.tls.is_active() {
        let message = "secrets and options of --tls-intercept need interception";
        return Err(Failure::usage(message)
            .hint("--secret-rm removes a secret; omit --no-tls-intercept to keep it")
            .into());
    }
    let limit = |limit: Duration| Some(spec_builder::milliseconds(limit)).filter(|ms| *ms > 0);
    if let Some(timeout) = args.idle_timeout {
        spec.idle_timeout_ms = limit(timeout);
    }
    if let Some(duration) = args.max_duration {
        spec.max_duration_ms = limit(duration);
    }
    if let Some(metrics) = args.metrics.given() {
        spec.metrics = metrics;
    }
    Ok(())
}

fn changes(before: &Spec, after: &Spec) -> anyhow::Result<Vec<FieldChange>> {
    let (before, after) = (serde_json::to_value(before)?, serde_json::to_value(after)?);
    let (Some(before), Some(after)) = (before.as_object(), after.as_object()) else {
        return Err(Failure::failed("a specification is not a JSON object").into());
    };
    let fields: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let value = |fields: &serde_json::Map<String, serde_json::Value>, field: &String| {
        fields.get(field).cloned().unwrap_or_default()
    };
    let all = fields.into_iter().map(|field| FieldChange {
        field: field.clone(),
        from: value(before, field),
        to: value(after, field),
    });
    Ok(all.filter(|change| change.from != change.to).collect())
}

fn report(
    sandbox: &Sandbox,
    args: &ModifyArgs,
    immediate: &[&str],
    changes: Vec<FieldChange>,
) -> anyhow::Result<()> {
    let needs_restart = |change: &FieldChange| !immediate.contains(&change.field.as_str());
    let restart_needed = sandbox.is_alive()? && changes.iter().any(needs_restart);
    if args.format == Some(ModifyFormat::Json) {
        return Ok(output::print_json(&ModifyReport {
            name: args.name.clone(),
            applied: !args.dry_run,
            changes,
            restart_needed,
        })?);
    }
    for FieldChange { field, from, to } in &changes {
        let mut lines = Vec::new();
        put_changes(field, from, to, &mut lines);
        output::print(&lines.join("\n"))?;
    }
    if changes.is_empty() {
        print_remark(TOOL, "no changes");
    } else if restart_needed && !args.dry_run {
        let name = &args.name;
        let remark = "the sandbox is running: restart it to apply the changes";
        print_remark(TOOL, &format!("{remark} (msb restart {name})"));
    }
    Ok(())
}

/// Adds a line for each value within a field that differs: `labels.stage: - -> test`, or for a list
/// `net.ports: 127.0.0.1:8080:80/tcp added`.
fn put_changes(path: &str, from: &Value, to: &Value, lines: &mut Vec<String>) {
    match (from, to) {
        (Value::Object(_) | Value::Null, Value::Object(_)) | (Value::Object(_), Value::Null) => {
            let empty = serde_json::Map::new();
            let (from, to) = (from.as_object(), to.as_object());
            let (from, to) = (from.unwrap_or(&empty), to.unwrap_or(&empty));
            let keys: std::collections::BTreeSet<_> = from.keys().chain(to.keys()).collect();
            for key in keys {
                let value = |values: &serde_json::Map<String, Value>| {
                    values.get(key).cloned().unwrap_or_default()
                };
                put_changes(&format!("{path}.{key}"), &value(from), &value(to), lines);
            }
        }
        (Value::Array(_) | Value::Null, Value::Array(_)) | (Value::Array(_), Value::Null) => {
            let (from, to) = (from.as_array(), to.as_array());
            let (from, to) =
                (from.map_or(&[][..], Vec::as_slice), to.map_or(&[][..], Vec::as_slice));
            let removed = from.iter().filter(|value| !to.contains(value));
            lines.extend(removed.map(|value| line(path, &shown(value), "removed")));
            let added = to.iter().filter(|value| !from.contains(value));
            lines.extend(added.map(|value| line(path, &shown(value), "added")));
        }
        _ if from != to => lines.push(line(path, &shown(from), &format!("-> {}", shown(to)))),
        _ => {}
    }
}

fn line(path: &str, value: &str, change: &str) -> String {
    format!("{}: {value} {change}", escape(path))
}

/// Returns a value for people: text without quotes, and a dash for none.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => escape(text).into_owned(),
        other => escape(&other.to_string()).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_line_names_one_changed_value() {
        let lines = |from: Value, to: Value| {
            let mut lines = Vec::new();
            put_changes("f", &from, &to, &mut lines);
            lines
        };
        assert_eq!(lines(json!(1), json!(2)), ["f: 1 -> 2"]);
        assert_eq!(lines(json!("a\n"), json!(null)), ["f: a\\n -> -"]);
        assert_eq!(
            lines(
                json!({"a": "1", "b": "2", "d": {"e": 1}}),
                json!({"b": "3", "c": "4", "d": {"e": 1}})
            ),
            ["f.a: 1 -> -", "f.b: 2 -> 3", "f.c: - -> 4"]
        );
        assert_eq!(
            lines(json!(["a", "b"]), json!(["b", {"c": 1}])),
            ["f: a removed", "f: {\"c\":1} added"]
        );
        assert_eq!(lines(json!(null), json!(["a"])), ["f: a added"]);
    }
}
