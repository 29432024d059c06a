//! Protocol handler of one client: authenticates it and serves its requests as far as its key
//! permits.

use std::collections::HashMap;
use std::sync::{Arc, Once};

use jiff::Timestamp;
use libmsb::state::Home;
use msb_wire::exec::{ExecRequest, WindowSize};
use msb_wire::key_agent::KeyAgentRequest;
use msb_wire::sandbox::Request;
use msb_wire::sftp::SftpRequest;
use msb_wire::text::Text;
use russh::keys::PublicKey;
use russh::server::{self, Auth, ChannelOpenHandle, Msg, Session as Connection};
use russh::{Channel, ChannelId, Disconnect, Pty, Sig};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::authorize;
use crate::authorized::{self, KeyGrant};
use crate::controls::SessionControls;
use crate::forward::{self, PortForward, RefusedChannels};
use crate::guest::GuestClient;
use crate::identity;
use crate::idle_timer::IdleTimer;
use crate::input::{InputQueue, QueueTotals};
use crate::login;
use crate::pending::LoginSlot;
use crate::scoped_task::ScopedTask;
use crate::session::{ChannelSession, signal_number};
use crate::session_options::{self, OptionBudget, PendingSession, SessionOptions};
use crate::transport::ConnectionAddresses;

/// State that all clients of a server share.
#[derive(Debug)]
pub(crate) struct ServerContext {
    pub(crate) home: Home,
    pub(crate) guest: Arc<GuestClient>,
    /// Default user of the sandbox, from its spec.
    pub(crate) user: Option<Text>,
    pub(crate) channels: usize,
    pub(crate) sftp_read_only: bool,
    /// Guards the warning about an unusable authorized_keys file, which is printed once.
    pub(crate) warned: Once,
    /// Limits the clients that are logged in.
    pub(crate) clients: Arc<Semaphore>,
}

/// One channel.
struct OpenChannel {
    input: Arc<InputQueue>,
    /// Options of a session that has not started.
    options: Option<PendingSession>,
    controls: Option<Arc<SessionControls>>,
    /// Task of the channel. It is aborted with the channel.
    _task: Option<ScopedTask>,
}

/// Protocol handler of one client.
pub(crate) struct ClientHandler {
    shared: Arc<ServerContext>,
    ends: Option<ConnectionAddresses>,
    idle_timer: Arc<IdleTimer>,
    account: Arc<QueueTotals>,
    /// Memory budget for the options of its sessions.
    new_budget: OptionBudget,
    channels: HashMap<ChannelId, OpenChannel>,
    /// Channels that were refused after they had been counted.
    refused: RefusedChannels,
    grant: KeyGrant,
    /// User in the guest; `None` for the sandbox's default user.
    user: Option<Text>,
    /// Warnings about refused requests, printed by the client's next session.
    refusals: Vec<&'static str>,
    login_slot: Option<LoginSlot>,
    logged_in: Option<oneshot::Sender<()>>,
    permit: Option<OwnedSemaphorePermit>,
}

type Result<T> = std::result::Result<T, anyhow::Error>;

impl ClientHandler {
    /// Returns a handler for one client, with its slot among the connections that have not
    /// authenticated. Sends on `logged_in` after authentication.
    pub(crate) fn new(
        shared: &Arc<ServerContext>,
        ends: Option<ConnectionAddresses>,
        idle_timer: &Arc<IdleTimer>,
        login_slot: Option<LoginSlot>,
        logged_in: oneshot::Sender<()>,
    ) -> ClientHandler {
        ClientHandler {
            shared: Arc::clone(shared),
            ends,
            idle_timer: Arc::clone(idle_timer),
            account: Arc::default(),
            new_budget: session_options::new_budget(),
            channels: HashMap::new(),
            refused: RefusedChannels::default(),
            grant: KeyGrant::default(),
            user: None,
            refusals: Vec::new(),
            login_slot,
            logged_in: Some(logged_in),
            permit: None,
        }
    }

    /// Returns the permissions of a key if it is accepted. The files are read again each time, so a
    /// removed key is refused from then on.
    fn grant_for(&self, key: &PublicKey) -> Option<KeyGrant> {
        let owner = identity::existing_owner_key(&self.shared.home).ok().flatten();
        if owner.is_some_and(|owner| owner.key_data() == key.key_data()) {
            return Some(KeyGrant::default());
        }
        let entries = match authorize::entries(&self.shared.home, |_, _| {}) {
            Ok(entries) => entries,
            Err(error) => {
                self.shared.warned.call_once(|| authorize::warn_unusable_file(&error));
                return None;
            }
        };
        let source = self.ends.map(|ends| ends.client.ip());
        authorized::grant_for(entries, key.key_data(), source, Timestamp::now())
    }

    /// Stores a warning for the next session, once: SSH has no text in the reply that refuses a
    /// global request.
    fn warn_next_session(&mut self, why: &'static str) {
        if !self.refusals.contains(&why) {
            self.refusals.push(why);
        }
    }

    fn is_full(&mut self) -> bool {
        for id in self.refused.take() {
            self.channels.remove(&id);
        }
        self.channels.len() >= self.shared.channels
    }

    /// Returns the options of a session that has not started.
    fn options(&mut self, id: ChannelId) -> Option<&mut SessionOptions> {
        let open = self.channels.get_mut(&id)?;
        Some(&mut open.options.as_mut()?.options)
    }

    /// Starts the command, shell or subsystem of a channel, once.
    fn start(
        &mut self,
        id: ChannelId,
        session: &mut Connection,
        request: impl FnOnce(&ClientHandler, &mut SessionOptions) -> Option<Request>,
    ) -> Result<()> {
        let options = self.channels.get_mut(&id).and_then(|open| open.options.take());
        let Some(mut options) = options else {
            return Ok(session.channel_failure(id)?);
        };
        let Some(request) = request(self, &mut options.options) else {
            if let Some(open) = self.channels.get_mut(&id) {
                open.options = Some(options);
            }
            return Ok(session.channel_failure(id)?);
        };
        self.idle_timer.touch();
        let key_agent =
            options.options.key_agent.then(|| KeyAgentRequest { user: self.user.clone() });
        let Some(open) = self.channels.get_mut(&id) else {
            return Ok(());
        };
        session.channel_success(id)?;
        let controls = Arc::new(SessionControls::default());
        let task = ChannelSession {
            guest: Arc::clone(&self.shared.guest),
            channel: options.channel,
            handle: session.handle(),
            input: Arc::clone(&open.input),
            idle_timer: Arc::clone(&self.idle_timer),
            controls: Arc::clone(&controls),
            refusals: std::mem::take(&mut self.refusals),
            key_agent,
            reserved: options.options.reserved,
        };
        open.controls = Some(controls);
        open._task = Some(ScopedTask::spawn(task.run(request)));
        Ok(())
    }

    /// Returns the request for a command line, or for a login shell without one. The key's forced
    /// command replaces both.
    fn command(&self, options: &mut SessionOptions, asked: Option<&[u8]>) -> Option<Request> {
        if !options.reserve(asked.map_or(0, <[u8]>::len)) {
            return None;
        }
        let mut env = std::mem::take(&mut options.env);
        let line = match (&self.grant.command, asked) {
            (Some(forced), asked) => {
                let asked = asked.map(|line| [b"SSH_ORIGINAL_COMMAND=", line].concat());
                env.extend(asked.filter(|text| !text.contains(&0)).map(Text));
                if forced == "internal-sftp" {
                    return Some(self.sftp());
                }
                Some(forced.as_bytes())
            }
            (None, asked) => asked,
        };
        if line.is_some_and(|line| line.contains(&0)) {
            return None;
        }
        let granted = self.grant.environment.iter();
        env.extend(granted.map(|variable| Text::from(variable.as_str())));
        if let Some(ConnectionAddresses { client, server }) = self.ends {
            let (from, port) = (client.ip().to_canonical(), client.port());
            let (to, at) = (server.ip().to_canonical(), server.port());
            env.push(Text::from(format!("SSH_CLIENT={from} {port} {at}")));
            env.push(Text::from(format!("SSH_CONNECTION={from} {port} {to} {at}")));
        }
        Some(Request::Exec(ExecRequest {
            argv: line.map(|line| Text(line.to_vec())).into_iter().collect(),
            env,
            user: self.user.clone(),
            tty: options.tty,
            tty_modes: std::mem::take(&mut options.tty_modes),
            stdin: true,
            login: true,
            ..ExecRequest::default()
        }))
    }

    fn sftp(&self) -> Request {
        Request::Sftp(SftpRequest {
            user: self.user.clone(),
            read_only: self.shared.sftp_read_only,
        })
    }
}

/// Answers a request of a channel.
fn answer(session: &mut Connection, id: ChannelId, fulfilled: bool) -> Result<()> {
    let answered =
        if fulfilled { session.channel_success(id) } else { session.channel_failure(id) };
    Ok(answered?)
}

fn cells(cols: u32, rows: u32) -> WindowSize {
    let fit = |cells: u32| u16::try_from(cells).unwrap_or(u16::MAX);
    WindowSize { rows: fit(rows), cols: fit(cols) }
}

impl server::Handler for ClientHandler {
    type Error = anyhow::Error;

    async fn auth_publickey_offered(&mut self, _: &str, key: &PublicKey) -> Result<Auth> {
        Ok(match self.grant_for(key) {
            Some(_) => Auth::Accept,
            None => Auth::reject(),
        })
    }

    /// Accepts a key whose signature has been checked. Earlier offers of other keys have no effect.
    async fn auth_publickey(&mut self, user: &str, key: &PublicKey) -> Result<Auth> {
        let Some(grant) = self.grant_for(key) else {
            return Ok(Auth::reject());
        };
        // A name with a colon would select a group in the guest.
        if user.contains([':', '\0']) {
            return Ok(Auth::reject());
        }
        self.grant = grant;
        self.user = login::guest_user(user, self.shared.user.as_ref());
        Ok(Auth::Accept)
    }

    async fn auth_succeeded(&mut self, session: &mut Connection) -> Result<()> {
        let Ok(permit) = Arc::clone(&self.shared.clients).try_acquire_owned() else {
            // The connection keeps its slot until it is closed.
            let why = "too many clients are logged in";
            return Ok(session.disconnect(Disconnect::TooManyConnections, why, "")?);
        };
        self.permit = Some(permit);
        self.login_slot = None;
        if let Some(logged_in) = self.logged_in.take() {
            let _ = logged_in.send(());
        }
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Connection,
    ) -> Result<()> {
        if self.is_full() {
            let why = format!("{} channels are open already", self.channels.len());
            reply.reject(forward::shortage(why)).await;
            return Ok(());
        }
        let (_, channel) = channel.split();
        let open = OpenChannel {
            input: InputQueue::new(&self.account),
            controls: None,
            _task: None,
            options: Some(PendingSession {
                channel: Arc::new(channel),
                options: SessionOptions::new(&self.new_budget),
            }),
        };
        if let Some(options) = &open.options {
            self.channels.insert(options.channel.id(), open);
        }
        reply.accept().await;
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Connection,
    ) -> Result<()> {
        let port = u16::try_from(port).ok().filter(|port| *port != 0);
        let failure = match port {
            _ if self.is_full() => {
                let why = format!("{} channels are open already", self.channels.len());
                Some(forward::shortage(why))
            }
            None => Some(forward::prohibited("invalid port")),
            Some(port) if !self.grant.permits(host, port) => {
                Some(forward::prohibited("this key does not permit connections to this target"))
            }
            Some(_) => None,
        };
        if let Some(failure) = failure {
            reply.reject(failure).await;
            return Ok(());
        }
        self.idle_timer.touch();
        let (_, channel) = channel.split();
        let (id, input) = (channel.id(), InputQueue::new(&self.account));
        let forward = PortForward {
            guest: Arc::clone(&self.shared.guest),
            host: host.to_owned(),
            port: port.unwrap_or_default(),
            channel: Arc::new(channel),
            input: Arc::clone(&input),
            idle_timer: Arc::clone(&self.idle_timer),
            refused: self.refused.clone(),
        };
        let open = OpenChannel {
            input,
            options: None,
            controls: None,
            _task: Some(ScopedTask::spawn(forward.run(reply))),
        };
        self.channels.insert(id, open);
        Ok(())
    }

    async fn channel_open_direct_streamlocal(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        reply: ChannelOpenHandle,
        _: &mut Connection,
    ) -> Result<()> {
        let why = "forwarding of Unix sockets is not supported";
        reply.reject(forward::prohibited(why)).await;
        Ok(())
    }

    async fn channel_close(&mut self, id: ChannelId, _: &mut Connection) -> Result<()> {
        self.channels.remove(&id);
        Ok(())
    }

    async fn channel_eof(&mut self, id: ChannelId, _: &mut Connection) -> Result<()> {
        if let Some(open) = self.channels.get(&id) {
            open.input.end();
        }
        Ok(())
    }

    async fn data(&mut self, id: ChannelId, data: &[u8], session: &mut Connection) -> Result<()> {
        self.idle_timer.touch();
        if let Some(open) = self.channels.get(&id)
            && open.input.push(data).await.is_err()
        {
            // Drop all that it has sent at once, even if it stays connected.
            self.channels.clear();
            let why = "the client sends more than its windows allow";
            session.disconnect(Disconnect::ByApplication, why, "")?;
        }
        Ok(())
    }

    fn adjust_window(&mut self, _: ChannelId, _: u32) -> u32 {
        self.account.window()
    }

    async fn pty_request(
        &mut self,
        id: ChannelId,
        term: &str,
        cols: u32,
        rows: u32,
        _: u32,
        _: u32,
        modes: &[(Pty, u32)],
        session: &mut Connection,
    ) -> Result<()> {
        let may = self.grant.pty;
        let given = self
            .options(id)
            .is_some_and(|options| may && options.set_terminal(term, cells(cols, rows), modes));
        answer(session, id, given)
    }

    async fn env_request(
        &mut self,
        id: ChannelId,
        name: &str,
        value: &str,
        session: &mut Connection,
    ) -> Result<()> {
        let may = self.grant.may_set(name);
        let set = self.options(id).is_some_and(|options| may && options.set_variable(name, value));
        answer(session, id, set)
    }

    async fn shell_request(&mut self, id: ChannelId, session: &mut Connection) -> Result<()> {
        self.start(id, session, |handler, options| handler.command(options, None))
    }

    async fn exec_request(
        &mut self,
        id: ChannelId,
        line: &[u8],
        session: &mut Connection,
    ) -> Result<()> {
        self.start(id, session, |handler, options| handler.command(options, Some(line)))
    }

    async fn subsystem_request(
        &mut self,
        id: ChannelId,
        name: &str,
        session: &mut Connection,
    ) -> Result<()> {
        self.start(id, session, |handler, options| {
            if name != "sftp" {
                return None;
            }
            match handler.grant.command {
                Some(_) => handler.command(options, Some(name.as_bytes())),
                None => Some(handler.sftp()),
            }
        })
    }

    async fn window_change_request(
        &mut self,
        id: ChannelId,
        cols: u32,
        rows: u32,
        _: u32,
        _: u32,
        _: &mut Connection,
    ) -> Result<()> {
        let controls = self.channels.get(&id).and_then(|open| open.controls.as_ref());
        if let Some(controls) = controls {
            controls.resize(cells(cols, rows));
        }
        Ok(())
    }

    /// Answers the request here and returns true: the library would answer it like a global
    /// request, and adds nothing after true.
    async fn agent_request(&mut self, id: ChannelId, session: &mut Connection) -> Result<bool> {
        let may = self.grant.agent;
        let options = self.options(id).filter(|_| may);
        let given = options.map(|options| options.key_agent = true).is_some();
        answer(session, id, given)?;
        Ok(true)
    }

    async fn tcpip_forward(&mut self, _: &str, _: &mut u32, _: &mut Connection) -> Result<bool> {
        self.warn_next_session("warning: remote port forwarding (-R) is not supported");
        Ok(false)
    }

    async fn streamlocal_forward(&mut self, _: &str, _: &mut Connection) -> Result<bool> {
        self.warn_next_session("warning: remote forwarding of Unix sockets (-R) is not supported");
        Ok(false)
    }

    async fn signal(&mut self, id: ChannelId, signal: Sig, _: &mut Connection) -> Result<()> {
        let controls = self.channels.get(&id).and_then(|open| open.controls.as_ref());
        if let (Some(controls), Some(signal)) = (controls, signal_number(&signal)) {
            controls.signal(signal);
        }
        Ok(())
    }
}
