//! Models from files, and to a folder.

use crate::config::ends_of_text;
use crate::heads_file::HeadsFile;
use crate::{BlockHead, HeadsConfig, ModelConfig, MultiTokenModel, Registry, Result, UnreadModel};
use foretoken_trunk::gguf::{GgufFile, GgufWeights};
use foretoken_trunk::io::{
    SafetensorsFiles, WeightReader, WeightSource, write_atomically, write_safetensors,
};
use foretoken_trunk::meta::MetaCheckpoint;
use foretoken_trunk::{Error as TrunkError, Initialiser, Parameter};
use serde_json::{Map, Value, json};
use std::path::Path;
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

pub(crate) const CONFIG: &str = "config.json";
const GENERATION: &str = "generation_config.json";
/// Keys of GGUF's tokenizers: what ends a text, a turn, a message.
pub(crate) const GGUF_ENDS: [&str; 3] = ["eos_token_id", "eot_token_id", "eom_token_id"];
/// How models spell the end of a turn of a chat.
const TURN_ENDS: [&str; 4] = ["<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>"];
/// The type of a token in a GGUF file that has no text of its own.
const CONTROL: f64 = 3.0;
pub(crate) const STOCK: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const PICKLED: &str = "pytorch_model.bin";
const PICKLED_INDEX: &str = "pytorch_model.bin.index.json";
pub(crate) const HEADS: &str = "heads.safetensors";

impl MultiTokenModel {
    /// Writes `config.json`, `model.safetensors` with its index, and `heads.safetensors` where
    /// there is more than one head. Each file is replaced atomically; the folder is made if needed.
    ///
    /// # Errors
    /// When the disk fails; the file is named.
    pub fn save(&self, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder).map_err(|source| TrunkError::io(folder, source))?;
        let stock = named(&self.stock_parameters())?;
        write_safetensors(&folder.join(STOCK), &stock)?;
        let bytes: usize =
            stock.iter().map(|(_, t)| t.numel() * t.kind().elt_size_in_bytes()).sum();
        let map: Map<String, Value> =
            stock.iter().map(|(name, _)| (name.clone(), Value::from(STOCK))).collect();
        let index = json!({"metadata": {"total_size": bytes}, "weight_map": map});
        write_json(&folder.join(INDEX), &index)?;
        if self.heads.len() > 1 {
            self.save_heads(&folder.join(HEADS))?;
        }
        write_json(&folder.join(CONFIG), &self.config.to_json(self.trunk.blocks.len()))
    }

    /// Opens a model folder with the stock head types.
    ///
    /// # Errors
    /// When a file is missing, damaged or does not match `config.json`; file and tensor are named.
    pub fn load(folder: &Path, kind: Kind, device: Device) -> Result<Self> {
        Self::load_with_registry(folder, &Registry::stock(), kind, device)
    }

    /// As [`MultiTokenModel::load`], with head types of your own.
    ///
    /// # Errors
    /// As [`MultiTokenModel::load`].
    pub fn load_with_registry(
        folder: &Path,
        registry: &Registry,
        kind: Kind,
        device: Device,
    ) -> Result<Self> {
        UnreadModel::from_folder(folder, registry, kind, device)?.read()
    }

    /// Opens the next-token model in a GGUF file, dequantised.
    ///
    /// # Errors
    /// When the file is damaged, of a family that is not supported, or holds other tensors than
    /// its model has.
    pub fn from_gguf(file: &Arc<GgufFile>, kind: Kind, device: Device) -> Result<Self> {
        UnreadModel::from_gguf(file, kind, device)?.read()
    }

    /// Opens a folder of `facebook/multi-token-prediction`: `params.json` and `consolidated.pth`.
    /// The last of its `layers` is head 0, its `extra_heads` are the block heads beyond. Which
    /// token ends a text the folder does not say: the tokenizer does.
    ///
    /// # Errors
    /// When a file is missing, damaged or split into several, holds more than tensors, or holds
    /// other tensors than the model that `params.json` describes.
    pub fn from_meta(folder: &Path, kind: Kind, device: Device) -> Result<Self> {
        UnreadModel::from_meta(folder, kind, device)?.read()
    }
}

impl UnreadModel {
    pub(crate) fn from_folder(
        folder: &Path,
        registry: &Registry,
        kind: Kind,
        device: Device,
    ) -> Result<Self> {
        let config = read_config(folder)?;
        let layers = stock_layers(&config, folder, registry)?;
        let stock = open_stock(folder, &config, layers)?;
        let heads = match config.heads.count {
            1 => None,
            _ => Some(HeadsFile::open(&folder.join(HEADS))?),
        };
        if let Some(heads) = &heads {
            heads.check_size(&config.heads, &config.architecture)?;
        }
        let init = Initialiser::unset(kind, device);
        Ok(Self::new(MultiTokenModel::build(&config, registry, &init)?, stock, heads))
    }

    /// The next-token part of a folder, whatever its `config.json` says of heads.
    pub(crate) fn stock_of_folder(
        folder: &Path,
        registry: &Registry,
        kind: Kind,
        device: Device,
    ) -> Result<Self> {
        let mut config = read_config(folder)?;
        let layers = stock_layers(&config, folder, registry)?;
        config.architecture.layers = layers;
        config.heads = HeadsConfig::new(BlockHead::KIND, 1);
        let stock = open_stock(folder, &config, layers)?;
        let init = Initialiser::unset(kind, device);
        Ok(Self::new(MultiTokenModel::build(&config, registry, &init)?, stock, None))
    }

    pub(crate) fn from_gguf(file: &Arc<GgufFile>, kind: Kind, device: Device) -> Result<Self> {
        let config = gguf_config(file)?;
        let weights = GgufWeights::new(Arc::clone(file), &config.architecture)?;
        Self::from_source(&config, Box::new(weights), kind, device)
    }

    pub(crate) fn from_meta(folder: &Path, kind: Kind, device: Device) -> Result<Self> {
        let checkpoint = MetaCheckpoint::open(folder)?;
        let config = meta_config(&checkpoint);
        Self::from_source(&config, Box::new(checkpoint.weights), kind, device)
    }

    /// A model of stock head types from one source that has all of its tensors.
    fn from_source(
        config: &ModelConfig,
        source: Box<dyn WeightSource>,
        kind: Kind,
        device: Device,
    ) -> Result<Self> {
        let sizes = &config.architecture;
        source.check_size(sizes.numbers(sizes.layers), sizes.tensors(sizes.layers))?;
        source.check_context(sizes)?;
        let init = Initialiser::unset(kind, device);
        let outline = MultiTokenModel::build(config, &Registry::stock(), &init)?;
        Ok(Self::new(outline, WeightReader::new(source), None))
    }
}

/// Tensors under the names that files know them by.
pub(crate) fn named(parameters: &[Parameter]) -> Result<Vec<(String, Tensor)>> {
    let mut all = Vec::new();
    for parameter in parameters {
        all.extend(parameter.named()?);
    }
    Ok(all)
}

/// The stock weights of a folder, `layers` layers: one file, or the shards that its index names.
fn open_stock(folder: &Path, config: &ModelConfig, layers: usize) -> Result<WeightReader> {
    let (one, index) = (folder.join(STOCK), folder.join(INDEX));
    let files = match (one.exists(), index.exists()) {
        (false, true) => SafetensorsFiles::open_index(&index)?,
        (false, false) if folder.join(PICKLED).exists() || folder.join(PICKLED_INDEX).exists() => {
            let problem = format!(
                "its weights are pickled ({PICKLED}), which can hold code and is not read: save the \
                 model as safetensors"
            );
            return Err(TrunkError::format(folder, problem).into());
        }
        _ => SafetensorsFiles::open(&[&one])?,
    };
    let mut reader = WeightReader::new(Box::new(files));
    let sizes = &config.architecture;
    reader.check_size(sizes.numbers(layers), sizes.tensors(layers))?;
    reader.check_context(sizes)?;
    // Old checkpoints store the rotary frequencies, which follow from the config.
    reader.pass_over(|name| name.ends_with(".rotary_emb.inv_freq"));
    Ok(reader)
}

/// Layers of a model's next-token part.
fn stock_layers(config: &ModelConfig, folder: &Path, registry: &Registry) -> Result<usize> {
    let HeadsConfig { kind, count, .. } = &config.heads;
    let trunk = registry
        .trunk_layers(kind, *count, config.architecture.layers)
        .map_err(|error| TrunkError::format(&folder.join(CONFIG), error.to_string()))?;
    Ok(trunk + 1)
}

/// What a GGUF file says of its model.
pub(crate) fn gguf_config(file: &GgufFile) -> Result<ModelConfig> {
    let architecture = file.architecture()?;
    let mut end_of_text = Vec::new();
    for key in GGUF_ENDS {
        let id = file.unsigned(&format!("tokenizer.ggml.{key}"))?;
        add_ends(&mut end_of_text, id.and_then(|id| u32::try_from(id).ok()));
    }
    add_ends(&mut end_of_text, turn_ends(file)?);
    Ok(ModelConfig { architecture, heads: HeadsConfig::new(BlockHead::KIND, 1), end_of_text })
}

/// The control tokens that end a turn in a file's chat template, whether its keys name them or not:
/// files of early converters do not.
fn turn_ends(file: &GgufFile) -> Result<Vec<u32>> {
    let template = file.text("tokenizer.chat_template")?.unwrap_or_default();
    let spelt: Vec<&str> = TURN_ENDS.into_iter().filter(|mark| template.contains(mark)).collect();
    if spelt.is_empty() {
        return Ok(Vec::new());
    }
    let tokens = file.texts("tokenizer.ggml.tokens")?.unwrap_or_default();
    let types = file.numbers("tokenizer.ggml.token_type")?.unwrap_or_default();
    let marks = tokens.iter().zip(types).zip(0..);
    let marks =
        marks.filter(|((token, kind), _)| *kind == CONTROL && spelt.contains(&token.as_str()));
    Ok(marks.map(|(_, id)| id).collect())
}

/// What one of Meta's checkpoints says of its model.
pub(crate) fn meta_config(checkpoint: &MetaCheckpoint) -> ModelConfig {
    let heads = HeadsConfig::new(BlockHead::KIND, checkpoint.heads);
    let architecture = checkpoint.architecture.clone();
    ModelConfig { architecture, heads, end_of_text: Vec::new() }
}

/// Reads the `config.json` of a model folder.
pub(crate) fn read_config(folder: &Path) -> Result<ModelConfig> {
    let path = folder.join(CONFIG);
    let mut config = ModelConfig::from_json(&read_object(&path)?, &path)?;
    // What ends a turn of a chat may stand there alone.
    let path = folder.join(GENERATION);
    if path.exists() {
        add_ends(&mut config.end_of_text, ends_of_text(&read_object(&path)?));
    }
    Ok(config)
}

pub(crate) fn read_object(path: &Path) -> Result<Map<String, Value>> {
    let text = std::fs::read_to_string(path).map_err(|source| TrunkError::io(path, source))?;
    Ok(serde_json::from_str(&text)
        .map_err(|error| TrunkError::format(path, format!("not a JSON object: {error}")))?)
}

/// Adds the tokens that are not there yet.
pub(crate) fn add_ends(all: &mut Vec<u32>, more: impl IntoIterator<Item = u32>) {
    for id in more {
        if !all.contains(&id) {
            all.push(id);
        }
    }
}

pub(crate) fn write_json(path: &Path, value: &Value) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|error| TrunkError::format(path, error.to_string()))?;
    text.push(b'\n');
    Ok(write_atomically(path, &text)?)
}
