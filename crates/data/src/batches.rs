//! What every source of batches has in common.

use std::fmt::Debug;

use crate::{Error, Result};

/// The shape of a batch and the seed of its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SamplerOptions {
    /// Rows in a batch, over all processes.
    pub batch: usize,
    /// Tokens in a row: the sequence and, behind it, one token for each head.
    pub columns: usize,
    /// What the order follows from.
    pub seed: u64,
}

/// A batch of rows of tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenBatch {
    /// Rows.
    pub rows: usize,
    /// Tokens in each.
    pub columns: usize,
    /// `[rows, columns]`, row after row.
    pub tokens: Vec<i64>,
    /// `[rows, columns]`: which document of its row each token is of, counted from 0, and
    /// [`PADDING`](Self::PADDING) where there is none. Attention may be kept within a document by
    /// it, and a target that is not of the position's own document be left out.
    ///
    /// The end-of-text token behind a document is of that document, so that a model learns to end
    /// a text. Present where the source was asked for it, or pads.
    pub documents: Option<Vec<u32>>,
    /// How often all rows of all corpora had been visited when the batch began.
    pub epoch: u64,
}

impl TokenBatch {
    /// What [`documents`](Self::documents) says of a token that only fills its row up. Such a
    /// token is never a target; in `tokens` it is an end-of-text token, or 0 where the vocabulary
    /// has none.
    pub const PADDING: u32 = u32::MAX;
}

/// Batches as a pure function of the step: what a trainer reads from, whatever lies behind it.
///
/// Two calls with the same step give the same batch, in any order, on any thread and in any
/// process. [`BatchSampler`](crate::BatchSampler) reads one corpus, [`Mixture`](crate::Mixture)
/// several; both leave no trace of a call, so a run that is resumed needs the step alone. A source
/// of one's own gives the first three functions.
pub trait Batches: Debug + Send + Sync {
    /// Shape and seed.
    fn options(&self) -> SamplerOptions;

    /// Rows `first..first + count` of a step's batch: what one of several processes works on.
    /// Processes that divide a batch among them see together what one would see alone, whatever
    /// their number.
    ///
    /// # Errors
    /// When the batch has no such rows, memory for them runs out, or a shard changed.
    fn rows(&self, step: u64, first: usize, count: usize) -> Result<TokenBatch>;

    /// How often each corpus had been visited as a whole when a step began.
    fn epochs(&self, step: u64) -> Vec<u64>;

    /// The whole batch of a step.
    ///
    /// # Errors
    /// As [`rows`](Self::rows).
    fn batch(&self, step: u64) -> Result<TokenBatch> {
        self.rows(step, 0, self.options().batch)
    }
}

/// A row of a batch that is being assembled. It is all padding until it is written to.
pub(crate) struct Row<'b> {
    pub(crate) tokens: &'b mut [i64],
    pub(crate) documents: Option<&'b mut [u32]>,
}

impl SamplerOptions {
    /// Makes sure that a batch of this shape can be.
    pub(crate) fn check(self) -> Result<()> {
        if self.batch == 0 || self.columns == 0 {
            return Err(self.refused(self.batch, "empty"));
        }
        let bytes = self.batch.checked_mul(self.columns).and_then(|tokens| tokens.checked_mul(8));
        if bytes.is_none_or(|bytes| bytes > isize::MAX as usize) {
            return Err(self.refused(self.batch, "too large"));
        }
        Ok(())
    }

    /// `count` rows of padding, which have to be rows of the batch.
    pub(crate) fn blank(
        self,
        first: usize,
        count: usize,
        padding: u32,
        numbered: bool,
    ) -> Result<TokenBatch> {
        if first.checked_add(count).is_none_or(|end| end > self.batch) {
            return Err(self.refused(count, "not part of the sampler's"));
        }
        let size = count * self.columns;
        let too_large = |_| self.refused(count, "too large");
        let mut tokens = Vec::new();
        tokens.try_reserve_exact(size).map_err(too_large)?;
        tokens.resize(size, i64::from(padding));
        let mut documents = None;
        if numbered {
            let numbers: &mut Vec<u32> = documents.insert(Vec::new());
            numbers.try_reserve_exact(size).map_err(too_large)?;
            numbers.resize(size, TokenBatch::PADDING);
        }
        Ok(TokenBatch { rows: count, columns: self.columns, tokens, documents, epoch: 0 })
    }

    /// The number of a batch's row among the rows of all steps.
    pub(crate) fn global_row(self, step: u64, row: usize) -> u128 {
        u128::from(step) * self.batch as u128 + row as u128
    }

    fn refused(self, rows: usize, problem: &'static str) -> Error {
        Error::BatchShape { rows, columns: self.columns, problem }
    }
}

impl TokenBatch {
    /// Its rows, to write to.
    pub(crate) fn rows_mut(&mut self) -> impl Iterator<Item = Row<'_>> {
        let columns = self.columns;
        let mut documents =
            self.documents.as_deref_mut().map(|numbers| numbers.chunks_exact_mut(columns));
        self.tokens.chunks_exact_mut(columns).map(move |tokens| Row {
            tokens,
            documents: documents.as_mut().and_then(Iterator::next),
        })
    }
}
