//! `msb inspect`: all that is known of a sandbox.

use std::os::unix::fs::MetadataExt;
use std::time::SystemTime;

use clap::{Parser, ValueEnum};
use libmsb::cli::args::SandboxName;
use libmsb::cli::escape::escape;
use libmsb::cli::output;
use libmsb::cli::style::{age, bytes, local_time};
use libmsb::isolate::Step;
use libmsb::machine::Format as DiskImageFormat;
use libmsb::net::network::Network;
use libmsb::state::guest::{DiskFormat, GuestSpec, RootDisk};
use libmsb::state::mounts::{Mount, Source};
use libmsb::state::sandboxes::{Sandbox, Seen};
use libmsb::state::spec::{RootSource, Spec};
use libmsb::state::status::{BootKind, Status};
use libmsb::state::{Home, layout};
use msb_wire::guest::Security;
use msb_wire::text::Text;
use serde::Serialize;

/// Show all that is known of a sandbox
#[derive(Debug, Parser)]
#[command(
    name = "msb-inspect",
    version,
    after_help = "Examples:\n  msb inspect web\n  msb inspect web --format json | jq .config.labels"
)]
pub(crate) struct InspectArgs {
    /// The sandbox
    name: SandboxName,
    /// How to print it
    #[arg(long, value_enum)]
    format: Option<Format>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// One JSON object
    Json,
}

#[derive(Serialize)]
struct Document<'a> {
    name: &'a str,
    status: &'static str,
    /// What it should be, as in `spec.json`.
    config: &'a Spec,
    /// What its supervisor last wrote, as in `status.json`.
    state: &'a Status,
    disk: Disk,
    /// The guest's addresses and those of its gateway; missing when it has no network.
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<Network>,
    created_at: jiff::Timestamp,
    updated_at: jiff::Timestamp,
}

/// The writable disk.
#[derive(Clone, Copy, Serialize)]
struct Disk {
    /// How large it may grow.
    size_bytes: u64,
    /// What it takes on the host now; missing when the sandbox has no disk with a name.
    #[serde(skip_serializing_if = "Option::is_none")]
    allocated_bytes: Option<u64>,
}

pub(crate) fn run(args: InspectArgs) -> anyhow::Result<()> {
    let sandbox = Home::from_env()?.sandboxes().find(&args.name)?;
    let seen = sandbox.look()?;
    let disk = disk(&sandbox, &seen.spec);
    if args.format == Some(Format::Json) {
        return Ok(output::print_json(&Document {
            name: args.name.as_str(),
            status: seen.state.word(),
            config: &seen.spec,
            state: &seen.status,
            disk,
            network: network(&seen.spec),
            created_at: seen.spec.created_at,
            updated_at: seen.status.since,
        })?);
    }
    for (name, value) in rows(&seen, disk) {
        output::print(&format!("{name:<12} {}", escape(&value)))?;
    }
    Ok(())
}

fn network(spec: &Spec) -> Option<Network> {
    let is_there = spec.net.enabled;
    is_there.then(|| Network::of_sandbox(&spec.name, &spec.net))
}

fn disk(sandbox: &Sandbox, spec: &Spec) -> Disk {
    let upper = std::fs::metadata(sandbox.path(layout::UPPER));
    Disk {
        size_bytes: spec.upper_mib * 1024 * 1024,
        allocated_bytes: upper.ok().map(|file| file.blocks() * 512),
    }
}

/// What the processes of a running sandbox have given up, and what they could not.
fn isolation_rows(steps: &[Step]) -> Vec<(&'static str, String)> {
    let holds: Vec<String> = steps
        .iter()
        .filter(|step| step.holds)
        .map(|step| format!("{}:{}", step.process, step.step))
        .collect();
    let lacking = steps.iter().filter_map(|step| {
        let reason = step.reason.as_ref()?;
        Some((
            "Lacking",
            format!("{}:{}: {reason}", step.process, step.step),
        ))
    });
    [("Isolation", holds.join(" "))]
        .into_iter()
        .chain(lacking)
        .collect()
}

/// Where the root file system comes from.
fn root_rows(root: &RootSource) -> Vec<(&'static str, String)> {
    let path = || root.name().into_owned();
    match root {
        RootSource::Image(image) => vec![
            ("Image", path()),
            ("Digest", image.manifest_digest.to_string()),
        ],
        RootSource::RootFolder { .. } => vec![("Root folder", path())],
        RootSource::RootImage { format, fstype, .. } => {
            let fstype = fstype.as_ref().map(|fstype| format!(", {fstype}"));
            let format = match format {
                DiskImageFormat::Raw => "raw",
                DiskImageFormat::Qcow2 => "qcow2",
                DiskImageFormat::Vmdk => "vmdk",
            };
            let what = format!("({format}{})", fstype.unwrap_or_default());
            vec![("Root image", format!("{} {what}", path()))]
        }
    }
}

/// What a guest may do and is made of, where it is not the default.
fn guest_rows(guest: &GuestSpec) -> Vec<(&'static str, String)> {
    let root_disk = match &guest.root_disk {
        RootDisk::Managed => String::new(),
        RootDisk::Tmpfs { size_mib } => format!("memory, {}", bytes(size_mib * 1024 * 1024)),
        RootDisk::Disk { path, format } => {
            let format = match format {
                DiskFormat::Raw => "raw",
                DiskFormat::Qcow2 => "qcow2",
            };
            format!("{} ({format})", path.display())
        }
    };
    let security = match guest.security {
        Security::Default => "",
        Security::Restricted => "restricted",
    };
    let init = guest.init.as_ref().map(|init| {
        let path = init.path.as_ref().map_or("auto".into(), Text::to_lossy);
        let args = init.args.iter().map(Text::to_lossy);
        [path].into_iter().chain(args).collect::<Vec<_>>().join(" ")
    });
    let count = |count: usize| (count > 0).then(|| format!("{count} before the first boot"));
    vec![
        ("Security", security.to_owned()),
        ("Root disk", root_disk),
        ("Init", init.unwrap_or_default()),
        (
            "Shell",
            guest.shell.as_ref().map(Text::to_lossy).unwrap_or_default(),
        ),
        ("Changes", count(guest.changes.len()).unwrap_or_default()),
    ]
}

fn rows(seen: &Seen, disk: Disk) -> Vec<(&'static str, String)> {
    let (spec, status) = (&seen.spec, &seen.status);
    let mut rows = vec![
        ("Name", spec.name.clone()),
        ("Status", seen.state.word().to_owned()),
    ];
    let reason = status.reason.map(|reason| reason.word().replace('_', " "));
    let words = |words: &[Text]| {
        let words: Vec<String> = words.iter().map(|word| word.to_lossy()).collect();
        words.join(" ")
    };
    let optional = [
        ("Reason", reason),
        ("Message", status.message.clone()),
        ("Exit code", status.exit_code.map(|code| code.to_string())),
        ("Engine", status.engine.clone()),
        (
            "Started",
            status.boot.and_then(|boot| match boot {
                BootKind::Cold => Some("cold".to_owned()),
                BootKind::Memory => Some("from memory".to_owned()),
                BootKind::Other => None,
            }),
        ),
        ("Kernel", status.kernel.clone()),
    ];
    rows.extend(optional.map(|(name, value)| (name, value.unwrap_or_default())));
    let when = |time: jiff::Timestamp| {
        let time = SystemTime::from(time);
        format!("{} ({})", local_time(&time), age(&time, SystemTime::now()))
    };
    let allocated = disk
        .allocated_bytes
        .map(|count| format!(", {} in use", bytes(count)));
    rows.extend(root_rows(&spec.root));
    rows.extend([
        ("Command", words(&spec.command)),
        ("Directory", words(spec.workdir.as_slice())),
        ("User", words(spec.user.as_slice())),
        ("Host name", spec.hostname.clone()),
        ("CPUs", spec.cpus.to_string()),
        ("Memory", bytes(u64::from(spec.memory_mib) * 1024 * 1024)),
        (
            "Disk",
            bytes(disk.size_bytes) + &allocated.unwrap_or_default(),
        ),
        ("Created", when(spec.created_at)),
        ("Started", status.started_at.map(when).unwrap_or_default()),
    ]);
    rows.extend(guest_rows(&spec.guest));
    if let Some(network) = network(spec) {
        let v4 = network.v4.map(|v4| format!("{}/{}", v4.guest, v4.prefix));
        let v6 = network.v6.map(|v6| format!("{}/{}", v6.guest, v6.prefix));
        rows.extend(v4.into_iter().chain(v6).map(|text| ("Address", text)));
        let ports = spec.net.ports.iter();
        rows.extend(ports.map(|port| ("Port", port.to_string())));
    }
    rows.extend(isolation_rows(&status.isolation));
    let millis = |ms: u64| format!("{} s", ms as f64 / 1000.0);
    rows.extend([
        (
            "Idle timeout",
            spec.idle_timeout_ms.map(millis).unwrap_or_default(),
        ),
        (
            "Max duration",
            spec.max_duration_ms.map(millis).unwrap_or_default(),
        ),
    ]);
    let restricted = spec.guest.security.is_restricted();
    let mounts = spec.mounts.iter();
    rows.extend(mounts.map(|mount| ("Mount", described(mount, restricted))));
    rows.extend(
        spec.labels
            .iter()
            .map(|(key, value)| ("Label", format!("{key}={value}"))),
    );
    rows.extend(spec.env.iter().map(|text| ("Variable", text.to_lossy())));
    rows.retain(|(_, value)| !value.is_empty());
    rows
}

/// A mount as it would be typed, its kind before it, with the options that the guest's agent adds when it is restricted.
fn described(mount: &Mount, restricted: bool) -> String {
    let mount = &Mount {
        nosuid: mount.nosuid || restricted,
        nodev: mount.nodev || restricted,
        ..mount.clone()
    };
    let (kind, source) = match &mount.source {
        Source::Bind { source } => ("bind", source.to_lossy()),
        Source::Volume { name } => ("volume", name.to_string()),
        Source::Disk { source, .. } => ("disk", source.to_lossy()),
        Source::Tmpfs { size_mib } => (
            "tmpfs",
            size_mib.map_or("half of memory".to_owned(), |mib| bytes(mib << 20)),
        ),
    };
    let (target, options) = (mount.target.to_lossy(), mount.options());
    format!("{kind} {source} at {target} ({options})")
}
