//! The two number types that the engine computes in.

use super::dispatch::{
    Isa, Kernel, LevelKernel, PairKernel, dispatch_levels, dispatch_pairs, dispatch_with,
    no_compact,
};
use super::simd::Simd;

mod sealed {
    /// Keeps [`super::Real`] to the types that have vector code.
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}

/// `f32` or `f64`.
pub trait Real:
    Copy
    + Send
    + Sync
    + Default
    + PartialOrd
    + std::fmt::Debug
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
    + std::ops::Neg<Output = Self>
    + std::ops::AddAssign
    + sealed::Sealed
    + RealSimd
    + 'static
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// Below every finite number.
    const NEG_INFINITY: Self;

    /// The nearest number of this type.
    fn from_f64(x: f64) -> Self;
    /// The same number, or for `f64` itself.
    fn to_f64(self) -> f64;
    /// Square root, correctly rounded.
    #[must_use]
    fn sqrt(self) -> Self;
}

/// What the vector code needs to know about a number type; not for use outside the engine.
#[doc(hidden)]
#[allow(private_interfaces, private_bounds)]
pub trait RealSimd: Sized + 'static {
    /// Coefficients of 2^f for |f| ≤ 1/2, the highest power first.
    const EXP2: &'static [Self];
    /// 2^x is zero, or as good as zero, below.
    const EXP2_FLOOR: Self;

    /// Runs `kernel` compiled for `isa`.
    fn dispatch<K: Kernel<Self>>(isa: Isa, kernel: K) -> K::Output
    where
        Self: Real;

    /// Whether weights of this type have smaller forms: pairs of 16 bits, and levels.
    const HAS_COMPACT: bool;

    /// The number with these bits, where it has 32.
    fn from_bits32(bits: u32) -> Self;

    /// The bits of a number that has 32.
    fn to_bits32(self) -> u32;

    /// Runs `kernel` compiled for `isa`; only where there are pairs.
    fn dispatch_pairs<K: PairKernel<Self>>(isa: Isa, kernel: K)
    where
        Self: Real;

    /// Runs `kernel` compiled for `isa`; only where there are levels.
    fn dispatch_levels<K: LevelKernel<Self>>(isa: Isa, kernel: K)
    where
        Self: Real;
}

macro_rules! real {
    (
        $t:ident, $floor:expr, $coefficients:expr, $avx512:ident $avx2:ident $portable:ident,
        $compact:literal $from_bits:expr, $dispatch_pairs:ident
        $dispatch_levels:ident
    ) => {
        impl Real for $t {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const NEG_INFINITY: Self = $t::NEG_INFINITY;

            #[inline(always)]
            fn from_f64(x: f64) -> Self {
                x as Self
            }

            #[inline(always)]
            fn to_f64(self) -> f64 {
                f64::from(self)
            }

            #[inline(always)]
            fn sqrt(self) -> Self {
                $t::sqrt(self)
            }
        }

        #[allow(private_interfaces, private_bounds)]
        impl RealSimd for $t {
            const EXP2: &'static [Self] = &$coefficients;
            const EXP2_FLOOR: Self = $floor;
            const HAS_COMPACT: bool = $compact;

            fn from_bits32(bits: u32) -> Self {
                $from_bits(bits.into())
            }

            fn to_bits32(self) -> u32 {
                self.to_bits() as u32
            }

            fn dispatch_pairs<K: PairKernel<Self>>(isa: Isa, kernel: K) {
                $dispatch_pairs(isa, kernel);
            }

            fn dispatch_levels<K: LevelKernel<Self>>(isa: Isa, kernel: K) {
                $dispatch_levels(isa, kernel);
            }

            fn dispatch<K: Kernel<Self>>(isa: Isa, kernel: K) -> K::Output {
                #[cfg(target_arch = "x86_64")]
                {
                    dispatch_with::<
                        Self,
                        super::x86::$avx512,
                        super::x86::$avx2,
                        super::simd::$portable,
                        K,
                    >(isa, kernel)
                }
                #[cfg(not(target_arch = "x86_64"))]
                {
                    dispatch_with::<
                        Self,
                        super::simd::$portable,
                        super::simd::$portable,
                        super::simd::$portable,
                        K,
                    >(isa, kernel)
                }
            }
        }
    };
}

/// (ln 2)^k / k! for k = `N` − 1 … 0: the series of 2^f, which at |f| ≤ 1/2 needs 8 terms for
/// float32 and 14 for float64.
const fn series<const N: usize>() -> [f64; N] {
    let mut coefficients = [1.0; N];
    let mut term = 1.0;
    let mut k = 1;
    while k < N {
        term = term * std::f64::consts::LN_2 / k as f64;
        coefficients[N - 1 - k] = term;
        k += 1;
    }
    coefficients
}

const fn narrow<const N: usize>(wide: [f64; N]) -> [f32; N] {
    let mut coefficients = [0.0; N];
    let mut k = 0;
    while k < N {
        coefficients[k] = wide[k] as f32;
        k += 1;
    }
    coefficients
}

real!(
    f32, -126.0, narrow(series::<8>()), F32x16 F32x8 F32Portable,
    true f32::from_bits, dispatch_pairs dispatch_levels
);
real!(
    f64, -1022.0, series::<14>(), F64x8 F64x4 F64Portable,
    false f64::from_bits, no_compact no_compact
);

/// 2^x in every lane, to about one unit in the last place; zero below [`RealSimd::EXP2_FLOOR`],
/// NaN for NaN.
#[inline(always)]
pub(super) fn exp2<S: Simd>(s: S, x: S::V) -> S::V {
    let floor = s.splat(S::T::EXP2_FLOOR);
    let bounded = s.max(floor, x);
    let whole = s.round(bounded);
    let fraction = s.sub(bounded, whole);
    let mut p = s.splat(S::T::EXP2[0]);
    for &c in &S::T::EXP2[1..] {
        p = s.fma(p, fraction, s.splat(c));
    }
    s.zero_where_below(s.scale(p, whole), x, floor)
}
