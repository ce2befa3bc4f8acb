//! A model as a folder.

use crate::{ModelConfig, MultiTokenModel, Registry, Result};
use foretoken_trunk::io::{WeightReader, write_atomically, write_safetensors};
use foretoken_trunk::{Error as TrunkError, Initialiser, Parameter};
use serde_json::{Map, Value, json};
use std::path::Path;
use tch::{Device, Kind, Tensor};

const CONFIG: &str = "config.json";
const STOCK: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const HEADS: &str = "heads.safetensors";

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
            write_safetensors(&folder.join(HEADS), &named(&self.head_parameters())?)?;
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
        let config = read_config(folder)?;
        let path = folder.join(CONFIG);
        let heads = &config.heads;
        registry
            .trunk_layers(&heads.kind, heads.count, config.architecture.layers)
            .map_err(|error| TrunkError::format(&path, error.to_string()))?;
        let stock = folder.join(STOCK);
        let mut reader = WeightReader::open(&[&stock])?;
        reader.check_size(estimated_bytes(&config))?;
        let model = Self::build(&config, registry, &Initialiser::unset(kind, device))?;
        fill(&mut reader, &model.stock_parameters())?;
        reader.finish()?;
        if model.heads.len() > 1 {
            let mut reader = WeightReader::open(&[&folder.join(HEADS)])?;
            fill(&mut reader, &model.head_parameters())?;
            reader.finish()?;
        }
        Ok(model)
    }
}

/// Reads the `config.json` of a model folder.
fn read_config(folder: &Path) -> Result<ModelConfig> {
    let path = folder.join(CONFIG);
    let text = std::fs::read_to_string(&path).map_err(|source| TrunkError::io(&path, source))?;
    let config: Map<String, Value> = serde_json::from_str(&text)
        .map_err(|error| TrunkError::format(&path, format!("not a JSON object: {error}")))?;
    ModelConfig::from_json(&config, &path)
}

/// Elements of the two largest stock tensors: a file far smaller than that cannot hold the model,
/// and no memory is taken for it.
fn estimated_bytes(config: &ModelConfig) -> usize {
    let sizes = &config.architecture;
    2usize.saturating_mul(sizes.vocab).saturating_mul(sizes.dim)
}

fn fill(reader: &mut WeightReader, parameters: &[Parameter]) -> Result<()> {
    for parameter in parameters {
        reader.fill(parameter)?;
    }
    Ok(())
}

fn named(parameters: &[Parameter]) -> Result<Vec<(String, Tensor)>> {
    let mut all = Vec::new();
    for parameter in parameters {
        all.extend(parameter.named()?);
    }
    Ok(all)
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|error| TrunkError::format(path, error.to_string()))?;
    text.push(b'\n');
    Ok(write_atomically(path, &text)?)
}
