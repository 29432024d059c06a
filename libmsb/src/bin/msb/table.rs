//! The table of commands. Help, completion and the hints for mistyped names are made from it.

/// What `msb NAME …` becomes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Command {
    /// What is typed.
    pub(crate) name: &'static str,
    /// Another spelling.
    pub(crate) alias: Option<&'static str>,
    /// Where help shows it.
    pub(crate) group: Group,
    /// What it does, in one line.
    pub(crate) about: &'static str,
    /// The program.
    pub(crate) program: &'static str,
    /// Arguments that come before those typed.
    pub(crate) args: &'static [&'static str],
}

impl Command {
    /// Its name, then its alias.
    pub(crate) fn names(&self) -> impl Iterator<Item = &'static str> {
        [Some(self.name), self.alias].into_iter().flatten()
    }
}

/// Groups of the help, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    Sandboxes,
    Images,
    Network,
    Storage,
    Metrics,
    Other,
    /// Programs that people do not start themselves; only under `help --all`.
    Plumbing,
}

impl Group {
    /// Those of the ordinary help.
    pub(crate) const SHOWN: [Group; 6] = [
        Group::Sandboxes,
        Group::Images,
        Group::Network,
        Group::Storage,
        Group::Metrics,
        Group::Other,
    ];

    /// The heading.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Group::Sandboxes => "Sandboxes",
            Group::Images => "Images",
            Group::Network => "Network and SSH",
            Group::Storage => "Storage",
            Group::Metrics => "Metrics",
            Group::Other => "Other",
            Group::Plumbing => "Plumbing",
        }
    }
}

/// The command that this program answers itself.
pub(crate) const HELP: &str = "help";

/// Every command, in the order of the help.
pub(crate) const COMMANDS: &[Command] = &[
    sandbox(
        "run",
        None,
        "Run a command from an image in a microVM of its own",
        "msb-run",
    ),
    sandbox(
        "create",
        None,
        "Make a sandbox that lasts, and start it",
        "msb-create",
    ),
    sandbox(
        "start",
        None,
        "Start sandboxes that do not run",
        "msb-start",
    ),
    sandbox(
        "exec",
        None,
        "Run another command in a running sandbox",
        "msb-exec",
    ),
    sandbox(
        "jobs",
        None,
        "List commands that go on by themselves (exec -d)",
        "msb-jobs",
    ),
    sandbox(
        "attach",
        None,
        "Be with a job: its output, its input, its end",
        "msb-attach",
    ),
    sandbox(
        "signal",
        None,
        "Send a signal to the processes of a job",
        "msb-signal",
    ),
    sandbox(
        "copy",
        Some("cp"),
        "Copy files into and out of running sandboxes",
        "msb-cp",
    ),
    sandbox(
        "logs",
        None,
        "Show what the commands of a sandbox printed",
        "msb-logs",
    ),
    sandbox("list", Some("ls"), "List sandboxes", "msb-ls"),
    sandbox(
        "status",
        Some("ps"),
        "Show running sandboxes and their main commands",
        "msb-ps",
    ),
    sandbox(
        "inspect",
        None,
        "Show all that is known of a sandbox",
        "msb-inspect",
    ),
    sandbox(
        "modify",
        None,
        "Change what a sandbox is from its next start on",
        "msb-modify",
    ),
    sandbox(
        "ping",
        None,
        "Ask running sandboxes for a sign of life",
        "msb-ping",
    ),
    sandbox("wait", None, "Wait until sandboxes have ended", "msb-wait"),
    sandbox(
        "events",
        None,
        "Print what happens to sandboxes, as JSON lines",
        "msb-events",
    ),
    sandbox(
        "pause",
        None,
        "Pause running sandboxes: stop their processors",
        "msb-pause",
    ),
    sandbox("resume", None, "Resume paused sandboxes", "msb-resume"),
    sandbox("stop", None, "Stop running sandboxes", "msb-stop"),
    sandbox(
        "restart",
        None,
        "Stop sandboxes and start them again",
        "msb-restart",
    ),
    sandbox(
        "remove",
        Some("rm"),
        "Remove stopped sandboxes and their disks",
        "msb-rm",
    ),
    image(
        "image",
        "Pull, load, save, import, list, tag, remove, check images",
        &[],
    ),
    image(
        "pull",
        "Pull an image from a registry (image pull)",
        &["pull"],
    ),
    image("load", "Load an image archive (image load)", &["load"]),
    image("save", "Save images as an archive (image save)", &["save"]),
    image("images", "List images (image list)", &["list"]),
    image("rmi", "Remove images (image remove)", &["remove"]),
    image(
        "registry",
        "Log in to registries and out of them (image registry)",
        &["registry"],
    ),
    Command {
        name: "net",
        alias: None,
        group: Group::Network,
        about: "Say what a sandbox's network allows, and why",
        program: "msb-net",
        args: &[],
    },
    Command {
        name: "ssh",
        alias: None,
        group: Group::Network,
        about: "Open an SSH session in a sandbox, or let SSH clients in",
        program: "msb-ssh",
        args: &[],
    },
    Command {
        name: "volume",
        alias: Some("vol"),
        group: Group::Storage,
        about: "Make, list, inspect and remove named volumes",
        program: "msb-volume",
        args: &[],
    },
    Command {
        name: "metrics",
        alias: None,
        group: Group::Metrics,
        about: "Show what sandboxes cost, or export it (OTLP, Prometheus)",
        program: "msb-metrics",
        args: &[],
    },
    Command {
        name: "doctor",
        alias: None,
        group: Group::Other,
        about: "Say what this host can do, and how to mend the rest",
        program: "msb-doctor",
        args: &[],
    },
    Command {
        name: HELP,
        alias: None,
        group: Group::Other,
        about: "Show this, or the manual page of a command",
        program: "msb",
        args: &[],
    },
    plumbing(
        "supervisor",
        "Own one sandbox from start to end",
        "msb-supervisor",
    ),
    plumbing("vmm", "Become the virtual machine", "msb-vmm"),
    plumbing(
        "agent",
        "Process 1 of the guest; does not run on the host",
        "msb-agent",
    ),
];

const fn sandbox(
    name: &'static str,
    alias: Option<&'static str>,
    about: &'static str,
    program: &'static str,
) -> Command {
    Command {
        name,
        alias,
        group: Group::Sandboxes,
        about,
        program,
        args: &[],
    }
}

const fn image(name: &'static str, about: &'static str, args: &'static [&'static str]) -> Command {
    Command {
        name,
        alias: None,
        group: Group::Images,
        about,
        program: "msb-image",
        args,
    }
}

const fn plumbing(name: &'static str, about: &'static str, program: &'static str) -> Command {
    Command {
        name,
        alias: None,
        group: Group::Plumbing,
        about,
        program,
        args: &[],
    }
}

/// The command of a name or alias.
pub(crate) fn find(name: &str) -> Option<&'static Command> {
    COMMANDS
        .iter()
        .find(|command| command.name == name || command.alias == Some(name))
}

/// The commands of a group.
pub(crate) fn of_group(group: Group) -> impl Iterator<Item = &'static Command> {
    COMMANDS
        .iter()
        .filter(move |command| command.group == group)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_is_there_twice() {
        let mut names: Vec<&str> = COMMANDS.iter().map(|command| command.name).collect();
        names.extend(COMMANDS.iter().filter_map(|command| command.alias));
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn every_command_stands_under_one_heading() {
        let shown: usize = Group::SHOWN
            .iter()
            .map(|group| of_group(*group).count())
            .sum();
        assert_eq!(shown + of_group(Group::Plumbing).count(), COMMANDS.len());
    }
}
