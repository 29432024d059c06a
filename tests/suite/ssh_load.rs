//! An SSH server under load, and the clients that it must not disturb.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};

use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};

use crate::ssh::{client, give_key, serve, server_of, stderr};
use crate::ssh_clients::workshop;
use crate::support::{Guests, Outcome, PATIENCE, Random, Running, wait_until};

/// Most memory that the server may ever have had, in KiB.
const PEAK_KIB_MAX: u64 = 256 * 1024;

fn ssh(port: u16) -> String {
    client("one", port)
}

const MIB: usize = 1 << 20;

/// Bytes that are forwarded through one connection.
const MUCH_MIB: u64 = 1024;

/// As many open files as this user may have.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    setrlimit(Resource::Nofile, raised).unwrap();
}

fn gets_in(guests: &Guests, port: u16) {
    guests.shell(&format!("{} echo in", ssh(port))).is(0, "in\n", "");
}

#[test]
fn floods_of_those_who_have_no_key_do_not_keep_out_who_has_one() {
    raise_open_files();
    let guests = Guests::one();
    give_key(&guests);
    let (_server, port) = serve(&guests);
    let connect = || TcpStream::connect(("127.0.0.1", port)).unwrap();
    // Half open: they say nothing at all.
    let silent: Vec<TcpStream> = (0..1000).map(|_| connect()).collect();
    gets_in(&guests, port);
    drop(silent);
    // Slow: each has begun, and goes on a byte at a time while the user comes.
    let mut slow: Vec<TcpStream> = (0..200).map(|_| connect()).collect();
    for byte in *b"SSH-2.0-slow" {
        // Who was driven out cannot go on, which is the point.
        slow.retain_mut(|stream| stream.write_all(&[byte]).is_ok());
        if byte == b'-' {
            gets_in(&guests, port);
        }
    }
    assert!(!slow.is_empty() && slow.len() < 200, "{} are left", slow.len());
    drop(slow);
    wrong_keys(&guests, port);
    let peak = server_of(&guests).peak_kib().unwrap();
    eprintln!("memory of the server after floods: at most {peak} KiB");
    assert!(peak < PEAK_KIB_MAX, "{peak} KiB");
}

/// Connections with wrong keys, six each; prints how many keys were refused. Arguments: the port,
/// the connections.
const WRONG_KEYS: &str = r#"
import asyncio, asyncssh, sys
port, count = int(sys.argv[1]), int(sys.argv[2])
keys = [asyncssh.generate_private_key("ssh-ed25519") for _ in range(6)]
refused = 0
async def one(gate):
    global refused
    async with gate:
        try:
            async with asyncssh.connect("127.0.0.1", port, username="root", client_keys=keys, known_hosts=None, config=None, agent_path=None):
                sys.exit("a wrong key was let in")
        except (asyncssh.PermissionDenied, asyncssh.DisconnectError):
            refused += len(keys)
async def main():
    print("begun", flush=True)
    gate = asyncio.Semaphore(20)
    await asyncio.gather(*(one(gate) for _ in range(count)))
    print(refused)
asyncio.run(main())
"#;

fn wrong_keys(guests: &Guests, port: u16) {
    let mut flood = Running::start({
        let mut command = guests.program("/usr/bin/python3");
        command.args(["-W", "ignore", "-c", WRONG_KEYS, &port.to_string(), "170"]);
        command
    });
    flood.read_until("begun\n");
    for _ in 0..3 {
        gets_in(guests, port);
    }
    flood.finish().is(0, "1020\n", "");
    gets_in(guests, port);
}

/// A port of this host that is free now.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// A client that forwards a port to one of the guest.
fn forward(guests: &Guests, port: u16, to: &str) -> (Running, u16) {
    let here = free_port();
    let client =
        guests.shell_in_background(&format!("exec {} -N -L 127.0.0.1:{here}:{to}", ssh(port)));
    wait_until("the client listens", || TcpStream::connect(("127.0.0.1", here)).is_ok());
    (client, here)
}

#[test]
fn hundreds_of_connections_and_sessions_hold_and_who_does_not_read_stalls_nobody_else() {
    raise_open_files();
    let guests = workshop();
    give_key(&guests);
    let (_server, port) = serve(&guests);
    let _servers = guests.start(["exec", "-w", "/root", "x", "--", "python3", "-c", SERVERS]);
    many_connections(&guests, port);
    many_sessions(&guests, port);
    let before = server_of(&guests).resident_kib().unwrap();
    stalled_clients(&guests, port);
    let peak = server_of(&guests).peak_kib().unwrap();
    eprintln!(
        "memory of the server: {before} KiB before the clients that do not read, at most {peak} KiB"
    );
    assert!(peak < PEAK_KIB_MAX, "{peak} KiB");
    much(&guests, port);
    denied(&guests, port);
    killed(&guests, port);
}

/// An echo of everything at port 9000. At port 8000 a mebibyte that comes first, a thousand and
/// more times, each with its number in place of its first bytes; then it wants the same, and says
/// whether it was.
const SERVERS: &str = r#"
import asyncio, socketserver, threading
class Much(socketserver.StreamRequestHandler):
    def handle(self):
        # Some only look whether anybody is here.
        count = int(self.rfile.readline() or 0)
        if count == 0:
            return
        block = bytearray(self.rfile.read(1 << 20))
        for number in range(count):
            block[:8] = number.to_bytes(8, "big")
            self.wfile.write(block)
        room, same = bytearray(1 << 20), True
        for number in range(count):
            block[:8] = number.to_bytes(8, "big")
            same &= self.rfile.readinto(room) == len(room) and room == block
        same &= self.rfile.read() == b""
        self.wfile.write(b"same" if same else b"not the same")
async def echo(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
async def main():
    much = socketserver.ThreadingTCPServer(("127.0.0.1", 8000), Much)
    threading.Thread(target=much.serve_forever, daemon=True).start()
    await (await asyncio.start_server(echo, "127.0.0.1", 9000, backlog=512)).serve_forever()
asyncio.run(main())
"#;

/// 500 at once through one client: each hears what it said itself, after all of them have come.
fn many_connections(guests: &Guests, port: u16) {
    wait_until("the guest listens", || {
        let script = format!("{} -W 127.0.0.1:9000 </dev/null 2>/dev/null", ssh(port));
        guests.shell(&script).code == 0
    });
    let (_client, here) = forward(guests, port, "127.0.0.1:9000");
    let text = |number: usize| format!("connection {number}\n");
    let mut streams: Vec<TcpStream> = (0..500)
        .map(|number| {
            let mut stream = TcpStream::connect(("127.0.0.1", here)).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.write_all(text(number).as_bytes()).unwrap();
            // It stands when its first words have come back.
            let mut back = vec![0; text(number).len()];
            stream.read_exact(&mut back).unwrap();
            assert_eq!(back, text(number).as_bytes());
            stream
        })
        .collect();
    let memory = server_of(guests).resident_kib().unwrap();
    eprintln!("memory of the server with 500 forwarded connections: {memory} KiB");
    for (number, stream) in streams.iter_mut().enumerate() {
        stream.write_all(text(number).as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
    }
    for (number, stream) in streams.iter_mut().enumerate() {
        let mut back = String::new();
        stream.read_to_string(&mut back).unwrap();
        assert_eq!(back, text(number));
    }
}

/// Sessions at once, 50 over each connection; prints the sum of what they said. Arguments: the
/// port, how many.
const SESSIONS: &str = r#"
import asyncio, asyncssh, sys
port, count = int(sys.argv[1]), int(sys.argv[2])
async def main():
    clients = [await asyncssh.connect("127.0.0.1", port, username="root", client_keys=["one"], known_hosts=None, config=None, agent_path=None) for _ in range(count // 50)]
    sessions = []
    for number in range(count):
        sessions.append(await clients[number % len(clients)].create_process("echo up; read x; echo $x"))
    for session in sessions:
        assert await session.stdout.readline() == "up\n"
    print("all up", flush=True)
    sys.stdin.readline()
    for number, session in enumerate(sessions):
        session.stdin.write(f"{number}\n")
    print(sum([int(await session.stdout.readline()) for session in sessions]))
asyncio.run(main())
"#;

fn many_sessions(guests: &Guests, port: u16) {
    let mut client = Running::start({
        let mut command = guests.program("/usr/bin/python3");
        command.args(["-W", "ignore", "-c", SESSIONS, &port.to_string(), "200"]);
        command
    });
    client.read_until("all up\n");
    let memory = server_of(guests).resident_kib().unwrap();
    eprintln!("memory of the server with 200 sessions: {memory} KiB");
    client.write("\n");
    client.finish().is(0, "19900\n", "");
}

/// One that is stopped as a whole, and one whose reader is; then others, over the same connection
/// too.
fn stalled_clients(guests: &Guests, port: u16) {
    let ssh = ssh(port);
    let script = format!(
        "{ssh} 'yes stopped' > >(head -n 1 >first; exec cat >/dev/null) & stopped=$!
        {ssh} -M -S $PWD/cm 'yes unread' | (read line; exec sleep 1000) & reader=$!
        trap 'exec 2>/dev/null; kill -KILL $stopped $reader; {ssh} -S $PWD/cm -O exit 2>/dev/null' EXIT
        until [ -s first ]; do sleep 0.1; done; kill -STOP $stopped
        until [ -S cm ]; do sleep 0.1; done
        head -c 3000000 /dev/urandom >big
        {ssh} -S $PWD/cm cat <big | cmp - big
        {ssh} cat <big | cmp - big
        {ssh} -S $PWD/cm 'sleep 1; echo still here'"
    );
    guests.shell(&script).is(0, "still here\n", "");
}

/// A gibibyte each way through one connection, byte for byte. It is more than the server sends with
/// one key.
fn much(guests: &Guests, port: u16) {
    let here = free_port();
    // A cipher with which the client would not ask for a new key by itself.
    let client = format!(
        "exec {} -v -E log -c aes256-gcm@openssh.com -N -L 127.0.0.1:{here}:127.0.0.1:8000",
        ssh(port).replace("LogLevel=ERROR", "LogLevel=DEBUG1")
    );
    let _client = guests.shell_in_background(&client);
    wait_until("the client listens", || TcpStream::connect(("127.0.0.1", here)).is_ok());
    let mut stream = TcpStream::connect(("127.0.0.1", here)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut block = vec![0; MIB];
    Random::new(3).fill(&mut block);
    stream.write_all(format!("{MUCH_MIB}\n").as_bytes()).unwrap();
    stream.write_all(&block).unwrap();
    let mut came = vec![0; MIB];
    for number in 0..MUCH_MIB {
        block[..8].copy_from_slice(&number.to_be_bytes());
        stream.read_exact(&mut came).unwrap();
        assert!(came == block, "the mebibyte {number} is another");
    }
    for number in 0..MUCH_MIB {
        block[..8].copy_from_slice(&number.to_be_bytes());
        stream.write_all(&block).unwrap();
    }
    stream.shutdown(Shutdown::Write).unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    assert_eq!(said, "same");
    let log = std::fs::read_to_string(guests.directory.join("log")).unwrap();
    assert!(log.matches("SSH2_MSG_KEXINIT received").count() > 1, "{log}");
}

/// The network's policy is for forwarded connections too: there is one reason, and the log has the
/// other.
fn denied(guests: &Guests, port: u16) {
    let ssh = ssh(port).replace("ERROR", "INFO");
    let refused = guests.shell(&format!("{ssh} -W 10.1.2.3:80 </dev/null"));
    assert!(stderr(&refused).contains("connection refused"), "{refused:?}");
    let log = guests.state().join("sandboxes/x/net.log");
    wait_until("the log has it", || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        text.lines()
            .any(|line| line.contains("\"type\":\"deny\"") && line.contains("\"10.1.2.3:80\""))
    });
}

fn killed(guests: &Guests, port: u16) {
    let mut client = guests.shell_in_background(&format!(
        "exec {} 'echo up; exec sleep 1000'",
        ssh(port).replace("ERROR", "INFO")
    ));
    client.read_until("up\n");
    guests.machine().signal(Signal::KILL);
    let outcome: Outcome = client.finish();
    assert_eq!(outcome.code, 255, "{outcome:?}");
    assert!(stderr(&outcome).contains("the sandbox 'x' has ended"), "{outcome:?}");
}
