//! What more than one tool of msb needs: the state directory in code, one voice on the command line, and the way to
//! the sibling tools. The front command `msb` is a program of this package. It knows nothing of any tool's inside.

/// Output of a guest's command, kept with a limit.
pub mod capture;
/// One voice in every tool: errors, exit codes, arguments, tables, completions.
pub mod cli;
/// Digests of content: `sha256:…`.
pub mod digest;
/// What happened to all sandboxes.
pub mod events;
/// Giving up what a process does not need.
pub mod isolate;
/// One JSON object a line.
pub mod jsonl;
/// The logs of a sandbox, for reading.
pub mod logs;
/// The plan of a virtual machine.
pub mod machine;
/// The network of a sandbox: policy, names, published ports.
pub mod net;
/// References to images.
pub mod reference;
/// The sample file of a sandbox: what it costs.
pub mod samples;
/// For programs that use sandboxes.
pub mod sdk;
/// Choosing sandboxes by their labels.
pub mod selector;
/// Signals as something to wait for.
pub mod signals;
/// The state directory.
pub mod state;
/// Finding a sibling tool: beside the running program, in its library folder, then in `PATH`.
pub mod tools;
