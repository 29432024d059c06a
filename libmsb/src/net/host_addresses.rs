//! The host's own IP addresses. A connection to one of them is a connection to the host, whatever
//! its range.

use std::fs;
use std::net::IpAddr;

/// Returns the current addresses of the host's interfaces.
pub fn addresses() -> Vec<IpAddr> {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let mut addresses = local_v4(&read("/proc/net/fib_trie"));
    addresses.extend(local_v6(&read("/proc/net/if_inet6")));
    addresses.sort();
    addresses.dedup();
    addresses
}

/// Parses the kernel's routing tree. An address precedes the line that marks it as local.
fn local_v4(tree: &str) -> Vec<IpAddr> {
    let mut last = None;
    let mut found = Vec::new();
    for line in tree.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.parse().ok();
        } else if line == "/32 host LOCAL" {
            found.extend(last.map(IpAddr::V4));
        }
    }
    found
}

/// Parses the kernel's list of IPv6 addresses. Lines start with the 32 digits of an address.
fn local_v6(list: &str) -> Vec<IpAddr> {
    let digits = list.lines().filter_map(|line| line.split_whitespace().next());
    let numbers = digits.filter_map(|digits| u128::from_str_radix(digits, 16).ok());
    numbers.map(|number| IpAddr::V6(number.into())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_own_addresses_are_read_from_the_kernels_lists() {
        let tree = "Local:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.0.0.0\n        /24 link UNICAST\n     |-- 10.0.0.5\n        /32 host LOCAL\n";
        assert_eq!(local_v4(tree), ["10.0.0.5".parse::<IpAddr>().unwrap()]);
        let list = "00000000000000000000000000000001 01 80 10 80 lo\nnonsense\n";
        assert_eq!(local_v6(list), ["::1".parse::<IpAddr>().unwrap()]);
    }
}
