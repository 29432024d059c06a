//! A user namespace: the mapping of the guest's users to users of the host.
//!
//! The guest's root is the user who runs the sandbox. The user's files belong to root in the guest,
//! and root's new files belong to the user. The guest's users 1 to 65536 are the first of the
//! user's subordinate IDs (subuid(5)), as with rootless podman; newuidmap(1) maps them. Without it,
//! or without such IDs, only root can create files. For root on the host every user is mapped to
//! itself, if root's own namespace has the user.
//!
//! A process may map only its own ID into its own namespace. More requires a capability in the
//! parent namespace (user_namespaces(7)), for root too. Another process is therefore started
//! before, which stays in the parent namespace.

use std::fs;
use std::io::Write;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail};
use libmsb::cli::error::warn;
use rustix::process::{getgid, getpid, getuid};
use rustix::thread::{UnshareFlags, set_thread_gid, set_thread_uid, unshare_unsafe};

/// Maximum number of users and groups of the guest besides root: the range of useradd(8).
const COUNT_MAX: u64 = 65_536;

/// Maximum size of the files of users and of subordinate IDs, in bytes.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Maximum size of a namespace's map, in bytes: the kernel accepts less than a page.
const MAP_BYTES_MAX: u64 = 4095;

/// Shell script that waits for a line, since the namespace must exist first, and runs the two
/// programs that may map further IDs. Its arguments are numbers.
const USER_MAPPER: &str = "read -r _ && newuidmap \"$1\" 0 \"$2\" 1 1 \"$3\" \"$4\" \
                            && newgidmap \"$1\" 0 \"$5\" 1 1 \"$6\" \"$7\"";

/// Shell script for root, who needs no other program. A map must be written in one piece, which
/// only `cat` does in every shell. Its arguments are numbers.
const ROOT_MAPPER: &str =
    "read -r _ && cat <<users >/proc/$1/uid_map && cat <<groups >/proc/$1/gid_map
$2
users
$3
groups
";

/// Enters namespaces of users, mounts, network and System V objects, and becomes root there.
pub(super) fn enter_user_namespace() -> anyhow::Result<()> {
    let (uid, gid) = (getuid().as_raw(), getgid().as_raw());
    let mapper = if uid == 0 {
        Some(start_root_mapper()?)
    } else if let Some(ranges) = subordinate_ids(uid) {
        Some(start_user_mapper(uid, gid, ranges)?)
    } else {
        None
    };
    let flags =
        UnshareFlags::NEWUSER | UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWIPC;
    // SAFETY: this process has one thread and no descriptor table that it shares with anybody.
    unsafe { unshare_unsafe(flags) }.context(
        "cannot create the namespaces that sharing requires \
         (sysctl kernel.unprivileged_userns_clone, user.max_user_namespaces)",
    )?;
    let mapped = mapper.map(|mapper| finish_mapper(mapper, uid));
    if !matches!(mapped, Some(Ok(()))) {
        if let Some(Err(why)) = mapped {
            warn(&format!("only the guest's root can create files in shared directories: {why:#}"));
        }
        map_own_id(uid, gid)?;
    }
    set_thread_gid(rustix::fs::Gid::ROOT).context("cannot become the guest's root")?;
    set_thread_uid(rustix::fs::Uid::ROOT).context("cannot become the guest's root")
}

/// First ID and number of a user's subordinate IDs: of users, then of groups.
type SubordinateRanges = [(u64, u64); 2];

fn subordinate_ids(uid: u32) -> Option<SubordinateRanges> {
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

/// Finds a user's range. Lines are `USER:FIRST:COUNT`, the user by name or number.
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

fn start_user_mapper(
    uid: u32,
    gid: u32,
    [users, groups]: SubordinateRanges,
) -> anyhow::Result<Child> {
    let numbers = [u64::from(uid), users.0, users.1, u64::from(gid), groups.0, groups.1];
    start_mapper(USER_MAPPER, &numbers.map(|number| number.to_string()))
}

fn start_root_mapper() -> anyhow::Result<Child> {
    let map = |path: &str| {
        let bytes = libmsb::state::write::read_bounded(path.as_ref(), MAP_BYTES_MAX)?;
        anyhow::Ok(identity_map(&String::from_utf8_lossy(&bytes.unwrap_or_default())))
    };
    let maps = [map("/proc/self/uid_map")?, map("/proc/self/gid_map")?];
    start_mapper(ROOT_MAPPER, &maps)
}

/// Returns the identity map of all IDs of a namespace. Lines of a map are `ID OUTSIDE COUNT`.
fn identity_map(map: &str) -> String {
    let lines = map.lines().filter_map(|line| {
        let mut fields = line.split_whitespace();
        let first: u32 = fields.next()?.parse().ok()?;
        let count: u32 = fields.nth(1)?.parse().ok()?;
        Some(format!("{first} {first} {count}"))
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Starts one of the two scripts. Its first argument is this process, followed by `arguments`.
fn start_mapper(script: &str, arguments: &[String]) -> anyhow::Result<Child> {
    Command::new("/bin/sh")
        .args(["-c", script, "sh"])
        .arg(getpid().as_raw_nonzero().to_string())
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .context("cannot start a shell")
}

fn finish_mapper(mut mapper: Child, uid: u32) -> anyhow::Result<()> {
    if let Some(mut stdin) = mapper.stdin.take() {
        // A script that has ended already has reported its failure in its status.
        let _ = stdin.write_all(b"\n");
    }
    let status = mapper.wait().context("cannot wait for newuidmap")?;
    if !status.success() {
        bail!(match uid {
            0 => "root lacks the capabilities to map users (CAP_SETUID, CAP_SETGID, CAP_SETFCAP)",
            _ => "newuidmap or newgidmap failed (package uidmap)",
        });
    }
    Ok(())
}

/// Maps the process's own user alone, which needs no capability.
fn map_own_id(uid: u32, gid: u32) -> anyhow::Result<()> {
    let cannot = match uid {
        0 => "cannot map root into a namespace: CAP_SETFCAP is required",
        _ => "cannot map the user into a namespace",
    };
    // A failed script may have written one of the maps.
    if is_unmapped("/proc/self/uid_map") {
        fs::write("/proc/self/uid_map", format!("0 {uid} 1")).context(cannot)?;
    }
    if is_unmapped("/proc/self/gid_map") {
        fs::write("/proc/self/setgroups", "deny").context(cannot)?;
        fs::write("/proc/self/gid_map", format!("0 {gid} 1")).context(cannot)?;
    }
    Ok(())
}

fn is_unmapped(path: &str) -> bool {
    fs::read_to_string(path).is_ok_and(|map| map.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_range_is_found_by_name_and_by_number() {
        let text = "# none\nann:100000:65536\n1001:200000:10\nbob:x:1\nbob:300000:999999\n";
        assert_eq!(find_range(text, "1000", Some("ann")), Some((100_000, 65_536)));
        assert_eq!(find_range(text, "1001", None), Some((200_000, 10)));
        assert_eq!(find_range(text, "1002", Some("bob")), Some((300_000, COUNT_MAX)));
        assert_eq!(find_range(text, "1003", Some("eve")), None);
    }

    #[test]
    fn the_identity_map_contains_exactly_the_ids_of_the_namespace() {
        assert_eq!(identity_map("         0          0 4294967295\n"), "0 0 4294967295");
        // As in a container of a user: the IDs outside do not matter.
        assert_eq!(identity_map("0 1000 1\n1 100000 65536\n"), "0 0 1\n1 1 65536");
        assert_eq!(identity_map("x y z\n7 7\n"), "");
    }
}
