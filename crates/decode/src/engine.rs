//! What the algorithms ask of the machinery that runs a model.

use crate::Result;

/// Most rows of a pass that stand in place of drafts.
pub(crate) const MOST_OTHERS: usize = 16;

/// Rows that a head, which drafts no further where the one before is unsure, may not have read yet:
/// more are read together, which costs little more than one.
pub(crate) const MOST_UNREAD: usize = 16;

/// Which drafts are asked for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wanted {
    /// Heads that draft at most.
    pub(crate) heads: usize,
    /// Tokens that they like next at most.
    pub(crate) others: usize,
    /// The logarithm of how likely drafts, with those before, and others have to be thought at least.
    pub(crate) least: Option<f64>,
}

impl Wanted {
    /// Whether somebody asks how likely drafts are.
    pub(crate) fn asks_likelihoods(self) -> bool {
        self.others > 0 || self.least.is_some()
    }

    /// Whether what is thought that likely, as a logarithm, is left out.
    pub(crate) fn leaves_out(self, likelihood: f64) -> bool {
        self.least.is_some_and(|least| likelihood < least)
    }
}

/// What heads draft behind a text.
#[derive(Debug, Default)]
pub(crate) struct Drafts {
    /// The best tokens of heads 1, 2, …
    pub(crate) tokens: Vec<u32>,
    /// What they like next, the likeliest first.
    pub(crate) others: Vec<Other>,
    /// Where somebody asks, for each head that drafted the logarithm of how likely it, and those
    /// before, think all drafts up to its own; the last may be too small for its draft to be above.
    pub(crate) certainties: Vec<f64>,
}

impl Drafts {
    pub(crate) fn clear(&mut self) {
        self.tokens.clear();
        self.others.clear();
        self.certainties.clear();
    }

    /// Leaves what is wanted, the likeliest others in order.
    pub(crate) fn leave(&mut self, wanted: Wanted) {
        if let Some(unsure) = self.certainties.iter().position(|&c| wanted.leaves_out(c)) {
            self.tokens.truncate(unsure);
        }
        // In place of a draft that is not there, nothing can stand.
        let drafts = self.tokens.len();
        self.others.retain(|other| !wanted.leaves_out(other.likelihood) && other.head <= drafts);
        self.others.sort_by(|a, b| b.likelihood.total_cmp(&a.likelihood));
        self.others.truncate(wanted.others);
    }
}

/// A token that may stand in place of a draft.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Other {
    /// The head whose draft it may stand for, from 1: the token's row of the pass that verifies it.
    pub(crate) head: usize,
    pub(crate) token: u32,
    /// The logarithm of how likely the heads think it, and that the drafts before are right.
    pub(crate) likelihood: f64,
}

/// A model with the caches of one text.
///
/// [`Engine::prefill`] and [`Engine::verify`] append positions. The latter's may be taken back by
/// [`Engine::keep`], as long as [`Engine::draft`] has not read them.
pub(crate) trait Engine {
    /// Forgets the text.
    fn reset(&mut self);

    /// Passes the start of a text, and gets `drafting` heads beyond head 0 ready to go on from it;
    /// returns head 0's best token after its end.
    fn prefill(&mut self, tokens: &[u32], drafting: usize) -> Result<u32>;

    /// Appends `tokens` and returns head 0's best token after each of them, then after each of
    /// `others`, which stand in place of the tokens at their rows.
    fn verify(&mut self, tokens: &[u32], others: &[Other]) -> Result<&[u32]>;

    /// Takes back all but the first `rows` tokens of the last [`Engine::verify`], and appends that of
    /// its `others`, which stood behind these.
    fn keep(&mut self, rows: usize, other: Option<usize>) -> Result<()>;

    /// Whether heads draft one after the other, each where the one before was likely enough, and not
    /// all at once.
    fn in_turn(&self) -> bool;

    /// Returns the best tokens of heads 1, 2, … after the last token, and what they like next.
    ///
    /// Comes after the [`Engine::prefill`], for no more heads than were made ready, and after every
    /// [`Engine::verify`] and [`Engine::keep`] as long as drafts are wanted.
    fn draft(&mut self, wanted: Wanted) -> Result<&Drafts>;

    /// Head 0's logits after token `row` of the last [`Engine::verify`], whose `others` come behind its
    /// tokens, or after the end of the text's start where `row` is 0 and the last was
    /// [`Engine::prefill`].
    fn logits(&mut self, row: usize, into: &mut Vec<f64>) -> Result<()>;
}
