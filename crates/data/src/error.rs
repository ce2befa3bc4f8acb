use std::io;
use std::path::{Path, PathBuf};

use crate::{Split, VocabularyProblem};

/// What this crate's functions return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong between text and batches.
///
/// Each message is one line that names the file or value at fault and, where there is one, the
/// way out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to read, write, rename or lock a file.
    #[error("cannot {action} {}: {source}{}", path.display(), advice(source))]
    Io {
        /// The verb: "read", "write", …
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A corpus path that does not exist.
    #[error("{} does not exist: name a folder, a text file or a .jsonl file", path.display())]
    MissingPath {
        /// The path as given.
        path: PathBuf,
    },
    /// No corpus of that name is known.
    #[error(
        "there is no corpus named `{name}`: the only one is `python-code`; for text of your own set data.path"
    )]
    UnknownCorpus {
        /// The name asked for.
        name: String,
    },
    /// The default corpus is nowhere to be found.
    #[error(
        "the python-code corpus is not here: run `cargo xtask setup`, or name a folder of .py files with --corpus or FORETOKEN_CORPUS"
    )]
    NoPythonCode,
    /// A corpus without a single document.
    #[error("{} has no text to train on: {found}", path.display())]
    EmptyCorpus {
        /// The corpus.
        path: PathBuf,
        /// What was found instead.
        found: String,
    },
    /// A file that was named as text and is none.
    #[error("{} is not UTF-8 text: byte {offset} is not part of any character", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// Where its first bad byte is, from 0.
        offset: u64,
    },
    /// A line of a `.jsonl` file that has no text to give.
    #[error("{}:{line}: {problem}", path.display())]
    JsonLine {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What is wrong with it.
        problem: String,
    },
    /// A source file that was edited while the corpus was being prepared.
    #[error("{} changed while it was being read: run the preparation again", path.display())]
    SourceChanged {
        /// The file.
        path: PathBuf,
    },
    /// A `tokenizer.json` that cannot be used.
    #[error("{} is not a tokenizer.json that can be used: {problem}", path.display())]
    TokenizerFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        problem: String,
    },
    /// A file that belongs to a `tokenizer.json` and cannot be used.
    #[error(
        "{} cannot be used: {problem}; mend it, or take it away to do without what it says",
        path.display()
    )]
    BesideTokenizer {
        /// The file: a `tokenizer_config.json` or a `chat_template.jinja`.
        path: PathBuf,
        /// Why not.
        problem: String,
    },
    /// A GGUF file's vocabulary that makes no tokenizer.
    #[error(transparent)]
    Vocabulary(#[from] VocabularyProblem),
    /// A tokenizer that a GGUF file's vocabulary cannot describe.
    #[error("GGUF has no way to describe this tokenizer: {problem}")]
    NoVocabulary {
        /// What there is no way to say.
        problem: String,
    },
    /// A chat template that is none, or that failed on a chat.
    #[error("the chat template failed: {problem}")]
    ChatTemplate {
        /// Its own message.
        problem: String,
    },
    /// The tokenizer failed on a text.
    #[error("the tokenizer failed: {problem}")]
    Tokenizing {
        /// Its own message.
        problem: String,
    },
    /// A token id that the tokenizer does not have.
    #[error("there is no token {id}: the vocabulary has {vocab_size} (0 to {})", vocab_size.saturating_sub(1))]
    UnknownToken {
        /// The id.
        id: u32,
        /// How many ids there are.
        vocab_size: usize,
    },
    /// Shares of the splits that are no shares.
    #[error(
        "the splits' shares (train {train}, validation {validation}, test {test}) must be 0 to 1 and add up to 1"
    )]
    SplitFractions {
        /// Share of the training split.
        train: f64,
        /// Share of the validation split.
        validation: f64,
        /// Share of the test split.
        test: f64,
    },
    /// A shard folder that belongs to nobody: no manifest in it.
    #[error("{} holds no prepared corpus (no manifest.json): prepare it first", dir.display())]
    NotPrepared {
        /// The folder.
        dir: PathBuf,
    },
    /// A manifest that cannot be read.
    #[error("{} cannot be used: {problem}; delete it and prepare the corpus again", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// Why not.
        problem: String,
    },
    /// A shard file that is longer or shorter than its manifest says.
    #[error(
        "{} does not match its manifest: {found} bytes instead of {expected}; delete it and prepare the corpus again",
        path.display()
    )]
    ShardLength {
        /// The shard file.
        path: PathBuf,
        /// Bytes according to the manifest.
        expected: u64,
        /// Bytes on disk.
        found: u64,
    },
    /// A shard file that another program cut short or made longer while it was mapped.
    #[error(
        "{} changed while it was in use: {found} bytes instead of {expected}; delete its folder and go on with --resume",
        path.display()
    )]
    ShardChanged {
        /// The shard file.
        path: PathBuf,
        /// Bytes when it was opened.
        expected: u64,
        /// Bytes now.
        found: u64,
    },
    /// A shard file of the right length with other content.
    #[error(
        "{} does not match its manifest: its SHA-256 is another; delete it and prepare the corpus again",
        path.display()
    )]
    ShardChecksum {
        /// The shard file.
        path: PathBuf,
    },
    /// A shard with a token outside its own vocabulary.
    #[error(
        "{} has token {token} at {index}, outside its vocabulary of {vocab_size}; delete it and prepare the corpus again",
        path.display()
    )]
    ShardToken {
        /// The shard file.
        path: PathBuf,
        /// The token.
        token: u32,
        /// Its place.
        index: usize,
        /// Size of the vocabulary in the manifest.
        vocab_size: usize,
    },
    /// A shard that was made with another tokenizer than the one at hand.
    #[error(
        "{} was prepared with {shard}, not with {wanted}: prepare the corpus with this tokenizer in another folder",
        dir.display()
    )]
    OtherVocabulary {
        /// The shard folder.
        dir: PathBuf,
        /// The tokenizer that made the shard.
        shard: String,
        /// The tokenizer at hand.
        wanted: String,
    },
    /// A range of tokens or a document that the shard does not have.
    #[error("{what} {start}..{end} is outside of the {split} split's {len}")]
    OutOfRange {
        /// "tokens" or "documents".
        what: &'static str,
        /// First one asked for.
        start: usize,
        /// One past the last one asked for.
        end: usize,
        /// How many there are.
        len: usize,
        /// The split.
        split: Split,
    },
    /// A split with fewer tokens than one window.
    #[error(
        "the {split} split in {} has {tokens} tokens and one window needs {needed}: use a larger corpus or shorter sequences",
        dir.display()
    )]
    TooSmall {
        /// The shard folder.
        dir: PathBuf,
        /// The split.
        split: Split,
        /// Tokens that it has.
        tokens: usize,
        /// Tokens that one window takes.
        needed: usize,
    },
    /// A batch shape that makes no sense or does not fit into memory.
    #[error("a batch of {rows} windows of {columns} tokens is {problem}")]
    BatchShape {
        /// Windows in a batch.
        rows: usize,
        /// Tokens in a window.
        columns: usize,
        /// "empty" or "too large".
        problem: &'static str,
    },
    /// Corpora and weights that make no mixture.
    #[error("these corpora cannot be mixed: {problem}")]
    Mixture {
        /// Why not.
        problem: String,
    },
    /// The operating system has no thread to read ahead with.
    #[error("cannot start a thread that reads batches ahead: {source}")]
    Thread {
        /// The system's reason.
        source: io::Error,
    },
    /// The code that assembles batches panicked on the thread that reads ahead.
    #[error("the thread that reads batches ahead panicked: {message}")]
    Panicked {
        /// The panic's own message.
        message: String,
    },
}

impl Error {
    /// Wraps an error of the operating system, for `map_err`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }
}

fn advice(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; free some space and run it again"
        }
        io::ErrorKind::PermissionDenied => "; check who may read and write there",
        _ => "",
    }
}
