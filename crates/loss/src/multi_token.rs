//! Weighted sum of the heads' cross-entropies.

use crate::{Error, HeadLosses, Result, TextRows};
use foretoken_heads::{BlockHead, HeadContext, HeadsConfig, ModelPart, MultiTokenModel};
use foretoken_kernels::{
    CrossEntropy, CrossEntropyOptions, IGNORED, Rotary, backward_from, linear_cross_entropy_with,
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
    /// tokens, so it uses the heads before the first gap alone
    /// ([`HeadsConfig::drafting`](foretoken_heads::HeadsConfig::drafting)).
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
    /// the forward pass ([`Trunk::segments`](foretoken_trunk::Trunk::segments)): the same gradients
    /// for more time and less memory.
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
        HeadsConfig::new(BlockHead::KIND, heads).with_offsets(self.offsets.clone())?;
        if !self.factor.is_finite() {
            let (name, expected) = ("the factor of the objective", "a finite number");
            return Err(Error::Setting { name, expected, found: self.factor });
        }
        Ok(self.cross_entropy.check()?)
    }

    /// Adds the objective's gradients to those of the model's parameters, head by head, and
    /// returns the losses, those of skipped heads left out.
    ///
    /// `rows`: tokens `[batch, seq + reach]` int64 ([`MultiTokenLoss::reach`]; without leaps that is
    /// `seq + heads`), or [`TextRows`]. Position t < seq reads tokens ≤ t; head i's target there is
    /// token t + 1 + offset i.
    ///
    /// # Errors
    /// When the objective does not suit the model ([`MultiTokenLoss::check`]), the rows are too
    /// short, a token is outside the vocabulary, or heads that are to run as one are not alike.
    pub fn backward(
        &self,
        model: &MultiTokenModel,
        rows: impl Into<TextRows>,
    ) -> Result<HeadLosses> {
        self.backward_telling(model, rows, |_| {})
    }

    /// As [`MultiTokenLoss::backward`]; `done` hears of each part of the model as soon as its gradients
    /// are complete, while those of others are still to be computed: several processes exchange them
    /// meanwhile. Heads come first, the embedding last; heads of weight 0 are not mentioned.
    ///
    /// # Errors
    /// As [`MultiTokenLoss::backward`].
    pub fn backward_telling(
        &self,
        model: &MultiTokenModel,
        rows: impl Into<TextRows>,
        mut done: impl FnMut(ModelPart),
    ) -> Result<HeadLosses> {
        let batch = self.batch(model, &rows.into())?;
        let segments = model.trunk().segments(&batch.inputs, &batch.rotary, self.recompute)?;
        let tap = segments.output().detach().set_requires_grad(true);
        let mut losses: Vec<Option<Tensor>> = self.weights.iter().map(|_| None).collect();
        // A head's loss backward from what the unembedding reads, `[batch · seq, dim]`.
        let mut learn = |head: usize, hidden: &Tensor| -> Result<()> {
            let both = batch.cross_entropy(model, head, hidden, &self.cross_entropy)?;
            let factor = self.weights[head] * self.factor * batch.counted(head)?;
            both.loss.f_mul_scalar(factor)?.f_backward()?;
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
                    // Heads that read the final hidden state go through head 0, the last to learn.
                    done(ModelPart::Head(head));
                }
            }
            HeadExecution::Grouped => {
                let learning: Vec<usize> = learning.collect();
                in_one_pass(model, &batch.rotary, &tap, &learning, learn)?;
                learning.into_iter().rev().for_each(|head| done(ModelPart::Head(head)));
            }
        }
        done(ModelPart::Readout);
        let gradient = tap.f_grad()?;
        if gradient.defined() {
            segments.backward(&gradient, |part| done(ModelPart::Trunk(part)))?;
        }
        HeadLosses::new(&losses, model.device())
    }

    /// The losses of all heads, without a graph, also of those that [`MultiTokenLoss::backward`]
    /// skips.
    ///
    /// # Errors
    /// As [`MultiTokenLoss::backward`].
    pub fn evaluate(
        &self,
        model: &MultiTokenModel,
        rows: impl Into<TextRows>,
    ) -> Result<HeadLosses> {
        let batch = self.batch(model, &rows.into())?;
        let plain = CrossEntropyOptions::default();
        no_grad(|| {
            let trunk_output = batch.hidden_whole(model)?;
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
    pub fn all_at_once(
        &self,
        model: &MultiTokenModel,
        rows: impl Into<TextRows>,
    ) -> Result<Tensor> {
        let batch = self.batch(model, &rows.into())?;
        let trunk_output = batch.hidden_whole(model)?;
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
            let factor = weight * self.factor * batch.counted(head)?;
            weighted.push(loss.f_mul_scalar(factor)?);
        }
        if weighted.is_empty() {
            return Ok(Tensor::f_zeros([0i64; 0], (Kind::Float, model.device()))?);
        }
        let all = Tensor::f_stack(&weighted, 0)?;
        Ok(all.f_sum(all.kind())?)
    }

    /// For each head the positions of `rows` that have a target for it: all, or in rows of several
    /// documents those whose target is of their own. What a mean over several batches weighs their
    /// losses by.
    ///
    /// # Errors
    /// When the rows are too short.
    pub fn targets(&self, rows: &TextRows) -> Result<Vec<f64>> {
        let (batch, columns) = rows.tokens.size2()?;
        let seq = self.seq(columns)?;
        let Some(documents) = &rows.documents else {
            return Ok(vec![(batch * seq) as f64; self.offsets.len()]);
        };
        let count = |&offset: &usize| {
            let inside = outside(documents, offset as i64 + 1, seq)?.f_logical_not()?;
            Ok(inside.f_sum(Kind::Double)?.f_double_value(&[])?)
        };
        self.offsets.iter().map(count).collect()
    }

    /// Positions of rows of so many tokens.
    fn seq(&self, columns: i64) -> Result<i64> {
        let seq = columns - i64::try_from(self.reach()).unwrap_or(i64::MAX);
        if seq < 1 {
            return Err(Error::Columns { columns, needed: self.reach().saturating_add(1) });
        }
        Ok(seq)
    }

    fn batch(&self, model: &MultiTokenModel, rows: &TextRows) -> Result<Batch> {
        self.check(model.heads().len())?;
        let tokens = &rows.tokens;
        let (_, columns) = tokens.size2()?;
        let seq = self.seq(columns)?;
        let tokens = tokens.f_to_device(model.device())?;
        let inputs = tokens.f_narrow(1, 0, seq)?.f_contiguous()?;
        let before_last = |of: &Tensor| of.f_narrow(1, 0, columns - 1)?.f_contiguous();
        let documents = match &rows.documents {
            Some(documents) => {
                rows.check(documents)?;
                Some(documents.f_to_device(model.device())?)
            }
            None => None,
        };
        // Heads are told positions beyond those that are learned from.
        let own = &model.trunk().rotary;
        let (rotary, told) = match &documents {
            None => (own.share(), model.told(&before_last(&tokens)?)?),
            Some(documents) => {
                let rotary =
                    own.within_documents(&documents.f_narrow(1, 0, seq)?.f_contiguous()?)?;
                let told = match model.told_blocks() {
                    Some(_) => {
                        let longer = own.within_documents(&before_last(documents)?)?;
                        model.told_within(&before_last(&tokens)?, &longer)?
                    }
                    None => None,
                };
                (rotary, told)
            }
        };
        Ok(Batch { inputs, tokens, documents, rotary, told, seq, offsets: self.offsets.clone() })
    }
}

/// Lets `heads` learn from states that are computed as one, down to the gradient of `tap`.
fn in_one_pass(
    model: &MultiTokenModel,
    rotary: &Rotary,
    tap: &Tensor,
    heads: &[usize],
    mut learn: impl FnMut(usize, &Tensor) -> Result<()>,
) -> Result<()> {
    if heads.is_empty() {
        return Ok(());
    }
    let stacked = model.stacked_heads(heads)?;
    let states = model.normed(&stacked.forward(tap, rotary)?)?;
    let mut gradients = Vec::with_capacity(heads.len());
    for (place, &head) in (0..).zip(heads) {
        let state = states.detach().f_select(0, place)?.set_requires_grad(true);
        learn(head, &state.f_flatten(0, 1)?)?;
        gradients.push(state.f_grad()?);
    }
    Ok(backward_from(&states, &Tensor::f_stack(&gradients, 0)?)?)
}

/// Which of the first `seq` positions have, `ahead` tokens on, a token of another document than
/// their own, or are of none: `[batch, seq]`.
fn outside(documents: &Tensor, ahead: i64, seq: i64) -> Result<Tensor> {
    let (own, theirs) = (documents.f_narrow(1, 0, seq)?, documents.f_narrow(1, ahead, seq)?);
    Ok(own.f_ne_tensor(&theirs)?.f_logical_or(&own.f_eq(TextRows::PADDING)?)?)
}

struct Batch {
    /// `[batch, seq]`
    inputs: Tensor,
    /// `[batch, seq + reach]`
    tokens: Tensor,
    /// `[batch, seq + reach]`, in rows of several documents.
    documents: Option<Tensor>,
    /// For `inputs`.
    rotary: Rotary,
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
        let context = HeadContext { rotary: &self.rotary, told: told.as_ref() };
        Ok(model.head_hidden_within(head, trunk_output, context)?.f_flatten(0, 1)?)
    }

    /// The trunk output in one piece, `[batch, seq, dim]`.
    fn hidden_whole(&self, model: &MultiTokenModel) -> Result<Tensor> {
        let trunk = model.trunk();
        Ok(trunk.early_within(&self.inputs, &self.rotary, trunk.blocks.len())?)
    }

    /// Targets of a head: `[batch · seq]`; those of another document are to be ignored.
    fn targets(&self, head: usize) -> Result<Tensor> {
        let first = self.offsets[head] as i64 + 1;
        let targets = self.tokens.f_narrow(1, first, self.seq)?;
        let targets = match &self.documents {
            Some(documents) => {
                targets.f_masked_fill(&outside(documents, first, self.seq)?, IGNORED)?
            }
            None => targets,
        };
        Ok(targets.f_reshape([-1])?)
    }

    /// The share of the positions that have a target: losses are means over these, and gradients of
    /// parts of a batch are to add up to the batch's.
    fn counted(&self, head: usize) -> Result<f64> {
        let Some(documents) = &self.documents else { return Ok(1.0) };
        let outside = outside(documents, self.offsets[head] as i64 + 1, self.seq)?;
        Ok(1.0 - outside.f_mean(Kind::Double)?.f_double_value(&[])?)
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
