//! `msb modify`: what a sandbox should be from its next start on.

use std::ffi::OsString;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use libmsb::cli::args::{SandboxName, parse_cpus, parse_duration, parse_label, parse_memory};
use libmsb::cli::error::Failure;
use libmsb::cli::escape::escape;
use libmsb::cli::output;
use libmsb::net::args::NetArgs;
use libmsb::net::ports::PublishedPorts;
use libmsb::net::{NetSpec, dns, own};
use libmsb::state::Home;
use libmsb::state::mounts::Mount;
use libmsb::state::sandboxes::Sandbox;
use libmsb::state::spec::Spec;
use msb_wire::client::ClientError;
use msb_wire::network::{NetworkEvent, NetworkRequest};
use msb_wire::sandbox::Request;
use serde::Serialize;

use super::{SettingArgs, answer, connect, refusal};
use crate::guest::root_disk::{self, parse_size};
use crate::metrics::MetricsArgs;
use crate::mounts::{self, MountArgs};
use crate::plan;

const TOOL: &str = "msb-modify";

/// Change what a sandbox should be; labels and what its network allows count at once, all else from its next start on
#[derive(Debug, Parser)]
#[command(
    name = TOOL,
    version,
    after_help = "Examples:\n  msb modify web --memory 2G --cpus 2 && msb restart web\n  msb modify web --label stage=test --label-rm old --dry-run\n  msb modify web --net-rule allow@example.com --port 8080:80"
)]
pub(crate) struct ModifyArgs {
    /// The sandbox
    name: SandboxName,
    /// Virtual processors
    #[arg(short, long, value_parser = parse_cpus, value_name = "N")]
    cpus: Option<u8>,
    /// Memory: MiB, or with a unit, as 1.5G
    #[arg(short, long, value_parser = parse_memory, value_name = "SIZE")]
    memory: Option<u32>,
    /// Host name in the guest
    #[arg(short = 'H', long)]
    hostname: Option<String>,
    /// Grow the writable disk to this size
    #[arg(long, value_name = "SIZE", value_parser = parse_size, visible_alias = "root-disk")]
    oci_upper_size: Option<u64>,
    /// Set a label
    #[arg(long, value_name = "KEY[=VALUE]", value_parser = parse_label)]
    label: Vec<(String, String)>,
    /// Take a label away
    #[arg(long, value_name = "KEY")]
    label_rm: Vec<String>,
    /// Take a variable away
    #[arg(long, value_name = "NAME")]
    env_rm: Vec<OsString>,
    #[command(flatten)]
    setting: SettingArgs,
    /// Stop it when nobody has used it for so long; 0: never
    #[arg(long, value_parser = parse_duration, value_name = "DURATION")]
    idle_timeout: Option<Duration>,
    /// Stop it when it has run for so long; 0: never
    #[arg(long, value_parser = parse_duration, value_name = "DURATION")]
    max_duration: Option<Duration>,
    #[command(flatten)]
    mounts: MountArgs,
    /// Mount nothing at this path any more
    #[arg(long, value_name = "TARGET")]
    mount_rm: Vec<OsString>,
    #[command(flatten)]
    metrics: MetricsArgs,
    #[command(flatten)]
    net: NetArgs,
    /// Publish a port no more
    #[arg(long, value_name = "[BIND:]HOST:GUEST[/udp]", help_heading = "Network")]
    port_rm: Vec<PublishedPorts>,
    /// Only say what would change
    #[arg(long)]
    dry_run: bool,
    /// How to print the changes
    #[arg(long, value_enum)]
    format: Option<Format>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// One JSON object
    Json,
}

#[derive(Serialize)]
struct Report {
    name: SandboxName,
    changes: Vec<Change>,
    /// Whether the changes were made.
    applied: bool,
    /// Whether some of them count only when the sandbox is started again.
    restart_needed: bool,
}

/// A field of `spec.json`; `null` where it is missing.
#[derive(Debug, PartialEq, Serialize)]
struct Change {
    field: String,
    from: serde_json::Value,
    to: serde_json::Value,
}

pub(crate) fn run(args: ModifyArgs) -> anyhow::Result<()> {
    let home = Home::from_env()?;
    let sandbox = home.sandboxes().find(&args.name)?;
    let before = sandbox.spec()?;
    let mounts = args.mounts.mounts(&home)?;
    let mut at_once = vec!["labels"];
    let after = if args.dry_run {
        let mut spec = before.clone();
        change(&mut spec, &args, &mounts)?;
        spec
    } else {
        mounts::make_volumes(&home, &mounts)?;
        sandbox.modify(|spec| {
            let had = spec.net.clone();
            change(spec, &args, &mounts)?;
            if spec.net != had && renew_net(&home, &sandbox, &had, &spec.net)? {
                at_once.push("net");
            }
            Ok(())
        })?
    };
    tell(&sandbox, &args, &at_once, changes(&before, &after)?)
}

/// Changes the network of a sandbox that runs, before it is written down what it should be: who is stopped in between has
/// no word that it was done. `false`: this change has to wait for the next start.
fn renew_net(home: &Home, sandbox: &Sandbox, had: &NetSpec, net: &NetSpec) -> anyhow::Result<bool> {
    let same_wire = had.enabled
        && net.enabled
        && (had.ipv4_pool, had.ipv6_pool) == (net.ipv4_pool, net.ipv6_pool);
    if !same_wire || !sandbox.is_alive()? {
        return Ok(false);
    }
    let request = Request::Network(NetworkRequest {
        net: serde_json::to_value(net)?,
        nameservers: dns::upstreams(&net.dns)?,
        own: own::addresses(),
    });
    let answered = match answer(connect(home, &sandbox.name)?, &request) {
        Ok(answered) => answered,
        // One of before this could be asked takes it with its next start.
        Err(error) if is_unsupported(&error) => return Ok(false),
        Err(error) => return Err(error),
    };
    match serde_json::from_slice(&answered) {
        Ok(NetworkEvent::Changed) => Ok(true),
        Ok(NetworkEvent::Failed { message, hint }) => {
            let failure = Failure::failed(escape(&message).into_owned());
            Err(match hint {
                Some(hint) => failure.hint(escape(&hint).into_owned()),
                None => failure,
            }
            .into())
        }
        Err(_) => Err(refusal(&sandbox.name, &answered).into()),
    }
}

fn is_unsupported(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref::<ClientError>(),
        Some(ClientError::Unsupported(_))
    )
}

fn change(spec: &mut Spec, args: &ModifyArgs, mounts: &[Mount]) -> anyhow::Result<()> {
    if let Some(cpus) = args.cpus {
        spec.cpus = u32::from(cpus);
    }
    if let Some(memory) = args.memory {
        spec.memory_mib = memory;
    }
    if let Some(hostname) = &args.hostname {
        spec.hostname = plan::hostname(Some(hostname.clone()), &args.name)?;
    }
    if let Some(size_mib) = args.oci_upper_size {
        root_disk::grow(spec, size_mib)?;
    }
    spec.labels.retain(|key, _| !args.label_rm.contains(key));
    spec.labels.extend(args.label.iter().cloned());
    plan::remove_env(&mut spec.env, &args.env_rm);
    spec.env = plan::merge_env(std::mem::take(&mut spec.env), &args.setting.env()?);
    if let Some(workdir) = &args.setting.workdir {
        spec.workdir = Some(workdir.clone().into());
    }
    if let Some(user) = &args.setting.user {
        spec.user = Some(user.clone().into());
    }
    spec.mounts = mounts::changed(&spec.mounts, &args.mount_rm, mounts)?;
    spec.net.ports.retain(|port| !args.port_rm.contains(port));
    args.net.change(&mut spec.net)?;
    let limit = |limit: Duration| Some(plan::milliseconds(limit)).filter(|ms| *ms > 0);
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

fn changes(before: &Spec, after: &Spec) -> anyhow::Result<Vec<Change>> {
    let (before, after) = (serde_json::to_value(before)?, serde_json::to_value(after)?);
    let (Some(before), Some(after)) = (before.as_object(), after.as_object()) else {
        return Err(Failure::failed("a specification is no object").into());
    };
    let fields: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let value = |fields: &serde_json::Map<String, serde_json::Value>, field: &String| {
        fields.get(field).cloned().unwrap_or_default()
    };
    let all = fields.into_iter().map(|field| Change {
        field: field.clone(),
        from: value(before, field),
        to: value(after, field),
    });
    Ok(all.filter(|change| change.from != change.to).collect())
}

fn tell(
    sandbox: &Sandbox,
    args: &ModifyArgs,
    at_once: &[&str],
    changes: Vec<Change>,
) -> anyhow::Result<()> {
    let waits = |change: &Change| !at_once.contains(&change.field.as_str());
    let restart_needed = sandbox.is_alive()? && changes.iter().any(waits);
    if args.format == Some(Format::Json) {
        return Ok(output::print_json(&Report {
            name: args.name.clone(),
            applied: !args.dry_run,
            changes,
            restart_needed,
        })?);
    }
    for change in &changes {
        let Change { field, from, to } = change;
        output::print(&format!("{field}: {from} -> {to}"))?;
    }
    if changes.is_empty() {
        eprintln!("nothing changes");
    } else if restart_needed && !args.dry_run {
        eprintln!(
            "it runs: the changes count when it is started again (msb restart {})",
            args.name
        );
    }
    Ok(())
}
