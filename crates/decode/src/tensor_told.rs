//! What drafting heads read that are told tokens, as tensors.

use tch::Tensor;

use crate::Result;
use crate::engine::MOST_UNREAD;

/// Trunk outputs and what is told, of the last positions.
///
/// Head i reads at position t the trunk output there and what is told of position t + i. So of the
/// rows before the last i a head keeps keys and values; those of the last i it reads again, once
/// the tokens that were drafted then are known.
pub(crate) struct Told {
    /// Blocks of the trunk that what is told goes through.
    pub(crate) blocks: usize,
    /// The position of the first row below.
    start: i64,
    rows: Option<Rows>,
}

/// `[1, rows, dim]` each.
struct Rows {
    /// Trunk outputs up to the last position that was passed.
    hidden: Tensor,
    /// What is told of the same positions, and of drafts behind them.
    told: Tensor,
}

impl Told {
    pub(crate) fn new(blocks: usize) -> Self {
        Self { blocks, start: 0, rows: None }
    }

    /// Takes the rows of a pass that began at position `before`, and lets go what `heads` heads have
    /// no more use for.
    pub(crate) fn append(
        &mut self,
        before: i64,
        heads: i64,
        hidden: &Tensor,
        told: &Tensor,
    ) -> Result<()> {
        let start = (before - heads - MOST_UNREAD as i64).max(self.start);
        self.rows = Some(match &self.rows {
            None => Rows { hidden: hidden.shallow_clone(), told: told.shallow_clone() },
            Some(rows) => {
                let join = |old: &Tensor, new: &Tensor| {
                    let old = old.f_narrow(1, start - self.start, before - start)?;
                    Tensor::f_cat(&[&old, new], 1)
                };
                Rows { hidden: join(&rows.hidden, hidden)?, told: join(&rows.told, told)? }
            }
        });
        self.start = start;
        Ok(())
    }

    /// Takes what is told of a draft behind all others.
    pub(crate) fn tell(&mut self, draft: &Tensor) -> Result<()> {
        if let Some(rows) = &mut self.rows {
            rows.told = Tensor::f_cat(&[&rows.told, draft], 1)?;
        }
        Ok(())
    }

    /// Forgets all positions from `len` on.
    pub(crate) fn truncate(&mut self, len: i64) {
        if let Some(rows) = &mut self.rows {
            let count = len - self.start;
            rows.hidden = rows.hidden.narrow(1, 0, count);
            rows.told = rows.told.narrow(1, 0, count);
        }
    }

    /// Forgets all positions from `len` on, but for that at `other`, which comes to stand there.
    pub(crate) fn keep(&mut self, len: i64, other: i64) -> Result<()> {
        if let Some(rows) = &mut self.rows {
            let (count, other) = (len - self.start, other - self.start);
            for all in [&mut rows.hidden, &mut rows.told] {
                *all = with_other(all, count, other)?;
            }
        }
        Ok(())
    }

    /// What head `index` can read from position `read` on: trunk outputs and what it is told.
    pub(crate) fn rows(&self, read: i64, index: i64) -> Result<Option<(Tensor, Tensor)>> {
        let Some(Rows { hidden, told }) = &self.rows else { return Ok(None) };
        let end = hidden.size3()?.1.min(told.size3()?.1 - index);
        let first = read - self.start;
        if first < 0 || first >= end {
            return Ok(None);
        }
        let count = end - first;
        Ok(Some((hidden.f_narrow(1, first, count)?, told.f_narrow(1, first + index, count)?)))
    }
}

/// The first `count` rows of `all` `[1, rows, dim]`, and row `other` behind them.
pub(crate) fn with_other(all: &Tensor, count: i64, other: i64) -> Result<Tensor> {
    Ok(Tensor::f_cat(&[all.f_narrow(1, 0, count)?, all.f_narrow(1, other, 1)?], 1)?)
}
