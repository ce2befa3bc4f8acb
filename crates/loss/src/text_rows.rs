//! Rows of text to learn from.

use crate::{Error, Result};
use tch::Tensor;

/// Rows of tokens, and which documents they are of.
///
/// Where documents are given, each position sees the positions of its own document alone, and a
/// target that is of another document is left out, as is everything that is of none.
///
/// ```
/// use foretoken_loss::{MultiTokenLoss, TextRows};
/// use tch::Tensor;
///
/// let tokens = Tensor::from_slice(&[5i64, 6, 7, 8, 9, 0]).view([1, 6]);
/// let documents = Tensor::from_slice(&[0i64, 0, 0, 1, 1, TextRows::PADDING]).view([1, 6]);
/// let rows = TextRows { tokens, documents: Some(documents) };
/// // Of the 4 positions that head 0 predicts from, one ends a document; head 1 looks one token on.
/// assert_eq!(MultiTokenLoss::new(2).targets(&rows)?, [3.0, 1.0]);
/// # Ok::<(), foretoken_loss::Error>(())
/// ```
#[derive(Debug)]
pub struct TextRows {
    /// `[batch, seq + reach]`, int64 ([`MultiTokenLoss::reach`](crate::MultiTokenLoss::reach)).
    pub tokens: Tensor,
    /// `[batch, seq + reach]`, int64: the document that each token is of, in any numbers that differ
    /// within a row; [`PADDING`](Self::PADDING) for a token of none.
    pub documents: Option<Tensor>,
}

impl TextRows {
    /// What [`documents`](Self::documents) says of a token that only fills its row up.
    pub const PADDING: i64 = -1;

    /// The rows in `parts` equal parts, one after the other; the last may be shorter.
    ///
    /// # Errors
    /// When `parts` is 0.
    pub fn chunks(&self, parts: usize) -> Result<Vec<Self>> {
        let cut = |tensor: &Tensor| tensor.f_chunk(parts as i64, 0);
        let tokens = cut(&self.tokens)?;
        Ok(match &self.documents {
            Some(documents) => {
                let documents = cut(documents)?.into_iter().map(Some);
                let pairs = tokens.into_iter().zip(documents);
                pairs.map(|(tokens, documents)| Self { tokens, documents }).collect()
            }
            None => tokens.into_iter().map(|tokens| Self { tokens, documents: None }).collect(),
        })
    }

    /// Makes sure that there is a document for each token.
    pub(crate) fn check(&self, documents: &Tensor) -> Result<()> {
        let (expected, found) = (self.tokens.size(), documents.size());
        if expected != found {
            return Err(Error::Documents { expected, found });
        }
        Ok(())
    }
}

impl From<&Tensor> for TextRows {
    /// Rows that are not cut into documents.
    fn from(tokens: &Tensor) -> Self {
        Self { tokens: tokens.shallow_clone(), documents: None }
    }
}

impl From<&TextRows> for TextRows {
    fn from(rows: &TextRows) -> Self {
        let documents = rows.documents.as_ref().map(Tensor::shallow_clone);
        Self { tokens: rows.tokens.shallow_clone(), documents }
    }
}
