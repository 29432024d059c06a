//! Common work in directories of the host and in volumes: databases, repositories, packages,
//! builds. See tests/parts/mounts.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::support::{Guests, Home, stage};

/// Files of C that are compiled. tests/bench/mounts compiles 2,000, which in software take minutes.
const SOURCES: u32 = 100;

const IMAGE: &str = "workplace:test";

fn workplace_image() -> Home {
    let home = Home::new();
    let tar = stage("mounts/workplace.tar");
    home.run(["image", "import", "-q", "-i", tar.to_str().unwrap(), IMAGE]).done();
    home
}

/// A guest with a directory of the host at `/bind`, a disk volume at `/volume`, and a directory
/// volume at `/shared`.
fn workplace() -> Guests {
    let home = workplace_image();
    fs::create_dir(home.directory.join("bind")).unwrap();
    let bind = format!("{}:/bind", home.directory.join("bind").display());
    home.run(["volume", "create", "data", "--kind", "disk"]).done();
    let words = ["-m", "768M", "-v", &bind, "-v", "data:/volume", "-v", "shared:/shared", IMAGE];
    Guests::of(home, &words)
}

/// Runs a script in the guest, each command of which must do well.
#[track_caller]
fn done(guests: &Guests, script: &str) -> String {
    let script = format!("set -e; {script}");
    guests.run(["exec", "x", "--", "sh", "-c", &script]).done()
}

/// Its own user makes the database, which is killed once in the middle and must then find what it
/// was told to keep.
#[test]
fn a_database_runs_on_both_kinds_of_volumes_and_on_a_directory_of_the_host_as_its_own_user() {
    const DATABASE: &str = r#"
        cd $1
        bin=$(echo /usr/lib/postgresql/*/bin)
        start() { $bin/pg_ctl -D db -l db/log -o "-c listen_addresses= -k /tmp" -t 300 -w start >/dev/null; }
        $bin/initdb -D db -A trust >/dev/null
        start
        psql -q -h /tmp -c "create table t as select n from generate_series(1, 1000) as n" postgres
        $bin/pg_ctl -D db -m immediate -w stop >/dev/null
        start
        psql -A -t -h /tmp -c "select sum(n), current_user from t" postgres
        $bin/pg_ctl -D db -m fast -t 300 -w stop >/dev/null
        stat -c %U:%a db/PG_VERSION
    "#;
    let guests = workplace();
    fs::write(guests.directory.join("bind/database"), DATABASE).unwrap();
    for place in ["/volume", "/shared", "/bind"] {
        let script = format!(
            "install -d -o postgres -g postgres -m 755 {place}/home; \
             su postgres -c 'sh -e /bind/database {place}/home'"
        );
        assert_eq!(done(&guests, &script), "500500|postgres\npostgres:600\n", "{place}");
    }
    // On the host it is neither the user nor root.
    let owner = fs::metadata(guests.directory.join("bind/home")).unwrap().uid();
    let user = fs::metadata(guests.directory.join("bind")).unwrap().uid();
    assert!(owner >= 100_000 && owner != user, "{owner}");
    done(&guests, "rm -r /bind/home");
}

/// The program that people use for it, from Debian, with its file of the mode that the image gives
/// it.
#[test]
fn sudo_makes_a_user_root_unless_the_sandbox_is_restricted() {
    const SUDO: &str = "
        useradd -m worker
        echo 'worker ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/worker
        su worker -c 'id -un; sudo -n id -un' 2>/tmp/said || true
        grep -o 'no new privileges' /tmp/said || true";
    let home = workplace_image();
    let said = |profile: &[&str]| {
        let words = ["run", "-m", "512M"];
        let command = [IMAGE, "--", "sh", "-c", SUDO];
        let args = [&words[..], profile, &command].concat();
        home.run(args).done()
    };
    assert_eq!(said(&[]), "worker\nroot\n");
    assert_eq!(said(&["--security", "restricted"]), "worker\nno new privileges\n");
}

#[test]
fn a_clone_an_installed_package_and_a_build_work_in_a_directory_of_the_host() {
    let guests = workplace();
    let clone = "
        export GIT_CONFIG_GLOBAL=/root/git; git config --file $GIT_CONFIG_GLOBAL user.name a
        git config --file $GIT_CONFIG_GLOBAL user.email a@b
        git init -q /root/source; cd /root/source
        for n in 1 2 3; do mkdir -p d$n; for f in $(seq 50); do echo $n $f >d$n/$f; done; git add .; git commit -qm $n; done
        cd /bind; git clone -q file:///root/source clone; cd clone
        git fsck 2>&1; git status --porcelain; git rev-list --count HEAD
        echo more >more; git add more; git commit -qm more; git gc -q; git fsck 2>&1; git log -1 --format=%s; cat d3/50
        git ls-files | wc -l";
    assert_eq!(done(&guests, clone), "3\nmore\n3 50\n151\n");

    let package = "
        mkdir -p /root/package/greeting; cd /root/package
        echo 'from setuptools import setup; setup(name=\"greeting\", version=\"1\", packages=[\"greeting\"])' >setup.py
        echo 'text = \"installed\"' >greeting/__init__.py
        python3 -m pip install -q --no-index --no-build-isolation --root-user-action ignore --target /bind/site . 2>&1
        cd /bind; PYTHONPATH=/bind/site python3 -c 'import greeting; print(greeting.text, greeting.__file__)'";
    assert_eq!(done(&guests, package), "installed /bind/site/greeting/__init__.py\n");

    let build = format!(
        "mkdir /bind/c; cd /bind/c
        for n in $(seq {SOURCES}); do echo \"int f$n(int x) {{ return x + $n; }}\" >f$n.c; done
        {{ for n in $(seq {SOURCES}); do echo \"int f$n(int);\"; done; echo 'int puts(const char *); int main(void) {{ int x = 0;'
          for n in $(seq {SOURCES}); do echo \"x = f$n(x);\"; done; echo 'return puts(x == {sum} ? \"right\" : \"wrong\") < 0; }}'; }} >main.c
        ls *.c | xargs -n 20 gcc -c; gcc -o all *.o; ./all; ls *.o | wc -l",
        sum = SOURCES * (SOURCES + 1) / 2
    );
    assert_eq!(done(&guests, &build), format!("right\n{}\n", SOURCES + 1));
    // The host has it all, as its user's.
    let host = guests.directory.join("bind");
    let user = fs::metadata(&host).unwrap().uid();
    for made in ["clone/more", "site/greeting/__init__.py", "c/all"] {
        assert_eq!(fs::metadata(host.join(made)).unwrap().uid(), user, "{made}");
    }
}

/// Several processes count in one table of SQLite, by turns: each reads the sum and writes it plus
/// one, which only its locks protect.
const COUNT: &str = "
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], timeout=600, isolation_level=None)
database.execute('create table if not exists t(n integer)')
for _ in range(int(sys.argv[2])):
    database.execute('begin immediate')
    count = database.execute('select count(*) from t').fetchone()[0]
    database.execute('insert into t values(?)', (count,))
    database.execute('commit')
database.close()
";

/// Checks the table: every number once, in order, and a database without errors.
const CHECK: &str = "
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], timeout=600)
rows = [n for (n,) in database.execute('select n from t order by rowid')]
print(len(rows), rows == list(range(len(rows))), database.execute('pragma integrity_check').fetchone()[0])
";

/// A guest that waits for a lock (flock(1), and a range in Python), and one that tries it.
#[test]
fn two_guests_write_to_one_database_and_locks_hold_between_them() {
    let home = workplace_image();
    for name in ["a", "b"] {
        home.run(["create", "--name", name, "-v", "data:/d", IMAGE]).done();
    }
    let exec = |name: &str, words: &[&str]| home.start([&["exec", name, "--"][..], words].concat());
    // Two processes in each of two guests.
    let counting: Vec<_> = ["a", "b", "a", "b"]
        .map(|name| exec(name, &["python3", "-c", COUNT, "/d/db", "5"]))
        .into_iter()
        .collect();
    for process in counting {
        process.finish().is(0, "", "");
    }
    let check = ["exec", "b", "--", "python3", "-c", CHECK, "/d/db"];
    home.run(check).is(0, "20 True ok\n", "");

    // Each kind of lock: refused in the other guest and on the host while it is held.
    let python = |call: &str| {
        format!(
            "import fcntl, sys; f = open('/d/lock', 'a'); {call}; print('locked', flush=True); \
             sys.stdin.read()"
        )
    };
    let on_host = home.state().join("volumes/data/data/lock");
    for call in ["fcntl.flock(f, fcntl.LOCK_EX)", "fcntl.lockf(f, fcntl.LOCK_EX, 10, 5)"] {
        let script = python(call);
        let mut holder = home.start(["exec", "-i", "a", "--", "python3", "-c", script.as_str()]);
        holder.read_until("locked\n");
        let refused = python(&call.replace("LOCK_EX", "LOCK_EX | fcntl.LOCK_NB"));
        let outcome = home.run(["exec", "b", "--", "python3", "-c", refused.as_str()]);
        let error = String::from_utf8_lossy(&outcome.stderr).into_owned();
        assert!(error.contains("BlockingIOError"), "{outcome:?}");
        if call.contains("flock") {
            let path = on_host.to_str().unwrap();
            home.shell(&format!("flock -n '{path}' true")).is(1, "", "");
        }
        // One that waits gets it when the holder has gone.
        let mut waiting = home.start(["exec", "-i", "b", "--", "python3", "-c", script.as_str()]);
        let tries = "import fcntl; f = open('/d/other', 'a'); fcntl.flock(f, fcntl.LOCK_EX); \
                     open('/d/seen', 'w').write('x'); print(open('/d/seen').read())";
        // The guest's other work goes on meanwhile.
        home.run(["exec", "b", "--", "python3", "-c", tries]).is(0, "x\n", "");
        holder.finish().is(0, "", "");
        waiting.read_until("locked\n");
        waiting.finish().is(0, "", "");
    }
    home.run(["rm", "-f", "a", "b"]).done();
}

/// One guest waits for a lock of another: it can be paused, and be stopped in order.
#[test]
fn a_guest_that_waits_for_a_lock_can_be_paused_and_stopped() {
    let home = workplace_image();
    for name in ["a", "b"] {
        home.run(["create", "--name", name, "-v", "data:/d", IMAGE]).done();
    }
    let hold = |name: &str, then: &str| {
        let script = format!("exec 9>/d/lock; flock 9; echo locked; {then}");
        home.start(["exec", "-i", name, "--", "sh", "-c", script.as_str()])
    };
    let mut holder = hold("a", "cat");
    holder.read_until("locked\n");
    let mut waiting = hold("b", "echo after the pause");
    home.run([
        "exec",
        "b",
        "--",
        "sh",
        "-c",
        "until grep -q '[f]lock' /proc/[0-9]*/comm; do sleep 0.1; done",
    ])
    .is(0, "", "");
    home.run(["pause", "b"]).done();
    home.run(["resume", "b"]).done();
    holder.finish().is(0, "", "");
    waiting.read_until("after the pause\n");
    waiting.finish().is(0, "", "");
    let mut holder = hold("a", "cat");
    holder.read_until("locked\n");
    let waiting = hold("b", "cat");
    home.run([
        "exec",
        "b",
        "--",
        "sh",
        "-c",
        "until grep -q '[f]lock' /proc/[0-9]*/comm; do sleep 0.1; done",
    ])
    .is(0, "", "");
    home.run(["stop", "b"]).is(0, "b\n", "");
    assert_ne!(waiting.finish().code, 0);
    holder.finish().is(0, "", "");
    home.run(["rm", "-f", "a", "b"]).done();
}
