//! One client: what it asks for, and whether it may.

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

use crate::activity::Activity;
use crate::authorize;
use crate::authorized::{self, Grant};
use crate::controls::Controls;
use crate::forward::{self, Forward, Refused};
use crate::guest::Guest;
use crate::identity;
use crate::input::{Account, Input};
use crate::login;
use crate::pending::Place;
use crate::session::{Helper, Session, signal_number};
use crate::setting::{self, Room, Setting, What};
use crate::transport::Ends;

/// What all clients of a server share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) home: Home,
    pub(crate) guest: Arc<Guest>,
    /// Who the sandbox's commands run as, as its spec has it.
    pub(crate) user: Option<Text>,
    pub(crate) channels: usize,
    pub(crate) sftp_read_only: bool,
    /// That the file of keys cannot be used is said once.
    pub(crate) warned: Once,
    /// One for each client that may be logged in.
    pub(crate) clients: Arc<Semaphore>,
}

/// One channel.
struct Open {
    input: Arc<Input>,
    /// A session that has not begun, and what it will have.
    setting: Option<Setting>,
    controls: Option<Arc<Controls>>,
    /// Dropped with the channel: what it started ends.
    _task: Option<Helper>,
}

/// One client.
pub(crate) struct Handler {
    shared: Arc<Shared>,
    ends: Option<Ends>,
    activity: Arc<Activity>,
    account: Arc<Account>,
    /// For what its sessions will have.
    room: Room,
    channels: HashMap<ChannelId, Open>,
    /// Those of the channels that there will not be.
    refused: Refused,
    grant: Grant,
    /// Who logged in; `None` for the sandbox's own user.
    user: Option<Text>,
    /// What the client asked for and does not get, for its next session.
    refusals: Vec<&'static str>,
    place: Option<Place>,
    logged_in: Option<oneshot::Sender<()>>,
    permit: Option<OwnedSemaphorePermit>,
}

type Result<T> = std::result::Result<T, anyhow::Error>;

impl Handler {
    /// For a client at the other end, with its place among those that have not logged in. `logged_in` is told when it has.
    pub(crate) fn new(
        shared: &Arc<Shared>,
        ends: Option<Ends>,
        activity: &Arc<Activity>,
        place: Option<Place>,
        logged_in: oneshot::Sender<()>,
    ) -> Handler {
        Handler {
            shared: Arc::clone(shared),
            ends,
            activity: Arc::clone(activity),
            account: Arc::default(),
            room: setting::room(),
            channels: HashMap::new(),
            refused: Refused::default(),
            grant: Grant::default(),
            user: None,
            refusals: Vec::new(),
            place,
            logged_in: Some(logged_in),
            permit: None,
        }
    }

    /// What the owner of a key may do, if they may come in at all. The files are read each time: a key that was taken
    /// away does not count any more.
    fn grant_for(&self, key: &PublicKey) -> Option<Grant> {
        let owner = identity::owner_if_made(&self.shared.home).ok().flatten();
        if owner.is_some_and(|owner| owner.key_data() == key.key_data()) {
            return Some(Grant::default());
        }
        let entries = match authorize::entries(&self.shared.home, |_, _| {}) {
            Ok(entries) => entries,
            Err(error) => {
                self.shared.warned.call_once(|| authorize::warn(&error));
                return None;
            }
        };
        let source = self.ends.map(|ends| ends.client.ip());
        authorized::grant_for(entries, key.key_data(), source, Timestamp::now())
    }

    /// The protocol has no words for why a request of this kind is refused, so the next session says it, once.
    fn refuse(&mut self, why: &'static str) {
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

    /// What a session will have that has not begun.
    fn setting(&mut self, id: ChannelId) -> Option<&mut What> {
        let open = self.channels.get_mut(&id)?;
        Some(&mut open.setting.as_mut()?.what)
    }

    /// Starts what a channel is for, once.
    fn start(
        &mut self,
        id: ChannelId,
        session: &mut Connection,
        request: impl FnOnce(&Handler, &mut What) -> Option<Request>,
    ) -> Result<()> {
        let setting = self
            .channels
            .get_mut(&id)
            .and_then(|open| open.setting.take());
        let Some(mut setting) = setting else {
            return Ok(session.channel_failure(id)?);
        };
        let Some(request) = request(self, &mut setting.what) else {
            if let Some(open) = self.channels.get_mut(&id) {
                open.setting = Some(setting);
            }
            return Ok(session.channel_failure(id)?);
        };
        self.activity.touch();
        let key_agent = setting.what.key_agent.then(|| KeyAgentRequest {
            user: self.user.clone(),
        });
        let Some(open) = self.channels.get_mut(&id) else {
            return Ok(());
        };
        session.channel_success(id)?;
        let controls = Arc::new(Controls::default());
        let task = Session {
            guest: Arc::clone(&self.shared.guest),
            channel: setting.channel,
            handle: session.handle(),
            input: Arc::clone(&open.input),
            activity: Arc::clone(&self.activity),
            controls: Arc::clone(&controls),
            refusals: std::mem::take(&mut self.refusals),
            key_agent,
            held: setting.what.held,
        };
        open.controls = Some(controls);
        open._task = Some(Helper::spawn(task.run(request)));
        Ok(())
    }

    /// A command line for the user's shell, or a login shell; the key's own command in place of either.
    fn command(&self, setting: &mut What, asked: Option<&[u8]>) -> Option<Request> {
        if !setting.hold(asked.map_or(0, <[u8]>::len)) {
            return None;
        }
        let mut env = std::mem::take(&mut setting.env);
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
        if let Some(Ends { client, server }) = self.ends {
            let (from, port) = (client.ip().to_canonical(), client.port());
            let (to, at) = (server.ip().to_canonical(), server.port());
            env.push(Text::from(format!("SSH_CLIENT={from} {port} {at}")));
            env.push(Text::from(format!(
                "SSH_CONNECTION={from} {port} {to} {at}"
            )));
        }
        Some(Request::Exec(ExecRequest {
            argv: line.map(|line| Text(line.to_vec())).into_iter().collect(),
            env,
            user: self.user.clone(),
            tty: setting.tty,
            tty_modes: std::mem::take(&mut setting.tty_modes),
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

/// Says whether a request of a channel was fulfilled.
fn answer(session: &mut Connection, id: ChannelId, fulfilled: bool) -> Result<()> {
    let answered = if fulfilled {
        session.channel_success(id)
    } else {
        session.channel_failure(id)
    };
    Ok(answered?)
}

fn cells(cols: u32, rows: u32) -> WindowSize {
    let fit = |cells: u32| u16::try_from(cells).unwrap_or(u16::MAX);
    WindowSize {
        rows: fit(rows),
        cols: fit(cols),
    }
}

impl server::Handler for Handler {
    type Error = anyhow::Error;

    async fn auth_publickey_offered(&mut self, _: &str, key: &PublicKey) -> Result<Auth> {
        Ok(match self.grant_for(key) {
            Some(_) => Auth::Accept,
            None => Auth::reject(),
        })
    }

    /// The signature has been checked: only this key counts, whatever others were asked about.
    async fn auth_publickey(&mut self, user: &str, key: &PublicKey) -> Result<Auth> {
        let Some(grant) = self.grant_for(key) else {
            return Ok(Auth::reject());
        };
        // A name with a colon would mean a group to the guest.
        if user.contains([':', '\0']) {
            return Ok(Auth::reject());
        }
        self.grant = grant;
        self.user = login::in_guest(user, self.shared.user.as_ref());
        Ok(Auth::Accept)
    }

    async fn auth_succeeded(&mut self, session: &mut Connection) -> Result<()> {
        let Ok(permit) = Arc::clone(&self.shared.clients).try_acquire_owned() else {
            // It keeps its place among those that have not logged in, until it goes.
            let why = "too many clients are logged in";
            return Ok(session.disconnect(Disconnect::TooManyConnections, why, "")?);
        };
        self.permit = Some(permit);
        self.place = None;
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
        let open = Open {
            input: Input::new(&self.account),
            controls: None,
            _task: None,
            setting: Some(Setting {
                channel: Arc::new(channel),
                what: What::new(&self.room),
            }),
        };
        if let Some(setting) = &open.setting {
            self.channels.insert(setting.channel.id(), open);
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
            None => Some(forward::prohibited("there is no such port")),
            Some(port) if !self.grant.permits(host, port) => {
                Some(forward::prohibited("this key may not connect there"))
            }
            Some(_) => None,
        };
        if let Some(failure) = failure {
            reply.reject(failure).await;
            return Ok(());
        }
        self.activity.touch();
        let (_, channel) = channel.split();
        let (id, input) = (channel.id(), Input::new(&self.account));
        let forward = Forward {
            guest: Arc::clone(&self.shared.guest),
            host: host.to_owned(),
            port: port.unwrap_or_default(),
            channel: Arc::new(channel),
            input: Arc::clone(&input),
            activity: Arc::clone(&self.activity),
            refused: self.refused.clone(),
        };
        let open = Open {
            input,
            setting: None,
            controls: None,
            _task: Some(Helper::spawn(forward.run(reply))),
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
        let why = "sockets of the guest's file system cannot be forwarded";
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
        self.activity.touch();
        if let Some(open) = self.channels.get(&id)
            && open.input.push(data).await.is_err()
        {
            // What it has sent goes now, whenever it hangs up.
            self.channels.clear();
            let why = "the client sends more than the guest takes";
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
            .setting(id)
            .is_some_and(|setting| may && setting.set_terminal(term, cells(cols, rows), modes));
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
        let set = self
            .setting(id)
            .is_some_and(|setting| may && setting.set_variable(name, value));
        answer(session, id, set)
    }

    async fn shell_request(&mut self, id: ChannelId, session: &mut Connection) -> Result<()> {
        self.start(id, session, |handler, setting| {
            handler.command(setting, None)
        })
    }

    async fn exec_request(
        &mut self,
        id: ChannelId,
        line: &[u8],
        session: &mut Connection,
    ) -> Result<()> {
        self.start(id, session, |handler, setting| {
            handler.command(setting, Some(line))
        })
    }

    async fn subsystem_request(
        &mut self,
        id: ChannelId,
        name: &str,
        session: &mut Connection,
    ) -> Result<()> {
        self.start(id, session, |handler, setting| {
            if name != "sftp" {
                return None;
            }
            match handler.grant.command {
                Some(_) => handler.command(setting, Some(name.as_bytes())),
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
        let controls = self
            .channels
            .get(&id)
            .and_then(|open| open.controls.as_ref());
        if let Some(controls) = controls {
            controls.resize(cells(cols, rows));
        }
        Ok(())
    }

    /// The library answers as if this were no request of a channel; so the right answer is given here, and it is told that
    /// all is well, to which it adds nothing.
    async fn agent_request(&mut self, id: ChannelId, session: &mut Connection) -> Result<bool> {
        let may = self.grant.agent;
        let setting = self.setting(id).filter(|_| may);
        let given = setting.map(|setting| setting.key_agent = true).is_some();
        answer(session, id, given)?;
        Ok(true)
    }

    async fn tcpip_forward(&mut self, _: &str, _: &mut u32, _: &mut Connection) -> Result<bool> {
        self.refuse(
            "warning: connections to ports of the guest are not forwarded to the client (-R)",
        );
        Ok(false)
    }

    async fn streamlocal_forward(&mut self, _: &str, _: &mut Connection) -> Result<bool> {
        self.refuse(
            "warning: sockets of the guest's file system are not forwarded to the client (-R)",
        );
        Ok(false)
    }

    async fn signal(&mut self, id: ChannelId, signal: Sig, _: &mut Connection) -> Result<()> {
        let controls = self
            .channels
            .get(&id)
            .and_then(|open| open.controls.as_ref());
        if let (Some(controls), Some(signal)) = (controls, signal_number(&signal)) {
            controls.signal(signal);
        }
        Ok(())
    }
}
