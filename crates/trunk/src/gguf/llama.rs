//! A GGUF file of the Llama family as a model: its sizes, and its tensors under stock names.

use super::file::{GgufFile, GgufTensor};
use super::names::{gguf_name, stock_name};
use crate::architecture::LARGEST_SIZE;
use crate::io::WeightSource;
use crate::{Architecture, Error, Result, RopeScaling};
use foretoken_kernels::BlockFormat;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

/// Factors that Llama 3.1 and later divide the rotary frequencies by.
const ROPE_FACTORS: &str = "rope_freqs.weight";

/// The families that are read, and whether their query and key rows are stored for interleaved
/// rotary pairs (2i, 2i + 1) instead of halves (i, i + d/2).
const FAMILIES: [(&str, bool); 2] = [("llama", true), ("qwen2", false)];

impl GgufFile {
    /// The sizes of the model in this file.
    ///
    /// # Errors
    /// When the family is not supported or a key is missing or of no use.
    pub fn architecture(&self) -> Result<Architecture> {
        if let Some(parts) = self.unsigned("split.count")?.filter(|&parts| parts > 1) {
            return Err(self.error(format!(
                "GGUF: it is one of {parts} parts of a model; join them first (llama-gguf-split --merge)"
            )));
        }
        let (family, _) = self.family()?;
        let key = |name: &str| format!("{family}.{name}");
        let size = |name: &str| self.size(&key(name));
        let needed = |name: &str| {
            size(name)?.ok_or_else(|| self.error(format!("GGUF: the key {} is missing", key(name))))
        };
        for unsupported in ["expert_count", "attention.sliding_window"] {
            if size(unsupported)?.is_some_and(|n| n > 0) {
                return Err(self.error(format!("GGUF: {} is not supported", key(unsupported))));
            }
        }
        let attention_heads = needed("attention.head_count")?;
        let vocab = self.embedding_rows()?;
        let mut sizes = Architecture {
            vocab,
            dim: needed("embedding_length")?,
            layers: needed("block_count")?,
            attention_heads,
            kv_heads: size("attention.head_count_kv")?.unwrap_or(attention_heads),
            head_dim: size("attention.key_length")?.unwrap_or(0),
            ffn: needed("feed_forward_length")?,
            context: needed("context_length")?,
            rope_theta: self.number(&key("rope.freq_base"))?.unwrap_or(10_000.0),
            rope_scaling: RopeScaling::None,
            norm_eps: self
                .number(&key("attention.layer_norm_rms_epsilon"))?
                .ok_or_else(|| self.error("GGUF: the epsilon of the norms is missing"))?,
            tied: !self.tensors().contains_key("output.weight"),
            qkv_bias: self.tensors().contains_key("blk.0.attn_q.bias"),
        };
        let named = |error: Error| self.error(format!("GGUF: {error}"));
        sizes.validate().map_err(named)?;
        if size("attention.value_length")?.is_some_and(|width| width != sizes.head_width()) {
            return Err(self.error("GGUF: values of another width than keys are not supported"));
        }
        if size("rope.dimension_count")?.is_some_and(|width| width != sizes.head_width()) {
            return Err(
                self.error("GGUF: rotary positions over a part of a head are not supported")
            );
        }
        sizes.rope_scaling = self.rope_scaling(family, &sizes)?;
        sizes.validate().map_err(named)?;
        Ok(sizes)
    }

    fn family(&self) -> Result<(&'static str, bool)> {
        let name = self
            .text("general.architecture")?
            .ok_or_else(|| self.error("GGUF: the key general.architecture is missing"))?;
        FAMILIES.into_iter().find(|(family, _)| *family == name).ok_or_else(|| {
            let known: Vec<&str> = FAMILIES.iter().map(|(family, _)| *family).collect();
            let known = known.join(" and ");
            self.error(format!("the model family {name:?} is not supported, {known} are"))
        })
    }

    fn size(&self, key: &str) -> Result<Option<usize>> {
        match self.unsigned(key)? {
            Some(size) if size > LARGEST_SIZE => {
                Err(self.error(format!("GGUF: {key} is {size}, more than {LARGEST_SIZE}")))
            }
            size => Ok(size.map(|size| size as usize)),
        }
    }

    fn embedding_rows(&self) -> Result<usize> {
        match self.tensors().get("token_embd.weight").map(|tensor| tensor.shape.as_slice()) {
            Some(&[rows, _]) if rows as u64 <= LARGEST_SIZE => Ok(rows as usize),
            Some(shape) => {
                Err(self.error(format!("GGUF: token_embd.weight is no matrix but {shape:?}")))
            }
            None => Err(self.error("GGUF: the tensor token_embd.weight is missing")),
        }
    }

    fn rope_scaling(&self, family: &str, sizes: &Architecture) -> Result<RopeScaling> {
        let key = |name: &str| format!("{family}.rope.scaling.{name}");
        let factors = self.rope_factors(sizes)?;
        // Files from before there were types have a factor alone, the oldest under another name.
        let factor = match self.number(&key("factor"))? {
            None => self.number(&format!("{family}.rope.scale_linear"))?,
            factor => factor,
        };
        let without = if factor.is_some_and(|factor| factor != 1.0) { "linear" } else { "none" };
        let kind = self.text(&key("type"))?.unwrap_or_else(|| without.to_owned());
        match (kind.as_str(), factors) {
            ("none", None) => Ok(RopeScaling::None),
            ("linear", None) => {
                let factor =
                    factor.ok_or_else(|| self.error("GGUF: a linear scaling without a factor"))?;
                Ok(RopeScaling::Linear { factor })
            }
            ("none" | "llama3", Some(factors)) => RopeScaling::from_factors(&factors, sizes)
                .ok_or_else(|| {
                    self.error(format!("GGUF: {ROPE_FACTORS} is not as Llama 3 has it"))
                }),
            (other, _) => {
                Err(self.error(format!("GGUF: rotary scaling of type {other:?} is not supported")))
            }
        }
    }

    fn rope_factors(&self, sizes: &Architecture) -> Result<Option<Vec<f64>>> {
        let Some(tensor) = self.tensors().get(ROPE_FACTORS) else { return Ok(None) };
        let pairs = sizes.head_width() / 2;
        if tensor.shape != [pairs as i64] || tensor.format != BlockFormat::F32 {
            return Err(self.error(format!("GGUF: {ROPE_FACTORS} must be {pairs} numbers in F32")));
        }
        let mut factors = vec![0.0f32; pairs];
        tensor.format.dequantise(self.data(tensor), &mut factors);
        Ok(Some(factors.into_iter().map(f64::from).collect()))
    }
}

/// The weights of a GGUF file under the stock Llama names.
pub struct GgufWeights {
    file: Arc<GgufFile>,
    tensors: BTreeMap<String, Stored>,
}

struct Stored {
    tensor: GgufTensor,
    /// Coordinates of a head, where its rows lie interleaved.
    interleaved: Option<usize>,
}

impl GgufWeights {
    /// Takes a file whose sizes are known.
    ///
    /// # Errors
    /// When the family is not supported, or a tensor is called as Hugging Face calls it.
    pub fn new(file: Arc<GgufFile>, sizes: &Architecture) -> Result<Self> {
        let (_, interleaved) = file.family()?;
        if let Some((stock, gguf)) =
            file.tensors().keys().find_map(|name| Some((name, gguf_name(name)?)))
        {
            // It would be taken for the other's, whose rows may lie otherwise.
            let problem = format!("has the name of a Hugging Face file; GGUF calls it {gguf}");
            return Err(Error::tensor(file.path(), stock, &problem));
        }
        let tensors = file.tensors().iter().filter(|(name, _)| *name != ROPE_FACTORS);
        let tensors = tensors.map(|(name, tensor)| {
            let turned = interleaved && (name.contains(".attn_q.") || name.contains(".attn_k."));
            let interleaved = turned.then_some(sizes.head_width());
            (stock_name(name), Stored { tensor: tensor.clone(), interleaved })
        });
        Ok(Self { tensors: tensors.collect(), file })
    }

    fn stored(&self, name: &str) -> Result<&Stored> {
        self.tensors.get(name).ok_or_else(|| self.tensor_error(name, "is missing"))
    }

    fn tensor_error(&self, name: &str, problem: &str) -> Error {
        Error::tensor(self.file.path(), &self.own_name(name), problem)
    }

    /// Writes all numbers of a tensor to `out`, rows in stock order.
    fn dequantise(&self, stored: &Stored, out: &mut [f32]) {
        let (tensor, data) = (&stored.tensor, self.file.data(&stored.tensor));
        let Some(width) = stored.interleaved else { return tensor.format.dequantise(data, out) };
        tensor.format.dequantise(data, out);
        let row = out.len() / tensor.shape[0] as usize;
        let mut stored = vec![0.0; width * row];
        for head in out.chunks_exact_mut(width * row) {
            stored.copy_from_slice(head);
            for (i, to) in head.chunks_exact_mut(row).enumerate() {
                let (pair, second) = (i % (width / 2), i / (width / 2));
                to.copy_from_slice(&stored[(2 * pair + second) * row..][..row]);
            }
        }
    }
}

impl WeightSource for GgufWeights {
    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn path(&self, _name: &str) -> PathBuf {
        self.file.path().to_owned()
    }

    fn own_name(&self, name: &str) -> String {
        gguf_name(name).unwrap_or_else(|| name.to_owned())
    }

    fn numbers(&self) -> usize {
        let numbers = |stored: &Stored| stored.tensor.shape.iter().product::<i64>() as usize;
        self.tensors.values().map(numbers).fold(0, usize::saturating_add)
    }

    fn shape(&self, name: &str) -> Result<Vec<i64>> {
        Ok(self.stored(name)?.tensor.shape.clone())
    }

    #[allow(unsafe_code)]
    fn copy_to(&self, name: &str, view: &mut Tensor) -> Result<()> {
        let stored = self.stored(name)?;
        let len = view.numel();
        let shape = &stored.tensor.shape;
        let whole_heads = stored.interleaved.is_none_or(|w| (shape[0] as usize).is_multiple_of(w));
        if view.size() != *shape || !whole_heads {
            return Err(self.tensor_error(name, "its rows are no whole heads"));
        }
        let (rows, block) = (shape[0] as usize, stored.tensor.format.block_len());
        if stored.interleaved.is_some() && !(len / rows.max(1)).is_multiple_of(block) {
            let problem = format!("is in blocks of {block} numbers, which are of several rows");
            return Err(self.tensor_error(name, &problem));
        }
        if view.kind() == Kind::Float && view.device() == Device::Cpu && view.is_contiguous() {
            // SAFETY: a contiguous float32 tensor on the CPU is `len` numbers at its address, and
            // the caller lends it for writing.
            let out = unsafe { std::slice::from_raw_parts_mut(view.data_ptr().cast::<f32>(), len) };
            self.dequantise(stored, out);
            return Ok(());
        }
        let mut numbers = vec![0.0f32; len];
        self.dequantise(stored, &mut numbers);
        view.f_copy_(&Tensor::f_from_slice(&numbers)?.f_view(shape.as_slice())?)?;
        Ok(())
    }
}
