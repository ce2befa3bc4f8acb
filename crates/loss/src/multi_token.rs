//! Sum of the heads' cross-entropies.

use crate::{Error, Result};
use foretoken_heads::MultiTokenModel;
use foretoken_kernels::{backward_from, linear_cross_entropy, linear_cross_entropy_reference};
use tch::{Kind, Tensor, no_grad};

/// The multi-token objective: a weight for every head.
#[derive(Clone, Debug, PartialEq)]
pub struct MultiTokenLoss {
    weights: Vec<f64>,
}

/// Mean cross-entropy of every head in nats a token, on the model's device: `[heads]`.
///
/// Reading it waits for the device, so do that when it is needed and not before.
#[derive(Debug)]
pub struct HeadLosses(pub Tensor);

impl HeadLosses {
    /// The losses as numbers, head 0 first.
    ///
    /// # Errors
    /// When the device fails.
    pub fn to_vec(&self) -> Result<Vec<f64>> {
        Ok(Vec::try_from(&self.0.f_to_kind(Kind::Double)?)?)
    }
}

impl MultiTokenLoss {
    /// The paper's objective: all weights 1.
    pub fn new(heads: usize) -> Self {
        Self { weights: vec![1.0; heads] }
    }

    /// A weight for each head. Reported losses are unweighted; a head of weight 0 gets no gradient
    /// and gives none to the trunk.
    pub fn weighted(weights: Vec<f64>) -> Self {
        Self { weights }
    }

    /// Adds the objective's gradients to those of the model's parameters, head by head, and
    /// returns the losses.
    ///
    /// `tokens`: `[batch, seq + heads]` int64. Position t < seq reads tokens ≤ t; head i's target
    /// there is token t + i + 1.
    ///
    /// # Errors
    /// When the model has another number of heads, the rows are too short, or a token is outside
    /// the vocabulary.
    pub fn backward(&self, model: &MultiTokenModel, tokens: &Tensor) -> Result<HeadLosses> {
        let batch = self.batch(model, tokens)?;
        let trunk_output = model.hidden(&batch.inputs)?;
        let tap = trunk_output.detach().set_requires_grad(true);
        let mut losses = Vec::with_capacity(self.weights.len());
        // From the farthest head to the nearest, so that head 0, which all decoding needs, is the
        // last to be touched and warm in the cache for the trunk's backward.
        for (head, &weight) in self.weights.iter().enumerate().rev() {
            let loss = batch.head_loss(model, head, &tap)?;
            if weight != 0.0 {
                (&loss * weight).f_backward()?;
            }
            losses.push(loss.detach());
        }
        let gradient = tap.grad();
        if gradient.defined() {
            backward_from(&trunk_output, &gradient)?;
        }
        losses.reverse();
        Ok(HeadLosses(Tensor::f_stack(&losses, 0)?))
    }

    /// The losses alone, without a graph.
    ///
    /// # Errors
    /// As [`MultiTokenLoss::backward`].
    pub fn evaluate(&self, model: &MultiTokenModel, tokens: &Tensor) -> Result<HeadLosses> {
        let batch = self.batch(model, tokens)?;
        no_grad(|| {
            let trunk_output = model.hidden(&batch.inputs)?;
            let losses = (0..self.weights.len())
                .map(|head| batch.head_loss(model, head, &trunk_output))
                .collect::<Result<Vec<_>>>()?;
            Ok(HeadLosses(Tensor::f_stack(&losses, 0)?))
        })
    }

    /// The weighted sum with all heads in one graph and all logits in memory: what
    /// [`MultiTokenLoss::backward`] is checked and measured against.
    ///
    /// # Errors
    /// As [`MultiTokenLoss::backward`].
    pub fn all_at_once(&self, model: &MultiTokenModel, tokens: &Tensor) -> Result<Tensor> {
        let batch = self.batch(model, tokens)?;
        let trunk_output = model.hidden(&batch.inputs)?;
        let mut weighted = Vec::with_capacity(self.weights.len());
        for (head, &weight) in self.weights.iter().enumerate() {
            let hidden = model.head_hidden(head, &trunk_output)?.f_flatten(0, 1)?;
            let loss = linear_cross_entropy_reference(
                &hidden,
                model.unembedding(),
                &batch.targets(head)?,
            )?;
            weighted.push(loss * weight);
        }
        let all = Tensor::f_stack(&weighted, 0)?;
        Ok(all.f_sum(all.kind())?)
    }

    fn batch(&self, model: &MultiTokenModel, tokens: &Tensor) -> Result<Batch> {
        let (weights, heads) = (self.weights.len(), model.heads().len());
        if weights != heads {
            return Err(Error::Heads { weights, heads });
        }
        let (_, columns) = tokens.size2()?;
        let seq = columns - heads as i64;
        if seq < 1 {
            return Err(Error::Columns { columns, heads });
        }
        let tokens = tokens.f_to_device(model.device())?;
        Ok(Batch { inputs: tokens.f_narrow(1, 0, seq)?.contiguous(), tokens, seq })
    }
}

struct Batch {
    /// `[batch, seq]`
    inputs: Tensor,
    /// `[batch, seq + heads]`
    tokens: Tensor,
    seq: i64,
}

impl Batch {
    /// Targets of a head: `[batch · seq]`.
    fn targets(&self, head: usize) -> Result<Tensor> {
        Ok(self.tokens.f_narrow(1, head as i64 + 1, self.seq)?.f_reshape([-1])?)
    }

    fn head_loss(&self, model: &MultiTokenModel, head: usize, tap: &Tensor) -> Result<Tensor> {
        let hidden = model.head_hidden(head, tap)?.f_flatten(0, 1)?;
        Ok(linear_cross_entropy(&hidden, model.unembedding(), &self.targets(head)?)?)
    }
}
