//! The sizes of a model, and their form in a Hugging Face `config.json`.

use crate::{Error, Result, RopeScaling};
use foretoken_kernels::{AttentionShape, rotary_frequencies};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Sizes of a Llama-family model.
#[derive(Clone, Debug, PartialEq)]
pub struct Architecture {
    /// Rows of the embedding and of the unembedding.
    pub vocab: usize,
    /// Width of the residual stream.
    pub dim: usize,
    /// Layers in all, as the next-token baseline counts them: trunk plus every head of one block.
    pub layers: usize,
    /// Query heads of a block's attention.
    pub attention_heads: usize,
    /// Key–value heads, a divisor of `attention_heads`.
    pub kv_heads: usize,
    /// Coordinates of an attention head; 0 stands for `dim / attention_heads`.
    pub head_dim: usize,
    /// Inner width of the feed-forward layer.
    pub ffn: usize,
    /// The most positions that the model is made for.
    pub context: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How the frequencies are stretched.
    pub rope_scaling: RopeScaling,
    /// Added to the mean square in every norm.
    pub norm_eps: f64,
    /// Whether the unembedding is the embedding.
    pub tied: bool,
    /// Whether queries, keys and values have a bias, as in Qwen2.
    pub qkv_bias: bool,
}

impl Default for Architecture {
    /// A byte model of a few hundred thousand parameters.
    fn default() -> Self {
        Self {
            vocab: 264,
            dim: 128,
            layers: 8,
            attention_heads: 4,
            kv_heads: 4,
            head_dim: 0,
            ffn: 344,
            context: 512,
            rope_theta: 10_000.0,
            rope_scaling: RopeScaling::None,
            norm_eps: 1e-5,
            tied: false,
            qkv_bias: false,
        }
    }
}

impl Architecture {
    /// How a block's attention splits its width.
    pub fn attention(&self) -> AttentionShape {
        AttentionShape {
            heads: self.attention_heads as i64,
            kv_heads: self.kv_heads as i64,
            head_dim: self.head_width() as i64,
        }
    }

    /// Coordinates of an attention head, derived where `head_dim` is 0.
    pub fn head_width(&self) -> usize {
        match self.head_dim {
            0 => self.dim / self.attention_heads.max(1),
            given => given,
        }
    }

    /// Numbers of one block.
    pub fn block_numbers(&self) -> usize {
        let width = self.head_width();
        let queries = self.attention_heads.saturating_mul(width);
        let joint = self.kv_heads.saturating_mul(2).saturating_mul(width).saturating_add(queries);
        let bias = if self.qkv_bias { joint } else { 0 };
        let rows = joint.saturating_add(queries).saturating_add(self.ffn.saturating_mul(3));
        rows.saturating_add(2).saturating_mul(self.dim).saturating_add(bias)
    }

    /// Numbers of a stock model with so many blocks.
    pub fn numbers(&self, blocks: usize) -> usize {
        let ends = if self.tied { 1usize } else { 2 };
        let ends = ends.saturating_mul(self.vocab).saturating_add(1).saturating_mul(self.dim);
        blocks.saturating_mul(self.block_numbers()).saturating_add(ends)
    }

    /// Tensors of a stock model with so many blocks, biases not counted.
    pub fn tensors(&self, blocks: usize) -> usize {
        let ends = if self.tied { 2 } else { 3 };
        blocks.saturating_mul(9).saturating_add(ends)
    }

    /// Numbers that a text of the whole context has beside the weights: the angles of its positions,
    /// and a model's keys and values.
    pub fn context_numbers(&self) -> usize {
        let joint = self.kv_heads.saturating_mul(2).saturating_mul(self.layers).saturating_add(1);
        joint.saturating_mul(self.head_width()).saturating_mul(self.context)
    }

    /// The angle between two positions for each pair of a head's coordinates.
    pub fn rotary_frequencies(&self) -> Vec<f64> {
        let mut frequencies = rotary_frequencies(self.head_width(), self.rope_theta);
        self.rope_scaling.apply(&mut frequencies);
        frequencies
    }

    /// Checks that the sizes fit together.
    ///
    /// # Errors
    /// Names the first key that does not fit, and what would.
    pub fn validate(&self) -> Result<()> {
        for (key, value) in [
            ("vocab", self.vocab),
            ("dim", self.dim),
            ("layers", self.layers),
            ("attention_heads", self.attention_heads),
            ("kv_heads", self.kv_heads),
            ("ffn", self.ffn),
            ("context", self.context),
        ] {
            if value == 0 {
                return Err(Error::config(key, "must be at least 1"));
            }
        }
        if self.head_dim == 0 && !self.dim.is_multiple_of(self.attention_heads) {
            let problem = format!(
                "{} is not divisible by attention_heads = {}",
                self.dim, self.attention_heads
            );
            return Err(Error::config("dim", problem));
        }
        if !self.head_width().is_multiple_of(2) {
            let problem = format!(
                "an attention head would have {} coordinates, but rotary positions need an even number",
                self.head_width()
            );
            return Err(Error::config("attention_heads", problem));
        }
        if !self.attention_heads.is_multiple_of(self.kv_heads) {
            let problem = format!(
                "{} does not divide attention_heads = {}",
                self.kv_heads, self.attention_heads
            );
            return Err(Error::config("kv_heads", problem));
        }
        if !(self.rope_theta > 0.0 && self.norm_eps >= 0.0) {
            return Err(Error::config("rope_theta", "must be positive, and norm_eps not negative"));
        }
        self.rope_scaling.validate()
    }

    /// The `config.json` of a `LlamaForCausalLM` with these sizes, or of a `Qwen2ForCausalLM` where
    /// there is a bias. With what a text begins the tokenizer says.
    pub fn to_llama_config(&self, end_of_text: &[u32]) -> Map<String, Value> {
        let config = json!({
            "architectures": [if self.qkv_bias { "Qwen2ForCausalLM" } else { "LlamaForCausalLM" }],
            "model_type": if self.qkv_bias { "qwen2" } else { "llama" },
            "vocab_size": self.vocab,
            "hidden_size": self.dim,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.attention_heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_width(),
            "max_position_embeddings": self.context,
            "rms_norm_eps": self.norm_eps,
            "rope_theta": self.rope_theta,
            "rope_scaling": self.rope_scaling.to_scaling(),
            "rope_parameters": self.rope_scaling.to_parameters(self.rope_theta),
            "hidden_act": "silu",
            "attention_bias": self.qkv_bias,
            "mlp_bias": false,
            "tie_word_embeddings": self.tied,
            "bos_token_id": Value::Null,
            "eos_token_id": match end_of_text {
                [] => Value::Null,
                [one] => json!(one),
                several => json!(several),
            },
            "torch_dtype": "float32",
        });
        match config {
            Value::Object(map) => map,
            _ => Map::new(),
        }
    }

    /// Reads the sizes from a Llama `config.json`; `path` is named in errors. Here
    /// `num_hidden_layers` counts what the file holds: trunk and head 0.
    ///
    /// # Errors
    /// When a key is missing or of the wrong type, or the file describes what this layer does not
    /// compute (another family, other biases than Qwen2's, rotary scaling of another kind).
    pub fn from_llama_config(config: &Map<String, Value>, path: &Path) -> Result<Self> {
        let size = |key: &str| read_size(config, key, path);
        let family = config.get("model_type").and_then(Value::as_str).unwrap_or("nothing");
        let qkv_bias = match family {
            "llama" => false,
            // A Llama, where every position sees all before it; a key left out is a window of 4,096.
            "mistral" if config.get("sliding_window").is_some_and(Value::is_null) => false,
            "mistral" => {
                let problem = "model_type is mistral, supported with sliding_window = null only";
                return Err(Error::format(path, problem));
            }
            "qwen2" => true,
            _ => {
                let problem =
                    format!("model_type is {family}, only llama, qwen2 and mistral are supported");
                return Err(Error::format(path, problem));
            }
        };
        let flag = |key: &str| config.get(key).and_then(Value::as_bool).unwrap_or(false);
        for key in ["attention_bias", "mlp_bias", "use_sliding_window"] {
            // Qwen2's bias goes without saying, and is not that of the output projection.
            if flag(key) && !(qkv_bias && key == "attention_bias") {
                return Err(Error::format(path, format!("{key} = true is not supported")));
            }
        }
        if let Some(act) = config.get("hidden_act").and_then(Value::as_str).filter(|a| *a != "silu")
        {
            return Err(Error::format(
                path,
                format!("hidden_act is {act}, only silu is supported"),
            ));
        }
        let rope = config.get("rope_parameters").and_then(Value::as_object);
        let theta =
            config.get("rope_theta").or_else(|| rope.and_then(|rope| rope.get("rope_theta")));
        let attention_heads = size("num_attention_heads")?;
        // A key may be left out; one that is there has to be of its type.
        let or = |key: &str, without: usize| match config.get(key) {
            None | Some(Value::Null) => Ok(without),
            Some(_) => size(key),
        };
        let number = |value: Option<&Value>, key: &str, without: f64| match value {
            None | Some(Value::Null) => Ok(without),
            Some(value) => value
                .as_f64()
                .ok_or_else(|| Error::format(path, format!("{key} must be a number, not {value}"))),
        };
        let sizes = Self {
            vocab: size("vocab_size")?,
            dim: size("hidden_size")?,
            layers: size("num_hidden_layers")?,
            attention_heads,
            kv_heads: or("num_key_value_heads", attention_heads)?,
            head_dim: or("head_dim", 0)?,
            ffn: size("intermediate_size")?,
            context: size("max_position_embeddings")?,
            rope_theta: number(theta, "rope_theta", 10_000.0)?,
            rope_scaling: RopeScaling::from_config(config, path)?,
            norm_eps: number(config.get("rms_norm_eps"), "rms_norm_eps", 1e-6)?,
            tied: flag("tie_word_embeddings"),
            qkv_bias,
        };
        sizes.validate().map_err(|error| Error::format(path, error.to_string()))?;
        Ok(sizes)
    }
}

/// The largest size that a config may name: keeps a hostile file from asking for all memory.
pub(crate) const LARGEST_SIZE: u64 = 1 << 24;

fn read_size(config: &Map<String, Value>, key: &str, path: &Path) -> Result<usize> {
    match config.get(key).map(Value::as_u64) {
        Some(Some(size)) if size <= LARGEST_SIZE => Ok(size as usize),
        Some(_) => Err(Error::format(path, format!("{key} must be a number up to {LARGEST_SIZE}"))),
        None => Err(Error::format(path, format!("the key {key} is missing"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_may_be_left_out_but_not_be_of_another_type() {
        let whole = Architecture::default().to_llama_config(&[]);
        let read = |config: &Map<String, Value>| {
            Architecture::from_llama_config(config, Path::new("config.json"))
        };
        let sizes = read(&whole).unwrap();
        for key in ["num_key_value_heads", "head_dim", "rope_theta", "rms_norm_eps"] {
            let mut wrong = whole.clone();
            wrong.insert(key.to_owned(), json!("four"));
            let error = read(&wrong).unwrap_err().to_string();
            assert!(error.contains("config.json") && error.contains(key), "{error}");
            for without in [None, Some(Value::Null)] {
                let mut fewer = whole.clone();
                fewer.remove(key);
                fewer.extend(without.map(|null| (key.to_owned(), null)));
                assert_eq!(read(&fewer).unwrap().layers, sizes.layers, "{key}");
            }
        }
    }
}
