//! The built programs, driven as a user drives them.
//!
//! Each test has a state directory of its own and compares what it sees with what it expects, to
//! the byte where that can be. The suite knows the programs by what they do: it shares no code with
//! them. See tests/run.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by a panic"
)]

/// Commands that `msb install` makes.
mod aliases;
/// Dependencies between packages.
mod arrows;
/// Requests that cannot be done.
mod bad_input;
/// Commands for several objects, and the names that they print.
mod bulk;
/// Control groups of sandboxes.
mod cgroups;
/// Commands that run at once, and are killed.
mod chaos;
/// Commands with limits, in time, and as records; the clock that they see.
mod commands;
/// Completion in bash, zsh and fish.
mod completion;
/// Environment, user, directory, labels: what a command finds itself in.
mod config;
/// Commands, options, output and state beside the real microsandbox 0.5.5.
mod conformance;
/// Files into and out of sandboxes.
mod copy;
/// Options and commands of docker.
mod docker;
/// Man pages, help texts and the state directory's names say the same.
mod docs;
/// Reports of `msb doctor`.
mod doctor;
/// Durability of data that a guest has written.
mod durable;
/// Selection of the engine.
mod engine;
/// Examples of the manual pages.
mod examples;
/// Starts that fail, and `run` with the name of a sandbox that exists.
mod existing;
/// Exit codes of `run` and `exec`.
mod exit_codes;
/// Guests that start from the memory of one that has booted.
mod from_memory;
/// Configurations of another program.
mod from_microsandbox;
/// The Go SDK.
mod go_sdk;
/// Changes of a guest's files before anything of its image runs.
mod guest_files;
/// The image's own init as the first process of a guest.
mod guest_init;
/// Privileges of commands in a guest.
mod guest_rights;
/// The root of a guest.
mod guest_root;
/// Archives that mean harm.
mod hostile;
/// Registries that are wrong, slow or wicked.
mod hostile_registry;
/// By what sandboxes of one image differ.
mod identity;
/// Names of images: references, IDs and digests.
mod image_names;
/// Settings of an image, as the guest has them.
mod image_settings;
/// From an archive to the tree that a guest sees.
mod image_to_run;
/// TLS interception and secrets.
mod intercept;
/// Confinement of the host's processes of a sandbox.
mod isolation;
/// Commands that go on without a client.
mod jobs;
/// Errors as JSON objects, of every program.
mod json_errors;
/// Times in JSON and in tables.
mod json_times;
/// Programs that are killed at any moment.
mod kill;
/// The life of a sandbox, verb by verb.
mod life;
/// Sandboxes that last: started, used, listed, stopped, removed.
mod lifecycle;
/// Logs of the output of commands.
mod logs;
/// Many sandboxes at once.
mod many;
/// Memory, as the host sees it.
mod memory;
/// Resource usage of sandboxes.
mod metrics;
/// Exporters whose collector is away, slow, wrong or false.
mod metrics_export;
/// Collectors with sample files and events that are made by hand.
mod metrics_files;
/// Sandboxes and four clients at a time, and a model that knows better.
mod model;
/// Directories and files of the host, and memory, in a guest.
mod mounts;
/// Common work in directories of the host and in volumes.
mod mounts_work;
/// Connections from and to a guest.
mod net;
/// Attempts to pass by the policy of a guest's network.
mod net_bypass;
/// The log of a network.
mod net_events;
/// Guests that flood their network.
mod net_floods;
/// msb-net under load.
mod net_load;
/// Name resolution in a guest, and server names of TLS.
mod net_names;
/// The host, and logs, under a policy.
mod net_policy;
/// Common network programs.
mod net_programs;
/// Policies as they are written.
mod net_rules;
/// Unusual images that other programs load, and the modes of all files.
mod oci;
mod odd_images;
/// Sandboxes that are paused and resumed.
mod pause;
/// System calls made from inside the confined processes.
mod probes;
/// Names, room on the disk, and what goes when nobody needs it.
mod prune;
/// The Python SDK.
mod python_sdk;
/// README and its neighbours.
mod readme;
/// Guests and machines that end without being asked to.
mod reasons;
/// Images from registries.
mod registry;
/// Images on their way through other programs, and to another host.
mod roundtrip;
/// Sandbox files, and the archive for a bug report.
mod sandbox_files;
/// Archives that are written.
mod save;
/// Options of the programs that SDKs call.
mod sdk_programs;
/// Names and contents of a shared directory that host and guests change in turn.
mod share_changes;
/// Attempts to leave what is shared with a guest.
mod share_escape;
/// Snapshots with memory, and sandboxes that go on from them.
mod snapshot_memory;
/// Snapshots: creating, listing, removing; sandboxes from them; archives.
mod snapshots;
/// A sandbox as an SSH host.
mod ssh;
/// A sandbox as an SSH host, seen by the clients that people have.
mod ssh_clients;
/// Clients of SSH that are silent, slow or many, and the files that they see.
mod ssh_limits;
/// An SSH server under load.
mod ssh_load;
/// Authorization of SSH clients.
mod ssh_rules;
/// Standard input, output and error.
mod streams;
/// Code that the tests share.
#[path = "../support/mod.rs"]
mod support;
/// Archives that other readers of tar are tested with.
mod tar_readers;
/// A person before a terminal.
mod terminal;
/// The TypeScript SDK.
mod typescript_sdk;
/// Units of systemd.
mod units;
/// Programs that are replaced while sandboxes run.
mod upgrade;
/// Named volumes and disk images.
mod volumes;
/// The language of the tree, its pages and its help texts.
mod words;
