//! How to generate.

use crate::{Error, Result};

/// How the CPU's own engine is set up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DecoderOptions {
    /// Threads; as many as libtorch has, as far as the model is large enough to gain from them,
    /// where there is no number.
    pub threads: Option<usize>,
    /// What the drafting heads compute with.
    pub drafts: DraftPrecision,
    /// What weights are kept in.
    pub weights: WeightStorage,
}

/// What the weights that decide on the text are kept in: those of the trunk, of head 0 and of the
/// unembedding, and of heads that draft in full precision. The text is the same either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightStorage {
    /// As few bytes as have the same bits (the default). Published weights are numbers of 16 bits, or
    /// levels of 4 or 8 bits in blocks, so that a pass reads between a half and a sixth of float32's
    /// bytes.
    #[default]
    Compact,
    /// The type that is computed in.
    Full,
}

/// What the drafting heads of a float32 model compute with.
///
/// The text is the same either way, because head 0 verifies every draft in float32. Only which
/// drafts it accepts may change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DraftPrecision {
    /// Weights in bfloat16 (the default), or in their levels where these are fewer bytes, and what they
    /// share with the trunk as that is kept, where it is not in full: half the bytes to read or
    /// less, which is most of a draft's cost.
    #[default]
    BFloat16,
    /// Weights as they are: drafts are just what the heads predict.
    Full,
}

/// How many tokens a pass may bring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Decoding {
    /// One: head 0's next token (the default).
    #[default]
    Autoregressive,
    /// Up to `heads`: the drafts of heads 1 … `heads` − 1 are verified by the next pass, and the
    /// longest prefix that equals head 0's own choice is kept.
    Speculative {
        /// Heads that are used, from 1 (no drafts) to all that the model has.
        heads: usize,
    },
    /// As many drafts as pay, up to those of `heads`: the first steps of a first text measure what drafts
    /// cost and bring, and those that slow the text down are left out from there on: heads, and in
    /// each step drafts that heads are not sure enough of. The next texts go on with that, and one
    /// tries anew now and then. The tokens are the same.
    Adaptive {
        /// Heads that may be used, from 1 to all that the model has.
        heads: usize,
    },
}

/// Drawing tokens at random instead of taking the most likely.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// What the logits are divided by: below 1 favours likely tokens, above 1 evens them out.
    pub temperature: f64,
    /// Only the most likely tokens whose probabilities reach this sum are drawn from; 1 for all.
    pub top_p: f64,
    /// The same seed gives the same tokens.
    pub seed: u64,
}

impl Sampling {
    pub(crate) fn check(&self) -> Result<()> {
        let Self { temperature, top_p, .. } = *self;
        if !(temperature > 0.0 && temperature.is_finite()) {
            return Err(Error::Sampling {
                option: "temperature",
                value: temperature,
                expected: "above 0 (leave it out to take the most likely token)",
            });
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            let expected = "above 0 and at most 1";
            return Err(Error::Sampling { option: "top_p", value: top_p, expected });
        }
        Ok(())
    }
}

/// What to generate and when to stop.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateOptions {
    /// Most new tokens.
    pub max_new_tokens: usize,
    /// How many tokens a pass may bring.
    pub decoding: Decoding,
    /// Tokens that end the text; the one that does is the last of the generation.
    pub end_of_text: Vec<u32>,
    /// Greedy where there is none.
    pub sampling: Option<Sampling>,
    /// Most tokens that a pass verifies beside the drafts: what heads think next likely, each in place
    /// of a draft. Where a draft is wrong and one of these right, the pass brings a token more. More
    /// rows cost little where a pass waits for weights from memory; adaptive decoding takes as many as
    /// pay. At most 16.
    pub alternatives: usize,
    /// Whether to note for each token how far its logit stands above the second best.
    pub record_gaps: bool,
}

impl GenerateOptions {
    /// [Alternatives](Self::alternatives) that `foretoken generate` offers unless told otherwise.
    pub const USUAL_ALTERNATIVES: usize = 4;
}

impl Default for GenerateOptions {
    /// 256 tokens, greedy, one a pass, no alternatives to drafts.
    fn default() -> Self {
        Self {
            max_new_tokens: 256,
            decoding: Decoding::default(),
            end_of_text: Vec::new(),
            sampling: None,
            alternatives: 0,
            record_gaps: false,
        }
    }
}
