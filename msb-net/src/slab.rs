//! Numbered places for things that come and go.
//!
//! A key names a thing for good: when its place is used again, the old key finds nothing. So an event of the kernel, or a
//! timer, that is late does no harm.

/// The name of a thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    index: u32,
    generation: u32,
}

impl Key {
    /// As a number, and back.
    pub(crate) fn to_bits(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    pub(crate) fn from_bits(bits: u64) -> Key {
        Key {
            index: bits as u32,
            generation: (bits >> 32) as u32,
        }
    }
}

/// Things by their keys.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    places: Vec<(u32, Option<Box<T>>)>,
    free: Vec<u32>,
}

/// Generations leave bits free at the top, where others mark their keys.
const GENERATION_MASK: u32 = 0x00ff_ffff;

impl<T> Slab<T> {
    pub(crate) fn new() -> Slab<T> {
        Slab {
            places: Vec::new(),
            free: Vec::new(),
        }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Adds a thing.
    pub(crate) fn insert(&mut self, thing: T) -> Key {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push((0, None));
            (self.places.len() - 1) as u32
        });
        let place = &mut self.places[index as usize];
        place.1 = Some(Box::new(thing));
        Key {
            index,
            generation: place.0,
        }
    }

    pub(crate) fn get(&self, key: Key) -> Option<&T> {
        let (generation, thing) = self.places.get(key.index as usize)?;
        thing.as_deref().filter(|_| *generation == key.generation)
    }

    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let (generation, thing) = self.places.get_mut(key.index as usize)?;
        thing
            .as_deref_mut()
            .filter(|_| *generation == key.generation)
    }

    /// Takes a thing out.
    pub(crate) fn remove(&mut self, key: Key) -> Option<T> {
        self.get(key)?;
        let place = &mut self.places[key.index as usize];
        place.0 = (place.0 + 1) & GENERATION_MASK;
        self.free.push(key.index);
        place.1.take().map(|thing| *thing)
    }

    /// All keys.
    pub(crate) fn keys(&self) -> Vec<Key> {
        self.places
            .iter()
            .enumerate()
            .filter(|(_, (_, thing))| thing.is_some())
            .map(|(index, (generation, _))| Key {
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
    fn an_old_key_does_not_find_what_took_its_place() {
        let mut slab = Slab::new();
        let old = slab.insert("a");
        assert_eq!(slab.remove(old), Some("a"));
        let new = slab.insert("b");
        assert_eq!((slab.get(old), slab.get(new)), (None, Some(&"b")));
        assert_eq!(slab.remove(old), None);
        assert_eq!((slab.len(), slab.keys()), (1, vec![new]));
        assert_eq!(Key::from_bits(new.to_bits()), new);
    }
}
