//! Confinement of a sandbox's processes on the host. The VMM process confines itself (msb-vmm).

use std::os::fd::BorrowedFd;
use std::path::Path;

use libmsb::isolate::{
    self, AllowedCalls, LandlockScope, PathAccess, RulePath, SocketUse, Step, StepOutcome,
};
use libmsb::state::Home;
use libmsb::state::sandboxes::Sandbox;
use rustix::thread::CapabilitySet;

use crate::process::cgroup::Cgroup;

/// Name of the process in the reported steps.
const SUPERVISOR: &str = "supervisor";

/// Confines the supervisor, after all is started and before anything of the image has run. Access
/// is left to the sandbox's directory, its sockets, the event log and the costs of processes. From
/// here on the supervisor starts no program, opens no connection and mounts nothing. The guest,
/// whose every byte it reads, could gain nothing else through it.
pub(crate) fn confine_supervisor(
    home: &Home,
    sandbox: &Sandbox,
    ephemeral: bool,
    cgroup: &Result<Cgroup, String>,
) -> Vec<Step> {
    let runtime = home.runtime_dir(&sandbox.name);
    let mut rules: Vec<(RulePath<'_>, PathAccess)> = vec![
        (RulePath::from(&sandbox.dir), PathAccess::Write),
        (RulePath::from(&runtime), PathAccess::Write),
        // The directory of its sockets is removed at the end.
        (RulePath::from(home.runtime()), PathAccess::Directories),
        (RulePath::from(home.events()), PathAccess::Write),
        // Costs of its own processes. For other processes the kernel shows only public data:
        // private data requires the right to trace them, and a confined process may trace none
        // outside.
        (RulePath::from(Path::new("/proc")), PathAccess::Read),
    ];
    if ephemeral && let Some(sandboxes) = sandbox.dir.parent() {
        // Its own directory is renamed, then removed.
        rules.push((RulePath::from(sandboxes), PathAccess::Directories));
    }
    if let Some(groups) = cgroup.as_ref().ok().and_then(Cgroup::parent) {
        // Its control group is removed at the end.
        rules.push((RulePath::from(groups), PathAccess::Directories));
    }
    let group = match cgroup {
        Ok(_) => StepOutcome::Complete,
        Err(why) => StepOutcome::Failed(why.clone()),
    };
    // Of root's: ports below 1024 are published while the sandbox runs, too, and a share server may
    // act for another user when it is killed.
    let capabilities = CapabilitySet::NET_BIND_SERVICE.union(CapabilitySet::KILL);
    vec![
        // Processes, memory and processor time of all processes of the sandbox are limited.
        Step::of(SUPERVISOR, "cgroup", group),
        Step::of(SUPERVISOR, "privileges", isolate::set_no_new_privileges()),
        Step::of(SUPERVISOR, "capabilities", isolate::keep_capabilities(capabilities).into()),
        // Signals: the supervisor kills the VMM process, which has its own confinement. Ports:
        // ports can also be published while the sandbox runs.
        Step::of(SUPERVISOR, "paths", isolate::restrict_paths(&rules, LandlockScope::Ports)),
        Step::of(
            SUPERVISOR,
            "calls",
            isolate::refuse_system_calls(AllowedCalls {
                sockets: SocketUse::Publish,
                ..AllowedCalls::NONE
            }),
        ),
    ]
}

/// Confines `msb cp` before it writes data from a guest: only the destination directory stays
/// accessible. A guest that exploits a bug in the receiving code cannot reach another file of the
/// host.
pub(crate) fn confine_copy(directory: BorrowedFd<'_>) {
    // Missing kernel features do not prevent the copy: the writing code never follows links.
    let _ = isolate::set_no_new_privileges();
    // Of root's, those that write the files of any user.
    let _ = isolate::keep_capabilities(
        CapabilitySet::CHOWN
            .union(CapabilitySet::DAC_OVERRIDE)
            .union(CapabilitySet::FOWNER)
            .union(CapabilitySet::FSETID),
    );
    let rules = [
        (RulePath::Open(directory), PathAccess::Write),
        // Files are created unnamed, and linked through their descriptors.
        (RulePath::from(Path::new("/proc/self/fd")), PathAccess::Read),
    ];
    let _ = isolate::restrict_paths(&rules, LandlockScope::Confined);
    let _ = isolate::refuse_system_calls(AllowedCalls { metadata: true, ..AllowedCalls::NONE });
}
