//! The objective of new heads on a model that stays as it is.

use crate::{Error, HeadLosses, Result};
use foretoken_heads::{HeadContext, MultiTokenModel, Tap};
use foretoken_kernels::{linear_cross_entropy, linear_distillation};
use tch::{Kind, Tensor, no_grad};

/// What a drafting head learns to predict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadTargets {
    /// The text's own tokens.
    Text,
    /// The whole distribution that the model itself expects at the position: what greedy decoding
    /// will choose from, and far more to learn from than one token.
    Model,
}

/// What a frozen model makes of a batch of text; all that its heads need to be trained.
#[derive(Debug)]
pub struct FrozenStates {
    /// `[batch, seq + heads − 1, dim]`: the trunk output.
    pub trunk_output: Tensor,
    /// `[batch, seq + heads − 1, dim]`: the state after the final norm, which says what the model
    /// expects next.
    pub final_hidden: Tensor,
    /// `[batch, seq + heads − 1, dim]`: [`MultiTokenModel::told`], where heads are told anything.
    pub told: Option<Tensor>,
}

/// Sum over heads 1 … n − 1 of their cross-entropies, on a trunk without gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrozenTrunkLoss {
    targets: HeadTargets,
}

impl FrozenTrunkLoss {
    /// The objective with these targets.
    pub fn new(targets: HeadTargets) -> Self {
        Self { targets }
    }

    /// What the model makes of `tokens`, `[batch, seq + heads]` int64, without a graph. The last
    /// column is a target only.
    ///
    /// # Errors
    /// When the rows are too short or a token is outside the vocabulary.
    pub fn states(model: &MultiTokenModel, tokens: &Tensor) -> Result<FrozenStates> {
        let (_, columns) = tokens.size2()?;
        sequence(model, columns)?;
        no_grad(|| {
            let inputs = tokens.f_to_device(model.device())?.f_narrow(1, 0, columns - 1)?;
            let (trunk_output, told) = model.hidden_and_told(&inputs.contiguous())?;
            let final_hidden = model.head_hidden(0, &trunk_output)?;
            Ok(FrozenStates { trunk_output, final_hidden, told })
        })
    }

    /// Adds the objective's gradients to those of the heads' parameters, head by head, and returns
    /// the losses of heads 1, 2, …
    ///
    /// With a draft vocabulary, only positions whose target is in it count where targets are the
    /// text's, and distributions are those over it.
    ///
    /// # Errors
    /// When shapes differ, or the model has no head beyond the first.
    pub fn backward(
        self,
        model: &MultiTokenModel,
        tokens: &Tensor,
        states: &FrozenStates,
    ) -> Result<HeadLosses> {
        self.heads(model, tokens, states, |loss| Ok(loss.f_backward()?))
    }

    /// The losses alone, without a graph.
    ///
    /// # Errors
    /// As [`FrozenTrunkLoss::backward`].
    pub fn evaluate(
        self,
        model: &MultiTokenModel,
        tokens: &Tensor,
        states: &FrozenStates,
    ) -> Result<HeadLosses> {
        no_grad(|| self.heads(model, tokens, states, |_| Ok(())))
    }

    fn heads(
        self,
        model: &MultiTokenModel,
        tokens: &Tensor,
        states: &FrozenStates,
        learn: impl Fn(&Tensor) -> Result<()>,
    ) -> Result<HeadLosses> {
        let (_, columns) = tokens.size2()?;
        let seq = sequence(model, columns)?;
        let kind = model.kind();
        let taps = [&states.trunk_output, &states.final_hidden]
            .map(|state| Ok::<_, Error>(state.f_narrow(1, 0, seq)?.f_to_kind(kind)?));
        let [trunk_output, final_hidden] = taps;
        let (trunk_output, final_hidden) = (trunk_output?, final_hidden?);
        let vocabulary = model.draft_vocabulary();
        let unembedding =
            vocabulary.map_or(model.unembedding(), |vocabulary| vocabulary.unembedding()).detach();
        let mut losses = Vec::with_capacity(model.heads().len());
        for index in 1..model.heads().len() {
            let head = model.head(index)?;
            let told = states.told.as_ref();
            let told = told.map(|told| told.f_narrow(1, index as i64, seq)?.f_to_kind(kind));
            let told = told.transpose()?;
            let context = HeadContext { rotary: &model.trunk().rotary, told: told.as_ref() };
            let hidden = match head.tap() {
                Tap::TrunkOutput => model.normed(&head.forward(&trunk_output, context, None)?)?,
                Tap::FinalHidden => head.forward(&final_hidden, context, None)?,
            };
            let hidden = hidden.f_flatten(0, 1)?;
            let loss = match self.targets {
                HeadTargets::Text => {
                    let targets = tokens.f_narrow(1, index as i64 + 1, seq)?.f_reshape([-1])?;
                    let targets = targets.f_to_device(model.device())?;
                    let targets = match vocabulary {
                        Some(vocabulary) => vocabulary.places(&targets)?,
                        None => targets,
                    };
                    linear_cross_entropy(&hidden, &unembedding, &targets)?
                }
                HeadTargets::Model => {
                    // Where the head looks, index positions ahead, the model has read them all.
                    let teacher = states.final_hidden.f_narrow(1, index as i64, seq)?;
                    let teacher = teacher.f_to_kind(kind)?.f_flatten(0, 1)?;
                    linear_distillation(&hidden, &unembedding, &teacher)?
                }
            };
            learn(&loss)?;
            losses.push(Some(loss.detach().f_to_kind(Kind::Float)?));
        }
        HeadLosses::new(&losses, model.device())
    }
}

/// Positions that heads are trained at, in rows of `columns` tokens.
fn sequence(model: &MultiTokenModel, columns: i64) -> Result<i64> {
    let heads = model.heads().len();
    let seq = columns - heads as i64;
    if seq < 1 {
        return Err(Error::Columns { columns, needed: heads + 1 });
    }
    if heads < 2 {
        return Err(Error::NoHeads);
    }
    Ok(seq)
}
