//! Facts behind the verdicts on open connections and flows. A new policy judges them again by the
//! same facts.
//!
//! A guest can resolve any number of long names to one address, so the names of all connections
//! share one limit. A connection whose names exceed it is closed when the policy changes; the guest
//! may open it again.

use libmsb::net::name::HostName;

use crate::limits::NAMES_BYTES_TOTAL;
use crate::policy::ConnectionFacts;

/// The facts that a connection was judged by.
#[derive(Debug)]
pub(crate) struct VerdictFacts {
    facts: ConnectionFacts,
    is_complete: bool,
}

/// Memory budget for the names in all stored facts.
#[derive(Debug, Default)]
pub(crate) struct FactsBudget {
    name_bytes: usize,
}

impl FactsBudget {
    /// Stores facts. The result must be released with [`FactsBudget::release`].
    pub(crate) fn store(&mut self, mut facts: ConnectionFacts) -> VerdictFacts {
        facts.names.shrink_to_fit();
        let name_bytes = name_bytes(&facts);
        let is_complete = self.name_bytes + name_bytes <= NAMES_BYTES_TOTAL;
        if is_complete {
            self.name_bytes += name_bytes;
        } else {
            facts.names = Vec::new();
        }
        VerdictFacts { facts, is_complete }
    }

    /// Releases the memory of stored facts.
    pub(crate) fn release(&mut self, stored: &VerdictFacts) {
        self.name_bytes -= name_bytes(&stored.facts);
    }
}

impl VerdictFacts {
    /// Returns the facts; the names are missing if they exceeded the budget.
    pub(crate) fn facts(&self) -> &ConnectionFacts {
        &self.facts
    }

    /// Returns the facts if the names are included.
    pub(crate) fn complete(&self) -> Option<&ConnectionFacts> {
        self.is_complete.then_some(&self.facts)
    }
}

fn name_bytes(facts: &ConnectionFacts) -> usize {
    let size = |name: &HostName| size_of::<HostName>() + name.as_str().len();
    facts.names.iter().map(size).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::TlsPeek;
    use libmsb::net::rule::{Direction, Protocol};

    fn facts(names: usize) -> ConnectionFacts {
        let label = "a".repeat(60);
        let name = |number| format!("n{number}.{label}.{label}.{label}");
        ConnectionFacts {
            direction: Direction::Egress,
            protocol: Protocol::Tcp,
            address: "1.2.3.4".parse().unwrap(),
            port: Some(443),
            names: (0..names).map(|number| name(number).parse().unwrap()).collect(),
            tls: TlsPeek::Unseen,
        }
    }

    #[test]
    fn names_of_all_connections_are_limited_and_released() {
        let mut budget = FactsBudget::default();
        let mut all: Vec<VerdictFacts> = (0..8192).map(|_| budget.store(facts(64))).collect();
        let names: usize = all.iter().map(|stored| name_bytes(stored.facts())).sum();
        assert!(names <= NAMES_BYTES_TOTAL && names > NAMES_BYTES_TOTAL - 64 * 512);
        assert!(all[0].complete().is_some() && all[8191].complete().is_none());
        // Facts without names are complete even when the budget is used up.
        assert!(budget.store(facts(0)).complete().is_some());
        all.drain(..).for_each(|stored| budget.release(&stored));
        assert_eq!(budget.name_bytes, 0);
        assert!(budget.store(facts(64)).complete().is_some());
    }
}
