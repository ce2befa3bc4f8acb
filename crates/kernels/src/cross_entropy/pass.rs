//! From hidden states to a loss and both gradients, some tokens' logits at a time.

use super::CrossEntropy;
use crate::buffers::accumulator;
use crate::native::recording;
use crate::{Result, custom_gradient};
use tch::{Device, Tensor, no_grad};

/// Logits held at a time: at least 4M values, 16 MB in float32, and at most 32M.
const CHUNK_ELEMENTS: [i64; 2] = [1 << 22, 1 << 25];

/// How many logits to hold at a time: as many as `weight` has values, within bounds. Each chunk reads
/// the weight twice and its gradient once and writes that: with fewer tokens than the weight is wide
/// these take longer than the logits.
pub(super) fn chunk_elements(weight: &Tensor) -> i64 {
    let [least, most] = CHUNK_ELEMENTS;
    i64::try_from(weight.numel()).unwrap_or(most).clamp(least, most)
}

/// What the logits of some tokens come to.
pub(super) struct Rows {
    /// Sum of the tokens' losses.
    pub(super) loss: Tensor,
    /// Of it, the sum of their plain cross-entropies.
    pub(super) nats: Tensor,
    /// Gradient of the scaled sum of losses by the logits: `[tokens, vocab]`.
    pub(super) dlogits: Tensor,
}

/// The gradients that are asked for.
#[derive(Clone, Copy)]
struct Wants {
    hidden: bool,
    weight: bool,
}

impl Wants {
    fn of(hidden: &Tensor, weight: &Tensor) -> Self {
        let recording = recording();
        Self {
            hidden: recording && hidden.requires_grad(),
            weight: recording && weight.requires_grad(),
        }
    }
}

/// Sums over all chunks.
struct Sums {
    loss: Tensor,
    nats: Tensor,
    dhidden: Option<Tensor>,
    /// In the accumulator's kind, to be rounded once.
    dweight: Option<Tensor>,
}

/// One way over all tokens.
#[derive(Clone, Copy)]
pub(super) struct Pass {
    /// Of sums of losses: 1 / counted tokens.
    pub(super) scale: f64,
    wants: Wants,
    chunk: i64,
}

impl Pass {
    /// A pass that holds at most `chunk` logits at a time, but those of one token.
    pub(super) fn new(scale: f64, hidden: &Tensor, weight: &Tensor, chunk: i64) -> Self {
        Self { scale, wants: Wants::of(hidden, weight), chunk }
    }

    /// The loss, joined to the graph with the gradients that are wanted.
    ///
    /// `rows` is given the logits of some tokens, the first token's place and how many they are.
    pub(super) fn run(
        self,
        hidden: &Tensor,
        weight: &Tensor,
        rows: impl Fn(Tensor, i64, i64) -> Result<Rows>,
    ) -> Result<CrossEntropy> {
        let (hidden_value, weight_value) = (hidden.detach(), weight.detach());
        let Sums { loss, nats, dhidden, dweight } =
            no_grad(|| self.chunks(&hidden_value, &weight_value, rows))?;
        if dhidden.is_some() || dweight.is_some() {
            let kind = hidden.kind();
            custom_gradient(&[hidden, weight], &[&loss], move |gradients| {
                let Some(g) = &gradients[0] else { return Ok(vec![None, None]) };
                // Elsewhere than on the CPU a look at the number would wait for the device.
                let one = g.device() == Device::Cpu && g.f_double_value(&[])? == 1.0;
                let times = |d: &Option<Tensor>| {
                    let scaled = |d: &Tensor| if one { Ok(d.shallow_clone()) } else { d.f_mul(g) };
                    d.as_ref().map(|d| scaled(d)?.f_to_kind(kind)).transpose()
                };
                Ok(vec![times(&dhidden)?, times(&dweight)?])
            })?;
        }
        Ok(CrossEntropy { loss, nats })
    }

    fn chunks(
        self,
        hidden: &Tensor,
        weight: &Tensor,
        rows: impl Fn(Tensor, i64, i64) -> Result<Rows>,
    ) -> Result<Sums> {
        let (tokens, vocab) = (hidden.size2()?.0, weight.size2()?.0);
        let most = (self.chunk / vocab.max(1)).clamp(1, tokens.max(1));
        let (kind, wide) = (hidden.kind(), accumulator(hidden.kind()));
        let transposed = weight.f_transpose(0, 1)?;
        let zero = || Tensor::f_zeros([0i64; 0], (wide, hidden.device()));
        let (mut loss, mut nats) = (zero()?, zero()?);
        let dhidden = self.wants.hidden.then(|| hidden.f_empty_like()).transpose()?;
        let mut dweight: Option<Tensor> = None;
        for start in (0..tokens).step_by(most as usize) {
            let len = most.min(tokens - start);
            let chunk = hidden.f_narrow(0, start, len)?;
            let logits = chunk.f_matmul(&transposed)?.f_to_kind(wide)?;
            let part = rows(logits, start, len)?;
            let dlogits = part.dlogits.f_to_kind(kind)?;
            loss = loss.f_add(&part.loss)?;
            nats = nats.f_add(&part.nats)?;
            if let Some(dhidden) = &dhidden {
                dhidden.f_narrow(0, start, len)?.f_copy_(&dlogits.f_matmul(weight)?)?;
            }
            if self.wants.weight {
                let dlogits = dlogits.f_transpose(0, 1)?;
                dweight = Some(match dweight {
                    // The product adds to what is there: no other tensor of the weight's size.
                    Some(mut sum) if kind == wide => sum.f_addmm_(&dlogits, &chunk)?,
                    Some(mut sum) => sum.f_add_(&dlogits.f_matmul(&chunk)?.f_to_kind(wide)?)?,
                    None => dlogits.f_matmul(&chunk)?.f_to_kind(wide)?,
                });
            }
        }
        if self.wants.weight && dweight.is_none() {
            dweight = Some(weight.f_zeros_like()?);
        }
        let scaled = |sum: Tensor| sum.f_mul_scalar(self.scale);
        Ok(Sums { loss: scaled(loss)?, nats: scaled(nats)?, dhidden, dweight })
    }
}
