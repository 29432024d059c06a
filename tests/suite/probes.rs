//! System calls made from inside each confined process of a running sandbox: what it was promised
//! to have given up is refused, and the process goes on as before. A share's server cannot be
//! traced by its user, since it has changed its user: its probe is a test of msb-vmm. Neither can
//! msb-intercept, whose memory is protected: its probe is a test in its isolate.rs.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixListener;

use libc::c_long;

use crate::support::inject::{Arg, StoppedThread};
use crate::support::otlp::free_port;
use crate::support::{Guests, Home, Process};

use Arg::{Bytes, Int};

/// A call that tries something.
type Attempt = (&'static str, c_long, Vec<Arg<'static>>);

/// What a process of a sandbox may still do.
struct Expected {
    /// Of [`files`] and [`others`].
    could: &'static [&'static str],
    /// Capabilities in its own namespace, as a bit mask.
    capabilities: u64,
}

/// Attempts at files of the host. They are all of the user that the sandbox belongs to.
fn files(directory: &str) -> Vec<Attempt> {
    let path = |name: &str| -> Arg<'static> {
        Bytes(Box::leak(format!("{directory}/{name}").into_boxed_str()).as_bytes())
    };
    let here = Int(i64::from(libc::AT_FDCWD));
    let (create, only) = (libc::O_CREAT | libc::O_WRONLY, libc::O_RDONLY);
    vec![
        ("read", libc::SYS_openat, vec![here, path("canary"), Int(only.into())]),
        ("write", libc::SYS_openat, vec![here, path("canary"), Int(libc::O_WRONLY.into())]),
        ("create", libc::SYS_openat, vec![here, path("made"), Int(create.into()), Int(0o600)]),
        ("list", libc::SYS_openat, vec![here, path("."), Int(libc::O_DIRECTORY.into())]),
        ("list root", libc::SYS_openat, vec![here, Bytes(b"/home"), Int(libc::O_DIRECTORY.into())]),
        ("passwd", libc::SYS_openat, vec![here, Bytes(b"/etc/passwd"), Int(only.into())]),
        (
            "other sandbox",
            libc::SYS_openat,
            vec![here, path("state"), Int(libc::O_DIRECTORY.into())],
        ),
        ("truncate", libc::SYS_truncate, vec![path("canary"), Int(0)]),
        ("chmod", libc::SYS_fchmodat, vec![here, path("canary"), Int(0o777)]),
        ("chown", libc::SYS_fchownat, vec![here, path("canary"), Int(-1), Int(-1), Int(0)]),
        ("utime", libc::SYS_utimensat, vec![here, path("canary"), Int(0), Int(0)]),
        (
            "setxattr",
            libc::SYS_setxattr,
            vec![path("canary"), Bytes(b"user.x"), Bytes(b"x"), Int(1), Int(0)],
        ),
        ("unlink", libc::SYS_unlinkat, vec![here, path("canary"), Int(0)]),
        ("rename", libc::SYS_renameat, vec![here, path("canary"), here, path("moved")]),
        ("link", libc::SYS_linkat, vec![here, path("canary"), here, path("linked"), Int(0)]),
        ("symlink", libc::SYS_symlinkat, vec![path("canary"), here, path("symlink")]),
        ("mkdir", libc::SYS_mkdirat, vec![here, path("directory"), Int(0o700)]),
        ("mkfifo", libc::SYS_mknodat, vec![here, path("fifo"), Int(0o010_600), Int(0)]),
        ("handle", libc::SYS_open_by_handle_at, vec![here, Int(0), Int(0)]),
    ]
}

/// Attempts at the network, other processes and the kernel. With the arguments given here, each one
/// fails with another error where it is not refused, or changes nothing.
fn others(me: i64) -> Vec<Attempt> {
    let socket = |family: i32, kind: i32| vec![Int(family.into()), Int(kind.into()), Int(0)];
    let environ: &'static str = Box::leak(format!("/proc/{me}/environ").into_boxed_str());
    let here = Int(i64::from(libc::AT_FDCWD));
    vec![
        ("unix socket", libc::SYS_socket, socket(libc::AF_UNIX, libc::SOCK_STREAM)),
        ("inet socket", libc::SYS_socket, socket(libc::AF_INET, libc::SOCK_STREAM)),
        ("inet6 socket", libc::SYS_socket, socket(libc::AF_INET6, libc::SOCK_DGRAM)),
        (
            "raw socket",
            libc::SYS_socket,
            vec![
                Int(libc::AF_INET.into()),
                Int(libc::SOCK_RAW.into()),
                Int(libc::IPPROTO_ICMP.into()),
            ],
        ),
        ("netlink socket", libc::SYS_socket, socket(libc::AF_NETLINK, libc::SOCK_RAW)),
        ("packet socket", libc::SYS_socket, socket(libc::AF_PACKET, libc::SOCK_DGRAM)),
        ("vsock socket", libc::SYS_socket, socket(libc::AF_VSOCK, libc::SOCK_STREAM)),
        ("connect", libc::SYS_connect, vec![Int(-1), Int(0), Int(0)]),
        ("bind", libc::SYS_bind, vec![Int(-1), Int(0), Int(0)]),
        ("listen", libc::SYS_listen, vec![Int(-1), Int(0)]),
        ("accept", libc::SYS_accept4, vec![Int(-1), Int(0), Int(0), Int(0)]),
        ("signal", libc::SYS_kill, vec![Int(me), Int(0)]),
        ("environment", libc::SYS_openat, vec![here, Bytes(environ.as_bytes()), Int(0)]),
        (
            "memory",
            libc::SYS_process_vm_readv,
            vec![Int(me), Int(0), Int(0), Int(0), Int(0), Int(0)],
        ),
        (
            "trace",
            libc::SYS_ptrace,
            vec![Int(libc::PTRACE_PEEKDATA.into()), Int(me), Int(0), Int(0)],
        ),
        ("descriptor", libc::SYS_pidfd_getfd, vec![Int(-1), Int(0), Int(0)]),
        ("chroot", libc::SYS_chroot, vec![Bytes(b"/")]),
        ("mount tree", libc::SYS_open_tree, vec![here, Bytes(b"/"), Int(0)]),
        ("bpf", libc::SYS_bpf, vec![Int(-1), Int(0), Int(0)]),
        ("perf", libc::SYS_perf_event_open, vec![Int(0), Int(0), Int(-1), Int(-1), Int(0)]),
        ("userfaultfd", libc::SYS_userfaultfd, vec![Int(-1)]),
        ("io_uring", libc::SYS_io_uring_setup, vec![Int(0), Int(0)]),
        ("keys", libc::SYS_keyctl, vec![Int(0), Int(-3), Int(0)]),
        ("personality", libc::SYS_personality, vec![Int(0xffff_ffff)]),
        ("module", libc::SYS_finit_module, vec![Int(-1), Int(0), Int(0)]),
        ("clock", libc::SYS_clock_settime, vec![Int(-1), Int(0)]),
    ]
}

/// Attempts at which QEMU's own filter (-sandbox) ends the process, so that they are left to the
/// others.
fn fatal() -> Vec<Attempt> {
    vec![
        ("execute", libc::SYS_execve, vec![Bytes(b"/none"), Int(0), Int(0)]),
        ("mount", libc::SYS_mount, vec![Int(0), Int(0), Int(0), Int(0), Int(0)]),
        ("set user", libc::SYS_setresuid, vec![Int(12_345), Int(12_345), Int(12_345)]),
        ("namespace", libc::SYS_unshare, vec![Int(libc::CLONE_NEWUSER.into())]),
        ("join", libc::SYS_setns, vec![Int(-1), Int(0)]),
        ("x32", 0x4000_0000 | libc::SYS_getpid, vec![]),
        ("kernel log", libc::SYS_syslog, vec![Int(10), Int(0), Int(0)]),
    ]
}

/// Makes the attempts in every thread of a process, and returns those that were not refused, with
/// the answers.
fn attempt(process: &Process, attempts: &[Attempt]) -> BTreeMap<&'static str, i64> {
    let mut could = BTreeMap::new();
    for task in fs::read_dir(format!("/proc/{}/task", process.pid)).unwrap() {
        let tid = task.unwrap().file_name().into_string().unwrap().parse().unwrap();
        let mut thread = match StoppedThread::stop(process.pid, tid) {
            Ok(thread) => thread,
            // Threads come and go.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => continue,
            Err(error) => panic!("{}: {error}", process.name),
        };
        for (what, number, args) in attempts {
            let answer = thread
                .call(*number, args)
                .unwrap_or_else(|error| panic!("{}: {what}: {error}", process.name));
            // A path that does not exist in the root of the process is as far away as one that is
            // refused.
            let is_refused = [libc::EPERM, libc::EACCES, libc::ENOENT, libc::ENOSYS]
                .iter()
                .any(|error| answer == -i64::from(*error));
            // A user ID that the user namespace does not map (user_namespaces(7)).
            let is_refused =
                is_refused || (*what == "set user" && answer == -i64::from(libc::EINVAL));
            if !is_refused || (*what == "execute" && answer == -i64::from(libc::ENOENT)) {
                could.insert(*what, answer);
            }
            // A descriptor, where the call gives one.
            if answer >= 3 && !["trace", "personality", "keys"].contains(what) {
                thread.call(libc::SYS_close, &[Int(answer)]).unwrap();
            }
        }
    }
    could
}

/// The set of capabilities of a process that is named, as a bit mask.
fn capabilities(process: &Process, set: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid)).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(set)).unwrap();
    u64::from_str_radix(line.trim_start_matches(':').trim(), 16).unwrap()
}

/// The version of the kernel's Landlock (landlock_create_ruleset(2)), or -1.
fn landlock_version() -> c_long {
    const LANDLOCK_CREATE_RULESET_VERSION: c_long = 1;
    // SAFETY: without attributes the call only returns a number.
    unsafe { libc::syscall(444, 0, 0, LANDLOCK_CREATE_RULESET_VERSION) }
}

/// The expectations of each process by its name, and by what it serves.
fn expected(process: &Process) -> (&'static str, Expected) {
    let none = |could| Expected { could, capabilities: 0 };
    if process.name == "msb-supervisor" {
        // It publishes ports and ends the virtual machine.
        let could = &["accept", "bind", "inet socket", "inet6 socket", "listen", "signal"];
        // Of root's capabilities, CAP_KILL and CAP_NET_BIND_SERVICE stay.
        let capabilities = if rustix::process::geteuid().is_root() { 1 << 5 | 1 << 10 } else { 0 };
        return ("supervisor", Expected { could, capabilities });
    }
    if process.name == "msb-net" {
        // It connects to the Internet for the guest.
        return ("net", none(&["accept", "connect", "inet socket", "inet6 socket"]));
    }
    // Signals to others are refused by Landlock, from Linux 6.12 on; `msb inspect` says what it lacks.
    ("machine", none(if landlock_version() >= 6 { &[] } else { &["signal"] }))
}

#[test]
fn each_process_of_a_sandbox_is_refused_what_it_has_given_up() {
    let home = Home::with_busybox();
    let directory = home.directory.to_str().unwrap().to_owned();
    fs::write(home.directory.join("canary"), "secret").unwrap();
    let _listener = UnixListener::bind(home.directory.join("socket")).unwrap();
    let port = format!("{}:80", free_port());
    let options = ["-p", &port, "busybox:test"];
    let home = Guests::of(home, &options);
    let me = i64::from(std::process::id());
    let mut seen: Vec<&str> = Vec::new();
    for process in home.processes() {
        let (name, expected) = expected(&process);
        let mut attempts = files(&directory);
        attempts.extend(others(me));
        if !process.name.starts_with("qemu-system") {
            attempts.extend(fatal());
        }
        let could = attempt(&process, &attempts);
        let names: Vec<&str> = could.keys().copied().collect();
        assert_eq!(names, expected.could, "{name}: {could:?}");
        for set in ["CapPrm", "CapEff"] {
            assert_eq!(capabilities(&process, set), expected.capabilities, "{name}: {set}");
        }
        seen.push(name);
    }
    seen.sort_unstable();
    assert_eq!(seen, ["machine", "net", "supervisor"]);
    assert_eq!(fs::read(home.directory.join("canary")).unwrap(), b"secret");
    let mut names: Vec<_> =
        fs::read_dir(&home.directory).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.retain(|name| {
        ["made", "moved", "linked", "symlink", "directory", "fifo"].iter().any(|made| name == made)
    });
    assert_eq!(names, Vec::<std::ffi::OsString>::new());
    // All of them go on.
    home.run(["exec", "x", "--", "echo", "works"]).is(0, "works\n", "");
}
