//! Capabilities of root that a process gives up (capabilities(7)). An ordinary user's process has
//! none to start with.

use std::io;

use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, remove_capability_from_bounding_set,
    set_capabilities,
};

/// Gives up all capabilities but `kept`, for this thread and for every program that it executes:
/// the bounding set keeps root's programs from getting the others back.
pub fn keep_capabilities(kept: CapabilitySet) -> io::Result<()> {
    for capability in CapabilitySet::all().difference(kept).iter() {
        // An ordinary user may not lower this set, and a capability that this kernel does not know
        // cannot be had either.
        let _ = remove_capability_from_bounding_set(capability);
    }
    let kept = kept.intersection(capabilities(None)?.permitted);
    let sets =
        CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    Ok(set_capabilities(None, sets)?)
}
