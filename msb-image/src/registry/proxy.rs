//! Proxies from the environment: `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`, in upper
//! or lower case, as in curl and Go. `HTTP_PROXY` in upper case is ignored, because a client of a
//! CGI program could set it.

use std::net::IpAddr;

/// Proxy settings from the environment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ProxySettings {
    https: Option<String>,
    http: Option<String>,
    no_proxy: Vec<String>,
}

impl ProxySettings {
    pub(crate) fn from_env() -> ProxySettings {
        ProxySettings::read(|name| std::env::var(name).ok())
    }

    fn read(variable: impl Fn(&str) -> Option<String>) -> ProxySettings {
        let first = |names: &[&str]| {
            let mut values = names.iter().filter_map(|name| variable(name));
            values.find(|value| !value.is_empty())
        };
        let no_proxy = first(&["no_proxy", "NO_PROXY"]).unwrap_or_default();
        let words = no_proxy.split([',', ' ']).map(str::trim);
        ProxySettings {
            https: first(&["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]),
            http: first(&["http_proxy", "all_proxy", "ALL_PROXY"]),
            no_proxy: words.filter(|word| !word.is_empty()).map(str::to_ascii_lowercase).collect(),
        }
    }

    /// Returns the proxy for a scheme, for any server.
    pub(crate) fn named(&self, secure: bool) -> Option<&str> {
        let chosen = if secure { &self.https } else { &self.http };
        chosen.as_deref()
    }

    /// Returns the proxy for a server, if any.
    pub(crate) fn of(&self, secure: bool, host: &str, port: u16) -> Option<&str> {
        let host = host.trim_matches(['[', ']']).to_ascii_lowercase();
        if is_loopback(&host)
            || self.no_proxy.iter().any(|word| matches_no_proxy(word, &host, port))
        {
            return None;
        }
        self.named(secure)
    }
}

/// Returns whether a host name is a loopback address or `localhost`.
pub(crate) fn is_loopback(host: &str) -> bool {
    let host = host.trim_matches(['[', ']']);
    let address: Option<IpAddr> = host.parse().ok();
    host.eq_ignore_ascii_case("localhost") || address.is_some_and(|address| address.is_loopback())
}

/// Returns whether an element of `NO_PROXY` matches the host: its name, a parent domain, a network,
/// or `*`; optionally with a port.
fn matches_no_proxy(word: &str, host: &str, port: u16) -> bool {
    if word == "*" {
        return true;
    }
    if let (Some((network, bits)), Ok(address)) = (word.split_once('/'), host.parse()) {
        return is_in(address, network, bits).unwrap_or(false);
    }
    let word = match word.rsplit_once(':') {
        Some((name, wanted)) if !name.contains(':') => {
            if wanted.parse() != Ok(port) {
                return false;
            }
            name
        }
        _ => word,
    };
    let word = word.trim_start_matches('*').trim_start_matches('.');
    let below = host.strip_suffix(word);
    below.is_some_and(|below| below.is_empty() || below.ends_with('.'))
}

fn is_in(address: IpAddr, network: &str, bits: &str) -> Option<bool> {
    let bits: u32 = bits.parse().ok()?;
    let wide = |address: IpAddr| match address {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()) << 96, 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    };
    let ((address, width), (network, other)) = (wide(address), wide(network.parse().ok()?));
    let same = (address ^ network).leading_zeros() >= bits;
    Some(width == other && bits <= width && same)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(no_proxy: &str) -> ProxySettings {
        ProxySettings::read(|name| match name {
            "HTTPS_PROXY" => Some("http://s:1".to_owned()),
            "http_proxy" => Some("http://p:1".to_owned()),
            "no_proxy" => Some(no_proxy.to_owned()),
            "HTTP_PROXY" => panic!("it may come from a client"),
            _ => None,
        })
    }

    #[test]
    fn each_scheme_has_its_proxy_and_loopback_has_none() {
        let proxies = proxies("");
        assert_eq!(proxies.of(true, "example.com", 443), Some("http://s:1"));
        assert_eq!(proxies.of(false, "example.com", 80), Some("http://p:1"));
        for host in ["localhost", "127.0.0.1", "127.8.8.8", "[::1]"] {
            assert_eq!(proxies.of(true, host, 443), None, "{host}");
        }
    }

    #[test]
    fn no_proxy_matches_hosts_domains_ports_and_networks() {
        let proxies =
            proxies("example.com, .corp,*.lan,10.0.0.0/8 192.168.1.1,odd.org:5000,fd00::/8");
        let spared = [
            ("example.com", 1),
            ("a.EXAMPLE.com", 1),
            ("x.corp", 1),
            ("y.lan", 1),
            ("10.20.30.40", 1),
            ("192.168.1.1", 1),
            ("odd.org", 5000),
            ("[fd00::1]", 1),
        ];
        for (host, port) in spared {
            assert_eq!(proxies.of(true, host, port), None, "{host}");
        }
        let others = [
            ("badexample.com", 1),
            ("11.0.0.1", 1),
            ("192.168.1.10", 1),
            ("odd.org", 443),
            ("fe80::1", 1),
        ];
        for (host, port) in others {
            assert!(proxies.of(true, host, port).is_some(), "{host}");
        }
        assert_eq!(self::proxies("*").of(true, "example.com", 443), None);
    }
}
