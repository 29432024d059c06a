//! Pinned names: the names that each address was resolved from, with their lifetimes.
//!
//! The table is limited in total and for each address. A guest that fills it loses its own oldest
//! pins.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use libmsb::net::name::HostName;

/// Limit of pins.
const PINS_MAX: usize = 8192;
/// Limit of names per address.
const NAMES_PER_ADDRESS_MAX: usize = 64;
/// Shortest lifetime of a pin. Programs connect some time after the query, to one address after the
/// other; an answer with a TTL of 0 would otherwise be useless.
const TTL_MIN: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Pin {
    name: HostName,
    expires: Instant,
}

/// The table of pinned names.
#[derive(Debug, Default)]
pub(super) struct PinTable {
    by_address: HashMap<IpAddr, Vec<Pin>>,
    count: usize,
}

impl PinTable {
    /// Pins an address to a name.
    pub(super) fn pin(&mut self, now: Instant, name: &HostName, address: IpAddr, ttl: Duration) {
        let expires = now + ttl.max(TTL_MIN);
        let known = self
            .by_address
            .get_mut(&address)
            .and_then(|pins| pins.iter_mut().find(|pin| pin.name == *name));
        if let Some(pin) = known {
            pin.expires = pin.expires.max(expires);
            return;
        }
        if self.count >= PINS_MAX {
            self.evict(now);
        }
        let pins = self.by_address.entry(address).or_default();
        if pins.len() >= NAMES_PER_ADDRESS_MAX
            && let Some(first) = (0..pins.len()).min_by_key(|index| pins[*index].expires)
        {
            pins.swap_remove(first);
            self.count -= 1;
        }
        pins.push(Pin { name: name.clone(), expires });
        self.count += 1;
    }

    /// Returns the names pinned to an address that have not expired.
    pub(super) fn names(&self, now: Instant, address: IpAddr) -> Vec<HostName> {
        let pins = self.by_address.get(&address).into_iter().flatten();
        pins.filter(|pin| pin.expires > now).map(|pin| pin.name.clone()).collect()
    }

    /// Removes expired pins; if there are none, the quarter that expires first.
    fn evict(&mut self, now: Instant) {
        self.remove_expired(now);
        if self.count >= PINS_MAX {
            let mut ends: Vec<Instant> =
                self.by_address.values().flatten().map(|pin| pin.expires).collect();
            let (_, end, _) = ends.select_nth_unstable(PINS_MAX / 4);
            let end = *end;
            self.remove_expired(end);
        }
    }

    fn remove_expired(&mut self, end: Instant) {
        self.by_address.retain(|_, pins| {
            pins.retain(|pin| pin.expires > end);
            !pins.is_empty()
        });
        self.count = self.by_address.values().map(Vec::len).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: usize) -> HostName {
        format!("n{number}.example").parse().unwrap()
    }

    fn address(number: usize) -> IpAddr {
        std::net::Ipv4Addr::from(u32::try_from(number).unwrap()).into()
    }

    #[test]
    fn a_pin_lives_as_long_as_its_answer_and_a_little_at_least() {
        let (mut pins, now) = (PinTable::default(), Instant::now());
        pins.pin(now, &name(1), address(1), Duration::from_secs(60));
        pins.pin(now, &name(2), address(1), Duration::ZERO);
        let names = |seconds| pins.names(now + Duration::from_secs(seconds), address(1));
        assert_eq!(names(0), [name(1), name(2)]);
        assert_eq!(names(9), [name(1), name(2)]);
        assert_eq!(names(10), [name(1)]);
        assert_eq!(names(60), []);
        assert_eq!(pins.names(now, address(2)), []);
    }

    #[test]
    fn a_later_answer_extends_a_pin_and_never_shortens_it() {
        let (mut pins, now) = (PinTable::default(), Instant::now());
        pins.pin(now, &name(1), address(1), Duration::from_secs(60));
        pins.pin(now, &name(1), address(1), Duration::from_secs(20));
        assert_eq!(pins.names(now + Duration::from_secs(50), address(1)).len(), 1);
        assert_eq!(pins.count, 1);
    }

    #[test]
    fn the_table_is_limited() {
        let (mut pins, now) = (PinTable::default(), Instant::now());
        for number in 0..3 * PINS_MAX {
            let ttl = Duration::from_secs(100 + number as u64);
            pins.pin(now, &name(number), address(number), ttl);
            assert!(pins.count <= PINS_MAX);
        }
        assert_eq!(pins.names(now, address(0)), []);
        assert_eq!(pins.names(now, address(3 * PINS_MAX - 1)).len(), 1);
        for number in 0..3 * NAMES_PER_ADDRESS_MAX {
            pins.pin(now, &name(number), address(1), Duration::from_secs(1000));
        }
        assert_eq!(pins.names(now, address(1)).len(), NAMES_PER_ADDRESS_MAX);
    }
}
