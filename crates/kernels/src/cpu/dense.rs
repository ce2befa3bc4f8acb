//! Heads that look at one position alone: a matrix, and perhaps a residual around it.

use super::aligned::{Repeated, Rows, View};
use super::linear::{PackedLinear, WeightFormat};
use super::real::Real;
use super::team::Worker;

/// y = W x + b, or y = x + silu(W x + b).
pub struct DenseWeights<T> {
    product: PackedLinear<T>,
    bias: Option<Repeated<T>>,
    residual: bool,
}

impl<T: Real> DenseWeights<T> {
    /// Packs `weight` `[dim, dim]` and `bias` `[dim]`; `residual` for x + silu(…).
    ///
    /// # Panics
    /// Where a length does not fit.
    pub fn pack(
        weight: &[T],
        bias: Option<&[T]>,
        dim: usize,
        residual: bool,
        format: WeightFormat,
    ) -> Self {
        assert!(bias.is_none_or(|bias| bias.len() == dim), "the bias has another size");
        Self {
            product: PackedLinear::pack(weight, dim, dim, format),
            bias: bias.map(Repeated::new),
            residual,
        }
    }

    /// Values of a row.
    pub(super) fn dim(&self) -> usize {
        self.product.inputs()
    }

    /// This worker's columns of W x + b for one row.
    ///
    /// # Safety
    /// `x` and `y` have a padded row of `dim` values; nobody writes to `x` nor touches this
    /// worker's columns of `y` before the team's next barrier.
    pub(super) unsafe fn project(&self, worker: &Worker<'_>, x: View<T>, y: View<T>) {
        // SAFETY: the caller's promise; the bias is read only.
        unsafe {
            match &self.bias {
                None => self.product.apply_part(worker, x, y, 1),
                Some(bias) => self.product.add_part(worker, x, bias.view(), y, 1),
            }
        }
    }

    /// Replaces a projected row by x + silu(row), where that is the head's form.
    ///
    /// # Safety
    /// `x` and `y` have a row of `dim` values that nobody else writes to.
    pub(super) unsafe fn finish(&self, x: View<T>, y: View<T>) {
        if !self.residual {
            return;
        }
        // SAFETY: the caller's promise.
        let (x, y) = unsafe {
            (
                std::slice::from_raw_parts(x.row(0), self.dim()),
                std::slice::from_raw_parts_mut(y.row(0), self.dim()),
            )
        };
        for (y, &x) in y.iter_mut().zip(x) {
            *y = T::from_f64(x.to_f64() + silu(y.to_f64()));
        }
    }
}

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// Rows that dense heads read and write.
pub(super) struct DenseRows<T> {
    /// The one row that they all read.
    pub(super) input: Rows<T>,
    /// A row for each.
    pub(super) output: Rows<T>,
}

impl<T: Real> DenseRows<T> {
    pub(super) fn new(heads: usize, dim: usize) -> Self {
        Self { input: Rows::new(1, dim), output: Rows::new(heads, dim) }
    }
}
