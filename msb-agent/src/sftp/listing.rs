//! Attributes and lines of directory listings. Old clients print the line, in the format of
//! `ls -l`, unchanged.

use std::collections::HashMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use rustix::fs::FileType;

use super::packet::FileAttributes;

/// Maximum number of bytes to read from `/etc/passwd` and `/etc/group`.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Age in seconds from which a time is shown with its year, as by ls(1).
const RECENT_SECONDS: i64 = 182 * DAY_SECONDS;
const DAY_SECONDS: i64 = 86_400;

/// Names of users and groups by id.
#[derive(Debug, Default)]
pub(super) struct AccountNames {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl AccountNames {
    /// Reads the guest's current files.
    pub(super) fn read() -> AccountNames {
        let named = |path: &str| {
            let small = std::fs::metadata(path)
                .is_ok_and(|file| file.is_file() && file.len() <= FILE_BYTES_MAX);
            let content = if small { std::fs::read(path).ok() } else { None };
            by_number(&String::from_utf8_lossy(&content.unwrap_or_default()))
        };
        AccountNames { users: named("/etc/passwd"), groups: named("/etc/group") }
    }

    /// Returns a user's name if it has one.
    pub(super) fn user(&self, number: u32) -> Option<&str> {
        self.users.get(&number).map(String::as_str)
    }

    /// Returns a group's name if it has one.
    pub(super) fn group(&self, number: u32) -> Option<&str> {
        self.groups.get(&number).map(String::as_str)
    }
}

/// Parses names by id, which is the third field of both files. The first name of an id counts.
fn by_number(file: &str) -> HashMap<u32, String> {
    let mut names = HashMap::new();
    for line in file.lines() {
        let mut fields = line.split(':');
        let (name, number) = (fields.next(), fields.nth(1));
        if let (Some(name), Some(Ok(number))) = (name, number.map(str::parse)) {
            names.entry(number).or_insert_with(|| name.to_owned());
        }
    }
    names
}

/// Returns the attributes of a file. Times have 32 bits and are clamped.
pub(super) fn attributes(file: &Metadata) -> FileAttributes {
    let time = |seconds: i64| u32::try_from(seconds.max(0)).unwrap_or(u32::MAX);
    FileAttributes {
        size: Some(file.size()),
        owner: Some((file.uid(), file.gid())),
        mode: Some(file.mode()),
        times: Some((time(file.atime()), time(file.mtime()))),
    }
}

/// Formats a line as `ls -l` does, in UTC.
pub(super) fn line(name: &[u8], file: &Metadata, names: &AccountNames, now: i64) -> Vec<u8> {
    let number = |name: Option<&str>, id: u32| name.map_or_else(|| id.to_string(), str::to_owned);
    let head = format!(
        "{} {:>4} {:<8} {:<8} {:>8} {} ",
        mode(file.mode()),
        file.nlink(),
        number(names.user(file.uid()), file.uid()),
        number(names.group(file.gid()), file.gid()),
        file.size(),
        date(file.mtime(), now)
    );
    [head.as_bytes(), name].concat()
}

fn mode(mode: u32) -> String {
    let kind = match FileType::from_raw_mode(mode) {
        FileType::Directory => 'd',
        FileType::Symlink => 'l',
        FileType::CharacterDevice => 'c',
        FileType::BlockDevice => 'b',
        FileType::Fifo => 'p',
        FileType::Socket => 's',
        _ => '-',
    };
    let mut text = String::from(kind);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (mode & special != 0, bits & 1 != 0) {
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

fn date(seconds: i64, now: i64) -> String {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (year, month, day) = civil(seconds.div_euclid(DAY_SECONDS));
    let month = MONTHS[month % 12];
    let minute = seconds.rem_euclid(DAY_SECONDS) / 60;
    if (now - RECENT_SECONDS..=now).contains(&seconds) {
        format!("{month} {day:>2} {:02}:{:02}", minute / 60, minute % 60)
    } else {
        format!("{month} {day:>2} {year:>5}")
    }
}

/// Converts days since 1970 to year, month (from 0) and day of the Gregorian calendar.
fn civil(days: i64) -> (i64, usize, i64) {
    // Years start in March here, so that the leap day is the last day of a year; 400 years always
    // have the same number of days.
    const ERA_DAYS: i64 = 146_097;
    let days = days + 719_468;
    let (era, day) = (days.div_euclid(ERA_DAYS), days.rem_euclid(ERA_DAYS));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day_of_month = day - (153 * month + 2) / 5 + 1;
    let in_next_year = i64::from(month >= 10);
    (era * 400 + year + in_next_year, ((month + 2) % 12) as usize, day_of_month)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_shown_as_by_ls() {
        for (bits, text) in [
            (0o100644, "-rw-r--r--"),
            (0o040755, "drwxr-xr-x"),
            (0o041777, "drwxrwxrwt"),
            (0o104750, "-rwsr-x---"),
            (0o102644, "-rw-r-Sr--"),
            (0o120777, "lrwxrwxrwx"),
            (0o140600, "srw-------"),
        ] {
            assert_eq!(mode(bits), text);
        }
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        let now = 1_709_210_096; // 2024-02-29 12:34:56
        assert_eq!(date(now, now), "Feb 29 12:34");
        assert_eq!(date(now + 1, now), "Feb 29  2024");
        assert_eq!(date(0, now), "Jan  1  1970");
        assert_eq!(date(-1, now), "Dec 31  1969");
        assert_eq!(date(951_782_400, now), "Feb 29  2000");
        assert_eq!(date(4_107_542_400, now), "Mar  1  2100");
    }

    #[test]
    fn the_first_name_of_an_id_counts() {
        let names = by_number("root:x:0:0::/:\ntoor:x:0:\nbroken\nann:x:7");
        assert_eq!(names.get(&0).map(String::as_str), Some("root"));
        assert_eq!(names.get(&7).map(String::as_str), Some("ann"));
        assert_eq!(names.len(), 2);
    }
}
