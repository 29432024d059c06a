//! The table of commands: the source of help, completion and the hints for mistyped names.

/// A command: `msb NAME …` runs its program.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Command {
    /// Name that is typed.
    pub(crate) name: &'static str,
    /// Alias of the name.
    pub(crate) alias: Option<&'static str>,
    /// Group in the help.
    pub(crate) group: Group,
    /// Summary in one line.
    pub(crate) about: &'static str,
    /// Name of the program file.
    pub(crate) program: &'static str,
    /// Arguments that precede those typed.
    pub(crate) args: &'static [&'static str],
}

impl Command {
    /// Returns its name, then its alias.
    pub(crate) fn names(&self) -> impl Iterator<Item = &'static str> {
        [Some(self.name), self.alias].into_iter().flatten()
    }
}

/// A group of commands in the help, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    Sandboxes,
    Images,
    Network,
    Storage,
    Metrics,
    Installation,
    Other,
    /// Programs that other programs start; shown by `help --all` only.
    Plumbing,
}

impl Group {
    /// Groups of the help without `--all`.
    pub(crate) const SHOWN: [Group; 7] = [
        Group::Sandboxes,
        Group::Images,
        Group::Network,
        Group::Storage,
        Group::Metrics,
        Group::Installation,
        Group::Other,
    ];

    /// Returns the heading.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Group::Sandboxes => "Sandboxes",
            Group::Images => "Images",
            Group::Network => "Network and SSH",
            Group::Storage => "Storage",
            Group::Metrics => "Metrics",
            Group::Installation => "Installation",
            Group::Other => "Other",
            Group::Plumbing => "Plumbing",
        }
    }
}

/// Name of the command that this program runs itself.
pub(crate) const HELP: &str = "help";

/// All commands, in the order of the help.
pub(crate) const COMMANDS: &[Command] = &[
    sandbox("run", None, "Run a command from an image in a microVM of its own", "msb-run"),
    sandbox("create", None, "Create a persistent sandbox and start it", "msb-create"),
    sandbox("start", None, "Start sandboxes that are not running", "msb-start"),
    sandbox("exec", None, "Run a command in a running sandbox", "msb-exec"),
    sandbox("jobs", None, "List the jobs of a sandbox (exec --detach)", "msb-jobs"),
    sandbox("attach", None, "Attach to a job: follow its output and send it input", "msb-attach"),
    sandbox("signal", None, "Send a signal to the processes of a job", "msb-signal"),
    sandbox("copy", Some("cp"), "Copy files into and out of running sandboxes", "msb-cp"),
    sandbox("logs", None, "Show the output of the commands of a sandbox", "msb-logs"),
    sandbox("list", Some("ls"), "List sandboxes", "msb-ls"),
    sandbox("status", Some("ps"), "Show running sandboxes and their main commands", "msb-ps"),
    sandbox("inspect", None, "Show the configuration and state of a sandbox", "msb-inspect"),
    sandbox("modify", None, "Change the configuration of a sandbox", "msb-modify"),
    sandbox("ping", None, "Check that the guests of running sandboxes respond", "msb-ping"),
    sandbox("wait", None, "Wait until sandboxes have ended", "msb-wait"),
    sandbox("events", None, "Print events of sandboxes as JSON lines", "msb-events"),
    sandbox("pause", None, "Pause running sandboxes: stop their virtual CPUs", "msb-pause"),
    sandbox("resume", None, "Resume paused sandboxes", "msb-resume"),
    sandbox("stop", None, "Stop running sandboxes", "msb-stop"),
    sandbox("restart", None, "Stop sandboxes and start them again", "msb-restart"),
    sandbox("fork", None, "Copy a sandbox under other names", "msb-fork"),
    sandbox("restore", None, "Set the disk of a stopped sandbox back to a snapshot", "msb-restore"),
    sandbox("remove", Some("rm"), "Remove stopped sandboxes and their disks", "msb-rm"),
    image("image", "Pull, load, save, import, list, tag, remove, check images", &[]),
    image("pull", "Pull an image from a registry (image pull)", &["pull"]),
    image("load", "Load an image archive (image load)", &["load"]),
    image("save", "Save images as an archive (image save)", &["save"]),
    image("images", "List images (image list)", &["list"]),
    image("rmi", "Remove images (image remove)", &["remove"]),
    image("registry", "Log in to and out of registries (image registry)", &["registry"]),
    Command {
        name: "net",
        alias: None,
        group: Group::Network,
        about: "Explain what the network policy of a sandbox allows",
        program: "msb-net",
        args: &[],
    },
    Command {
        name: "ssh",
        alias: None,
        group: Group::Network,
        about: "Open an SSH session in a sandbox, or serve SSH clients",
        program: "msb-ssh",
        args: &[],
    },
    Command {
        name: "volume",
        alias: Some("vol"),
        group: Group::Storage,
        about: "Create, list, inspect, remove and prune named volumes",
        program: "msb-volume",
        args: &[],
    },
    Command {
        name: "snapshot",
        alias: Some("snap"),
        group: Group::Storage,
        about: "Save, list, verify, move and remove snapshots of disks",
        program: "msb-snapshot",
        args: &[],
    },
    Command {
        name: "metrics",
        alias: None,
        group: Group::Metrics,
        about: "Show metrics of sandboxes, or export them",
        program: "msb-metrics",
        args: &[],
    },
    installation("install", "Make a command that runs an image", "msb-install"),
    installation("uninstall", "Remove commands that install made", "msb-uninstall"),
    Command {
        name: "config",
        alias: None,
        group: Group::Other,
        about: "Print the schema of sandbox files (run --file)",
        program: "msb-config",
        args: &[],
    },
    Command {
        name: "doctor",
        alias: None,
        group: Group::Other,
        about: "Check this host and print how to fix what is missing",
        program: "msb-doctor",
        args: &[],
    },
    Command {
        name: "report",
        alias: None,
        group: Group::Other,
        about: "Write an archive for a bug report",
        program: "msb-report",
        args: &[],
    },
    Command {
        name: HELP,
        alias: None,
        group: Group::Other,
        about: "Show this help, or the manual page of a command",
        program: "msb",
        args: &[],
    },
    plumbing("supervisor", "Supervise one sandbox from start to end", "msb-supervisor"),
    plumbing("vmm", "Run the virtual machine of a sandbox", "msb-vmm"),
    plumbing("intercept", "Intercept the TLS connections of a sandbox", "msb-intercept"),
    plumbing("oci", "Run the containers of an engine as microVMs", "msb-oci"),
    plumbing("agent", "Serve the host as process 1 of the guest", "msb-agent"),
];

const fn sandbox(
    name: &'static str,
    alias: Option<&'static str>,
    about: &'static str,
    program: &'static str,
) -> Command {
    Command { name, alias, group: Group::Sandboxes, about, program, args: &[] }
}

const fn installation(name: &'static str, about: &'static str, program: &'static str) -> Command {
    Command { name, alias: None, group: Group::Installation, about, program, args: &[] }
}

const fn image(name: &'static str, about: &'static str, args: &'static [&'static str]) -> Command {
    Command { name, alias: None, group: Group::Images, about, program: "msb-image", args }
}

const fn plumbing(name: &'static str, about: &'static str, program: &'static str) -> Command {
    Command { name, alias: None, group: Group::Plumbing, about, program, args: &[] }
}

/// Returns the command with a name or alias.
pub(crate) fn find(name: &str) -> Option<&'static Command> {
    COMMANDS.iter().find(|command| command.name == name || command.alias == Some(name))
}

/// Returns the commands of a group.
pub(crate) fn of_group(group: Group) -> impl Iterator<Item = &'static Command> {
    COMMANDS.iter().filter(move |command| command.group == group)
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
        let shown: usize = Group::SHOWN.iter().map(|group| of_group(*group).count()).sum();
        assert_eq!(shown + of_group(Group::Plumbing).count(), COMMANDS.len());
    }
}
