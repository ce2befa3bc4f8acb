//! The engine against plain float64 code in `ndarray`, and a row's bits alone against among others.

use ndarray::{Array1, Array2, Axis, s};
use proptest::prelude::*;

use super::block::{BlockShape, BlockTensors, BlockWeights};
use super::cache::BlockCache;
use super::dispatch::Isa;
use super::linear::PackedLinear;
use super::norm::RmsNorm;
use super::pass::{Blocks, Pass, Room, Unembedding, Workspace};
use super::real::Real;

const THETA: f64 = 100.0;
const EPS: f64 = 1e-5;

/// Reproducible numbers between −`size` and `size`.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self, size: f64) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        // Rounded to float32, so that both types compute with the same numbers.
        f64::from((((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0) as f32 * size as f32)
    }

    fn matrix(&mut self, rows: usize, columns: usize, size: f64) -> Array2<f64> {
        Array2::from_shape_simple_fn((rows, columns), || self.next(size))
    }

    fn weights(&mut self, len: usize) -> Array1<f64> {
        Array1::from_shape_simple_fn(len, || 1.0 + self.next(0.3))
    }
}

/// A block's weights in float64.
struct PlainBlock {
    shape: BlockShape,
    input_norm: Array1<f64>,
    qkv: Array2<f64>,
    output: Array2<f64>,
    post_norm: Array1<f64>,
    gate_up: Array2<f64>,
    down: Array2<f64>,
}

impl PlainBlock {
    fn new(shape: BlockShape, numbers: &mut Numbers) -> Self {
        let BlockShape { dim, attention_heads, kv_heads, head_dim, ffn, .. } = shape;
        Self {
            shape,
            input_norm: numbers.weights(dim),
            qkv: numbers.matrix((attention_heads + 2 * kv_heads) * head_dim, dim, 0.4),
            output: numbers.matrix(dim, attention_heads * head_dim, 0.4),
            post_norm: numbers.weights(dim),
            gate_up: numbers.matrix(2 * ffn, dim, 0.4),
            down: numbers.matrix(dim, ffn, 0.4),
        }
    }

    fn packed<T: Real>(&self, isa: Isa) -> BlockWeights<T> {
        let [a, b, c, d, e, f] = [
            narrow::<T>(self.input_norm.iter()),
            narrow(self.qkv.iter()),
            narrow(self.output.iter()),
            narrow(self.post_norm.iter()),
            narrow(self.gate_up.iter()),
            narrow(self.down.iter()),
        ];
        let tensors = BlockTensors {
            input_layernorm: &a,
            qkv_proj: &b,
            o_proj: &c,
            post_attention_layernorm: &d,
            gate_up_proj: &e,
            down_proj: &f,
        };
        BlockWeights::pack_for(isa, &self.shape, &tensors)
    }

    /// The block of a whole text at once, from the formulas.
    fn forward(&self, x: &Array2<f64>) -> Array2<f64> {
        let BlockShape { attention_heads, kv_heads, head_dim: d, ffn, .. } = self.shape;
        let normed = plain_norm(x, &self.input_norm);
        let qkv = normed.dot(&self.qkv.t());
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

fn plain_norm(x: &Array2<f64>, weight: &Array1<f64>) -> Array2<f64> {
    let mean = x.mapv(|x| x * x).mean_axis(Axis(1)).unwrap();
    x / &mean.mapv(|m| (m + EPS).sqrt()).insert_axis(Axis(1)) * weight
}

fn plain_rotary(x: &Array2<f64>) -> Array2<f64> {
    let half = x.ncols() / 2;
    Array2::from_shape_fn(x.dim(), |(t, i)| {
        let j = i % half;
        let angle = t as f64 * THETA.powf(-(j as f64) / half as f64);
        let (a, b) = (x[[t, j]], x[[t, j + half]]);
        if i < half { a * angle.cos() - b * angle.sin() } else { b * angle.cos() + a * angle.sin() }
    })
}

fn narrow<'a, T: Real>(values: impl Iterator<Item = &'a f64>) -> Vec<T> {
    values.map(|&x| T::from_f64(x)).collect()
}

/// A small model: its blocks, how many of them are heads, and a text's embeddings.
struct Model {
    blocks: Vec<PlainBlock>,
    heads: usize,
    norm: Array1<f64>,
    unembedding: Array2<f64>,
    x: Array2<f64>,
}

impl Model {
    fn new(
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
    fn logits(&self) -> Vec<Array2<f64>> {
        let (trunk, heads) = self.blocks.split_at(self.blocks.len() - self.heads);
        let hidden = trunk.iter().fold(self.x.clone(), |x, block| block.forward(&x));
        let logits = |head: &PlainBlock| {
            plain_norm(&head.forward(&hidden), &self.norm).dot(&self.unembedding.t())
        };
        heads.iter().map(logits).collect()
    }
}

/// The model packed for a unit, with caches.
struct Engine<T> {
    weights: Vec<BlockWeights<T>>,
    caches: Vec<BlockCache<T>>,
    trunk: usize,
    unembedding: Unembedding<T>,
    workspace: Workspace<T>,
    x: Vec<Vec<T>>,
    vocab: usize,
}

impl<T: Real> Engine<T> {
    fn new(model: &Model, isa: Isa, threads: usize) -> Self {
        let (seq, dim) = model.x.dim();
        let vocab = model.unembedding.nrows();
        let weights: Vec<_> = model.blocks.iter().map(|block| block.packed(isa)).collect();
        let room = Room { rows: seq, outputs: seq * model.heads, positions: seq, threads };
        Self {
            caches: weights.iter().map(|w| w.cache(seq)).collect(),
            trunk: weights.len() - model.heads,
            unembedding: Unembedding {
                norm: RmsNorm::new_for(isa, &narrow::<T>(model.norm.iter()), EPS),
                product: PackedLinear::pack_for(
                    isa,
                    &narrow::<T>(model.unembedding.iter()),
                    vocab,
                    dim,
                ),
            },
            workspace: Workspace::new(&model.blocks[0].shape, vocab, THETA, room),
            x: model.x.outer_iter().map(|row| narrow(row.iter())).collect(),
            weights,
            vocab,
        }
    }

    fn len(&self) -> usize {
        self.caches[0].len()
    }

    fn truncate(&mut self, len: usize) {
        self.caches.iter_mut().for_each(|cache| cache.truncate(len));
    }

    /// Passes `rows` more rows of the text and returns the logits of the last `outputs`, one head
    /// after the other.
    fn pass(&mut self, rows: usize, outputs: usize) -> Vec<Vec<T>> {
        let start = self.len();
        for r in 0..rows {
            self.workspace.input(r).copy_from_slice(&self.x[start + r]);
        }
        let (trunk, heads) = self.weights.split_at(self.trunk);
        let (trunk_caches, head_caches) = self.caches.split_at_mut(self.trunk);
        let best = self.workspace.run(Pass {
            rows,
            trunk: Blocks { weights: trunk, caches: trunk_caches },
            heads: Blocks { weights: heads, caches: head_caches },
            outputs,
            unembedding: &self.unembedding,
        });
        let best = best.to_vec();
        let logits: Vec<Vec<T>> =
            (0..best.len()).map(|r| self.workspace.logits(r).to_vec()).collect();
        for (best, logits) in best.iter().zip(&logits) {
            assert!(logits.iter().all(|l| l <= &logits[*best as usize]));
            assert_eq!(logits.len(), self.vocab);
        }
        logits
    }
}

fn shapes() -> impl Strategy<Value = BlockShape> {
    (1usize..3, 1usize..4, 1usize..20, 1usize..40, 1usize..50).prop_map(
        |(kv_heads, group, half, dim, ffn)| BlockShape {
            dim,
            attention_heads: kv_heads * group,
            kv_heads,
            head_dim: 2 * half,
            ffn,
            norm_eps: EPS,
        },
    )
}

/// Every head's logits at every position, in one pass.
fn all_logits<T: Real>(model: &Model, isa: Isa, threads: usize) -> Vec<Vec<T>> {
    let seq = model.x.nrows();
    Engine::<T>::new(model, isa, threads).pass(seq, seq)
}

fn worst_error<T: Real>(model: &Model, isa: Isa) -> f64 {
    let ours = all_logits::<T>(model, isa, 1);
    let reference = model.logits();
    let plain = reference.iter().flat_map(|logits| logits.outer_iter());
    let largest = reference.iter().flatten().fold(1.0f64, |a, b| a.max(b.abs()));
    plain
        .zip(&ours)
        .flat_map(|(plain, ours)| plain.into_iter().zip(ours).map(|(p, o)| (p - o.to_f64()).abs()))
        .fold(0.0, |worst: f64, error| if error > worst || error.is_nan() { error } else { worst })
        / largest
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn logits_are_those_of_the_plain_formulas(
        shape in shapes(), trunk in 0usize..3, heads in 1usize..3, vocab in 1usize..70,
        seq in 1usize..40, seed: u64,
    ) {
        let model = Model::new(shape, trunk, heads, vocab, seq, seed);
        for isa in Isa::available() {
            let error = worst_error::<f64>(&model, isa);
            prop_assert!(error < 1e-11, "float64 on {isa:?} is off by {error}");
            let error = worst_error::<f32>(&model, isa);
            prop_assert!(error < 2e-4, "float32 on {isa:?} is off by {error}");
        }
    }

    #[test]
    fn a_row_has_the_same_bits_in_any_pass(
        shape in shapes(), trunk in 0usize..3, heads in 1usize..3, seq in 1usize..40, seed: u64,
        cuts in proptest::collection::vec(1usize..12, 40), drafts in proptest::collection::vec(0usize..9, 40),
    ) {
        let model = Model::new(shape, trunk, heads, 21, seq, seed);
        for isa in Isa::available() {
            let whole = all_logits::<f32>(&model, isa, 1);
            let mut engine = Engine::<f32>::new(&model, isa, 1);
            for (cut, draft) in cuts.iter().zip(&drafts) {
                let left = seq - engine.len();
                if left == 0 {
                    break;
                }
                // Rows that are taken back again leave no trace.
                let (rows, extra) = (*cut.min(&left), (*draft).min(left - cut.min(&left)));
                let start = engine.len();
                engine.pass(rows + extra, rows + extra);
                engine.truncate(start);
                let outputs = 1 + draft % rows;
                let logits = engine.pass(rows, outputs);
                for (i, logits) in logits.iter().enumerate() {
                    let (head, row) = (i / outputs, start + rows - outputs + i % outputs);
                    let expected = &whole[head * seq + row];
                    let same = logits.iter().zip(expected).all(|(a, b)| a.to_bits() == b.to_bits());
                    prop_assert!(same, "head {head}, row {row} differs on {isa:?}");
                }
            }
        }
    }

    #[test]
    fn a_product_is_the_plain_one_and_its_rows_do_not_mix(
        outputs in 1usize..150, inputs in 1usize..70, rows in 1usize..20, seed: u64,
    ) {
        let mut numbers = Numbers(seed);
        let (weight, x) = (numbers.matrix(outputs, inputs, 1.0), numbers.matrix(rows, inputs, 1.0));
        let plain = x.dot(&weight.t());
        for isa in Isa::available() {
            let linear = PackedLinear::<f32>::pack_for(isa, &narrow(weight.iter()), outputs, inputs);
            let (mut input, mut output) =
                (super::Rows::new(rows, inputs), super::Rows::new(rows, outputs));
            for r in 0..rows {
                input.row_mut(r).copy_from_slice(&narrow(x.row(r).iter()));
            }
            linear.apply(&mut input, &mut output, rows, false);
            let once: Vec<Vec<f32>> = (0..rows).map(|r| output.row(r).to_vec()).collect();
            linear.apply(&mut input, &mut output, rows, true);
            let (mut one_in, mut one_out) = (super::Rows::new(1, inputs), super::Rows::new(1, outputs));
            for r in 0..rows {
                one_in.row_mut(0).copy_from_slice(input.row(r));
                linear.apply(&mut one_in, &mut one_out, 1, false);
                prop_assert_eq!(one_out.row(0), &once[r][..]);
                for j in 0..outputs {
                    prop_assert!((f64::from(once[r][j]) - plain[[r, j]]).abs() < 1e-5 * inputs as f64);
                    prop_assert_eq!(output.row(r)[j], 2.0 * once[r][j]);
                }
            }
        }
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let shape = BlockShape {
        dim: 96,
        attention_heads: 6,
        kv_heads: 3,
        head_dim: 16,
        ffn: 200,
        norm_eps: EPS,
    };
    let model = Model::new(shape, 2, 2, 300, 33, 7);
    let alone = all_logits::<f32>(&model, Isa::detect(), 1);
    for threads in [2, 3] {
        assert!(alone == all_logits::<f32>(&model, Isa::detect(), threads));
    }
}

#[test]
#[should_panic(expected = "no room")]
fn more_rows_than_there_is_room_for_are_refused() {
    let shape =
        BlockShape { dim: 8, attention_heads: 1, kv_heads: 1, head_dim: 4, ffn: 8, norm_eps: EPS };
    let model = Model::new(shape, 1, 1, 5, 3, 0);
    let mut engine = Engine::<f32>::new(&model, Isa::detect(), 1);
    engine.x.push(vec![0.0; 8]);
    engine.pass(2, 1);
    engine.pass(2, 1);
}
