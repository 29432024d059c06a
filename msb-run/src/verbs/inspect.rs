//! `msb inspect`: shows the configuration and state of a sandbox.

use std::os::unix::fs::MetadataExt;
use std::time::SystemTime;

use clap::{Parser, ValueEnum};
use libmsb::cli::args::SandboxName;
use libmsb::cli::error::{Failure, message, print_error, print_warning, print_warning_with_hint};
use libmsb::cli::escape::escape;
use libmsb::cli::output;
use libmsb::cli::style::{age, bytes, local_time};
use libmsb::isolate::Step;
use libmsb::machine::DiskImageFormat;
use libmsb::net::network::Network;
use libmsb::state::guest::{DiskFormat, GuestSpec, RootDisk};
use libmsb::state::mounts::{Mount, Source};
use libmsb::state::sandboxes::{Sandbox, SandboxSnapshot};
use libmsb::state::spec::{RootSource, Spec};
use libmsb::state::status::{BootKind, Status};
use libmsb::state::{Home, layout};
use msb_wire::guest::Security;
use msb_wire::text::Text;
use serde::Serialize;

use crate::microsandbox::export::{ExportedConfig, export};

const TOOL: &str = "msb-inspect";

/// Show the configuration and state of a sandbox
#[derive(Debug, Parser)]
#[command(
    name = TOOL,
    version,
    after_help = "Examples:\n  msb inspect web\n  msb inspect web --format json | jq .config.labels\n  msb ls -q | xargs -r msb inspect --format json"
)]
pub(crate) struct InspectArgs {
    /// Names of the sandboxes
    #[arg(required = true, value_name = "NAME")]
    names: Vec<SandboxName>,
    /// Print a JSON object; with several names, one per line
    #[arg(short, long, value_enum)]
    format: Option<InspectFormat>,
    /// With JSON, print the configuration in the form of another program
    ///
    /// `msb create --from-microsandbox` reads the field `config` of this form. A warning names the
    /// settings that it has no field for.
    #[arg(long = "as", value_enum, value_name = "PROGRAM", requires = "format")]
    form: Option<ConfigForm>,
}

/// Form of the configuration in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ConfigForm {
    /// `inspect` of microsandbox 0.5
    Microsandbox,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum InspectFormat {
    Json,
}

#[derive(Serialize)]
struct InspectDocument<'a> {
    name: &'a str,
    status: &'static str,
    /// Specification, as in `spec.json`.
    config: &'a Spec,
    /// State last written by the supervisor, as in `status.json`.
    state: &'a Status,
    disk: DiskUsage,
    /// Addresses of the guest and its gateway; missing without a network.
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<Network>,
    #[serde(with = "libmsb::time")]
    created_at: jiff::Timestamp,
    #[serde(with = "libmsb::time")]
    updated_at: jiff::Timestamp,
}

/// Sizes of the writable disk.
#[derive(Clone, Copy, Serialize)]
struct DiskUsage {
    /// Maximum size.
    size_bytes: u64,
    /// Space allocated on the host; missing if the sandbox has no disk file.
    #[serde(skip_serializing_if = "Option::is_none")]
    allocated_bytes: Option<u64>,
}

pub(crate) fn run(args: InspectArgs) -> anyhow::Result<()> {
    let home = Home::from_env()?;
    if let [name] = args.names.as_slice() {
        return show(&home, name, &args);
    }
    let mut failed = 0;
    for (place, name) in args.names.iter().enumerate() {
        if args.format.is_none() && place > 0 {
            output::print("")?;
        }
        match show(&home, name, &args) {
            Err(error) if !output::is_closed(&error) => {
                print_error(TOOL, &message(&error));
                failed += 1;
            }
            shown => shown?,
        }
    }
    match failed {
        0 => Ok(()),
        failed => Err(Failure::failed(format!("{failed} of {} failed", args.names.len())).into()),
    }
}

/// Prints one sandbox: an indented object for one name, else an object in one line.
fn show(home: &Home, name: &SandboxName, args: &InspectArgs) -> anyhow::Result<()> {
    let sandbox = home.sandboxes().find(name)?;
    let seen = sandbox.snapshot()?;
    let disk = disk(&sandbox, &seen.spec);
    if args.format == Some(InspectFormat::Json) {
        let is_one = args.names.len() == 1;
        return match args.form {
            None => print_document(&document(&seen, disk), is_one),
            Some(ConfigForm::Microsandbox) => print_document(&microsandbox_document(&seen), is_one),
        };
    }
    for (name, value) in rows(&seen, disk) {
        output::print(&format!("{name:<12} {}", escape(&value)))?;
    }
    Ok(())
}

/// Prints a document, indented or as one line.
fn print_document(document: &impl Serialize, indented: bool) -> anyhow::Result<()> {
    if indented {
        return Ok(output::print_json(document)?);
    }
    Ok(output::print(&libmsb::jsonl::to_string(document)?)?)
}

fn document(seen: &SandboxSnapshot, disk: DiskUsage) -> InspectDocument<'_> {
    InspectDocument {
        name: &seen.spec.name,
        status: seen.state.name(),
        config: &seen.spec,
        state: &seen.status,
        disk,
        network: network(&seen.spec),
        created_at: seen.spec.created_at,
        updated_at: seen.status.since,
    }
}

/// Returns the document of microsandbox. Its status has one word for each state, in its spelling.
fn microsandbox_document(seen: &SandboxSnapshot) -> serde_json::Value {
    let ExportedConfig { config, omitted } = export(&seen.spec);
    if !omitted.is_empty() {
        let (name, omitted) = (escape(&seen.spec.name), omitted.join(", "));
        let message = format!("'{name}': no field for {omitted}");
        match &seen.spec.snapshot {
            // The digest of the image is there; the files of the snapshot are not.
            Some(digest) => print_warning_with_hint(
                TOOL,
                &message,
                &format!("add the files: msb create --snapshot {digest} --from-microsandbox FILE"),
            ),
            None => print_warning(TOOL, &message),
        }
    }
    serde_json::json!({
        "name": seen.spec.name,
        "status": seen.state.name(),
        "config": config,
        "created_at": libmsb::time::text(seen.spec.created_at),
        "updated_at": libmsb::time::text(seen.status.since),
    })
}

fn network(spec: &Spec) -> Option<Network> {
    let enabled = spec.net.enabled;
    enabled.then(|| Network::of_sandbox(&spec.name, &spec.net))
}

fn disk(sandbox: &Sandbox, spec: &Spec) -> DiskUsage {
    let upper = std::fs::metadata(sandbox.path(layout::UPPER));
    DiskUsage {
        size_bytes: spec.upper_mib * 1024 * 1024,
        allocated_bytes: upper.ok().map(|file| file.blocks() * 512),
    }
}

/// Returns the confinement steps of a running sandbox's processes: those that hold, and those that
/// failed.
fn isolation_rows(steps: &[Step]) -> Vec<(&'static str, String)> {
    let holds: Vec<String> = steps
        .iter()
        .filter(|step| step.holds)
        .map(|step| format!("{}:{}", step.process, step.step))
        .collect();
    let failed = steps.iter().filter_map(|step| {
        let reason = step.reason.as_ref()?;
        Some(("Lacking", format!("{}:{}: {reason}", step.process, step.step)))
    });
    [("Isolation", holds.join(" "))].into_iter().chain(failed).collect()
}

/// Returns the source of the root file system.
fn root_rows(root: &RootSource) -> Vec<(&'static str, String)> {
    let path = || root.name().into_owned();
    match root {
        RootSource::Image(image) => {
            vec![("Image", path()), ("Digest", image.manifest_digest.to_string())]
        }
        RootSource::RootDirectory { .. } => vec![("Root dir", path())],
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

/// Returns the guest's setup where it differs from the default.
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
        ("Stop signal", guest.stop_signal.map(|signal| signal.to_string()).unwrap_or_default()),
        ("Shell", guest.shell.as_ref().map(Text::to_lossy).unwrap_or_default()),
        ("Changes", count(guest.changes.len()).unwrap_or_default()),
    ]
}

fn rows(seen: &SandboxSnapshot, disk: DiskUsage) -> Vec<(&'static str, String)> {
    let (spec, status) = (&seen.spec, &seen.status);
    let mut rows = vec![("Name", spec.name.clone()), ("Status", seen.state.name().to_owned())];
    let reason = status.reason.map(|reason| reason.name().replace('_', " "));
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
    let allocated = disk.allocated_bytes.map(|count| format!(", {} in use", bytes(count)));
    rows.extend(root_rows(&spec.root));
    rows.extend([
        ("Command", words(&spec.command)),
        ("Directory", words(spec.workdir.as_slice())),
        ("User", words(spec.user.as_slice())),
        ("Host name", spec.hostname.clone()),
        ("CPUs", spec.cpus.to_string()),
        ("Memory", bytes(u64::from(spec.memory_mib) * 1024 * 1024)),
        ("Disk", bytes(disk.size_bytes) + &allocated.unwrap_or_default()),
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
        ("Idle timeout", spec.idle_timeout_ms.map(millis).unwrap_or_default()),
        ("Max duration", spec.max_duration_ms.map(millis).unwrap_or_default()),
    ]);
    let restricted = spec.guest.security.is_restricted();
    let mounts = spec.mounts.iter();
    rows.extend(mounts.map(|mount| ("Mount", mount_row(mount, restricted))));
    rows.extend(spec.labels.iter().map(|(key, value)| ("Label", format!("{key}={value}"))));
    rows.extend(spec.env.iter().map(|text| ("Variable", text.to_lossy())));
    rows.retain(|(_, value)| !value.is_empty());
    rows
}

/// Describes a mount in the syntax of the command line, with its kind, and with the options that
/// the agent adds for a restricted sandbox.
fn mount_row(mount: &Mount, restricted: bool) -> String {
    let mount = &Mount {
        nosuid: mount.nosuid || restricted,
        nodev: mount.nodev || restricted,
        ..mount.clone()
    };
    let (kind, source) = match &mount.source {
        Source::Bind { source } => ("bind", source.to_lossy()),
        Source::Volume { name } => ("volume", name.to_string()),
        Source::Disk { source, .. } => ("disk", source.to_lossy()),
        Source::Tmpfs { size_mib } => {
            ("tmpfs", size_mib.map_or("half of memory".to_owned(), |mib| bytes(mib << 20)))
        }
    };
    let (target, options) = (mount.target.to_lossy(), mount.options());
    format!("{kind} {source} at {target} ({options})")
}
