//! The engine against plain float64 code in `ndarray`, and a row's bits alone against among others.

use half::{bf16, f16};
use proptest::prelude::*;

use super::block::{BlockShape, BlockWeights};
use super::cache::BlockCache;
use super::dispatch::Isa;
use super::levels::tests as levels;
use super::linear::{PackedLinear, WeightFormat};
use super::norm::RmsNorm;
use super::pass::{Blocks, Pass, Room, Unembedding, Workspace};
use super::real::Real;
use super::reference::{EPS, Model, Numbers, THETA, narrow};

/// Rows that may stand in place of others.
const OTHERS: usize = 6;

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
    fn new(model: &Model, isa: Isa, threads: usize, format: WeightFormat) -> Self {
        let (seq, dim) = model.x.dim();
        let vocab = model.unembedding.nrows();
        let weights: Vec<_> = model.blocks.iter().map(|block| block.packed(isa, format)).collect();
        let rows = seq + OTHERS;
        let room = Room { rows, outputs: rows * model.heads, positions: seq, threads };
        Self {
            caches: weights.iter().map(|w| w.cache(seq).with_others(OTHERS)).collect(),
            trunk: weights.len() - model.heads,
            unembedding: Unembedding {
                norm: RmsNorm::new_for(isa, &narrow::<T>(model.norm.iter()), EPS),
                product: PackedLinear::pack_for(
                    isa,
                    &narrow::<T>(model.unembedding.iter()),
                    vocab,
                    dim,
                    format,
                ),
            },
            workspace: Workspace::new(
                &model.blocks[0].shape,
                vocab,
                &crate::rotary_frequencies(model.blocks[0].shape.head_dim, THETA),
                room,
            ),
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
        let text = self.x[start..start + rows].to_vec();
        self.run(&text, &[], outputs)
    }

    /// As [`Engine::pass`], with these rows of text and others, each in the place of one of them.
    fn run(&mut self, text: &[Vec<T>], others: &[(usize, Vec<T>)], outputs: usize) -> Vec<Vec<T>> {
        for (r, row) in text.iter().chain(others.iter().map(|(_, row)| row)).enumerate() {
            self.workspace.input(r).copy_from_slice(row);
        }
        let places: Vec<usize> = others.iter().map(|&(place, _)| place).collect();
        let (trunk, heads) = self.weights.split_at(self.trunk);
        let (trunk_caches, head_caches) = self.caches.split_at_mut(self.trunk);
        let best = self.workspace.run(Pass {
            rows: text.len(),
            others: &places,
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
    Engine::<T>::new(model, isa, threads, WeightFormat::Full).pass(seq, seq)
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
            let mut engine = Engine::<f32>::new(&model, isa, 1, WeightFormat::Full);
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
    fn a_row_in_place_of_another_has_the_bits_of_a_text_that_goes_on_with_it(
        shape in shapes(), trunk in 0usize..3, heads in 1usize..3, start in 0usize..36,
        rows in 1usize..6, threads in 1usize..3, seed: u64, taken in 0usize..OTHERS,
        places in proptest::collection::vec(0usize..6, 1..OTHERS),
    ) {
        let seq = start + rows + 1;
        let model = Model::new(shape, trunk, heads, 21, seq, seed);
        let places: Vec<usize> = places.iter().map(|place| place % rows).collect();
        let count = places.len();
        for isa in Isa::available() {
            let new = || Engine::<f32>::new(&model, isa, 1, WeightFormat::Full);
            let mut engine = Engine::<f32>::new(&model, isa, threads, WeightFormat::Full);
            let x = engine.x.clone();
            // Other rows than the text's, of no text.
            let other = |i: usize| -> Vec<f32> { x[i % seq].iter().map(|x| 0.5 - x).collect() };
            let others: Vec<_> = places.iter().enumerate().map(|(i, &p)| (p, other(i))).collect();
            if start > 0 {
                engine.run(&x[..start], &[], start);
            }
            let together = engine.run(&x[start..start + rows], &others, rows);
            let mut plain = new();
            let whole = plain.run(&x[..start + rows], &[], start + rows);
            for head in 0..heads {
                let ours = &together[head * (rows + count)..][..rows];
                prop_assert_eq!(ours, &whole[head * (start + rows) + start..][..rows]);
            }
            let behind = |plain: &mut Engine<f32>, place: usize| {
                plain.truncate(start);
                if place > 0 {
                    plain.run(&x[start..start + place], &[], place);
                }
            };
            for (i, (place, row)) in others.iter().enumerate() {
                behind(&mut plain, *place);
                let alone = plain.run(std::slice::from_ref(row), &[], 1);
                for head in 0..heads {
                    let ours = &together[head * (rows + count) + rows + i];
                    prop_assert_eq!(ours, &alone[head], "other {} on {:?}", i, isa);
                }
            }
            // The text goes on behind one of them.
            let taken = taken % count;
            let (place, row) = &others[taken];
            for cache in &mut engine.caches {
                cache.truncate(start + place);
                cache.take_other(taken);
            }
            behind(&mut plain, *place);
            plain.run(std::slice::from_ref(row), &[], 1);
            let next = &x[seq - 1..];
            prop_assert_eq!(engine.run(next, &[], 1), plain.run(next, &[], 1));
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
            let linear = PackedLinear::<f32>::pack_for(
                isa, &narrow(weight.iter()), outputs, inputs, WeightFormat::Full,
            );
            let (mut input, mut output) = (rows_of(&x), super::Rows::new(rows, outputs));
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn levels_change_no_bit_of_a_product(
        blocks in levels::a_format().prop_flat_map(|format| prop::collection::vec(levels::a_block(format), 1..150)),
        deep in 1usize..4, rows in 1usize..20, seed: u64,
    ) {
        // As many rows of weights as there are blocks, each of its block `deep` times.
        let inputs = deep * 32;
        let weight: Vec<f32> = blocks.iter().flat_map(|block| block.weights.repeat(deep)).collect();
        compact_weights_change_no_bit(&weight, inputs, rows, seed, |lanes| {
            let form = blocks[0].form;
            lanes * (inputs / form.block * form.words()) * size_of::<u32>()
        })?;
    }

    #[test]
    fn numbers_of_fewer_bits_change_no_bit_of_a_product(
        outputs in 1usize..150, inputs in 1usize..70, rows in 1usize..20, bfloat16: bool, seed: u64,
    ) {
        let weight: Vec<f32> = narrow(Numbers(seed).matrix(outputs, inputs, 1.0).iter());
        let weight: Vec<f32> = weight
            .into_iter()
            .map(|w| if bfloat16 { bf16::from_f32(w).to_f32() } else { f16::from_f32(w).to_f32() })
            .collect();
        compact_weights_change_no_bit(&weight, inputs, rows, seed, |lanes| {
            lanes * inputs.div_ceil(2) * size_of::<u32>()
        })?;
    }
}

/// `weight`, with rows of `inputs`, kept compact in at most as many bytes as `bytes` says of so many
/// lanes: its products are those of the weights as they are.
fn compact_weights_change_no_bit(
    weight: &[f32],
    inputs: usize,
    rows: usize,
    seed: u64,
    bytes: impl Fn(usize) -> usize,
) -> Result<(), TestCaseError> {
    let outputs = weight.len() / inputs;
    let x = Numbers(seed).matrix(rows, inputs, 1.0);
    for isa in Isa::available() {
        let pack = |format| PackedLinear::<f32>::pack_for(isa, weight, outputs, inputs, format);
        let product = |linear: &PackedLinear<f32>, rows: usize| {
            let (mut input, mut output) = (rows_of(&x), super::Rows::new(rows, outputs));
            linear.apply(&mut input, &mut output, rows, false);
            let bits = |row: &[f32]| row.iter().map(|y| y.to_bits()).collect::<Vec<_>>();
            (0..rows).map(|r| bits(output.row(r))).collect::<Vec<_>>()
        };
        let (plain, compact) = (pack(WeightFormat::Full), pack(WeightFormat::Compact));
        let lanes = outputs.next_multiple_of(isa.lanes::<f32>());
        prop_assert!(compact.bytes() <= bytes(lanes));
        prop_assert!(inputs < 2 || compact.bytes() < plain.bytes());
        prop_assert!(pack(WeightFormat::BFloat16).bytes() <= compact.bytes());
        let expected = product(&plain, rows);
        prop_assert_eq!(&product(&compact, rows), &expected);
        prop_assert_eq!(product(&compact, 1), &expected[..1]);
        let mut copied = vec![0.0; inputs];
        for (output, weights) in weight.chunks(inputs).enumerate() {
            compact.copy_weights(output, &mut copied);
            prop_assert_eq!(&copied[..], weights);
        }
    }
    Ok(())
}

/// A matrix as rows of float32.
fn rows_of(x: &ndarray::Array2<f64>) -> super::Rows<f32> {
    let mut rows = super::Rows::new(x.nrows(), x.ncols());
    for (r, row) in x.outer_iter().enumerate() {
        rows.row_mut(r).copy_from_slice(&narrow(row.iter()));
    }
    rows
}

/// (1 + 2⁻⁸)² − 1, and the sums' own float32 rounding.
const BOTH_ROUNDED: f64 = 2.0 / 256.0 + 1.0 / 65_536.0 + 1e-5;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn bfloat16_weights_are_off_by_their_rounding_only(
        outputs in 1usize..150, inputs in 1usize..70, rows in 1usize..20, seed: u64,
    ) {
        let mut numbers = Numbers(seed);
        let (weight, x) = (numbers.matrix(outputs, inputs, 1.0), numbers.matrix(rows, inputs, 1.0));
        let plain = x.dot(&weight.t());
        for isa in Isa::available() {
            let linear = PackedLinear::<f32>::pack_for(
                isa, &narrow(weight.iter()), outputs, inputs, WeightFormat::BFloat16,
            );
            prop_assert!(linear.bytes() <= 2 * inputs.next_multiple_of(2) * outputs.next_multiple_of(16));
            let (mut input, mut output) = (rows_of(&x), super::Rows::new(rows, outputs));
            linear.apply(&mut input, &mut output, rows, false);
            let (mut one_in, mut one_out) = (super::Rows::new(1, inputs), super::Rows::new(1, outputs));
            for r in 0..rows {
                one_in.row_mut(0).copy_from_slice(input.row(r));
                linear.apply(&mut one_in, &mut one_out, 1, false);
                prop_assert_eq!(one_out.row(0), output.row(r), "row {} alone on {:?}", r, isa);
                for (j, &y) in output.row(r).iter().enumerate() {
                    // Eight significant bits: either factor is off by at most 2⁻⁸ of itself.
                    let sizes = x.row(r).mapv(f64::abs).dot(&weight.row(j).mapv(f64::abs));
                    let error = (f64::from(y) - plain[[r, j]]).abs();
                    prop_assert!(error <= sizes * BOTH_ROUNDED, "off by {error} of {sizes} on {isa:?}");
                }
            }
        }
    }
}

#[test]
fn a_model_in_bfloat16_is_close_and_float64_stays_exact() {
    let shape = BlockShape {
        dim: 48,
        attention_heads: 4,
        kv_heads: 2,
        head_dim: 12,
        ffn: 70,
        norm_eps: EPS,
    };
    let model = Model::new(shape, 1, 2, 100, 20, 5);
    for isa in Isa::available() {
        let exact = all_logits::<f32>(&model, isa, 1);
        let close = Engine::<f32>::new(&model, isa, 1, WeightFormat::BFloat16).pass(20, 20);
        let pairs = || exact.iter().flatten().zip(close.iter().flatten());
        let error = pairs().map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let largest = exact.iter().flatten().fold(0.0f32, |a, b| a.max(b.abs()));
        assert!(error > 0.0 && error < 0.05 * largest, "off by {error} of {largest} on {isa:?}");
        let double = all_logits::<f64>(&model, isa, 1);
        let same = Engine::<f64>::new(&model, isa, 1, WeightFormat::BFloat16).pass(20, 20);
        assert!(double == same);
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
    let mut engine = Engine::<f32>::new(&model, Isa::detect(), 1, WeightFormat::Full);
    engine.x.push(vec![0.0; 8]);
    engine.pass(2, 1);
    engine.pass(2, 1);
}
