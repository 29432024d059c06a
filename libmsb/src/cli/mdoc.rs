//! The generated part of a man page: a command's arguments as mdoc(7), from its clap definition.
//!
//! The first paragraph of a doc comment is the line of `--help`. The others are details for the
//! page only. In them, `code` is literal text, a path, an option or `$VARIABLE`; `**Title**` refers
//! to a section, `**Title** in name(1)` to that of a page (the page is left out in itself);
//! `name(1)` to a page; a word of the option's value name to that value. Paragraphs that start with
//! `- ` are a list, and those that start with `- `word`: ` a list with tags.

use clap::builder::StyledStr;
use clap::{Arg, ArgAction, Command};

/// Longest line of running text, in bytes.
const LINE_BYTES_MAX: usize = 79;
/// Start of a default value at the end of a help text, as clap prints it too.
const DEFAULT_MARK: &str = " [default: ";

/// Returns the sections COMMANDS, for a program with subcommands, and OPTIONS.
///
/// Options under a heading that several subcommands share are in OPTIONS, once. Options that the
/// program takes for a default subcommand are described there only.
pub(super) fn sections(mut command: Command) -> String {
    command.build();
    let shared = shared_headings(&command);
    let mut page = Page { shared, name: command.get_name().to_owned(), ..Page::default() };
    if visible(&command).next().is_some() {
        page.line(".Sh COMMANDS");
        page.commands(&command, "");
    }
    page.line(".Sh OPTIONS");
    let is_of_subcommand = |arg: &Arg| {
        let mut subcommands = visible(&command).flat_map(Command::get_arguments);
        !arg.is_global_set()
            && !is_builtin(arg.get_action())
            && subcommands.any(|other| is_same(arg, other))
    };
    let arguments = command.get_arguments();
    let arguments = arguments.filter(|arg| !arg.is_hide_set() && !is_of_subcommand(arg));
    page.arguments(arguments.collect(), ".Ss ");
    for heading in page.shared.clone() {
        let Some(owner) = owner(&command, &heading) else {
            continue;
        };
        page.arguments(under(owner, &heading), ".Ss ");
    }
    page.text
}

/// Returns the headings whose options are the same in two or more subcommands.
fn shared_headings(command: &Command) -> Vec<String> {
    let mut shared: Vec<String> = Vec::new();
    let subcommands = descendants(command);
    for (index, child) in subcommands.iter().enumerate() {
        let headings = child.get_arguments().filter_map(Arg::get_help_heading);
        for heading in headings.collect::<std::collections::BTreeSet<_>>() {
            let arguments = under(child, heading);
            let mut others = subcommands[index + 1..].iter();
            let is_shared = others.any(|other| {
                let other = under(other, heading);
                other.len() == arguments.len()
                    && other.iter().zip(&arguments).all(|(one, two)| is_same(one, two))
            });
            if is_shared && !shared.iter().any(|known| known == heading) {
                shared.push(heading.to_owned());
            }
        }
    }
    shared
}

fn descendants(command: &Command) -> Vec<&Command> {
    visible(command).flat_map(|child| [vec![child], descendants(child)].concat()).collect()
}

fn owner<'a>(command: &'a Command, heading: &str) -> Option<&'a Command> {
    descendants(command).into_iter().find(|child| !under(child, heading).is_empty())
}

fn under<'a>(command: &'a Command, heading: &str) -> Vec<&'a Arg> {
    let arguments = command.get_arguments();
    arguments.filter(|arg| arg.get_help_heading() == Some(heading) && !arg.is_hide_set()).collect()
}

fn is_same(one: &Arg, two: &Arg) -> bool {
    one.get_id() == two.get_id()
        && one.get_help().map(ToString::to_string) == two.get_help().map(ToString::to_string)
}

/// Removes what is for the man page only. `-h` and `--help` print the same short lines.
pub(crate) fn without_details(command: Command) -> Command {
    let command = command.long_about(None::<&str>).mut_args(|arg| arg.long_help(None::<&str>));
    let help = Arg::new("help").short('h').long("help").action(ArgAction::HelpShort);
    let help = help.help("Print help").help_heading(None::<&str>);
    command.disable_help_flag(true).arg(help).mut_subcommands(without_details)
}

fn visible(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|child| !child.is_hide_set() && child.get_name() != "help")
}

/// Lines of mdoc.
#[derive(Default)]
struct Page {
    text: String,
    /// Name of the program and its page.
    name: String,
    /// Headings of options that are described once for several subcommands.
    shared: Vec<String>,
}

impl Page {
    fn line(&mut self, line: &str) {
        self.text.push_str(line.trim_end());
        self.text.push('\n');
    }

    /// Writes the subcommands, each with its arguments except those of all commands.
    fn commands(&mut self, parent: &Command, prefix: &str) {
        for command in visible(parent) {
            let name = format!("{prefix}{}", command.get_name());
            let aliases = command.get_visible_aliases().map(|alias| format!(", {alias}"));
            self.line(&format!(".Ss {name}{}", aliases.collect::<String>()));
            let about = command.get_about();
            self.paragraphs(&description(about, command.get_long_about()), &[]);
            let is_own = |arg: &&Arg| {
                !arg.is_hide_set() && !arg.is_global_set() && !is_builtin(arg.get_action())
            };
            let (shared, own) =
                command.get_arguments().filter(is_own).partition::<Vec<_>, _>(|arg| {
                    let heading = arg.get_help_heading();
                    self.shared.iter().any(|shared| heading == Some(shared))
                });
            self.arguments(own, ".Pp\n");
            let is_used = |heading: &&String| {
                shared.iter().any(|arg| arg.get_help_heading() == Some(heading.as_str()))
            };
            let headings = self.shared.iter().filter(is_used);
            let headings: Vec<String> = headings.map(|heading| format!(".Sx {heading}")).collect();
            if !headings.is_empty() {
                let headings = headings.join("\nand\n");
                self.line(&format!(".Pp\nThe options under\n{headings}\nalso apply."));
            }
            self.commands(command, &format!("{name} "));
        }
    }

    /// Writes a list of arguments for each help heading, that of those without a heading first.
    fn arguments(&mut self, arguments: Vec<&Arg>, title: &str) {
        let mut headings: Vec<Option<&str>> = vec![None];
        for heading in arguments.iter().map(|arg| arg.get_help_heading()) {
            if !headings.contains(&heading) {
                headings.push(heading);
            }
        }
        for heading in headings {
            let group = arguments.iter().filter(|arg| arg.get_help_heading() == heading);
            let (positional, options): (Vec<&Arg>, _) =
                group.copied().partition(|arg| arg.is_positional());
            if positional.is_empty() && options.is_empty() {
                continue;
            }
            match heading {
                Some(heading) if title.starts_with(".Ss") => {
                    self.line(&format!("{title}{heading}"));
                }
                Some(heading) => self.line(&format!("{title}{heading}:")),
                None => {}
            }
            self.line(".Bl -tag -width Ds");
            positional.into_iter().chain(options).for_each(|arg| self.argument(arg));
            self.line(".El");
        }
    }

    fn argument(&mut self, arg: &Arg) {
        self.line(&format!(".It {}", forms(arg)));
        match arg.get_action() {
            ArgAction::Help => return self.line("Print help."),
            ArgAction::Version => return self.line("Print the version."),
            _ => {}
        }
        let mut description = description(arg.get_help(), arg.get_long_help());
        let mut default = None;
        if let Some(first) = description.first_mut()
            && let Some((text, value)) = first.split_once(DEFAULT_MARK)
            && let Some((value, rest)) = value.split_once("].")
        {
            default = Some(value.to_owned());
            *first = format!("{text}.{rest}");
        }
        let defaults = arg.get_default_values();
        if arg.get_action().takes_values() && !arg.is_hide_default_value_set() {
            let defaults = defaults.iter().map(|value| value.to_string_lossy());
            default = default.or_else(|| defaults.reduce(|a, b| a + "," + b).map(Into::into));
        }
        if let (Some(default), Some(first)) = (default, description.first_mut()) {
            // A value stands as it is typed; a description of it is prose.
            let is_value = !default.contains(' ');
            let default = if is_value { format!("`{default}`") } else { default };
            first.push_str(&format!(" The default is {default}."));
        }
        if matches!(arg.get_action(), ArgAction::Append)
            && !arg.is_positional()
            && let Some(first) = description.first_mut()
        {
            first.push_str(" Can be given more than once.");
        }
        for value in arg.get_possible_values().iter().filter(|value| !value.is_hide_set()) {
            if let Some(help) = value.get_help().filter(|_| arg.get_action().takes_values()) {
                description.push(format!("- `{}`: {help}.", value.get_name()));
            }
        }
        self.paragraphs(&description, &value_words(arg));
    }

    fn paragraphs(&mut self, paragraphs: &[String], values: &[String]) {
        let mut list: Option<bool> = None;
        for (index, paragraph) in paragraphs.iter().enumerate() {
            let item = paragraph.strip_prefix("- ");
            let tagged = item.and_then(|item| item.strip_prefix('`')?.split_once("`: "));
            if item.is_none() && list.take().is_some() {
                self.line(".El\n.Pp");
            } else if item.is_none() && index > 1 {
                self.line(".Pp");
            } else if item.is_some() && list.is_none() {
                list = Some(tagged.is_some());
                let kind = if tagged.is_some() { "-tag -width Ds" } else { "-bullet" };
                self.line(&format!(".Bl {kind} -compact"));
            }
            match (tagged, item) {
                (Some((tag, text)), _) => {
                    self.line(&format!(".It Cm {}", argument_text(tag)));
                    self.text(text, values);
                }
                (None, Some(text)) => {
                    self.line(".It");
                    self.text(text, values);
                }
                (None, None) => self.text(paragraph, values),
            }
        }
        if list.is_some() {
            self.line(".El");
        }
    }

    /// Writes running text: markup on lines of its own, each sentence on a new line.
    fn text(&mut self, text: &str, values: &[String]) {
        let text = text.replace(&format!("** in {}(1)", self.name), "**");
        let mut line = String::new();
        // Options of libmsb refer to pages that they are part of.
        let own_page = format!("{}(1)", self.name);
        for word in words(&text) {
            let core = word.trim_start_matches(['(', '[']);
            let opening = &word[..word.len() - core.len()];
            let end = core.trim_end_matches(['.', ',', ':', ';', '?', '!', ')', ']']);
            let parenthesis = usize::from(is_reference(core, end));
            let (core, closing) = core.split_at(end.len() + parenthesis);
            let is_own_page = core == own_page;
            if !is_own_page && let Some(markup) = markup(core, values) {
                self.flush(&mut line);
                let spaced =
                    |marks: &str| marks.chars().map(|c| format!(" {c}")).collect::<String>();
                let (name, rest) = markup.split_at(3);
                self.line(&format!("{name}{}{rest}{}", spaced(opening), spaced(closing)));
                continue;
            }
            let word = match is_own_page {
                true => format!("{opening}this page{closing}"),
                false => word.clone(),
            };
            if line.len() + 1 + word.len() > LINE_BYTES_MAX {
                self.flush(&mut line);
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(&word.replace('`', "").replace('\\', "\\e"));
            if line.trim_end_matches(')').ends_with(['.', '?', '!']) {
                self.flush(&mut line);
            }
        }
        self.flush(&mut line);
    }

    fn flush(&mut self, line: &mut String) {
        if !line.is_empty() {
            let guard = if line.starts_with(['.', '\'']) { "\\&" } else { "" };
            self.line(&format!("{guard}{line}"));
            line.clear();
        }
    }
}

fn is_builtin(action: &ArgAction) -> bool {
    matches!(action, ArgAction::Help | ArgAction::Version)
}

/// Returns the paragraphs of a description. The first is a sentence made of the help line.
fn description(short: Option<&StyledStr>, long: Option<&StyledStr>) -> Vec<String> {
    let short = short.map(ToString::to_string).unwrap_or_default();
    let mut paragraphs = Vec::new();
    if !short.is_empty() {
        paragraphs.push(format!("{}.", short.replace('\n', " ")));
    }
    let long = long.map(ToString::to_string).unwrap_or_default();
    let details = long.split("\n\n").skip(1).map(|paragraph| paragraph.replace('\n', " "));
    paragraphs.extend(details.filter(|paragraph| !paragraph.trim().is_empty()));
    paragraphs
}

/// Returns the forms of an argument, as they stand after `.It`.
fn forms(arg: &Arg) -> String {
    let value = value_form(arg);
    if arg.is_positional() {
        return value;
    }
    let short = arg.get_short().map(|short| short.to_string());
    let longs = arg.get_long().into_iter().chain(arg.get_visible_aliases().unwrap_or_default());
    let flags: Vec<String> =
        short.into_iter().chain(longs.map(|long| format!("-{long}"))).collect();
    format!("Fl {} {value}", flags.join(" , ")).trim_end().to_owned()
}

fn value_form(arg: &Arg) -> String {
    if !arg.get_action().takes_values() {
        return String::new();
    }
    let possible = arg.get_possible_values();
    let listed = possible.iter().filter(|value| !value.is_hide_set());
    let listed: Vec<&str> = listed.map(|value| value.get_name()).collect();
    let explained = possible.iter().any(|value| value.get_help().is_some());
    if !listed.is_empty() && !explained && !arg.is_hide_possible_values_set() {
        return format!("Cm {}", listed.join(" | "));
    }
    let names = arg.get_value_names().unwrap_or_default();
    let names = names.iter().map(|name| format!("Ar {}", name.to_lowercase()));
    let names = names.collect::<Vec<_>>().join(" ");
    let many =
        arg.get_num_args().is_some_and(|range| range.max_values() > range.min_values().max(1));
    let optional = arg.get_num_args().is_some_and(|range| range.min_values() == 0);
    match (many, optional) {
        (true, _) => format!("{names} ..."),
        (false, true) => format!("Op {names}"),
        (false, false) => names,
    }
}

/// Returns the words of an argument's value names, as its description refers to them.
fn value_words(arg: &Arg) -> Vec<String> {
    if !arg.get_action().takes_values() {
        return Vec::new();
    }
    let names = arg.get_value_names().unwrap_or_default().iter();
    let words = names.flat_map(|name| name.split(|c: char| !(c.is_ascii_uppercase() || c == '_')));
    words.filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// Returns the words of a text. Literal text and titles of sections are one word.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let (mut is_code, mut is_title) = (false, false);
    for c in text.chars() {
        if c == ' ' && !is_code && !is_title {
            words.push(std::mem::take(&mut word));
            continue;
        }
        word.push(c);
        is_code ^= c == '`';
        is_title ^= !is_code && word.ends_with("**");
    }
    words.push(word);
    words.retain(|word| !word.is_empty());
    words
}

/// Returns whether a word refers to a page, as `msb(1`, whose parenthesis was cut off, does.
fn is_reference(core: &str, end: &str) -> bool {
    let Some((name, section)) = end.split_once('(') else {
        return false;
    };
    let is_name =
        !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
    is_name
        && section.len() == 1
        && section.as_bytes()[0].is_ascii_digit()
        && core[end.len()..].starts_with(')')
}

/// Returns the line for a word that is not plain text.
fn markup(word: &str, values: &[String]) -> Option<String> {
    if let Some(code) = word.strip_prefix('`').and_then(|word| word.strip_suffix('`')) {
        let is_variable = |name: &str| {
            name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
        };
        return Some(match code.strip_prefix('$') {
            Some(name) if is_variable(name) => format!(".Ev {name}"),
            _ if code.starts_with('/') && code.len() > 1 => format!(".Pa {}", argument_text(code)),
            _ => option(code).unwrap_or_else(|| format!(".Ql {}", argument_text(code))),
        });
    }
    if let Some(title) = word.strip_prefix("**").and_then(|word| word.strip_suffix("**")) {
        return Some(format!(".Sx {title}"));
    }
    if let Some((name, section)) = word.strip_suffix(')').and_then(|word| word.split_once('(')) {
        return Some(format!(".Xr {name} {section}"));
    }
    if values.iter().any(|value| value == word) {
        return Some(format!(".Ar {}", word.to_lowercase()));
    }
    option(word)
}

fn option(word: &str) -> Option<String> {
    let name = word.strip_prefix('-')?;
    let letters = name.strip_prefix('-').unwrap_or(name);
    let is_short = letters == name && name.len() == 1;
    let is_long = letters != name && letters.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    (is_short && letters != "-" || is_long && !letters.is_empty()).then(|| format!(".Fl {name}"))
}

/// Returns literal text as one argument of a macro.
fn argument_text(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('"', "\\(dq").replace('-', "\\-");
    let is_name = text.len() > 3 && !text.contains(' ');
    if is_name { text } else { format!("\"\\&{text}\"") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use clap::builder::PossibleValue;

    /// Does it
    #[derive(Parser)]
    #[command(name = "t", version)]
    #[allow(dead_code, reason = "only the definition counts")]
    struct Args {
        /// Set a limit [default: 4G]
        ///
        /// SIZE is a number, as `512M`; see **A section** (and msb-net(1)). It is not for
        /// `--input`, `/dev/null` or `$HOME`.
        ///
        /// Sizes:
        ///
        /// - `M`: MiB
        ///
        /// - `G`: GiB
        #[arg(short, long, value_name = "SIZE", help_heading = "Storage", visible_alias = "bound")]
        limit: Option<String>,
        /// Take a NAME
        #[arg(long, value_parser = ["a", "b"], default_value = "a")]
        input: Vec<String>,
        /// Files
        #[arg(value_name = "FILE")]
        files: Vec<String>,
    }

    fn command() -> Command {
        <Args as clap::CommandFactory>::command()
    }

    #[test]
    fn each_argument_has_its_forms_its_line_and_its_details_below_its_heading() {
        let expected = r#".Sh OPTIONS
.Bl -tag -width Ds
.It Ar file ...
Files.
.It Fl -input Cm a | b
Take a NAME.
The default is
.Ql "\&a" .
Can be given more than once.
.It Fl h , -help
Print help.
.It Fl V , -version
Print the version.
.El
.Ss Storage
.Bl -tag -width Ds
.It Fl l , -limit , -bound Ar size
Set a limit.
The default is
.Ql "\&4G" .
.Ar size
is a number, as
.Ql 512M ;
see
.Sx A section
(and
.Xr msb-net 1 ) .
It is not for
.Fl -input ,
.Pa /dev/null
or
.Ev HOME .
.Pp
Sizes:
.Bl -tag -width Ds -compact
.It Cm "\&M"
MiB
.It Cm "\&G"
GiB
.El
.El
"#;
        assert_eq!(sections(command()), expected);
    }

    #[test]
    fn the_help_has_one_line_for_an_option_in_both_forms() {
        let help = |flag| {
            let error = without_details(command()).try_get_matches_from(["t", flag]).unwrap_err();
            error.to_string()
        };
        assert_eq!(help("-h"), help("--help"));
        assert!(
            help("-h").contains("Set a limit [default: 4G] [alias: --bound]\n"),
            "{}",
            help("-h")
        );
        assert!(!help("-h").contains("512M"), "{}", help("-h"));
    }

    #[test]
    fn options_that_subcommands_share_are_described_once() {
        let level = || {
            let arg = Arg::new("level").long("level").value_name("N").help("Set the level");
            arg.help_heading("Log")
        };
        let all = || Arg::new("all").long("all").action(ArgAction::SetTrue).help("Show all");
        let show = Command::new("show").about("Show").arg(all()).arg(level());
        let list = Command::new("list").about("List as t(1) says").arg(level());
        let text = sections(Command::new("t").arg(all()).subcommands([show, list]));
        let expected = ".Sh COMMANDS\n.Ss show\nShow.\n\
            .Bl -tag -width Ds\n.It Fl -all\nShow all.\n.El\n\
            .Pp\nThe options under\n.Sx Log\nalso apply.\n.Ss list\nList as this page says.\n\
            .Pp\nThe options under\n.Sx Log\nalso apply.\n\
            .Sh OPTIONS\n.Bl -tag -width Ds\n.It Fl h , -help\nPrint help.\n.El\n\
            .Ss Log\n.Bl -tag -width Ds\n.It Fl -level Ar n\nSet the level.\n.El\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_subcommand_has_a_section_and_no_options_of_all() {
        let value = PossibleValue::new("json").help("JSON");
        let format = Arg::new("format").long("format").value_name("FORMAT").help("Set the format");
        let list = Command::new("list")
            .visible_alias("ls")
            .about("List them")
            .arg(format.value_parser([value]));
        let text = sections(Command::new("t").subcommand(list));
        let expected = ".Sh COMMANDS\n.Ss list, ls\nList them.\n.Bl -tag -width Ds\n\
            .It Fl -format Ar format\nSet the format.\n.Bl -tag -width Ds -compact\n\
            .It Cm json\nJSON.\n.El\n.El\n.Sh OPTIONS\n";
        assert!(text.starts_with(expected), "{text}");
    }
}
