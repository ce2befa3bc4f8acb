//! What was generated, and at what cost.

use std::time::Duration;

use serde::Serialize;

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StoppedBy {
    /// The model ended the text.
    EndOfText,
    /// The caller broke off, for a stop text for instance.
    StopText,
    /// As many new tokens as were asked for.
    Limit,
    /// The model has no more positions.
    Context,
}

/// New tokens and the figures of their generation.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// The new tokens; where the model ended the text, the last one is the token that does.
    pub tokens: Vec<u32>,
    /// For each token the head that produced it: 0 for head 0's own next token, i for a draft of
    /// head i that was accepted, or an alternative to it.
    pub drafted_by: Vec<usize>,
    /// Why it ended.
    pub stopped_by: StoppedBy,
    /// Passes through the model; the prompt's counts as one.
    pub forward_passes: usize,
    /// Passes which brought head i's draft or an alternative to it, and with it the drafts of all heads
    /// before, for each head that was used. The first is `forward_passes`, and the sum is the number of tokens.
    pub accepted: Vec<usize>,
    /// From the start to the first token.
    pub prefill: Duration,
    /// From the first token to the end.
    pub decode: Duration,
    /// For each token the distance of the two best logits, where [`crate::GenerateOptions`] asks
    /// for it.
    pub gaps: Vec<f32>,
}

impl Generation {
    pub(crate) fn new(heads: usize) -> Self {
        Self {
            tokens: Vec::new(),
            drafted_by: Vec::new(),
            stopped_by: StoppedBy::Limit,
            forward_passes: 0,
            accepted: vec![0; heads],
            prefill: Duration::ZERO,
            decode: Duration::ZERO,
            gaps: Vec::new(),
        }
    }

    /// Tokens per pass: exactly 1 where each pass brings one, 0 where there was no pass.
    pub fn tokens_per_forward(&self) -> f64 {
        ratio(self.tokens.len(), self.forward_passes)
    }

    /// For each head that was used the share of passes in which its draft and those of all heads
    /// before were accepted; 1 for head 0. Their sum is [`Generation::tokens_per_forward`].
    pub fn acceptance(&self) -> Vec<f64> {
        self.accepted.iter().map(|&passes| ratio(passes, self.forward_passes)).collect()
    }

    /// Tokens after the first per second of decoding; 0 where there is no more than one token.
    pub fn tokens_per_second(&self) -> f64 {
        let seconds = self.decode.as_secs_f64();
        let tokens = self.tokens.len().saturating_sub(1);
        if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 }
    }
}

fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}
