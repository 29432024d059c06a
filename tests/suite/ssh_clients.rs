//! A sandbox as an SSH host, seen by the clients that people have.

use std::fs;

use crate::ssh::serve;
use crate::support::{Guests, Home, Random, stage, wait_until};

/// Bytes of the file `big`, which goes through every client.
const BYTES: usize = 1_000_000;

/// Common start of all scripts. `$port` is that of a server which lets the key `one` in as root.
const PREAMBLE: &str = "
    export LC_ALL=C.UTF-8 GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
    export GIT_SSH_COMMAND=\"ssh -F $PWD/cfg\"
    export ANSIBLE_HOME=$PWD/ansible ANSIBLE_LOCAL_TEMP=$PWD/ansible ANSIBLE_NOCOLOR=1
";

/// Has a file, a key that is let in, and a configuration in which ssh(1) knows the guest as
/// `msb-x`.
fn prepared(guests: &Guests) {
    let mut bytes = vec![0; BYTES];
    Random::new(5).fill(&mut bytes);
    fs::write(guests.directory.join("big"), bytes).unwrap();
    guests
        .shell("msb ssh config x >cfg && ssh-keygen -q -t ed25519 -N '' -f one && puttygen one -O private -o one.ppk && msb ssh authorize --file one.pub")
        .done();
}

fn script(home: &Home, port: u16, text: &str) -> crate::support::Outcome {
    home.shell(&format!("set -e; port={port}; {PREAMBLE} {text}"))
}

/// A web server of the guest, with `big` on it.
fn serve_web(guests: &Guests) {
    guests
        .shell("scp -q -F cfg big msb-x:/tmp/big && ssh -F cfg msb-x 'httpd -p 127.0.0.1:8000 -h /tmp'")
        .is(0, "", "");
}

/// The first three of the list, in one guest: they are tried with each engine.
#[test]
fn openssh_plink_and_paramiko_do_all_they_can() {
    let guests = Guests::one();
    prepared(&guests);
    let (_server, port) = serve(&guests);
    serve_web(&guests);
    openssh(&guests, port);
    bring_programs(&guests, port);
    older_scp(&guests, port);
    jump(&guests, port);
    plink(&guests, port);
    let outcome =
        script(&guests, port, &format!("/usr/bin/python3 -W ignore -c '{PARAMIKO}' $port"));
    outcome.is(0, "42\nafter a new key\nrefused\n", "");
    sshfs(&guests, port);
}

/// Copies programs that busybox lacks from this host: the other end of the older scp, and an SSH
/// server that only the guest reaches. That is not the last command of its line: a child of the
/// first process that leads a session takes itself for a daemon already.
fn bring_programs(home: &Home, port: u16) {
    let text = "
        files() { for file; do echo $file; ldd $file | grep -o '/[^ ]*'; done | sort -u | sed s,^/,,; }
        tar -C / -chf - $(files /usr/bin/scp /usr/sbin/sshd) | ssh -F cfg msb-x 'tar -x -C / -f -'
        ssh-keygen -q -t ed25519 -N '' -f hostkey
        ssh -F cfg msb-x 'umask 077; cat >hostkey; mkdir -p /run/sshd .ssh; ln -s /usr/bin/scp /bin; echo sshd:x:74:74::/run/sshd:/bin/false >>/etc/passwd' <hostkey
        ssh -F cfg msb-x 'cat >.ssh/authorized_keys; /usr/sbin/sshd -f /dev/null -h /root/hostkey -o ListenAddress=127.0.0.1:2022; true' <one.pub";
    script(home, port, text).is(0, "", "");
}

fn older_scp(home: &Home, port: u16) {
    let text =
        "scp -q -O -F cfg big msb-x:/tmp/big; scp -q -O -F cfg msb-x:/tmp/big older; cmp older big";
    script(home, port, text).is(0, "", "");
}

fn openssh(home: &Home, port: u16) {
    script(home, port, "ssh -F cfg msb-x 'cat; exit 7' <big | cmp - big; echo ${PIPESTATUS[0]}")
        .is(0, "7\n", "");
    script(home, port, "printf 'get /tmp/big three\\nls -l /tmp/big' | sftp -q -b - -F cfg msb-x >/dev/null; cmp three big").is(0, "", "");
    let forwards = "
        ssh -F cfg -f -N -M -S $PWD/cm -o ExitOnForwardFailure=yes -L $PWD/l:127.0.0.1:8000 msb-x 2>log
        curl -sS --unix-socket l http://x/big | cmp - big
        ssh -F cfg -S $PWD/cm msb-x 'echo through the master'
        ssh -F cfg -S $PWD/cm -O exit msb-x 2>/dev/null";
    script(home, port, forwards).is(0, "through the master\n", "");
    let dynamic = "
        d=$((20000 + $$ % 10000))
        ssh -F cfg -N -D 127.0.0.1:$d msb-x 2>refused & client=$!
        trap 'kill $client' EXIT
        until curl -sS --socks5-hostname 127.0.0.1:$d http://localhost:8000/big -o five 2>log; do kill -0 $client; sleep 0.1; done
        curl -sS --socks4a 127.0.0.1:$d http://localhost:8000/big -o four
        cmp five big; cmp four big
        ! curl -s --socks5-hostname 127.0.0.1:$d http://localhost:9/
        grep -o 'connection refused' refused | tail -n 1
        echo both";
    script(home, port, dynamic).is(0, "connection refused\nboth\n", "");
    let through = "printf 'GET /big HTTP/1.0\\r\\n\\r\\n' | ssh -F cfg -W 127.0.0.1:8000 msb-x | tail -c 1000000 | cmp - big";
    script(home, port, through).is(0, "", "");
}

fn plink(home: &Home, port: u16) {
    let known = "print=$(msb ssh config x >/dev/null; ssh-keygen -lf state/sandboxes/x/ssh/known_hosts | cut -d ' ' -f 2)
        o=\"-batch -P $port -i one.ppk -hostkey $print\"";
    let text = format!(
        "{known}
        plink $o root@127.0.0.1 'cat; exit 7' <big | cmp - big; echo ${{PIPESTATUS[0]}}
        pscp -q $o big root@127.0.0.1:/tmp/p
        pscp -q $o root@127.0.0.1:/tmp/p back; cmp back big
        printf 'mkdir /tmp/f\\nmv /tmp/p /tmp/f/q\\n' | psftp $o -b /dev/stdin root@127.0.0.1 >/dev/null 2>&1
        plink $o root@127.0.0.1 'ls /tmp/f'
        printf 'GET /big HTTP/1.0\\r\\n\\r\\n' | plink $o -nc 127.0.0.1:8000 root@127.0.0.1 | tail -c 1000000 | cmp - big"
    );
    script(home, port, &text).is(0, "7\nq\n", "");
}

/// Command, files, forwarded connection, shell, new key, refusals. The argument is the port.
const PARAMIKO: &str = r#"
import logging, paramiko, sys, time
logging.getLogger("paramiko").setLevel(logging.CRITICAL)
c = paramiko.SSHClient()
c.set_missing_host_key_policy(paramiko.AutoAddPolicy())
c.connect("127.0.0.1", int(sys.argv[1]), "root", key_filename="one", allow_agent=False, look_for_keys=False)
big = open("big", "rb").read()
def rest(channel):
    return b"".join(iter(lambda: channel.recv(65536), b""))
i, o, e = c.exec_command("cat; echo err >&2; exit 7")
i.write(big)
i.channel.shutdown_write()
assert o.read() == big and e.read() == b"err\n" and o.channel.recv_exit_status() == 7
s = c.open_sftp()
s.put("big", "/tmp/para")
s.rename("/tmp/para", "/tmp/para2")
assert s.stat("/tmp/para2").st_size == len(big) and "para2" in s.listdir("/tmp")
assert s.open("/tmp/para2").read() == big
s.remove("/tmp/para2")
t = c.get_transport()
d = t.open_channel("direct-tcpip", ("127.0.0.1", 8000), ("127.0.0.1", 1))
d.sendall(b"GET /big HTTP/1.0\r\n\r\n")
assert rest(d).endswith(big)
d = c.invoke_shell()
d.send(b"echo $((6*7)); exit 3\n")
print(42 if b"42" in rest(d) and d.recv_exit_status() == 3 else "no shell")
# Paramiko hangs when a channel is closed while it has begun to negotiate: the last one is closed and done with before.
while not d.closed:
    time.sleep(0.01)
t.global_request("keepalive@openssh.com", wait=True)
t.renegotiate_keys()
print(c.exec_command("echo after a new key")[1].read().decode(), end="")
try:
    t.open_channel("direct-tcpip", ("127.0.0.1", 9), ("127.0.0.1", 1))
except paramiko.ChannelException as refused:
    assert refused.code == 2, refused
try:
    t.request_port_forward("127.0.0.1", 0)
except paramiko.SSHException:
    print("refused")
c.close()
"#;

/// Command, files, signals, SOCKS. The argument is the port.
const ASYNCSSH: &str = r#"
import asyncio, asyncssh, sys
async def main(port):
    big = open("big", "rb").read()
    async with asyncssh.connect("127.0.0.1", port, username="root", client_keys=["one"], known_hosts=None, config=None, agent_path=None) as c:
        done = await c.run("cat; exit 7", input=big, encoding=None)
        assert done.exit_status == 7 and done.stdout == big
        async with c.start_sftp_client() as s:
            await s.put("big", "/tmp/async")
            assert await (await s.open("/tmp/async", "rb")).read() == big
            assert (await s.statvfs("/tmp")).blocks > 0
            await s.makedirs("/tmp/a/b")
            await s.rmtree("/tmp/a")
        p = await c.create_process("echo up; exec sleep 1000")
        await p.stdout.readline()
        p.kill()
        await p.wait()
        print(p.exit_signal[0])
        p = await c.create_process("stty size; read x; stty size", term_type="xterm", term_size=(80, 24))
        print((await p.stdout.readline()).strip())
        p.change_terminal_size(100, 30)
        p.stdin.write("\n")
        print((await p.stdout.read()).split("\r\n")[-2])
asyncio.run(main(int(sys.argv[1])))
"#;

/// A guest with git, python3, rsync and an sshd that does not run; see tests/parts/ssh.
pub(crate) fn workshop() -> Guests {
    let home = Home::new();
    let tar = stage("ssh/workshop.tar");
    home.run(["image", "import", "-q", "-i", tar.to_str().unwrap(), "workshop:test"]).done();
    Guests::of(home, &["-m", "512M", "workshop:test"])
}

#[test]
fn what_stands_on_ssh_works_with_a_guest_that_has_its_other_end() {
    let guests = workshop();
    prepared(&guests);
    let (_server, port) = serve(&guests);
    script(&guests, port, &format!("/usr/bin/python3 -W ignore -c '{ASYNCSSH}' $port")).is(
        0,
        "KILL\n24 80\n30 100\n",
        "",
    );
    older_scp(&guests, port);
    let rsync = "mkdir -p d/e; cp big d/e; echo hi >d/f; ln -s f d/l
        rsync -a -e 'ssh -F cfg' d/ msb-x:/tmp/r/; echo new >>d/f; rsync -a -e 'ssh -F cfg' d/ msb-x:/tmp/r/
        rsync -a -e 'ssh -F cfg' msb-x:/tmp/r/ d2/; diff -r d d2";
    script(&guests, port, rsync).is(0, "", "");
    let git = "ssh -F cfg msb-x 'git init -q --bare /tmp/g.git'
        git init -q g; cp big g; git -C g add big; git -C g commit -q -m one
        git -C g push -q msb-x:/tmp/g.git HEAD:refs/heads/main
        git clone -q -b main ssh://msb-x/tmp/g.git h; cmp h/big big; git -C h log --format=%s";
    script(&guests, port, git).is(0, "one\n", "");
    ansible(&guests, port);
    agent(&guests, port);
}

fn ansible(home: &Home, port: u16) {
    let inventory = "echo \"msb-x ansible_ssh_common_args='-F $PWD/cfg' ansible_python_interpreter=/usr/bin/python3\" >inventory";
    let outcome = script(
        home,
        port,
        &format!(
            "{inventory}
            ansible -i inventory msb-x -o -m ping
            ansible -i inventory msb-x -o -m copy -a 'src=big dest=/tmp/ansible mode=0640' | cut -d ' ' -f 1-3
            ansible -i inventory msb-x -o -m shell -a 'cmp /tmp/ansible /tmp/big && stat -c %a /tmp/ansible'"
        ),
    );
    let expected = "msb-x | SUCCESS => {\"changed\": false,\"ping\": \"pong\"}\nmsb-x | CHANGED\nmsb-x | CHANGED | rc=0 | (stdout) 640\n";
    outcome.is(0, expected, "");
}

/// Through the guest to the SSH server in it.
fn jump(home: &Home, port: u16) {
    let jump = "{ cat cfg; printf 'Host *\\n StrictHostKeyChecking no\\n UserKnownHostsFile known\\n LogLevel ERROR\\n'; } >jump.cfg
        ssh -F jump.cfg -i one -J msb-x -p 2022 root@127.0.0.1 'cat; echo $SSH_CONNECTION' <big >out
        head -c 1000000 out | cmp - big; tail -c +1000001 out | cut -d ' ' -f 3-";
    script(home, port, jump).is(0, "127.0.0.1 2022\n", "");
}

/// With the keys of the agent here, and from inside the guest.
fn agent(home: &Home, port: u16) {
    let sshd = "ssh -F cfg msb-x 'mkdir -p /run/sshd /root/.ssh; cat >/root/.ssh/authorized_keys; /usr/sbin/sshd -o ListenAddress=127.0.0.1:2022; true' <one.pub";
    script(home, port, sshd).is(0, "", "");
    let agent = "eval $(ssh-agent) >/dev/null; trap 'kill $SSH_AGENT_PID' EXIT; ssh-add -q one
        ssh -A -F cfg msb-x 'ssh-add -L' | cmp - <(ssh-add -L)
        ssh -A -F cfg msb-x 'ssh -o StrictHostKeyChecking=no -o LogLevel=ERROR -p 2022 127.0.0.1 echo from inside'
        printf 'restrict,pty %s' \"$(cat one.pub)\" >state/ssh/authorized_keys
        ssh -A -F none -o IdentitiesOnly=yes -i one -o StrictHostKeyChecking=no -o UserKnownHostsFile=known -o LogLevel=ERROR -p $port root@127.0.0.1 'echo ${SSH_AUTH_SOCK-none}'";
    script(home, port, agent).is(0, "from inside\nnone\n", "");
}

/// Users may mount in the lab, whatever this machine has.
fn sshfs(home: &Home, port: u16) {
    let device = fs::OpenOptions::new().read(true).write(true).open("/dev/fuse");
    if let Err(error) = device {
        let is_lab = std::env::var("MSB_ENGINE").is_ok_and(|engine| engine == "krun");
        assert!(!is_lab, "the lab has no /dev/fuse: {error}");
        eprintln!("sshfs is for the lab alone: this user cannot open /dev/fuse: {error}");
        return;
    }
    let text = "mkdir mnt; sshfs -F $PWD/cfg msb-x:/tmp mnt
        trap 'fusermount -u mnt' EXIT
        cmp mnt/big big; cp big mnt/s; cmp mnt/s big; mv mnt/s mnt/t; mkdir mnt/directory; rmdir mnt/directory
        dd if=mnt/t bs=1 skip=500000 count=7 2>/dev/null | cmp - <(tail -c +500001 big | head -c 7); echo yes";
    script(home, port, text).is(0, "yes\n", "");
    wait_until("the file system is gone", || {
        !home.processes().iter().any(|process| process.name.ends_with("sshfs"))
    });
}

#[test]
fn an_audit_finds_no_failure_and_warns_of_nothing_but_what_old_clients_need() {
    let guests = Guests::one();
    prepared(&guests);
    let audit = |port: u16| {
        let audit = stage("ssh/audit");
        let outcome = guests.shell(&format!(
            "PYTHONPATH={} /usr/bin/python3 -m ssh_audit.ssh_audit -n -l warn --skip-rate-test -p {port} 127.0.0.1 | grep '\\[warn\\]\\|\\[fail\\]\\|unknown'",
            audit.display()
        ));
        String::from_utf8(outcome.stdout).unwrap()
    };
    let (_server, port) = serve(&guests);
    let warnings = audit(port);
    assert_eq!(warnings.lines().count(), 2, "{warnings}");
    assert!(
        warnings.lines().all(|line| line.starts_with("(kex) curve25519-sha256")
            && line.ends_with("does not provide protection against post-quantum attacks")),
        "{warnings}"
    );
    let (_strict, port) = crate::ssh::serve_with(&guests, &["--quantum-safe"]);
    assert_eq!(audit(port), "");
    locked_out(&guests, port);
}

/// The clients that come to a server without what is warned of. Each prints whether it got in.
const CLEAN: &str = r#"
ssh -F none -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=known -i one -p $1 root@127.0.0.1 true 2>log ||
    grep -o "no matching key exchange method" log
plink -batch -P $1 -i one.ppk -hostkey "$(ssh-keygen -lf state/sandboxes/x/ssh/known_hosts | cut -d " " -f 2)" root@127.0.0.1 true 2>log ||
    grep -o "key exchange algorithm" log
/usr/bin/python3 -W ignore -c "import paramiko; paramiko.Transport((\"127.0.0.1\", $1)).start_client()" 2>&1 | grep -o "no acceptable kex algorithm" | tail -n 1
/usr/bin/python3 -W ignore -c "import asyncio, asyncssh; asyncio.run(asyncio.wait_for(asyncssh.connect(\"127.0.0.1\", $1, known_hosts=None), 60))" 2>&1 | grep -o "No matching key exchange algorithm" | tail -n 1
"#;

/// Why the two are there: none of the clients that this was tested with would get in without them.
/// When this fails since one does, the default is to be clean.
fn locked_out(guests: &Guests, port: u16) {
    guests
        .shell(&format!("set -- {port}; {CLEAN}"))
        .is(0, "no matching key exchange method\nkey exchange algorithm\nno acceptable kex algorithm\nNo matching key exchange algorithm\n", "");
}
