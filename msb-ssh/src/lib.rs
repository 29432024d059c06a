//! SSH access to sandboxes: an SSH server in front of a sandbox, and its client.
//!
//! The server runs on the host and speaks SSH to the client ([`server`]). Each request of a client
//! becomes a call to the guest's agent ([`guest`]): a session runs a command ([`session`]), SFTP is
//! served by the agent itself, and port forwarding asks the agent to open the connection
//! ([`forward`]). The image needs no sshd, and a client reaches the guest, never the host.
//!
//! The library is for the program `msb-ssh` and its fuzz targets. Its interface may change with
//! every release.

mod args;
/// `msb ssh authorize` and `msb ssh keys`.
mod authorize;
/// The authorized_keys parser: keys, options, and what they permit.
pub mod authorized;
/// `msb ssh NAME`: runs ssh(1) against a sandbox.
mod connect;
/// Window sizes and signals on their way to a running command.
mod controls;
/// Port forwarding: connections that the guest opens for a client.
mod forward;
/// Fuzz targets.
/// Calls to the guest's agent, multiplexed over connections to the supervisor.
mod guest;
/// Protocol handler of one client.
mod handler;
/// Host keys and the owner's key.
mod identity;
/// Idle timer of one client.
mod idle_timer;
/// Input queue of each channel, with back-pressure.
mod input;
/// Agent forwarding: the client's SSH agent, as a socket in the guest.
mod key_agent;
/// Limits of the server.
mod limits;
/// User names for login.
mod login;
/// Connections that have not authenticated yet.
mod pending;
/// Listening sockets and the life of each client.
mod scoped_task;
mod server;
/// Sessions: commands, shells and file transfer.
mod session;
/// Options of a session that has not started: environment, terminal, agent forwarding.
mod session_options;
mod tool;
/// Byte stream below a client's connection.
mod transport;

pub use args::Args;
pub use tool::TOOL;

/// Runs the program.
pub fn run(args: args::Args) -> anyhow::Result<()> {
    use args::SshVerb;
    match args.verb {
        None => connect::run(&args.connect),
        Some(SshVerb::Connect(connect)) => connect::run(&connect),
        Some(SshVerb::Serve(serve)) => server::run(&serve),
        Some(SshVerb::Config(config)) => connect::print_config(&config),
        Some(SshVerb::Authorize(key)) => authorize::run(&key),
        Some(SshVerb::Keys(keys)) => authorize::keys(&keys),
    }
}
