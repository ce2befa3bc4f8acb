//! Medusa heads as vLLM reads them.

use crate::files::{CONFIG, STOCK, write_json};
use crate::{Dense, Error, HeadsConfig, MedusaHead, MultiTokenModel, Result};
use foretoken_trunk::Error as TrunkError;
use foretoken_trunk::io::write_safetensors;
use serde_json::{Value, json};
use std::path::Path;
use tch::{Kind, Tensor};

impl MultiTokenModel {
    /// Writes the heads beyond the first as a draft model for vLLM: `config.json` and
    /// `model.safetensors` in `folder`, which is made if needed. It goes with the stock part, which
    /// vLLM reads from a model folder.
    ///
    /// Tensors, for n heads beyond the first: `blocks.{0 … n−1}.layers.0.weight` `[dim, dim]` and
    /// `.bias` `[dim]`; `lm_heads.0.weight` `[vocab, dim]`, which all share. With a draft
    /// vocabulary that is `[tokens, dim]`, and `token_map` `[tokens]` has the tokens' ids.
    ///
    /// # Errors
    /// When the heads are of another type than `medusa`, there are none, or the disk fails.
    pub fn export_medusa(&self, folder: &Path) -> Result<()> {
        let layers = self.medusa_layers()?;
        let tensors = self.medusa_tensors(&layers)?;
        std::fs::create_dir_all(folder).map_err(|source| TrunkError::io(folder, source))?;
        write_safetensors(&folder.join(STOCK), &tensors)?;
        write_json(&folder.join(CONFIG), &self.medusa_config(layers.len()))
    }

    /// The layers of the heads beyond the first.
    fn medusa_layers(&self) -> Result<Vec<Dense<'_>>> {
        let refused = |problem: String| Error::Export { format: "Medusa heads", problem };
        let HeadsConfig { kind, count, .. } = &self.config.heads;
        if *count < 2 {
            return Err(refused(
                "it has no head beyond the first; join trained heads to it".into(),
            ));
        }
        if self.config.heads.drafting() < *count {
            return Err(refused(format!(
                "its heads leap (offsets {:?}), and Medusa's predict one token after the other",
                self.config.heads.offsets()
            )));
        }
        let layers = self.heads.iter().skip(1).map(|head| {
            let layer = head.as_dense().filter(|layer| layer.residual && layer.bias.is_some());
            layer.filter(|_| head.kind() == MedusaHead::KIND).ok_or_else(|| {
                refused(format!(
                    "its heads are of type \"{kind}\", and Medusa's are of type \"{}\" only",
                    MedusaHead::KIND
                ))
            })
        });
        layers.collect()
    }

    fn medusa_tensors(&self, layers: &[Dense<'_>]) -> Result<Vec<(String, Tensor)>> {
        let mut tensors = Vec::new();
        for (i, layer) in layers.iter().enumerate() {
            let name = |part: &str| format!("blocks.{i}.layers.0.{part}");
            tensors.push((name("weight"), layer.weight.detach()));
            tensors.extend(layer.bias.map(|bias| (name("bias"), bias.detach())));
        }
        let unembedding = match &self.draft_vocabulary {
            None => self.unembedding.detach(),
            Some(vocabulary) => {
                tensors.push(("token_map".to_owned(), vocabulary.to_tensor()?));
                vocabulary.unembedding().detach()
            }
        };
        tensors.push(("lm_heads.0.weight".to_owned(), unembedding));
        Ok(tensors)
    }

    /// vLLM takes any key with "num" and "heads" in it for the number of heads, and any with "num"
    /// and "layers" for the layers of one: there may be no others.
    fn medusa_config(&self, heads: usize) -> Value {
        let sizes = &self.config.architecture;
        let drafted = self.draft_vocabulary.as_ref().map_or(sizes.vocab, |v| v.tokens().len());
        let kind = match self.kind() {
            Kind::BFloat16 => "bfloat16",
            Kind::Half => "float16",
            Kind::Double => "float64",
            _ => "float32",
        };
        json!({
            "architectures": ["MedusaModel"],
            "model_type": "medusa",
            "hidden_size": sizes.dim,
            "vocab_size": sizes.vocab,
            "truncated_vocab_size": drafted,
            "num_heads": heads,
            "num_hidden_layers": 1,
            "medusa_fc_bias": true,
            "original_lm_head": true,
            "torch_dtype": kind,
        })
    }
}
