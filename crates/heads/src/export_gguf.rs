//! The stock part of a model as a GGUF file, which llama.cpp reads.

use crate::files::{GGUF_ENDS, add_ends, named};
use crate::{Error, MultiTokenModel, Result};
use foretoken_data::{Tokenizer, Vocabulary};
use foretoken_kernels::rotary_frequencies;
use foretoken_trunk::gguf::{GgufValue, gguf_name, write_gguf};
use foretoken_trunk::{Architecture, RopeScaling};
use std::path::Path;
use tch::{Kind, Tensor};

/// How a GGUF file stores matrices. Vectors are in float32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GgufNumbers {
    /// In float32: the file gives a float32 model back bit for bit.
    #[default]
    Float32,
    /// In float16: half the size.
    Float16,
}

/// The largest number of float16.
const LARGEST_FLOAT16: f64 = 65504.0;

type Metadata = Vec<(String, GgufValue)>;

impl MultiTokenModel {
    /// Writes trunk, head 0, norm and unembedding with the tokenizer to one file, atomically; heads
    /// beyond the first have no place in it. `name` is what llama.cpp calls the model.
    ///
    /// Our reader gives a model of the same sizes back, but for those that GGUF has in float32
    /// only: the norms' epsilon, the base of the rotary frequencies and their scaling. Llama 3's
    /// scaling is stored as factors, of which our reader makes one that gives the same frequencies.
    /// Of more than three tokens that end a text it has the first three.
    ///
    /// # Errors
    /// When the tokenizer or the rotary scaling cannot be described, a number is too large for
    /// float16, or the disk fails.
    pub fn export_gguf(
        &self,
        path: &Path,
        name: &str,
        tokenizer: &Tokenizer,
        numbers: GgufNumbers,
    ) -> Result<()> {
        let sizes = &self.config.architecture;
        let family = if sizes.qkv_bias { "qwen2" } else { "llama" };
        if sizes.qkv_bias && matches!(sizes.rope_scaling, RopeScaling::Llama3 { .. }) {
            return Err(refused("llama.cpp has no llama3 rotary scaling for the qwen2 family"));
        }
        let mut vocabulary = tokenizer.vocabulary()?;
        let (tokens, rows) = (vocabulary.tokens.len(), sizes.vocab);
        if tokens > rows {
            return Err(refused(format!("its tokenizer has {tokens} tokens, it only {rows}")));
        }
        vocabulary.pad_to(rows);
        let known = self.config.end_of_text.iter().copied().filter(|&id| (id as usize) < rows);
        let mut ends = Vec::from_iter(vocabulary.eos);
        add_ends(&mut ends, known);
        let mut metadata = vec![
            ("general.architecture".to_owned(), GgufValue::Text(family.to_owned())),
            ("general.name".to_owned(), GgufValue::Text(name.to_owned())),
            ("general.file_type".to_owned(), GgufValue::Unsigned(numbers.file_type())),
        ];
        metadata.extend(sizes_metadata(family, sizes, self.trunk.blocks.len() + 1));
        metadata.extend(tokenizer_metadata(vocabulary, &ends));
        Ok(write_gguf(path, &metadata, &self.gguf_tensors(numbers)?)?)
    }

    fn gguf_tensors(&self, numbers: GgufNumbers) -> Result<Vec<(String, Tensor)>> {
        let sizes = &self.config.architecture;
        let mut tensors = Vec::new();
        for (stock, tensor) in named(&self.stock_parameters())? {
            let name = gguf_name(&stock)
                .ok_or_else(|| refused(format!("the tensor {stock} has no name there")))?;
            let rotary = name.contains(".attn_q.") || name.contains(".attn_k.");
            let tensor = match rotary && !sizes.qkv_bias {
                true => interleaved(&tensor, sizes.head_width() as i64)?,
                false => tensor,
            };
            tensors.push((name, numbers.stored(&stock, tensor)?));
        }
        if let Some(factors) = rope_factors(sizes) {
            tensors.push(("rope_freqs.weight".to_owned(), Tensor::f_from_slice(&factors)?));
        }
        Ok(tensors)
    }
}

impl GgufNumbers {
    /// llama.cpp's number for what most of a file's tensors are in.
    fn file_type(self) -> u32 {
        match self {
            Self::Float32 => 0,
            Self::Float16 => 1,
        }
    }

    fn stored(self, name: &str, tensor: Tensor) -> Result<Tensor> {
        if self == Self::Float32 || tensor.dim() != 2 {
            return Ok(tensor);
        }
        let largest = tensor.f_abs()?.f_max()?.f_double_value(&[])?;
        if largest.is_nan() || largest > LARGEST_FLOAT16 {
            let problem = "has numbers that float16 cannot hold; write it in float32";
            return Err(refused(format!("the tensor {name} {problem}")));
        }
        Ok(tensor.f_to_kind(Kind::Half)?)
    }
}

fn refused(problem: impl Into<String>) -> Error {
    Error::Export { format: "GGUF", problem: problem.into() }
}

fn sizes_metadata(family: &str, sizes: &Architecture, blocks: usize) -> Metadata {
    let unsigned = |size: usize| GgufValue::Unsigned(size as u32);
    let width = sizes.head_width();
    let mut all = vec![
        ("block_count", unsigned(blocks)),
        ("context_length", unsigned(sizes.context)),
        ("embedding_length", unsigned(sizes.dim)),
        ("feed_forward_length", unsigned(sizes.ffn)),
        ("attention.head_count", unsigned(sizes.attention_heads)),
        ("attention.head_count_kv", unsigned(sizes.kv_heads)),
        ("attention.layer_norm_rms_epsilon", GgufValue::Float(sizes.norm_eps as f32)),
        ("rope.freq_base", GgufValue::Float(sizes.rope_theta as f32)),
        ("rope.dimension_count", unsigned(width)),
        ("vocab_size", unsigned(sizes.vocab)),
    ];
    if width.saturating_mul(sizes.attention_heads) != sizes.dim {
        all.push(("attention.key_length", unsigned(width)));
        all.push(("attention.value_length", unsigned(width)));
    }
    if let RopeScaling::Linear { factor } = sizes.rope_scaling {
        all.push(("rope.scaling.type", GgufValue::Text("linear".to_owned())));
        all.push(("rope.scaling.factor", GgufValue::Float(factor as f32)));
    }
    all.into_iter().map(|(key, value)| (format!("{family}.{key}"), value)).collect()
}

/// `ends`: the tokens that end a text, the tokenizer's first; GGUF has a place for three.
fn tokenizer_metadata(vocabulary: Vocabulary, ends: &[u32]) -> Metadata {
    let entries = [
        ("model", Some(GgufValue::Text(vocabulary.model))),
        ("pre", vocabulary.pre.map(GgufValue::Text)),
        ("tokens", Some(GgufValue::Texts(vocabulary.tokens))),
        ("scores", vocabulary.scores.map(GgufValue::Floats)),
        ("token_type", vocabulary.token_types.map(GgufValue::Integers)),
        // llama.cpp asks for the key even where nothing is merged.
        ("merges", Some(GgufValue::Texts(vocabulary.merges))),
        ("bos_token_id", vocabulary.bos.map(GgufValue::Unsigned)),
        ("unknown_token_id", vocabulary.unknown.map(GgufValue::Unsigned)),
        ("add_bos_token", vocabulary.add_bos.map(GgufValue::Flag)),
        ("add_eos_token", vocabulary.add_eos.map(GgufValue::Flag)),
        ("add_space_prefix", vocabulary.add_space_prefix.map(GgufValue::Flag)),
    ];
    let ends = GGUF_ENDS.into_iter().zip(ends).map(|(key, &id)| (key, GgufValue::Unsigned(id)));
    let entries = entries.into_iter().filter_map(|(key, value)| Some((key, value?))).chain(ends);
    let mut all: Metadata =
        entries.map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)).collect();
    let template = vocabulary.chat_template.map(GgufValue::Text);
    all.extend(template.map(|template| ("tokenizer.chat_template".to_owned(), template)));
    all
}

/// Rows of queries or keys `[rows, dim]` with the two of a rotary pair side by side, as llama.cpp
/// has them for the llama family, instead of half a head apart.
fn interleaved(tensor: &Tensor, width: i64) -> Result<Tensor> {
    let (rows, columns) = tensor.size2()?;
    let halves = tensor.f_reshape([rows / width, 2, width / 2, columns])?;
    Ok(halves.f_transpose(1, 2)?.f_reshape([rows, columns])?)
}

/// What Llama 3's scaling divides each rotary frequency by.
fn rope_factors(sizes: &Architecture) -> Option<Vec<f32>> {
    let RopeScaling::Llama3 { .. } = sizes.rope_scaling else { return None };
    let plain = rotary_frequencies(sizes.head_width(), sizes.rope_theta);
    let scaled = sizes.rotary_frequencies();
    Some(plain.iter().zip(&scaled).map(|(plain, scaled)| (plain / scaled) as f32).collect())
}
