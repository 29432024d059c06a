//! The SSH server: listens until a signal stops it or the sandbox ends.

use std::borrow::Cow;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Once};
use std::time::Duration;

use anyhow::Context;
use libmsb::cli::error::{Code, Failure, print_note, print_warning};
use libmsb::state::Home;
use msb_wire::sandbox::{EndEvent, Request};
use russh::keys::{Algorithm, HashAlg};
use russh::server::{self, Config};
use russh::{
    Disconnect, Limits, MethodKind, MethodSet, Preferred, SshId, cipher, compression, kex, mac,
};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, oneshot, watch};

use crate::args::ServeArgs;
use crate::authorize;
use crate::guest::{GuestClient, IncomingMessage};
use crate::handler::{ClientHandler, ServerContext};
use crate::identity;
use crate::idle_timer::IdleTimer;
use crate::limits;
use crate::pending::PendingLogins;
use crate::tool::TOOL;
use crate::transport::{
    ByteStream, ClientTransport, ConnectionAddresses, WriteStall, standard_streams,
};

/// First descriptor that systemd passes, sd_listen_fds(3).
const LISTEN_FDS_START: RawFd = 3;

/// Algorithms that are offered: no SHA-1, no CBC, no NIST curves, no encrypt-and-MAC; with a
/// post-quantum key exchange. The list includes strict key exchange, the countermeasure against the
/// Terrapin attack.
const KEX: [kex::Name; 6] = [
    kex::MLKEM768X25519_SHA256,
    kex::CURVE25519,
    kex::CURVE25519_PRE_RFC_8731,
    kex::EXTENSION_SUPPORT_AS_SERVER,
    kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER,
    kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT,
];
const CIPHERS: [cipher::Name; 6] = [
    cipher::AES_256_GCM,
    cipher::AES_128_GCM,
    cipher::CHACHA20_POLY1305,
    cipher::AES_256_CTR,
    cipher::AES_192_CTR,
    cipher::AES_128_CTR,
];
const MACS: [mac::Name; 2] = [mac::HMAC_SHA256_ETM, mac::HMAC_SHA512_ETM];

/// Returns the key exchange methods to offer. The two classical ones are for clients without a
/// post-quantum method, which are still common.
fn key_exchanges(quantum_safe: bool) -> Cow<'static, [kex::Name]> {
    let old = [kex::CURVE25519, kex::CURVE25519_PRE_RFC_8731];
    if quantum_safe {
        KEX.into_iter().filter(|name| !old.contains(name)).collect()
    } else {
        Cow::Borrowed(&KEX)
    }
}

/// A server that can accept clients.
struct SshServer {
    shared: Arc<ServerContext>,
    config: Arc<Config>,
    grace: Duration,
    idle: Option<Duration>,
    time: Option<Duration>,
    /// Time without progress in writing after which a client counts as gone.
    stall: Option<Duration>,
    gone: watch::Receiver<Option<String>>,
}

/// Serves one client, or a port.
pub(crate) fn run(args: &ServeArgs) -> anyhow::Result<()> {
    let home = Home::from_env()?;
    let sandbox = home.sandboxes().find(&args.name)?;
    if !sandbox.is_alive()? {
        let message = format!("the sandbox '{}' is not running", args.name);
        return Err(Failure::wrong_state(message)
            .code(Code::SandboxNotRunning)
            .hint(format!("start it: msb start {}", args.name))
            .into());
    }
    let inherited = inherited_listeners();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    let served = runtime.block_on(serve(&home, args, inherited));
    // A normal shutdown would wait for threads that are blocked in reads of standard input.
    runtime.shutdown_background();
    served
}

async fn serve(
    home: &Home,
    args: &ServeArgs,
    inherited: Vec<std::net::TcpListener>,
) -> anyhow::Result<()> {
    let key = identity::host_key_of(home, &args.name)?;
    let print = key.public_key().fingerprint(HashAlg::Sha256);
    let guest = Arc::new(GuestClient::at(home.agent_socket(&args.name)));
    let (tell_gone, gone) = watch::channel(None);
    tokio::spawn(watch_sandbox(Arc::clone(&guest), args.name.to_string(), tell_gone));
    let server = Arc::new(SshServer {
        shared: Arc::new(ServerContext {
            home: home.clone(),
            guest,
            user: home.sandboxes().find(&args.name)?.spec()?.user,
            channels: args.max_channels,
            sftp_read_only: args.sftp_read_only,
            warned: Once::new(),
            clients: Arc::new(Semaphore::new(args.max_clients.min(Semaphore::MAX_PERMITS))),
        }),
        config: Arc::new(config(args, key)),
        grace: args.login_grace,
        idle: args.idle_timeout,
        time: args.max_time,
        stall: Some(args.keep_alive.saturating_mul(limits::KEEPALIVE_COUNT_MAX as u32 + 1))
            .filter(|time| !time.is_zero()),
        gone,
    });
    if args.stdio {
        let (stream, ends) = standard_streams()?;
        let (_, cut) = oneshot::channel();
        return match server.client(stream, ends, None, cut).await {
            Err(error) if is_disconnect(&error) => Ok(()),
            ended => ended,
        };
    }
    check_keys_exist(home)?;
    let listeners = if inherited.is_empty() {
        let address = SocketAddr::new(args.host, args.port);
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address}"))?;
        vec![listener]
    } else {
        let adopt = |listener: std::net::TcpListener| {
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)
        };
        inherited
            .into_iter()
            .map(adopt)
            .collect::<Result<_, _>>()
            .context("cannot use the sockets that systemd passed")?
    };
    for listener in &listeners {
        let address = listener.local_addr()?;
        print_note(TOOL, &format!("listening on {address}, host key {print}"));
    }
    server.listen(listeners).await
}

/// Returns whether a client closed its connection without a disconnect message, as ssh(1) does when
/// it is finished.
fn is_disconnect(error: &anyhow::Error) -> bool {
    let kind = match error.downcast_ref() {
        Some(russh::Error::HUP | russh::Error::Disconnect) => return true,
        Some(russh::Error::IO(error)) => error.kind(),
        _ => match error.downcast_ref::<io::Error>() {
            Some(error) => error.kind(),
            None => return false,
        },
    };
    matches!(
        kind,
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
    )
}

fn check_keys_exist(home: &Home) -> anyhow::Result<()> {
    let path = authorize::path(home);
    let entries = authorize::entries(home, |number, why| {
        let place = format!("line {number} of '{}'", path.display());
        print_warning(TOOL, &format!("ignoring {place}: {why}"));
    })?;
    if entries.is_empty() {
        return Err(Failure::failed("no key is authorized yet")
            .hint("authorize one: msb ssh authorize --file ~/.ssh/id_ed25519.pub")
            .into());
    }
    Ok(())
}

fn config(args: &ServeArgs, key: russh::keys::PrivateKey) -> Config {
    Config {
        server_id: SshId::Standard(Cow::Borrowed(concat!(
            "SSH-2.0-msb_",
            env!("CARGO_PKG_VERSION")
        ))),
        methods: MethodSet::from(&[MethodKind::PublicKey][..]),
        auth_rejection_time: limits::REJECTION_TIME,
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys: vec![key],
        limits: Limits::new(limits::REKEY_BYTES, limits::REKEY_BYTES, limits::REKEY_TIME),
        window_size: limits::WINDOW_BYTES,
        maximum_packet_size: limits::PACKET_BYTES,
        max_auth_attempts: limits::AUTH_ATTEMPTS,
        // The handler has its own idle timer, which ignores keepalive messages.
        inactivity_timeout: None,
        keepalive_interval: Some(args.keep_alive).filter(|time| !time.is_zero()),
        keepalive_max: limits::KEEPALIVE_COUNT_MAX,
        nodelay: true,
        preferred: Preferred {
            kex: key_exchanges(args.quantum_safe),
            key: Cow::Owned(vec![Algorithm::Ed25519]),
            host_key_certificates: Cow::Borrowed(&[]),
            cipher: Cow::Borrowed(&CIPHERS),
            mac: Cow::Borrowed(&MACS),
            compression: Cow::Owned(vec![compression::NONE]),
        },
        ..Config::default()
    }
}

/// Returns the sockets that systemd passed to this process.
fn inherited_listeners() -> Vec<std::net::TcpListener> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<i32>().ok();
    if number("LISTEN_PID") != i32::try_from(std::process::id()).ok() {
        return Vec::new();
    }
    let count = number("LISTEN_FDS").unwrap_or(0).clamp(0, 64);
    (LISTEN_FDS_START..LISTEN_FDS_START + count)
        // SAFETY: by the protocol of sd_listen_fds(3) these descriptors were passed to this process
        // and nothing else in it owns them; this is called once, before anything else was opened by
        // number.
        .map(|descriptor| unsafe { OwnedFd::from_raw_fd(descriptor) }.into())
        .collect()
}

/// Waits for the end of the sandbox and sends the reason.
async fn watch_sandbox(guest: Arc<GuestClient>, name: String, gone: watch::Sender<Option<String>>) {
    let mut why = "it was killed".to_owned();
    if let Ok(mut call) = guest.open(&Request::Wait).await {
        while let Some(incoming) = call.receiver.recv().await {
            if let IncomingMessage::Event { message, .. } = incoming
                && let Ok(EndEvent::Ended { reason, message, .. }) =
                    serde_json::from_slice(&message)
            {
                why = message.unwrap_or(reason);
            }
        }
    }
    let _ = gone.send(Some(format!("the sandbox '{name}' has ended: {why}")));
}

impl SshServer {
    async fn listen(self: Arc<SshServer>, listeners: Vec<TcpListener>) -> anyhow::Result<()> {
        let pending = PendingLogins::new(limits::PENDING_LOGINS_MAX);
        for listener in listeners {
            let (server, pending) = (Arc::clone(&self), Arc::clone(&pending));
            tokio::spawn(async move { server.accept(listener, &pending).await });
        }
        let mut gone = self.gone.clone();
        let mut terminated = signal(SignalKind::terminate())?;
        let mut interrupted = signal(SignalKind::interrupt())?;
        tokio::select! {
            _ = terminated.recv() => {}
            _ = interrupted.recv() => {}
            ended = gone.wait_for(Option::is_some) => {
                let why = ended.ok().and_then(|why| why.clone()).unwrap_or_default();
                print_note(TOOL, &why);
                tokio::time::sleep(limits::DISCONNECT_TIMEOUT / 4).await;
            }
        }
        Ok(())
    }

    async fn accept(self: Arc<SshServer>, listener: TcpListener, pending: &Arc<PendingLogins>) {
        loop {
            let (socket, address) = match listener.accept().await {
                Ok(accepted) => accepted,
                // Most likely out of descriptors: other connections must close first.
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let _ = socket.set_nodelay(true);
            let source = address.ip().to_canonical();
            let ends = socket
                .local_addr()
                .ok()
                .map(|server| ConnectionAddresses { client: address, server });
            let (cut, was_cut) = oneshot::channel();
            let place = pending.add(source, cut);
            let server = Arc::clone(&self);
            tokio::spawn(async move {
                // A failure with one client does not affect the others.
                let _ = server.client(Box::new(socket), ends, Some(place), was_cut).await;
            });
        }
    }

    /// Waits until a client that is logged in must be disconnected, and returns the reason.
    async fn reason_to_end(&self, idle_timer: &IdleTimer, stall: &WriteStall) -> String {
        let mut gone = self.gone.clone();
        let over = async {
            match self.time {
                Some(time) => tokio::time::sleep(time).await,
                None => std::future::pending().await,
            }
        };
        let seconds = |time: Option<Duration>| time.unwrap_or_default().as_secs_f64();
        tokio::select! {
            ended = gone.wait_for(Option::is_some) => {
                ended.ok().and_then(|why| why.clone()).unwrap_or_default()
            }
            () = idle_timer.wait_idle(self.idle) => {
                format!("idle for {} s", seconds(self.idle))
            }
            // The client will not read this message.
            () = stall.wait(self.stall) => "the client reads nothing".to_owned(),
            () = over => format!("the connection reached its time limit of {} s", seconds(self.time)),
        }
    }

    /// Serves one client until its connection ends.
    async fn client(
        &self,
        stream: Box<dyn ByteStream>,
        ends: Option<ConnectionAddresses>,
        place: Option<crate::pending::LoginSlot>,
        driven_out: oneshot::Receiver<()>,
    ) -> anyhow::Result<()> {
        let (cut, was_cut) = oneshot::channel();
        let (logged_in, has_logged_in) = oneshot::channel();
        let stall = Arc::default();
        let transport = ClientTransport::new(stream, was_cut, &stall);
        let idle_timer = Arc::new(IdleTimer::new());
        let handler = ClientHandler::new(&self.shared, ends, &idle_timer, place, logged_in);
        let grace = tokio::time::sleep(self.grace);
        tokio::pin!(grace);
        let started = server::run_stream(Arc::clone(&self.config), transport, handler);
        // The sender is dropped at login; that does not evict the client.
        let driven_out = async {
            if driven_out.await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::pin!(driven_out);
        let mut session = tokio::select! {
            started = started => started?,
            () = &mut grace => return Ok(()),
            () = &mut driven_out => return Ok(()),
        };
        let handle = session.handle();
        tokio::select! {
            ended = &mut session => return ended,
            Ok(()) = has_logged_in => {}
            () = &mut grace => {
                let _ = cut.send(());
                return Ok(());
            }
            () = &mut driven_out => {
                let _ = cut.send(());
                return Ok(());
            }
        }
        let why = tokio::select! {
            ended = &mut session => return ended,
            why = self.reason_to_end(&idle_timer, &stall) => why,
        };
        // With a client that takes nothing, even the first of these would block.
        let farewell = async {
            let _ = handle.disconnect(Disconnect::ByApplication, why, String::new()).await;
            let _ = session.await;
        };
        if tokio::time::timeout(limits::DISCONNECT_TIMEOUT, farewell).await.is_err() {
            let _ = cut.send(());
        }
        Ok(())
    }
}
