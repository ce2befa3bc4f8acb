//! Heads that are told tokens: what their blocks read.

use super::aligned::{Rows, View};
use super::linear::{PackedLinear, WeightFormat};
use super::norm::RmsNorm;
use super::real::Real;
use super::team::Worker;

/// x = h + rms(h) · (W · norm(m) + V · norm(h)), for rows h and what is told beside them, m.
pub struct TokenWeights<T> {
    norm: RmsNorm<T>,
    tokens: PackedLinear<T>,
    hidden: PackedLinear<T>,
    eps: f64,
}

/// Rows of one pass, `[rows, dim]` each.
#[derive(Clone, Copy)]
pub(super) struct ToldViews<T> {
    /// h.
    pub(super) hidden: View<T>,
    /// m.
    pub(super) tokens: View<T>,
    /// V · norm(h).
    pub(super) turned: View<T>,
    /// W · norm(m), then x.
    pub(super) inputs: View<T>,
}

impl<T: Real> TokenWeights<T> {
    /// Packs W and V, `[dim, dim]` each; `eps` is added to the mean squares.
    ///
    /// # Panics
    /// Where the lengths do not fit.
    pub fn pack(tokens: &[T], hidden: &[T], dim: usize, eps: f64, format: WeightFormat) -> Self {
        let pack = |weight| PackedLinear::pack(weight, dim, dim, format);
        let norm = RmsNorm::new(&vec![T::ONE; dim], eps);
        Self { norm, tokens: pack(tokens), hidden: pack(hidden), eps }
    }

    /// Values of a row.
    pub(super) fn dim(&self) -> usize {
        self.tokens.inputs()
    }

    /// This worker's columns of both products for `rows` rows, by way of `normed`, which is the
    /// worker's own.
    ///
    /// # Safety
    /// The views have room for the rows; nobody writes to `tokens` and `hidden` nor touches this
    /// worker's columns of the others before the team's next barrier.
    pub(super) unsafe fn project(
        &self,
        worker: &Worker<'_>,
        views: ToldViews<T>,
        normed: View<T>,
        rows: usize,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            self.norm.rows(views.tokens, normed, rows);
            self.tokens.apply_part(worker, normed, views.inputs, rows);
            self.norm.rows(views.hidden, normed, rows);
            self.hidden.apply_part(worker, normed, views.turned, rows);
        }
    }

    /// Makes of the projected row `r` what the block reads.
    ///
    /// # Safety
    /// The views have such a row of `dim` values, and nobody else touches that of `inputs`.
    pub(super) unsafe fn join(&self, views: ToldViews<T>, r: usize) {
        let ToldViews { hidden, turned, inputs, .. } = views;
        // SAFETY: the caller's promise.
        let (hidden, turned, inputs) = unsafe {
            (
                std::slice::from_raw_parts(hidden.row(r).cast_const(), self.dim()),
                std::slice::from_raw_parts(turned.row(r).cast_const(), self.dim()),
                std::slice::from_raw_parts_mut(inputs.row(r), self.dim()),
            )
        };
        let squares: f64 = hidden.iter().map(|h| h.to_f64() * h.to_f64()).sum();
        let rms = (squares / self.dim() as f64 + self.eps).sqrt();
        for ((input, h), turned) in inputs.iter_mut().zip(hidden).zip(turned) {
            *input = T::from_f64(h.to_f64() + rms * (input.to_f64() + turned.to_f64()));
        }
    }
}

/// Room for what is told and for what the heads' blocks read.
pub(super) struct ToldRows<T> {
    /// m, a row for each new position.
    pub(super) tokens: Rows<T>,
    /// V · norm(h) and x, of the same positions.
    turned: Rows<T>,
    pub(super) inputs: Rows<T>,
}

impl<T: Real> ToldRows<T> {
    pub(super) fn new(rows: usize, dim: usize) -> Self {
        let [tokens, turned, inputs] = [(); 3].map(|()| Rows::new(rows, dim));
        Self { tokens, turned, inputs }
    }

    /// All of them, with the rows `hidden` of the same positions.
    pub(super) fn views(&self, hidden: View<T>) -> ToldViews<T> {
        let (tokens, turned) = (self.tokens.view(), self.turned.view());
        ToldViews { hidden, tokens, turned, inputs: self.inputs.view() }
    }
}
