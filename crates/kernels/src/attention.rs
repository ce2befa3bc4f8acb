//! Grouped-query causal attention with rotary positions, for whole sequences and behind a cache.

use crate::buffers::{SharedRows, floats, floats_mut, for_row_ranges, fusable, half_on_cpu};
use crate::rotary::Angles;
use crate::simd::rotate_halves;
use crate::{Error, KvCache, Result, Rotary, custom_gradient};
use tch::{Kind, Tensor, no_grad};

/// How an attention layer splits its width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: i64,
    /// Key–value heads, a divisor of `heads`; each serves `heads / kv_heads` query heads.
    pub kv_heads: i64,
    /// Coordinates of a head.
    pub head_dim: i64,
}

impl AttentionShape {
    /// Width of the joint projection: queries, then keys, then values.
    pub fn qkv_width(&self) -> i64 {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    fn check(&self, qkv: &Tensor) -> Result<(i64, i64)> {
        match *qkv.size() {
            [batch, seq, width] if width == self.qkv_width() => Ok((batch, seq)),
            _ => Err(Error::Shape {
                what: "the joint projection of an attention layer",
                expected: format!("[batch, seq, {}]", self.qkv_width()),
                found: format!("{:?}", qkv.size()),
            }),
        }
    }

    /// The joint projection as queries and keys, which `turn` turns together, and values:
    /// `[batch, (kv_)heads, seq, head_dim]`.
    fn split(
        &self,
        qkv: &Tensor,
        turn: impl FnOnce(Tensor) -> Result<Tensor>,
    ) -> Result<[Tensor; 3]> {
        let (batch, seq, _) = qkv.size3()?;
        let turned = self.heads + self.kv_heads;
        let all =
            qkv.f_view([batch, seq, turned + self.kv_heads, self.head_dim])?.f_transpose(1, 2)?;
        let both = turn(all.f_narrow(1, 0, turned)?)?;
        Ok([
            both.f_narrow(1, 0, self.heads)?,
            both.f_narrow(1, self.heads, self.kv_heads)?,
            all.f_narrow(1, turned, self.kv_heads)?,
        ])
    }

    /// Repeats key or value heads for the query heads that they serve.
    fn repeat(&self, x: &Tensor) -> Result<Tensor> {
        let groups = self.heads / self.kv_heads;
        if groups == 1 {
            return Ok(x.shallow_clone());
        }
        let (batch, kv, seq, dim) = x.size4()?;
        Ok(x.f_unsqueeze(2)?
            .f_expand([batch, kv, groups, seq, dim], false)?
            .f_reshape([batch, self.heads, seq, dim])?)
    }

    /// The transpose of `repeat`: sums over the query heads that share a key or value head.
    fn sum_groups(&self, x: Tensor) -> Result<Tensor> {
        let groups = self.heads / self.kv_heads;
        if groups == 1 {
            return Ok(x);
        }
        let (batch, _, seq, dim) = x.size4()?;
        Ok(x.f_reshape([batch, self.kv_heads, groups, seq, dim])?.f_sum_dim_intlist(
            &[2i64][..],
            false,
            x.kind(),
        )?)
    }
}

/// softmax(q kᵀ / √d + causal mask) v with rotary positions from 0, d the width of a head. Rows of
/// several documents can be kept apart ([`Rotary::within_documents`]).
///
/// `qkv`: the joint projection, `[batch, seq, (heads + 2·kv_heads)·head_dim]`, taken by value
/// because the fused path turns its queries and keys in place; returns `[batch, seq,
/// heads·head_dim]`.
///
/// # Errors
/// When the width does not match `shape`, the sequence is longer than the rotary tables, or these
/// are for other rows of documents.
#[allow(clippy::needless_pass_by_value)] // the caller's tensor is spent
pub fn causal_attention(qkv: Tensor, shape: AttentionShape, rotary: &Rotary) -> Result<Tensor> {
    let (batch, seq) = shape.check(&qkv)?;
    let Angles { cos, sin } = rotary.reaching(seq)?;
    if half_on_cpu(&qkv) {
        let wide = causal_attention(qkv.f_to_kind(Kind::Float)?, shape, rotary)?;
        return Ok(wide.f_to_kind(qkv.kind())?);
    }
    if !fusable(&[&qkv, &cos]) {
        return causal_attention_reference(&qkv, shape, rotary);
    }
    let mask = rotary.mask(batch, seq)?;
    let mut turned = qkv.detach().contiguous();
    turn(&mut turned, shape, &cos, &sin, 1.0);
    let [q, k, v] = shape.split(&turned, Ok)?;
    let (k, v) = (shape.repeat(&k)?, shape.repeat(&v)?);
    let (out, log_sums) = no_grad(|| {
        Tensor::f_internal_scaled_dot_product_flash_attention_for_cpu(
            &q,
            &k,
            &v,
            0.0,
            true,
            mask.as_ref(),
            None,
        )
    })?;
    let width = shape.heads * shape.head_dim;
    let y = out.f_transpose(1, 2)?.f_reshape([batch, seq, width])?.detach();
    custom_gradient(&[&qkv], &[&y], move |gradients| {
        let Some(dy) = &gradients[0] else { return Ok(vec![None]) };
        let dy = dy.f_reshape([batch, seq, shape.heads, shape.head_dim])?.f_transpose(1, 2)?;
        let (dq, dk, dv) = Tensor::f_internal_scaled_dot_product_flash_attention_for_cpu_backward(
            &dy,
            &q,
            &k,
            &v,
            &out,
            &log_sums,
            0.0,
            true,
            mask.as_ref(),
            None,
        )?;
        let parts = [dq, shape.sum_groups(dk)?, shape.sum_groups(dv)?];
        let mut dqkv = Tensor::f_cat(&parts.map(|t| t.transpose(1, 2)), 2)?.f_reshape([
            batch,
            seq,
            shape.qkv_width(),
        ])?;
        turn(&mut dqkv, shape, &cos, &sin, -1.0);
        Ok(vec![Some(dqkv)])
    })?;
    Ok(y)
}

/// Turns the queries and keys of a joint projection in place; `sign` −1 turns back.
fn turn(qkv: &mut Tensor, shape: AttentionShape, cos: &Tensor, sin: &Tensor, sign: f32) {
    let size = qkv.size();
    let (rows, seq) = ((size[0] * size[1]) as usize, size[1] as usize);
    let (width, head_dim) = (shape.qkv_width() as usize, shape.head_dim as usize);
    let turned_width = (shape.heads + shape.kv_heads) as usize * head_dim;
    let half = head_dim / 2;
    let (cos, sin) = (floats(cos), floats(sin));
    let data = SharedRows::new(floats_mut(qkv), width);
    for_row_ranges(rows, width, |_, range| {
        let block = data.range(&range);
        for (i, row) in range.enumerate() {
            let at = (row % seq) * half;
            let (cos, sin) = (&cos[at..][..half], &sin[at..][..half]);
            for head in block[i * width..][..turned_width].chunks_exact_mut(head_dim) {
                let (a, b) = head.split_at_mut(half);
                rotate_halves(a, b, cos, sin, sign);
            }
        }
    });
}

/// [`causal_attention`] in libtorch's plain operators, for any kind and device.
///
/// # Errors
/// As for [`causal_attention`].
pub fn causal_attention_reference(
    qkv: &Tensor,
    shape: AttentionShape,
    rotary: &Rotary,
) -> Result<Tensor> {
    let (batch, seq) = shape.check(qkv)?;
    let [q, k, v] = shape.split(qkv, |both| rotary.apply(&both, 0))?;
    // The operator takes a mask or the word "causal", not both.
    let mask = match rotary.mask(batch, seq)? {
        Some(apart) => {
            let future = Tensor::f_ones([seq, seq], (Kind::Bool, qkv.device()))?.f_triu(1)?;
            Some(apart.f_masked_fill(&future, f64::NEG_INFINITY)?.f_to_kind(qkv.kind())?)
        }
        None => None,
    };
    let causal = mask.is_none();
    let (k, v) = (shape.repeat(&k)?, shape.repeat(&v)?);
    let out = Tensor::f_scaled_dot_product_attention(
        &q,
        &k,
        &v,
        mask.as_ref(),
        0.0,
        causal,
        None,
        false,
    )?;
    Ok(out.f_transpose(1, 2)?.f_reshape([batch, seq, shape.heads * shape.head_dim])?)
}

/// Attention of new positions over a cache, to which they are appended.
///
/// `qkv`: `[batch, new, …]` as in [`causal_attention`]; position of the first row = `cache.len()`.
/// Row i sees the cache and the new rows up to itself, unless the cache was told of others beside
/// them ([`KvCache::branch`]). Returns `[batch, new, heads·head_dim]`.
///
/// # Errors
/// When the width does not match, or cache or rotary tables are too short; the cache holds what it
/// held then.
pub fn cached_attention(
    qkv: &Tensor,
    shape: AttentionShape,
    rotary: &Rotary,
    cache: &mut KvCache,
) -> Result<Tensor> {
    let branch = cache.take_branch();
    let (batch, new) = shape.check(qkv)?;
    let start = cache.len();
    let [q, k, v] = shape.split(qkv, |both| match &branch {
        None => rotary.apply(&both, start),
        Some(branch) => {
            branch.check(start, new)?;
            rotary.apply_at(&both, branch.positions(), branch.end())
        }
    })?;
    let (keys, values) = cache.append(&k, &v)?;
    // Queries that share a key head are its rows: nothing of the cache is copied.
    let AttentionShape { heads, kv_heads, head_dim } = shape;
    let (groups, total) = (heads / kv_heads, start + new);
    let q = q.f_reshape([batch, kv_heads, groups * new, head_dim])?;
    if new == 1 {
        // Nothing is masked: the fused operator reads the cache where it lies, and copies nothing.
        let out = Tensor::f_scaled_dot_product_attention(
            &q,
            &keys,
            &values,
            None::<&Tensor>,
            0.0,
            false,
            None,
            false,
        )?;
        return Ok(out.f_reshape([batch, 1, heads * head_dim])?);
    }
    let scores = q.f_matmul(&keys.f_transpose(-1, -2)?)? / (head_dim as f64).sqrt();
    let unseen = match &branch {
        None => Tensor::f_ones([new, total], (Kind::Bool, qkv.device()))?.f_triu(start + 1)?,
        Some(branch) => branch.unseen().shallow_clone(),
    };
    let apart = scores.f_view([batch, kv_heads, groups, new, total])?;
    let scores =
        apart.f_masked_fill(&unseen, f64::NEG_INFINITY)?.f_view(scores.size().as_slice())?;
    let out = scores.f_softmax(-1, qkv.kind())?.f_matmul(&values)?;
    let out = out.f_view([batch, heads, new, head_dim])?.f_transpose(1, 2)?;
    Ok(out.f_reshape([batch, new, heads * head_dim])?)
}
