//! Limits of a server for silent, slow and many clients, and the files that a client sees.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::ssh::{client, give_key, serve_with, stderr};
use crate::support::{Guests, PATIENCE, Random};

/// A guest with the key `one`, and a file.
fn host() -> Guests {
    let guests = Guests::one();
    give_key(&guests);
    let mut bytes = vec![0; 3_000_000];
    Random::new(17).fill(&mut bytes);
    std::fs::write(guests.directory.join("big"), bytes).unwrap();
    guests
}

#[test]
fn clients_of_ssh_that_are_silent_slow_or_too_many_are_sent_away() {
    let guests = host();
    let (server, port) = serve_with(&guests, &["--keep-alive", "1s", "--login-grace", "2s"]);
    silent_clients(&guests, port);
    slow_login(port);
    guests.shell(&format!("{} 'sleep 6; echo still here'", client("one", port))).is(
        0,
        "still here\n",
        "",
    );
    drop(server);
    let (_server, port) = serve_with(&guests, &["--max-clients", "1", "--max-channels", "2"]);
    too_many_clients(&guests, port);
    too_many_channels(&guests, port);
    new_keys(&guests, port);
}

/// A client whose window is larger than what the kernels keep for it: when it is stopped, nothing
/// more can be written to it. The argument is the port.
const FLOWING: &str = r#"
import paramiko, sys, time
c = paramiko.SSHClient()
c.set_missing_host_key_policy(paramiko.AutoAddPolicy())
c.connect("127.0.0.1", int(sys.argv[1]), "root", key_filename="one", allow_agent=False, look_for_keys=False)
session = c.get_transport().open_session(window_size=1 << 30)
session.exec_command("exec yes flowing")
session.recv(1)
print("up", flush=True)
time.sleep(1000)
"#;

/// A client that does not answer is disconnected, with or without pending data, and its commands in
/// the guest end.
fn silent_clients(guests: &Guests, port: u16) {
    let ssh = client("one", port);
    let script = format!(
        "{ssh} 'echo up; exec sleep 12345' >silent & silent=$!
        /usr/bin/python3 -W ignore -c '{FLOWING}' {port} >flowing & flowing=$!
        trap 'exec 2>/dev/null; kill -KILL $silent $flowing' EXIT
        until [ -s silent ] && [ -s flowing ]; do sleep 0.1; done
        kill -STOP $silent $flowing
        left() {{ msb exec x -- sh -c 'ps | grep -e \"[s]leep 12345\" -e \"[y]es flowing\"' >left; }}
        while left; do sleep 0.3; done
        echo gone"
    );
    guests.shell(&script).is(0, "gone\n", "");
}

/// One that begins and never ends is cut: otherwise this would wait for the end of the server.
fn slow_login(port: u16) {
    let mut slow = TcpStream::connect(("127.0.0.1", port)).unwrap();
    slow.set_read_timeout(Some(PATIENCE)).unwrap();
    slow.write_all(b"SSH-2.0-slow\r\n").unwrap();
    let mut said = Vec::new();
    if let Err(error) = slow.read_to_end(&mut said) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
    assert!(said.starts_with(b"SSH-2.0-msb_"));
}

fn too_many_clients(guests: &Guests, port: u16) {
    let ssh = client("one", port);
    let mut first = guests.shell_in_background(&format!("exec {ssh} 'echo up; read line'"));
    first.read_until("up\n");
    let second = guests.shell(&format!("{ssh} -o LogLevel=INFO 'echo in'"));
    assert_eq!((second.code, &*second.stdout), (255, &b""[..]));
    let said = stderr(&second);
    assert!(said.contains("too many clients are logged in"), "{said}");
    first.finish().is(1, "", "");
    crate::support::wait_until("there is room again", || {
        guests.shell(&format!("{ssh} true")).code == 0
    });
}

/// Channels that are open count, those that were refused do not. The argument is the port.
const CHANNELS: &str = r#"
import paramiko, sys, logging
logging.getLogger("paramiko").setLevel(logging.CRITICAL)
c = paramiko.SSHClient()
c.set_missing_host_key_policy(paramiko.AutoAddPolicy())
while True:
    try:
        c.connect("127.0.0.1", int(sys.argv[1]), "root", key_filename="one", allow_agent=False, look_for_keys=False)
        break
    except (paramiko.SSHException, EOFError):
        pass
t = c.get_transport()
first, second = t.open_session(), t.open_session()
try:
    t.open_session()
except paramiko.ChannelException as refused:
    print(refused.code)
first.close()
while True:
    try:
        t.open_session().close()
        break
    except paramiko.ChannelException:
        pass
for _ in range(5):
    try:
        t.open_channel("direct-tcpip", ("127.0.0.1", 9), ("127.0.0.1", 1))
    except paramiko.ChannelException as refused:
        print(refused.code, end=" ")
print(c.exec_command("echo in")[1].read().decode(), end="")
"#;

fn too_many_channels(guests: &Guests, port: u16) {
    guests.shell(&format!("/usr/bin/python3 -W ignore -c '{CHANNELS}' {port}")).is(
        0,
        "4\n2 2 2 2 2 in\n",
        "",
    );
}

/// A client that wants new keys all the time.
fn new_keys(guests: &Guests, port: u16) {
    let script = format!(
        "until {ssh} true 2>/dev/null; do :; done
        {ssh} -v -o RekeyLimit=500K cat <big 2>log | cmp - big
        [ $(grep -c 'SSH2_MSG_KEXINIT received' log) -gt 4 ] && echo often",
        ssh = client("one", port).replace("LogLevel=ERROR", "LogLevel=DEBUG1")
    );
    guests.shell(&script).is(0, "often\n", "");
}

#[test]
fn files_of_ssh_clients_are_those_of_who_logs_in_and_stay_as_they_are_where_nobody_may_change_them()
{
    let guests = host();
    guests
        .shell("ssh -F cfg msb-x 'chmod 700 /root; echo secret >/root/secret; chmod 1777 /tmp; echo free >/tmp/free'")
        .is(0, "", "");
    let (_server, port) = serve_with(&guests, &[]);
    of_alice(&guests, port);
    let (_reader, port) = serve_with(&guests, &["--sftp-read-only"]);
    read_only(&guests, port);
}

/// sftp(1) does all of these, whatever becomes of them; gives what it complained of.
fn sftp(guests: &Guests, port: u16, user: &str, lines: &[&str]) -> Vec<String> {
    let options = client("one", port)
        .replace("ssh ", "")
        .replace("-p ", "-P ")
        .replace("root@", &format!("{user}@"));
    let batch = format!("-{}", lines.join("\n-"));
    std::fs::write(guests.directory.join("batch"), batch).unwrap();
    let outcome = guests.shell(&format!("sftp -q -b batch {options} >/dev/null"));
    assert_eq!(outcome.code, 0, "{outcome:?}");
    let said = stderr(&outcome);
    said.lines().map(str::to_owned).collect()
}

/// The guest's own permissions hold for a user who is not root.
fn of_alice(guests: &Guests, port: u16) {
    let denied = [
        "get /root/secret",
        "put big /root/big",
        "put big /etc/passwd",
        "rm /etc/passwd",
        "rename /tmp/free /tmp/taken",
        "chmod 777 /root",
        "mkdir /etc/d",
        "ls /root",
    ];
    let said = sftp(guests, port, "alice", &denied);
    assert_eq!(said.len(), denied.len(), "{said:#?}");
    let allowed = [
        "put big /home/alice/big",
        "symlink /root/secret /home/alice/link",
        "get /home/alice/big alices",
    ];
    assert_eq!(sftp(guests, port, "alice", &allowed), [""; 0]);
    // A link leads no further than its user.
    let through = sftp(guests, port, "alice", &["get /home/alice/link stolen"]);
    assert_eq!(through.len(), 1, "{through:#?}");
    guests
        .shell("cmp big alices; ls stolen secret 2>/dev/null; msb exec x -- stat -c '%U %G' /home/alice/big")
        .is(0, "alice alice\n", "");
}

fn read_only(guests: &Guests, port: u16) {
    let before = "msb exec x -- sh -c 'cd /; ls -la /tmp /home/alice; stat -c %a%u /etc/passwd; md5sum /etc/passwd /tmp/free'";
    let tree = guests.shell(before).done();
    let changes = [
        "put big /tmp/big",
        "put big /tmp/free",
        "mkdir /tmp/d",
        "rm /tmp/free",
        "rmdir /home/alice",
        "rename /tmp/free /tmp/taken",
        "chmod 600 /etc/passwd",
        "chown 1000 /etc/passwd",
        "symlink free /tmp/link",
        "ln /tmp/free /tmp/hard",
    ];
    let said = sftp(guests, port, "root", &changes);
    let denied = said.iter().filter(|line| line.contains("ermission denied"));
    assert_eq!(denied.count(), changes.len(), "{said:#?}");
    guests.shell(before).is(0, &tree, "");
    assert_eq!(sftp(guests, port, "root", &["get /root/secret", "ls /root"]), [""; 0]);
    guests.shell("cat secret").is(0, "secret\n", "");
}
