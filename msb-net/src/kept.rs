//! What connections and flows were judged by, kept as long as they are open: another policy judges them by it again.
//!
//! A guest can find as many and as long names for an address as it likes, so those of all connections have a bound
//! together. A connection whose names find no room ends when the policy becomes another; the guest may open it again.

use libmsb::net::name::HostName;

use crate::limits::NAMES_BYTES_TOTAL;
use crate::policy::Facts;

/// What one was judged by.
#[derive(Debug)]
pub(crate) struct Kept {
    facts: Facts,
    is_whole: bool,
}

/// How much is kept.
#[derive(Debug, Default)]
pub(crate) struct Keeper {
    bytes: usize,
}

impl Keeper {
    /// Keeps facts; what is given must be forgotten.
    pub(crate) fn keep(&mut self, mut facts: Facts) -> Kept {
        facts.names.shrink_to_fit();
        let bytes = bytes(&facts);
        let is_whole = self.bytes + bytes <= NAMES_BYTES_TOTAL;
        if is_whole {
            self.bytes += bytes;
        } else {
            facts.names = Vec::new();
        }
        Kept { facts, is_whole }
    }

    /// They are needed no more.
    pub(crate) fn forget(&mut self, kept: &Kept) {
        self.bytes -= bytes(&kept.facts);
    }
}

impl Kept {
    /// What is left of the facts: all but names, perhaps.
    pub(crate) fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The facts, if they are all there.
    pub(crate) fn whole(&self) -> Option<&Facts> {
        self.is_whole.then_some(&self.facts)
    }
}

fn bytes(facts: &Facts) -> usize {
    let size = |name: &HostName| size_of::<HostName>() + name.as_str().len();
    facts.names.iter().map(size).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Tls;
    use libmsb::net::rule::{Direction, Protocol};

    fn facts(names: usize) -> Facts {
        let label = "a".repeat(60);
        let name = |number| format!("n{number}.{label}.{label}.{label}");
        Facts {
            direction: Direction::Egress,
            protocol: Protocol::Tcp,
            address: "1.2.3.4".parse().unwrap(),
            port: Some(443),
            names: (0..names)
                .map(|number| name(number).parse().unwrap())
                .collect(),
            tls: Tls::Unseen,
        }
    }

    #[test]
    fn names_of_all_connections_have_a_bound_and_leave_with_them() {
        let mut keeper = Keeper::default();
        let mut all: Vec<Kept> = (0..8192).map(|_| keeper.keep(facts(64))).collect();
        let names: usize = all.iter().map(|kept| bytes(kept.facts())).sum();
        assert!(names <= NAMES_BYTES_TOTAL && names > NAMES_BYTES_TOTAL - 64 * 512);
        assert!(all[0].whole().is_some() && all[8191].whole().is_none());
        // Who has no names is whole nevertheless.
        assert!(keeper.keep(facts(0)).whole().is_some());
        all.drain(..).for_each(|kept| keeper.forget(&kept));
        assert_eq!(keeper.bytes, 0);
        assert!(keeper.keep(facts(64)).whole().is_some());
    }
}
