//! `heads.safetensors`: the heads beyond the first, and what they belong to.

use crate::files::{CONFIG, HEADS as FILE, named, read_object};
use crate::{
    BlockHead, DraftVocabulary, Error, HeadsConfig, InformedHead, LinearHead, MedusaHead,
    MultiTokenModel, Registry, Result,
};
use foretoken_trunk::gguf::GgufFile;
use foretoken_trunk::io::{SafetensorsFiles, WeightReader, WeightSource, write_safetensors_with};
use foretoken_trunk::{Architecture, Error as TrunkError, Initialiser, Parameter};
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

/// Metadata: type and count, as in `config.json`.
const HEADS: &str = "heads";
/// Metadata: what the heads were trained on, [`MultiTokenModel::stock_sha256`].
const TRUNK: &str = "trunk_sha256";

/// A heads file whose header was read.
pub(crate) struct HeadsFile {
    path: PathBuf,
    files: SafetensorsFiles,
}

impl HeadsFile {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Ok(Self { path: path.to_owned(), files: SafetensorsFiles::open(&[path])? })
    }

    /// Type and count of the heads; `None` in a file that does not say.
    pub(crate) fn heads(&self) -> Result<Option<HeadsConfig>> {
        let Some(text) = self.files.metadata(HEADS) else { return Ok(None) };
        let heads = serde_json::from_str(text).map_err(|error| {
            TrunkError::format(&self.path, format!("its metadata {HEADS}: {error}"))
        })?;
        Ok(Some(heads))
    }

    /// Opens `path`, a file or a folder with one, to put its heads on a model of these sizes.
    pub(crate) fn open_for(path: &Path, sizes: &Architecture) -> Result<(Self, HeadsConfig)> {
        let path = find(path)?;
        let file = Self::open(&path)?;
        let heads = file.heads()?.ok_or_else(|| {
            let problem = "it does not say what heads it holds: name the model folder that it is \
                           part of";
            TrunkError::format(&path, problem)
        })?;
        if heads.count < 2 || heads.count > HeadsConfig::MOST {
            let problem = format!("it says that it is for {} heads", heads.count);
            return Err(TrunkError::format(&path, problem).into());
        }
        file.check_size(&heads, sizes)?;
        Ok((file, heads))
    }

    /// Whether it says which model its heads were trained on.
    pub(crate) fn says_trunk(&self) -> bool {
        self.files.metadata(TRUNK).is_some()
    }

    /// Refuses heads that were trained on another model.
    fn check_trunk_of(&self, model: &MultiTokenModel) -> Result<()> {
        if self.says_trunk() { self.check_trunk(&model.stock_sha256()?) } else { Ok(()) }
    }

    /// Refuses heads that were trained on another model than that with this
    /// [`MultiTokenModel::stock_sha256`].
    pub(crate) fn check_trunk(&self, found: &str) -> Result<()> {
        let Some(problem) = self.other_trunk(found) else { return Ok(()) };
        let problem = format!("{problem}: train heads for this one");
        Err(TrunkError::format(&self.path, problem).into())
    }

    /// What there is to say of heads that were trained on another model than that.
    pub(crate) fn other_trunk(&self, found: &str) -> Option<String> {
        let trained_on = self.files.metadata(TRUNK).filter(|&trained_on| trained_on != found)?;
        let start = |sha256: &str| sha256.get(..12).unwrap_or(sha256).to_owned();
        Some(format!(
            "these heads were trained on another model (SHA-256 {}… of its weights, not {}…)",
            start(trained_on),
            start(found)
        ))
    }

    /// As [`WeightSource::check`]. Tensors of other shapes than the model's are heads of another.
    pub(crate) fn check(&self, parameters: &[Parameter]) -> Result<()> {
        for (name, view) in named(parameters)? {
            let (here, needed) = (self.files.shape(&name), view.size());
            if let Some(found) = here.ok().filter(|found| *found != needed) {
                let problem = format!(
                    "expected the shape {needed:?}, found {found:?}: these heads are for a model of \
                     other sizes"
                );
                return Err(TrunkError::tensor(&self.path, &name, problem).into());
            }
        }
        Ok(self.files.check(parameters, &|name| name == DraftVocabulary::NAME)?)
    }

    /// Refuses a file that is too small for such heads, before memory is taken for them.
    pub(crate) fn check_size(&self, heads: &HeadsConfig, sizes: &Architecture) -> Result<()> {
        let (numbers, tensors) = match heads.kind.as_str() {
            BlockHead::KIND | InformedHead::KIND => (sizes.block_numbers(), 9),
            MedusaHead::KIND | LinearHead::KIND => (sizes.dim.saturating_mul(sizes.dim), 1),
            // One of one's own may share tensors.
            _ => (1, 0),
        };
        let of_all = |each: usize| each.saturating_mul(heads.count.saturating_sub(1));
        if self.files.check_size(of_all(numbers), of_all(tensors)).is_ok() {
            return Ok(());
        }
        let problem = format!(
            "it has {} numbers in {} tensors, too few for {} heads of type \"{}\" on this model: it is \
             damaged, or its heads are for a smaller one",
            self.files.numbers(),
            self.files.names().len(),
            heads.count,
            heads.kind
        );
        Err(TrunkError::format(&self.path, problem).into())
    }

    /// Fills the model's heads, which are of the file's type and count.
    pub(crate) fn fill(self, model: &mut MultiTokenModel) -> Result<()> {
        let tokens = self.draft_tokens(model.config.architecture.vocab)?;
        let mut reader = self.into_reader();
        reader.fill_all(&model.head_parameters())?;
        reader.check_all_taken()?;
        model.set_draft_vocabulary(tokens)
    }

    /// The heads' weights.
    pub(crate) fn into_reader(self) -> WeightReader {
        let mut reader = WeightReader::new(Box::new(self.files));
        reader.pass_over(|name| name == DraftVocabulary::NAME);
        reader
    }

    /// The tokens that drafts are chosen from, where they are not all of `vocab`.
    pub(crate) fn draft_tokens(&self, vocab: usize) -> Result<Option<Vec<u32>>> {
        if !self.files.names().iter().any(|name| name == DraftVocabulary::NAME) {
            return Ok(None);
        }
        let wrong = || {
            let problem = format!("must be up to {vocab} token ids");
            Error::from(TrunkError::tensor(&self.path, DraftVocabulary::NAME, problem))
        };
        let &[count] = self.files.shape(DraftVocabulary::NAME)?.as_slice() else {
            return Err(wrong());
        };
        if count < 1 || count as u64 > vocab as u64 {
            return Err(wrong());
        }
        let mut ids = Tensor::f_zeros([count], (Kind::Int64, Device::Cpu))?;
        self.files.copy_to(DraftVocabulary::NAME, &mut ids)?;
        let ids = Vec::<i64>::try_from(&ids)?;
        let tokens = ids.into_iter().map(|id| u32::try_from(id).ok());
        Ok(Some(tokens.collect::<Option<Vec<u32>>>().ok_or_else(wrong)?))
    }
}

/// The heads file that is meant by `path`: itself, or the one in that folder.
fn find(path: &Path) -> Result<PathBuf> {
    let refused = |problem: &str| Err(TrunkError::format(path, problem).into());
    if path.is_dir() {
        let file = path.join(FILE);
        if file.exists() {
            return Ok(file);
        }
        let below = path.join("model");
        if below.join(FILE).exists() {
            let below = below.display();
            return refused(&format!(
                "there is no heads.safetensors in it, but in {below}: give that"
            ));
        }
        let config = read_object(&path.join(CONFIG)).unwrap_or_default();
        if config.get("model_type").is_some_and(|family| family == "medusa") {
            return refused(
                "these are heads as vLLM reads them: give the model folder that they were exported \
                 from",
            );
        }
        return refused(
            "there is no heads.safetensors in it: give a model folder of more than one head, or its \
             heads.safetensors",
        );
    }
    if path.exists() && GgufFile::open(path).is_ok() {
        return refused("a GGUF file has no place for heads: give a model folder that has some");
    }
    Ok(path.to_owned())
}

impl MultiTokenModel {
    /// Writes the heads beyond the first to a file that can be joined to the model that they were
    /// trained on, atomically.
    ///
    /// # Errors
    /// When the disk fails; the file is named.
    pub fn save_heads(&self, path: &Path) -> Result<()> {
        self.save_heads_for(path, self.stock_sha256()?)
    }

    /// As [`MultiTokenModel::save_heads`], with matrices of another kind: in bfloat16 the file has
    /// half the size, and decoding on a CPU, which packs them so anyway, drafts the same.
    ///
    /// # Errors
    /// As [`MultiTokenModel::save_heads`].
    pub fn save_heads_in(&self, kind: Kind, path: &Path) -> Result<()> {
        let tensors = named(&self.head_parameters())?;
        let tensors = tensors.into_iter().map(|(name, tensor)| match tensor.dim() {
            2 => Ok((name, tensor.f_to_kind(kind)?)),
            _ => Ok((name, tensor)),
        });
        self.write_heads(path, tensors.collect::<Result<_>>()?, self.stock_sha256()?)
    }

    /// As [`MultiTokenModel::save_heads`], where [`MultiTokenModel::stock_sha256`] is known: that
    /// of a model that stays as it is need not be computed at every checkpoint.
    ///
    /// # Errors
    /// As [`MultiTokenModel::save_heads`].
    pub fn save_heads_for(&self, path: &Path, stock_sha256: String) -> Result<()> {
        self.write_heads(path, named(&self.head_parameters())?, stock_sha256)
    }

    fn write_heads(
        &self,
        path: &Path,
        mut tensors: Vec<(String, Tensor)>,
        stock_sha256: String,
    ) -> Result<()> {
        if let Some(vocabulary) = &self.draft_vocabulary {
            tensors.push((DraftVocabulary::NAME.to_owned(), vocabulary.to_tensor()?));
        }
        let heads = serde_json::to_string(&self.config.heads)
            .map_err(|error| TrunkError::format(path, error.to_string()))?;
        let metadata = [(HEADS, heads), (TRUNK, stock_sha256)];
        Ok(write_safetensors_with(path, &tensors, &metadata)?)
    }

    /// Puts the heads in `path`, a file or a folder with one, on this model in place of its own.
    ///
    /// # Errors
    /// When the file is missing or damaged, was trained on another model, or does not say what
    /// heads it holds.
    pub fn with_heads(mut self, path: &Path, registry: &Registry) -> Result<Self> {
        let (file, heads) = HeadsFile::open_for(path, &self.config.architecture)?;
        file.check_trunk_of(&self)?;
        let init = Initialiser::unset(self.kind(), self.device());
        self.replace_heads(&heads, registry, &init)?;
        file.fill(&mut self)?;
        Ok(self)
    }

    /// Fills this model's heads from a file that [`MultiTokenModel::save_heads`] wrote for heads of
    /// the same type and count, on the same model.
    ///
    /// # Errors
    /// When the file is missing or damaged, or its heads are others.
    pub fn load_heads(&mut self, path: &Path) -> Result<()> {
        let file = HeadsFile::open(path)?;
        file.check_trunk_of(self)?;
        file.fill(self)
    }
}
