//! The built programs, driven as a user drives them.
//!
//! Each test has a state directory of its own and compares what it sees with what it expects, to the byte where
//! that can be. The suite knows the programs by what they do: it shares no code with them. See tests/run.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by a panic"
)]

/// What may depend on what.
mod arrows;
/// Requests that cannot be done.
mod bad_input;
/// Everything at once, and killed.
mod chaos;
/// Commands with limits, in time, and as records; the clock that they see.
mod commands;
/// Environment, user, directory, labels: what a command finds itself in.
mod config;
/// Files into and out of sandboxes.
mod copy;
/// Man pages, help texts and the state directory's names say the same.
mod docs;
/// What the doctor says of a host.
mod doctor;
/// What was written in a guest, and what is there of it later.
mod durable;
/// Which engine runs a sandbox.
mod engine;
/// What `run` and `exec` end with.
mod exit_codes;
/// Guests that start from the memory of one that has booted.
mod from_memory;
/// Configurations of another program.
mod from_microsandbox;
/// Changes of a guest's files before anything of its image runs.
mod guest_files;
/// The image's own init as the first process of a guest.
mod guest_init;
/// What commands of a guest may do.
mod guest_rights;
/// What a guest's root is made of.
mod guest_root;
/// Archives that mean harm.
mod hostile;
/// Registries that are wrong, slow or wicked.
mod hostile_registry;
/// By what sandboxes of one image differ.
mod identity;
/// From an archive to the tree that a guest sees.
mod image_to_run;
/// What the host's processes of a sandbox have given up.
mod isolation;
/// Commands that go on without a client.
mod jobs;
/// Programs that are killed at any moment.
mod kill;
/// The life of a sandbox, verb by verb.
mod life;
/// Sandboxes that last: started, used, listed, stopped, removed.
mod lifecycle;
/// What commands printed, seen later.
mod logs;
/// Many sandboxes at once.
mod many;
/// Memory, as the host sees it.
mod memory;
/// What sandboxes cost.
mod metrics;
/// What an exporter does when its collector is away, slow, wrong or false.
mod metrics_export;
/// What collectors do with sample files and events that are made by hand.
mod metrics_files;
/// Sandboxes and four clients at a time, and a model that knows better.
mod model;
/// Folders and files of the host, and memory, in a guest.
mod mounts;
/// What people do in folders of the host and in volumes.
mod mounts_work;
/// What a guest reaches, and who reaches it.
mod net;
/// Attempts to pass by the policy of a guest's network.
mod net_bypass;
/// What the log of a network tells.
mod net_events;
/// Guests that flood their network.
mod net_floods;
/// What msb-net bears, and leaves behind.
mod net_load;
/// Which names a guest finds, and what TLS asks for.
mod net_names;
/// The host, and logs, under a policy.
mod net_policy;
/// What people use a network with.
mod net_programs;
/// Policies as they are written.
mod net_rules;
/// Sandboxes that are paused and resumed.
mod pause;
/// Names, room on the disk, and what goes when nobody needs it.
mod prune;
/// Guests and machines that end without being asked to.
mod reasons;
/// Images from registries.
mod registry;
/// Images on their way through other programs, and to another host.
mod roundtrip;
/// Archives that are written.
mod save;
/// Names and contents of a shared directory that host and guests change in turn.
mod share_changes;
/// Attempts to leave what is shared with a guest.
mod share_escape;
/// A sandbox as an SSH host.
mod ssh;
/// A sandbox as an SSH host, seen by the clients that people have.
mod ssh_clients;
/// Clients of SSH that are silent, slow or many, and the files that they see.
mod ssh_limits;
/// What an SSH server must bear, and who must not notice.
mod ssh_load;
/// Who comes in by SSH, and what they may do then.
mod ssh_rules;
/// Standard input, output and error.
mod streams;
/// What the tests stand on.
mod support;
/// Archives that other readers of tar are tested with.
mod tar_readers;
/// A person before a terminal.
mod terminal;
/// Programs that are replaced while sandboxes run.
mod upgrade;
/// Named volumes and disk images.
mod volumes;
