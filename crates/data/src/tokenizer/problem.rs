//! What can be wrong with a vocabulary.

/// Why a [`Vocabulary`](crate::Vocabulary) makes no tokenizer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VocabularyProblem {
    /// Not a single token.
    #[error("the vocabulary has no tokens")]
    Empty,
    /// A kind of tokenizer that is not built here.
    #[error("a tokenizer of the kind `{model}` cannot be made: `gpt2` and `llama` can")]
    UnknownModel {
        /// The kind as the file names it.
        model: String,
    },
    /// A way to cut text that is not known.
    #[error("the pre-tokenizer `{name}` is not known: {known} are")]
    UnknownPreTokenizer {
        /// The name in the file.
        name: String,
        /// The names that are known, in one line.
        known: String,
    },
    /// One spelling for two ids.
    #[error("tokens {first} and {second} are both `{token}`")]
    DuplicateToken {
        /// The spelling.
        token: String,
        /// The smaller id.
        first: usize,
        /// The larger id.
        second: usize,
    },
    /// A token that no model has a use for.
    #[error("token {id} has {bytes} bytes and may have {most} at most")]
    LongToken {
        /// The token's id.
        id: usize,
        /// Bytes of its spelling.
        bytes: usize,
        /// Bytes that it may have.
        most: usize,
    },
    /// More control and user-defined tokens than can be looked for in a text.
    #[error("{found} tokens are control or user-defined ones, and {most} may be at most")]
    TooManyAdded {
        /// How many there are.
        found: usize,
        /// How many there may be.
        most: usize,
    },
    /// A list that belongs to the tokens and has another length.
    #[error("there are {found} {what} for {tokens} tokens")]
    OtherLength {
        /// "token types" or "scores".
        what: &'static str,
        /// Entries of the list.
        found: usize,
        /// Tokens.
        tokens: usize,
    },
    /// A token type with no meaning.
    #[error("token {id} has the type {found}: 0 to 6 are known")]
    UnknownType {
        /// The token's id.
        id: usize,
        /// Its type.
        found: i32,
    },
    /// A sentence-piece vocabulary with nothing to order its merges by.
    #[error("a vocabulary of the kind `llama` needs scores or merges, and has neither")]
    NoScores,
    /// A merge that is not two tokens with a space between them.
    #[error("merge {index}, `{merge}`, is not two tokens with a space between them")]
    MalformedMerge {
        /// Its place, from 0.
        index: usize,
        /// The merge.
        merge: String,
    },
    /// A merge of, or into, a token that the vocabulary lacks.
    #[error("merge {index} needs the token `{token}`, which the vocabulary does not have")]
    MergeOfUnknown {
        /// Its place, from 0.
        index: usize,
        /// The missing token.
        token: String,
    },
    /// A vocabulary made so that its merges outgrow it.
    #[error(
        "the pieces fit together in more ways than a real vocabulary's do: over {most} bytes of merges"
    )]
    TooManyMerges {
        /// Bytes of merges at which the search was given up.
        most: usize,
    },
    /// A special token outside the vocabulary.
    #[error("the {what} token is {id}, and the vocabulary has {tokens} tokens")]
    IdOutOfRange {
        /// "begin-of-text", "end-of-text" or "unknown".
        what: &'static str,
        /// The id.
        id: u32,
        /// Tokens in the vocabulary.
        tokens: usize,
    },
    /// The `tokenizers` library does not take what was built.
    #[error("the vocabulary makes no tokenizer: {problem}")]
    Refused {
        /// Its own message.
        problem: String,
    },
}
