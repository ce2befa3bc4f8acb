//! What the algorithms ask of the machinery that runs a model.

use crate::Result;

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

    /// Appends `tokens` and returns head 0's best token after each of them.
    fn verify(&mut self, tokens: &[u32]) -> Result<&[u32]>;

    /// Takes back all but the first `rows` tokens of the last [`Engine::verify`].
    fn keep(&mut self, rows: usize);

    /// Returns the best tokens of heads 1 to `heads` after the last token.
    ///
    /// Comes after the [`Engine::prefill`], for no more heads than were made ready, and after every
    /// [`Engine::verify`] and [`Engine::keep`] as long as drafts are wanted.
    fn draft(&mut self, heads: usize) -> Result<&[u32]>;

    /// Head 0's logits after token `row` of the last [`Engine::verify`], or after the end of the
    /// text's start where `row` is 0 and the last was [`Engine::prefill`].
    fn logits(&mut self, row: usize, into: &mut Vec<f64>) -> Result<()>;
}
