//! A model as someone published it: a folder or one file, with its tokenizer.

use crate::files::{CONFIG, gguf_config, meta_config, read_config};
use crate::{Error, ModelConfig, MultiTokenModel, Registry, Result, UnreadModel};
use foretoken_data::{Tokenizer, Vocabulary};
use foretoken_trunk::Error as TrunkError;
use foretoken_trunk::gguf::GgufFile;
use foretoken_trunk::meta::MetaCheckpoint;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tch::{Device, Kind};

/// A model folder, ours or a Hugging Face one or one of Meta's multi-token checkpoints, or a GGUF
/// file.
///
/// ```no_run
/// use foretoken_heads::ModelSource;
/// use tch::{Device, Kind};
///
/// let source = ModelSource::open("SmolLM2-135M-Instruct.Q4_1.gguf".as_ref())?;
/// let model = source.model(Kind::Float, Device::Cpu)?;
/// let prompt = source.tokenizer()?.encode_with_specials("def main(")?;
/// # Ok::<(), foretoken_heads::Error>(())
/// ```
pub struct ModelSource {
    path: PathBuf,
    gguf: Option<Arc<GgufFile>>,
    /// Whether the folder is as Meta publishes its models.
    meta: bool,
}

impl ModelSource {
    /// Looks at what `path` is. A file is read as GGUF, whatever its name; a folder without a
    /// `config.json` but with a `params.json` and weights beside it as one of Meta's.
    ///
    /// # Errors
    /// When there is nothing at `path`, a file that is no whole GGUF file, or a folder of something
    /// else.
    pub fn open(path: &Path) -> Result<Self> {
        let metadata = std::fs::metadata(path).map_err(|source| TrunkError::io(path, source))?;
        let gguf = match metadata.is_dir() {
            true => None,
            false => Some(Arc::new(GgufFile::open(path)?)),
        };
        let bare = gguf.is_none() && !path.join(CONFIG).exists();
        let meta = bare && MetaCheckpoint::is_in(path);
        if bare && !meta {
            return Err(no_model(path));
        }
        Ok(Self { path: path.to_owned(), gguf, meta })
    }

    /// The model.
    ///
    /// # Errors
    /// When a file is missing, damaged, of a family that is not supported, or holds other tensors
    /// than its model has.
    pub fn model(&self, kind: Kind, device: Device) -> Result<MultiTokenModel> {
        self.model_with_registry(&Registry::stock(), kind, device)
    }

    /// As [`ModelSource::model`], with head types of your own.
    ///
    /// # Errors
    /// As [`ModelSource::model`].
    pub fn model_with_registry(
        &self,
        registry: &Registry,
        kind: Kind,
        device: Device,
    ) -> Result<MultiTokenModel> {
        self.unread_with_registry(registry, kind, device)?.read()
    }

    /// The model before its weights are read.
    ///
    /// # Errors
    /// When a file is missing, damaged, of a family that is not supported, or too small for what it
    /// says that it holds.
    pub fn unread(&self, kind: Kind, device: Device) -> Result<UnreadModel> {
        self.unread_with_registry(&Registry::stock(), kind, device)
    }

    /// As [`ModelSource::unread`], with head types of your own.
    ///
    /// # Errors
    /// As [`ModelSource::unread`].
    pub fn unread_with_registry(
        &self,
        registry: &Registry,
        kind: Kind,
        device: Device,
    ) -> Result<UnreadModel> {
        match &self.gguf {
            Some(file) => UnreadModel::from_gguf(file, kind, device),
            None if self.meta => UnreadModel::from_meta(&self.path, kind, device),
            None => UnreadModel::from_folder(&self.path, registry, kind, device),
        }
    }

    /// The model's own next-token part before its weights are read, whatever heads lie beside it: for
    /// those who put others in their place.
    ///
    /// # Errors
    /// As [`ModelSource::unread`], but for the heads.
    pub fn unread_stock(
        &self,
        registry: &Registry,
        kind: Kind,
        device: Device,
    ) -> Result<UnreadModel> {
        match &self.gguf {
            None if !self.meta => UnreadModel::stock_of_folder(&self.path, registry, kind, device),
            _ => self.unread_with_registry(registry, kind, device)?.without_heads(registry),
        }
    }

    /// Sizes and heads of the model, as its files say.
    ///
    /// # Errors
    /// When what says so is missing, damaged or of a family that is not supported.
    pub fn config(&self) -> Result<ModelConfig> {
        match &self.gguf {
            Some(file) => gguf_config(file),
            None if self.meta => Ok(meta_config(&MetaCheckpoint::open(&self.path)?)),
            None => read_config(&self.path),
        }
    }

    /// The tokenizer that belongs to the model; rows of the embedding that it has no tokens for have
    /// no text ([`Tokenizer::with_rows`]).
    ///
    /// # Errors
    /// When it is missing, cannot be made sense of or has more tokens than the model, or what says
    /// how many these are is missing, damaged or of a family that is not supported.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let (tokenizer, rows) = (self.own_tokenizer()?, self.rows()?);
        let ids = tokenizer.vocab_size();
        if ids > rows {
            let problem = format!(
                "the tokenizer has {ids} tokens, but the model only {rows}: it belongs to another \
                 model, or tokens were added to it that the model was never given rows for"
            );
            return Err(TrunkError::format(&self.path, problem).into());
        }
        Ok(tokenizer.with_rows(rows))
    }

    /// Rows of the embedding. (A GGUF's whole config goes through its vocabulary.)
    fn rows(&self) -> Result<usize> {
        match &self.gguf {
            Some(file) => Ok(file.architecture()?.vocab),
            None => Ok(self.config()?.architecture.vocab),
        }
    }

    fn own_tokenizer(&self) -> Result<Tokenizer> {
        let Some(file) = &self.gguf else {
            let path = self.path.join("tokenizer.json");
            if self.meta && !path.exists() {
                let problem = "it is missing: Meta's tokenizer.model, a SentencePiece file, is not \
                               read; convert it to a tokenizer.json first and put that here";
                return Err(TrunkError::format(&path, problem).into());
            }
            return Ok(Tokenizer::from_file(&path)?);
        };
        Tokenizer::from_vocabulary(&vocabulary(file)?).map_err(|error| {
            Error::Trunk(file.error(format!("its tokenizer cannot be used: {error}")))
        })
    }
}

/// What there is to say of a folder that is no model's.
fn no_model(folder: &Path) -> Error {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let gguf = files
        .map(|entry| entry.file_name())
        .filter(|name| Path::new(name).extension().is_some_and(|end| end == "gguf"))
        .min();
    let below = Some(folder.join("model")).filter(|below| below.join(CONFIG).exists());
    let advice = match below.or(gguf.map(|file| folder.join(file))) {
        Some(path) => format!("give {}", path.display()),
        None => "give a model folder or a GGUF file".to_owned(),
    };
    TrunkError::format(folder, format!("no model folder, it has no {CONFIG}: {advice}")).into()
}

/// What a file's metadata says of its tokenizer.
fn vocabulary(file: &GgufFile) -> Result<Vocabulary> {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let missing = |name: &str| file.error(format!("GGUF: the key {} is missing", key(name)));
    let id = |name: &str| -> Result<Option<u32>> {
        let Some(id) = file.unsigned(&key(name))? else { return Ok(None) };
        let id = u32::try_from(id)
            .map_err(|_| file.error(format!("GGUF: the key {} is {id}: no token's", key(name))))?;
        Ok(Some(id))
    };
    Ok(Vocabulary {
        model: file.text(&key("model"))?.ok_or_else(|| missing("model"))?,
        pre: file.text(&key("pre"))?,
        tokens: file.texts(&key("tokens"))?.ok_or_else(|| missing("tokens"))?,
        token_types: file
            .numbers(&key("token_type"))?
            .map(|types| types.into_iter().map(|kind| kind as i32).collect()),
        scores: file
            .numbers(&key("scores"))?
            .map(|scores| scores.into_iter().map(|score| score as f32).collect()),
        merges: file.texts(&key("merges"))?.unwrap_or_default(),
        bos: id("bos_token_id")?,
        eos: id("eos_token_id")?,
        unknown: id("unknown_token_id")?,
        add_bos: file.flag(&key("add_bos_token"))?,
        add_eos: file.flag(&key("add_eos_token"))?,
        add_space_prefix: file.flag(&key("add_space_prefix"))?,
        chat_template: file.text("tokenizer.chat_template")?,
    })
}
