//! Tables, times, ages and sizes for people. Programs use `--format json` instead.

use std::borrow::Cow;
use std::io::{self, Write};
use std::time::SystemTime;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::escape::escape;
use super::output;

/// Spaces between two columns.
const GAP: usize = 3;

/// A table with aligned columns. Cells are escaped when they are added.
#[derive(Clone, Debug)]
pub struct Table {
    header: Vec<String>,
    right: Vec<bool>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Returns a table with these columns. A name that starts with `>` aligns its column to the
    /// right.
    pub fn new(columns: &[&str]) -> Table {
        Table {
            header: columns.iter().map(|name| name.trim_start_matches('>').to_owned()).collect(),
            right: columns.iter().map(|name| name.starts_with('>')).collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row. Excess cells are dropped, missing ones are empty.
    pub fn row<C: AsRef<str>>(&mut self, cells: impl IntoIterator<Item = C>) {
        let mut row: Vec<String> =
            cells.into_iter().map(|cell| escape(cell.as_ref()).into_owned()).collect();
        row.resize(self.header.len(), String::new());
        self.rows.push(row);
    }

    /// Returns whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Prints the table to standard output. The header is bold on a terminal with colors.
    pub fn print(&self) -> io::Result<()> {
        let mut stdout = output::stdout();
        stdout.write_all(self.render(is_colored()).as_bytes())?;
        stdout.flush()
    }

    /// Returns the table as text.
    pub fn render(&self, bold_header: bool) -> String {
        let widths = self.widths();
        let header = self.line(&self.header, &widths);
        let mut text = if bold_header { bold(&header).into_owned() } else { header };
        text.push('\n');
        for row in &self.rows {
            text.push_str(&self.line(row, &widths));
            text.push('\n');
        }
        text
    }

    fn widths(&self) -> Vec<usize> {
        let column = |index: usize| {
            self.rows.iter().chain([&self.header]).map(move |row| width(&row[index]))
        };
        (0..self.header.len()).map(|index| column(index).max().unwrap_or(0)).collect()
    }

    fn line(&self, cells: &[String], widths: &[usize]) -> String {
        let mut line = String::new();
        for ((cell, wide), right) in cells.iter().zip(widths).zip(&self.right) {
            let padding = " ".repeat(wide - width(cell));
            if *right {
                line.push_str(&padding);
            }
            line.push_str(cell);
            if !*right {
                line.push_str(&padding);
            }
            line.push_str(&" ".repeat(GAP));
        }
        line.trim_end().to_owned()
    }
}

fn width(cell: &str) -> usize {
    cell.chars().count()
}

fn bold(text: &str) -> Cow<'_, str> {
    Cow::Owned(format!("\x1b[1m{text}\x1b[0m"))
}

/// Returns whether standard output may have colors: a terminal that is not dumb, without
/// `NO_COLOR`.
pub fn is_colored() -> bool {
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|value| value == "dumb");
    output::is_terminal() && !no_color && !dumb
}

/// Conversion of a point in time: [`SystemTime`], or RFC 3339 text.
pub trait ToTimestamp {
    /// Returns the point in time; `None` if it is invalid or outside the calendar.
    fn timestamp(&self) -> Option<Timestamp>;
}

impl ToTimestamp for SystemTime {
    fn timestamp(&self) -> Option<Timestamp> {
        Timestamp::try_from(*self).ok()
    }
}

impl ToTimestamp for str {
    fn timestamp(&self) -> Option<Timestamp> {
        self.parse().ok()
    }
}

impl ToTimestamp for String {
    fn timestamp(&self) -> Option<Timestamp> {
        self.as_str().timestamp()
    }
}

/// Returns the local time: `2026-11-23 14:05:09`. A dash if it is invalid.
pub fn local_time(moment: &(impl ToTimestamp + ?Sized)) -> String {
    time_in(moment, TimeZone::system())
}

fn time_in(moment: &(impl ToTimestamp + ?Sized), zone: TimeZone) -> String {
    let Some(timestamp) = moment.timestamp() else {
        return "-".to_owned();
    };
    timestamp.to_zoned(zone).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// Returns the age: `3 minutes ago`. A dash if the time is invalid.
pub fn age(moment: &(impl ToTimestamp + ?Sized), now: SystemTime) -> String {
    const UNITS: [(i64, &str); 6] = [
        (365 * 24 * 3600, "year"),
        (30 * 24 * 3600, "month"),
        (24 * 3600, "day"),
        (3600, "hour"),
        (60, "minute"),
        (1, "second"),
    ];
    let (Some(then), Some(now)) = (moment.timestamp(), now.timestamp()) else {
        return "-".to_owned();
    };
    let seconds = now.as_second() - then.as_second();
    let Some((unit, name)) = UNITS.iter().find(|(unit, _)| seconds >= *unit) else {
        return "now".to_owned();
    };
    match seconds / unit {
        1 => format!("1 {name} ago"),
        count => format!("{count} {name}s ago"),
    }
}

/// Returns a time for a table: its age, or the local time.
pub fn when(time: Timestamp, absolute: bool) -> String {
    let time = SystemTime::from(time);
    if absolute { local_time(&time) } else { age(&time, SystemTime::now()) }
}

/// Returns a size in bytes with a binary unit: `7.8 MiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64;
    let mut unit = "B";
    for name in UNITS {
        // A value that would be printed as 1024.0 is 1.0 of the next unit.
        if value < 1023.95 {
            break;
        }
        value /= 1024.0;
        unit = name;
    }
    format!("{value:.1} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn columns_are_aligned_and_lines_end_with_their_last_character() {
        let mut table = Table::new(&["NAME", ">SIZE", "STATUS"]);
        table.row(["web", "9", "running"]);
        table.row(["database", "1024"]);
        assert_eq!(
            table.render(false),
            "NAME       SIZE   STATUS\nweb           9   running\ndatabase   1024\n"
        );
        assert!(table.render(true).starts_with("\x1b[1mNAME       SIZE   STATUS\x1b[0m\n"));
    }

    #[test]
    fn cells_cannot_act_upon_the_terminal() {
        let mut table = Table::new(&["NAME"]);
        table.row(["\x1b[2J"]);
        assert_eq!(table.render(false), "NAME\n\\x1b[2J\n");
    }

    #[test]
    fn times_are_shown_on_the_local_clock() {
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        assert_eq!(time_in("2026-11-23T12:05:09.5Z", zone.clone()), "2026-11-23 14:05:09");
        assert_eq!(time_in(&UNIX_EPOCH, zone.clone()), "1970-01-01 02:00:00");
        assert_eq!(time_in("yesterday", zone), "-");
    }

    #[test]
    fn an_age_has_one_unit() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let ago = |seconds: u64| age(&(now - Duration::from_secs(seconds)), now);
        assert_eq!(ago(0), "now");
        assert_eq!(ago(1), "1 second ago");
        assert_eq!(ago(200), "3 minutes ago");
        assert_eq!(ago(86_400 * 800), "2 years ago");
        assert_eq!(age(&(now + Duration::from_secs(5)), now), "now");
    }

    #[test]
    fn sizes_have_binary_units() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(1024 * 1024 - 1), "1.0 MiB");
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
    }
}
