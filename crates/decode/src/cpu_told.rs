//! What drafting heads read that are told tokens, for the CPU's own engine.

use foretoken_kernels::cpu::{BlockWeights, Real, TokenWeights};

use crate::engine::MOST_UNREAD;

/// What drafting heads read that are told the tokens before their targets.
///
/// Head i reads at position t the trunk output there and what is told of position t + i. So of the
/// rows before the last i a head keeps keys and values; those of the last i it reads again, once
/// the tokens that were drafted then are known.
pub(crate) struct Told<T> {
    /// Blocks of the trunk that what is told goes through.
    pub(crate) blocks: usize,
    /// These blocks in the drafts' format, where the trunk's own are in full.
    pub(crate) trunk: Vec<BlockWeights<T>>,
    pub(crate) heads: Vec<TokenWeights<T>>,
    dim: usize,
    /// The position of the first row below.
    start: usize,
    /// Trunk outputs up to the last position that was passed.
    hidden: Vec<T>,
    /// What is told of the same positions, and of drafts behind them.
    states: Vec<T>,
    /// The same two of the rows of the last pass that stood in place of others.
    others: [Vec<T>; 2],
}

impl<T: Real> Told<T> {
    pub(crate) fn new(blocks: usize, dim: usize) -> Self {
        let (trunk, heads) = (Vec::new(), Vec::new());
        let (hidden, states) = (Vec::new(), Vec::new());
        let others = [Vec::new(), Vec::new()];
        Self { blocks, trunk, heads, dim, start: 0, hidden, states, others }
    }

    /// Lets go what `heads` heads have no more use for before a pass that begins at position `next`.
    pub(crate) fn forget(&mut self, next: usize, heads: usize) {
        let start = next.saturating_sub(heads + MOST_UNREAD).max(self.start);
        let rows = (start - self.start) * self.dim;
        self.hidden.drain(..rows.min(self.hidden.len()));
        self.states.drain(..rows.min(self.states.len()));
        self.start = start;
    }

    /// Takes a row of trunk output.
    pub(crate) fn push_hidden(&mut self, row: &[T]) {
        self.hidden.extend_from_slice(row);
    }

    /// Takes a row of what is told.
    pub(crate) fn push_told(&mut self, row: &[T]) {
        self.states.extend_from_slice(row);
    }

    /// Sets aside what is told of a row that stands in place of another.
    pub(crate) fn others_told(&mut self, row: &[T]) {
        self.others[1].extend_from_slice(row);
    }

    /// Sets aside the trunk output of a row that stands in place of another.
    pub(crate) fn others_hidden(&mut self, row: &[T]) {
        self.others[0].extend_from_slice(row);
    }

    /// Forgets what was set aside.
    pub(crate) fn forget_others(&mut self) {
        self.others.iter_mut().for_each(Vec::clear);
    }

    /// Takes the rows of one of the others behind the last position.
    pub(crate) fn take_other(&mut self, other: usize) {
        for (rows, others) in [&mut self.hidden, &mut self.states].into_iter().zip(&self.others) {
            rows.extend_from_slice(&others[other * self.dim..][..self.dim]);
        }
    }

    /// Forgets all positions from `len` on.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.start = self.start.min(len);
        let rows = (len - self.start) * self.dim;
        self.hidden.truncate(rows);
        self.states.truncate(rows);
    }

    /// Rows from position `read` on that head `index` can read.
    pub(crate) fn rows(&self, read: usize, index: usize) -> usize {
        if read < self.start {
            return 0;
        }
        let end = |rows: &[T]| self.start + rows.len() / self.dim;
        end(&self.hidden).min(end(&self.states).saturating_sub(index)).saturating_sub(read)
    }

    pub(crate) fn hidden(&self, position: usize) -> &[T] {
        &self.hidden[(position - self.start) * self.dim..][..self.dim]
    }

    pub(crate) fn told(&self, position: usize) -> &[T] {
        &self.states[(position - self.start) * self.dim..][..self.dim]
    }
}
