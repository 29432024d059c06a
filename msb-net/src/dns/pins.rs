//! Which names an address was found for, and for how long that counts.
//!
//! The table is bounded, in all and for each address. A guest that overflows it loses its own oldest pins.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use libmsb::net::name::HostName;

/// Most pins.
const PINS_MAX: usize = 8192;
/// Most names of one address.
const NAMES_MAX: usize = 64;
/// Shortest life of a pin. Programs connect some time after they asked, to one address after the other; an answer that is
/// to live for 0 seconds would never be of use.
const LIFE_MIN: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Pin {
    name: HostName,
    until: Instant,
}

/// Addresses with the names that they were found for.
#[derive(Debug, Default)]
pub(super) struct Pins {
    by_address: HashMap<IpAddr, Vec<Pin>>,
    count: usize,
}

impl Pins {
    /// Pins an address to a name.
    pub(super) fn pin(&mut self, now: Instant, name: &HostName, address: IpAddr, life: Duration) {
        let until = now + life.max(LIFE_MIN);
        let known = self
            .by_address
            .get_mut(&address)
            .and_then(|pins| pins.iter_mut().find(|pin| pin.name == *name));
        if let Some(pin) = known {
            pin.until = pin.until.max(until);
            return;
        }
        if self.count >= PINS_MAX {
            self.make_room(now);
        }
        let pins = self.by_address.entry(address).or_default();
        if pins.len() >= NAMES_MAX
            && let Some(first) = (0..pins.len()).min_by_key(|place| pins[*place].until)
        {
            pins.swap_remove(first);
            self.count -= 1;
        }
        pins.push(Pin {
            name: name.clone(),
            until,
        });
        self.count += 1;
    }

    /// The names that an address was found for, and that are alive.
    pub(super) fn names(&self, now: Instant, address: IpAddr) -> Vec<HostName> {
        let pins = self.by_address.get(&address).into_iter().flatten();
        pins.filter(|pin| pin.until > now)
            .map(|pin| pin.name.clone())
            .collect()
    }

    /// Takes away what is dead; if all are alive, the quarter that dies first.
    fn make_room(&mut self, now: Instant) {
        self.retain(now);
        if self.count >= PINS_MAX {
            let mut ends: Vec<Instant> = self
                .by_address
                .values()
                .flatten()
                .map(|pin| pin.until)
                .collect();
            let (_, end, _) = ends.select_nth_unstable(PINS_MAX / 4);
            let end = *end;
            self.retain(end);
        }
    }

    fn retain(&mut self, end: Instant) {
        self.by_address.retain(|_, pins| {
            pins.retain(|pin| pin.until > end);
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
        let (mut pins, now) = (Pins::default(), Instant::now());
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
    fn a_later_answer_lengthens_a_life_and_never_shortens_it() {
        let (mut pins, now) = (Pins::default(), Instant::now());
        pins.pin(now, &name(1), address(1), Duration::from_secs(60));
        pins.pin(now, &name(1), address(1), Duration::from_secs(20));
        assert_eq!(
            pins.names(now + Duration::from_secs(50), address(1)).len(),
            1
        );
        assert_eq!(pins.count, 1);
    }

    #[test]
    fn the_table_is_bounded() {
        let (mut pins, now) = (Pins::default(), Instant::now());
        for number in 0..3 * PINS_MAX {
            let life = Duration::from_secs(100 + number as u64);
            pins.pin(now, &name(number), address(number), life);
            assert!(pins.count <= PINS_MAX);
        }
        assert_eq!(pins.names(now, address(0)), []);
        assert_eq!(pins.names(now, address(3 * PINS_MAX - 1)).len(), 1);
        for number in 0..3 * NAMES_MAX {
            pins.pin(now, &name(number), address(1), Duration::from_secs(1000));
        }
        assert_eq!(pins.names(now, address(1)).len(), NAMES_MAX);
    }
}
