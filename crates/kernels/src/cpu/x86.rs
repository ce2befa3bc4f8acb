//! AVX-512 and AVX2 with fused multiply-add.

use std::arch::x86_64::{
    __m256, __m256d, __m512, __m512d, _CMP_LT_OQ, _CMP_NLT_UQ, _MM_FROUND_NO_EXC,
    _MM_FROUND_TO_NEAREST_INT, _MM_HINT_T0, _mm_prefetch, _mm256_add_epi32, _mm256_add_epi64,
    _mm256_add_pd, _mm256_add_ps, _mm256_andnot_pd, _mm256_andnot_ps, _mm256_castsi256_pd,
    _mm256_castsi256_ps, _mm256_cmp_pd, _mm256_cmp_ps, _mm256_cvtepi32_epi64, _mm256_cvtpd_epi32,
    _mm256_cvtps_epi32, _mm256_div_pd, _mm256_div_ps, _mm256_fmadd_pd, _mm256_fmadd_ps,
    _mm256_loadu_pd, _mm256_loadu_ps, _mm256_max_pd, _mm256_max_ps, _mm256_mul_pd, _mm256_mul_ps,
    _mm256_round_pd, _mm256_round_ps, _mm256_set1_epi32, _mm256_set1_epi64x, _mm256_set1_pd,
    _mm256_set1_ps, _mm256_slli_epi32, _mm256_slli_epi64, _mm256_storeu_pd, _mm256_storeu_ps,
    _mm256_sub_pd, _mm256_sub_ps, _mm512_add_pd, _mm512_add_ps, _mm512_cmp_pd_mask,
    _mm512_cmp_ps_mask, _mm512_div_pd, _mm512_div_ps, _mm512_fmadd_pd, _mm512_fmadd_ps,
    _mm512_loadu_pd, _mm512_loadu_ps, _mm512_maskz_mov_pd, _mm512_maskz_mov_ps, _mm512_max_pd,
    _mm512_max_ps, _mm512_mul_pd, _mm512_mul_ps, _mm512_roundscale_pd, _mm512_roundscale_ps,
    _mm512_scalef_pd, _mm512_scalef_ps, _mm512_set1_pd, _mm512_set1_ps, _mm512_storeu_pd,
    _mm512_storeu_ps, _mm512_sub_pd, _mm512_sub_ps,
};

use super::dispatch::Unit;
use super::simd::Simd;

/// Defines a vector unit from its intrinsics.
macro_rules! unit {
    (
        $(#[$meta:meta])* $name:ident, $t:ident, $v:ident, $lanes:literal,
        rows $rows:literal,
        $splat:ident $load:ident $store:ident $add:ident $sub:ident $mul:ident $div:ident
        $fma:ident $max:ident,
        round($a:ident) $round:expr,
        scale($b:ident, $n:ident) $scale:expr,
        zero_where_below($c:ident, $x:ident, $bound:ident) $below:expr
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy)]
        pub(crate) struct $name(());

        impl Unit for $name {
            unsafe fn proven() -> Self {
                Self(())
            }
        }

        // SAFETY of every block below: a value of this type exists only where the processor's
        // features have been checked (`Unit::proven`), and the pointers are the caller's promise.
        impl Simd for $name {
            type T = $t;
            type V = $v;
            const LANES: usize = $lanes;
            const ROWS: usize = $rows;

            #[inline(always)]
            fn splat(self, x: $t) -> $v {
                unsafe { $splat(x) }
            }
            #[inline(always)]
            unsafe fn load(self, from: *const $t) -> $v {
                unsafe { $load(from) }
            }
            #[inline(always)]
            unsafe fn store(self, to: *mut $t, v: $v) {
                unsafe { $store(to, v) }
            }
            #[inline(always)]
            fn add(self, a: $v, b: $v) -> $v {
                unsafe { $add(a, b) }
            }
            #[inline(always)]
            fn sub(self, a: $v, b: $v) -> $v {
                unsafe { $sub(a, b) }
            }
            #[inline(always)]
            fn mul(self, a: $v, b: $v) -> $v {
                unsafe { $mul(a, b) }
            }
            #[inline(always)]
            fn div(self, a: $v, b: $v) -> $v {
                unsafe { $div(a, b) }
            }
            #[inline(always)]
            fn fma(self, a: $v, b: $v, c: $v) -> $v {
                unsafe { $fma(a, b, c) }
            }
            #[inline(always)]
            fn max(self, a: $v, b: $v) -> $v {
                unsafe { $max(a, b) }
            }
            #[inline(always)]
            fn round(self, $a: $v) -> $v {
                unsafe { $round }
            }
            #[inline(always)]
            fn scale(self, $b: $v, $n: $v) -> $v {
                unsafe { $scale }
            }
            #[inline(always)]
            fn zero_where_below(self, $c: $v, $x: $v, $bound: $v) -> $v {
                unsafe { $below }
            }
            #[inline(always)]
            fn prefetch(self, at: *const $t) {
                unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
            }
        }
    };
}

const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

unit!(
    /// AVX-512, float32.
    F32x16, f32, __m512, 16, rows 6,
    _mm512_set1_ps _mm512_loadu_ps _mm512_storeu_ps _mm512_add_ps _mm512_sub_ps _mm512_mul_ps
    _mm512_div_ps _mm512_fmadd_ps _mm512_max_ps,
    round(a) _mm512_roundscale_ps::<NEAREST>(a),
    scale(b, n) _mm512_scalef_ps(b, n),
    zero_where_below(c, x, bound)
        _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, bound), c)
);

unit!(
    /// AVX-512 with products of bfloat16 pairs, float32.
    F32x16Bf16, f32, __m512, 16, rows 6,
    _mm512_set1_ps _mm512_loadu_ps _mm512_storeu_ps _mm512_add_ps _mm512_sub_ps _mm512_mul_ps
    _mm512_div_ps _mm512_fmadd_ps _mm512_max_ps,
    round(a) _mm512_roundscale_ps::<NEAREST>(a),
    scale(b, n) _mm512_scalef_ps(b, n),
    zero_where_below(c, x, bound)
        _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, bound), c)
);

unit!(
    /// AVX-512, float64.
    F64x8, f64, __m512d, 8, rows 6,
    _mm512_set1_pd _mm512_loadu_pd _mm512_storeu_pd _mm512_add_pd _mm512_sub_pd _mm512_mul_pd
    _mm512_div_pd _mm512_fmadd_pd _mm512_max_pd,
    round(a) _mm512_roundscale_pd::<NEAREST>(a),
    scale(b, n) _mm512_scalef_pd(b, n),
    zero_where_below(c, x, bound)
        _mm512_maskz_mov_pd(_mm512_cmp_pd_mask::<_CMP_NLT_UQ>(x, bound), c)
);

unit!(
    /// AVX2, float32.
    F32x8, f32, __m256, 8, rows 2,
    _mm256_set1_ps _mm256_loadu_ps _mm256_storeu_ps _mm256_add_ps _mm256_sub_ps _mm256_mul_ps
    _mm256_div_ps _mm256_fmadd_ps _mm256_max_ps,
    round(a) _mm256_round_ps::<NEAREST>(a),
    scale(b, n) {
        let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
        _mm256_mul_ps(b, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)))
    },
    zero_where_below(c, x, bound)
        _mm256_andnot_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(x, bound), c)
);

unit!(
    /// AVX2, float64.
    F64x4, f64, __m256d, 4, rows 2,
    _mm256_set1_pd _mm256_loadu_pd _mm256_storeu_pd _mm256_add_pd _mm256_sub_pd _mm256_mul_pd
    _mm256_div_pd _mm256_fmadd_pd _mm256_max_pd,
    round(a) _mm256_round_pd::<NEAREST>(a),
    scale(b, n) {
        let whole = _mm256_cvtepi32_epi64(_mm256_cvtpd_epi32(n));
        let exponent = _mm256_add_epi64(whole, _mm256_set1_epi64x(1023));
        _mm256_mul_pd(b, _mm256_castsi256_pd(_mm256_slli_epi64::<52>(exponent)))
    },
    zero_where_below(c, x, bound)
        _mm256_andnot_pd(_mm256_cmp_pd::<_CMP_LT_OQ>(x, bound), c)
);
