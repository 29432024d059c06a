//! The language of the tree: doc comments, terms of the field, and words that pages and help texts
//! must not hold.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use crate::support::{Home, stage};

/// Words and phrases that no manual page and no help text may hold, in lower case: invented terms
/// for things that have a name, and persons in place of programs.
const WORDS_TO_AVOID: [&str; 29] = [
    "anew",
    "are told",
    "believe",
    "believes",
    "by what",
    "do without",
    "does without",
    "door",
    "everybody",
    "folder",
    "folders",
    "for so long",
    "goes on",
    "in vain",
    "is told",
    "mend",
    "mending",
    "mends",
    "nobody",
    "none that",
    "riddle",
    "somebody",
    "the begin",
    "the how manyth",
    "vouch",
    "vouches",
    "wants to know",
    "whoever",
    "wicked",
];

/// Text in which such a word is a name: the user nobody, fields of specifications and of the
/// protocol, and a field of `msb doctor --format json`.
const NAMES: [&str; 8] = [
    "-u nobody",
    ".Ql nobody",
    ".Va mend",
    ".Va found , mend",
    "\"problem\").mend",
    "into_folder",
    "make_folder",
    "root_folder",
];

/// Behaviours of msb: the term that a reader searches for, and the file that must come up. The last
/// word of a term is a prefix: "reassembl" finds "reassembles" and "reassembly".
const BEHAVIOURS: [(&str, &str); 24] = [
    ("delayed ack", "msb-net/src/tcp/delayed_ack.rs"),
    ("busy poll", "msb-net/src/busy_poll.rs"),
    ("reassembl", "msb-net/src/fragments.rs"),
    ("published port", "msb-net/src/published_ports.rs"),
    ("rebinding", "msb-net/src/dns/mod.rs"),
    ("ClientHello", "msb-net/src/client_hello.rs"),
    ("whiteout", "msb-image/src/disk/merge.rs"),
    ("superblock", "msb-image/src/disk/erofs.rs"),
    ("garbage collect", "msb-image/src/store/garbage.rs"),
    ("redirect", "msb-image/src/registry/client.rs"),
    ("credentials", "msb-image/src/registry/credentials.rs"),
    ("idle timeout", "msb-run/src/supervisor/lifecycle/mod.rs"),
    ("log rotation", "msb-run/src/process/log_rotation.rs"),
    ("boot state", "msb-run/src/boot_state/mod.rs"),
    ("keepalive", "msb-run/src/launch.rs"),
    ("seccomp", "msb-run/vmm/src/isolate.rs"),
    ("vhost user", "msb-run/vmm/src/share/vhost_user.rs"),
    ("capabilities", "msb-agent/src/confine.rs"),
    ("overlayfs", "msb-agent/src/root.rs"),
    ("port forwarding", "msb-ssh/src/forward.rs"),
    ("agent forwarding", "msb-ssh/src/key_agent.rs"),
    ("sample file", "libmsb/src/samples/mod.rs"),
    ("partial success", "msb-metrics/src/otel/response.rs"),
    ("symlink race", "libmsb/wire/src/file/receive.rs"),
];

/// Runs one check of `tests/words` over the sources of the stage.
#[track_caller]
fn check(name: &str) {
    let output = Command::new("python3").arg(stage("source/tests/words")).arg(name).output();
    let output = output.unwrap();
    assert!(
        output.status.success(),
        "tests/words {name}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn few_doc_comments_start_with_a_relative_pronoun() {
    check("docs");
}

#[test]
fn a_directory_is_called_a_directory() {
    check("folder");
}

#[test]
fn terms_of_the_field_lead_to_the_sources() {
    check("terms");
}

/// Returns the words of a text in lower case, with one space before and after each. Markup, hyphens
/// and the ends of lines separate words.
fn words(text: &str) -> String {
    let words =
        text.split(|letter: char| !letter.is_alphanumeric()).filter(|word| !word.is_empty());
    let words: Vec<String> = words.map(str::to_lowercase).collect();
    format!(" {} ", words.join(" "))
}

/// Returns the words of `WORDS_TO_AVOID` that a text holds.
fn words_to_avoid(text: &str) -> Vec<&'static str> {
    let mut text = text.to_owned();
    for name in NAMES {
        text = text.replace(name, " ");
    }
    let text = words(&text);
    WORDS_TO_AVOID.into_iter().filter(|word| text.contains(&format!(" {word} "))).collect()
}

#[track_caller]
fn all_are_plain(texts: &BTreeMap<String, String>) {
    let found: Vec<String> = texts
        .iter()
        .filter_map(|(name, text)| {
            let words = words_to_avoid(text);
            (!words.is_empty()).then(|| format!("{name}: {}", words.join(", ")))
        })
        .collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn no_page_holds_a_word_to_avoid() {
    let mut pages = BTreeMap::new();
    for entry in fs::read_dir(stage("source/man")).unwrap() {
        let path = entry.unwrap().path();
        pages.insert(path.display().to_string(), fs::read_to_string(&path).unwrap());
    }
    assert!(pages.len() > 30, "{:?}", pages.keys());
    all_are_plain(&pages);
}

/// Returns the names of the commands that a help text lists.
fn commands(help: &str) -> Vec<&str> {
    let lines = help.lines().skip_while(|line| !line.ends_with("ommands:")).skip(1);
    let section = lines.take_while(|line| line.is_empty() || line.starts_with(' '));
    // Descriptions that take several lines are indented further.
    let rows = section.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let names = rows.filter_map(|line| line.split_whitespace().next());
    names.map(|name| name.trim_end_matches(',')).filter(|name| *name != "help").collect()
}

/// Adds the help text of a command, and those of the commands below it.
fn add_help(home: &Home, command: &[&str], texts: &mut BTreeMap<String, String>) {
    let help = home.run(command.iter().chain(&["--help"])).done();
    for name in commands(&help) {
        add_help(home, &[command, &[name]].concat(), texts);
    }
    texts.insert(format!("msb {} --help", command.join(" ")), help);
}

#[test]
fn no_help_text_holds_a_word_to_avoid() {
    let home = Home::new();
    let mut texts = BTreeMap::new();
    texts.insert("msb --help".to_owned(), home.run(["--help"]).done());
    for entry in fs::read_dir(stage("prefix/bin")).unwrap() {
        let program = entry.unwrap().file_name().into_string().unwrap();
        if let Some(command) = program.strip_prefix("msb-") {
            add_help(&home, &[command], &mut texts);
        }
    }
    assert!(texts.contains_key("msb image registry login --help"), "{:?}", texts.keys());
    assert!(texts.len() > 45, "{:?}", texts.keys());
    all_are_plain(&texts);
}

#[test]
fn a_behaviour_is_found_by_its_term() {
    let missing: Vec<String> = BEHAVIOURS
        .into_iter()
        .filter_map(|(term, path)| {
            let text = fs::read_to_string(stage("source").join(path));
            let text = text.unwrap_or_else(|error| panic!("{path}: {error}"));
            let is_found = words(&text).contains(words(term).trim_end());
            (!is_found).then(|| format!("'{term}' is not in {path}"))
        })
        .collect();
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}
