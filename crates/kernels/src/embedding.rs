//! Rows of the embedding.

use crate::Result;
use crate::buffers::half_on_cpu;
use tch::{Kind, Tensor};

/// The rows of `weight` `[vocab, dim]` at `tokens` `[…]` (int64): `[…, dim]`.
///
/// In half precision on the CPU the gradient's rows are summed in float32: a frequent token's
/// many small ones would be lost in a sum of eight bits.
///
/// # Errors
/// When a token is outside the vocabulary.
///
/// ```
/// use foretoken_kernels::embedding;
/// use tch::Tensor;
///
/// let weight = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0]).view([2, 2]);
/// let rows = embedding(&weight, &Tensor::from_slice(&[1i64, 1, 0]))?;
/// assert_eq!(rows, Tensor::from_slice(&[3.0f32, 4.0, 3.0, 4.0, 1.0, 2.0]).view([3, 2]));
/// # Ok::<(), foretoken_kernels::Error>(())
/// ```
pub fn embedding(weight: &Tensor, tokens: &Tensor) -> Result<Tensor> {
    if half_on_cpu(weight) && weight.requires_grad() {
        let wide = weight.f_to_kind(Kind::Float)?;
        return Ok(embedding(&wide, tokens)?.f_to_kind(weight.kind())?);
    }
    Ok(Tensor::f_embedding(weight, tokens, -1, false, false)?)
}
