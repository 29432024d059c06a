//! Shared code of the msb tools: the state directory, the command line, sibling tools, and the Rust
//! SDK. The front command `msb` is a program of this package. No module depends on a tool.

/// Capture of a guest command's output, with a limit.
pub mod capture;
/// The command line: errors, exit codes, arguments, tables.
pub mod cli;
/// Completion of a command line in a shell.
pub mod complete;
/// Digests: `sha256:…`.
pub mod digest;
/// The event log of all sandboxes.
pub mod events;
/// Isolation of processes: seccomp, Landlock, namespaces.
pub mod isolate;
/// JSON Lines.
pub mod jsonl;
/// Readers of a sandbox's logs.
pub mod logs;
/// The plan of a virtual machine.
pub mod machine;
/// The network of a sandbox: policy, names, published ports.
pub mod net;
/// Platforms of images.
pub mod platform;
/// Image references.
pub mod reference;
/// The sample file of a sandbox: its resource use.
pub mod samples;
/// The Rust SDK.
pub mod sdk;
/// Selection of sandboxes by labels.
pub mod selector;
/// Signal numbers of the guest, by name or number.
pub mod signal_number;
/// Signals, read from a descriptor.
pub mod signals;
/// The state directory.
pub mod state;
/// Times in JSON and in stored files.
pub mod time;
/// Sibling tools: beside the running program, in its library directory, then in `PATH`.
pub mod tools;
