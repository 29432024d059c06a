//! Times: one form in JSON, ages or local times in tables.

use serde_json::Value;

use crate::support::{Guests, Home};

/// Returns the strings of a value that look like a date with a time.
fn times(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::String(text) if is_time(text) => found.push(text.clone()),
        Value::Array(values) => values.iter().for_each(|value| times(value, found)),
        Value::Object(fields) => fields.values().for_each(|value| times(value, found)),
        _ => {}
    }
}

/// Returns whether a text starts as `2026-11-23T14:05`.
fn is_time(text: &str) -> bool {
    matches_form(text.get(..16).unwrap_or_default(), "dddd-dd-ddTdd:dd")
}

/// Returns whether a time has the form of msb.
fn is_common_form(text: &str) -> bool {
    ["", ".ddd", ".dddddd"]
        .iter()
        .any(|digits| matches_form(text, &format!("dddd-dd-ddTdd:dd:dd{digits}+00:00")))
}

fn matches_form(text: &str, form: &str) -> bool {
    text.len() == form.len()
        && text.chars().zip(form.chars()).all(|(c, f)| match f {
            'd' => c.is_ascii_digit(),
            f => c == f,
        })
}

/// Checks the times of JSON or JSON lines, and returns their number.
#[track_caller]
fn check(what: &str, text: &str) -> usize {
    let values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    let mut found = Vec::new();
    for value in values {
        times(&value.unwrap_or_else(|error| panic!("{what}: {error}: {text}")), &mut found);
    }
    for time in &found {
        assert!(is_common_form(time), "{what}: {time}");
    }
    found.len()
}

/// Commands that print JSON, and whether there are times in it.
const COMMANDS: [(&str, bool); 24] = [
    ("ls --format json", true),
    ("ps --format json", true),
    ("ps x --format json", true),
    ("inspect x --format json", true),
    ("jobs x --format json", true),
    ("logs x --format json", true),
    ("events --no-follow", true),
    ("wait --job $JOB x --format json", true),
    ("volume list --format json", true),
    ("volume inspect data --format json", true),
    ("image list --format json", true),
    ("image inspect busybox:test --format json", true),
    ("image df --format json", false),
    ("image check --format json", false),
    ("image registry list --format json", false),
    ("image tag -q busybox:test a; msb image prune --yes --format json", false),
    ("metrics --format json", true),
    ("metrics x --format json", true),
    ("metrics jsonl --count 1", true),
    ("ssh keys --format json", false),
    ("doctor --format json || true", false),
    ("exec --format json x true", false),
    ("ping x --format json", false),
    ("modify x --label a=b --format json", false),
];

#[test]
fn every_time_in_json_has_one_form() {
    let home = Guests::with(&["--metrics-sample-interval", "200ms", "-v", "data:/data"]);
    let job = home.run(["exec", "-d", "x", "sh", "-c", "echo out"]).done();
    let job = job.trim();
    home.run(["wait", "--job", job, "x"]).done();
    crate::support::wait_until("a sample", || {
        home.run(["metrics", "x", "--format", "json"]).code == 0
    });
    for (command, has_times) in COMMANDS {
        let output = home.shell(&format!("JOB={job}; msb {command}")).done();
        let count = check(command, &output);
        assert!(count > 0 || !has_times, "{command}: no time in {output}");
    }
    home.run(["stop", "-f", "-q", "x"]).done();
    assert!(check("ls", &home.run(["ls", "--format", "json"]).done()) > 0);
    files_have_the_form_of_the_output(&home);
}

/// Checks the stored documents and logs too: `cat` and `jq` are msb's own tools for them.
fn files_have_the_form_of_the_output(home: &Home) {
    for (script, has_times) in [
        ("cat \"$MSB_HOME\"/sandboxes/x/*.json", true),
        ("cat \"$MSB_HOME\"/sandboxes/x/exec.log", true),
        ("cat \"$MSB_HOME\"/images/refs/*.json", true),
        ("cat \"$MSB_HOME\"/volumes/data/*.json", true),
    ] {
        let text = home.shell(script).done();
        assert!(check(script, &text) > 0 || !has_times, "{script}: {text}");
    }
}

#[test]
fn files_of_earlier_versions_are_read() {
    let home = Home::with_busybox();
    home.run(["create", "--no-start", "--name", "web", "busybox:test"]).done();
    let change = "sed -i 's/+00:00\"/789Z\"/' \"$MSB_HOME\"/sandboxes/web/*.json \
                  \"$MSB_HOME\"/images/refs/*.json && grep -c 789Z \"$MSB_HOME\"/sandboxes/web/spec.json";
    home.shell(change).is(0, "1\n", "");
    for command in ["ls --format json", "image list --format json"] {
        let output = home.shell(&format!("msb {command}")).done();
        assert!(check(command, &output) > 0, "{output}");
    }
}

#[test]
fn a_table_shows_ages_or_local_times() {
    let home = Home::with_busybox();
    home.run(["create", "--no-start", "--name", "web", "busybox:test"]).done();
    home.run(["volume", "create", "-q", "data"]).done();
    for command in ["ls", "images", "volume ls"] {
        let ages = home.shell(&format!("msb {command}")).done();
        let age = ages.lines().nth(1).unwrap().rsplit("   ").next().unwrap().to_owned();
        assert!(age == "now" || age.ends_with(" ago"), "{ages}");
        let local = home.shell(&format!("TZ=Asia/Tokyo msb {command} --absolute")).done();
        let time = local.lines().nth(1).unwrap().rsplit("   ").next().unwrap().to_owned();
        assert!(matches_form(&time, "dddd-dd-dd dd:dd:dd"), "{local}");
    }
}
