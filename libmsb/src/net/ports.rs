//! Ports and published ports.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::PUBLISHED_MAX;
use crate::cli::error::Failure;
use crate::cli::escape::escape;

/// A port or a range of ports. Never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// Returns the first port.
    pub fn first(self) -> u16 {
        self.first
    }

    /// Returns the last port.
    pub fn last(self) -> u16 {
        self.last
    }

    /// Returns the number of ports.
    pub fn count(self) -> usize {
        usize::from(self.last - self.first) + 1
    }

    /// Returns whether a port is in the range.
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    fn overlaps(self, other: PortRange) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl FromStr for PortRange {
    type Err = Failure;

    fn from_str(text: &str) -> Result<PortRange, Failure> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (port(first), port(last));
        match (first, last) {
            (Some(first), Some(last)) if first <= last => Ok(PortRange { first, last }),
            _ => {
                Err(Failure::usage(format!("'{}' is not a port or a range of ports", escape(text)))
                    .hint("ports are 1 to 65535, ranges as 8000-8010"))
            }
        }
    }
}

fn port(text: &str) -> Option<u16> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten().filter(|port| *port > 0)
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.count() {
            1 => write!(f, "{}", self.first),
            _ => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

/// Transport protocol of a published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        })
    }
}

/// Published ports: `[BIND:]HOST:GUEST[/tcp|/udp]`, where HOST and GUEST are ports or ranges of
/// equal length, and BIND is an address of the host, in brackets if it is IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublishedPorts {
    bind: IpAddr,
    host: PortRange,
    guest: PortRange,
    transport: Transport,
}

text_in_json!(PublishedPorts);

/// A published port: a port of the host that leads to a port of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishedPort {
    /// Listening address and port on the host.
    pub host: SocketAddr,
    /// Port of the guest.
    pub guest: u16,
    /// Transport protocol.
    pub transport: Transport,
}

impl PublishedPorts {
    /// Returns the host's listening address.
    pub fn bind(&self) -> IpAddr {
        self.bind
    }

    /// Returns the host's ports.
    pub fn host(&self) -> PortRange {
        self.host
    }

    /// Returns the guest's ports.
    pub fn guest(&self) -> PortRange {
        self.guest
    }

    /// Returns the transport protocol.
    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// Returns each published port.
    pub fn each(&self) -> impl Iterator<Item = PublishedPort> {
        let published = *self;
        let hosts = published.host.first..=published.host.last;
        let guests = published.guest.first..=published.guest.last;
        hosts.zip(guests).map(move |(host, guest)| PublishedPort {
            host: SocketAddr::new(published.bind, host),
            guest,
            transport: published.transport,
        })
    }

    /// Returns whether two specifications use the same port of the host. The unspecified address
    /// includes every address of its family.
    pub fn overlaps(&self, other: &PublishedPorts) -> bool {
        let either = self.bind.is_unspecified() || other.bind.is_unspecified();
        let family = self.bind.is_ipv4() == other.bind.is_ipv4();
        let address = self.bind == other.bind || (either && family);
        address && self.transport == other.transport && self.host.overlaps(other.host)
    }
}

/// Refuses published ports that overlap.
pub fn check(ports: &[PublishedPorts]) -> Result<(), Failure> {
    let count: usize = ports.iter().map(|ports| ports.host.count()).sum();
    if count > PUBLISHED_MAX {
        return Err(Failure::usage(format!(
            "{count} published ports exceed the limit of {PUBLISHED_MAX}"
        )));
    }
    for (place, one) in ports.iter().enumerate() {
        if let Some(other) = ports[..place].iter().find(|other| other.overlaps(one)) {
            return Err(Failure::usage(format!("'{other}' and '{one}' publish the same port")));
        }
    }
    Ok(())
}

impl FromStr for PublishedPorts {
    type Err = Failure;

    fn from_str(text: &str) -> Result<PublishedPorts, Failure> {
        let wrong = || {
            Failure::usage(format!("'{}' is not a valid published port", escape(text)))
                .hint("write [BIND:]HOST:GUEST[/tcp|/udp], as 8080:80 or [::1]:5300:53/udp")
        };
        let (text, transport) = match text.split_once('/') {
            None => (text, Transport::Tcp),
            Some((text, "tcp")) => (text, Transport::Tcp),
            Some((text, "udp")) => (text, Transport::Udp),
            Some(_) => return Err(wrong()),
        };
        let (rest, guest) = text.rsplit_once(':').ok_or_else(wrong)?;
        let (bind, host) = match rest.rsplit_once(':') {
            Some((bind, host)) => (parse_bind(bind).ok_or_else(wrong)?, host),
            None => (IpAddr::V4(Ipv4Addr::LOCALHOST), rest),
        };
        let (host, guest): (PortRange, PortRange) = (host.parse()?, guest.parse()?);
        if host.count() != guest.count() {
            return Err(Failure::usage(format!(
                "{host} are {} ports, and {guest} are {}",
                host.count(),
                guest.count()
            )));
        }
        Ok(PublishedPorts { bind, host, guest, transport })
    }
}

fn parse_bind(text: &str) -> Option<IpAddr> {
    match text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
        Some(inner) => inner.parse().ok().map(IpAddr::V6),
        None => text.parse().ok().map(IpAddr::V4),
    }
}

impl fmt::Display for PublishedPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bind {
            IpAddr::V4(bind) => write!(f, "{bind}:")?,
            IpAddr::V6(bind) => write!(f, "[{bind}]:")?,
        }
        write!(f, "{}:{}/{}", self.host, self.guest, self.transport)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published(text: &str) -> PublishedPorts {
        text.parse().unwrap()
    }

    #[test]
    fn ports_of_every_form_are_taken() {
        let whole = |text: &str| published(text).to_string();
        assert_eq!(whole("8080:80"), "127.0.0.1:8080:80/tcp");
        assert_eq!(whole("0.0.0.0:53:53/udp"), "0.0.0.0:53:53/udp");
        assert_eq!(whole("[::1]:8080:80/tcp"), "[::1]:8080:80/tcp");
        assert_eq!(whole("8000-8009:80-89"), "127.0.0.1:8000-8009:80-89/tcp");
        let each: Vec<_> = published("[::]:8000-8001:80-81/udp").each().collect();
        assert_eq!(each.len(), 2);
        assert_eq!(each[1].host, "[::]:8001".parse().unwrap());
        assert_eq!(each[1].guest, 81);
    }

    #[test]
    fn what_publishes_no_port_is_refused() {
        for text in [
            "",
            "80",
            ":80",
            "80:",
            "0:80",
            "80:0",
            "65536:80",
            "a:80",
            "1.2.3.4:80",
            "::1:80:80",
            "80:80/sctp",
            "80:80/",
            "1-2:1-3",
            "2-1:2-1",
            "[1.2.3.4]:80:80",
            "localhost:80:80",
            "+80:80",
            "1.2.3.4:1:2:3",
        ] {
            assert!(text.parse::<PublishedPorts>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_port_is_published_once() {
        let fits = |a: &str, b: &str| check(&[published(a), published(b)]).is_ok();
        assert!(!fits("80:80", "80:81"));
        assert!(!fits("0.0.0.0:80:80", "80:81"));
        assert!(!fits("1-10:1-10", "10:80"));
        assert!(fits("80:80", "80:80/udp"));
        assert!(fits("80:80", "127.0.0.2:80:80"));
        assert!(fits("0.0.0.0:80:80", "[::]:80:80"));
        assert!(check(&[published("1-5000:1-5000")]).is_err());
    }
}
