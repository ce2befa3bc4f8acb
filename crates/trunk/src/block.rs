//! One Llama layer.

use crate::{Architecture, Initialiser, Parameter, Result, Role};
use foretoken_kernels::{
    AttentionShape, KvCache, Rotary, cached_attention, causal_attention, linear, linear_add,
    linear_bias, rms_norm, swiglu,
};
use tch::{Tensor, no_grad};

/// A pre-norm transformer block:
///
/// x ← x + attention(norm(x)), x ← x + down(silu(gate(norm(x))) · up(norm(x))).
///
/// Projections that share an input are stored joined, row over row, under their stock names in
/// [`Block::parameters`].
#[derive(Debug)]
pub struct Block {
    /// `[dim]`
    pub input_layernorm: Tensor,
    /// `[(heads + 2·kv_heads)·head_dim, dim]`: queries, keys, values
    pub qkv_proj: Tensor,
    /// `[(heads + 2·kv_heads)·head_dim]`, in families that add one, such as Qwen2
    pub qkv_bias: Option<Tensor>,
    /// `[dim, heads·head_dim]`
    pub o_proj: Tensor,
    /// `[dim]`
    pub post_attention_layernorm: Tensor,
    /// `[2·ffn, dim]`: gate, up
    pub gate_up_proj: Tensor,
    /// `[dim, ffn]`
    pub down_proj: Tensor,
    /// How the attention splits its width.
    pub attention: AttentionShape,
    /// Added to the mean square in the norms.
    pub norm_eps: f64,
}

impl Block {
    /// A block with first weights from `init`.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn new(sizes: &Architecture, init: &Initialiser) -> Result<Self> {
        let (dim, ffn) = (sizes.dim as i64, sizes.ffn as i64);
        let attention = sizes.attention();
        Ok(Self {
            input_layernorm: init.norm(dim)?,
            qkv_proj: init.matrix(attention.qkv_width(), dim)?,
            qkv_bias: match sizes.qkv_bias {
                true => Some(init.bias(attention.qkv_width())?),
                false => None,
            },
            o_proj: init.residual_matrix(dim, attention.heads * attention.head_dim)?,
            post_attention_layernorm: init.norm(dim)?,
            gate_up_proj: init.matrix(2 * ffn, dim)?,
            down_proj: init.residual_matrix(dim, ffn)?,
            attention,
            norm_eps: sizes.norm_eps,
        })
    }

    /// The block's output for `x` `[batch, seq, dim]`.
    ///
    /// Without a cache the rows are positions 0, 1, …; with one they follow what it holds and are
    /// appended to it.
    ///
    /// # Errors
    /// When shapes differ or positions run past the cache or the rotary tables.
    pub fn forward(
        &self,
        x: &Tensor,
        rotary: &Rotary,
        cache: Option<&mut KvCache>,
    ) -> Result<Tensor> {
        let normed = rms_norm(x, &self.input_layernorm, self.norm_eps)?;
        let qkv = match &self.qkv_bias {
            None => linear(&normed, &self.qkv_proj)?,
            Some(bias) => linear_bias(&normed, &self.qkv_proj, bias)?,
        };
        let mixed = match cache {
            None => causal_attention(qkv, self.attention, rotary)?,
            Some(cache) => cached_attention(&qkv, self.attention, rotary, cache)?,
        };
        let x = linear_add(&mixed, &self.o_proj, x)?;
        let normed = rms_norm(&x, &self.post_attention_layernorm, self.norm_eps)?;
        let gated = swiglu(&linear(&normed, &self.gate_up_proj)?)?;
        Ok(linear_add(&gated, &self.down_proj, &x)?)
    }

    /// An empty cache for `batch` sequences of up to `capacity` positions.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn cache(&self, batch: i64, capacity: i64) -> Result<KvCache> {
        let (shape, weight) = (self.attention, &self.qkv_proj);
        let (kind, device) = (weight.kind(), weight.device());
        Ok(KvCache::new(batch, shape.kv_heads, capacity, shape.head_dim, kind, device)?)
    }

    /// Takes over the weights of `other`, a block of the same sizes.
    ///
    /// # Errors
    /// When the sizes differ.
    pub fn copy_weights(&self, other: &Self) -> Result<()> {
        no_grad(|| {
            for (ours, theirs) in self.parameters("").into_iter().zip(other.parameters("")) {
                ours.tensor.shallow_clone().f_copy_(&theirs.tensor)?;
            }
            Ok(())
        })
    }

    /// The weights under the names that they have inside a stock Llama layer, each after `prefix`
    /// (such as `model.layers.3.`).
    pub fn parameters(&self, prefix: &str) -> Vec<Parameter> {
        let AttentionShape { heads, kv_heads, head_dim } = self.attention;
        let ffn = self.down_proj.size()[1];
        let name = |stock: &str| format!("{prefix}{stock}.weight");
        let mut all = vec![
            Parameter::whole(&self.input_layernorm, Role::Vector, name("input_layernorm")),
            Parameter::new(
                &self.qkv_proj,
                Role::Matrix,
                [
                    (name("self_attn.q_proj"), heads * head_dim),
                    (name("self_attn.k_proj"), kv_heads * head_dim),
                    (name("self_attn.v_proj"), kv_heads * head_dim),
                ],
            ),
            Parameter::whole(&self.o_proj, Role::Matrix, name("self_attn.o_proj")),
            Parameter::whole(
                &self.post_attention_layernorm,
                Role::Vector,
                name("post_attention_layernorm"),
            ),
            Parameter::new(
                &self.gate_up_proj,
                Role::Matrix,
                [(name("mlp.gate_proj"), ffn), (name("mlp.up_proj"), ffn)],
            ),
            Parameter::whole(&self.down_proj, Role::Matrix, name("mlp.down_proj")),
        ];
        if let Some(bias) = &self.qkv_bias {
            let name = |part: &str| format!("{prefix}self_attn.{part}_proj.bias");
            let parts = [
                (name("q"), heads * head_dim),
                (name("k"), kv_heads * head_dim),
                (name("v"), kv_heads * head_dim),
            ];
            all.push(Parameter::new(bias, Role::Vector, parts));
        }
        all
    }
}
