//! Weighted sum of the heads' cross-entropies.

use crate::{Error, HeadLosses, Result};
use foretoken_heads::MultiTokenModel;
use foretoken_kernels::{
    CrossEntropy, CrossEntropyOptions, backward_from, linear_cross_entropy_with,
    linear_cross_entropy_with_reference,
};
use tch::{Kind, Tensor, no_grad};

/// The multi-token objective: factor · Σᵢ wᵢ · mean over t of the loss of head i on token
/// t + 1 + offsetᵢ.
///
/// [`MultiTokenLoss::new`] is the paper's; the `with_…` methods change one thing each.
///
/// ```
/// use foretoken_loss::{CrossEntropyOptions, HeadWeights, MultiTokenLoss};
///
/// let loss = MultiTokenLoss::weighted(HeadWeights::Geometric(0.7).for_heads(4))
///     .with_cross_entropy(CrossEntropyOptions { label_smoothing: 0.0, z_loss: 1e-4 })
///     // A step's gradient from two batches, one after the other.
///     .with_factor(0.5);
/// loss.check(4)?;
/// assert_eq!(loss.reach(), 4);
/// # Ok::<(), foretoken_loss::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct MultiTokenLoss {
    weights: Vec<f64>,
    offsets: Vec<usize>,
    cross_entropy: CrossEntropyOptions,
    factor: f64,
    recompute: bool,
    execution: HeadExecution,
}

/// How the heads of a step run: the same mathematics, and the same gradients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeadExecution {
    /// One after the other, forward and backward (the paper's section 2): the activations of one
    /// head at a time.
    #[default]
    Sequential,
    /// All in one batched product over stacked weights, where they are blocks of one shape: the
    /// fewest operators, for the activations of all heads. Logits still are one head's at a time.
    Grouped,
}

impl MultiTokenLoss {
    /// The paper's objective: all weights 1, adjacent tokens, plain cross-entropies.
    pub fn new(heads: usize) -> Self {
        Self::weighted(vec![1.0; heads])
    }

    /// A weight for each head, 0 or more ([`HeadWeights`](crate::HeadWeights) has the usual ones).
    /// Reported losses are unweighted. A head of weight 0 is skipped: it costs nothing, gets no
    /// gradient and gives none to the trunk.
    pub fn weighted(weights: Vec<f64>) -> Self {
        let offsets = (0..weights.len()).collect();
        let cross_entropy = CrossEntropyOptions::default();
        let (factor, recompute, execution) = (1.0, false, HeadExecution::default());
        Self { weights, offsets, cross_entropy, factor, recompute, execution }
    }

    /// Leap heads (after Liu et al. 2025, *L-MTP*): head i learns token t + 1 + `offsets[i]`. The
    /// list has an entry for each head, begins with 0 and rises; the default is 0, 1, 2, …
    ///
    /// Heads that leap are an auxiliary objective for the trunk and head 0: decoding drafts adjacent
    /// tokens, so heads that were trained with a gap do not draft. Decode with head 0 and the
    /// heads before the first gap.
    ///
    /// ```
    /// use foretoken_loss::MultiTokenLoss;
    ///
    /// let loss = MultiTokenLoss::new(3).with_offsets(vec![0, 1, 7]);
    /// // A row of 16 positions needs 8 tokens more, for the last position's farthest target.
    /// assert_eq!(16 + loss.reach(), 24);
    /// let error = MultiTokenLoss::new(3).with_offsets(vec![0, 2, 2]).check(3).unwrap_err();
    /// assert!(error.to_string().contains("[0, 2, 2]"));
    /// ```
    #[must_use]
    pub fn with_offsets(self, offsets: Vec<usize>) -> Self {
        Self { offsets, ..self }
    }

    /// Label smoothing and z-loss of every head's cross-entropy. Reported losses are without them.
    #[must_use]
    pub fn with_cross_entropy(self, cross_entropy: CrossEntropyOptions) -> Self {
        Self { cross_entropy, ..self }
    }

    /// Gradients `factor` times as large; 1 / m where those of m batches add up to a step's.
    #[must_use]
    pub fn with_factor(self, factor: f64) -> Self {
        Self { factor, ..self }
    }

    /// Whether the trunk's blocks are computed again in the backward pass instead of being kept from
    /// the forward pass ([`MultiTokenModel::hidden_recomputing`]): the same gradients for more time
    /// and less memory.
    #[must_use]
    pub fn with_recompute(self, recompute: bool) -> Self {
        Self { recompute, ..self }
    }

    /// How heads run ([`HeadExecution`]).
    #[must_use]
    pub fn with_execution(self, execution: HeadExecution) -> Self {
        Self { execution, ..self }
    }

    /// The same objective with the first `active` heads alone: the others have weight 0. A
    /// [`Curriculum`](crate::Curriculum) says how many. Rows of a batch stay as long as they were.
    ///
    /// ```
    /// use foretoken_loss::{Curriculum, MultiTokenLoss};
    ///
    /// let (all, steps) = (MultiTokenLoss::new(4), 1000);
    /// let active = Curriculum::Forward.active_heads(4, 300, steps);
    /// assert_eq!(all.active(active), MultiTokenLoss::weighted(vec![1.0, 1.0, 0.0, 0.0]));
    /// ```
    #[must_use]
    pub fn active(&self, active: usize) -> Self {
        let mut objective = self.clone();
        objective.weights.iter_mut().skip(active).for_each(|weight| *weight = 0.0);
        objective
    }

    /// Tokens that a row needs beyond its positions: 1 + the last offset.
    pub fn reach(&self) -> usize {
        self.offsets.last().map_or(0, |last| last.saturating_add(1))
    }

    /// Refuses an objective that a model of `heads` heads cannot be trained with. All that use it
    /// check it too.
    ///
    /// # Errors
    /// When there is not one weight and one offset for each head, a weight is negative or not
    /// finite, offsets do not rise from 0, the factor is not finite, or an option of the
    /// cross-entropy is outside its range.
    pub fn check(&self, heads: usize) -> Result<()> {
        if self.weights.len() != heads {
            return Err(Error::Heads { weights: self.weights.len(), heads });
        }
        let bad = |weight: &f64| !weight.is_finite() || *weight < 0.0;
        if let Some(head) = self.weights.iter().position(bad) {
            return Err(Error::Weight { head, weight: self.weights[head] });
        }
        let rising = self.offsets.windows(2).all(|pair| pair[0] < pair[1]);
        if self.offsets.len() != heads || self.offsets.first() != Some(&0) || !rising {
            return Err(Error::Offsets { offsets: self.offsets.clone(), heads });
        }
        if !self.factor.is_finite() {
            let (name, expected) = ("the factor of the objective", "a finite number");
            return Err(Error::Setting { name, expected, found: self.factor });
        }
        Ok(self.cross_entropy.check()?)
    }

    /// Adds the objective's gradients to those of the model's parameters, head by head, and
    /// returns the losses, those of skipped heads left out.
    ///
    /// `tokens`: `[batch, seq + reach]` int64 ([`MultiTokenLoss::reach`]; without leaps that is
    /// `seq + heads`). Position t < seq reads tokens ≤ t; head i's target there is token
    /// t + 1 + offset i.
    ///
    /// # Errors
    /// When the objective does not suit the model ([`MultiTokenLoss::check`]), the rows are too
    /// short, a token is outside the vocabulary, or heads that are to run as one are not alike.
    pub fn backward(&self, model: &MultiTokenModel, tokens: &Tensor) -> Result<HeadLosses> {
        let batch = self.batch(model, tokens)?;
        let trunk_output = match self.recompute {
            false => model.hidden(&batch.inputs)?,
            true => model.hidden_recomputing(&batch.inputs)?,
        };
        let tap = trunk_output.detach().set_requires_grad(true);
        let mut losses: Vec<Option<Tensor>> = self.weights.iter().map(|_| None).collect();
        // A head's loss backward from what the unembedding reads, `[batch · seq, dim]`.
        let mut learn = |head: usize, hidden: &Tensor| -> Result<()> {
            let both = batch.cross_entropy(model, head, hidden, &self.cross_entropy)?;
            both.loss.f_mul_scalar(self.weights[head] * self.factor)?.f_backward()?;
            losses[head] = Some(both.nats);
            Ok(())
        };
        let learning = (0..self.weights.len()).filter(|&head| self.weights[head] != 0.0);
        match self.execution {
            // From the farthest head to the nearest, so that head 0, which all decoding needs, is
            // the last to be touched and warm in the cache for the trunk's backward.
            HeadExecution::Sequential => {
                for head in learning.rev() {
                    learn(head, &batch.hidden(model, head, &tap)?)?;
                }
            }
            HeadExecution::Grouped => {
                in_one_pass(model, &tap, &learning.collect::<Vec<_>>(), learn)?;
            }
        }
        let gradient = tap.f_grad()?;
        if gradient.defined() {
            backward_from(&trunk_output, &gradient)?;
        }
        HeadLosses::new(&losses, model.device())
    }

    /// The losses of all heads, without a graph, also of those that [`MultiTokenLoss::backward`]
    /// skips.
    ///
    /// # Errors
    /// As [`MultiTokenLoss::backward`].
    pub fn evaluate(&self, model: &MultiTokenModel, tokens: &Tensor) -> Result<HeadLosses> {
        let batch = self.batch(model, tokens)?;
        let plain = CrossEntropyOptions::default();
        no_grad(|| {
            let trunk_output = model.hidden(&batch.inputs)?;
            let nats = |head| {
                let hidden = batch.hidden(model, head, &trunk_output)?;
                Ok(Some(batch.cross_entropy(model, head, &hidden, &plain)?.nats))
            };
            let losses = (0..self.weights.len()).map(nats).collect::<Result<Vec<_>>>()?;
            HeadLosses::new(&losses, model.device())
        })
    }

    /// The objective's value with all heads in one graph and all logits in memory: what
    /// [`MultiTokenLoss::backward`] is checked and measured against.
    ///
    /// # Errors
    /// As [`MultiTokenLoss::backward`].
    pub fn all_at_once(&self, model: &MultiTokenModel, tokens: &Tensor) -> Result<Tensor> {
        let batch = self.batch(model, tokens)?;
        let trunk_output = model.hidden(&batch.inputs)?;
        let mut weighted = Vec::with_capacity(self.weights.len());
        for (head, &weight) in self.weights.iter().enumerate() {
            if weight == 0.0 {
                continue;
            }
            let hidden = batch.hidden(model, head, &trunk_output)?;
            let loss = linear_cross_entropy_with_reference(
                &hidden,
                model.unembedding(),
                &batch.targets(head)?,
                &self.cross_entropy,
            )?;
            weighted.push(loss.f_mul_scalar(weight * self.factor)?);
        }
        if weighted.is_empty() {
            return Ok(Tensor::f_zeros([0i64; 0], (Kind::Float, model.device()))?);
        }
        let all = Tensor::f_stack(&weighted, 0)?;
        Ok(all.f_sum(all.kind())?)
    }

    fn batch(&self, model: &MultiTokenModel, tokens: &Tensor) -> Result<Batch> {
        self.check(model.heads().len())?;
        let (_, columns) = tokens.size2()?;
        let reach = i64::try_from(self.reach()).unwrap_or(i64::MAX);
        let seq = columns - reach;
        if seq < 1 {
            return Err(Error::Columns { columns, needed: self.reach().saturating_add(1) });
        }
        let tokens = tokens.f_to_device(model.device())?;
        let inputs = tokens.f_narrow(1, 0, seq)?.f_contiguous()?;
        let told = model.told(&tokens.f_narrow(1, 0, columns - 1)?.f_contiguous()?)?;
        Ok(Batch { inputs, tokens, told, seq, offsets: self.offsets.clone() })
    }
}

/// Lets `heads` learn from states that are computed as one, down to the gradient of `tap`.
fn in_one_pass(
    model: &MultiTokenModel,
    tap: &Tensor,
    heads: &[usize],
    mut learn: impl FnMut(usize, &Tensor) -> Result<()>,
) -> Result<()> {
    if heads.is_empty() {
        return Ok(());
    }
    let stacked = model.stacked_heads(heads)?;
    let states = model.normed(&stacked.forward(tap, &model.trunk().rotary)?)?;
    let mut gradients = Vec::with_capacity(heads.len());
    for (place, &head) in (0..).zip(heads) {
        let state = states.detach().f_select(0, place)?.set_requires_grad(true);
        learn(head, &state.f_flatten(0, 1)?)?;
        gradients.push(state.f_grad()?);
    }
    Ok(backward_from(&states, &Tensor::f_stack(&gradients, 0)?)?)
}

struct Batch {
    /// `[batch, seq]`
    inputs: Tensor,
    /// `[batch, seq + reach]`
    tokens: Tensor,
    /// What heads are told of all tokens but the last, where they are told any.
    told: Option<Tensor>,
    seq: i64,
    offsets: Vec<usize>,
}

impl Batch {
    /// What the unembedding reads for a head, `[batch · seq, dim]`.
    fn hidden(
        &self,
        model: &MultiTokenModel,
        head: usize,
        trunk_output: &Tensor,
    ) -> Result<Tensor> {
        let before = self.offsets[head] as i64;
        let told = self.told.as_ref().map(|told| told.f_narrow(1, before, self.seq)).transpose()?;
        Ok(model.head_hidden_told(head, trunk_output, told.as_ref())?.f_flatten(0, 1)?)
    }

    /// Targets of a head: `[batch · seq]`.
    fn targets(&self, head: usize) -> Result<Tensor> {
        let first = self.offsets[head] as i64 + 1;
        Ok(self.tokens.f_narrow(1, first, self.seq)?.f_reshape([-1])?)
    }

    /// The loss of a head from what the unembedding reads, `[batch · seq, dim]`.
    fn cross_entropy(
        &self,
        model: &MultiTokenModel,
        head: usize,
        hidden: &Tensor,
        options: &CrossEntropyOptions,
    ) -> Result<CrossEntropy> {
        let targets = self.targets(head)?;
        Ok(linear_cross_entropy_with(hidden, model.unembedding(), &targets, options)?)
    }
}
