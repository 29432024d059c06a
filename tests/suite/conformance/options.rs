//! Commands and options, from the trees that both programs print.

use std::fmt;

use super::Peer;

/// A command, with what it accepts.
pub(super) struct CommandEntry {
    /// As typed: `msb image list`.
    pub(super) name: String,
    aliases: Vec<String>,
    options: Vec<OptionEntry>,
}

/// Names of one option.
#[derive(Clone)]
struct OptionEntry {
    names: Vec<String>,
    has_value: bool,
}

/// The command itself, another name of it, or one name of an option.
pub(super) enum Item {
    Itself,
    Alias(String),
    Option { name: String, has_value: bool },
}

impl fmt::Display for Item {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Item::Itself => Ok(()),
            Item::Alias(name) => write!(formatter, "(as {name})"),
            Item::Option { name, .. } => formatter.write_str(name),
        }
    }
}

impl CommandEntry {
    pub(super) fn items(&self) -> impl Iterator<Item = Item> {
        let option = |option: &OptionEntry| {
            let has_value = option.has_value;
            let named = move |name| Item::Option { name, has_value };
            option.names.clone().into_iter().map(named).collect::<Vec<_>>()
        };
        let aliases = self.aliases.iter().cloned().map(Item::Alias);
        [Item::Itself].into_iter().chain(aliases).chain(self.options.iter().flat_map(option))
    }
}

/// Reads the tree of microsandbox: branches are drawn, four characters a level.
pub(super) fn parse(tree: &str) -> Vec<CommandEntry> {
    let root = CommandEntry { name: "msb".to_owned(), aliases: vec![], options: vec![] };
    let (mut commands, mut path) = (vec![root], vec!["msb".to_owned()]);
    for line in tree.lines() {
        let Some(start) = line.find(['├', '└']) else { continue };
        let depth = line[..start].chars().count() / 4;
        let text: String = line[start..].chars().skip(4).collect();
        let words = text.split("  ").next().unwrap_or_default().trim();
        if words.starts_with('-') {
            commands.last_mut().unwrap().options.push(option(words));
        } else if !words.starts_with(['<', '[']) {
            let (name, aliases) = words.split_once(" (aliases: ").unwrap_or((words, ""));
            path.truncate(depth + 1);
            path.push(name.to_owned());
            let aliases = aliases.trim_end_matches(')').split(", ").filter(|name| !name.is_empty());
            let aliases = aliases.map(str::to_owned).collect();
            commands.push(CommandEntry { name: path.join(" "), aliases, options: vec![] });
        }
    }
    commands
}

fn option(words: &str) -> OptionEntry {
    let names = words.split([' ', ',']).filter(|word| word.starts_with('-'));
    OptionEntry { names: names.map(str::to_owned).collect(), has_value: words.ends_with('>') }
}

/// Values of which each option accepts one: what is tried is the option, not its value.
const VALUES: [&str; 25] = [
    "1",
    "x",
    "json",
    "/x",
    "x=y",
    "x:/y",
    "/x:/y",
    "x@example.com",
    "allow",
    "never",
    "default",
    "1s",
    "1.1.1.1",
    "10.0.0.0/8",
    "fd00::/32",
    "info",
    "docker",
    "stdout",
    "block",
    "allow@public",
    "nofile=1",
    "8080:80",
    "auto",
    "ctrl-]",
    "4G",
];

/// Returns for each item whether a command line of ours may hold it. One shell asks for all of them.
pub(super) fn accepted(ours: &Peer, command: &CommandEntry) -> Vec<bool> {
    let lines: Vec<String> = command.items().map(|item| question(command, &item)).collect();
    let answers = ours.shell(&lines.join("\n")).stdout;
    let answers = String::from_utf8(answers).unwrap();
    let accepted: Vec<bool> = answers.lines().map(|answer| answer == "yes").collect();
    assert_eq!(accepted.len(), lines.len(), "{}", command.name);
    accepted
}

/// Returns a line for the shell that prints `yes` or `no`.
fn question(command: &CommandEntry, item: &Item) -> String {
    let attempts = match item {
        Item::Itself => vec![command.name.clone()],
        Item::Alias(alias) => {
            let (parent, _) = command.name.rsplit_once(' ').unwrap();
            vec![format!("{parent} {alias}")]
        }
        Item::Option { name, has_value: false } => vec![format!("{} {name}", command.name)],
        Item::Option { name, has_value: true } => {
            VALUES.iter().map(|value| format!("{} {name} '{value}'", command.name)).collect()
        }
    };
    let attempts: Vec<String> =
        attempts.iter().map(|line| format!("{line} --help >&/dev/null")).collect();
    format!("{{ {}; }} && echo yes || echo no", attempts.join(" || "))
}
