//! The life of one sandbox.
//!
//! The supervisor is a process of its own session. It holds the sandbox's lock, starts the virtual machine, sets the guest
//! up, relays between clients and agent, writes status and logs, and at the end leaves the folder as it should
//! be: stopped and clean, or gone. It is one loop over descriptors, in one thread, and sleeps when nothing happens.

mod args;
mod changes;
mod clock;
mod error_log;
mod exec_log;
mod last_line;
mod life;
mod link;
mod machine;
pub(crate) mod process;
pub(crate) mod relay;
mod rotate;
mod samples;
mod share;
mod socket;
mod task;

pub(crate) use args::SupervisorArgs;

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use anyhow::Context;
use libmsb::cli::args::SandboxName;
use libmsb::cli::error::{Failure, print_error};
use libmsb::jsonl;
use libmsb::machine::{Disk, Format, SERIAL_ROOT, SERIAL_UPPER, Share};
use libmsb::reference::Reference;
use libmsb::state::guest::{DiskFormat, RootDisk};
use libmsb::state::lock::Lock;
use libmsb::state::sandboxes::Sandbox;
use libmsb::state::spec::{Spec, SpecImage};
use libmsb::state::status::{Reason, State, Status};
use libmsb::state::{Home, layout};

use crate::boot_state::Restore;
use crate::engine::{self, Descriptors, Wanted, upper};
use crate::guest::root_disk;
use crate::mounts::{self, Prepared};
use crate::net::Net;
use crate::startup::Startup;
use machine::Way;

const TOOL: &str = "msb-supervisor";

/// Whether and to whom the sandbox is attached, and who waits for the start.
#[derive(Debug, Default)]
pub(crate) struct Starter {
    /// The client without which the sandbox does not go on.
    pub(crate) client: Option<UnixStream>,
    /// A pipe: the sandbox does not go on when its other end is closed.
    pub(crate) bond: Option<File>,
    /// Takes a [`Startup`] line when the guest is up or cannot come up, and another when it ends badly after that.
    pub(crate) ready: Option<File>,
}

impl Starter {
    /// Tells how it goes. Nobody may be there to hear it.
    pub(crate) fn tell(&mut self, startup: &Startup) {
        if let Some(ready) = &mut self.ready {
            let _ = jsonl::write(ready, startup);
        }
    }
}

/// Everything that a sandbox's life needs, found and opened before the machine starts.
pub(crate) struct Setup {
    pub(crate) home: Home,
    pub(crate) sandbox: Sandbox,
    pub(crate) spec: Spec,
    pub(crate) lock: Lock,
    pub(crate) engine: Box<dyn engine::Engine>,
    /// The disk with the image, if that is the root.
    pub(crate) image: Option<std::path::PathBuf>,
    /// The disk that is written to; `None` when that is the guest's memory.
    pub(crate) upper: Option<File>,
    pub(crate) net: Option<Net>,
    pub(crate) mounts: Prepared,
}

/// Runs a sandbox to its end.
pub(crate) fn run(args: SupervisorArgs) -> anyhow::Result<()> {
    // A starter that already leads a session (a service manager's child) is as good.
    let _ = rustix::process::setsid();
    // It was started through /proc/self/exe, and would be called "exe" by ps(1) and top(1).
    let _ = rustix::thread::set_name(c"msb-supervisor");
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let (name, lock, mut starter) = args.take()?;
    let home = Home::from_env()?;
    let sandbox = home.sandboxes().named(&name);
    redirect_errors(&sandbox);
    let life = prepare(home, &sandbox, lock).and_then(|(setup, note)| {
        starter.tell(&Startup::Prepared { note });
        life::begin(setup, &mut starter)
    });
    match life {
        Ok(life) => {
            let lived = life.live(starter);
            error_log::copy();
            lived
        }
        Err((error, lock)) => {
            give_up(&sandbox, &error);
            drop(lock);
            starter.tell(&Startup::failed(&error));
            Err(error)
        }
    }
}

/// An error, and the lock that must be held until the sandbox's folder says so.
pub(crate) type Aborted = (anyhow::Error, Lock);

/// Gives also what people should know about the engine.
fn prepare(home: Home, sandbox: &Sandbox, lock: Lock) -> Result<(Setup, Option<String>), Aborted> {
    let found = (|| {
        anyhow::ensure!(
            lock.is_of(&sandbox.path(layout::LOCK)),
            "the lock that was handed over is not that of '{}'",
            sandbox.name
        );
        let spec = sandbox.spec()?;
        let mounts = mounts::prepare(&home, &spec)?;
        let (engine, note) = engine::choose(&home, spec.engine)?;
        let image = spec.root.image().map(|image| open_image(&home, image));
        let image = image.transpose()?;
        let net = Net::prepare(&spec.name, &spec.net)?;
        let upper = open_upper(sandbox, &spec)?;
        Ok((spec, engine, note, image, upper, mounts, net))
    })();
    match found {
        Ok((spec, engine, note, image, upper, mounts, net)) => {
            let setup = Setup {
                home,
                sandbox: sandbox.clone(),
                spec,
                lock,
                engine,
                image,
                upper,
                net,
                mounts,
            };
            match setup.engine.check(&wanted(&setup), setup.net.is_some()) {
                Ok(()) => Ok((setup, note)),
                Err(error) => Err((error, setup.lock)),
            }
        }
        Err(error) => Err((error, lock)),
    }
}

/// The disk with an image.
fn open_image(home: &Home, image: &SpecImage) -> anyhow::Result<std::path::PathBuf> {
    let reference: Reference = image.reference.parse()?;
    let opened = home.images().open(&reference, &image.manifest_digest)?;
    Ok(opened.disk)
}

/// The writable disk: that of the sandbox, or for one that goes with its command a file that has no name.
fn open_upper(sandbox: &Sandbox, spec: &Spec) -> anyhow::Result<Option<File>> {
    match spec.upper() {
        Some(RootDisk::Managed) if spec.ephemeral => make_upper(sandbox, spec).map(Some),
        Some(RootDisk::Managed) => open_managed(sandbox, spec).map(Some),
        Some(RootDisk::Disk { path, format }) => root_disk::open(path, *format).map(Some),
        Some(RootDisk::Tmpfs { .. }) | None => Ok(None),
    }
}

/// The disk of a sandbox that lasts. It grows when a larger one is wanted by now; its file system does so in the guest.
fn open_managed(sandbox: &Sandbox, spec: &Spec) -> anyhow::Result<File> {
    let path = sandbox.path(layout::UPPER);
    let cannot = |what: &str| format!("cannot {what} the disk '{}'", path.display());
    let file = OpenOptions::new().read(true).write(true).open(&path);
    let file = file.with_context(|| cannot("open"))?;
    let wanted = spec.upper_mib.saturating_mul(1024 * 1024);
    if file.metadata().with_context(|| cannot("read"))?.len() < wanted {
        file.set_len(wanted).with_context(|| cannot("grow"))?;
    }
    Ok(file)
}

/// The disk of a sandbox that goes with its command.
fn make_upper(sandbox: &Sandbox, spec: &Spec) -> anyhow::Result<File> {
    let path = sandbox.path(layout::UPPER);
    let cannot = || format!("cannot make the disk '{}'", path.display());
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .with_context(cannot)?;
    std::fs::remove_file(&path).with_context(cannot)?;
    upper::format(&file, spec.upper_mib).with_context(cannot)?;
    Ok(file)
}

/// What the machine is to have.
pub(crate) fn wanted(setup: &Setup) -> Wanted {
    use std::os::fd::AsRawFd;
    let image = setup.image.as_ref().map(|path| Disk {
        serial: SERIAL_ROOT.to_owned(),
        path: path.clone(),
        format: Format::Vmdk,
        read_only: true,
        volatile: false,
    });
    let root_disk = &setup.spec.guest.root_disk;
    let upper = setup.upper.as_ref().map(|file| Disk {
        serial: SERIAL_UPPER.to_owned(),
        // By descriptor: the file that was locked is the one that is used, whatever its name is by now.
        path: format!("/proc/self/fd/{}", file.as_raw_fd()).into(),
        format: match root_disk {
            RootDisk::Disk {
                format: DiskFormat::Qcow2,
                ..
            } => Format::Qcow2,
            _ => Format::Raw,
        },
        read_only: false,
        volatile: setup.spec.ephemeral && root_disk.is_managed(),
    });
    let mounts = &setup.mounts;
    let disks = image
        .into_iter()
        .chain(upper)
        .chain(mounts.disks.clone())
        .collect();
    let share = (!mounts.entries.is_empty()).then(|| Share {
        tag: Prepared::tag().to_owned(),
        fd: None,
        entries: mounts.entries.clone(),
    });
    Wanted {
        cpus: setup.spec.cpus,
        memory_mib: setup.spec.memory_mib,
        disks,
        shares: share.into_iter().collect(),
        net: None,
        tsc: None,
        incoming: false,
        descriptors: Descriptors::NONE,
    }
}

/// What goes wrong from here on, in this process and in that of the machine, is told in a file.
fn redirect_errors(sandbox: &Sandbox) {
    // Without a log it is said to whoever started us.
    let _ = error_log::open(&sandbox.path(layout::SUPERVISOR_LOG));
}

/// Starts the machine; see [`machine::start`].
pub(crate) fn start_machine(
    setup: &Setup,
    samples: &samples::Samples,
    attempt: u32,
    way: Way,
) -> anyhow::Result<Option<(machine::Machine, Option<Restore>)>> {
    let mut held = vec![setup.lock.as_fd()];
    if !matches!(way, Way::Record) {
        held.extend(setup.upper.as_ref().map(AsFd::as_fd));
        held.extend(setup.mounts.held());
    }
    let net = setup.net.as_ref();
    let net = net.map(|net| anyhow::Ok((net, samples.net_descriptor()?)));
    let net = net.transpose()?;
    let engine = setup.engine.as_ref();
    machine::start(engine, attempt, wanted(setup), net, &held, way)
}

/// The sandbox never came to life: its folder says so, or goes.
pub(crate) fn give_up(sandbox: &Sandbox, error: &anyhow::Error) {
    let status = Status {
        reason: Some(Reason::BootFailed),
        message: Some(libmsb::cli::error::message(error)),
        changed: sandbox.status().is_ok_and(|status| status.changed),
        ..Status::new(State::Crashed)
    };
    let ephemeral = sandbox.spec().is_ok_and(|spec| spec.ephemeral);
    let left = if ephemeral {
        sandbox.remove_held()
    } else {
        sandbox.set_status(&status)
    };
    if let Err(error) = left {
        // The lock will be free: whoever looks sees that nothing lives here.
        print_error(TOOL, &libmsb::cli::error::message(&error));
    }
}

/// The last lines that the machine's program and the guest's kernel wrote: why it ended, in most cases.
pub(crate) fn last_words(sandbox: &Sandbox) -> Option<String> {
    error_log::copy();
    let last_line = |file: &str| error_log::last_line(&sandbox.path(file));
    last_line(layout::SUPERVISOR_LOG).or_else(|| last_line(layout::CONSOLE_LOG))
}

/// A name, and descriptors that were inherited.
pub(crate) type Handed = (SandboxName, Lock, Starter);

/// A descriptor that the starter handed over.
pub(crate) fn inherited(number: i32) -> anyhow::Result<OwnedFd> {
    args::take_descriptor(number)
        .map_err(|error| Failure::usage(format!("descriptor {number}: {error}")).into())
}
