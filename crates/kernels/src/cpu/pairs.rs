//! Products with weights in bfloat16, two of them in the place of one float32.
//!
//! Drafts need not be exact: a wrong one is found by the pass that verifies it. So the heads that
//! draft may read half the bytes. Weights that are bfloat16 numbers may be read so anywhere, by the
//! units that round nothing.

use super::simd::{F32Portable, Simd};

/// A vector unit that multiplies pairs of bfloat16 weights.
pub(crate) trait PairSimd: Simd {
    /// Two values, the same ones in every lane.
    type Pair: Copy;
    /// Two weights in every lane.
    type Weights: Copy;

    /// Reads two values.
    ///
    /// # Safety
    /// They are readable.
    unsafe fn splat_pair(self, from: *const Self::T) -> Self::Pair;
    /// Reads a vector of pairs, the first weight of each in the low half.
    ///
    /// # Safety
    /// `LANES` pairs at `from` are readable.
    unsafe fn load_pairs(self, from: *const u32) -> Self::Weights;
    /// `sum` + both products, the low weight's first; on a unit that rounds nothing, as by two
    /// [`Simd::fma`].
    fn add_pairs(self, sum: Self::V, x: Self::Pair, w: Self::Weights) -> Self::V;
}

/// Two weights, each rounded to the nearest bfloat16 (ties to even).
pub(super) fn pack_pair(low: f64, high: f64) -> u32 {
    u32::from(bfloat16(low as f32)) | u32::from(bfloat16(high as f32)) << 16
}

/// The weights of a pair, widened.
#[inline(always)]
pub(super) fn widened(pair: u32) -> [f32; 2] {
    [pair << 16, pair & 0xffff_0000].map(f32::from_bits)
}

fn bfloat16(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

impl PairSimd for F32Portable {
    type Pair = [f32; 2];
    type Weights = [[f32; 8]; 2];

    #[inline(always)]
    unsafe fn splat_pair(self, from: *const f32) -> [f32; 2] {
        // SAFETY: the caller has two readable values there.
        unsafe { [*from, *from.add(1)] }
    }
    #[inline(always)]
    unsafe fn load_pairs(self, from: *const u32) -> [[f32; 8]; 2] {
        // SAFETY: the caller has eight readable pairs there.
        let pairs = unsafe { from.cast::<[u32; 8]>().read_unaligned() }.map(widened);
        [pairs.map(|[low, _]| low), pairs.map(|[_, high]| high)]
    }
    #[inline(always)]
    fn add_pairs(self, sum: [f32; 8], x: [f32; 2], [low, high]: [[f32; 8]; 2]) -> [f32; 8] {
        std::array::from_fn(|i| sum[i] + x[0] * low[i] + x[1] * high[i])
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::PairSimd;
    use crate::cpu::simd::Simd;
    use crate::cpu::x86::{F32x8, F32x16, F32x16Bf16};
    use std::arch::x86_64::{
        __m256, __m512, __m512bh, _mm256_and_si256, _mm256_castsi256_ps, _mm256_loadu_si256,
        _mm256_set1_epi32, _mm256_slli_epi32, _mm512_and_si512, _mm512_castpd_ps,
        _mm512_castsi512_ps, _mm512_cvtne2ps_pbh, _mm512_dpbf16_ps, _mm512_loadu_si512,
        _mm512_set1_epi32, _mm512_set1_pd, _mm512_slli_epi32,
    };

    const HIGH: i32 = 0xffff_0000_u32 as i32;

    /// Widens both weights of each pair: they become float32 by a shift or a mask.
    macro_rules! widening {
        ($unit:ident, $v:ident, $load:expr, $low:expr, $high:expr) => {
            impl PairSimd for $unit {
                type Pair = ($v, $v);
                type Weights = [$v; 2];

                #[inline(always)]
                unsafe fn splat_pair(self, from: *const f32) -> ($v, $v) {
                    // SAFETY: the caller has two readable values there.
                    unsafe { (self.splat(*from), self.splat(*from.add(1))) }
                }
                #[inline(always)]
                unsafe fn load_pairs(self, from: *const u32) -> [$v; 2] {
                    // SAFETY: the caller has a vector of readable pairs there, and `self` proves
                    // the unit.
                    unsafe {
                        let pairs = $load(from.cast());
                        [$low(pairs), $high(pairs)]
                    }
                }
                #[inline(always)]
                fn add_pairs(self, sum: $v, x: ($v, $v), w: [$v; 2]) -> $v {
                    self.fma(x.1, w[1], self.fma(x.0, w[0], sum))
                }
            }
        };
    }

    widening!(
        F32x16,
        __m512,
        _mm512_loadu_si512,
        |pairs| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)),
        |pairs| _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(HIGH)))
    );
    widening!(
        F32x8,
        __m256,
        _mm256_loadu_si256,
        |pairs| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs)),
        |pairs| _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(HIGH)))
    );

    impl PairSimd for F32x16Bf16 {
        type Pair = __m512bh;
        type Weights = __m512bh;

        #[inline(always)]
        unsafe fn splat_pair(self, from: *const f32) -> __m512bh {
            // SAFETY: the caller has two readable values there, and `self` proves the unit.
            unsafe {
                let pair = _mm512_castpd_ps(_mm512_set1_pd(from.cast::<f64>().read_unaligned()));
                _mm512_cvtne2ps_pbh(pair, pair)
            }
        }
        #[inline(always)]
        unsafe fn load_pairs(self, from: *const u32) -> __m512bh {
            // SAFETY: the caller has a vector of readable pairs there.
            unsafe { from.cast::<__m512bh>().read_unaligned() }
        }
        #[inline(always)]
        fn add_pairs(self, sum: __m512, x: __m512bh, w: __m512bh) -> __m512 {
            // SAFETY: `self` proves the unit.
            unsafe { _mm512_dpbf16_ps(sum, x, w) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_rounded_to_the_nearest_bfloat16() {
        let value = |pair: u32| f32::from_bits(pair << 16);
        // 1 + 2⁻⁷ is the next bfloat16 after 1; halfway cases go to the even one.
        for (x, expected) in [
            (1.0, 1.0),
            (1.0 + 0.003, 1.0),
            (1.0 + 0.0039, 1.0),
            (1.0 + 0.003_906_25, 1.0),
            (1.0 + 0.004, 1.007_812_5),
            (1.0 + 3.0 * 0.003_906_25, 1.015_625),
            (-2.5, -2.5),
            (f64::INFINITY, f32::INFINITY),
            (0.0, 0.0),
        ] {
            assert!(value(pack_pair(x, 0.0)) == expected, "{x}");
        }
        assert!(value(pack_pair(f64::NAN, 0.0)).is_nan());
        assert_eq!(pack_pair(1.0, -2.0), 0xc000_3f80);
    }
}
