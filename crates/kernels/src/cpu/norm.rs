//! RMS norm of rows.

use super::aligned::{Aligned, PAD, View};
use super::dispatch::{Isa, Kernel};
use super::real::Real;
use super::simd::Simd;

/// y = x / √(mean(x²) + ε) · w, each row by itself.
pub struct RmsNorm<T> {
    weight: Aligned<T>,
    width: usize,
    eps: T,
    isa: Isa,
}

impl<T: Real> RmsNorm<T> {
    /// A norm with these weights.
    pub fn new(weight: &[T], eps: f64) -> Self {
        Self::new_for(Isa::detect(), weight, eps)
    }

    pub(super) fn new_for(isa: Isa, weight: &[T], eps: f64) -> Self {
        let width = weight.len();
        let mut padded = Aligned::zeroed(width.next_multiple_of(PAD));
        padded[..width].copy_from_slice(weight);
        Self { weight: padded, width, eps: T::from_f64(eps), isa: isa.checked() }
    }

    /// Values of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Writes the norm of the first `rows` rows of `x` to `y`.
    ///
    /// # Safety
    /// Both hold `rows` padded rows of the norm's width; nobody else writes to them meanwhile, nor
    /// reads `y`.
    pub(super) unsafe fn rows(&self, x: View<T>, y: View<T>, rows: usize) {
        T::dispatch(self.isa, Normalise { norm: self, x, y, rows });
    }
}

struct Normalise<'n, T> {
    norm: &'n RmsNorm<T>,
    x: View<T>,
    y: View<T>,
    rows: usize,
}

impl<T: Real> Kernel<T> for Normalise<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<T = T>>(self, s: S) {
        let norm = self.norm;
        let vectors = norm.weight.len() / S::LANES;
        let width = T::from_f64(norm.width as f64);
        for r in 0..self.rows {
            // SAFETY: r < rows, and rows are padded to whole vectors with zeros, which add
            // nothing to the sum of squares.
            unsafe {
                let (x, y) = (self.x.row(r).cast_const(), self.y.row(r));
                let mut squares = [s.zero(); 2];
                for v in 0..vectors {
                    let x = s.load(x.add(v * S::LANES));
                    squares[v % 2] = s.fma(x, x, squares[v % 2]);
                }
                let mean = s.sum(s.add(squares[0], squares[1])) / width;
                let scale = s.splat(T::ONE / (mean + norm.eps).sqrt());
                for v in 0..vectors {
                    let at = v * S::LANES;
                    let scaled = s.mul(s.load(x.add(at)), scale);
                    s.store(y.add(at), s.mul(scaled, s.load(norm.weight.as_ptr().add(at))));
                }
            }
        }
    }
}
