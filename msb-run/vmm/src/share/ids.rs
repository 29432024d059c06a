//! A user namespace: who the guest's users are on the host.
//!
//! The guest's root is the user who runs the sandbox, so that the user's files are root's in the guest, and what root makes
//! is the user's. The guest's users 1 to 65536 are the first of the user's subordinate IDs (subuid(5)), as with rootless
//! podman; newuidmap(1) sets that up. Without it, or without such IDs, root is the only user who can make files. For root
//! on the host every user is itself.

use std::fs;
use std::io::Write;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail};
use libmsb::cli::error::print_warning;
use rustix::process::{getgid, getpid, getuid};
use rustix::thread::{UnshareFlags, set_thread_gid, set_thread_uid, unshare_unsafe};

use crate::TOOL;

/// Users and groups of the guest besides root: as many as useradd(8) gives out.
const COUNT_MAX: u64 = 65_536;

/// Longest file of users or of subordinate IDs, in bytes.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Waits for a line, since the namespace must be there first, and asks the two programs that may map further IDs. Only
/// numbers go in.
const MAPPER: &str = "read -r _ && newuidmap \"$1\" 0 \"$2\" 1 1 \"$3\" \"$4\" && newgidmap \"$1\" 0 \"$5\" 1 1 \"$6\" \"$7\"";

/// Enters namespaces of users, mounts, network and System V objects, and becomes root there.
pub(super) fn enter_user_namespace() -> anyhow::Result<()> {
    let (uid, gid) = (getuid().as_raw(), getgid().as_raw());
    let mapper = match subordinates(uid) {
        Some(ranges) if uid != 0 => Some(start_mapper(uid, gid, ranges)?),
        _ => None,
    };
    let flags =
        UnshareFlags::NEWUSER | UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWIPC;
    // SAFETY: this process has one thread and no descriptor table that it shares with anybody.
    unsafe { unshare_unsafe(flags) }.context(
        "the system does not let this user make namespaces, without which no folder is shared (sysctl kernel.unprivileged_userns_clone, user.max_user_namespaces)",
    )?;
    let mapped = mapper.map(finish_mapper);
    if !matches!(mapped, Some(Ok(()))) {
        if let Some(Err(why)) = mapped {
            print_warning(
                TOOL,
                &format!("only the guest's root can make files in shared folders: {why:#}"),
            );
        }
        map_alone(uid, gid)?;
    }
    set_thread_gid(rustix::fs::Gid::ROOT).context("cannot become the guest's root")?;
    set_thread_uid(rustix::fs::Uid::ROOT).context("cannot become the guest's root")
}

/// First and number of a user's subordinate IDs: of users, then of groups.
type Ranges = [(u64, u64); 2];

fn subordinates(uid: u32) -> Option<Ranges> {
    let name = user_name(uid);
    let range = |path: &str| {
        let text = read(path)?;
        find_range(&text, &uid.to_string(), name.as_deref())
    };
    Some([range("/etc/subuid")?, range("/etc/subgid")?])
}

fn read(path: &str) -> Option<String> {
    let bytes = libmsb::state::write::read_bounded(path.as_ref(), FILE_BYTES_MAX).ok()??;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn user_name(uid: u32) -> Option<String> {
    let users = read("/etc/passwd")?;
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

/// Lines are `USER:FIRST:COUNT`, the user by name or number.
fn find_range(text: &str, uid: &str, name: Option<&str>) -> Option<(u64, u64)> {
    text.lines().find_map(|line| {
        let mut fields = line.trim().split(':');
        let user = fields.next()?;
        let first = fields.next()?.parse().ok()?;
        let count: u64 = fields.next()?.parse().ok()?;
        let ours = user == uid || Some(user) == name;
        (ours && count > 0).then(|| (first, count.min(COUNT_MAX)))
    })
}

fn start_mapper(uid: u32, gid: u32, [users, groups]: Ranges) -> anyhow::Result<Child> {
    let numbers = [
        u64::from(getpid().as_raw_nonzero().get().unsigned_abs()),
        u64::from(uid),
        users.0,
        users.1,
        u64::from(gid),
        groups.0,
        groups.1,
    ];
    Command::new("/bin/sh")
        .args(["-c", MAPPER, "sh"])
        .args(numbers.map(|number| number.to_string()))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .context("cannot start a shell")
}

fn finish_mapper(mut mapper: Child) -> anyhow::Result<()> {
    if let Some(mut go_on) = mapper.stdin.take() {
        // One that is gone already says so by its status.
        let _ = go_on.write_all(b"\n");
    }
    let status = mapper.wait().context("cannot wait for newuidmap")?;
    if !status.success() {
        bail!("newuidmap or newgidmap failed (package uidmap)");
    }
    Ok(())
}

/// What a process may map by itself: its own user alone; root everybody.
fn map_alone(uid: u32, gid: u32) -> anyhow::Result<()> {
    let cannot = "cannot map users into a namespace";
    if uid == 0 {
        let all = format!("0 0 {}", u32::MAX);
        fs::write("/proc/self/uid_map", &all).context(cannot)?;
        return fs::write("/proc/self/gid_map", &all).context(cannot);
    }
    // If one of the two programs failed, the other may have done its part.
    if fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| map.is_empty()) {
        fs::write("/proc/self/uid_map", format!("0 {uid} 1")).context(cannot)?;
    }
    fs::write("/proc/self/setgroups", "deny").context(cannot)?;
    fs::write("/proc/self/gid_map", format!("0 {gid} 1")).context(cannot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_range_is_found_by_name_and_by_number() {
        let text = "# none\nann:100000:65536\n1001:200000:10\nbob:x:1\nbob:300000:999999\n";
        assert_eq!(
            find_range(text, "1000", Some("ann")),
            Some((100_000, 65_536))
        );
        assert_eq!(find_range(text, "1001", None), Some((200_000, 10)));
        assert_eq!(
            find_range(text, "1002", Some("bob")),
            Some((300_000, COUNT_MAX))
        );
        assert_eq!(find_range(text, "1003", Some("eve")), None);
    }
}
