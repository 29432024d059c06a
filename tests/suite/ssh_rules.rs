//! Authorization of SSH clients, and their permissions.

use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::PermissionsExt;

use rustix::process::{Pid, Signal, kill_process};

use crate::ssh::{client, serve, server_of, stderr};
use crate::support::{Guests, Home, Running, wait_until};

/// Most memory that the server may have, in KiB, whatever its clients set.
const SETTINGS_KIB_MAX: u64 = 96 * 1024;

/// Keys, and the options of their lines.
const LINES: [(&str, &str); 7] = [
    ("one", ""),
    ("near", "from=\"127.0.0.0/8,!10.0.0.1\" "),
    ("far", "from=\"10.0.0.0/8\" "),
    ("past", "expiry-time=\"20200101Z\" "),
    ("bound", "restrict,environment=\"COLOR=red\" "),
    ("web", "permitopen=\"127.0.0.1:8000\" "),
    ("files", "command=\"internal-sftp\" "),
];

#[test]
fn a_client_of_ssh_may_do_what_the_line_of_its_key_says_and_nothing_before_it_logs_in() {
    let guests = Guests::one();
    guests.shell("msb ssh config x >cfg").done();
    for (key, options) in LINES {
        let script = format!(
            "ssh-keygen -q -t ed25519 -N '' -f {key}; echo '{options}'\"$(cat {key}.pub)\" | msb ssh authorize --stdin"
        );
        guests.shell(&script).done();
    }
    let (server, port) = serve(&guests);
    lines(&guests, port);
    variables(&guests, port);
    keys_alone(&guests, port);
    nothing_before(&guests, port);
    inetd(&guests);
    strict_modes(&guests, server, port);
}

fn lines(guests: &Guests, port: u16) {
    let ssh = |key: &str| client(key, port);
    guests.shell(&format!("{} 'echo from here'", ssh("near"))).is(0, "from here\n", "");
    for key in ["far", "past"] {
        let refused = guests.shell(&format!("{} 'echo in'", ssh(key)));
        assert_eq!((refused.code, &*refused.stdout), (255, &b""[..]));
        let said = stderr(&refused);
        assert!(said.contains("Permission denied (publickey)"), "{said}");
    }
    guests.shell(&format!("{} 'echo $COLOR'", ssh("bound"))).is(0, "red\n", "");
    let bound = guests.shell(&format!("{} -tt 'echo in'", ssh("bound")));
    assert_eq!((bound.code, &*bound.stdout), (255, &b""[..]));
    let said = stderr(&bound);
    assert!(said.contains("PTY allocation request failed"), "{said}");
    guests
        .shell("ssh -F cfg msb-x 'echo page >/tmp/page; httpd -p 127.0.0.1:8000 -h /tmp'")
        .is(0, "", "");
    let get = |key: &str, port: u16, level: &str| {
        let ssh = ssh(key).replace("ERROR", level);
        guests.shell(&format!(
            "printf 'GET /page HTTP/1.0\\r\\n\\r\\n' | {ssh} -W 127.0.0.1:{port} | tail -n 1"
        ))
    };
    get("web", 8000, "ERROR").is(0, "page\n", "");
    for (key, port) in [("web", 8001), ("bound", 8000)] {
        let refused = get(key, port, "INFO");
        let said = stderr(&refused);
        assert!(said.contains("this key does not permit connections to this target"), "{said}");
    }
    // One command for whatever is asked for: here the transfer of files.
    let options = ssh("files").replace("ssh ", "").replace("-p ", "-P ");
    guests
        .shell(&format!("echo 'get /tmp/page page' | sftp -q -b - {options} >/dev/null; cat page"))
        .is(0, "page\n", "");
    guests.shell(&format!("{} 'echo in' </dev/null", ssh("files"))).is(0, "", "");
}

#[test]
fn a_key_is_restricted_later_and_removed() {
    let home = Home::new();
    home.shell("ssh-keygen -q -t ed25519 -N '' -f one && ssh-keygen -l -f one.pub | cut -d ' ' -f 2 >print")
        .done();
    let print = std::fs::read_to_string(home.directory.join("print")).unwrap();
    let print = print.trim();
    let keys = || home.run(["ssh", "keys"]).done();
    let authorize = |options: &str| {
        let script = format!("msb ssh authorize --key \"{options}$(cat one.pub)\"");
        home.shell(&script)
    };
    authorize("").done();
    let strict = "restrict,command=\\\"ls\\\" ";
    let said = stderr(&authorize(strict));
    assert!(said.contains("with the options 'restrict,command=\"ls\"'"), "{said}");
    let listed = keys();
    assert_eq!(listed.lines().count(), 1, "{listed}");
    assert!(listed.ends_with("restrict,command=\"ls\"\n"), "{listed}");
    let looser = authorize("");
    assert_eq!(looser.code, 4, "{looser:?}");
    assert!(stderr(&looser).contains("msb ssh keys --remove SHA256:"), "{looser:?}");
    assert_eq!(keys(), listed);
    home.run(["ssh", "keys", "--remove", print]).done();
    assert_eq!(keys(), "");
    assert_eq!(home.run(["ssh", "keys", "--remove", print]).code, 3);
    authorize("").done();
    home.shell("msb ssh keys --remove \"$(cat one.pub)\"").done();
    assert_eq!(keys(), "");
    assert_eq!(home.run(["ssh", "keys", "--remove", "one.pub"]).code, 2);
    let malformed = authorize("from=\\\"!127.0.0.0/99,*\\\" ");
    assert_eq!(malformed.code, 1, "{malformed:?}");
    assert!(stderr(&malformed).contains("invalid value of the option 'from'"), "{malformed:?}");
}

/// Variables by the hundred in sessions that never begin. The argument is the port.
const HOARD: &str = r#"
import paramiko, sys
c = paramiko.SSHClient()
c.set_missing_host_key_policy(paramiko.AutoAddPolicy())
c.connect("127.0.0.1", int(sys.argv[1]), "root", key_filename="one", allow_agent=False, look_for_keys=False)
sessions = [c.get_transport().open_session() for _ in range(64)]
for session in sessions:
    for number in range(120):
        session.set_environment_variable(f"N{number}", 30000 * "v")
# It goes on, and there is room again when they have gone.
def taken():
    return c.exec_command("echo ${#MORE}", environment={"MORE": 30000 * "v"})[1].read().decode().strip()
before = taken()
for session in sessions:
    session.close()
print(before, taken())
"#;

fn variables(guests: &Guests, port: u16) {
    let ssh = client("one", port);
    guests
        .shell(&format!(
            "LC_A=sent {ssh} -o SendEnv='LC_*' -o SetEnv='COLOR=\"light blue\"' 'echo $LC_A $COLOR'"
        ))
        .is(0, "sent light blue\n", "");
    guests.shell(&format!("/usr/bin/python3 -W ignore -c '{HOARD}' {port}")).is(0, "0 30000\n", "");
    let peak = server_of(guests).peak_kib().unwrap();
    eprintln!("memory of the server after a hoard of variables: at most {peak} KiB");
    assert!(peak < SETTINGS_KIB_MAX, "{peak} KiB");
}

fn keys_alone(guests: &Guests, port: u16) {
    let refused = guests.shell(&format!(
        "{} -o PreferredAuthentications=none,password,keyboard-interactive true",
        client("one", port)
    ));
    assert_eq!(refused.code, 255);
    let said = stderr(&refused);
    assert!(said.contains("Permission denied (publickey)."), "{said}");
}

/// Messages of a client that has a key exchange behind it and no login: none is answered. The
/// argument is the port.
const EARLY: &str = r#"
import paramiko, sys, time, logging
logging.getLogger("paramiko").setLevel(logging.CRITICAL)
def message(kind, *parts):
    m = paramiko.Message()
    m.add_byte(bytes([kind]))
    for part in parts:
        {int: m.add_int, str: m.add_string, bool: m.add_boolean}[type(part)](part)
    return m
EARLY = [
    message(90, "session", 0, 1 << 20, 1 << 15),
    message(90, "direct-tcpip", 0, 1 << 20, 1 << 15, "127.0.0.1", 8000, "127.0.0.1", 1),
    message(80, "tcpip-forward", True, "", 0),
    message(98, 0, "exec", True, "touch /tmp/early"),
    message(94, 0, "data"),
]
for tries_to_log_in in False, True:
    for early in EARLY:
        t = paramiko.Transport(("127.0.0.1", int(sys.argv[1])))
        seen, read = [], t.packetizer.read_message
        def record(seen=seen, read=read):
            kind, m = read()
            seen.append(kind)
            return kind, m
        t.packetizer.read_message = record
        t.start_client()
        def log_in():
            try:
                t.auth_none("root")
            except paramiko.BadAuthenticationType as answer:
                assert answer.allowed_types == ["publickey"], answer
        if tries_to_log_in:
            log_in()
        t._send_user_message(early)
        # What is answered now comes after whatever was said to that.
        if tries_to_log_in:
            t._send_user_message(message(50, "root", "ssh-connection", "none"))
        else:
            log_in()
        while seen.count(51) < 1 + tries_to_log_in:
            time.sleep(0.01)
        assert max(seen) == 51, seen
        t.close()
print("nothing")
"#;

fn nothing_before(guests: &Guests, port: u16) {
    guests.shell(&format!("/usr/bin/python3 -W ignore -c '{EARLY}' {port}")).is(0, "nothing\n", "");
    guests.run(["exec", "x", "--", "ls", "/tmp"]).is(0, "page\n", "");
}

/// A server for each connection, which is its standard input and output. That it was there, who
/// comes in last proves: it may be gone by then.
fn inetd(guests: &Guests) {
    let script = "port=$((20000 + $$ % 10000))
        systemd-socket-activate --accept --inetd -l 127.0.0.1:$port --setenv=MSB_HOME --setenv=HOME msb-ssh serve --stdio x 2>log & inetd=$!
        until grep -qs Listening log; do kill -0 $inetd || exit; sleep 0.1; done
        for key in far one near; do
            ssh -F none -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=known -o LogLevel=ERROR -o IdentitiesOnly=yes \
                -i $key -p $port root@127.0.0.1 'echo ${SSH_CONNECTION%% *}' 2>/dev/null || echo not $key
        done
        kill $inetd 2>/dev/null || :";
    guests.shell(script).is(0, "not far\n127.0.0.1\n127.0.0.1\n", "");
}

/// A file of keys that others can write to authorizes no client, causes one warning, and does not
/// stop the server.
fn strict_modes(guests: &Guests, server: Running, port: u16) {
    let path = guests.state().join("ssh/authorized_keys");
    let place = path.canonicalize().unwrap().display().to_string();
    let mode = |mode: u32| set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    let comes = format!("{} 'echo in'", client("one", port));
    mode(0o620);
    for _ in 0..2 {
        let refused = guests.shell(&comes);
        assert_eq!((refused.code, &*refused.stdout), (255, &b""[..]));
    }
    let why = format!("cannot trust '{place}': other users can write to it");
    let remedy = format!("hint: check its contents, then: chmod go-w '{place}'");
    for verb in [&["serve", "x", "--port", "0"][..], &["keys"], &["authorize", "--file", "one.pub"]]
    {
        let text = format!("msb ssh: error: {why}\nmsb ssh: {remedy}\n");
        guests.run([&["ssh"], verb].concat()).is(1, "", &text);
    }
    guests.run(["ssh", "x", "--", "echo owner"]).is(0, "owner\n", "");
    mode(0o644);
    wait_until("the key counts again", || guests.shell(&comes).code == 0);
    kill_process(Pid::from_raw(server.pid()).unwrap(), Signal::TERM).unwrap();
    let said = stderr(&server.finish());
    assert_eq!(said.matches(&why).count(), 1, "{said}");
    assert_eq!(said.matches(&remedy).count(), 1, "{said}");
}
