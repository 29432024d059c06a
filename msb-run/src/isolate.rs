//! What the host's processes of a sandbox give up. The machine's own process does it by itself (msb-vmm).

use std::os::fd::BorrowedFd;
use std::path::Path;

use libmsb::isolate::{self, Access, Needed, Place, Reach, Sockets, Step};
use libmsb::state::Home;
use libmsb::state::sandboxes::Sandbox;

/// Who takes the steps, in what is told of them.
const SUPERVISOR: &str = "supervisor";

/// The supervisor, when all is started and nothing of the image has run yet. What is left: the sandbox's folder, its
/// sockets, the list of events, and reading what processes cost. From here on it starts no program, opens no connection, and mounts nothing; the guest,
/// whose every byte it reads, would gain nothing else by it.
pub(crate) fn while_serving(home: &Home, sandbox: &Sandbox, ephemeral: bool) -> Vec<Step> {
    let runtime = home.runtime_dir(&sandbox.name);
    let mut rules: Vec<(Place<'_>, Access)> = vec![
        (Place::from(&sandbox.dir), Access::Write),
        (Place::from(&runtime), Access::Write),
        // Its folder of sockets goes in the end.
        (Place::from(home.runtime()), Access::Folders),
        (Place::from(home.events()), Access::Write),
        // What its own processes cost. Of others the kernel shows no more than to everybody: what is theirs alone it shows
        // only to who may trace them, and a confined process may trace none outside.
        (Place::from(Path::new("/proc")), Access::Read),
    ];
    if ephemeral && let Some(sandboxes) = sandbox.dir.parent() {
        // So does its own folder: under another name first.
        rules.push((Place::from(sandboxes), Access::Folders));
    }
    vec![
        Step::of(SUPERVISOR, "privileges", isolate::refuse_privileges()),
        // Signals: it ends the machine, which has a confinement of its own. Ports: they are published while it runs, too.
        Step::of(
            SUPERVISOR,
            "paths",
            isolate::keep_paths(&rules, Reach::Ports),
        ),
        Step::of(
            SUPERVISOR,
            "calls",
            isolate::refuse_calls(Needed {
                sockets: Sockets::Publish,
                ..Needed::NOTHING
            }),
        ),
    ]
}

/// `msb cp`, before it writes what a guest sends: the one folder is left. A guest that finds a hole in the code that takes
/// its files cannot reach another file of the host through it.
pub(crate) fn while_writing(folder: BorrowedFd<'_>) {
    // What this kernel lacks is no reason not to copy: the code that writes follows no link in any case.
    let _ = isolate::refuse_privileges();
    let rules = [
        (Place::Open(folder), Access::Write),
        // Files are written without a name, and get it by their descriptor.
        (Place::from(Path::new("/proc/self/fd")), Access::Read),
    ];
    let _ = isolate::keep_paths(&rules, Reach::Alone);
    let _ = isolate::refuse_calls(Needed {
        metadata: true,
        ..Needed::NOTHING
    });
}
