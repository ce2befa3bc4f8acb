//! `AdamW` over one range of the flat buffers.

use std::ops::Range;

use tch::Tensor;

use super::flat::FlatParameters;
use crate::Error;
use crate::config::OptimizerSection;

/// Adam with decoupled weight decay (Loshchilov & Hutter, 2019).
///
/// ```text
/// m ← β₁ m + (1 − β₁) g          v ← β₂ v + (1 − β₂) g²
/// p ← (1 − η λ) p − η (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + ε)
/// ```
#[derive(Debug)]
pub(super) struct AdamW {
    /// The elements of the flat buffers that it moves.
    pub(super) range: Range<i64>,
    pub(super) mean: Tensor,
    pub(super) square: Tensor,
    scratch: Tensor,
    values: Tensor,
    decayed: Tensor,
    gradients: Tensor,
}

impl AdamW {
    pub(super) fn new(flat: &FlatParameters, range: Range<i64>) -> Result<Self, Error> {
        let length = range.end - range.start;
        let values = flat.values.f_narrow(0, range.start, length)?;
        let decayed = (flat.layout.decayed_end - range.start).clamp(0, length);
        Ok(Self {
            mean: values.f_zeros_like()?,
            square: values.f_zeros_like()?,
            scratch: values.f_zeros_like()?,
            decayed: values.f_narrow(0, 0, decayed)?,
            gradients: flat.gradients.f_narrow(0, range.start, length)?,
            values,
            range,
        })
    }

    pub(super) fn step(
        &mut self,
        section: &OptimizerSection,
        factor: f64,
        updates: u64,
    ) -> Result<(), Error> {
        let rate = section.learning_rate * factor;
        let _ = self.mean.f_lerp_(&self.gradients, 1.0 - section.beta1)?;
        let _ = self.gradients.f_square_out(&self.scratch)?;
        let _ = self.square.f_lerp_(&self.scratch, 1.0 - section.beta2)?;
        if rate == 0.0 {
            return Ok(());
        }
        let count = updates.min(1 << 30) as i32;
        let mean_correction = 1.0 - section.beta1.powi(count);
        let square_correction = 1.0 - section.beta2.powi(count);
        // √v·s + e with s and e chosen so that m divided by it is the whole step, sign included.
        let scale = -mean_correction / rate;
        let _ = self.square.f_sqrt_out(&self.scratch)?;
        let _ = self.scratch.f_mul_scalar_(scale / square_correction.sqrt())?;
        let _ = self.scratch.f_add_scalar_(scale * section.epsilon)?;
        if section.weight_decay > 0.0 {
            let _ = self.decayed.f_mul_scalar_(1.0 - rate * section.weight_decay)?;
        }
        let _ = self.values.f_addcdiv_(&self.mean, &self.scratch)?;
        Ok(())
    }
}
