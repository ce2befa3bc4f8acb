//! Chooses the vector unit once and runs a kernel compiled for it.

use super::levels::LevelSimd;
use super::pairs::PairSimd;
use super::real::Real;
use super::simd::{F32Portable, Simd};

/// The vector instructions that a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Isa {
    /// 512-bit vectors.
    Avx512,
    /// 256-bit vectors with fused multiply-add.
    Avx2,
    /// Whatever the build's target has.
    Portable,
}

impl Isa {
    /// The best that this processor has.
    pub(super) fn detect() -> Self {
        if Self::Avx512.is_here() {
            Self::Avx512
        } else if Self::Avx2.is_here() {
            Self::Avx2
        } else {
            Self::Portable
        }
    }

    /// All that this processor has, the best first.
    #[cfg(test)]
    pub(super) fn available() -> Vec<Self> {
        [Self::Avx512, Self::Avx2, Self::Portable].into_iter().filter(|isa| isa.is_here()).collect()
    }

    #[cfg(target_arch = "x86_64")]
    fn is_here(self) -> bool {
        use std::arch::is_x86_feature_detected as has;
        match self {
            Self::Avx512 => {
                has!("avx512f")
                    && has!("avx512dq")
                    && has!("avx512bw")
                    && has!("avx512vl")
                    && Self::Avx2.is_here()
            }
            Self::Avx2 => has!("avx2") && has!("fma") && has!("f16c"),
            Self::Portable => true,
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn is_here(self) -> bool {
        self == Self::Portable
    }

    /// Refuses an instruction set that the processor lacks, which would be undefined behaviour.
    pub(crate) fn checked(self) -> Self {
        assert!(self.is_here(), "this processor has no {self:?}");
        self
    }

    /// Values of type `T` in a vector.
    pub(crate) fn lanes<T: Real>(self) -> usize {
        struct Lanes;
        impl<T: Real> Kernel<T> for Lanes {
            type Output = usize;
            #[inline(always)]
            fn run<S: Simd<T = T>>(self, _s: S) -> usize {
                S::LANES
            }
        }
        T::dispatch(self, Lanes)
    }
}

/// A computation with pairs of bfloat16 weights, written once over any vector unit.
pub(crate) trait PairKernel<T: Real> {
    /// Computes on `s`; `#[inline(always)]`, as [`Kernel::run`].
    fn run_pairs<S: PairSimd<T = T>>(self, s: S);
}

/// Runs `kernel` compiled for `isa`, with the instructions for bfloat16 where there are any.
pub(super) fn dispatch_pairs<K: PairKernel<f32>>(isa: Isa, kernel: K) {
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Avx512 && std::arch::is_x86_feature_detected!("avx512bf16") {
        // SAFETY: an `Isa` has been checked, see `dispatch_with`; bfloat16 is checked here.
        return unsafe { pairs_on_bf16(kernel) };
    }
    dispatch_levels(isa, Widened(kernel));
}

/// A computation with pairs, on the units that round nothing but sums.
pub(super) struct Widened<K>(pub(super) K);

impl<T: Real, K: PairKernel<T>> LevelKernel<T> for Widened<K> {
    #[inline(always)]
    fn run_levels<S: LevelSimd<T = T>>(self, s: S) {
        self.0.run_pairs(s);
    }
}

/// A computation with weights in levels, written once over any vector unit.
pub(crate) trait LevelKernel<T: Real> {
    /// Computes on `s`; `#[inline(always)]`, as [`Kernel::run`].
    fn run_levels<S: LevelSimd<T = T>>(self, s: S);
}

/// Runs `kernel` compiled for `isa`.
pub(super) fn dispatch_levels<K: LevelKernel<f32>>(isa: Isa, kernel: K) {
    // SAFETY: an `Isa` has been checked, see `dispatch_with`.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => levels_on_avx512(kernel),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => levels_on_avx2(kernel),
            _ => kernel.run_levels(F32Portable::proven()),
        }
    }
}

/// In place of [`dispatch_pairs`] and [`dispatch_levels`] for a type that has no compact weights.
pub(super) fn no_compact<K>(_isa: Isa, _kernel: K) {
    unreachable!("weights of this type are packed as they are");
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,avx2,fma,f16c")]
unsafe fn pairs_on_bf16<K: PairKernel<f32>>(kernel: K) {
    // SAFETY: this function is entered only where its features have been found.
    kernel.run_pairs(unsafe { super::x86::F32x16Bf16::proven() });
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c")]
unsafe fn levels_on_avx512<K: LevelKernel<f32>>(kernel: K) {
    // SAFETY: as above.
    kernel.run_levels(unsafe { super::x86::F32x16::proven() });
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn levels_on_avx2<K: LevelKernel<f32>>(kernel: K) {
    // SAFETY: as above.
    kernel.run_levels(unsafe { super::x86::F32x8::proven() });
}

/// A vector unit that can be vouched for.
pub(crate) trait Unit: Simd {
    /// The proof that the processor has this unit.
    ///
    /// # Safety
    /// It has.
    unsafe fn proven() -> Self;
}

/// A computation written once over any vector unit.
///
/// `run` has to be `#[inline(always)]`, so that it is compiled with the unit's instructions.
pub(crate) trait Kernel<T: Real> {
    /// What it gives back.
    type Output;
    /// Computes on `s`.
    fn run<S: Simd<T = T>>(self, s: S) -> Self::Output;
}

/// Runs `kernel` on one of three units of type `T`.
#[inline(always)]
pub(super) fn dispatch_with<T, A, B, P, K>(isa: Isa, kernel: K) -> K::Output
where
    T: Real,
    A: Unit<T = T>,
    B: Unit<T = T>,
    P: Unit<T = T>,
    K: Kernel<T>,
{
    // SAFETY: an `Isa` comes from `Isa::available` or through `Isa::checked` only, so the
    // processor has the features of the arm that is taken.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => on_avx512::<T, A, K>(kernel),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => on_avx2::<T, B, K>(kernel),
            _ => kernel.run(P::proven()),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c")]
unsafe fn on_avx512<T: Real, A: Unit<T = T>, K: Kernel<T>>(kernel: K) -> K::Output {
    // SAFETY: this function is entered only where its features have been found.
    kernel.run(unsafe { A::proven() })
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn on_avx2<T: Real, B: Unit<T = T>, K: Kernel<T>>(kernel: K) -> K::Output {
    // SAFETY: this function is entered only where its features have been found.
    kernel.run(unsafe { B::proven() })
}
