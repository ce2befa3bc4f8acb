//! Seeded permutations that take no memory, and the random numbers that they are made of.

/// A permutation of `0..len`: a Feistel network over the next power of four, walked until it
/// lands inside (Black and Rogaway, 2002, "Ciphers with arbitrary finite domains").
#[derive(Clone, Copy, Debug)]
pub(crate) struct Permutation {
    len: u64,
    half_bits: u32,
    keys: [u64; 6],
}

impl Permutation {
    pub(crate) fn new(len: u64, seed: u64) -> Self {
        let bits = u64::BITS - len.saturating_sub(1).leading_zeros();
        let mut key = seed;
        let keys = std::array::from_fn(|_| {
            key = key.wrapping_add(0x9E37_79B9_7F4A_7C15);
            mix(key)
        });
        Self { len, half_bits: bits.div_ceil(2).max(1), keys }
    }

    /// How many indices there are.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// The place of `index`, which has to be less than `len`.
    pub(crate) fn apply(&self, index: u64) -> u64 {
        let mut place = self.encrypt(index);
        while place >= self.len {
            place = self.encrypt(place);
        }
        place
    }

    fn encrypt(&self, value: u64) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (mix(right ^ key) & mask));
        }
        left << self.half_bits | right
    }
}

/// The finaliser of `SplitMix64` (Steele, Lea and Flood, 2014).
pub(crate) fn mix(value: u64) -> u64 {
    let value = (value ^ value >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ value >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ value >> 31
}

/// A number below `bound` of 64 random bits: Lemire's way, without a division.
pub(crate) fn below(random: u64, bound: u64) -> u64 {
    ((u128::from(random) * u128::from(bound)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_index_has_a_place_of_its_own(len in 1_u64..5000, seed: u64) {
            let permutation = Permutation::new(len, seed);
            let mut places: Vec<u64> = (0..len).map(|index| permutation.apply(index)).collect();
            places.sort_unstable();
            prop_assert!(places.into_iter().eq(0..len));
        }
    }

    #[test]
    fn a_permutation_leaves_about_one_index_in_place() {
        // The expected number of fixed points of a random permutation is 1, whatever its length.
        let fixed: usize = (0..1000)
            .map(|seed| {
                let permutation = Permutation::new(300, seed);
                (0..300).filter(|&index| permutation.apply(index) == index).count()
            })
            .sum();
        assert!((850..1150).contains(&fixed), "{fixed} in 1000 permutations");
    }
}
