//! Users and groups of the guest.
//!
//! `/etc/passwd` and `/etc/group` come from an image; malformed lines are skipped. The rules are
//! those of docker: digits are a numeric id even if a user has that name; an id without an entry is
//! used as it is, with group 0; the supplementary groups are those that list the user's name,
//! unless a group is given. `root` is id 0 even without an entry of that name: images without
//! `/etc/passwd` are common, and clients name root.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;

/// User and groups of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Account {
    /// User id.
    pub(crate) uid: u32,
    /// Group id.
    pub(crate) gid: u32,
    /// All groups, `gid` first.
    pub(crate) groups: Vec<u32>,
    /// Home directory.
    pub(crate) home: Vec<u8>,
    /// User name, or the id in digits without an entry.
    pub(crate) name: Vec<u8>,
    /// Login shell.
    pub(crate) shell: Vec<u8>,
}

/// Error: a name without an entry, or an id out of range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum UnknownAccount {
    /// Unknown user.
    User(String),
    /// Unknown group.
    Group(String),
}

/// Shell of a user without one in `/etc/passwd`: same as login(1).
const DEFAULT_SHELL: &[u8] = b"/bin/sh";

/// Maximum number of bytes to read from `/etc/passwd` and `/etc/group`.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Maximum number of groups of a process on Linux.
const GROUPS_MAX: usize = 65_536;

/// Maximum user or group id: above it, programs disagree on the sign.
const ID_MAX: u32 = i32::MAX as u32;

/// Looks up `USER|UID[:GROUP|GID]` in the guest's files. An empty user is root.
pub(crate) fn find(spec: &[u8]) -> Result<Account, UnknownAccount> {
    resolve(spec, &read("/etc/passwd"), &read("/etc/group"))
}

/// Reads a file; one that is missing or not a regular file has no entries. Opens without blocking,
/// because an image may have a fifo there.
fn read(path: &str) -> Vec<u8> {
    let mut content = Vec::new();
    let file =
        File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
    if let Ok(file) = file
        && file.metadata().is_ok_and(|metadata| metadata.is_file())
    {
        let _ = file.take(FILE_BYTES_MAX).read_to_end(&mut content);
    }
    content
}

fn resolve(spec: &[u8], passwd: &[u8], group: &[u8]) -> Result<Account, UnknownAccount> {
    let (user_part, group_part) = match spec.iter().position(|byte| *byte == b':') {
        Some(colon) => (&spec[..colon], &spec[colon + 1..]),
        None => (spec, &[][..]),
    };
    let user_part = if user_part.is_empty() { b"0" } else { user_part };
    let user =
        find_user(user_part, passwd).ok_or_else(|| UnknownAccount::User(lossy(user_part)))?;
    let (gid, groups) = if group_part.is_empty() {
        (user.gid, with_first(user.gid, groups_of(user.name, group)))
    } else {
        let gid = find_group(group_part, group);
        let gid = gid.ok_or_else(|| UnknownAccount::Group(lossy(group_part)))?;
        (gid, vec![gid])
    };
    let digits = || user.uid.to_string().into_bytes();
    Ok(Account {
        uid: user.uid,
        gid,
        groups,
        home: user.home,
        name: user.name.map_or_else(digits, <[u8]>::to_vec),
        shell: user.shell,
    })
}

struct PasswdEntry<'a> {
    name: Option<&'a [u8]>,
    uid: u32,
    gid: u32,
    home: Vec<u8>,
    shell: Vec<u8>,
}

/// Name of user and group 0.
const ROOT: &[u8] = b"root";

fn find_user<'a>(wanted: &[u8], passwd: &'a [u8]) -> Option<PasswdEntry<'a>> {
    let found = find_entry(wanted, passwd);
    if found.is_some() || wanted != ROOT {
        return found;
    }
    find_entry(b"0", passwd).map(|entry| PasswdEntry { name: entry.name.or(Some(ROOT)), ..entry })
}

fn find_entry<'a>(wanted: &[u8], passwd: &'a [u8]) -> Option<PasswdEntry<'a>> {
    let number = is_number(wanted).then(|| parse_id(wanted));
    let found = entries(passwd).find_map(|fields| {
        let [name, _, uid, gid, _, home, shell @ ..] = fields.as_slice() else {
            return None;
        };
        let (uid, gid) = (parse_id(uid)?, parse_id(gid)?);
        let matches = if number.is_some() { number == Some(Some(uid)) } else { *name == wanted };
        let home = if home.is_empty() { b"/".to_vec() } else { home.to_vec() };
        let shell = shell.first().filter(|shell| !shell.is_empty());
        matches.then_some(PasswdEntry {
            name: Some(name),
            uid,
            gid,
            home,
            shell: shell.map_or(DEFAULT_SHELL, |shell| shell).to_vec(),
        })
    });
    found.or_else(|| {
        Some(PasswdEntry {
            name: None,
            uid: number??,
            gid: 0,
            home: b"/".to_vec(),
            shell: DEFAULT_SHELL.to_vec(),
        })
    })
}

fn find_group(wanted: &[u8], group: &[u8]) -> Option<u32> {
    if is_number(wanted) {
        return parse_id(wanted);
    }
    let found = entries(group).find_map(|fields| match fields.as_slice() {
        [name, _, gid, ..] if *name == wanted => parse_id(gid),
        _ => None,
    });
    found.or((wanted == ROOT).then_some(0))
}

fn groups_of(name: Option<&[u8]>, group: &[u8]) -> Vec<u32> {
    let Some(name) = name else { return Vec::new() };
    let listed = entries(group).filter_map(|fields| {
        let [_, _, gid, members] = fields.as_slice() else {
            return None;
        };
        let is_member =
            members.split(|byte| *byte == b',').any(|member| member.trim_ascii() == name);
        is_member.then(|| parse_id(gid)).flatten()
    });
    listed.take(GROUPS_MAX - 1).collect()
}

fn with_first(gid: u32, others: Vec<u32>) -> Vec<u32> {
    let mut groups = vec![gid];
    groups.extend(others.into_iter().filter(|other| *other != gid));
    groups
}

/// Splits a file into lines of fields between colons, without comments.
fn entries(file: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> {
    let lines = file
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty() && !line.starts_with(b"#"));
    lines.map(|line| line.split(|byte| *byte == b':').collect())
}

fn is_number(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(u8::is_ascii_digit)
}

fn parse_id(text: &[u8]) -> Option<u32> {
    let text = str::from_utf8(text).ok().filter(|text| is_number(text.as_bytes()))?;
    text.parse().ok().filter(|id| *id <= ID_MAX)
}

fn lossy(text: &[u8]) -> String {
    String::from_utf8_lossy(text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/bash\n\
        broken\n# comment:x:9:9::/:\n\
        daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n\
        1000:x:7:7:a name of digits:/seven:\n\
        ann:x:1000:1001:Ann,,,:/home/ann:/bin/sh\n\
        far:x:99999999999:1::/far:\n\
        homeless:x:12:12:::";
    const GROUP: &[u8] = b"root:x:0:\nadm:x:4:root,ann\naudio:x:29:ann , bob\nann:x:1001:ann\nbad:x:nine:ann\nshort:x:5\n";

    fn account(spec: &str) -> Result<(u32, u32, Vec<u32>, String), UnknownAccount> {
        let account = resolve(spec.as_bytes(), PASSWD, GROUP)?;
        Ok((account.uid, account.gid, account.groups, lossy(&account.home)))
    }

    #[test]
    fn names_and_ids_find_the_same_entry() {
        let ann = Ok((1000, 1001, vec![1001, 4, 29], "/home/ann".to_owned()));
        assert_eq!(account("ann"), ann);
        assert_eq!(account("1000"), ann);
        assert_eq!(account(""), Ok((0, 0, vec![0, 4], "/root".into())));
        assert_eq!(account("0:0"), Ok((0, 0, vec![0], "/root".into())));
    }

    #[test]
    fn a_named_group_replaces_all_others() {
        assert_eq!(account("ann:audio"), Ok((1000, 29, vec![29], "/home/ann".into())));
        assert_eq!(account("ann:77"), Ok((1000, 77, vec![77], "/home/ann".into())));
        assert_eq!(account(":adm"), Ok((0, 4, vec![4], "/root".into())));
        assert_eq!(account("ann:"), account("ann"));
    }

    #[test]
    fn ids_need_no_entry_but_names_do() {
        assert_eq!(account("4242"), Ok((4242, 0, vec![0], "/".into())));
        assert_eq!(account("4242:5"), Ok((4242, 5, vec![5], "/".into())));
        assert_eq!(account("bob"), Err(UnknownAccount::User("bob".into())));
        assert_eq!(account("ann:nobody"), Err(UnknownAccount::Group("nobody".into())));
        assert_eq!(account("4294967295"), Err(UnknownAccount::User("4294967295".into())));
        assert_eq!(account("far"), Err(UnknownAccount::User("far".into())));
    }

    #[test]
    fn root_is_number_0_without_an_entry() {
        let root = |spec: &str, passwd: &[u8], group: &[u8]| {
            let account = resolve(spec.as_bytes(), passwd, group).unwrap();
            (account.uid, account.groups, lossy(&account.name), lossy(&account.home))
        };
        let plain = (0, vec![0], "root".to_owned(), "/".to_owned());
        for spec in ["root", "root:root", "root:0", "0:root"] {
            let (uid, groups, _, home) = root(spec, b"", b"");
            assert_eq!((uid, groups, home), (0, vec![0], "/".to_owned()), "{spec}");
        }
        assert_eq!(root("root", b"ann:x:1000:1000::/home/ann:\n", b""), plain);
        let other = root("root", b"toor:x:0:5::/toor:/bin/zsh\n", b"adm:x:4:root,toor\n");
        assert_eq!(other, (0, vec![5, 4], "toor".to_owned(), "/toor".to_owned()));
        let odd = root("root", b"root:x:7:7::/seven:\n", b"");
        assert_eq!(odd, (7, vec![7], "root".to_owned(), "/seven".to_owned()));
        assert!(resolve(b"bob", b"", b"").is_err());
    }

    #[test]
    fn an_account_has_a_login_name_and_shell() {
        let login = |spec: &str| {
            let account = resolve(spec.as_bytes(), PASSWD, GROUP).unwrap();
            (lossy(&account.name), lossy(&account.shell))
        };
        assert_eq!(login("0"), ("root".into(), "/bin/bash".into()));
        assert_eq!(login("daemon").1, "/usr/sbin/nologin");
        assert_eq!(login("homeless").1, "/bin/sh");
        assert_eq!(login("4242"), ("4242".into(), "/bin/sh".into()));
    }

    #[test]
    fn a_missing_home_is_the_root_directory() {
        assert_eq!(account("homeless"), Ok((12, 12, vec![12], "/".into())));
    }
}
