//! The builder of a sandbox.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use super::error::Error;
use super::sandbox::Sandbox;
use crate::cli::args::SandboxName;
use crate::cli::error::Code;
use crate::state::Home;

/// Pull policy: when an image is pulled from its registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullPolicy {
    /// At every creation.
    Always,
    /// Only a missing image.
    IfMissing,
    /// Never: a missing image is an error.
    Never,
}

/// Access of a guest to a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The guest reads only.
    ReadOnly,
    /// The guest reads and writes.
    ReadWrite,
}

impl Access {
    fn suffix(self) -> &'static str {
        match self {
            Access::ReadOnly => ":ro",
            Access::ReadWrite => "",
        }
    }
}

/// Protocol of a published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A builder of a sandbox. The values are checked at creation, before anything is changed.
#[derive(Clone, Debug)]
pub struct SandboxBuilder {
    name: String,
    image: Option<String>,
    snapshot: Option<String>,
    cpus: Option<u8>,
    memory_mib: Option<u32>,
    options: Vec<OsString>,
    command: Vec<OsString>,
    detached: bool,
    home: Option<Home>,
}

impl SandboxBuilder {
    pub(super) fn new(name: impl Into<String>) -> SandboxBuilder {
        SandboxBuilder {
            name: name.into(),
            image: None,
            snapshot: None,
            cpus: None,
            memory_mib: None,
            options: Vec::new(),
            command: Vec::new(),
            detached: false,
            home: None,
        }
    }

    /// Sets an option of msb-run(1) by its long name, for those without a method here.
    #[must_use]
    pub fn option(mut self, name: &str, value: impl Into<OsString>) -> Self {
        let mut option = OsString::from(format!("--{name}="));
        option.push(value.into());
        self.options.push(option);
        self
    }

    /// Sets the image; or, with a path that starts with `/`, `./` or `../`, a directory or disk
    /// image of the host as the whole root (man page msb-run(1)). Required without a snapshot.
    #[must_use]
    pub fn image(mut self, reference: impl Into<String>) -> Self {
        self.image = Some(reference.into());
        self
    }

    /// Sets the snapshot to start from, by name, path or digest, instead of an image.
    #[must_use]
    pub fn from_snapshot(mut self, snapshot: impl Into<String>) -> Self {
        self.snapshot = Some(snapshot.into());
        self
    }

    /// Sets the pull policy; the default is [`PullPolicy::IfMissing`].
    #[must_use]
    pub fn pull(self, when: PullPolicy) -> Self {
        let word = match when {
            PullPolicy::Always => "always",
            PullPolicy::IfMissing => "if-missing",
            PullPolicy::Never => "never",
        };
        self.option("pull", word)
    }

    /// Sets the number of virtual processors; the default is 1, and 0 is invalid.
    #[must_use]
    pub fn cpus(mut self, cpus: u8) -> Self {
        self.cpus = Some(cpus);
        self
    }

    /// Sets the memory in MiB; the default is 512, and 0 is invalid.
    #[must_use]
    pub fn memory_mib(mut self, mib: u32) -> Self {
        self.memory_mib = Some(mib);
        self
    }

    /// Adds a label.
    #[must_use]
    pub fn label(self, key: &str, value: &str) -> Self {
        self.option("label", format!("{key}={value}"))
    }

    /// Adds an environment variable of every command.
    #[must_use]
    pub fn env(self, name: &str, value: impl Into<OsString>) -> Self {
        let mut assignment = OsString::from(format!("{name}="));
        assignment.push(value.into());
        self.option("env", assignment)
    }

    /// Adds environment variables of every command.
    #[must_use]
    pub fn envs<N: AsRef<str>, V: Into<OsString>>(
        self,
        variables: impl IntoIterator<Item = (N, V)>,
    ) -> Self {
        variables.into_iter().fold(self, |builder, (name, value)| builder.env(name.as_ref(), value))
    }

    /// Adds labels.
    #[must_use]
    pub fn labels<K: AsRef<str>, V: AsRef<str>>(
        self,
        labels: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        labels
            .into_iter()
            .fold(self, |builder, (key, value)| builder.label(key.as_ref(), value.as_ref()))
    }

    /// Sets the working directory of commands that name none.
    #[must_use]
    pub fn workdir(self, directory: impl Into<OsString>) -> Self {
        self.option("workdir", directory)
    }

    /// Sets the user, `USER[:GROUP]`, of commands that name none.
    #[must_use]
    pub fn user(self, user: impl Into<OsString>) -> Self {
        self.option("user", user)
    }

    /// Sets the host name of the guest.
    #[must_use]
    pub fn hostname(self, name: &str) -> Self {
        self.option("hostname", name)
    }

    /// Replaces the image's entrypoint.
    #[must_use]
    pub fn entrypoint(self, program: impl Into<OsString>) -> Self {
        self.option("entrypoint", program)
    }

    /// Replaces the image's main command. When it ends, the sandbox ends.
    #[must_use]
    pub fn command<W: Into<OsString>>(mut self, words: impl IntoIterator<Item = W>) -> Self {
        self.command = words.into_iter().map(Into::into).collect();
        self
    }

    /// Stops the sandbox after this time without use.
    #[must_use]
    pub fn idle_timeout(self, time: Duration) -> Self {
        self.option("idle-timeout", format!("{}ms", time.as_millis()))
    }

    /// Stops the sandbox after this time.
    #[must_use]
    pub fn max_duration(self, time: Duration) -> Self {
        self.option("max-duration", format!("{}ms", time.as_millis()))
    }

    /// Replaces a sandbox of that name and its disk. It has ten seconds to stop.
    #[must_use]
    pub fn replace(self) -> Self {
        self.replace_with_timeout(Duration::from_secs(10))
    }

    /// Replaces a sandbox of that name and its disk. It has this time to stop; with zero it is
    /// killed at once.
    #[must_use]
    pub fn replace_with_timeout(self, time: Duration) -> Self {
        self.option("replace-with-timeout", format!("{}ms", time.as_millis()))
    }

    /// Mounts a directory or file of the host.
    #[must_use]
    pub fn mount(self, host: &Path, guest: &str, access: Access) -> Self {
        let mut value = OsString::from(host);
        value.push(format!(":{guest}"));
        value.push(access.suffix());
        self.option(if host.is_file() { "mount-file" } else { "mount-dir" }, value)
    }

    /// Mounts a named volume, which is created if it is missing.
    #[must_use]
    pub fn mount_volume(self, name: &str, guest: &str, access: Access) -> Self {
        self.option("mount-named", format!("{name}:{guest}{}", access.suffix()))
    }

    /// Mounts a disk image of the host.
    #[must_use]
    pub fn mount_disk(self, image: &Path, guest: &str, access: Access) -> Self {
        let mut value = OsString::from(image);
        value.push(format!(":{guest}"));
        value.push(access.suffix());
        self.option("mount-disk", value)
    }

    /// Mounts memory of this size.
    #[must_use]
    pub fn tmpfs(self, guest: &str, size_mib: u32) -> Self {
        self.option("tmpfs", format!("{guest}:{size_mib}M"))
    }

    /// Publishes a TCP port on the loopback address of the host.
    #[must_use]
    pub fn port(self, host: u16, guest: u16) -> Self {
        self.option("port", format!("127.0.0.1:{host}:{guest}"))
    }

    /// Publishes a UDP port on the loopback address of the host.
    #[must_use]
    pub fn port_udp(self, host: u16, guest: u16) -> Self {
        self.option("port", format!("127.0.0.1:{host}:{guest}/udp"))
    }

    /// Publishes a port on an address of the host.
    #[must_use]
    pub fn port_bind(self, bind: SocketAddr, guest: u16, protocol: PortProtocol) -> Self {
        let suffix = match protocol {
            PortProtocol::Tcp => "",
            PortProtocol::Udp => "/udp",
        };
        self.option("port", format!("{bind}:{guest}{suffix}"))
    }

    /// Gives no network.
    #[must_use]
    pub fn disable_network(mut self) -> Self {
        self.options.push("--no-net".into());
        self
    }

    /// Adds a rule of the network policy, such as `allow@1.1.1.1:tcp:443`; see msb-net(1).
    #[must_use]
    pub fn net_rule(self, rule: &str) -> Self {
        self.option("net-rule", rule)
    }

    /// Sets the action for connections that match no rule: `allow` or `deny`.
    #[must_use]
    pub fn net_default(self, action: &str) -> Self {
        self.option("net-default", action)
    }

    /// Limits the connections of the guest at a time.
    #[must_use]
    pub fn max_connections(self, count: u32) -> Self {
        self.option("max-connections", count.to_string())
    }

    /// Takes the guest's IPv4 address from a network in CIDR form.
    #[must_use]
    pub fn ipv4_pool(self, network: &str) -> Self {
        self.option("net-ipv4-pool", network)
    }

    /// Takes the guest's IPv6 address from a network in CIDR form.
    #[must_use]
    pub fn ipv6_pool(self, network: &str) -> Self {
        self.option("net-ipv6-pool", network)
    }

    /// Adds a name server, instead of those of the host.
    #[must_use]
    pub fn nameserver(self, address: impl Into<OsString>) -> Self {
        self.option("dns-nameserver", address)
    }

    /// Binds a secret to hosts: the guest gets a placeholder, which is replaced by the value in
    /// requests to them. `source` is that of the option `--secret-from`, such as `file:/run/key` or
    /// `env:API_KEY`; see msb-run(1).
    #[must_use]
    pub fn secret(self, name: &str, hosts: &str, source: impl Into<OsString>) -> Self {
        let mut from = OsString::from(format!("{name}="));
        from.push(source.into());
        self.option("secret", format!("{name}@{hosts}")).option("secret-from", from)
    }

    /// Intercepts TLS connections of the guest, which then trusts a certificate of the sandbox.
    #[must_use]
    pub fn tls_intercept(mut self) -> Self {
        self.options.push("--tls-intercept".into());
        self
    }

    /// Does not intercept connections to a host; `*.NAME` includes all names below.
    #[must_use]
    pub fn tls_bypass(self, host: &str) -> Self {
        self.option("tls-bypass", host)
    }

    /// Intercepts connections to this port instead of 443.
    #[must_use]
    pub fn tls_intercept_port(self, port: u16) -> Self {
        self.option("tls-intercept-port", port.to_string())
    }

    /// Trusts the certificate authorities in a PEM file for servers, besides those of the host.
    #[must_use]
    pub fn tls_upstream_ca_cert(self, file: &Path) -> Self {
        self.option("tls-upstream-ca-cert", file)
    }

    /// Sets the action when a placeholder is sent to another host; see msb-run(1).
    #[must_use]
    pub fn on_secret_violation(self, action: &str) -> Self {
        self.option("on-secret-violation", action)
    }

    /// Sets the security profile: `default` or `restricted`.
    #[must_use]
    pub fn security(self, profile: &str) -> Self {
        self.option("security", profile)
    }

    /// Sets the size of the writable disk of an image.
    #[must_use]
    pub fn upper_size_mib(self, mib: u32) -> Self {
        self.option("oci-upper-size", format!("{mib}M"))
    }

    /// Starts an init of the image as the first process of the guest; `auto` finds it.
    #[must_use]
    pub fn init<W: Into<OsString>>(
        mut self,
        program: impl Into<OsString>,
        args: impl IntoIterator<Item = W>,
    ) -> Self {
        self = self.option("init", program);
        for arg in args {
            self = self.option("init-arg", arg);
        }
        self
    }

    /// Sets the shell that runs scripts.
    #[must_use]
    pub fn shell(self, program: impl Into<OsString>) -> Self {
        self.option("shell", program)
    }

    /// Adds a script, which is a program in the guest.
    #[must_use]
    pub fn script(self, name: &str, body: &str) -> Self {
        self.option("script-raw", format!("{name}={body}"))
    }

    /// Adds scripts, which are programs in the guest.
    #[must_use]
    pub fn scripts<N: AsRef<str>, B: AsRef<str>>(
        self,
        scripts: impl IntoIterator<Item = (N, B)>,
    ) -> Self {
        scripts
            .into_iter()
            .fold(self, |builder, (name, body)| builder.script(name.as_ref(), body.as_ref()))
    }

    /// Copies a file or directory of the host into the root before the first boot.
    #[must_use]
    pub fn copy(self, host: &Path, guest: &str) -> Self {
        let mut value = OsString::from(host);
        value.push(format!(":{guest}"));
        self.option("copy", value)
    }

    /// Creates a directory and its parents before the first boot.
    #[must_use]
    pub fn mkdir(self, guest: &str) -> Self {
        self.option("mkdir", guest)
    }

    /// Removes a file or directory before the first boot, if it exists.
    #[must_use]
    pub fn remove_path(self, guest: &str) -> Self {
        self.option("rm", guest)
    }

    /// Sets the time between two samples of the resource usage; zero takes none.
    #[must_use]
    pub fn metrics_interval(mut self, interval: Duration) -> Self {
        if interval.is_zero() {
            self.options.push("--disable-metrics-sample".into());
            return self;
        }
        self.option("metrics-sample-interval", format!("{}ms", interval.as_millis()))
    }

    /// Takes no samples of the resource usage.
    #[must_use]
    pub fn disable_metrics_sample(self) -> Self {
        self.metrics_interval(Duration::ZERO)
    }

    /// Sets the verbosity of the sandbox's processes: `error`, `warn`, `info`, `debug` or `trace`.
    #[must_use]
    pub fn log_level(self, level: &str) -> Self {
        self.option("log-level", level)
    }

    /// Sets whether the sandbox outlives this program. If not, it is stopped when its [`Sandbox`]
    /// is dropped, and when this program ends in any way.
    #[must_use]
    pub fn detached(mut self, detached: bool) -> Self {
        self.detached = detached;
        self
    }

    /// Sets the state directory, instead of that of the environment.
    #[must_use]
    pub fn home(mut self, root: &Path) -> Self {
        self.home = Some(Home::at(root));
        self
    }

    /// Creates and starts the sandbox, and waits until its guest accepts commands.
    pub fn create(self) -> Result<Sandbox, Error> {
        let invalid = |message: &str| Err(Error::new(Code::InvalidConfig, message));
        let name: SandboxName = self.name.parse()?;
        let source = match (&self.image, &self.snapshot) {
            (Some(image), None) => image.clone(),
            (None, Some(snapshot)) => format!("--snapshot={snapshot}"),
            (None, None) => return invalid("a sandbox needs an image or a snapshot"),
            (Some(_), Some(_)) => return invalid("a sandbox has an image or a snapshot, not both"),
        };
        if self.cpus == Some(0) {
            return invalid("cpus cannot be 0");
        }
        if self.memory_mib == Some(0) {
            return invalid("memory cannot be 0");
        }
        let mut args = self.options.clone();
        args.push(format!("--name={name}").into());
        args.extend(self.cpus.map(|cpus| format!("--cpus={cpus}").into()));
        args.extend(self.memory_mib.map(|mib| format!("--memory={mib}").into()));
        args.push(source.into());
        args.push("--".into());
        args.extend(self.command);
        let home = self.home.map_or_else(Home::from_env, Ok)?;
        Sandbox::make(home, name, args, self.detached)
    }
}
