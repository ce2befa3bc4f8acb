//! Heads that are told tokens: what their blocks read.

use super::aligned::{Rows, View};
use super::linear::{PackedLinear, WeightFormat};
use super::norm::RmsNorm;
use super::real::Real;
use super::team::Worker;

/// x = h + rms(h) · W · norm(m), for rows h and what is told beside them, m.
pub struct TokenWeights<T> {
    norm: RmsNorm<T>,
    product: PackedLinear<T>,
    eps: f64,
}

impl<T: Real> TokenWeights<T> {
    /// Packs `weight`, W `[dim, dim]`; `eps` is added to the mean squares.
    ///
    /// # Panics
    /// Where the length does not fit.
    pub fn pack(weight: &[T], dim: usize, eps: f64, format: WeightFormat) -> Self {
        Self {
            norm: RmsNorm::new(&vec![T::ONE; dim], eps),
            product: PackedLinear::pack(weight, dim, dim, format),
            eps,
        }
    }

    /// Values of a row.
    pub(super) fn dim(&self) -> usize {
        self.product.inputs()
    }

    /// This worker's columns of W · norm(m) for `rows` rows of `tokens`, by way of `normed`, which
    /// is the worker's own.
    ///
    /// # Safety
    /// The views have room for the rows; nobody writes to `tokens` nor touches this worker's columns
    /// of `out` before the team's next barrier.
    pub(super) unsafe fn project(
        &self,
        worker: &Worker<'_>,
        tokens: View<T>,
        normed: View<T>,
        out: View<T>,
        rows: usize,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            self.norm.rows(tokens, normed, rows);
            self.product.apply_part(worker, normed, out, rows);
        }
    }

    /// Makes of a projected row `told` what the block reads, with the row `hidden` beside it.
    ///
    /// # Safety
    /// Both have a row of `dim` values, and nobody else touches `told`.
    pub(super) unsafe fn join(&self, hidden: View<T>, told: View<T>) {
        // SAFETY: the caller's promise.
        let (hidden, told) = unsafe {
            (
                std::slice::from_raw_parts(hidden.row(0).cast_const(), self.dim()),
                std::slice::from_raw_parts_mut(told.row(0), self.dim()),
            )
        };
        let squares: f64 = hidden.iter().map(|h| h.to_f64() * h.to_f64()).sum();
        let rms = (squares / self.dim() as f64 + self.eps).sqrt();
        for (told, h) in told.iter_mut().zip(hidden) {
            *told = T::from_f64(h.to_f64() + rms * told.to_f64());
        }
    }
}

/// Room for what is told and for what the heads' blocks read.
pub(super) struct ToldRows<T> {
    /// m, a row for each new position.
    pub(super) tokens: Rows<T>,
    /// x, of the same positions.
    pub(super) inputs: Rows<T>,
}

impl<T: Real> ToldRows<T> {
    pub(super) fn new(rows: usize, dim: usize) -> Self {
        Self { tokens: Rows::new(rows, dim), inputs: Rows::new(rows, dim) }
    }
}
