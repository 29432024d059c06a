//! Kinds of values: from the type of an argument, or from the name of its value.

use std::any::TypeId;

use clap::{Arg, Command};

use super::candidates::{Candidates, FILES};
use super::names;
use crate::cli::args::SandboxName;
use crate::signal_number;
use crate::state::aliases::AliasName;
use crate::state::volumes::VolumeName;

/// A kind of value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ValueKind {
    /// One of these words, with descriptions.
    Words(Candidates),
    /// A sandbox.
    Sandbox,
    /// A volume.
    Volume,
    /// An alias.
    Alias,
    /// A snapshot, or a path of the host.
    Snapshot,
    /// A mount: a volume and a colon, or a path of the host.
    Mount,
    /// A volume and a colon.
    MountedVolume,
    /// An image in the store.
    Image,
    /// An image in the store, or a path of the host.
    Root,
    /// A job of the sandbox that is the first operand.
    Job,
    /// A sandbox, a colon and a slash; or a path of the host.
    CopyPath,
    /// A path of the host.
    Path,
    /// Anything else: numbers, sizes, paths of the guest, new names.
    Other,
}

impl ValueKind {
    /// Returns the kind of an argument's value.
    pub(super) fn of(command: &Command, arg: &Arg) -> ValueKind {
        let words: Candidates = arg
            .get_possible_values()
            .into_iter()
            .filter(|value| !value.is_hide_set())
            .map(|value| {
                let about = value.get_help().map(ToString::to_string).unwrap_or_default();
                (value.get_name().to_owned(), about)
            })
            .collect();
        if !words.is_empty() {
            return ValueKind::Words(words);
        }
        Self::by_type(command, arg).unwrap_or_else(|| Self::by_name(command, arg))
    }

    fn by_type(command: &Command, arg: &Arg) -> Option<ValueKind> {
        let id = arg.get_value_parser().type_id();
        // `create` names new sandboxes and volumes, and so does `fork --names`.
        let option = arg.get_long().unwrap_or_default();
        let is_new =
            (command.get_name().ends_with("create") && option != "from") || option == "names";
        if id == TypeId::of::<SandboxName>() {
            return Some(if is_new { ValueKind::Other } else { ValueKind::Sandbox });
        }
        if id == TypeId::of::<VolumeName>() {
            return Some(if is_new { ValueKind::Other } else { ValueKind::Volume });
        }
        if id == TypeId::of::<AliasName>() {
            return Some(if arg.is_positional() { ValueKind::Alias } else { ValueKind::Other });
        }
        None
    }

    fn by_name(command: &Command, arg: &Arg) -> ValueKind {
        let value_name = arg.get_value_names().and_then(|names| names.first());
        let value_name = value_name.map(|name| name.as_str()).unwrap_or_default();
        let of_words = |words: &[&str]| {
            ValueKind::Words(words.iter().map(|word| ((*word).into(), String::new())).collect())
        };
        if !arg.is_positional() {
            match arg.get_long().unwrap_or_default() {
                "volume" => return ValueKind::Mount,
                "mount-named" => return ValueKind::MountedVolume,
                "mount-dir" | "mount-file" | "mount-disk" | "copy" | "copy-file" | "copy-dir"
                | "root-disk" => return ValueKind::Path,
                "net" => return of_words(&["all", "host", "none", "private", "public"]),
                "network" => return of_words(&["bridge", "none"]),
                "net-default" | "net-default-egress" | "net-default-ingress" => {
                    return of_words(&["allow", "deny"]);
                }
                "signal" | "stop-signal" => return of_words(signal_number::COMMON),
                "workdir" | "init" | "mkdir" | "rm" | "mount-rm" => return ValueKind::Other,
                _ => {}
            }
        }
        match value_name {
            "IMAGE" if command.get_name() == "msb-run" || command.get_name() == "msb-create" => {
                ValueKind::Root
            }
            "IMAGE" | "REF" => ValueKind::Image,
            "JOB" | "ID" => ValueKind::Job,
            "SNAPSHOT" => ValueKind::Snapshot,
            "NAME" if arg.is_positional() && !command.get_name().ends_with("import") => {
                ValueKind::Sandbox
            }
            "SOURCE" | "DESTINATION" if arg.is_positional() => ValueKind::CopyPath,
            "FILE" | "PATH" | "DIR" | "LOG" => ValueKind::Path,
            _ => ValueKind::Other,
        }
    }

    /// Returns the candidates of this kind. `operands` are those before the word.
    pub(super) fn candidates(self, operands: &[String]) -> Candidates {
        let plain = |names: Vec<String>| -> Candidates {
            names.into_iter().map(|name| (name, String::new())).collect()
        };
        let with = |names: Vec<String>, end: &str| -> Candidates {
            names.into_iter().map(|name| (format!("{name}{end}"), String::new())).collect()
        };
        let or_files = |mut candidates: Candidates| {
            candidates.insert(FILES.to_owned(), String::new());
            candidates
        };
        match self {
            ValueKind::Words(words) => words,
            ValueKind::Sandbox => names::sandboxes(),
            ValueKind::Volume => names::volumes(),
            ValueKind::Alias => names::aliases(),
            ValueKind::Snapshot => or_files(names::snapshots()),
            ValueKind::Mount => or_files(with(names::volumes().into_keys().collect(), ":/")),
            ValueKind::MountedVolume => with(names::volumes().into_keys().collect(), ":/"),
            ValueKind::Image => plain(names::images()),
            ValueKind::Root => or_files(plain(names::images())),
            ValueKind::Job => operands.first().map(|name| names::jobs(name)).unwrap_or_default(),
            ValueKind::CopyPath => or_files(with(names::sandboxes().into_keys().collect(), ":/")),
            ValueKind::Path => or_files(Candidates::new()),
            ValueKind::Other => Candidates::new(),
        }
    }
}
