//! Sizes and heads from a `params.json`.

use super::weights::MetaWeights;
use crate::architecture::LARGEST_SIZE;
use crate::{Architecture, Error, Result, RopeScaling};
use serde_json::{Map, Value};
use std::path::Path;

/// What the checkpoints were trained with, where `params.json` does not say.
const CONTEXT: usize = 4096;
/// Defaults of Meta's `ModelArgs`.
const MULTIPLE_OF: usize = 256;
const ROPE_THETA: f64 = 10_000.0;
const NORM_EPS: f64 = 1e-5;
/// The longest context that is believed: caches and tables can become as long.
const LONGEST_CONTEXT: usize = 1 << 20;
/// Keys of later models of Meta's that change what is computed.
const UNSUPPORTED: [&str; 5] =
    ["use_scaled_rope", "moe", "moe_args", "quantization_args", "lora_args"];

/// Sizes of a model and the number of its heads.
pub(super) struct MetaParams {
    /// Sizes; `layers` counts trunk and heads together, as `n_layers` does.
    pub(super) architecture: Architecture,
    /// Tokens predicted at each position.
    pub(super) heads: usize,
}

impl MetaParams {
    /// Reads the file. What it leaves open (vocabulary, heads) is taken from the tensors.
    pub(super) fn read(path: &Path, weights: &MetaWeights) -> Result<Self> {
        let text = std::fs::read(path).map_err(|source| Error::io(path, source))?;
        let keys: Map<String, Value> = serde_json::from_slice(&text)
            .map_err(|error| Error::format(path, format!("not a JSON object: {error}")))?;
        let keys = Keys { keys, path };
        keys.refuse_unsupported()?;
        let (dim, attention_heads) = (keys.needed("dim")?, keys.needed("n_heads")?);
        // -1 stands for the tokenizer's size.
        let vocab = match keys.given("vocab_size").and_then(Value::as_i64) {
            Some(..0) => None,
            _ => keys.size("vocab_size")?,
        };
        let architecture = Architecture {
            vocab: match vocab {
                Some(vocab) => vocab,
                None => weights.vocabulary()?,
            },
            dim,
            layers: keys.needed("n_layers")?,
            attention_heads,
            kv_heads: keys.size("n_kv_heads")?.unwrap_or(attention_heads),
            head_dim: 0,
            ffn: keys.ffn(dim)?,
            context: keys.size("max_seq_len")?.unwrap_or(CONTEXT).min(LONGEST_CONTEXT),
            rope_theta: keys.number("rope_theta")?.unwrap_or(ROPE_THETA),
            rope_scaling: RopeScaling::None,
            norm_eps: keys.number("norm_eps")?.unwrap_or(NORM_EPS),
            tied: false,
            qkv_bias: false,
        };
        architecture.validate().map_err(|error| keys.error(&error.to_string()))?;
        let heads = keys.size("n_future_tokens")?.unwrap_or_else(|| weights.extra_heads() + 1);
        let layers = architecture.layers;
        if heads == 0 || heads >= layers {
            return Err(keys.error(&format!(
                "{heads} heads (n_future_tokens) need n_layers to be more, it is {layers}"
            )));
        }
        Ok(Self { architecture, heads })
    }
}

struct Keys<'p> {
    keys: Map<String, Value>,
    path: &'p Path,
}

impl Keys<'_> {
    /// Inner width of the feed-forward layer: 4·dim, of which two thirds for the third matrix,
    /// scaled, rounded up to a multiple.
    fn ffn(&self, dim: usize) -> Result<usize> {
        let mut width = 8 * dim / 3;
        if let Some(multiplier) = self.number("ffn_dim_multiplier")? {
            width = (multiplier * width as f64) as usize;
        }
        let multiple = self.size("multiple_of")?.unwrap_or(MULTIPLE_OF).max(1);
        match width.checked_next_multiple_of(multiple) {
            Some(ffn) if ffn as u64 <= LARGEST_SIZE => Ok(ffn),
            _ => Err(self.error("ffn_dim_multiplier and multiple_of make the model too wide")),
        }
    }

    fn refuse_unsupported(&self) -> Result<()> {
        let used = |key: &&&str| !matches!(self.given(key), None | Some(Value::Bool(false)));
        match UNSUPPORTED.iter().find(used) {
            None => Ok(()),
            Some(key) => Err(self.error(&format!("{key} is not supported"))),
        }
    }

    /// A key's value, where it is not null.
    fn given(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).filter(|value| !value.is_null())
    }

    fn size(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.given(key) else { return Ok(None) };
        match value.as_u64() {
            Some(size) if size <= LARGEST_SIZE => Ok(Some(size as usize)),
            _ => Err(self.error(&format!("{key} must be a whole number up to {LARGEST_SIZE}"))),
        }
    }

    fn needed(&self, key: &str) -> Result<usize> {
        self.size(key)?.ok_or_else(|| self.error(&format!("the key {key} is missing")))
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.given(key) else { return Ok(None) };
        let number =
            value.as_f64().ok_or_else(|| self.error(&format!("{key} must be a number")))?;
        Ok(Some(number))
    }

    fn error(&self, problem: &str) -> Error {
        Error::format(self.path, problem)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn feed_forward_widths_are_those_of_released_models() {
        for (dim, multiple, multiplier, width) in [
            (4096, 256, None, 11_008),
            (8192, 4096, Some(1.3), 28_672),
            (4096, 1024, Some(1.3), 14_336),
        ] {
            let params = json!({"multiple_of": multiple, "ffn_dim_multiplier": multiplier});
            let keys = params.as_object().cloned().unwrap_or_default();
            let keys = Keys { keys, path: Path::new("params.json") };
            assert_eq!(keys.ffn(dim).unwrap(), width);
        }
    }
}
