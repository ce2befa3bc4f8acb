//! Products with weights in blocks of levels: the same sums, from a sixth to three eighths of the
//! bytes.
//!
//! A model that was published in blocks of a few bits is read as float32, because that is what it
//! is computed in, and each pass of decoding reads every weight. But the weights of a block are
//! still a few levels that lie a step apart: weight = step · level + least. So packing looks for
//! the numbers behind each block, and where all blocks of a matrix have some that give the very
//! weights back (but for the sign of a zero, which no sum sees), a product reads these. Of GGUF's
//! formats, `Q4_0`, `Q4_1` and `Q4_K` are found in 4 bits, `Q5_0`, `Q5_1`, `Q5_K`, `Q6_K` and `Q8_0`
//! in 8.
//!
//! Steps, leasts and levels have so few significant bits that step · level is exact in float64 and
//! the sum too, or so near that it rounds alike: rounded to float32 once, as a fused multiply-add
//! does, it is the same weight on any unit.

use std::sync::atomic::{AtomicBool, Ordering};

use half::f16;

use super::dispatch::{Isa, Kernel};
use super::pairs::PairSimd;
use super::real::Real;
use super::simd::{F32Portable, Simd};
use crate::native::for_each;

/// A vector unit that takes weights from their levels.
pub(crate) trait LevelSimd: PairSimd<Weights = [<Self as Simd>::V; 2]> {
    /// 32 bits in every lane.
    type Words: Copy;

    /// Reads a vector of words.
    ///
    /// # Safety
    /// `LANES` words at `from` are readable.
    unsafe fn load_words(self, from: *const u32) -> Self::Words;
    /// The finite float16 in the low half of each word, and that in the high half.
    fn halves(self, words: Self::Words) -> [Self::V; 2];
    /// Reads a vector of pairs of float16 weights.
    ///
    /// # Safety
    /// `LANES` pairs at `from` are readable.
    #[inline(always)]
    unsafe fn load_halves(self, from: *const u32) -> Self::Weights {
        // SAFETY: the caller's promise.
        self.halves(unsafe { self.load_words(from) })
    }
    /// The lowest `BITS` bits of each word, as a number.
    fn level<const BITS: usize>(self, words: Self::Words) -> Self::V;
    /// Words without their lowest `BITS` bits.
    fn next<const BITS: usize>(self, words: Self::Words) -> Self::Words;
    /// step · level + least, rounded once.
    #[inline(always)]
    fn weight(self, step: Self::V, level: Self::V, least: Self::V) -> Self::V {
        self.fma(level, step, least)
    }
}

/// How a block of levels lies in words: step and least, then `block` levels of `bits` bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Form {
    pub(super) bits: usize,
    /// Weights of a block, one behind the other in a row.
    pub(super) block: usize,
    /// Whether step and least are float32 in two words, not float16 in one.
    pub(super) wide: bool,
}

/// For each form, the smallest first.
pub(super) const FORMS: [Form; 5] = [
    Form { bits: 4, block: 32, wide: false },
    Form { bits: 4, block: 32, wide: true },
    Form { bits: 8, block: 32, wide: false },
    Form { bits: 8, block: 32, wide: true },
    Form { bits: 8, block: 16, wide: true },
];

/// Words of the longest block, and weights.
pub(super) const MOST_WORDS: usize = 10;
const MOST_BLOCK: usize = 32;

/// Blocks that a thread searches at a time.
const SEARCHED: usize = 512;

/// Most steps from a block's least weight to its greatest: formats with a least weight of their own
/// have 5 bits at most.
const MOST_STEPS: u8 = 31;

impl Form {
    /// Words of step and least.
    pub(super) const fn header(self) -> usize {
        if self.wide { 2 } else { 1 }
    }

    /// Words of a block.
    pub(super) const fn words(self) -> usize {
        self.header() + self.block * self.bits / 32
    }

    /// Step and least, in the first words of a block.
    fn ends(self, words: &[u32]) -> [f32; 2] {
        if self.wide {
            return [words[0], words[1]].map(f32::from_bits);
        }
        halves(words[0])
    }

    fn set_ends(self, words: &mut [u32], step: f32, least: f32) {
        if self.wide {
            (words[0], words[1]) = (step.to_bits(), least.to_bits());
        } else {
            words[0] = half_pair(step.into(), least.into());
        }
    }

    /// The weights behind the words of a block.
    pub(super) fn weights(self, words: &[u32]) -> impl Iterator<Item = f32> + '_ {
        let [step, least] = self.ends(words);
        let levels = words[self.header()..].iter().flat_map(move |word| {
            (0..32 / self.bits).map(move |n| word >> (n * self.bits) & ((1 << self.bits) - 1))
        });
        levels.map(move |level| weight(step, level.into(), least))
    }

    /// The words of all blocks of a matrix with rows of `inputs` weights, or `None` where a block's
    /// weights are no levels in this form.
    pub(super) fn find_all<T: Real>(
        self,
        isa: Isa,
        weights: &[T],
        inputs: usize,
    ) -> Option<Vec<u32>> {
        if !inputs.is_multiple_of(self.block) || !weights.len().is_multiple_of(self.block) {
            return None;
        }
        let mut words = vec![0; weights.len() / self.block * self.words()];
        let failed = AtomicBool::new(false);
        let parts = weights.chunks(SEARCHED * self.block);
        for_each(parts.zip(words.chunks_mut(SEARCHED * self.words())), |(weights, words)| {
            let search = Search { form: self, weights, words };
            if failed.load(Ordering::Relaxed) || !T::dispatch(isa, search) {
                failed.store(true, Ordering::Relaxed);
            }
        });
        (!failed.into_inner()).then_some(words)
    }

    /// Writes a block's words, or returns false where it has none.
    #[inline(always)]
    fn find(self, block: &[f32], words: &mut [u32]) -> bool {
        let (least, most) = block
            .iter()
            .fold((f32::INFINITY, f32::NEG_INFINITY), |(a, b), &w| (a.min(w), b.max(w)));
        let levels = 1u16 << self.bits;
        // To both sides of zero: the weight farthest from it is a whole number of steps away.
        let farthest = if most > -least { most } else { least };
        let around_zero = (1..=levels / 2).rev().any(|steps| {
            let step = farthest / -f32::from(steps);
            let from = step * -f32::from(levels / 2);
            self.holds(step) && self.holds(from) && self.fill(block, step, from, words)
        });
        // From a least weight on, which the block itself need not have.
        let most_steps = MOST_STEPS.min((levels - 1) as u8);
        around_zero
            || (1..=most_steps).rev().any(|steps| {
                let Some(step) = self.nearest((most - least) / f32::from(steps)) else {
                    return false;
                };
                (0..=most_steps - steps).any(|below| {
                    let from = self.nearest(least - step * f32::from(below));
                    from.is_some_and(|from| self.fill(block, step, from, words))
                })
            })
    }

    /// Whether `x` may be the step of levels around zero, or the least of them: a float16, or the
    /// product of one and a scale of 8 bits.
    fn holds(self, x: f32) -> bool {
        if self.wide { x.is_finite() && x.to_bits().trailing_zeros() >= 5 } else { is_half(x) }
    }

    /// The nearest number that may be a step or a least weight: a float16, or the product of one and
    /// a scale of 6 bits, which has 17 significant ones.
    fn nearest(self, x: f32) -> Option<f32> {
        let near = if self.wide {
            f32::from_bits(x.to_bits().wrapping_add(0x40) & !0x7f)
        } else {
            f16::from_f32(x).to_f32()
        };
        near.is_finite().then_some(near)
    }

    /// Writes the words of a block with this step and least, or returns false where a weight is no
    /// level of theirs.
    #[inline(always)]
    fn fill(self, block: &[f32], step: f32, least: f32, words: &mut [u32]) -> bool {
        // Within this range, step · level + least is exact in float64, or least is too small for
        // the sum to be near the middle between two float32 numbers.
        if step != 0.0 && least.abs() > 16_777_216.0 * step.abs() {
            return false;
        }
        let per_step = if step == 0.0 { 0.0 } else { 1.0 / step };
        let most = ((1u32 << self.bits) - 1) as f32;
        let nearest = |w: f32| {
            // Adding and taking away 2²³ rounds a number between 0 and that.
            let near = ((w - least) * per_step).clamp(0.0, most) + 8_388_608.0 - 8_388_608.0;
            (near as i32 as u8, weight(step, near.into(), least) == w)
        };
        // Where the guess is wrong, one of the first weights mostly tells.
        let (first, _) = block.split_at(4);
        if !first.iter().all(|&w| nearest(w).1) {
            return false;
        }
        let (mut levels, mut right) = ([0u8; MOST_BLOCK], true);
        for (level, &w) in levels.iter_mut().zip(block) {
            let (near, same) = nearest(w);
            *level = near;
            right &= same;
        }
        if !right {
            return false;
        }
        self.set_ends(words, step, least);
        let levels = levels[..self.block].chunks(32 / self.bits);
        for (word, levels) in words[self.header()..].iter_mut().zip(levels) {
            let levels = levels.iter().enumerate();
            *word = levels.fold(0, |word, (n, &level)| word | u32::from(level) << (n * self.bits));
        }
        true
    }
}

/// Some blocks whose words are looked for.
struct Search<'w, T> {
    form: Form,
    weights: &'w [T],
    words: &'w mut [u32],
}

impl<T: Real> Kernel<T> for Search<'_, T> {
    /// Whether all have words.
    type Output = bool;

    #[inline(always)]
    fn run<S: Simd<T = T>>(self, _s: S) -> bool {
        let Self { form, weights, words } = self;
        let mut numbers = [0.0; MOST_BLOCK];
        let numbers = &mut numbers[..form.block];
        for (block, words) in weights.chunks(form.block).zip(words.chunks_mut(form.words())) {
            numbers.iter_mut().zip(block).for_each(|(x, w)| *x = w.to_f64() as f32);
            if !form.find(numbers, words) {
                return false;
            }
        }
        true
    }
}

/// The float16 numbers in the low and the high half of a word.
#[inline(always)]
pub(super) fn halves(word: u32) -> [f32; 2] {
    [0, 16].map(|at| f16::from_bits((word >> at) as u16).to_f32())
}

/// The nearest float16 numbers, in the low and the high half of a word.
pub(super) fn half_pair(low: f64, high: f64) -> u32 {
    let [low, high] = [low, high].map(|x| u32::from(f16::from_f64(x).to_bits()));
    low | high << 16
}

/// Whether a number is one in float16 too.
pub(super) fn is_half(x: f32) -> bool {
    x.is_finite() && f16::from_f32(x).to_f32() == x
}

/// step · level + least, rounded once.
#[inline(always)]
fn weight(step: f32, level: f64, least: f32) -> f32 {
    (f64::from(step) * level + f64::from(least)) as f32
}

impl LevelSimd for F32Portable {
    type Words = [u32; 8];

    #[inline(always)]
    unsafe fn load_words(self, from: *const u32) -> [u32; 8] {
        // SAFETY: the caller has eight readable words there.
        unsafe { from.cast::<[u32; 8]>().read_unaligned() }
    }
    #[inline(always)]
    fn halves(self, words: [u32; 8]) -> [[f32; 8]; 2] {
        let both = words.map(halves);
        [both.map(|[low, _]| low), both.map(|[_, high]| high)]
    }
    #[inline(always)]
    fn level<const BITS: usize>(self, words: [u32; 8]) -> [f32; 8] {
        words.map(|word| (word & ((1 << BITS) - 1)) as f32)
    }
    #[inline(always)]
    fn next<const BITS: usize>(self, words: [u32; 8]) -> [u32; 8] {
        words.map(|word| word >> BITS)
    }
    #[inline(always)]
    fn weight(self, step: [f32; 8], level: [f32; 8], least: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| weight(step[i], level[i].into(), least[i]))
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::LevelSimd;
    use crate::cpu::x86::{F32x8, F32x16};
    use std::arch::x86_64::{
        __m256, __m256i, __m512, __m512i, _mm_packus_epi32, _mm256_and_si256,
        _mm256_castsi256_si128, _mm256_cvtepi32_ps, _mm256_cvtph_ps, _mm256_extracti128_si256,
        _mm256_loadu_si256, _mm256_set1_epi32, _mm256_srli_epi32, _mm512_and_si512,
        _mm512_cvtepi32_epi16, _mm512_cvtepi32_ps, _mm512_cvtph_ps, _mm512_loadu_si512,
        _mm512_permutexvar_ps, _mm512_set1_epi32, _mm512_setr_ps, _mm512_srli_epi32,
    };

    // SAFETY of every block below: `self` proves the unit, and the pointers are the caller's
    // promise.
    impl LevelSimd for F32x16 {
        type Words = __m512i;

        #[inline(always)]
        unsafe fn load_words(self, from: *const u32) -> __m512i {
            unsafe { _mm512_loadu_si512(from.cast()) }
        }
        #[inline(always)]
        fn halves(self, words: __m512i) -> [__m512; 2] {
            unsafe {
                [words, _mm512_srli_epi32::<16>(words)]
                    .map(|low| _mm512_cvtph_ps(_mm512_cvtepi32_epi16(low)))
            }
        }
        #[inline(always)]
        fn level<const BITS: usize>(self, words: __m512i) -> __m512 {
            unsafe {
                if BITS == 4 {
                    // A permutation reads the lowest four bits of an index only.
                    let numbers = _mm512_setr_ps(
                        0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0,
                        14.0, 15.0,
                    );
                    return _mm512_permutexvar_ps(words, numbers);
                }
                _mm512_cvtepi32_ps(_mm512_and_si512(words, _mm512_set1_epi32((1 << BITS) - 1)))
            }
        }
        #[inline(always)]
        fn next<const BITS: usize>(self, words: __m512i) -> __m512i {
            unsafe {
                match BITS {
                    4 => _mm512_srli_epi32::<4>(words),
                    _ => _mm512_srli_epi32::<8>(words),
                }
            }
        }
    }

    impl LevelSimd for F32x8 {
        type Words = __m256i;

        #[inline(always)]
        unsafe fn load_words(self, from: *const u32) -> __m256i {
            unsafe { _mm256_loadu_si256(from.cast()) }
        }
        #[inline(always)]
        fn halves(self, words: __m256i) -> [__m256; 2] {
            unsafe {
                let low = _mm256_and_si256(words, _mm256_set1_epi32(0xffff));
                [low, _mm256_srli_epi32::<16>(words)].map(|numbers| {
                    let upper = _mm256_extracti128_si256::<1>(numbers);
                    let numbers = _mm256_castsi256_si128(numbers);
                    _mm256_cvtph_ps(_mm_packus_epi32(numbers, upper))
                })
            }
        }
        #[inline(always)]
        fn level<const BITS: usize>(self, words: __m256i) -> __m256 {
            unsafe {
                _mm256_cvtepi32_ps(_mm256_and_si256(words, _mm256_set1_epi32((1 << BITS) - 1)))
            }
        }
        #[inline(always)]
        fn next<const BITS: usize>(self, words: __m256i) -> __m256i {
            unsafe {
                match BITS {
                    4 => _mm256_srli_epi32::<4>(words),
                    _ => _mm256_srli_epi32::<8>(words),
                }
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A block as a quantised model has it.
    #[derive(Clone, Debug)]
    pub(in super::super) struct Quantised {
        /// The form that it is found in, or a smaller one.
        pub(in super::super) form: Form,
        pub(in super::super) weights: Vec<f32>,
    }

    /// The format of a block in GGUF.
    #[derive(Clone, Copy, Debug)]
    pub(in super::super) enum Format {
        Q4_0,
        Q4_1,
        Q5_0,
        Q5_1,
        Q8_0,
        Q4K,
        Q5K,
        Q6K,
    }

    /// 32 weights in a format: a float16 times levels, around zero or from a least weight on, which
    /// in the K formats are both scaled by whole numbers.
    pub(in super::super) fn quantised(
        format: Format,
        (d, scale, least, least_scale): (f32, u8, f32, u8),
        levels: &[u8],
    ) -> Quantised {
        let half = |x: f32| f16::from_f32(x).to_f32();
        let (d, sixth) = (half(d), f32::from(scale % 64));
        let from_zero = |bits: u8| -> Box<dyn Fn(usize, u8) -> f32> {
            let center = f32::from(1u8 << (bits - 1));
            Box::new(move |_, level| d * (f32::from(level >> (8 - bits)) - center))
        };
        let from_least = |bits: u8, step: f32, least: f32| -> Box<dyn Fn(usize, u8) -> f32> {
            Box::new(move |_, level| step * f32::from(level >> (8 - bits)) + least)
        };
        let least_of_k = half(d * least / 100.0) * -f32::from(least_scale % 16);
        let (form, weight) = match format {
            Format::Q4_0 => (0, from_zero(4)),
            Format::Q4_1 => (0, from_least(4, d, half(d * least))),
            Format::Q5_0 => (2, from_zero(5)),
            Format::Q5_1 => (2, from_least(5, d, half(d * least))),
            Format::Q8_0 => (2, from_zero(8)),
            Format::Q4K => (1, from_least(4, d * sixth, least_of_k)),
            Format::Q5K => (3, from_least(5, d * sixth, least_of_k)),
            Format::Q6K => (
                4,
                Box::new(move |place: usize, level| {
                    let scale = if place < 16 { scale } else { least_scale };
                    d * f32::from(scale.cast_signed()) * (f32::from(level >> 2) - 32.0)
                }) as Box<dyn Fn(usize, u8) -> f32>,
            ),
        };
        let levels = levels.iter().enumerate();
        let weights = levels.map(|(place, &level)| weight(place, level)).collect();
        Quantised { form: FORMS[form], weights }
    }

    pub(in super::super) fn a_format() -> impl Strategy<Value = Format> {
        use Format::{Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
        prop::sample::select(vec![Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4K, Q5K, Q6K])
    }

    /// A block of 32 weights. As a quantiser chooses steps so, the block has the least and the
    /// greatest level.
    pub(in super::super) fn a_block(format: Format) -> impl Strategy<Value = Quantised> {
        let steps = prop_oneof![0.001f32..2.0, -2.0f32..-0.001, 1e-6f32..1e-5, Just(0.0)];
        let levels = prop::collection::vec(any::<u8>(), 32);
        (steps, any::<u8>(), 0.0f32..50.0, any::<u8>(), levels).prop_map(
            move |(d, scale, least, least_scale, mut levels)| {
                (levels[4], levels[30]) = (1, 255);
                let d = if matches!(format, Format::Q4_0 | Format::Q5_0 | Format::Q8_0) {
                    d
                } else {
                    d.abs()
                };
                quantised(format, (d, scale, least, least_scale), &levels)
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1024))]

        #[test]
        fn quantised_weights_are_found_and_given_back(
            block in a_format().prop_flat_map(a_block),
        ) {
            let Quantised { form, weights } = block;
            let mut all = Isa::available().into_iter().map(|isa| form.find_all(isa, &weights, 32));
            let found = all.next().flatten().ok_or(TestCaseError::fail("not found"))?;
            prop_assert!(all.all(|other| other.as_ref() == Some(&found)));
            let back: Vec<f32> =
                found.chunks(form.words()).flat_map(|block| form.weights(block)).collect();
            // The same bits, but for the sign of a zero.
            let bits = |weights: &[f32]| weights.iter().map(|w| (w + 0.0).to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&back), bits(&weights));
        }

        #[test]
        fn weights_that_are_no_levels_are_not_found(
            weights in prop::collection::vec(-1.0f32..1.0, 32), form in prop::sample::select(&FORMS),
        ) {
            prop_assert!(form.find_all(Isa::detect(), &weights, 32).is_none());
        }
    }

    #[test]
    fn what_is_no_number_or_no_whole_block_is_not_found() {
        for form in FORMS {
            for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e38, 1.234_567e-30] {
                let mut weights = [0.5f32; 32];
                weights[7] = odd;
                assert!(form.find_all(Isa::detect(), &weights, 32).is_none(), "{odd} in {form:?}");
            }
            assert!(form.find_all(Isa::detect(), &[0.0f32; 33], 33).is_none());
            assert!(form.find_all(Isa::detect(), &[0.0f32; 33], 32).is_none());
            assert!(form.find_all(Isa::detect(), &[0.0f32; 32], 32).is_some());
            assert!(form.words() <= MOST_WORDS);
        }
    }
}
