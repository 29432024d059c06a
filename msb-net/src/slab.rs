//! A slab: values under stable keys.
//!
//! A key includes a generation. When its slot is reused, the old key finds nothing, so a late event
//! of the kernel or a late timer does no harm.

/// The key of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SlabKey {
    index: u32,
    generation: u32,
}

impl SlabKey {
    /// Converts the key to a number for an epoll event.
    pub(crate) fn to_bits(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    pub(crate) fn from_bits(bits: u64) -> SlabKey {
        SlabKey { index: bits as u32, generation: (bits >> 32) as u32 }
    }
}

/// Values under keys.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    slots: Vec<(u32, Option<Box<T>>)>,
    free: Vec<u32>,
}

/// Mask of generations: the bits above are free for the event source.
const GENERATION_MASK: u32 = 0x00ff_ffff;

impl<T> Slab<T> {
    pub(crate) fn new() -> Slab<T> {
        Slab { slots: Vec::new(), free: Vec::new() }
    }

    /// Returns the number of values.
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Adds a value.
    pub(crate) fn insert(&mut self, value: T) -> SlabKey {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push((0, None));
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        slot.1 = Some(Box::new(value));
        SlabKey { index, generation: slot.0 }
    }

    pub(crate) fn get(&self, key: SlabKey) -> Option<&T> {
        let (generation, value) = self.slots.get(key.index as usize)?;
        value.as_deref().filter(|_| *generation == key.generation)
    }

    pub(crate) fn get_mut(&mut self, key: SlabKey) -> Option<&mut T> {
        let (generation, value) = self.slots.get_mut(key.index as usize)?;
        value.as_deref_mut().filter(|_| *generation == key.generation)
    }

    /// Removes and returns a value.
    pub(crate) fn remove(&mut self, key: SlabKey) -> Option<T> {
        self.get(key)?;
        let slot = &mut self.slots[key.index as usize];
        slot.0 = (slot.0 + 1) & GENERATION_MASK;
        self.free.push(key.index);
        slot.1.take().map(|value| *value)
    }

    /// Returns all keys.
    pub(crate) fn keys(&self) -> Vec<SlabKey> {
        self.slots
            .iter()
            .enumerate()
            .filter(|(_, (_, value))| value.is_some())
            .map(|(index, (generation, _))| SlabKey {
                index: index as u32,
                generation: *generation,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_key_does_not_find_the_value_in_a_reused_slot() {
        let mut slab = Slab::new();
        let old = slab.insert("a");
        assert_eq!(slab.remove(old), Some("a"));
        let new = slab.insert("b");
        assert_eq!((slab.get(old), slab.get(new)), (None, Some(&"b")));
        assert_eq!(slab.remove(old), None);
        assert_eq!((slab.len(), slab.keys()), (1, vec![new]));
        assert_eq!(SlabKey::from_bits(new.to_bits()), new);
    }
}
