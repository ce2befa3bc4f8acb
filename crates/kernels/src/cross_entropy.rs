//! Cross-entropy of a linear layer's outputs, without keeping the logits.

use crate::buffers::{SharedRows, floats_mut, for_row_ranges, fusable, integers};
use crate::native::recording;
use crate::simd::cross_entropy_row;
use crate::{Error, Result, custom_gradient};
use tch::{Kind, Reduction, Tensor, no_grad};

/// A target that counts nowhere.
pub const IGNORED: i64 = -100;

/// Logits held at a time: 4M values, 16 MB in float32.
const CHUNK_ELEMENTS: i64 = 1 << 22;

/// Mean over the tokens of −log softmax(hidden · weightᵀ) at the target.
///
/// `hidden`: `[tokens, dim]`, `weight`: `[vocab, dim]`, `targets`: `[tokens]` int64, where
/// [`IGNORED`] leaves a token out of sum and count. Returns a scalar. Logits exist for a chunk of
/// tokens at a time: both gradients, (softmax − one-hot) / count times weight and hidden, are
/// computed with the value and scaled by what arrives in the backward pass.
///
/// # Errors
/// When shapes differ or a target is outside the vocabulary.
///
/// ```
/// use foretoken_kernels::linear_cross_entropy;
/// use tch::{Kind, Device, Tensor};
///
/// let hidden = Tensor::zeros([2, 4], (Kind::Float, Device::Cpu));
/// let weight = Tensor::ones([8, 4], (Kind::Float, Device::Cpu));
/// let loss = linear_cross_entropy(&hidden, &weight, &Tensor::from_slice(&[3i64, 5]))?;
/// assert!((loss.double_value(&[]) - 8f64.ln()).abs() < 1e-6);
/// # Ok::<(), foretoken_kernels::Error>(())
/// ```
pub fn linear_cross_entropy(hidden: &Tensor, weight: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let (tokens, dim) = hidden.size2()?;
    let (vocab, width) = weight.size2()?;
    if width != dim || targets.size() != [tokens] {
        return Err(Error::Shape {
            what: "weight and targets of a linear cross-entropy",
            expected: format!("[vocab, {dim}] and [{tokens}]"),
            found: format!("{:?} and {:?}", weight.size(), targets.size()),
        });
    }
    let counted = targets.f_ne(IGNORED)?;
    let used = targets.f_masked_select(&counted)?;
    let count = used.numel();
    if count > 0 {
        let (low, high) = (i64::try_from(used.min())?, i64::try_from(used.max())?);
        if low < 0 || high >= vocab {
            return Err(Error::Shape {
                what: "a target of a linear cross-entropy",
                expected: format!("0 to {}", vocab - 1),
                found: format!("{low} to {high}"),
            });
        }
    }
    let wants_gradient = recording() && (hidden.requires_grad() || weight.requires_grad());
    let pass = Pass { vocab, scale: 1.0 / count.max(1) as f64, wants_gradient };
    let (hidden_value, weight_value) = (hidden.detach(), weight.detach());
    let (loss, dhidden, dweight) =
        no_grad(|| pass.run(&hidden_value, &weight_value, &targets.contiguous()))?;
    if let (Some(dhidden), Some(dweight)) = (dhidden, dweight) {
        custom_gradient(&[hidden, weight], &[&loss], move |gradients| {
            Ok(match &gradients[0] {
                Some(g) => vec![Some(dhidden.f_mul(g)?), Some(dweight.f_mul(g)?)],
                None => vec![None, None],
            })
        })?;
    }
    Ok(loss)
}

struct Pass {
    vocab: i64,
    scale: f64,
    wants_gradient: bool,
}

impl Pass {
    /// The loss, and both gradients when they are wanted, chunk by chunk.
    fn run(
        &self,
        hidden: &Tensor,
        weight: &Tensor,
        targets: &Tensor,
    ) -> Result<(Tensor, Option<Tensor>, Option<Tensor>)> {
        let (tokens, _) = hidden.size2()?;
        let rows = (CHUNK_ELEMENTS / self.vocab.max(1)).clamp(1, tokens.max(1));
        let mut total = Tensor::f_zeros([0i64; 0], (accumulator(hidden.kind()), hidden.device()))?;
        let dhidden = self.wants_gradient.then(|| Tensor::empty_like(hidden));
        let mut dweight: Option<Tensor> = None;
        for start in (0..tokens).step_by(rows as usize) {
            let len = rows.min(tokens - start);
            let chunk = hidden.f_narrow(0, start, len)?;
            let logits = chunk.f_matmul(&weight.f_transpose(0, 1)?)?;
            let (loss, dlogits) = self.softmax(logits, &targets.f_narrow(0, start, len)?)?;
            total += loss;
            if let Some(dhidden) = &dhidden {
                dhidden.f_narrow(0, start, len)?.f_copy_(&dlogits.f_matmul(weight)?)?;
                let part = dlogits.f_transpose(0, 1)?.f_matmul(&chunk)?;
                dweight = Some(match dweight {
                    Some(mut sum) => sum.f_add_(&part)?,
                    None => part,
                });
            }
        }
        let dweight = match (self.wants_gradient, dweight) {
            (true, None) => Some(Tensor::zeros_like(weight)),
            (_, dweight) => dweight,
        };
        Ok((total * self.scale, dhidden, dweight))
    }

    /// Sum of the losses of a chunk and the gradient of their scaled sum by the logits.
    fn softmax(&self, mut logits: Tensor, targets: &Tensor) -> Result<(Tensor, Tensor)> {
        if !fusable(&[&logits]) {
            let log_probabilities = logits.f_log_softmax(-1, accumulator(logits.kind()))?;
            let loss =
                log_probabilities.f_nll_loss::<Tensor>(targets, None, Reduction::Sum, IGNORED)?;
            let counted = targets.f_ne(IGNORED)?.f_unsqueeze(1)?;
            let safe = targets.f_clamp_min(0)?.f_unsqueeze(1)?;
            let ones =
                Tensor::f_ones([safe.size()[0], 1], (log_probabilities.kind(), logits.device()))?;
            let gradient =
                log_probabilities.exp().f_scatter_add(1, &safe, &-ones)? * counted * self.scale;
            return Ok((loss, gradient.f_to_kind(logits.kind())?));
        }
        let width = self.vocab as usize;
        let targets = integers(targets);
        let mut losses = vec![0f32; targets.len()];
        {
            let logits = SharedRows::new(floats_mut(&mut logits), width);
            let losses = SharedRows::new(&mut losses, 1);
            for_row_ranges(targets.len(), width, |_, range| {
                let (logits, losses) = (logits.range(&range), losses.range(&range));
                for (i, row) in range.enumerate() {
                    let logits = &mut logits[i * width..][..width];
                    if targets[row] == IGNORED {
                        logits.fill(0.0);
                    } else {
                        losses[i] =
                            cross_entropy_row(logits, targets[row] as usize, self.scale as f32);
                    }
                }
            });
        }
        let sum: f64 = losses.iter().map(|&x| f64::from(x)).sum();
        Ok((Tensor::from(sum).to_kind(Kind::Float), logits))
    }
}

fn accumulator(kind: Kind) -> Kind {
    if kind == Kind::Double { Kind::Double } else { Kind::Float }
}

/// [`linear_cross_entropy`] with all logits at once, in libtorch's own operators.
///
/// # Errors
/// When libtorch refuses the shapes.
pub fn linear_cross_entropy_reference(
    hidden: &Tensor,
    weight: &Tensor,
    targets: &Tensor,
) -> Result<Tensor> {
    let logits = hidden.f_matmul(&weight.f_transpose(0, 1)?)?;
    Ok(logits.f_log_softmax(-1, accumulator(logits.kind()))?.f_nll_loss::<Tensor>(
        targets,
        None,
        Reduction::Mean,
        IGNORED,
    )?)
}
