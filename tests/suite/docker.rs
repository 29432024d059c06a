//! Options and commands of docker, which people type first.

use std::fs;

use crate::support::{Home, stage};

/// The lines of tests/support/typed.tsv.
const TYPED: &str = include_str!("../support/typed.tsv");

/// Returns the exit code, standard output and standard error.
#[track_caller]
fn run(home: &Home, line: &str) -> (i32, String, String) {
    let outcome = home.run(line.split(' '));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (outcome.code, text(&outcome.stdout), text(&outcome.stderr))
}

#[test]
fn rm_without_a_path_removes_the_sandbox_at_its_end_and_with_one_the_path() {
    let home = Home::with_busybox();
    let line = "run --rm -i busybox:test --name x ls /bin/vi";
    assert_eq!(run(&home, line), (0, "/bin/vi\n".to_owned(), String::new()));
    assert_eq!(home.sandboxes(), []);
    let (code, stdout, _) = run(&home, "run --rm /bin/vi --rm --name x busybox:test ls /bin/vi");
    assert_eq!((code, stdout.as_str()), (1, ""));
    assert_eq!(home.sandboxes(), []);
    assert_eq!(home.snapshot("sandboxes"), Vec::<String>::new());

    assert_eq!(run(&home, "run -d --rm --name x busybox:test sleep 600").1, "x\n");
    assert_eq!(home.sandboxes(), [("x".to_owned(), "Running".to_owned())]);
    assert_eq!(run(&home, "kill x"), (0, "x\n".to_owned(), String::new()));
    assert_eq!(home.sandboxes(), []);

    assert_eq!(run(&home, "create --rm --no-start --name x busybox:test").0, 2);
    assert_eq!(run(&home, "create --rm --name x busybox:test").0, 0);
    assert_eq!(run(&home, "kill -s TERM x").0, 0);
    assert_eq!(home.sandboxes(), []);
}

#[test]
fn rm_does_not_remove_a_sandbox_that_was_made_to_stay() {
    let home = Home::with_busybox();
    assert_eq!(run(&home, "run --name x busybox:test touch /made").0, 0);
    let (code, _, stderr) = run(&home, "run --rm --name x busybox:test ls /made");
    assert_eq!(code, 125, "{stderr}");
    assert!(stderr.starts_with("msb run: error: the sandbox 'x' already exists"), "{stderr}");
    assert_eq!(home.sandboxes(), [("x".to_owned(), "Stopped".to_owned())]);
}

#[test]
fn a_mount_in_the_form_of_docker_is_that_of_msb() {
    let home = Home::with_busybox();
    let directory = home.directory.join("a:b");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("file"), "from the host\n").unwrap();
    let bind = format!("type=bind,src={},dst=/in,readonly", directory.display());
    let script = "cat /in/file; touch /in/no 2>&1; touch /v/a && touch /t/b && df -m /t | tail -1 | awk '{print $2}'";
    let args = ["run", "--mount", &bind, "--mount", "type=volume,src=data,dst=/v"];
    let more = ["--mount", "type=tmpfs,dst=/t,tmpfs-size=8388608", "busybox:test", "sh", "-c"];
    home.run([&args[..], &more, &[script]].concat()).is(
        0,
        "from the host\ntouch: /in/no: Read-only file system\n8\n",
        "",
    );
    assert_eq!(run(&home, "volume list -q").1, "data\n");
}

#[test]
fn a_network_none_is_no_network_and_a_filter_selects() {
    let home = Home::with_busybox();
    for line in [
        "create --no-start --network none --label team=ml --name alpha busybox:test",
        "create --no-start --publish 18080:80 --name beta busybox:test",
    ] {
        assert_eq!(run(&home, line).0, 0, "{line}");
    }
    let inspect = run(&home, "inspect alpha --format json").1;
    let none: serde_json::Value = serde_json::from_str(&inspect).unwrap();
    assert_eq!(none["config"]["net"]["enabled"], false, "{none}");
    for (line, names) in [
        ("ls -aq", "alpha\nbeta\n"),
        ("ls -q --filter label=team", "alpha\n"),
        ("ls -q -f label=team=ml -f name=et", ""),
        ("ls -q --filter name=et", "beta\n"),
        ("ls -q --filter status=created --filter status=running", "alpha\nbeta\n"),
        ("ls -q --filter status=exited", ""),
        ("ps -q --filter status=created", "alpha\nbeta\n"),
        ("ps -q --filter name=alpha", ""),
        ("ps -aq --filter name=alpha", "alpha\n"),
        ("ls -q --filter ancestor=busybox:test", "alpha\nbeta\n"),
        ("ls -q --filter ancestor=busybox", ""),
        ("ls -q --filter ancestor=busybox:test --filter name=alpha", "alpha\n"),
        ("ps -aq --filter ancestor=busybox --filter ancestor=busybox:test", "alpha\nbeta\n"),
    ] {
        assert_eq!(run(&home, line), (0, names.to_owned(), String::new()), "{line}");
    }
    assert_eq!(run(&home, "ls --filter ancestor=X").0, 2);
    // The ID and the digest name the image too, also without the name.
    let id = run(&home, "images -q").1.trim().to_owned();
    assert_eq!(run(&home, &format!("ls -q --filter ancestor={id}")).1, "alpha\nbeta\n");
}

#[test]
fn the_completion_script_is_the_installed_one() {
    let home = Home::new();
    for (shell, file) in [
        ("bash", "bash-completion/completions/msb"),
        ("zsh", "zsh/site-functions/_msb"),
        ("fish", "fish/vendor_completions.d/msb.fish"),
    ] {
        let installed = fs::read_to_string(stage("prefix/share").join(file)).unwrap();
        assert_eq!(run(&home, &format!("completion {shell}")).1, installed);
    }
}

/// A line of the table: what is typed, the exit code, the first line of the answer, and the reason
/// for which it is not run here.
struct TypedLine<'a> {
    line: &'a str,
    code: i32,
    answer: &'a str,
    skipped: Option<&'a str>,
}

fn typed_lines() -> impl Iterator<Item = TypedLine<'static>> {
    TYPED.lines().filter(|row| !row.starts_with('#')).map(|row| {
        let mut cells = row.split('\t');
        let mut next = || cells.next().unwrap_or_else(|| panic!("a cell is missing: {row}"));
        let (line, code, answer) = (next(), next().parse().unwrap(), next());
        TypedLine { line, code, answer, skipped: cells.next() }
    })
}

#[test]
fn what_people_type_first_has_the_answer_in_the_table() {
    let home = Home::with_busybox();
    for image in ["debian", "python"] {
        home.run(["image", "tag", "busybox:test", image]).done();
    }
    home.run(["volume", "create", "data"]).done();
    let mut wrong = Vec::new();
    let mut count = 0;
    for typed in typed_lines().filter(|typed| typed.skipped.is_none()) {
        let (code, stdout, stderr) = run(&home, typed.line.strip_prefix("msb ").unwrap());
        let text = if stderr.is_empty() { stdout } else { stderr };
        let answer = text.lines().next().unwrap_or_default();
        count += 1;
        let is_expected = match typed.answer.strip_suffix('*') {
            Some(start) => answer.starts_with(start),
            None => answer == typed.answer,
        };
        if code != typed.code || !is_expected {
            wrong.push(format!("{}\t{code}\t{answer}", typed.line));
        }
    }
    assert!(count > 150, "{count}");
    assert!(wrong.is_empty(), "other answers:\n{}", wrong.join("\n"));
}
