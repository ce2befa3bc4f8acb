//! Products with a weight matrix.

use crate::Result;
use tch::Tensor;

/// x · weightᵀ: `[…, in]` with `[out, in]` → `[…, out]`.
///
/// # Errors
/// When the inner dimensions differ.
pub fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let mut shape = x.size();
    if shape.len() < 3 {
        return Ok(x.f_linear::<&Tensor>(weight, None)?);
    }
    // As one matrix: of many short sequences libtorch would make a batch, with a copy of the weight
    // for each.
    let rows = x.f_flatten(0, -2)?;
    let y = rows.f_linear::<&Tensor>(weight, None)?;
    if let Some(last) = shape.last_mut() {
        *last = y.size2()?.1;
    }
    Ok(y.f_reshape(shape)?)
}

/// x · weightᵀ + bias: `[…, in]`, `[out, in]`, `[out]` → `[…, out]`.
///
/// # Errors
/// When the dimensions differ.
pub fn linear_bias(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    Ok(x.f_linear(weight, Some(bias))?)
}

/// residual + x · weightᵀ in one product: `[…, in]`, `[out, in]`, `[…, out]` → `[…, out]`.
///
/// # Errors
/// When the dimensions differ.
pub fn linear_add(x: &Tensor, weight: &Tensor, residual: &Tensor) -> Result<Tensor> {
    let (out, width) = weight.size2()?;
    let sum = residual
        .f_reshape([-1, out])?
        .f_addmm(&x.f_reshape([-1, width])?, &weight.f_transpose(0, 1)?)?;
    Ok(sum.f_reshape(residual.size())?)
}
