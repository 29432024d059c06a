//! Differences between typed options and a sandbox that exists already.

use std::time::Duration;

use libmsb::cli::error::{Code, Failure};
use libmsb::cli::escape::escape;
use libmsb::state::Home;
use libmsb::state::spec::Spec;
use msb_wire::text::Text;

use super::SandboxArgs;
use crate::spec_builder::milliseconds;

impl SandboxArgs {
    /// Checks typed ports and mounts against those of an existing sandbox. Without them it would
    /// not be the requested one, so a difference is an error.
    pub(crate) fn check_existing(&self, home: &Home, spec: &Spec) -> anyhow::Result<()> {
        let mut net = spec.net.clone();
        self.net.change(&mut net)?;
        if let Some(port) = net.ports.iter().find(|port| !spec.net.ports.contains(port)) {
            let change = format!("--port {port}");
            return Err(differs(spec, &format!("without the port {port}"), &change).into());
        }
        for mount in self.mounts.mounts(home)? {
            let is_same = |other: &libmsb::state::mounts::Mount| {
                other.target == mount.target
                    && other.source == mount.source
                    && other.read_only == mount.read_only
            };
            if !spec.mounts.iter().any(is_same) {
                let target = escape(mount.target.as_bytes()).into_owned();
                let mount = format!("without this mount at '{target}'");
                return Err(differs(spec, &mount, &format!("-v SOURCE:{target}")).into());
            }
        }
        Ok(())
    }

    /// Returns the typed options that an existing sandbox does not have and that are ignored.
    pub(crate) fn ignored(&self, spec: &Spec) -> Vec<&'static str> {
        let ms = |typed: Option<Duration>, own: Option<u64>| {
            typed.is_some_and(|typed| Some(milliseconds(typed)) != own)
        };
        let has_label = |(key, value): (&String, &String)| spec.labels.get(key) == Some(value);
        let has_labels = self.labels().is_ok_and(|labels| labels.iter().all(has_label));
        let mut net = spec.net.clone();
        let net_differs = self.net.change(&mut net).is_err() || net != spec.net;
        let all = [
            ("--cpus", self.cpus.is_some_and(|cpus| u32::from(cpus) != spec.cpus)),
            ("--memory", self.memory.is_some_and(|memory| memory != spec.memory_mib)),
            ("--engine", self.engine.is_some_and(|engine| engine != spec.engine)),
            ("--cold", self.boot.is_given()),
            ("--hostname", self.hostname.as_ref().is_some_and(|name| *name != spec.hostname)),
            ("--entrypoint", self.entrypoint.is_some()),
            ("--label", !has_labels),
            ("--idle-timeout", ms(self.idle_timeout, spec.idle_timeout_ms)),
            ("--max-duration", ms(self.max_duration, spec.max_duration_ms)),
            ("--metrics-sample-interval", self.metrics.given().is_some_and(|m| m != spec.metrics)),
            ("the options on the network", net_differs),
            ("the options on the guest's setup", self.guest.differs(spec.guest.shell.as_ref())),
        ];
        all.into_iter().filter(|(_, ignored)| *ignored).map(|(option, _)| option).collect()
    }
}

/// Checks the command of a detached sandbox: a sandbox that exists starts its own one.
pub(crate) fn check_command(spec: &Spec, typed: &[Text]) -> Result<(), Failure> {
    if typed.is_empty() || typed == spec.command {
        return Ok(());
    }
    let name = &spec.name;
    Err(Failure::wrong_state(format!(
        "the sandbox '{name}' already exists with another command, which -d starts again"
    ))
    .code(Code::SandboxAlreadyExists)
    .hint(format!(
        "run the command in it: msb start {name} && msb exec -d {name} COMMAND; \
         or replace the sandbox: msb run --replace --name {name}"
    )))
}

fn differs(spec: &Spec, how: &str, change: &str) -> Failure {
    let name = &spec.name;
    Failure::wrong_state(format!("the sandbox '{name}' already exists {how}"))
        .code(Code::SandboxAlreadyExists)
        .hint(format!(
            "add it: msb modify {name} {change}; or replace the sandbox: \
             msb run --replace --name {name}"
        ))
}
