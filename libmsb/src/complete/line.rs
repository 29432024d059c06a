//! The position of the last word in a command line.

use clap::{Arg, Command};

/// A candidate's place in the grammar.
#[derive(Clone, Debug)]
pub(super) enum Place<'a> {
    /// The name of a subcommand.
    Subcommand,
    /// The name of an option.
    Option,
    /// A value of an argument, after a prefix of the word such as `--net=`.
    Value {
        /// The argument.
        arg: &'a Arg,
        /// The prefix.
        prefix: String,
    },
}

/// The position of the last word.
#[derive(Debug)]
pub(super) struct Position<'a> {
    /// The deepest subcommand.
    pub(super) command: &'a Command,
    /// Its operands before the word.
    pub(super) operands: Vec<String>,
    /// Places that the word can have.
    pub(super) places: Vec<Place<'a>>,
}

/// State of the walk through the words.
struct Walk<'a> {
    command: &'a Command,
    operands: Vec<String>,
    /// The option whose value is next.
    pending: Option<&'a Arg>,
    /// Only operands follow: `--` was typed.
    no_options: bool,
    /// The words belong to the guest's command.
    in_guest: bool,
}

/// Returns the position of `current` after the words before it.
pub(super) fn position<'a>(command: &'a Command, before: &[String], current: &str) -> Position<'a> {
    let mut walk =
        Walk { command, operands: Vec::new(), pending: None, no_options: false, in_guest: false };
    before.iter().for_each(|word| walk.pass(word));
    let places = walk.places(current);
    Position { command: walk.command, operands: walk.operands, places }
}

impl<'a> Walk<'a> {
    /// Passes a complete word.
    fn pass(&mut self, word: &str) {
        if self.in_guest || self.pending.take().is_some() {
            return;
        }
        if self.no_options || !word.starts_with('-') || word == "-" {
            return self.pass_operand(word);
        }
        if word == "--" {
            self.no_options = true;
        } else if let Some(long) = word.strip_prefix("--") {
            self.pending = long_option(self.command, long).filter(|arg| takes_value(arg));
        } else {
            self.pending = self.short_options(&word[1..]);
        }
    }

    fn pass_operand(&mut self, word: &str) {
        let sub = self.operands.is_empty().then(|| self.command.find_subcommand(word)).flatten();
        if let Some(sub) = sub.filter(|_| !self.no_options) {
            self.command = sub;
            return;
        }
        self.operands.push(word.to_owned());
        // The word after the last operand of msb starts the guest's command.
        let next = self.operand(self.operands.len() - 1);
        self.in_guest = next.is_some_and(Arg::is_last_set);
    }

    /// Returns the option of a group such as `-it` that takes the next word as its value.
    fn short_options(&self, shorts: &str) -> Option<&'a Arg> {
        let mut shorts = shorts.chars();
        while let Some(short) = shorts.next() {
            let arg = self.command.get_arguments().find(|arg| arg.get_short() == Some(short))?;
            if takes_value(arg) {
                return shorts.as_str().is_empty().then_some(arg);
            }
        }
        None
    }

    /// Returns the argument of an operand by its number; the last one may take several.
    fn operand(&self, index: usize) -> Option<&'a Arg> {
        let mut operands: Vec<&Arg> = self.command.get_positionals().collect();
        operands.sort_by_key(|arg| arg.get_index());
        let several = |arg: &&Arg| arg.get_num_args().is_some_and(|count| count.max_values() > 1);
        operands.get(index).copied().or_else(|| operands.last().copied().filter(several))
    }

    fn places(&self, current: &str) -> Vec<Place<'a>> {
        if self.in_guest {
            return Vec::new();
        }
        if let Some(arg) = self.pending {
            return vec![Place::Value { arg, prefix: String::new() }];
        }
        if current.starts_with('-') && !self.no_options {
            let Some((option, _)) = current.split_once('=') else {
                return vec![Place::Option];
            };
            let arg = long_option(self.command, option.trim_start_matches('-'));
            let value = |arg| Place::Value { arg, prefix: format!("{option}=") };
            return arg.filter(|arg| takes_value(arg)).map(value).into_iter().collect();
        }
        let mut places = Vec::new();
        if self.operands.is_empty() && self.command.has_subcommands() {
            places.push(Place::Subcommand);
        }
        let operand = self.operand(self.operands.len()).filter(|arg| !arg.is_last_set());
        places.extend(operand.map(|arg| Place::Value { arg, prefix: String::new() }));
        places
    }
}

/// Returns a long option by its name or alias. A word with a value has no next word for it.
fn long_option<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    command.get_arguments().find(|arg| {
        arg.get_long() == Some(name)
            || arg.get_all_aliases().is_some_and(|aliases| aliases.contains(&name))
    })
}

/// Returns whether an option takes the next word as its value. A value that may be missing is
/// given after an equals sign.
fn takes_value(arg: &Arg) -> bool {
    let required = arg.get_num_args().is_none_or(|count| count.min_values() > 0);
    arg.get_action().takes_values() && required
}
