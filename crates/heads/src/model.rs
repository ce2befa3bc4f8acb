//! Trunk, heads, final norm and unembedding as one model.

use crate::{
    BlockHead, DraftVocabulary, Error, Head, HeadContext, ModelConfig, Registry, Result, Tap,
};
use foretoken_kernels::{Rotary, linear, rms_norm};
use foretoken_trunk::{Initialiser, Parameter, Role, Trunk, TrunkPart};
use tch::{Device, Kind, Tensor, no_grad};

/// A multi-token model.
#[derive(Debug)]
pub struct MultiTokenModel {
    pub(crate) config: ModelConfig,
    pub(crate) trunk: Trunk,
    pub(crate) heads: Vec<Box<dyn Head>>,
    pub(crate) final_norm: Tensor,
    pub(crate) unembedding: Tensor,
    pub(crate) draft_vocabulary: Option<DraftVocabulary>,
}

/// Weights whose gradients a backward pass completes together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelPart {
    /// The head of this index.
    Head(usize),
    /// What all heads share: the final norm, and the unembedding where it is not the embedding.
    Readout,
    /// A block of the trunk, or its embedding.
    Trunk(TrunkPart),
}

impl MultiTokenModel {
    /// A model with seeded first weights and the stock head types. Sets libtorch's global seed.
    ///
    /// # Errors
    /// When sizes do not fit together, the heads take up all layers, or memory is short.
    pub fn new(config: &ModelConfig, kind: Kind, device: Device, seed: i64) -> Result<Self> {
        Self::with_registry(config, &Registry::stock(), kind, device, seed)
    }

    /// As [`MultiTokenModel::new`], with head types of your own.
    ///
    /// # Errors
    /// As [`MultiTokenModel::new`].
    pub fn with_registry(
        config: &ModelConfig,
        registry: &Registry,
        kind: Kind,
        device: Device,
        seed: i64,
    ) -> Result<Self> {
        let init = Initialiser::new(&config.architecture, kind, device, seed);
        Self::build(config, registry, &init)
    }

    pub(crate) fn build(
        config: &ModelConfig,
        registry: &Registry,
        init: &Initialiser,
    ) -> Result<Self> {
        let (sizes, heads) = (&config.architecture, &config.heads);
        sizes.validate()?;
        let trunk_layers = registry.trunk_layers(&heads.kind, heads.count, sizes.layers)?;
        let trunk = Trunk::new(sizes, trunk_layers, init)?;
        let mut built: Vec<Box<dyn Head>> = vec![Box::new(BlockHead::new(sizes, init)?)];
        for _ in 1..heads.count {
            built.push(registry.build(&heads.kind, sizes, init)?);
        }
        let (vocab, dim) = (sizes.vocab as i64, sizes.dim as i64);
        let final_norm = init.norm(dim)?;
        let unembedding = match sizes.tied {
            true => trunk.embed_tokens.shallow_clone(),
            false => init.embedding(vocab, dim)?,
        };
        Ok(Self {
            config: config.clone(),
            trunk,
            heads: built,
            final_norm,
            unembedding,
            draft_vocabulary: None,
        })
    }

    /// The same model in another number format: its weights are rounded copies. `registry` has to
    /// know the types of its heads.
    ///
    /// # Errors
    /// When a head's type is unknown or the memory cannot be had.
    pub fn in_kind(&self, kind: Kind, registry: &Registry) -> Result<Self> {
        let init = Initialiser::unset(kind, self.device());
        let mut copy = Self::build(&self.config, registry, &init)?;
        no_grad(|| {
            for (to, from) in copy.parameters().iter().zip(self.parameters()) {
                to.tensor.shallow_clone().f_copy_(&from.tensor)?;
                let _ = to.tensor.set_requires_grad(from.tensor.requires_grad());
            }
            Ok::<_, Error>(())
        })?;
        copy.set_draft_vocabulary(self.draft_vocabulary.as_ref().map(|v| v.tokens().to_vec()))?;
        Ok(copy)
    }

    /// Sizes and heads.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The shared trunk.
    pub fn trunk(&self) -> &Trunk {
        &self.trunk
    }

    /// The heads; head i predicts the token at offset i + 1.
    pub fn heads(&self) -> &[Box<dyn Head>] {
        &self.heads
    }

    /// Weight of the final norm that the heads share: `[dim]`.
    pub fn final_norm(&self) -> &Tensor {
        &self.final_norm
    }

    /// The unembedding that the heads share: `[vocab, dim]`.
    pub fn unembedding(&self) -> &Tensor {
        &self.unembedding
    }

    /// Number format of the weights.
    pub fn kind(&self) -> Kind {
        self.trunk.kind()
    }

    /// Where the weights are.
    pub fn device(&self) -> Device {
        self.trunk.device()
    }

    /// The trunk output `[batch, seq, dim]` for `tokens` `[batch, seq]` (int64).
    ///
    /// # Errors
    /// When a token is outside the vocabulary or the sequence longer than the context.
    pub fn hidden(&self, tokens: &Tensor) -> Result<Tensor> {
        Ok(self.trunk.forward(tokens, None)?)
    }

    /// After how many of the trunk's blocks drafting heads are told the tokens before their targets
    /// ([`Head::told_blocks`]); `None` where they are told nothing.
    pub fn told_blocks(&self) -> Option<usize> {
        let blocks = self.heads.iter().find_map(|head| head.told_blocks());
        blocks.map(|blocks| blocks.min(self.trunk.blocks.len()))
    }

    /// What heads are told of `tokens` `[batch, seq]` (int64), `[batch, seq, dim]`, without a
    /// gradient; `None` where they are told nothing.
    ///
    /// Row t of head i, which predicts token t + i + 1, is told position t + i: its part is
    /// `narrow(1, i, …)` of this.
    ///
    /// # Errors
    /// When a token is outside the vocabulary or the sequence longer than the context.
    pub fn told(&self, tokens: &Tensor) -> Result<Option<Tensor>> {
        self.told_within(tokens, &self.trunk.rotary)
    }

    /// As [`MultiTokenModel::told`], for rows of several documents
    /// ([`Rotary::within_documents`]).
    ///
    /// # Errors
    /// As [`MultiTokenModel::told`], and when `rotary` is for other rows.
    pub fn told_within(&self, tokens: &Tensor, rotary: &Rotary) -> Result<Option<Tensor>> {
        let told = |blocks| no_grad(|| self.trunk.early_within(tokens, rotary, blocks));
        Ok(self.told_blocks().map(told).transpose()?)
    }

    /// [`MultiTokenModel::hidden`] and [`MultiTokenModel::told`] in one pass.
    ///
    /// # Errors
    /// As [`MultiTokenModel::hidden`].
    pub fn hidden_and_told(&self, tokens: &Tensor) -> Result<(Tensor, Option<Tensor>)> {
        let blocks = self.told_blocks();
        let (told, hidden) = self.trunk.forward_noting(tokens, None, blocks.unwrap_or(0))?;
        Ok((hidden, blocks.map(|_| told.detach())))
    }

    /// What the unembedding reads for head `head`, from the trunk output: `[batch, seq, dim]`.
    ///
    /// # Errors
    /// When there is no such head, it is one that is told tokens, or shapes differ.
    pub fn head_hidden(&self, head: usize, hidden: &Tensor) -> Result<Tensor> {
        self.head_hidden_told(head, hidden, None)
    }

    /// As [`MultiTokenModel::head_hidden`], for heads that are told tokens too: `told`, the rows' part
    /// of [`MultiTokenModel::told`], `[batch, seq, dim]`. Other heads pay no attention to it.
    ///
    /// # Errors
    /// As [`MultiTokenModel::head_hidden`], and when a head that is told tokens is not.
    pub fn head_hidden_told(
        &self,
        head: usize,
        hidden: &Tensor,
        told: Option<&Tensor>,
    ) -> Result<Tensor> {
        self.head_hidden_within(head, hidden, HeadContext { rotary: &self.trunk.rotary, told })
    }

    /// As [`MultiTokenModel::head_hidden_told`], with rotary tables that may be for rows of several
    /// documents ([`Rotary::within_documents`]).
    ///
    /// # Errors
    /// As [`MultiTokenModel::head_hidden_told`], and when `context.rotary` is for other rows.
    pub fn head_hidden_within(
        &self,
        head: usize,
        hidden: &Tensor,
        context: HeadContext<'_>,
    ) -> Result<Tensor> {
        let module = self.head(head)?;
        match module.tap() {
            Tap::TrunkOutput => self.normed(&module.forward(hidden, context, None)?),
            Tap::FinalHidden => {
                let stock = self.heads[0].forward(hidden, context, None)?;
                module.forward(&self.normed(&stock)?, context, None)
            }
        }
    }

    /// Logits of all heads for `tokens` `[batch, seq]` (int64): `[batch, seq, vocab]` each.
    ///
    /// Heads that are told tokens are told those of the text. Behind its end they are told what is
    /// drafted there: head 0's choice, then that of each head before.
    ///
    /// # Errors
    /// When a token is outside the vocabulary, or text and drafts are longer than the context.
    pub fn text_logits(&self, tokens: &Tensor) -> Result<Vec<Tensor>> {
        let (_, seq) = tokens.size2()?;
        let hidden = self.hidden(tokens)?;
        let mut text = tokens.shallow_clone();
        let mut all = Vec::with_capacity(self.heads.len());
        for (head, ahead) in (0..self.heads.len()).zip(0..) {
            let told = match self.head(head)?.told_blocks() {
                Some(_) => {
                    self.told(&text)?.map(|told| told.f_narrow(1, ahead, seq)).transpose()?
                }
                None => None,
            };
            let state = self.head_hidden_told(head, &hidden, told.as_ref())?;
            let choice = self.choose(head, &state.f_narrow(1, seq - 1, 1)?)?;
            text = Tensor::f_cat(&[text, choice], 1)?;
            all.push(linear(&state, &self.unembedding)?);
        }
        Ok(all)
    }

    /// Logits of head `head` from the trunk output: `[batch, seq, vocab]`.
    ///
    /// # Errors
    /// As [`MultiTokenModel::head_hidden`].
    pub fn logits(&self, head: usize, hidden: &Tensor) -> Result<Tensor> {
        Ok(linear(&self.head_hidden(head, hidden)?, &self.unembedding)?)
    }

    /// The tokens that head `head` thinks most likely, from the trunk output: `[batch, seq]`, int64.
    /// Drafting heads choose among the draft vocabulary, if there is one.
    ///
    /// # Errors
    /// As [`MultiTokenModel::logits`].
    pub fn best_tokens(&self, head: usize, hidden: &Tensor) -> Result<Tensor> {
        self.choose(head, &self.head_hidden(head, hidden)?)
    }

    /// As [`MultiTokenModel::best_tokens`], for heads that are told tokens too.
    ///
    /// # Errors
    /// As [`MultiTokenModel::head_hidden_told`].
    pub fn best_tokens_told(
        &self,
        head: usize,
        hidden: &Tensor,
        told: Option<&Tensor>,
    ) -> Result<Tensor> {
        self.choose(head, &self.head_hidden_told(head, hidden, told)?)
    }

    /// The best tokens for what the unembedding reads.
    fn choose(&self, head: usize, state: &Tensor) -> Result<Tensor> {
        match &self.draft_vocabulary {
            Some(vocabulary) if head > 0 => {
                let best = linear(state, vocabulary.unembedding())?.f_argmax(-1, false)?;
                vocabulary.named(&best)
            }
            _ => Ok(linear(state, &self.unembedding)?.f_argmax(-1, false)?),
        }
    }

    /// The shared final norm.
    ///
    /// # Errors
    /// When the last dimension is not the model's.
    pub fn normed(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(rms_norm(hidden, &self.final_norm, self.config.architecture.norm_eps)?)
    }

    /// Head `index`.
    ///
    /// # Errors
    /// When the model has fewer.
    pub fn head(&self, index: usize) -> Result<&dyn Head> {
        let count = self.heads.len();
        self.heads.get(index).map(AsRef::as_ref).ok_or(Error::NoSuchHead { index, count })
    }

    /// All weights: those of the stock next-token model under stock names, then those of heads 1,
    /// 2, … under `heads.{i}.`.
    pub fn parameters(&self) -> Vec<Parameter> {
        let mut all = self.stock_parameters();
        all.extend(self.head_parameters());
        all
    }

    /// Trunk, head 0, final norm and unembedding, where it is not the embedding: a stock Llama.
    pub(crate) fn stock_parameters(&self) -> Vec<Parameter> {
        let mut all = self.trunk.parameters();
        all.extend(self.part_parameters(ModelPart::Head(0)));
        all.extend(self.part_parameters(ModelPart::Readout));
        all
    }

    /// The weights of the heads beyond the first.
    pub fn head_parameters(&self) -> Vec<Parameter> {
        let extra = 1..self.heads.len();
        extra.flat_map(|head| self.part_parameters(ModelPart::Head(head))).collect()
    }

    /// The weights of one part, named as in [`MultiTokenModel::parameters`]; none where the model has
    /// no such part.
    pub fn part_parameters(&self, part: ModelPart) -> Vec<Parameter> {
        match part {
            ModelPart::Head(head) => {
                let prefix = match head {
                    0 => layer_prefix(self.trunk.blocks.len()),
                    _ => head_prefix(head),
                };
                self.heads.get(head).map_or_else(Vec::new, |head| head.parameters(&prefix))
            }
            ModelPart::Readout => {
                let untied = !self.config.architecture.tied;
                let unembedding = untied.then(|| readout_unembedding(&self.unembedding));
                std::iter::once(readout_norm(&self.final_norm)).chain(unembedding).collect()
            }
            ModelPart::Trunk(part) => self.trunk.part_parameters(part),
        }
    }

    /// Numbers that are trained, in all.
    pub fn parameter_count(&self) -> usize {
        self.parameters().iter().map(|p| p.tensor.numel()).sum()
    }
}

/// The stock name of an unembedding of its own.
pub(crate) const UNEMBEDDING: &str = "lm_head.weight";

/// What the names of a stock layer's weights begin with.
pub(crate) fn layer_prefix(layer: usize) -> String {
    format!("model.layers.{layer}.")
}

/// What the names of the weights of a head beyond the first begin with.
pub(crate) fn head_prefix(head: usize) -> String {
    format!("heads.{head}.")
}

pub(crate) fn readout_norm(norm: &Tensor) -> Parameter {
    Parameter::whole(norm, Role::Vector, "model.norm.weight")
}

pub(crate) fn readout_unembedding(unembedding: &Tensor) -> Parameter {
    Parameter::whole(unembedding, Role::Unembedding, UNEMBEDDING)
}
