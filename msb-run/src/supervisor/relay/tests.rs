//! The relay between a bench of clients and an agent.

use super::*;
use msb_wire::exec::ExecRequest;
use msb_wire::frame::{Decoder, Header, STDIN, STDOUT};
use msb_wire::handshake::operation;
use msb_wire::limits::WINDOW_BYTES;
use std::io::{Read, Write};

struct Bench {
    relay: Relay,
    agent: Link,
    agent_end: UnixStream,
    notices: Vec<Notice>,
}

impl Bench {
    fn new() -> Bench {
        let (ours, agent_end) = UnixStream::pair().unwrap();
        agent_end.set_nonblocking(true).unwrap();
        let hello = Hello::of("supervisor", &[operation::EXEC, operation::STOP]);
        let mut relay = Relay::new(&hello, false).unwrap();
        relay.meet(Hello::of("agent", &[operation::EXEC]));
        let mut agent = Link::new(ours).unwrap();
        relay.open(&mut agent, &mut Vec::new());
        Bench {
            relay,
            agent,
            agent_end,
            notices: Vec::new(),
        }
    }

    fn client(&mut self) -> (ClientId, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let id = self.relay.add_client(ours).unwrap();
        let mut out = Vec::new();
        let hello = serde_json::to_vec(&Hello::of("client", &[])).unwrap();
        frame::put_message(&mut out, 0, Kind::Hello, 0, &hello);
        (&theirs).write_all(&out).unwrap();
        self.relay
            .read_client(id, &mut self.agent, &mut self.notices);
        (id, theirs)
    }

    fn send(&mut self, id: ClientId, mut socket: &UnixStream, bytes: &[u8]) {
        socket.write_all(bytes).unwrap();
        self.relay
            .read_client(id, &mut self.agent, &mut self.notices);
    }

    fn open(&mut self, id: ClientId, socket: &UnixStream, stream: u32) {
        let exec = ExecRequest {
            argv: vec!["x".into()],
            ..ExecRequest::default()
        };
        self.request(id, socket, stream, &Request::Exec(exec));
    }

    fn request(&mut self, id: ClientId, socket: &UnixStream, stream: u32, request: &Request) {
        let mut out = Vec::new();
        let message = serde_json::to_vec(request).unwrap();
        frame::put_message(&mut out, stream, Kind::Open, 0, &message);
        self.send(id, socket, &out);
    }

    fn at_agent(&mut self) -> Vec<Header> {
        self.agent.flush().unwrap();
        headers(&self.agent_end)
    }

    fn agent_sends(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        let mut decoder = Decoder::new();
        let mut source = bytes;
        decoder.fill(&mut source).unwrap();
        let mut out = Vec::new();
        while let Some(frame) = decoder.next_frame().unwrap() {
            self.relay.agent_frame(frame, &mut out, &mut self.notices)?;
        }
        Ok(())
    }

    fn at_client(&mut self, id: ClientId, socket: &UnixStream) -> Vec<Header> {
        self.relay
            .write_client(id, &mut self.agent, &mut self.notices);
        headers(socket)
    }
}

/// What a hostile agent sends. Streams towards it: 1 and 2 are commands of a client, the first the main one; 3 is one of
/// another client, who has gone; 4 is the supervisor's own, and 5 a job to which the first client is attached. Whatever
/// comes, that client gets whole frames, of streams that it has opened.
pub(crate) fn door(bytes: &[u8]) {
    let mut bench = Bench::new();
    let (id, socket) = bench.client();
    bench.relay.attached = Some(id);
    let exec = ExecRequest {
        argv: vec!["x".into()],
        main: true,
        ..ExecRequest::default()
    };
    bench.request(id, &socket, 7, &Request::Exec(exec.clone()));
    bench.open(id, &socket, 8);
    let (gone, gone_socket) = bench.client();
    bench.open(gone, &gone_socket, 7);
    drop(gone_socket);
    bench
        .relay
        .read_client(gone, &mut bench.agent, &mut bench.notices);
    bench
        .relay
        .request(Own::Samples, &Request::Ping, &mut bench.agent)
        .unwrap();
    bench
        .relay
        .start_job(1, "job", exec, &mut bench.agent)
        .unwrap();
    assert!(bench.relay.attach_to_job("job", (id, 9), true));
    bench.send(id, &socket, &{
        let mut out = Vec::new();
        frame::put_data(&mut out, 9, STDIN, &[0; 1000]);
        out
    });
    assert_eq!(bench.relay.routes.len(), 5);
    let (mut decoder, mut source) = (Decoder::new(), bytes);
    let mut out = Vec::new();
    'stream: while decoder.fill(&mut source).unwrap() > 0 {
        while let Ok(Some(frame)) = decoder.next_frame() {
            let relayed = bench.relay.agent_frame(frame, &mut out, &mut bench.notices);
            if relayed.is_err() {
                break 'stream;
            }
        }
    }
    // What goes back to the agent are frames, too.
    let (mut decoder, mut source) = (Decoder::new(), &out[..]);
    while decoder.fill(&mut source).unwrap() > 0 {
        while decoder.next_frame().unwrap().is_some() {}
    }
    for header in bench.at_client(id, &socket) {
        assert!([0, 7, 8, 9].contains(&header.stream), "{header:?}");
        assert_eq!(header.stream == 0, header.kind == Kind::Hello);
    }
}

fn headers(mut socket: &UnixStream) -> Vec<Header> {
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
    let mut bench = Bench::new();
    let (id, socket) = bench.client();
    let exec = ExecRequest {
        argv: vec!["x".into()],
        stdin: true,
        ..ExecRequest::default()
    };
    let started = bench.relay.start_job(1, "job", exec, &mut bench.agent);
    started.unwrap();
    let attach = Request::Attach(msb_wire::job::AttachRequest {
        job: "job".into(),
        stdin: true,
    });
    let mut out = Vec::new();
    let message = serde_json::to_vec(&attach).unwrap();
    frame::put_message(&mut out, 9, Kind::Open, 0, &message);
    frame::put_data(&mut out, 9, STDIN, b"input");
    bench.send(id, &socket, &out);
    let kinds: Vec<Kind> = bench.at_agent().iter().map(|header| header.kind).collect();
    assert_eq!(kinds, [Kind::Open, Kind::Data]);
}

#[test]
fn streams_of_two_clients_with_the_same_number_stay_apart() {
    let mut bench = Bench::new();
    let (one, one_socket) = bench.client();
    let (two, two_socket) = bench.client();
    bench.open(one, &one_socket, 1);
    bench.open(two, &two_socket, 1);
    let opened: Vec<u32> = bench
        .at_agent()
        .iter()
        .map(|header| header.stream)
        .collect();
    assert_eq!(opened.len(), 2);
    assert_ne!(opened[0], opened[1]);
    let mut out = Vec::new();
    frame::put_data(&mut out, opened[1], STDOUT, b"for two");
    bench.agent_sends(&out).unwrap();
    let kinds = |headers: Vec<Header>| {
        headers
            .iter()
            .map(|h| (h.kind, h.stream))
            .collect::<Vec<_>>()
    };
    assert_eq!(kinds(bench.at_client(one, &one_socket)), [(Kind::Hello, 0)]);
    assert_eq!(
        kinds(bench.at_client(two, &two_socket)),
        [(Kind::Hello, 0), (Kind::Data, 1)]
    );
}

#[test]
fn a_client_that_goes_has_its_streams_closed_and_what_still_comes_for_them_is_dropped() {
    let mut bench = Bench::new();
    let (id, socket) = bench.client();
    bench.open(id, &socket, 5);
    let stream = bench.at_agent()[0].stream;
    drop(socket);
    bench
        .relay
        .read_client(id, &mut bench.agent, &mut bench.notices);
    assert_eq!(bench.notices, [Notice::Gone(id)]);
    assert_eq!(
        bench
            .at_agent()
            .iter()
            .map(|h| (h.kind, h.stream))
            .collect::<Vec<_>>(),
        [(Kind::Close, stream)]
    );
    let mut out = Vec::new();
    frame::put_data(&mut out, stream, STDOUT, b"late");
    frame::put_message(&mut out, stream, Kind::Event, frame::flags::END, b"{}");
    bench.agent_sends(&out).unwrap();
    assert!(bench.agent_sends(&out).is_err(), "the stream is over");
}

#[test]
fn an_agent_that_sends_without_credit_is_found_out() {
    let mut bench = Bench::new();
    let (id, socket) = bench.client();
    bench.open(id, &socket, 1);
    let stream = bench.at_agent()[0].stream;
    let part = vec![0; 60 * 1024];
    let mut out = Vec::new();
    frame::put_data(&mut out, stream, STDOUT, &part);
    for _ in 0..WINDOW_BYTES as usize / part.len() {
        bench.agent_sends(&out).unwrap();
    }
    assert!(bench.agent_sends(&out).is_err());
}

#[test]
fn a_client_that_grants_what_it_never_got_is_cut_off() {
    let mut bench = Bench::new();
    let (id, socket) = bench.client();
    bench.open(id, &socket, 1);
    let mut out = Vec::new();
    frame::put_credit(&mut out, 1, STDIN, 1);
    bench.send(id, &socket, &out);
    assert_eq!(bench.notices, [Notice::Gone(id)]);
}

#[test]
fn a_request_to_stop_is_for_the_supervisor_and_others_are_not_for_clients() {
    let mut bench = Bench::new();
    let (id, socket) = bench.client();
    let mut out = Vec::new();
    frame::put_message(
        &mut out,
        1,
        Kind::Open,
        0,
        br#"{"op":"stop","timeout_ms":5}"#,
    );
    frame::put_message(&mut out, 2, Kind::Open, 0, br#"{"op":"shutdown"}"#);
    frame::put_message(&mut out, 3, Kind::Open, 0, br#"{"op":"teleport"}"#);
    bench.send(id, &socket, &out);
    assert_eq!(
        bench.notices,
        [Notice::Stop {
            client: id,
            stream: 1,
            timeout_ms: 5
        }]
    );
    let ended: Vec<u32> = bench
        .at_client(id, &socket)
        .iter()
        .filter(|h| h.kind == Kind::Event && h.ends())
        .map(|h| h.stream)
        .collect();
    assert_eq!(ended, [2, 3]);
    assert!(bench.at_agent().is_empty());
}

#[test]
fn what_a_client_sends_behind_its_request_is_not_lost_while_the_guest_boots() {
    let mut bench = Bench::new();
    bench.relay.open = false;
    let (id, socket) = bench.client();
    let request = Request::Exec(ExecRequest {
        argv: vec!["cat".into()],
        ..ExecRequest::default()
    });
    let mut out = Vec::new();
    let message = serde_json::to_vec(&request).unwrap();
    frame::put_message(&mut out, 1, Kind::Open, 0, &message);
    frame::put_frame(&mut out, 1, Kind::Data, STDIN, frame::flags::END, b"x");
    bench.send(id, &socket, &out);
    assert!(bench.at_agent().is_empty());
    bench.relay.open(&mut bench.agent, &mut bench.notices);
    let kinds: Vec<Kind> = bench.at_agent().iter().map(|header| header.kind).collect();
    assert_eq!(kinds, [Kind::Open, Kind::Data]);
}

#[test]
fn a_client_that_says_no_hello_or_nonsense_is_cut_off() {
    let mut bench = Bench::new();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let id = bench.relay.add_client(ours).unwrap();
    bench.send(id, &theirs, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(bench.notices, [Notice::Gone(id)]);
}

#[test]
fn what_the_agent_does_not_serve_is_refused_and_the_rest_goes_on() {
    let mut bench = Bench::new();
    let (id, socket) = bench.client();
    bench.request(id, &socket, 5, &Request::Ping);
    assert!(bench.at_agent().is_empty());
    bench.open(id, &socket, 6);
    assert_eq!(bench.at_agent().len(), 1);
    bench.relay.meet(Hello::of("agent", &[operation::PING]));
    bench.request(id, &socket, 7, &Request::Ping);
    assert_eq!(bench.at_agent().len(), 1);
}

#[test]
fn an_agent_from_before_limits_is_not_asked_for_one() {
    let mut bench = Bench::new();
    let (id, socket) = bench.client();
    let limit = msb_wire::exec::Rlimit {
        resource: "nofile".to_owned(),
        soft: Some(64),
        hard: Some(64),
    };
    let exec = ExecRequest {
        argv: vec!["x".into()],
        rlimits: vec![limit],
        log: true,
        ..ExecRequest::default()
    };
    let request = Request::Exec(exec);
    bench.request(id, &socket, 5, &request);
    assert!(bench.at_agent().is_empty(), "it would pass over the limit");
    let operations = [operation::EXEC, operation::EXEC_RLIMIT];
    bench.relay.meet(Hello::of("agent", &operations));
    bench.request(id, &socket, 6, &request);
    assert_eq!(bench.at_agent().len(), 1, "the log is the supervisor's");
}

#[test]
fn a_sandbox_is_in_use_while_a_call_is_open_and_when_something_has_passed() {
    let mut bench = Bench::new();
    assert!(!bench.relay.is_in_use());
    let (id, socket) = bench.client();
    assert!(!bench.relay.is_in_use(), "a connection alone is no use");
    bench.open(id, &socket, 5);
    assert!(bench.relay.is_in_use() && bench.relay.is_in_use());
    drop(socket);
    bench
        .relay
        .read_client(id, &mut bench.agent, &mut bench.notices);
    assert!(!bench.relay.is_in_use());
}

#[test]
fn an_agent_that_floods_a_client_which_does_not_read_is_found_out() {
    let mut bench = Bench::new();
    let (id, socket) = bench.client();
    bench.open(id, &socket, 5);
    let stream = bench.at_agent()[0].stream;
    let mut out = Vec::new();
    frame::put_frame(&mut out, stream, Kind::Event, 0, 0, &[b' '; 60_000]);
    let sent = (0..2 * CLIENT_QUEUE_BYTES_MAX / out.len())
        .take_while(|_| bench.agent_sends(&out).is_ok())
        .count();
    let bytes = sent * out.len();
    assert!(
        (CLIENT_QUEUE_BYTES_MAX / 2..=CLIENT_QUEUE_BYTES_MAX).contains(&bytes),
        "{bytes}"
    );
}

/// Numbers that look random and are the same each time (SplitMix64).
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

/// A frame with a header that is well formed as a rule, and a payload that need not be.
fn any_frame(dice: &mut Dice, kinds: &[Kind], streams: &[u32]) -> Vec<u8> {
    let kind = kinds[dice.roll(kinds.len())];
    let stream = streams[dice.roll(streams.len())];
    let has_channel = matches!(kind, Kind::Data | Kind::Credit);
    let channel = if has_channel {
        dice.roll(CHANNELS) as u8
    } else {
        0
    };
    let flag = [0, 0, frame::flags::END, frame::flags::MORE][dice.roll(4)];
    let payload = match (kind, dice.roll(4)) {
        (Kind::Credit, _) => (dice.roll(1 << 17) as u32).to_be_bytes().to_vec(),
        (Kind::Data, 0) => vec![0; dice.roll(60_000)],
        (Kind::Data, _) => vec![0; dice.roll(300)],
        (Kind::Close, _) => Vec::new(),
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

/// Takes what an agent sent, as the supervisor does; an error is the end of the sandbox.
fn hostile_agent(bench: &mut Bench, bytes: &[u8]) -> Result<(), String> {
    let mut decoder = Decoder::new();
    decoder.fill(&mut &bytes[..]).unwrap();
    let mut out = Vec::new();
    while let Some(frame) = decoder.next_frame().map_err(|error| error.to_string())? {
        let taken = bench.relay.agent_frame(frame, &mut out, &mut bench.notices);
        taken.map_err(|Violation(what)| what)?;
    }
    Ok(())
}

/// No frame of either side breaks the relay, and what each may make it keep has a bound. The agent of one client's
/// sandbox lies; a client lies to the other's cost.
#[test]
fn liars_on_both_sides_end_their_own_connection_and_nothing_else() {
    let agents = [
        Kind::Data,
        Kind::Data,
        Kind::Event,
        Kind::Credit,
        Kind::Hello,
        Kind::Close,
    ];
    let clients = [
        Kind::Data,
        Kind::Credit,
        Kind::Control,
        Kind::Close,
        Kind::Open,
        Kind::Hello,
    ];
    let (mut found_out, mut cut_off) = (0, 0);
    for seed in 0..400 {
        let mut dice = Dice(seed);
        let mut bench = Bench::new();
        let (honest, honest_socket) = bench.client();
        let (liar, liar_socket) = bench.client();
        for stream in 1..4 {
            bench.open(honest, &honest_socket, stream);
            bench.open(liar, &liar_socket, stream);
        }
        let opened: Vec<u32> = bench
            .at_agent()
            .iter()
            .map(|header| header.stream)
            .collect();
        // Streams that are open, as a rule; and one that is not.
        let towards: Vec<u32> = opened
            .iter()
            .copied()
            .cycle()
            .take(40)
            .chain([99])
            .collect();
        let own = [1, 2, 3, 4, 0];
        for _ in 0..60 {
            let frame = any_frame(&mut dice, &agents, &towards);
            if hostile_agent(&mut bench, &frame).is_err() {
                found_out += 1;
                break;
            }
            let frame = any_frame(&mut dice, &clients, &own);
            let there = bench.relay.clients.contains_key(&liar);
            if there && (&liar_socket).write_all(&frame).is_ok() {
                bench
                    .relay
                    .read_client(liar, &mut bench.agent, &mut bench.notices);
            }
            assert!(bench.relay.clients.contains_key(&honest), "seed {seed}");
            assert!(bench.agent.queued() < 8 * 1024 * 1024, "seed {seed}");
        }
        cut_off += usize::from(!bench.relay.clients.contains_key(&liar));
    }
    assert!(found_out > 100 && cut_off > 100, "{found_out} {cut_off}");
}

#[test]
fn requests_are_refused_while_the_guest_is_paused_and_a_client_can_resume_it() {
    let mut bench = Bench::new();
    let (id, socket) = bench.client();
    bench.open(id, &socket, 7);
    let (other, other_socket) = bench.client();
    bench.at_agent();
    bench.at_client(other, &other_socket);
    assert!(!bench.relay.may_resume(other));
    bench
        .relay
        .pause(Some("the sandbox 'x' is paused".to_owned()));
    bench.open(other, &other_socket, 9);
    assert_eq!(bench.at_agent(), []);
    let answers = bench.at_client(other, &other_socket);
    assert_eq!((answers[0].kind, answers[0].stream), (Kind::Event, 9));
    // A client with a call may fill what waits for the agent.
    assert!(bench.relay.may_resume(other) && !bench.relay.may_resume(id));
    bench.request(other, &other_socket, 11, &Request::Resume);
    let asker = (other, 11);
    assert_eq!(bench.notices, [Notice::Resume { asker }]);
    bench.relay.pause(None);
    bench.open(other, &other_socket, 13);
    assert_eq!(bench.at_agent().len(), 1);
}
