//! A real registry: docker-registry, of the package of the same name.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::{Home, Running, wait_until};

/// A registry on the loopback interface. What it keeps and logs is in the directory of the test.
pub(crate) struct Registry {
    process: Option<Running>,
    directory: PathBuf,
    port: u16,
    /// Sections of its configuration, as YAML.
    more: String,
    tls: bool,
}

impl Registry {
    /// A plain one that is open to everybody.
    pub(crate) fn plain(home: &Home) -> Registry {
        Registry::with(home, "", false)
    }

    /// One with further sections of configuration; with TLS by the files `server.pem` and
    /// `server.key` of the test.
    pub(crate) fn with(home: &Home, more: &str, tls: bool) -> Registry {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut registry = Registry {
            process: None,
            directory: home.directory.clone(),
            port,
            more: more.to_owned(),
            tls,
        };
        registry.start();
        registry
    }

    /// Starts it, at the same address and with the same contents if it ran before.
    pub(crate) fn start(&mut self) {
        let directory = self.directory.display();
        let tls = if self.tls {
            format!("\n  tls: {{certificate: {directory}/server.pem, key: {directory}/server.key}}")
        } else {
            String::new()
        };
        let config = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {directory}/registry}}}}\n\
             http:\n  addr: {}{tls}\n{}\n",
            self.host(),
            self.more
        );
        let path = self.directory.join("registry.yml");
        fs::write(&path, config).unwrap();
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_path()).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(path).current_dir(&self.directory);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.process = Some(Running::start_as_is(command));
        wait_until("the registry answers", || TcpStream::connect(self.host()).is_ok());
    }

    /// Kills it.
    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    /// Changes its configuration for the next start.
    pub(crate) fn change(&mut self, more: &str) {
        self.more = more.to_owned();
    }

    /// `127.0.0.1:PORT`.
    pub(crate) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Returns its log: a line for each request.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap()
    }

    fn log_path(&self) -> PathBuf {
        self.directory.join("registry.log")
    }

    /// Pushes an image by skopeo, without asking for certificates.
    #[track_caller]
    pub(crate) fn push(&self, home: &Home, source: &str, name: &str, options: &str) {
        let script = format!(
            "skopeo copy --quiet --insecure-policy --dest-tls-verify=false {options} {source} docker://{}/{name}",
            self.host()
        );
        home.shell(&script).done();
    }
}
