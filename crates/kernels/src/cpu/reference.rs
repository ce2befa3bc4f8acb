//! A model in plain float64 code: what the engine is tested against.

use ndarray::{Array1, Array2, Axis, s};

use super::block::{BlockShape, BlockTensors, BlockWeights};
use super::dispatch::Isa;
use super::linear::WeightFormat;
use super::real::Real;

pub(super) const THETA: f64 = 100.0;
pub(super) const EPS: f64 = 1e-5;

/// Reproducible numbers between −`size` and `size`.
pub(super) struct Numbers(pub(super) u64);

impl Numbers {
    pub(super) fn next(&mut self, size: f64) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        // Rounded to float32, so that both types compute with the same numbers.
        f64::from((((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0) as f32 * size as f32)
    }

    pub(super) fn matrix(&mut self, rows: usize, columns: usize, size: f64) -> Array2<f64> {
        Array2::from_shape_simple_fn((rows, columns), || self.next(size))
    }

    pub(super) fn weights(&mut self, len: usize) -> Array1<f64> {
        Array1::from_shape_simple_fn(len, || 1.0 + self.next(0.3))
    }
}

/// A block's weights in float64.
pub(super) struct PlainBlock {
    pub(super) shape: BlockShape,
    input_norm: Array1<f64>,
    qkv: Array2<f64>,
    /// Half of all blocks have one.
    bias: Option<Array1<f64>>,
    output: Array2<f64>,
    post_norm: Array1<f64>,
    gate_up: Array2<f64>,
    down: Array2<f64>,
}

impl PlainBlock {
    pub(super) fn new(shape: BlockShape, numbers: &mut Numbers) -> Self {
        let BlockShape { dim, attention_heads, kv_heads, head_dim, ffn, .. } = shape;
        Self {
            shape,
            input_norm: numbers.weights(dim),
            qkv: numbers.matrix((attention_heads + 2 * kv_heads) * head_dim, dim, 0.4),
            bias: (numbers.next(1.0) > 0.0)
                .then(|| numbers.weights((attention_heads + 2 * kv_heads) * head_dim) - 1.0),
            output: numbers.matrix(dim, attention_heads * head_dim, 0.4),
            post_norm: numbers.weights(dim),
            gate_up: numbers.matrix(2 * ffn, dim, 0.4),
            down: numbers.matrix(dim, ffn, 0.4),
        }
    }

    pub(super) fn packed<T: Real>(&self, isa: Isa, format: WeightFormat) -> BlockWeights<T> {
        let [a, b, c, d, e, f] = [
            narrow::<T>(self.input_norm.iter()),
            narrow(self.qkv.iter()),
            narrow(self.output.iter()),
            narrow(self.post_norm.iter()),
            narrow(self.gate_up.iter()),
            narrow(self.down.iter()),
        ];
        let bias = self.bias.as_ref().map(|bias| narrow::<T>(bias.iter()));
        let tensors = BlockTensors {
            input_layernorm: &a,
            qkv_proj: &b,
            qkv_bias: bias.as_deref(),
            o_proj: &c,
            post_attention_layernorm: &d,
            gate_up_proj: &e,
            down_proj: &f,
        };
        BlockWeights::pack_for(isa, &self.shape, &tensors, format)
    }

    /// The block of a whole text at once, from the formulas.
    pub(super) fn forward(&self, x: &Array2<f64>) -> Array2<f64> {
        let BlockShape { attention_heads, kv_heads, head_dim: d, ffn, .. } = self.shape;
        let normed = plain_norm(x, &self.input_norm);
        let mut qkv = normed.dot(&self.qkv.t());
        if let Some(bias) = &self.bias {
            qkv += bias;
        }
        let head = |i: usize| qkv.slice(s![.., i * d..(i + 1) * d]).to_owned();
        let mut attended = Array2::zeros((x.nrows(), attention_heads * d));
        for h in 0..attention_heads {
            let kv = h / (attention_heads / kv_heads);
            let query = plain_rotary(&head(h));
            let key = plain_rotary(&head(attention_heads + kv));
            let value = head(attention_heads + kv_heads + kv);
            for t in 0..x.nrows() {
                let keys = key.slice(s![..=t, ..]);
                let scores = keys.dot(&query.row(t)) / (d as f64).sqrt();
                let top = scores.fold(f64::NEG_INFINITY, |a, &b| a.max(b));
                let weights = scores.mapv(|s| (s - top).exp());
                let mean = weights.dot(&value.slice(s![..=t, ..])) / weights.sum();
                attended.slice_mut(s![t, h * d..(h + 1) * d]).assign(&mean);
            }
        }
        let x = x + &attended.dot(&self.output.t());
        let both = plain_norm(&x, &self.post_norm).dot(&self.gate_up.t());
        let (gate, up) = both.view().split_at(Axis(1), ffn);
        let gated = gate.mapv(|g| g / (1.0 + (-g).exp())) * up;
        &x + &gated.dot(&self.down.t())
    }
}

pub(super) fn plain_norm(x: &Array2<f64>, weight: &Array1<f64>) -> Array2<f64> {
    let mean = x.mapv(|x| x * x).mean_axis(Axis(1)).unwrap();
    x / &mean.mapv(|m| (m + EPS).sqrt()).insert_axis(Axis(1)) * weight
}

pub(super) fn plain_rotary(x: &Array2<f64>) -> Array2<f64> {
    let half = x.ncols() / 2;
    Array2::from_shape_fn(x.dim(), |(t, i)| {
        let j = i % half;
        let angle = t as f64 * THETA.powf(-(j as f64) / half as f64);
        let (a, b) = (x[[t, j]], x[[t, j + half]]);
        if i < half { a * angle.cos() - b * angle.sin() } else { b * angle.cos() + a * angle.sin() }
    })
}

pub(super) fn narrow<'a, T: Real>(values: impl Iterator<Item = &'a f64>) -> Vec<T> {
    values.map(|&x| T::from_f64(x)).collect()
}

/// A small model: its blocks, how many of them are heads, and a text's embeddings.
pub(super) struct Model {
    pub(super) blocks: Vec<PlainBlock>,
    pub(super) heads: usize,
    pub(super) norm: Array1<f64>,
    pub(super) unembedding: Array2<f64>,
    pub(super) x: Array2<f64>,
}

impl Model {
    pub(super) fn new(
        shape: BlockShape,
        trunk: usize,
        heads: usize,
        vocab: usize,
        seq: usize,
        seed: u64,
    ) -> Self {
        let mut numbers = Numbers(seed);
        Self {
            blocks: (0..trunk + heads).map(|_| PlainBlock::new(shape, &mut numbers)).collect(),
            heads,
            norm: numbers.weights(shape.dim),
            unembedding: numbers.matrix(vocab, shape.dim, 0.5),
            x: numbers.matrix(seq, shape.dim, 1.0),
        }
    }

    /// Each head's logits at each position.
    pub(super) fn logits(&self) -> Vec<Array2<f64>> {
        let (trunk, heads) = self.blocks.split_at(self.blocks.len() - self.heads);
        let hidden = trunk.iter().fold(self.x.clone(), |x, block| block.forward(&x));
        let logits = |head: &PlainBlock| {
            plain_norm(&head.forward(&hidden), &self.norm).dot(&self.unembedding.t())
        };
        heads.iter().map(logits).collect()
    }
}
