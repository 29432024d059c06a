//! Parser for authorized_keys files, in the format of sshd(8).
//!
//! A line holds options, a key type, a key in base64, and a comment. A line with an unknown option
//! is not used at all, because the option may be meant to restrict the key; the other lines of the
//! file still count.

use std::fmt;
use std::net::IpAddr;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use russh::keys::ssh_key::public::KeyData;
use russh::keys::{Algorithm, PublicKey};

/// Permissions of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyGrant {
    /// Allows a terminal.
    pub(crate) pty: bool,
    /// Allows port forwarding.
    pub forwarding: bool,
    /// Allows agent forwarding.
    pub(crate) agent: bool,
    /// Targets that connections may be forwarded to; any if empty.
    pub(crate) permit_open: Vec<ForwardTarget>,
    /// Forced command: runs instead of the command that the client asks for.
    pub(crate) command: Option<String>,
    /// Environment variables (`NAME=value`) of all commands.
    pub(crate) environment: Vec<String>,
    /// Patterns for the source addresses of the client.
    from: Option<Vec<SourcePattern>>,
    /// Time from which the key is no longer accepted.
    expires: Option<Timestamp>,
}

impl Default for KeyGrant {
    /// Returns a grant without restrictions.
    fn default() -> KeyGrant {
        KeyGrant {
            pty: true,
            forwarding: true,
            agent: true,
            permit_open: Vec::new(),
            command: None,
            environment: Vec::new(),
            from: None,
            expires: None,
        }
    }
}

impl KeyGrant {
    /// Returns whether the client may set an environment variable. With a forced command it may set
    /// only the locale: other variables can change what the shell or the dynamic loader does.
    pub(crate) fn may_set(&self, name: &str) -> bool {
        self.command.is_none() || name == "LANG" || name.starts_with("LC_")
    }
}

/// A target for port forwarding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardTarget {
    host: String,
    /// Port, or `None` for any.
    port: Option<u16>,
}

/// An authorized key: one line of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorizedKey {
    /// Key with its comment.
    pub key: PublicKey,
    /// Permissions from the options.
    pub grant: KeyGrant,
    /// Options as they were written.
    pub options: String,
}

/// Reason why a line cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LineError {
    /// The line has no valid public key.
    NoKey,
    /// An option is unknown.
    UnknownOption(String),
    /// The value of an option is invalid.
    BadValue(String),
    /// A quote is not closed.
    OpenQuote,
    /// The key is of a FIDO authenticator and the line lacks `no-touch-required`. The library that
    /// checks signatures does not report whether the authenticator was touched.
    TouchNotChecked,
}

impl fmt::Display for LineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LineError::NoKey => f.write_str("no valid public key"),
            LineError::UnknownOption(name) => write!(f, "unknown option '{name}'"),
            LineError::BadValue(name) => {
                write!(f, "invalid value of the option '{name}'")
            }
            LineError::OpenQuote => f.write_str("unterminated quote"),
            LineError::TouchNotChecked => f.write_str(
                "msb cannot check the touch of a FIDO key (sk-...); add the option 'no-touch-required' to accept it without",
            ),
        }
    }
}

/// Parses the lines of a file, except empty lines and comments. Line numbers start at 1.
pub fn parse(file: &str) -> impl Iterator<Item = (usize, Result<AuthorizedKey, LineError>)> {
    let lines = file.lines().map(str::trim).enumerate();
    lines
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .map(|(number, line)| (number + 1, parse_line(line)))
}

/// Parses one line.
pub fn parse_line(line: &str) -> Result<AuthorizedKey, LineError> {
    let (options, key) = split_line(line)?;
    let mut grant = KeyGrant::default();
    let mut needs_touch =
        matches!(key.algorithm(), Algorithm::SkEd25519 | Algorithm::SkEcdsaSha2NistP256);
    if !options.is_empty() {
        for (name, value) in parse_options(options) {
            needs_touch &= name != "no-touch-required";
            apply(&mut grant, &name, value)?;
        }
    }
    if needs_touch {
        return Err(LineError::TouchNotChecked);
    }
    Ok(AuthorizedKey { key, grant, options: options.to_owned() })
}

/// Returns the key of a line, even if its options cannot be used.
pub(crate) fn key_of(line: &str) -> Option<PublicKey> {
    split_line(line.trim()).ok().map(|(_, key)| key)
}

/// Splits a line into its options, which may be empty, and its key.
fn split_line(line: &str) -> Result<(&str, PublicKey), LineError> {
    // Try without options first: a key type is not an option.
    if let Some(key) = parse_key(line) {
        return Ok(("", key));
    }
    let (options, rest) = line.split_at(options_end(line)?);
    let key = parse_key(rest.trim_start()).ok_or(LineError::NoKey)?;
    Ok((options, key))
}

fn parse_key(text: &str) -> Option<PublicKey> {
    // The key parser accepts only some comments, so the comment is set separately.
    let mut words = text.splitn(3, [' ', '\t']);
    let (kind, base64) = (words.next()?, words.next()?);
    let mut key = PublicKey::from_openssh(&format!("{kind} {base64}")).ok()?;
    if let Some(comment) = words.next() {
        key.set_comment(comment.trim());
    }
    Some(key)
}

/// Returns the end of the options: the first blank outside quotes.
fn options_end(line: &str) -> Result<usize, LineError> {
    let (mut quoted, mut escaped) = (false, false);
    for (at, letter) in line.char_indices() {
        match letter {
            ' ' | '\t' if !quoted => return Ok(at),
            '"' if !escaped => quoted = !quoted,
            _ => {}
        }
        escaped = letter == '\\' && quoted && !escaped;
    }
    if quoted { Err(LineError::OpenQuote) } else { Err(LineError::NoKey) }
}

/// Parses options into names in lower case, each with its value if it has one.
fn parse_options(options: &str) -> impl Iterator<Item = (String, Option<String>)> {
    split_options(options).into_iter().map(|option| match option.split_once('=') {
        Some((name, value)) => (name.to_ascii_lowercase(), Some(unquote(value))),
        None => (option.to_ascii_lowercase(), None),
    })
}

/// Splits at commas outside quotes.
fn split_options(options: &str) -> Vec<String> {
    let (mut parts, mut part) = (Vec::new(), String::new());
    let (mut quoted, mut escaped) = (false, false);
    for letter in options.chars() {
        if letter == ',' && !quoted {
            parts.push(std::mem::take(&mut part));
            continue;
        }
        if letter == '"' && !escaped {
            quoted = !quoted;
        }
        escaped = letter == '\\' && quoted && !escaped;
        part.push(letter);
    }
    parts.push(part);
    parts
}

fn unquote(value: &str) -> String {
    let inner = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    inner.unwrap_or(value).replace("\\\"", "\"")
}

fn apply(grant: &mut KeyGrant, name: &str, value: Option<String>) -> Result<(), LineError> {
    let bad = || LineError::BadValue(name.to_owned());
    match (name, value) {
        ("restrict", None) => {
            (grant.pty, grant.forwarding, grant.agent) = (false, false, false);
        }
        ("pty", None) => grant.pty = true,
        ("no-pty", None) => grant.pty = false,
        ("port-forwarding", None) => grant.forwarding = true,
        ("no-port-forwarding", None) => grant.forwarding = false,
        ("agent-forwarding", None) => grant.agent = true,
        ("no-agent-forwarding", None) => grant.agent = false,
        // These options concern features that this server does not have.
        (
            "x11-forwarding" | "no-x11-forwarding" | "user-rc" | "no-user-rc" | "no-touch-required",
            None,
        ) => {}
        ("permitlisten" | "tunnel", Some(_)) => {}
        ("command", Some(command)) => grant.command = Some(command),
        ("environment", Some(variable)) if variable.contains('=') => {
            grant.environment.push(variable);
        }
        // A second list would replace the first, which may be meant to restrict as well.
        ("from", Some(patterns)) if grant.from.is_none() => {
            grant.from = Some(source_patterns(&patterns).ok_or_else(bad)?);
        }
        ("permitopen", Some(place)) => {
            grant.permit_open.push(parse_target(&place).ok_or_else(bad)?);
        }
        ("expiry-time", Some(time)) => grant.expires = Some(parse_time(&time).ok_or_else(bad)?),
        (
            "restrict" | "pty" | "no-pty" | "command" | "environment" | "from" | "permitopen"
            | "expiry-time",
            _,
        ) => return Err(bad()),
        _ => return Err(LineError::UnknownOption(name.to_owned())),
    }
    Ok(())
}

/// Parses `HOST:PORT`, with an IPv6 address in brackets and `*` for any port.
fn parse_target(text: &str) -> Option<ForwardTarget> {
    let (host, port) = text.rsplit_once(':')?;
    let host = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    let port = match port {
        "*" => None,
        _ => Some(port.parse().ok()?),
    };
    (!host.is_empty()).then(|| ForwardTarget { host: host.to_owned(), port })
}

/// Parses `YYYYMMDD[HHMM[SS]]` in local time, or in UTC with a final `Z`.
fn parse_time(text: &str) -> Option<Timestamp> {
    let (digits, zone) = match text.strip_suffix(['Z', 'z']) {
        Some(digits) => (digits, TimeZone::UTC),
        None => (text, TimeZone::system()),
    };
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) || !matches!(digits.len(), 8 | 12 | 14) {
        return None;
    }
    let padded = format!("{digits:0<14}");
    let number = |at: usize, length: usize| padded.get(at..at + length)?.parse::<i8>().ok();
    let year = padded.get(..4)?.parse().ok()?;
    let time = DateTime::new(
        year,
        number(4, 2)?,
        number(6, 2)?,
        number(8, 2)?,
        number(10, 2)?,
        number(12, 2)?,
        0,
    );
    Some(time.ok()?.to_zoned(zone).ok()?.timestamp())
}

impl KeyGrant {
    /// Returns whether this grant permits nothing that `other` does not permit.
    pub(crate) fn is_as_strict_as(&self, other: &KeyGrant) -> bool {
        let no_more = |ours: bool, theirs: bool| !ours || theirs;
        let places = other.permit_open.is_empty()
            || (!self.permit_open.is_empty()
                && self.permit_open.iter().all(|place| other.permit_open.contains(place)));
        let expires = match (self.expires, other.expires) {
            (_, None) => true,
            (Some(ours), Some(theirs)) => ours <= theirs,
            (None, Some(_)) => false,
        };
        no_more(self.pty, other.pty)
            && no_more(self.forwarding, other.forwarding)
            && no_more(self.agent, other.agent)
            && (places || !self.forwarding)
            && (other.command.is_none() || self.command == other.command)
            && (other.environment.is_empty() || self.environment == other.environment)
            && (other.from.is_none() || self.from == other.from)
            && expires
    }

    /// Returns whether the key is accepted from this address at this time. An unknown address
    /// matches no pattern.
    pub fn counts(&self, source: Option<IpAddr>, now: Timestamp) -> bool {
        let in_time = self.expires.is_none_or(|expires| now < expires);
        let from_there = match (&self.from, source) {
            (None, _) => true,
            (Some(patterns), Some(source)) => matches_any(patterns, source),
            (Some(_), None) => false,
        };
        in_time && from_there
    }

    /// Returns whether a connection may be forwarded to this target.
    pub fn permits(&self, host: &str, port: u16) -> bool {
        let named = |place: &ForwardTarget| {
            (place.host == "*" || place.host.eq_ignore_ascii_case(host))
                && place.port.is_none_or(|allowed| allowed == port)
        };
        self.forwarding && (self.permit_open.is_empty() || self.permit_open.iter().any(named))
    }
}

/// A pattern of `from=`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct SourcePattern {
    /// A client that matches is refused.
    negated: bool,
    addresses: AddressPattern,
}

/// Set of addresses that a pattern matches.
#[derive(Clone, Debug, PartialEq, Eq)]
enum AddressPattern {
    /// Addresses with this prefix and prefix length.
    Network(IpAddr, u32),
    /// Addresses whose text matches a pattern with wildcards.
    Text(String),
}

/// Parses a list of patterns separated by commas. Returns `None` if one of them is malformed: a
/// negated pattern that can never match would admit the clients that it is meant to refuse.
fn source_patterns(list: &str) -> Option<Vec<SourcePattern>> {
    list.split(',').map(source_pattern).collect()
}

fn source_pattern(pattern: &str) -> Option<SourcePattern> {
    let pattern = pattern.trim();
    let (negated, pattern) = match pattern.strip_prefix('!') {
        Some(rest) => (true, rest),
        None => (false, pattern),
    };
    let addresses = match pattern.split_once('/') {
        Some((network, bits)) => network_pattern(network.parse().ok()?, bits)?,
        None => match pattern.parse::<IpAddr>() {
            Ok(address) => {
                let address = address.to_canonical();
                AddressPattern::Network(address, width(address))
            }
            Err(_) => text_pattern(pattern, negated)?,
        },
    };
    Some(SourcePattern { negated, addresses })
}

/// Parses a network. Its address must have no bits set beyond the prefix, as in sshd.
fn network_pattern(network: IpAddr, bits: &str) -> Option<AddressPattern> {
    if bits.is_empty() || !bits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let mut bits: u32 = bits.parse().ok()?;
    let canonical = network.to_canonical();
    if canonical.is_ipv4() && network.is_ipv6() {
        // IPv4 clients are matched by their IPv4 address.
        bits = bits.checked_sub(96)?;
    }
    let host_bits = width(canonical).checked_sub(bits)?;
    let value = match canonical {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    };
    (value.trailing_zeros() >= host_bits).then_some(AddressPattern::Network(canonical, bits))
}

/// Parses a pattern with `*` and `?`, or a host name. Host names are not resolved, so a name never
/// matches, and must not be negated.
fn text_pattern(text: &str, negated: bool) -> Option<AddressPattern> {
    let of_address = |byte: u8| byte.is_ascii_hexdigit() || b".:*?".contains(&byte);
    let of_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:*?".contains(&byte);
    let valid = if negated { text.bytes().all(of_address) } else { text.bytes().all(of_name) };
    (valid && !text.is_empty()).then(|| AddressPattern::Text(text.to_owned()))
}

fn width(address: IpAddr) -> u32 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// Returns whether an address matches a pattern and no negated one.
fn matches_any(patterns: &[SourcePattern], source: IpAddr) -> bool {
    let source = source.to_canonical();
    let fits = |pattern: &&SourcePattern| match &pattern.addresses {
        AddressPattern::Network(network, bits) => is_within(source, *network, *bits),
        AddressPattern::Text(text) => is_like(source.to_string().as_bytes(), text.as_bytes()),
    };
    let mut fitting = patterns.iter().filter(fits).peekable();
    fitting.peek().is_some() && fitting.all(|pattern| !pattern.negated)
}

fn is_within(source: IpAddr, network: IpAddr, bits: u32) -> bool {
    let (a, b, width) = match (source, network) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (u128::from(a.to_bits()), u128::from(b.to_bits()), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits(), b.to_bits(), 128),
        _ => return false,
    };
    bits <= width && (a ^ b).checked_shr(width - bits).unwrap_or(0) == 0
}

/// Matches a wildcard pattern: `*` for any characters, `?` for one.
fn is_like(text: &[u8], pattern: &[u8]) -> bool {
    // Position after the last star in the pattern, and the position in the text up to which the
    // star matches.
    let (mut t, mut p, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p + 1, t));
                p += 1;
            }
            Some(letter) if *letter == b'?' || letter.eq_ignore_ascii_case(&text[t]) => {
                (t, p) = (t + 1, p + 1);
            }
            _ => match star {
                Some((after, from)) => {
                    (t, p) = (from + 1, after);
                    star = Some((after, from + 1));
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|letter| *letter == b'*')
}

/// Returns the grant of the first entry that accepts this key.
pub(crate) fn grant_for(
    entries: impl IntoIterator<Item = AuthorizedKey>,
    key: &KeyData,
    source: Option<IpAddr>,
    now: Timestamp,
) -> Option<KeyGrant> {
    entries
        .into_iter()
        .find(|entry| entry.key.key_data() == key && entry.grant.counts(source, now))
        .map(|entry| entry.grant)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti";

    /// Keys of FIDO authenticators.
    const SK_KEYS: [&str; 2] = [
        "sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4fAAAABHNzaDo=",
        "sk-ecdsa-sha2-nistp256@openssh.com AAAAInNrLWVjZHNhLXNoYTItbmlzdHAyNTZAb3BlbnNzaC5jb20AAAAIbmlzdHAyNTYAAABBBLfEdzMj3GqxvzZzMj6xHxoRd7iM+mpYeL0iati7Qgf3/ClBI/OH+iIe1Cpm9g6AOheLnUPLah1C/lhZ4T1T7KsAAAAEc3NoOg==",
    ];

    fn grant(options: &str) -> Result<KeyGrant, LineError> {
        parse_line(&format!("{options} {KEY} ann@home of hers")).map(|entry| entry.grant)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_line_is_options_key_and_comment() {
        let plain = parse_line(&format!("{KEY} ann@home of hers")).unwrap();
        assert_eq!(plain.grant, KeyGrant::default());
        assert_eq!(plain.key.comment().as_str_lossy(), "ann@home of hers");
        let restricted = grant("restrict,pty").unwrap();
        assert!(restricted.pty && !restricted.forwarding && !restricted.agent);
        let command = grant(r#"command="echo \"a, b\"",no-pty"#).unwrap();
        assert_eq!(command.command.as_deref(), Some(r#"echo "a, b""#));
        assert!(!command.pty);
        assert!(command.may_set("LC_ALL") && !command.may_set("BASH_ENV"));
        assert!(plain.grant.may_set("BASH_ENV"));
    }

    #[test]
    fn a_file_is_read_line_by_line() {
        let file = format!("# mine\n\n{KEY}\nnonsense\ncert-authority {KEY}\n");
        let seen: Vec<_> = parse(&file).map(|(number, entry)| (number, entry.err())).collect();
        let unknown = LineError::UnknownOption("cert-authority".into());
        let expected = [(3, None), (4, Some(LineError::NoKey)), (5, Some(unknown))];
        assert_eq!(seen, expected);
    }

    #[test]
    fn unknown_or_malformed_options_make_the_line_unusable() {
        for options in
            ["verify-required", "restrict=1", "permitopen=\"x\"", "from", "expiry-time=\"2024\""]
        {
            assert!(grant(options).is_err(), "{options}");
        }
        assert_eq!(grant("command=\"x").unwrap_err(), LineError::OpenQuote);
    }

    #[test]
    fn an_address_must_match_a_pattern_and_no_negated_one() {
        let now = Timestamp::UNIX_EPOCH;
        let from = |patterns: &str, source: &str| {
            let grant = grant(&format!("from=\"{patterns}\"")).unwrap();
            grant.counts(Some(ip(source)), now)
        };
        assert!(from("10.0.0.*,192.168.0.0/16", "192.168.7.1"));
        assert!(from("10.0.?.1", "::ffff:10.0.3.1"));
        assert!(!from("10.0.0.*,!10.0.0.7", "10.0.0.7"));
        assert!(!from("10.0.0.0/8", "11.0.0.1"));
        assert!(from("fe80::/10", "fe80::1"));
        assert!(from("0.0.0.0/0", "1.2.3.4") && !from("0.0.0.0/0", "::1"));
        assert!(from("2001:DB8::0001", "2001:db8::1") && !from("!2001:DB8::0001,*", "2001:db8::1"));
        assert!(!from("!::ffff:10.0.0.0/104,*", "10.0.0.1"));
        assert!(!grant("from=\"*\"").unwrap().counts(None, now));
    }

    #[test]
    fn a_malformed_pattern_makes_the_line_unusable() {
        for patterns in [
            "!127.0.0.0/99,*",
            "10.0.0.0/99",
            "10.0.0.0/x",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "10.0.0.1/8",
            "!10.0.*/8,*",
            "!::ffff:10.0.0.0/8,*",
            "!gateway.example,*",
            "!,*",
            "10.0.0.1,,*",
            "a b",
            "",
        ] {
            let bad = LineError::BadValue("from".to_owned());
            assert_eq!(grant(&format!("from=\"{patterns}\"")), Err(bad), "{patterns}");
        }
        assert!(grant("from=\"*\",from=\"!10.0.0.1,*\"").is_err());
        // Host names are not resolved, so a name matches no client.
        let name = grant("from=\"*.example.com\"").unwrap();
        assert!(!name.counts(Some(ip("10.0.0.1")), Timestamp::UNIX_EPOCH));
    }

    #[test]
    fn a_fido_key_is_accepted_only_with_no_touch_required() {
        for key in SK_KEYS {
            assert_eq!(parse_line(key), Err(LineError::TouchNotChecked));
            let restricted = format!("restrict {key}");
            assert_eq!(parse_line(&restricted), Err(LineError::TouchNotChecked));
            assert!(parse_line(&format!("restrict,no-touch-required {key}")).is_ok());
            assert!(parse_line(&format!("No-Touch-Required {key}")).is_ok());
            assert!(key_of(&restricted).is_some());
        }
        assert!(parse_line(KEY).is_ok());
    }

    #[test]
    fn grants_are_compared_by_strictness() {
        let of = |options: &str| grant(options).unwrap();
        for (strict, loose) in [
            ("restrict", "pty"),
            ("restrict,command=\"ls\"", "pty"),
            ("restrict,command=\"ls\"", "command=\"ls\""),
            ("from=\"10.0.0.1\"", "pty"),
            ("permitopen=\"a:1\"", "permitopen=\"a:1\",permitopen=\"b:1\""),
            ("expiry-time=\"20200101Z\"", "expiry-time=\"20210101Z\""),
        ] {
            assert!(of(strict).is_as_strict_as(&of(loose)), "{strict}, {loose}");
            assert!(!of(loose).is_as_strict_as(&of(strict)), "{strict}, {loose}");
        }
        assert!(!of("command=\"ls\"").is_as_strict_as(&of("command=\"id\"")));
        assert!(!of("from=\"*\"").is_as_strict_as(&of("from=\"10.0.0.1\"")));
    }

    #[test]
    fn targets_and_expiry_restrict_a_key() {
        let places = grant("permitopen=\"LocalHost:80\",permitopen=\"[::1]:*\"").unwrap();
        assert!(places.permits("localhost", 80) && places.permits("::1", 5));
        assert!(!places.permits("localhost", 81) && !places.permits("other", 80));
        assert!(!grant("no-port-forwarding").unwrap().permits("localhost", 80));
        let expiring = grant("expiry-time=\"20240229Z\"").unwrap();
        let at = |text: &str| text.parse().unwrap();
        assert!(expiring.counts(None, at("2024-02-28T23:59:59Z")));
        assert!(!expiring.counts(None, at("2024-02-29T00:00:00Z")));
        assert_eq!(parse_time("20240229123456Z"), Some(at("2024-02-29T12:34:56Z")));
        assert_eq!(parse_time("20230229Z"), None);
    }

    #[test]
    fn any_line_gives_an_entry_or_an_error() {
        let parts =
            ["restrict", ",", "\"", "\\", "=", " ", KEY, "from", "command", "!", "/", "*", "é"];
        let mut state = 7_usize;
        for _ in 0..20_000 {
            let mut line = String::new();
            for _ in 0..8 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                line.push_str(parts[(state >> 33) % parts.len()]);
            }
            if let Ok(entry) = parse_line(&line) {
                let _ = entry.grant.counts(Some(ip("10.0.0.1")), Timestamp::now());
            }
        }
    }
}
