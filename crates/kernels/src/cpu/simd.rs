//! What the kernels ask of a vector unit, and the form of it that any processor has.

use super::real::Real;

/// A vector unit. A value of such a type is the proof that the processor has it.
///
/// Every operation works on each lane by itself and rounds once, so a lane's result depends on
/// that lane's operands alone. [`Simd::sum`] adds the lanes in one fixed order.
pub(crate) trait Simd: Copy {
    /// The type of a lane.
    type T: Real;
    /// A vector.
    type V: Copy;
    /// Lanes of a vector.
    const LANES: usize;
    /// Most rows of a tile of [`PANEL`](super::product::PANEL) vectors that the registers hold.
    const ROWS: usize;
    /// Whether registers are few: a block of levels is then read two vectors at a time.
    const FEW: bool = Self::ROWS < 4;

    /// `x` in every lane.
    fn splat(self, x: Self::T) -> Self::V;
    /// Reads a vector.
    ///
    /// # Safety
    /// `LANES` values at `from` are readable.
    unsafe fn load(self, from: *const Self::T) -> Self::V;
    /// Writes a vector.
    ///
    /// # Safety
    /// `LANES` values at `to` are writable.
    unsafe fn store(self, to: *mut Self::T, v: Self::V);
    /// a + b.
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// a − b.
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// a · b.
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// a / b.
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// a · b + c, rounded once where the unit can.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger; `b` where one is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// The nearest whole number.
    fn round(self, a: Self::V) -> Self::V;
    /// a · 2^n for whole n from −1022 (float32: −126) up to the largest exponent.
    fn scale(self, a: Self::V, n: Self::V) -> Self::V;
    /// Zero in the lanes where `x` < `bound`, else `a`.
    fn zero_where_below(self, a: Self::V, x: Self::V, bound: Self::V) -> Self::V;
    /// Asks for the line at `at` ahead of its use; any address will do.
    fn prefetch(self, at: *const Self::T);

    /// All zero.
    #[inline(always)]
    fn zero(self) -> Self::V {
        self.splat(Self::T::ZERO)
    }

    /// The sum of the lanes, halves added to halves.
    #[inline(always)]
    fn sum(self, v: Self::V) -> Self::T {
        let mut lanes = [Self::T::ZERO; 16];
        // SAFETY: no unit has more than 16 lanes.
        unsafe { self.store(lanes.as_mut_ptr(), v) };
        let mut half = Self::LANES / 2;
        while half > 0 {
            for i in 0..half {
                lanes[i] += lanes[i + half];
            }
            half /= 2;
        }
        lanes[0]
    }

    /// The largest lane.
    #[inline(always)]
    fn peak(self, v: Self::V) -> Self::T {
        let mut lanes = [Self::T::NEG_INFINITY; 16];
        // SAFETY: no unit has more than 16 lanes.
        unsafe { self.store(lanes.as_mut_ptr(), v) };
        let mut peak = lanes[0];
        for &lane in &lanes[1..Self::LANES] {
            if lane > peak {
                peak = lane;
            }
        }
        peak
    }
}

macro_rules! portable {
    ($name:ident, $t:ident, $bits:ident, $lanes:literal, $mantissa:literal, $bias:literal, $round:literal) => {
        /// Plain arithmetic on an array, which the compiler turns into what the target has.
        #[derive(Clone, Copy)]
        pub(crate) struct $name;

        impl super::dispatch::Unit for $name {
            unsafe fn proven() -> Self {
                Self
            }
        }

        impl Simd for $name {
            type T = $t;
            type V = [$t; $lanes];
            const LANES: usize = $lanes;
            const ROWS: usize = 1;

            #[inline(always)]
            fn splat(self, x: $t) -> Self::V {
                [x; $lanes]
            }
            #[inline(always)]
            unsafe fn load(self, from: *const $t) -> Self::V {
                // SAFETY: the caller has `LANES` readable values there.
                unsafe { from.cast::<Self::V>().read_unaligned() }
            }
            #[inline(always)]
            unsafe fn store(self, to: *mut $t, v: Self::V) {
                // SAFETY: the caller has room for `LANES` values there.
                unsafe { to.cast::<Self::V>().write_unaligned(v) }
            }
            #[inline(always)]
            fn add(self, a: Self::V, b: Self::V) -> Self::V {
                std::array::from_fn(|i| a[i] + b[i])
            }
            #[inline(always)]
            fn sub(self, a: Self::V, b: Self::V) -> Self::V {
                std::array::from_fn(|i| a[i] - b[i])
            }
            #[inline(always)]
            fn mul(self, a: Self::V, b: Self::V) -> Self::V {
                std::array::from_fn(|i| a[i] * b[i])
            }
            #[inline(always)]
            fn div(self, a: Self::V, b: Self::V) -> Self::V {
                std::array::from_fn(|i| a[i] / b[i])
            }
            #[inline(always)]
            fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
                std::array::from_fn(|i| a[i] * b[i] + c[i])
            }
            #[inline(always)]
            fn max(self, a: Self::V, b: Self::V) -> Self::V {
                std::array::from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
            }
            #[inline(always)]
            fn round(self, a: Self::V) -> Self::V {
                // Adding 1.5 · 2^(mantissa bits) leaves no room for a fraction.
                std::array::from_fn(|i| (a[i] + $round) - $round)
            }
            #[inline(always)]
            fn scale(self, a: Self::V, n: Self::V) -> Self::V {
                std::array::from_fn(|i| {
                    a[i] * $t::from_bits(((n[i] as i32 + $bias) as $bits) << $mantissa)
                })
            }
            #[inline(always)]
            fn zero_where_below(self, a: Self::V, x: Self::V, bound: Self::V) -> Self::V {
                std::array::from_fn(|i| if x[i] < bound[i] { 0.0 } else { a[i] })
            }
            #[inline(always)]
            fn prefetch(self, _at: *const $t) {}
        }
    };
}

portable!(F32Portable, f32, u32, 8, 23, 127, 12_582_912.0);
portable!(F64Portable, f64, u64, 4, 52, 1023, 6_755_399_441_055_744.0);
