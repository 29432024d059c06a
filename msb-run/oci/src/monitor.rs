//! The monitor: the parent of `msb-run`, one for each container.
//!
//! It has the standard streams of the container until the start and passes them to `msb-run`. It
//! serves requests of other calls on a socket, ends `msb-run` with `init`, and gives `init` the exit
//! code of the command.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use anyhow::Context;
use libmsb::cli::args::SandboxName;
use libmsb::tools;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};

use crate::bundle::{Container, NetworkNamespace};
use crate::cgroup::Group;
use crate::init::Init;
use crate::terminal;

/// Limit of a request, in bytes and time.
const REQUEST_BYTES_MAX: u64 = 64;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// Limit of resolv.conf, in bytes.
const RESOLV_BYTES_MAX: u64 = 64 << 10;
/// Exit code when the virtual machine could not be started.
const FAILED: u8 = 125;

/// A monitor before it serves requests.
#[derive(Debug)]
pub(crate) struct Monitor {
    pub(crate) id: SandboxName,
    pub(crate) container: Container,
    pub(crate) group: Option<Group>,
    pub(crate) msb_home: PathBuf,
    pub(crate) listener: UnixListener,
    pub(crate) init: Init,
    pub(crate) terminal: Option<OwnedFd>,
}

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Request {
    Start,
    Status,
    Signal(i32),
}

impl Request {
    fn parse(line: &str) -> Option<Request> {
        match line.trim_end() {
            "start" => Some(Request::Start),
            "status" => Some(Request::Status),
            line => Some(Request::Signal(line.strip_prefix("signal ")?.parse().ok()?)),
        }
    }
}

impl Monitor {
    /// Serves requests until the container has ended. Returns the exit code of the command.
    pub(crate) fn run(mut self) -> anyhow::Result<()> {
        let init = pidfd(self.init.pid)?;
        let mut client: Option<(Child, OwnedFd)> = None;
        let code = loop {
            let mut fds =
                vec![PollFd::new(&self.listener, PollFlags::IN), PollFd::new(&init, PollFlags::IN)];
            if let Some((_, end)) = &client {
                fds.push(PollFd::new(end, PollFlags::IN));
            }
            match poll(&mut fds, None) {
                Err(rustix::io::Errno::INTR) => continue,
                polled => polled.context("cannot wait for requests")?,
            };
            let is_ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            drop(fds);
            if is_ready.get(2) == Some(&true)
                && let Some((mut child, _)) = client.take()
            {
                break exit_code(child.wait().context("cannot wait for msb-run")?);
            }
            if is_ready[1] {
                if let Some((mut child, _)) = client.take() {
                    let _ = child.kill();
                    let _ = child.wait();
                }
                break FAILED;
            }
            if is_ready[0]
                && let Ok((stream, _)) = self.listener.accept()
                && let Some(code) = self.answer(stream, &mut client)
            {
                break code;
            }
        };
        // `init` may be gone, and then the code is not used.
        let _ = File::from(self.init.code).write_all(&[code]);
        Ok(())
    }

    /// Answers a request. Returns the exit code of a container that ends before its start.
    fn answer(
        &mut self,
        mut stream: UnixStream,
        client: &mut Option<(Child, OwnedFd)>,
    ) -> Option<u8> {
        stream.set_read_timeout(Some(REQUEST_TIMEOUT)).ok()?;
        stream.set_write_timeout(Some(REQUEST_TIMEOUT)).ok()?;
        let mut line = String::new();
        BufReader::new(stream.try_clone().ok()?.take(REQUEST_BYTES_MAX))
            .read_line(&mut line)
            .ok()?;
        let mut code = None;
        let answer = match Request::parse(&line) {
            Some(Request::Status) if client.is_some() => Ok("running"),
            Some(Request::Status) => Ok("created"),
            Some(Request::Start) if client.is_some() => {
                Err("the container runs already".to_owned())
            }
            Some(Request::Start) => match self.start() {
                Ok(started) => {
                    *client = Some(started);
                    Ok("started")
                }
                Err(error) => {
                    code = Some(FAILED);
                    Err(format!("{error:#}"))
                }
            },
            Some(Request::Signal(number)) => match client {
                Some((_, end)) => send(end, number).map(|()| "sent"),
                None => {
                    code = u8::try_from(128 + number).ok();
                    Ok("ended")
                }
            },
            None => Err("unknown request".to_owned()),
        };
        let line = match answer {
            Ok(text) => format!("ok {text}\n"),
            Err(text) => format!("error {text}\n"),
        };
        let _ = stream.write_all(line.as_bytes());
        code
    }

    /// Starts `msb-run` and gives the standard streams of the container away.
    fn start(&mut self) -> anyhow::Result<(Child, OwnedFd)> {
        let (mut command, env_file) = self.command()?;
        if let Some(terminal) = self.terminal.take() {
            terminal::attach(&mut command, &terminal)?;
        }
        self.join_group(&mut command)?;
        let child = command.spawn().context("cannot start msb-run")?;
        drop(env_file);
        let null = rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty())
            .context("cannot open /dev/null")?;
        rustix::stdio::dup2_stdin(&null)
            .and_then(|()| rustix::stdio::dup2_stdout(&null))
            .and_then(|()| rustix::stdio::dup2_stderr(&null))
            .context("cannot close the standard streams")?;
        let end = pidfd(i32::try_from(child.id())?)?;
        Ok((child, end))
    }

    /// Makes a command put itself into the group of the container before it starts.
    fn join_group(&self, command: &mut Command) -> anyhow::Result<()> {
        let Some(group) = &self.group else { return Ok(()) };
        let files = group.open()?;
        let join = move || files.iter().try_for_each(|mut file| file.write_all(b"0"));
        // SAFETY: write(2) is async-signal-safe, and nothing is allocated.
        unsafe { command.pre_exec(join) };
        Ok(())
    }

    fn command(&self) -> anyhow::Result<(Command, OwnedFd)> {
        let container = &self.container;
        let (options, variables) = container.process.options();
        let env_file = env_file(&variables)?;
        let mut command = tools::command("msb-run")?;
        set_environment(&mut command, &self.msb_home);
        command.args(["--quiet", "--rm", "--name", self.id.as_str()]);
        command.args(options);
        command.arg("--env-file").arg(format!("/proc/self/fd/{}", env_file.as_raw_fd()));
        if let Some(memory) = container.memory_mib {
            command.args(["--memory".to_owned(), format!("{memory}M")]);
        }
        if let Some(cpus) = container.cpus {
            command.args(["--cpus".to_owned(), cpus.to_string()]);
        }
        if let Some(hostname) = &container.hostname {
            command.args(["--hostname", hostname]);
        }
        for bind in &container.binds {
            let readonly = if bind.readonly { ",readonly" } else { "" };
            let (source, target) = (bind.source.display(), bind.target.display());
            command.arg("--mount");
            command.arg(format!("type=bind,source={source},target={target}{readonly}"));
        }
        for tmpfs in &container.tmpfs {
            let size = tmpfs.size.as_ref().map(|size| format!(",tmpfs-size={size}"));
            command.arg("--mount");
            let size = size.unwrap_or_default();
            command.arg(format!("type=tmpfs,target={}{size}", tmpfs.target.display()));
        }
        command.args(self.network());
        // A path that ends with a slash is a directory whatever its name is.
        command.arg(container.root.join("")).arg("--").args(&container.process.args);
        Ok((command, env_file))
    }

    /// Returns the network options. The engine may have set the network up since `create`.
    fn network(&self) -> Vec<String> {
        let interfaces = std::fs::read_to_string("/proc/self/net/dev").unwrap_or_default();
        if self.container.network != NetworkNamespace::Host && !has_network(&interfaces) {
            return vec!["--net".into(), "none".into()];
        }
        let mut options = vec!["--net".to_owned(), "all".to_owned()];
        let resolv =
            self.container.binds.iter().find(|bind| bind.target.ends_with("etc/resolv.conf"));
        let text = resolv.and_then(|bind| {
            let mut text = String::new();
            let file = File::open(&bind.source).ok()?;
            file.take(RESOLV_BYTES_MAX).read_to_string(&mut text).ok()?;
            Some(text)
        });
        for server in name_servers(&text.unwrap_or_default()) {
            options.extend(["--dns-nameserver".to_owned(), server]);
        }
        options
    }
}

/// Returns whether /proc/net/dev lists an interface other than the loopback.
fn has_network(text: &str) -> bool {
    let names = text.lines().filter_map(|line| line.split_once(':'));
    names
        .map(|(name, _)| name.trim())
        .any(|name| !matches!(name, "lo" | "tunl0" | "sit0" | "ip6tnl0"))
}

/// Returns the addresses of resolv.conf.
fn name_servers(text: &str) -> Vec<String> {
    let servers = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    let addresses = servers.filter_map(|word| word.trim().parse::<std::net::IpAddr>().ok());
    addresses.map(|address| address.to_string()).collect()
}

/// Gives a command of msb its environment: no variable of the container is one of them.
pub(crate) fn set_environment(command: &mut Command, msb_home: &std::path::Path) {
    const KEPT: [&str; 5] = ["HOME", "MSB_ENGINE", "MSB_KERNEL", "MSB_KRUNFW", "TMPDIR"];
    command.env_clear().env("MSB_HOME", msb_home);
    let path = std::env::var_os("PATH").filter(|path| !path.is_empty());
    command.env(
        "PATH",
        path.unwrap_or_else(|| {
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into()
        }),
    );
    command.envs(KEPT.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
}

/// Creates an environment file without a name, which a child inherits.
pub(crate) fn env_file(variables: &[u8]) -> anyhow::Result<OwnedFd> {
    let memory = rustix::fs::memfd_create("env", MemfdFlags::CLOEXEC)
        .context("cannot create a memory file")?;
    let mut file = File::from(memory);
    file.write_all(variables).context("cannot write the environment")?;
    let memory = OwnedFd::from(file);
    fcntl_setfd(memory.as_fd(), FdFlags::empty()).context("cannot pass a descriptor on")?;
    Ok(memory)
}

fn pidfd(pid: i32) -> anyhow::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).context("the process ID is invalid")?;
    pidfd_open(pid, PidfdFlags::empty()).context("cannot watch a process")
}

fn send(process: &OwnedFd, number: i32) -> Result<(), String> {
    let signal = Signal::from_named_raw(number)
        .ok_or_else(|| format!("signal {number} is not supported"))?;
    pidfd_send_signal(process, signal).map_err(|error| format!("cannot send the signal: {error}"))
}

/// Kills `init`, if it still is the process that was started.
pub(crate) fn kill_init(pid: i32, started: u64) -> anyhow::Result<Option<OwnedFd>> {
    let Ok(fd) = pidfd(pid) else { return Ok(None) };
    if crate::state::start_time(pid) != Some(started) {
        return Ok(None);
    }
    pidfd_send_signal(&fd, Signal::KILL).context("cannot kill init")?;
    Ok(Some(fd))
}

/// Kills a child that has not been waited for.
pub(crate) fn kill_child(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, Signal::KILL);
        let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
    }
}

/// Returns the exit code of a process as a shell does.
pub(crate) fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(FAILED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loopback_is_no_network() {
        let head = "Inter-|   Receive\n face |bytes\n";
        assert!(!has_network(&format!("{head}    lo: 0 0\n")));
        assert!(has_network(&format!("{head}    lo: 0 0\n  tap0: 0 0\n")));
    }

    #[test]
    fn only_addresses_are_name_servers() {
        let text = "search a\nnameserver 10.0.2.3\nnameserver --net\n nameserver fd00::1\n";
        assert_eq!(name_servers(text), ["10.0.2.3", "fd00::1"]);
    }

    #[test]
    fn a_request_is_one_of_three() {
        assert_eq!(Request::parse("start\n"), Some(Request::Start));
        assert_eq!(Request::parse("status\n"), Some(Request::Status));
        assert_eq!(Request::parse("signal 15\n"), Some(Request::Signal(15)));
        assert_eq!(Request::parse("signal x\n"), None);
        assert_eq!(Request::parse(""), None);
    }
}
