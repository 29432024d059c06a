//! Tests of the relay with a harness of clients and an agent.

use super::*;
use msb_wire::exec::ExecRequest;
use msb_wire::frame::{Decoder, FrameHeader, STDIN, STDOUT, flags};
use msb_wire::handshake::operation;
use msb_wire::limits::{HEADER_BYTES, WINDOW_BYTES};
use std::io::{Read, Write};

struct RelayHarness {
    relay: Relay,
    agent: FrameSocket,
    agent_end: UnixStream,
    notices: Vec<RelayNotice>,
}

impl RelayHarness {
    fn new() -> RelayHarness {
        let (ours, agent_end) = UnixStream::pair().unwrap();
        agent_end.set_nonblocking(true).unwrap();
        let hello = Hello::of("supervisor", &[operation::EXEC, operation::STOP]);
        let mut relay = Relay::new(&hello, false).unwrap();
        relay.set_peer(Hello::of("agent", &[operation::EXEC]));
        let mut agent = FrameSocket::new(ours).unwrap();
        relay.open(&mut agent, &mut Vec::new());
        RelayHarness { relay, agent, agent_end, notices: Vec::new() }
    }

    fn client(&mut self) -> (ClientId, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let id = self.relay.add_client(ours).unwrap();
        let mut out = Vec::new();
        let hello = serde_json::to_vec(&Hello::of("client", &[])).unwrap();
        frame::put_message(&mut out, 0, FrameKind::Hello, 0, &hello);
        (&theirs).write_all(&out).unwrap();
        self.relay.read_client(id, &mut self.agent, &mut self.notices);
        (id, theirs)
    }

    fn send(&mut self, id: ClientId, mut socket: &UnixStream, bytes: &[u8]) {
        socket.write_all(bytes).unwrap();
        self.relay.read_client(id, &mut self.agent, &mut self.notices);
    }

    fn open(&mut self, id: ClientId, socket: &UnixStream, stream: u32) {
        let exec = ExecRequest { argv: vec!["x".into()], ..ExecRequest::default() };
        self.request(id, socket, stream, &Request::Exec(exec));
    }

    fn request(&mut self, id: ClientId, socket: &UnixStream, stream: u32, request: &Request) {
        let mut out = Vec::new();
        let message = serde_json::to_vec(request).unwrap();
        frame::put_message(&mut out, stream, FrameKind::Open, 0, &message);
        self.send(id, socket, &out);
    }

    fn at_agent(&mut self) -> Vec<FrameHeader> {
        self.agent.flush().unwrap();
        headers(&self.agent_end)
    }

    fn agent_sends(&mut self, bytes: &[u8]) -> Result<(), ProtocolViolation> {
        let mut decoder = Decoder::new();
        let mut source = bytes;
        decoder.fill(&mut source).unwrap();
        let mut out = Vec::new();
        while let Some(frame) = decoder.next_frame().unwrap() {
            self.relay.agent_frame(frame, &mut out, &mut self.notices)?;
        }
        Ok(())
    }

    fn at_client(&mut self, id: ClientId, socket: &UnixStream) -> Vec<FrameHeader> {
        self.relay.write_client(id, &mut self.agent, &mut self.notices);
        headers(socket)
    }
}

/// Fuzz target for the frames of a hostile agent. Streams towards it: 1 and 2 are commands of a
/// client, the first the main one; 3 belongs to another client, which has gone; 4 is the
/// supervisor's own; 5 is a job to which the first client is attached. Whatever arrives, that
/// client gets complete frames, of streams that it has opened.
pub(crate) fn fuzz_agent_frames(bytes: &[u8]) {
    let mut harness = RelayHarness::new();
    let (id, socket) = harness.client();
    harness.relay.attached = Some(id);
    let exec = ExecRequest { argv: vec!["x".into()], main: true, ..ExecRequest::default() };
    harness.request(id, &socket, 7, &Request::Exec(exec.clone()));
    harness.open(id, &socket, 8);
    let (gone, gone_socket) = harness.client();
    harness.open(gone, &gone_socket, 7);
    drop(gone_socket);
    harness.relay.read_client(gone, &mut harness.agent, &mut harness.notices);
    harness.relay.request(InternalStream::Samples, &Request::Ping, &mut harness.agent).unwrap();
    harness.relay.start_job(1, "job", exec, &mut harness.agent).unwrap();
    assert!(harness.relay.attach_to_job("job", (id, 9), true));
    harness.send(id, &socket, &{
        let mut out = Vec::new();
        frame::put_data(&mut out, 9, STDIN, &[0; 1000]);
        out
    });
    assert_eq!(harness.relay.routes.len(), 5);
    let (mut decoder, mut source) = (Decoder::new(), bytes);
    let mut out = Vec::new();
    'stream: while decoder.fill(&mut source).unwrap() > 0 {
        while let Ok(Some(frame)) = decoder.next_frame() {
            let relayed = harness.relay.agent_frame(frame, &mut out, &mut harness.notices);
            if relayed.is_err() {
                break 'stream;
            }
        }
    }
    // The bytes that go back to the agent are frames, too.
    let (mut decoder, mut source) = (Decoder::new(), &out[..]);
    while decoder.fill(&mut source).unwrap() > 0 {
        while decoder.next_frame().unwrap().is_some() {}
    }
    for header in harness.at_client(id, &socket) {
        assert!([0, 7, 8, 9].contains(&header.stream), "{header:?}");
        assert_eq!(header.stream == 0, header.kind == FrameKind::Hello);
    }
}

fn headers(mut socket: &UnixStream) -> Vec<FrameHeader> {
    socket.set_nonblocking(true).unwrap();
    let mut bytes = Vec::new();
    let _ = socket.read_to_end(&mut bytes);
    let (mut decoder, mut source, mut all) = (Decoder::new(), &bytes[..], Vec::new());
    while decoder.fill(&mut source).unwrap() > 0 {
        while let Some(frame) = decoder.next_frame().unwrap() {
            all.push(frame.header);
        }
    }
    all
}

#[test]
fn input_that_comes_with_the_request_to_attach_reaches_the_job() {
    let mut harness = RelayHarness::new();
    let (id, socket) = harness.client();
    let exec = ExecRequest { argv: vec!["x".into()], stdin: true, ..ExecRequest::default() };
    let started = harness.relay.start_job(1, "job", exec, &mut harness.agent);
    started.unwrap();
    let attach = Request::Attach(msb_wire::job::AttachRequest { job: "job".into(), stdin: true });
    let mut out = Vec::new();
    let message = serde_json::to_vec(&attach).unwrap();
    frame::put_message(&mut out, 9, FrameKind::Open, 0, &message);
    frame::put_data(&mut out, 9, STDIN, b"input");
    harness.send(id, &socket, &out);
    let kinds: Vec<FrameKind> = harness.at_agent().iter().map(|header| header.kind).collect();
    assert_eq!(kinds, [FrameKind::Open, FrameKind::Data]);
}

#[test]
fn a_command_that_its_client_detaches_from_goes_on_as_a_job_with_the_credit_that_is_left() {
    let mut harness = RelayHarness::new();
    let (id, socket) = harness.client();
    let tty = Some(msb_wire::exec::WindowSize { rows: 1, cols: 1 });
    let exec = ExecRequest { argv: vec!["x".into()], tty, stdin: true, ..ExecRequest::default() };
    harness.request(id, &socket, 7, &Request::Exec(exec));
    let stream = harness.at_agent()[0].stream;
    let mut out = Vec::new();
    frame::put_data(&mut out, stream, STDOUT, &[0; 1000]);
    harness.agent_sends(&out).unwrap();
    // The client has used up its credit for the input.
    let mut input = Vec::new();
    for _ in 0..WINDOW_BYTES / 1024 {
        frame::put_data(&mut input, 7, STDIN, &[0; 1024]);
    }
    for part in input.chunks(1024 + HEADER_BYTES) {
        harness.send(id, &socket, part);
        harness.at_agent();
    }
    let detach = msb_wire::job::DetachControl::Detach { timeout_ms: Some(5) };
    let mut out = Vec::new();
    frame::put_message(&mut out, 7, FrameKind::Control, 0, &serde_json::to_vec(&detach).unwrap());
    harness.send(id, &socket, &out);
    let requester = (id, 7);
    assert_eq!(harness.notices, [RelayNotice::Detach { requester, timeout_ms: Some(5) }]);
    assert_eq!(harness.at_agent(), []);
    let job = harness.relay.adopt_command(requester, 1, &mut harness.agent).unwrap();
    assert!(!job.main && job.stdin);
    assert!(harness.relay.adopt_command(requester, 2, &mut harness.agent).is_none());
    // The output that the client had is granted to the agent.
    let granted: Vec<_> = harness.at_agent().iter().map(|h| (h.kind, h.channel)).collect();
    assert_eq!(granted, [(FrameKind::Credit, STDOUT)]);
    // A client that attaches sends no more than the agent takes.
    assert!(harness.relay.attach_to_job(&job.id, (id, 9), true));
    let mut out = Vec::new();
    frame::put_data(&mut out, 9, STDIN, b"more");
    harness.send(id, &socket, &out);
    assert_eq!(harness.at_agent(), []);
    let mut credit = Vec::new();
    frame::put_credit(&mut credit, stream, STDIN, 2);
    harness.agent_sends(&credit).unwrap();
    drop(socket);
    harness.relay.read_client(id, &mut harness.agent, &mut harness.notices);
    assert_eq!(harness.at_agent(), [], "the command is not closed with its client");
    assert!(harness.relay.is_in_use());
}

#[test]
fn input_beyond_the_credit_of_a_terminal_reaches_the_agent_and_the_client_stays() {
    let mut harness = RelayHarness::new();
    let (id, socket) = harness.client();
    let tty = Some(msb_wire::exec::WindowSize { rows: 1, cols: 1 });
    let exec = ExecRequest { argv: vec!["x".into()], tty, stdin: true, ..ExecRequest::default() };
    harness.request(id, &socket, 7, &Request::Exec(exec));
    harness.at_agent();
    for _ in 0..=WINDOW_BYTES / 1024 {
        let mut input = Vec::new();
        frame::put_data(&mut input, 7, STDIN, &[0; 1024]);
        harness.send(id, &socket, &input);
        assert_eq!(harness.at_agent().len(), 1);
    }
    harness.open(id, &socket, 8);
    assert_eq!((harness.at_agent().len(), harness.notices.len()), (1, 0));
}

#[test]
fn a_command_holds_the_sandbox_until_its_end_and_its_client_is_disconnected_on_request() {
    let mut harness = RelayHarness::new();
    let (id, socket) = harness.client();
    let exec = ExecRequest { argv: vec!["x".into()], hold: true, ..ExecRequest::default() };
    harness.request(id, &socket, 7, &Request::Exec(exec));
    assert!(harness.relay.is_held() && harness.relay.has_commands());
    let stream = harness.at_agent()[0].stream;
    let mut out = Vec::new();
    let ended = ExecEvent::Exited { code: Some(0), signal: None, oom_killed: false };
    let ended = serde_json::to_vec(&ended).unwrap();
    frame::put_message(&mut out, stream, FrameKind::Event, flags::END, &ended);
    harness.agent_sends(&out).unwrap();
    assert!(!harness.relay.is_held() && !harness.relay.has_commands());
    assert_eq!(std::mem::take(&mut harness.notices), [RelayNotice::HoldEnded(id)]);
    harness.relay.finish_client(id, &mut harness.agent, &mut harness.notices);
    assert_eq!(harness.notices, [RelayNotice::Gone(id)]);
    // The hello, the last event, and the end of the connection.
    assert_eq!(headers(&socket).len(), 2);
    assert_eq!((&socket).read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn new_commands_are_refused_at_the_end_and_those_that_run_go_on() {
    let mut harness = RelayHarness::new();
    let (id, socket) = harness.client();
    harness.open(id, &socket, 1);
    harness.relay.close_to_commands();
    harness.open(id, &socket, 2);
    assert_eq!(harness.at_agent().len(), 1);
    let answer = harness.at_client(id, &socket).pop().unwrap();
    assert_eq!((answer.kind, answer.stream, answer.ends()), (FrameKind::Event, 2, true));
    assert!(harness.relay.has_commands());
}

#[test]
fn streams_of_two_clients_with_the_same_number_stay_apart() {
    let mut harness = RelayHarness::new();
    let (one, one_socket) = harness.client();
    let (two, two_socket) = harness.client();
    harness.open(one, &one_socket, 1);
    harness.open(two, &two_socket, 1);
    let opened: Vec<u32> = harness.at_agent().iter().map(|header| header.stream).collect();
    assert_eq!(opened.len(), 2);
    assert_ne!(opened[0], opened[1]);
    let mut out = Vec::new();
    frame::put_data(&mut out, opened[1], STDOUT, b"for two");
    harness.agent_sends(&out).unwrap();
    let kinds =
        |headers: Vec<FrameHeader>| headers.iter().map(|h| (h.kind, h.stream)).collect::<Vec<_>>();
    assert_eq!(kinds(harness.at_client(one, &one_socket)), [(FrameKind::Hello, 0)]);
    assert_eq!(
        kinds(harness.at_client(two, &two_socket)),
        [(FrameKind::Hello, 0), (FrameKind::Data, 1)]
    );
}

#[test]
fn a_client_that_goes_has_its_streams_closed_and_what_still_comes_for_them_is_dropped() {
    let mut harness = RelayHarness::new();
    let (id, socket) = harness.client();
    harness.open(id, &socket, 5);
    let stream = harness.at_agent()[0].stream;
    drop(socket);
    harness.relay.read_client(id, &mut harness.agent, &mut harness.notices);
    assert_eq!(harness.notices, [RelayNotice::Gone(id)]);
    assert_eq!(
        harness.at_agent().iter().map(|h| (h.kind, h.stream)).collect::<Vec<_>>(),
        [(FrameKind::Close, stream)]
    );
    let mut out = Vec::new();
    frame::put_data(&mut out, stream, STDOUT, b"late");
    frame::put_message(&mut out, stream, FrameKind::Event, frame::flags::END, b"{}");
    harness.agent_sends(&out).unwrap();
    assert!(harness.agent_sends(&out).is_err(), "the stream is over");
}

#[test]
fn an_agent_that_sends_without_credit_is_detected() {
    let mut harness = RelayHarness::new();
    let (id, socket) = harness.client();
    harness.open(id, &socket, 1);
    let stream = harness.at_agent()[0].stream;
    let part = vec![0; 60 * 1024];
    let mut out = Vec::new();
    frame::put_data(&mut out, stream, STDOUT, &part);
    for _ in 0..WINDOW_BYTES as usize / part.len() {
        harness.agent_sends(&out).unwrap();
    }
    assert!(harness.agent_sends(&out).is_err());
}

#[test]
fn a_client_that_grants_what_it_never_got_is_cut_off() {
    let mut harness = RelayHarness::new();
    let (id, socket) = harness.client();
    harness.open(id, &socket, 1);
    let mut out = Vec::new();
    frame::put_credit(&mut out, 1, STDIN, 1);
    harness.send(id, &socket, &out);
    assert_eq!(harness.notices, [RelayNotice::Gone(id)]);
}

#[test]
fn a_request_to_stop_is_for_the_supervisor_and_others_are_not_for_clients() {
    let mut harness = RelayHarness::new();
    let (id, socket) = harness.client();
    let mut out = Vec::new();
    frame::put_message(&mut out, 1, FrameKind::Open, 0, br#"{"op":"stop","timeout_ms":5}"#);
    frame::put_message(&mut out, 2, FrameKind::Open, 0, br#"{"op":"shutdown"}"#);
    frame::put_message(&mut out, 3, FrameKind::Open, 0, br#"{"op":"teleport"}"#);
    harness.send(id, &socket, &out);
    assert_eq!(harness.notices, [RelayNotice::Stop { client: id, stream: 1, timeout_ms: 5 }]);
    let ended: Vec<u32> = harness
        .at_client(id, &socket)
        .iter()
        .filter(|h| h.kind == FrameKind::Event && h.ends())
        .map(|h| h.stream)
        .collect();
    assert_eq!(ended, [2, 3]);
    assert!(harness.at_agent().is_empty());
}

#[test]
fn what_a_client_sends_behind_its_request_is_not_lost_while_the_guest_boots() {
    let mut harness = RelayHarness::new();
    harness.relay.open = false;
    let (id, socket) = harness.client();
    let request = Request::Exec(ExecRequest { argv: vec!["cat".into()], ..ExecRequest::default() });
    let mut out = Vec::new();
    let message = serde_json::to_vec(&request).unwrap();
    frame::put_message(&mut out, 1, FrameKind::Open, 0, &message);
    frame::put_frame(&mut out, 1, FrameKind::Data, STDIN, frame::flags::END, b"x");
    harness.send(id, &socket, &out);
    assert!(harness.at_agent().is_empty());
    harness.relay.open(&mut harness.agent, &mut harness.notices);
    let kinds: Vec<FrameKind> = harness.at_agent().iter().map(|header| header.kind).collect();
    assert_eq!(kinds, [FrameKind::Open, FrameKind::Data]);
}

#[test]
fn a_client_that_says_no_hello_or_nonsense_is_cut_off() {
    let mut harness = RelayHarness::new();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let id = harness.relay.add_client(ours).unwrap();
    harness.send(id, &theirs, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(harness.notices, [RelayNotice::Gone(id)]);
}

#[test]
fn what_the_agent_does_not_serve_is_refused_and_the_rest_goes_on() {
    let mut harness = RelayHarness::new();
    let (id, socket) = harness.client();
    harness.request(id, &socket, 5, &Request::Ping);
    assert!(harness.at_agent().is_empty());
    harness.open(id, &socket, 6);
    assert_eq!(harness.at_agent().len(), 1);
    harness.relay.set_peer(Hello::of("agent", &[operation::PING]));
    harness.request(id, &socket, 7, &Request::Ping);
    assert_eq!(harness.at_agent().len(), 1);
}

#[test]
fn an_agent_from_before_limits_is_not_asked_for_one() {
    let mut harness = RelayHarness::new();
    let (id, socket) = harness.client();
    let limit =
        msb_wire::exec::Rlimit { resource: "nofile".to_owned(), soft: Some(64), hard: Some(64) };
    let exec = ExecRequest {
        argv: vec!["x".into()],
        rlimits: vec![limit],
        log: true,
        ..ExecRequest::default()
    };
    let request = Request::Exec(exec);
    harness.request(id, &socket, 5, &request);
    assert!(harness.at_agent().is_empty(), "it would pass over the limit");
    let operations = [operation::EXEC, operation::EXEC_RLIMIT];
    harness.relay.set_peer(Hello::of("agent", &operations));
    harness.request(id, &socket, 6, &request);
    assert_eq!(harness.at_agent().len(), 1, "the log is the supervisor's");
}

#[test]
fn a_sandbox_is_in_use_while_a_call_is_open_and_when_something_has_passed() {
    let mut harness = RelayHarness::new();
    assert!(!harness.relay.is_in_use());
    let (id, socket) = harness.client();
    assert!(!harness.relay.is_in_use(), "a connection alone is no use");
    harness.open(id, &socket, 5);
    assert!(harness.relay.is_in_use() && harness.relay.is_in_use());
    drop(socket);
    harness.relay.read_client(id, &mut harness.agent, &mut harness.notices);
    assert!(!harness.relay.is_in_use());
}

#[test]
fn an_agent_that_floods_a_client_which_does_not_read_is_detected() {
    let mut harness = RelayHarness::new();
    let (id, socket) = harness.client();
    harness.open(id, &socket, 5);
    let stream = harness.at_agent()[0].stream;
    let mut out = Vec::new();
    frame::put_frame(&mut out, stream, FrameKind::Event, 0, 0, &[b' '; 60_000]);
    let sent = (0..2 * CLIENT_QUEUE_BYTES_MAX / out.len())
        .take_while(|_| harness.agent_sends(&out).is_ok())
        .count();
    let bytes = sent * out.len();
    assert!((CLIENT_QUEUE_BYTES_MAX / 2..=CLIENT_QUEUE_BYTES_MAX).contains(&bytes), "{bytes}");
}

/// A pseudo-random generator with reproducible numbers (SplitMix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((value ^ (value >> 31)) % sides as u64) as usize
    }
}

/// Returns a frame with a mostly well-formed header and an arbitrary payload.
fn any_frame(dice: &mut Dice, kinds: &[FrameKind], streams: &[u32]) -> Vec<u8> {
    let kind = kinds[dice.roll(kinds.len())];
    let stream = streams[dice.roll(streams.len())];
    let has_channel = matches!(kind, FrameKind::Data | FrameKind::Credit);
    let channel = if has_channel { dice.roll(CHANNELS) as u8 } else { 0 };
    let flag = [0, 0, frame::flags::END, frame::flags::MORE][dice.roll(4)];
    let payload = match (kind, dice.roll(4)) {
        (FrameKind::Credit, _) => (dice.roll(1 << 17) as u32).to_be_bytes().to_vec(),
        (FrameKind::Data, 0) => vec![0; dice.roll(60_000)],
        (FrameKind::Data, _) => vec![0; dice.roll(300)],
        (FrameKind::Close, _) => Vec::new(),
        (_, 0) => br#"{"type":"exited","code":0}"#.to_vec(),
        (_, 1) => br#"{"type":"started","pid":1}"#.to_vec(),
        (_, 2) => br#"{"op":"exec","argv":["x"]}"#.to_vec(),
        _ => vec![dice.roll(256) as u8; dice.roll(50)],
    };
    let mut out = Vec::new();
    frame::put_frame(&mut out, stream, kind, channel, flag, &payload);
    if dice.roll(40) == 0 {
        let at = dice.roll(out.len());
        out[at] = dice.roll(256) as u8;
    }
    out
}

/// Passes the agent's bytes to the relay as the supervisor does. An error is the end of the
/// sandbox.
fn hostile_agent(harness: &mut RelayHarness, bytes: &[u8]) -> Result<(), String> {
    let mut decoder = Decoder::new();
    decoder.fill(&mut &bytes[..]).unwrap();
    let mut out = Vec::new();
    while let Some(frame) = decoder.next_frame().map_err(|error| error.to_string())? {
        let taken = harness.relay.agent_frame(frame, &mut out, &mut harness.notices);
        taken.map_err(|ProtocolViolation(what)| what)?;
    }
    Ok(())
}

/// No frame of either side breaks the relay, and the memory that each can make it use is bounded.
/// The agent of one client's sandbox lies; a client lies at the expense of another.
#[test]
fn invalid_frames_of_either_side_end_only_their_own_connection() {
    let agents = [
        FrameKind::Data,
        FrameKind::Data,
        FrameKind::Event,
        FrameKind::Credit,
        FrameKind::Hello,
        FrameKind::Close,
    ];
    let clients = [
        FrameKind::Data,
        FrameKind::Credit,
        FrameKind::Control,
        FrameKind::Close,
        FrameKind::Open,
        FrameKind::Hello,
    ];
    let (mut found_out, mut cut_off) = (0, 0);
    for seed in 0..400 {
        let mut dice = Dice(seed);
        let mut harness = RelayHarness::new();
        let (honest, honest_socket) = harness.client();
        let (liar, liar_socket) = harness.client();
        for stream in 1..4 {
            harness.open(honest, &honest_socket, stream);
            harness.open(liar, &liar_socket, stream);
        }
        let opened: Vec<u32> = harness.at_agent().iter().map(|header| header.stream).collect();
        // Mostly streams that are open, and one that is not.
        let agent_streams: Vec<u32> = opened.iter().copied().cycle().take(40).chain([99]).collect();
        let streams = [1, 2, 3, 4, 0];
        for _ in 0..60 {
            let frame = any_frame(&mut dice, &agents, &agent_streams);
            if hostile_agent(&mut harness, &frame).is_err() {
                found_out += 1;
                break;
            }
            let frame = any_frame(&mut dice, &clients, &streams);
            let there = harness.relay.clients.contains_key(&liar);
            if there && (&liar_socket).write_all(&frame).is_ok() {
                harness.relay.read_client(liar, &mut harness.agent, &mut harness.notices);
            }
            assert!(harness.relay.clients.contains_key(&honest), "seed {seed}");
            assert!(harness.agent.queued() < 8 * 1024 * 1024, "seed {seed}");
        }
        cut_off += usize::from(!harness.relay.clients.contains_key(&liar));
    }
    assert!(found_out > 100 && cut_off > 100, "{found_out} {cut_off}");
}

#[test]
fn requests_are_refused_while_the_guest_is_paused_and_a_client_can_resume_it() {
    let mut harness = RelayHarness::new();
    let (id, socket) = harness.client();
    harness.open(id, &socket, 7);
    let (other, other_socket) = harness.client();
    harness.at_agent();
    harness.at_client(other, &other_socket);
    assert!(!harness.relay.may_resume(other));
    harness.relay.pause(Some("the sandbox 'x' is paused".to_owned()));
    harness.open(other, &other_socket, 9);
    assert_eq!(harness.at_agent(), []);
    let answers = harness.at_client(other, &other_socket);
    assert_eq!((answers[0].kind, answers[0].stream), (FrameKind::Event, 9));
    // A client with a stream may fill the agent's queue.
    assert!(harness.relay.may_resume(other) && !harness.relay.may_resume(id));
    harness.request(other, &other_socket, 11, &Request::Resume);
    let requester = (other, 11);
    assert_eq!(harness.notices, [RelayNotice::Resume { requester }]);
    harness.relay.pause(None);
    harness.open(other, &other_socket, 13);
    assert_eq!(harness.at_agent().len(), 1);
}

#[test]
fn commands_that_were_saved_go_on_in_another_relay() {
    let mut old = RelayHarness::new();
    let (id, socket) = old.client();
    old.relay.attached = Some(id);
    let exec = ExecRequest { argv: vec!["x".into()], main: true, ..ExecRequest::default() };
    old.request(id, &socket, 7, &Request::Exec(exec.clone()));
    old.open(id, &socket, 8);
    old.relay.start_job(3, "job", exec, &mut old.agent).unwrap();
    let commands = old.relay.open_commands();
    let kept: Vec<_> = commands.iter().map(|command| (command.job, command.main)).collect();
    // The other command of the client ends with it.
    assert_eq!(kept, [(None, true), (Some(3), false)]);

    let mut new = RelayHarness::new();
    for command in &commands {
        new.relay.adopt_open(command);
    }
    // New streams have other numbers.
    let (id, socket) = new.client();
    new.open(id, &socket, 1);
    let opened = new.at_agent();
    assert!(commands.iter().all(|command| command.stream != opened[0].stream), "{opened:?}");
    let mut out = Vec::new();
    for command in &commands {
        frame::put_data(&mut out, command.stream, STDOUT, b"more");
    }
    let ended = serde_json::json!({ "type": "exited", "code": 0 });
    let ended = serde_json::to_vec(&ended).unwrap();
    frame::put_message(&mut out, commands[0].stream, FrameKind::Event, frame::flags::END, &ended);
    new.agent_sends(&out).unwrap();
    assert!(new.notices.iter().any(|notice| matches!(
        notice,
        RelayNotice::Output { session: Some(session), .. } if session == "job"
    )));
    assert!(new.notices.iter().any(|notice| matches!(notice, RelayNotice::MainEnded(_))));
    assert_eq!(new.relay.open_commands(), commands[1..]);
}
