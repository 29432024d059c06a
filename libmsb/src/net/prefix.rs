//! Address ranges: `10.0.0.0/8`, `fc00::/7`, or one address.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::cli::error::Failure;
use crate::cli::escape::escape;

/// An address range in CIDR notation: all addresses that start with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix {
    /// First address: bits beyond the length are 0.
    address: IpAddr,
    length: u8,
}

text_in_json!(Prefix);

impl Prefix {
    /// Returns an IPv4 range from its first address.
    pub const fn v4(octets: [u8; 4], length: u8) -> Prefix {
        let [a, b, c, d] = octets;
        Prefix { address: IpAddr::V4(Ipv4Addr::new(a, b, c, d)), length }
    }

    /// Returns an IPv6 range from its first address.
    pub const fn v6(segments: [u16; 8], length: u8) -> Prefix {
        let [a, b, c, d, e, f, g, h] = segments;
        Prefix { address: IpAddr::V6(Ipv6Addr::new(a, b, c, d, e, f, g, h)), length }
    }

    /// Returns a range of one address.
    pub fn one(address: IpAddr) -> Prefix {
        Prefix { address, length: bits(address) }
    }

    /// Returns the first address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Returns the prefix length, in bits.
    pub fn length(&self) -> u8 {
        self.length
    }

    /// Returns whether the range contains an address. IPv4 and IPv6 ranges are disjoint.
    pub fn contains(&self, address: IpAddr) -> bool {
        bits(address) == bits(self.address) && masked(address, self.length) == self.address
    }
}

fn bits(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// Returns the address with all bits beyond the length set to 0.
fn masked(address: IpAddr, length: u8) -> IpAddr {
    let beyond = u32::from(bits(address).saturating_sub(length));
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(beyond).unwrap_or(0);
            IpAddr::V4((u32::from(address) & mask).into())
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(beyond).unwrap_or(0);
            IpAddr::V6((u128::from(address) & mask).into())
        }
    }
}

impl FromStr for Prefix {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Prefix, Failure> {
        let wrong = || {
            Failure::usage(format!(
                "'{}' is not an address range, such as 10.0.0.0/8 or fd00::/8",
                escape(text)
            ))
        };
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let Some(length) = length else {
            return Ok(Prefix::one(address));
        };
        let digits = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
        let length = Some(length)
            .filter(|_| digits)
            .and_then(|length| length.parse::<u8>().ok())
            .filter(|length| *length <= bits(address))
            .ok_or_else(wrong)?;
        if masked(address, length) != address {
            let right = Prefix { address: masked(address, length), length };
            return Err(Failure::usage(format!("'{}' has bits beyond its length", escape(text)))
                .hint(format!("the range is {right}")));
        }
        Ok(Prefix { address, length })
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.address)?;
        if self.length < bits(self.address) {
            write!(f, "/{}", self.length)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_has_its_first_and_last_address_and_not_the_next() {
        let contains = |prefix: &str, address: &str| {
            let prefix: Prefix = prefix.parse().unwrap();
            prefix.contains(address.parse().unwrap())
        };
        assert!(contains("172.16.0.0/12", "172.16.0.0"));
        assert!(contains("172.16.0.0/12", "172.31.255.255"));
        assert!(!contains("172.16.0.0/12", "172.32.0.0"));
        assert!(contains("0.0.0.0/0", "255.255.255.255"));
        assert!(!contains("0.0.0.0/0", "::"));
        assert!(!contains("::/0", "1.2.3.4"));
        assert!(contains("::/0", "ffff::"));
        assert!(contains("fc00::/7", "fdff::1"));
        assert!(!contains("fc00::/7", "fe00::1"));
        assert!(contains("1.2.3.4", "1.2.3.4") && !contains("1.2.3.4", "1.2.3.5"));
    }

    #[test]
    fn a_range_reads_as_it_is_written() {
        for text in ["10.0.0.0/8", "1.2.3.4", "fd00::/8", "::1", "::/0"] {
            assert_eq!(text.parse::<Prefix>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "10.0.0.0/33",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "10.0.0.0/-1",
            "10.0.0/8",
            "x",
            "::/129",
            "1.2.3.4/08/8",
        ] {
            assert!(text.parse::<Prefix>().is_err(), "{text}");
        }
        let hint = "10.0.0.1/8".parse::<Prefix>().unwrap_err();
        assert_eq!(hint.hint_text(), Some("the range is 10.0.0.0/8"));
    }
}
