//! The tokens that drafts are chosen from.

use crate::{Error, Result};
use tch::{Kind, Tensor, no_grad};

/// Some tokens of the vocabulary, usually the most frequent ones: drafting heads choose among
/// these alone, with a part of the unembedding. What is drafted is verified with all of it, so
/// that the text stays the same; a token that is left out is never drafted.
#[derive(Debug)]
pub struct DraftVocabulary {
    tokens: Vec<u32>,
    /// `[tokens, dim]`: rows of the unembedding.
    unembedding: Tensor,
    /// `[vocab]`: where a token is among `tokens`, or −100 (which no loss counts).
    places: Tensor,
}

impl DraftVocabulary {
    /// The name of the tokens' tensor in a heads file.
    pub(crate) const NAME: &'static str = "draft_vocabulary";

    /// Takes the rows of `tokens` from `unembedding` `[vocab, dim]`.
    ///
    /// # Errors
    /// When there are no tokens, or they do not ascend below the vocabulary's size.
    pub(crate) fn new(tokens: Vec<u32>, unembedding: &Tensor) -> Result<Self> {
        let (vocab, _) = unembedding.size2()?;
        let ascending = tokens.windows(2).all(|pair| pair[0] < pair[1]);
        if !ascending || tokens.last().is_none_or(|&last| i64::from(last) >= vocab) {
            return Err(Error::DraftVocabulary { tokens: tokens.len(), vocab: vocab as usize });
        }
        let ids: Vec<i64> = tokens.iter().map(|&token| i64::from(token)).collect();
        let device = unembedding.device();
        let (ids, places) = no_grad(|| {
            let ids = Tensor::f_from_slice(&ids)?.f_to_device(device)?;
            let order = Tensor::f_arange(ids.numel() as i64, (Kind::Int64, device))?;
            let outside =
                Tensor::f_full([vocab], foretoken_kernels::IGNORED, (Kind::Int64, device))?;
            let places = outside.f_scatter(0, &ids, &order)?;
            Ok::<_, Error>((ids, places))
        })?;
        let unembedding = unembedding.detach().f_index_select(0, &ids)?;
        Ok(Self { tokens, unembedding, places })
    }

    /// The tokens, ascending.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Their rows of the unembedding: `[tokens, dim]`.
    pub fn unembedding(&self) -> &Tensor {
        &self.unembedding
    }

    /// Where tokens (int64, any shape) are among [`DraftVocabulary::tokens`]; −100 for those that
    /// are not.
    ///
    /// # Errors
    /// When a token is outside the model's vocabulary.
    pub fn places(&self, tokens: &Tensor) -> Result<Tensor> {
        let flat = tokens.f_reshape([-1])?;
        Ok(self.places.f_index_select(0, &flat)?.f_reshape(tokens.size())?)
    }

    /// The tokens at some places (int64, any shape).
    ///
    /// # Errors
    /// When a place is beyond the last.
    pub(crate) fn named(&self, places: &Tensor) -> Result<Tensor> {
        let ids = self.to_tensor()?.f_to_device(places.device())?;
        Ok(ids.f_index_select(0, &places.f_reshape([-1])?)?.f_reshape(places.size())?)
    }

    /// The tokens as a heads file holds them.
    pub(crate) fn to_tensor(&self) -> Result<Tensor> {
        let ids: Vec<i64> = self.tokens.iter().map(|&token| i64::from(token)).collect();
        Ok(Tensor::f_from_slice(&ids)?)
    }
}
