//! Start of the process, and its event loop.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context;
use libmsb::cli::error::Failure;
use libmsb::isolate::raise_file_limit;
use libmsb::net::intercept::{InterceptReady, InterceptSettings, SETTINGS_BYTES_MAX, SecretValues};
use libmsb::net::secret::check_value;
use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd, ioctl_fionbio};
use tokio::io::unix::AsyncFd;
use zeroize::Zeroizing;

use crate::args::Args;
use crate::authority::Authority;
use crate::connection;
use crate::event_log::{EventLog, LogEvent};
use crate::handover::{Connections, watch};
use crate::interceptor::Interceptor;
use crate::isolate;
use crate::limits::CONNECTIONS_MAX;
use crate::secrets::SecretTable;
use crate::upstream::Upstream;

/// Serves connections until the parent process ends or msb-net closes its socket.
pub(crate) fn serve(args: &Args) -> anyhow::Result<()> {
    let settings: InterceptSettings = read_json(args.settings_fd, "the settings")?;
    let values: SecretValues = match args.secrets_fd {
        Some(number) => read_json(number, "the values of secrets")?,
        None => SecretValues::new(),
    };
    for (name, value) in &values {
        check_value(name, value)?;
    }
    let secrets = SecretTable::new(&settings.tls, values)
        .map_err(|name| Failure::failed(format!("secret {name} has no value")))?;
    let (authority, created) = Authority::open(settings.authority.as_deref())?;
    let upstream = Upstream::open(&settings.tls.upstream_ca)?;
    let connections = take_inherited(args.connections_fd)?;
    ioctl_fionbio(&connections, true).context("cannot use the socket of connections")?;
    let events = args.events_fd.map(take_inherited).transpose()?;
    if let Some(events) = &events {
        ioctl_fionbio(events, true).context("cannot use the descriptor for events")?;
    }
    let life = args.life_fd.map(take_inherited).transpose()?;
    let report = args.report_fd.map(take_inherited).transpose()?;
    let mut ready = File::from(take_inherited(args.ready_fd)?);
    // Each connection takes two descriptors.
    raise_file_limit();
    let certificate = authority.certificate_pem().to_owned();
    let interceptor = Arc::new(Interceptor {
        authority,
        upstream,
        secrets: Arc::new(secrets),
        log: EventLog::new(events),
    });
    // One thread, so that the steps of isolation cover all of the process.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .context("cannot wait for events")?;
    isolate::confine(report.map(File::from))?;
    let mut line = Zeroizing::new(serde_json::to_vec(&InterceptReady { certificate, created })?);
    line.push(b'\n');
    ready.write_all(&line).context("cannot report the certificate")?;
    drop((ready, line));
    runtime.block_on(run(interceptor, connections, life))
}

async fn run(
    interceptor: Arc<Interceptor>,
    connections: OwnedFd,
    life: Option<OwnedFd>,
) -> anyhow::Result<()> {
    let connections = Connections::new(connections).context("cannot wait for connections")?;
    let life = life.map(watch).transpose();
    let life = life.context("cannot wait for the end of the parent process")?;
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let next = tokio::select! {
            next = connections.next() => next.context("cannot receive connections")?,
            () = closed(life.as_ref()) => return Ok(()),
        };
        let Some(next) = next else {
            return Ok(());
        };
        if open.load(Ordering::Relaxed) >= CONNECTIONS_MAX {
            let (id, host) = (next.facts.id, next.facts.sni.as_str());
            interceptor.log.log(&LogEvent::InterceptLimit { id, host });
            continue;
        }
        open.fetch_add(1, Ordering::Relaxed);
        let (interceptor, guard) = (interceptor.clone(), OpenConnection(open.clone()));
        tokio::spawn(async move {
            connection::serve(interceptor, next).await;
            drop(guard);
        });
    }
}

/// Counts a connection until it ends, even by a panic.
struct OpenConnection(Arc<AtomicUsize>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Waits until the other end of the life pipe is closed.
async fn closed(life: Option<&AsyncFd<OwnedFd>>) {
    match life {
        Some(life) => drop(life.readable().await),
        None => std::future::pending().await,
    }
}

fn read_json<T: serde::de::DeserializeOwned>(number: RawFd, what: &str) -> anyhow::Result<T> {
    let mut bytes = Zeroizing::new(Vec::new());
    let mut file = File::from(take_inherited(number)?);
    // The supervisor passes the same file for each attempt to boot.
    let _ = rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0));
    (&mut file)
        .take(SETTINGS_BYTES_MAX)
        .read_to_end(&mut bytes)
        .with_context(|| format!("cannot read {what}"))?;
    // The error of the parser could repeat a value.
    serde_json::from_slice(&bytes)
        .map_err(|_| Failure::usage(format!("{what} are not valid JSON of this version")).into())
}

/// Takes ownership of a descriptor inherited from the parent process.
fn take_inherited(number: RawFd) -> anyhow::Result<OwnedFd> {
    let wrong = || Failure::usage(format!("descriptor {number} is not open"));
    if number < 3 {
        return Err(wrong().into());
    }
    // SAFETY: the descriptor is only queried, and rejected if it is not open.
    let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
    fcntl_getfd(borrowed).map_err(|_| wrong())?;
    fcntl_setfd(borrowed, FdFlags::CLOEXEC).context("cannot set close-on-exec on a descriptor")?;
    // SAFETY: the descriptor is open, was passed to this process for this use, and each is taken
    // once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
