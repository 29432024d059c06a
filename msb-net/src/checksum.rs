//! The Internet checksum (RFC 1071).
//!
//! Sums are kept in native byte order: the one's complement sum is the same in any order if the
//! result is stored as it was read. A packet of 65,520 bytes is summed once on its way to the
//! guest, so the inner loop matters. It is plain code that the compiler vectorizes, once for any
//! processor and once for those with AVX2.

/// A running one's complement sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PartialSum {
    total: u64,
    /// Set after an odd number of bytes: the next ones belong to the other half of a word.
    odd: bool,
}

impl PartialSum {
    /// Adds bytes that follow those added before.
    pub(crate) fn add(mut self, bytes: &[u8]) -> PartialSum {
        let sum = fold(sum_words(bytes));
        let sum = if self.odd { sum.swap_bytes() } else { sum };
        self.total += u64::from(sum);
        self.odd ^= bytes.len() % 2 == 1;
        self
    }

    /// Returns the checksum as it is stored.
    pub(crate) fn finish(self) -> [u8; 2] {
        (!fold(self.total)).to_ne_bytes()
    }
}

/// Returns the checksum of bytes as it is stored.
pub(crate) fn of(bytes: &[u8]) -> [u8; 2] {
    PartialSum::default().add(bytes).finish()
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn sum_words(bytes: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if bytes.len() >= 256 && std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the function requires AVX2, which was detected just before.
        return unsafe { sum_words_avx2(bytes) };
    }
    sum_words_plain(bytes)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_words_avx2(bytes: &[u8]) -> u64 {
    sum_words_plain(bytes)
}

/// Adds 32-bit words in 64-bit lanes, which overflow after 2^32 words: far above any packet.
#[inline(always)]
fn sum_words_plain(bytes: &[u8]) -> u64 {
    const LANES: usize = 8;
    let mut lanes = [0u64; LANES];
    let (blocks, rest) = bytes.as_chunks::<{ LANES * 8 }>();
    for block in blocks {
        let (words, _) = block.as_chunks::<8>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            let word = u64::from_ne_bytes(*word);
            *lane += (word & 0xffff_ffff) + (word >> 32);
        }
    }
    let (pairs, last) = rest.as_chunks::<2>();
    let mut sum: u64 = lanes.iter().sum();
    sum += pairs.iter().map(|pair| u64::from(u16::from_ne_bytes(*pair))).sum::<u64>();
    if let [byte] = last {
        sum += u64::from(u16::from_ne_bytes([*byte, 0]));
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reference implementation of RFC 1071, one word after the other.
    fn slow(bytes: &[u8]) -> [u8; 2] {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |byte| u32::from(*byte));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (!(sum as u16)).to_be_bytes()
    }

    fn bytes(count: usize) -> Vec<u8> {
        (0..count).map(|at| (at * 31 + at / 7) as u8).collect()
    }

    #[test]
    fn the_example_of_the_rfc() {
        assert_eq!(of(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), [0x22, 0x0d]);
    }

    #[test]
    fn every_length_has_the_reference_sum() {
        for count in (0..700).chain([1499, 1500, 65519, 65520, 65535]) {
            let bytes = bytes(count);
            assert_eq!(of(&bytes), slow(&bytes), "{count}");
        }
        let ones = vec![0xff; 65535];
        assert_eq!(of(&ones), slow(&ones));
    }

    #[test]
    fn sums_of_parts_give_the_sum_of_the_whole() {
        let bytes = bytes(1000);
        for first in [0, 1, 2, 333, 512, 999, 1000] {
            for second in [first, (first + 257).min(1000), 1000] {
                let sum = PartialSum::default()
                    .add(&bytes[..first])
                    .add(&bytes[first..second])
                    .add(&bytes[second..]);
                assert_eq!(sum.finish(), slow(&bytes), "{first} {second}");
            }
        }
    }
}
