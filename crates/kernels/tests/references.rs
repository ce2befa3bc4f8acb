//! Values against `ndarray` in float64, gradients against finite differences, fused paths against
//! plain operators.

use foretoken_kernels::{
    AttentionShape, Branch, IGNORED, KvCache, Rotary, cached_attention, causal_attention,
    causal_attention_reference, linear_cross_entropy, linear_cross_entropy_reference,
    linear_distillation, rms_norm, rms_norm_reference, swiglu, swiglu_reference,
};
use ndarray::{Array1, Array2, Array3, Axis, s};
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};

const DOUBLE: (Kind, Device) = (Kind::Double, Device::Cpu);
const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);

fn values(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(tensor.detach().to_kind(Kind::Double).flatten(0, -1)).unwrap()
}

fn matrix(tensor: &Tensor) -> Array2<f64> {
    let (rows, columns) = tensor.size2().unwrap();
    Array2::from_shape_vec((rows as usize, columns as usize), values(tensor)).unwrap()
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a.to_kind(Kind::Double) - b.to_kind(Kind::Double)).abs().max().double_value(&[])
}

/// Compares a graph's gradient with central differences of the weighted sum of its output.
fn check_gradients(inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Tensor) {
    let leaves: Vec<Tensor> = inputs.iter().map(|t| t.detach().set_requires_grad(true)).collect();
    let out = f(&leaves);
    let weights = Tensor::randn(out.size(), DOUBLE);
    (&out * &weights).sum(Kind::Double).backward();
    let objective =
        |changed: &[Tensor]| (f(changed) * &weights).sum(Kind::Double).double_value(&[]);
    let step = 1e-5;
    for (which, leaf) in leaves.iter().enumerate() {
        let gradient = values(&leaf.grad());
        for (element, &expected) in gradient.iter().enumerate().step_by(gradient.len() / 12 + 1) {
            let moved = |by: f64| {
                let mut copies: Vec<Tensor> = inputs.iter().map(Tensor::copy).collect();
                let _ = copies[which].view([-1]).get(element as i64).f_add_scalar_(by).unwrap();
                objective(&std::mem::take(&mut copies))
            };
            let numeric = (moved(step) - moved(-step)) / (2.0 * step);
            let error = (numeric - expected).abs() / (1.0 + expected.abs());
            assert!(error < 1e-6, "input {which}, element {element}: {numeric} against {expected}");
        }
    }
}

/// The same function in float32 (fused) and through its reference: outputs and gradients.
fn check_fused(
    inputs: &[Tensor],
    tolerance: f64,
    fused: impl Fn(&[Tensor]) -> Tensor,
    reference: impl Fn(&[Tensor]) -> Tensor,
) {
    let run = |f: &dyn Fn(&[Tensor]) -> Tensor, kind: Kind| {
        let leaves: Vec<Tensor> =
            inputs.iter().map(|t| t.to_kind(kind).detach().set_requires_grad(true)).collect();
        let out = f(&leaves);
        let weights = Tensor::linspace(-1.0, 1.0, out.numel() as i64, (kind, Device::Cpu));
        (out.reshape([-1]) * weights).sum(kind).backward();
        let gradients: Vec<Tensor> = leaves.iter().map(Tensor::grad).collect();
        (out.detach(), gradients)
    };
    let (value, gradients) = run(&fused, Kind::Float);
    let (expected, expected_gradients) = run(&reference, Kind::Double);
    assert!(largest_difference(&value, &expected) < tolerance);
    for (gradient, expected) in gradients.iter().zip(&expected_gradients) {
        let scale = 1.0 + expected.abs().max().double_value(&[]);
        assert!(largest_difference(gradient, expected) < tolerance * scale);
    }
}

fn ndarray_norm(x: &Array2<f64>, weight: &Array1<f64>, eps: f64) -> Array2<f64> {
    let mut y = x.clone();
    for mut row in y.axis_iter_mut(Axis(0)) {
        let scale = 1.0 / (row.mapv(|v| v * v).mean().unwrap() + eps).sqrt();
        row.zip_mut_with(weight, |v, w| *v *= scale * w);
    }
    y
}

#[test]
fn rms_norm_is_its_formula_and_its_gradient() {
    tch::manual_seed(1);
    let (x, w) = (Tensor::randn([5, 12], DOUBLE), Tensor::randn([12], DOUBLE));
    let y = matrix(&rms_norm(&x, &w, 1e-5).unwrap());
    let expected = ndarray_norm(&matrix(&x), &Array1::from(values(&w)), 1e-5);
    assert!((&y - &expected).iter().all(|d| d.abs() < 1e-12));
    check_gradients(&[x, w], |t| rms_norm(&t[0], &t[1], 1e-5).unwrap());
}

#[test]
fn swiglu_is_its_formula_and_its_gradient() {
    tch::manual_seed(2);
    let x = Tensor::randn([4, 14], DOUBLE) * 3.0;
    let y = matrix(&swiglu(&x).unwrap());
    let x_values = matrix(&x);
    for ((row, column), y) in y.indexed_iter() {
        let (gate, up) = (x_values[[row, column]], x_values[[row, column + 7]]);
        assert!((y - gate / (1.0 + (-gate).exp()) * up).abs() < 1e-12);
    }
    check_gradients(&[x], |t| swiglu(&t[0]).unwrap());
}

/// Attention from its definition, one query at a time.
fn ndarray_attention(qkv: &Tensor, shape: AttentionShape, theta: f64) -> Array3<f64> {
    let (batch, seq, width) = qkv.size3().unwrap();
    let (batch, seq) = (batch as usize, seq as usize);
    let all = Array3::from_shape_vec((batch, seq, width as usize), values(qkv)).unwrap();
    let (heads, kv_heads, dim) =
        (shape.heads as usize, shape.kv_heads as usize, shape.head_dim as usize);
    let turned = |b: usize, t: usize, start: usize| -> Array1<f64> {
        let x = all.slice(s![b, t, start..start + dim]);
        Array1::from_iter((0..dim).map(|i| {
            let pair = i % (dim / 2);
            let angle = t as f64 * theta.powf(-2.0 * pair as f64 / dim as f64);
            let (other, sign) = if i < dim / 2 { (i + dim / 2, -1.0) } else { (i - dim / 2, 1.0) };
            x[i] * angle.cos() + sign * x[other] * angle.sin()
        }))
    };
    let mut out = Array3::zeros((batch, seq, heads * dim));
    for b in 0..batch {
        for h in 0..heads {
            let kv = h / (heads / kv_heads);
            for t in 0..seq {
                let q = turned(b, t, h * dim);
                let scores: Vec<f64> = (0..=t)
                    .map(|u| q.dot(&turned(b, u, (heads + kv) * dim)) / (dim as f64).sqrt())
                    .collect();
                let total: f64 = scores.iter().map(|s| s.exp()).sum();
                for (u, score) in scores.iter().enumerate() {
                    let start = (heads + kv_heads + kv) * dim;
                    let v = all.slice(s![b, u, start..start + dim]);
                    let mut target = out.slice_mut(s![b, t, h * dim..(h + 1) * dim]);
                    target.scaled_add(score.exp() / total, &v);
                }
            }
        }
    }
    out
}

#[test]
fn causal_attention_is_its_definition_with_grouped_keys_and_rotary_positions() {
    tch::manual_seed(3);
    let shape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 6 };
    let rotary = Rotary::new(6, 100.0, 16, Kind::Double, Device::Cpu).unwrap();
    let qkv = Tensor::randn([2, 7, shape.qkv_width()], DOUBLE);
    let y = values(&causal_attention(qkv.copy(), shape, &rotary).unwrap());
    let expected = ndarray_attention(&qkv, shape, 100.0);
    assert!(y.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-12));
    check_gradients(&[qkv], |t| causal_attention(t[0].shallow_clone(), shape, &rotary).unwrap());
}

#[test]
fn cached_attention_in_pieces_equals_attention_over_the_whole() {
    tch::manual_seed(4);
    let shape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 6 };
    let rotary = Rotary::new(6, 100.0, 16, Kind::Double, Device::Cpu).unwrap();
    let qkv = Tensor::randn([1, 9, shape.qkv_width()], DOUBLE);
    let whole = causal_attention_reference(&qkv, shape, &rotary).unwrap();
    let mut cache = KvCache::new(1, 2, 12, 6, Kind::Double, Device::Cpu).unwrap();
    let mut pieces = Vec::new();
    for (start, len) in [(0, 4), (4, 1), (5, 3), (8, 1)] {
        // A rejected draft leaves nothing behind.
        let junk = Tensor::randn([1, 2, shape.qkv_width()], DOUBLE);
        drop(cached_attention(&junk, shape, &rotary, &mut cache).unwrap());
        cache.truncate(start);
        let piece = qkv.narrow(1, start, len);
        pieces.push(cached_attention(&piece, shape, &rotary, &mut cache).unwrap());
    }
    assert!(largest_difference(&Tensor::cat(&pieces, 1), &whole) < 1e-12);
    let too_many = Tensor::randn([1, 4, shape.qkv_width()], DOUBLE);
    let error = cached_attention(&too_many, shape, &rotary, &mut cache).unwrap_err();
    assert!(error.to_string().contains("13 positions"), "{error}");
    assert_eq!(cache.len(), 9);
}

#[test]
fn attention_goes_on_where_tables_and_cache_grow() {
    tch::manual_seed(9);
    let shape = AttentionShape { heads: 2, kv_heads: 1, head_dim: 2 };
    let tables = || Rotary::new(2, 100.0, 1200, Kind::Float, Device::Cpu).unwrap();
    let qkv = Tensor::randn([1, 1040, shape.qkv_width()], FLOAT);
    let whole = causal_attention(qkv.copy(), shape, &tables()).unwrap();
    let plain = causal_attention_reference(&qkv, shape, &tables()).unwrap();
    assert!(largest_difference(&whole, &plain) < 2e-5);
    let (rotary, mut cache) =
        (tables(), KvCache::new(1, 1, 1200, 2, Kind::Float, Device::Cpu).unwrap());
    let mut pass = |start: i64, rows: i64, branch: Option<&Branch>| {
        if let Some(branch) = branch {
            cache.branch(branch);
        }
        let y = cached_attention(&qkv.narrow(1, start, rows), shape, &rotary, &mut cache).unwrap();
        let from_whole = whole.narrow(1, start, rows);
        let difference = match branch {
            // The row beside the chain is the text's second.
            Some(_) => largest_difference(&y.narrow(1, 0, 3), &from_whole.narrow(1, 0, 3)),
            None => largest_difference(&y, &from_whole),
        };
        assert!(difference < 2e-5, "{start}: {difference}");
        cache.truncate(start + rows.min(3));
    };
    for start in (0..1020).step_by(3) {
        pass(start, 3, None);
    }
    // From 1023 on, with a row that stands in place of the one at 1024.
    pass(1020, 3, None);
    let branch = Branch::new(1023, 3, &[1], Device::Cpu).unwrap();
    pass(1023, 4, Some(&branch));
    pass(1026, 3, None);
}

#[test]
fn rows_beside_a_chain_are_what_they_would_be_in_it_and_can_take_its_place() {
    tch::manual_seed(6);
    let shape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 6 };
    let rotary = Rotary::new(6, 100.0, 16, Kind::Double, Device::Cpu).unwrap();
    let (start, chain, places) = (3, 4, [1, 3, 3, 4]);
    let rows = chain + places.len() as i64;
    let qkv = Tensor::randn([1, start + rows, shape.qkv_width()], DOUBLE);
    let of = |first: i64, count: i64| qkv.narrow(1, first, count);
    let plainly = |text: &[Tensor], last: i64| {
        let text = Tensor::cat(text, 1);
        let whole = causal_attention_reference(&text, shape, &rotary).unwrap();
        whole.narrow(1, text.size()[1] - last, last)
    };
    let mut cache = KvCache::new(1, 2, 12, 6, Kind::Double, Device::Cpu).unwrap();
    drop(cached_attention(&of(0, start), shape, &rotary, &mut cache).unwrap());
    let branch = Branch::new(start, chain, &places, Device::Cpu).unwrap();
    cache.branch(&branch);
    let found = cached_attention(&of(start, rows), shape, &rotary, &mut cache).unwrap();
    let of_chain = plainly(&[of(0, start + chain)], chain);
    assert!(largest_difference(&found.narrow(1, 0, chain), &of_chain) < 1e-12);
    for (row, place) in (chain..).zip(places) {
        let expected = plainly(&[of(0, start + place), of(start + row, 1)], 1);
        assert!(largest_difference(&found.narrow(1, row, 1), &expected) < 1e-12, "row {row}");
    }

    // The third of them, in place of row 3, goes on.
    let taken = start + chain + 2;
    cache.keep(start + 3, taken).unwrap();
    let next = Tensor::randn([1, 2, shape.qkv_width()], DOUBLE);
    let found = cached_attention(&next, shape, &rotary, &mut cache).unwrap();
    let expected = plainly(&[of(0, start + 3), of(taken, 1), next], 2);
    assert!(largest_difference(&found, &expected) < 1e-12);

    assert!(Branch::new(0, 2, &[3], Device::Cpu).is_err());
    assert!(Branch::new(0, 2, &[-1], Device::Cpu).is_err());
    assert!(cache.keep(5, cache.len()).is_err() && cache.keep(5, 4).is_err());
    let len = cache.len();
    cache.branch(&branch);
    assert!(cached_attention(&of(0, 2), shape, &rotary, &mut cache).is_err());
    assert_eq!(cache.len(), len);
    // One that was refused, or taken back, is not that of the next rows.
    cache.branch(&branch);
    cache.truncate(4);
    let found = cached_attention(&of(4, 3), shape, &rotary, &mut cache).unwrap();
    assert_eq!(found.size(), [1, 3, 24]);
    let short = Rotary::new(6, 100.0, 6, Kind::Double, Device::Cpu).unwrap();
    cache.truncate(3);
    cache.branch(&branch);
    let error = cached_attention(&of(3, rows), shape, &short, &mut cache).unwrap_err();
    assert!(error.to_string().contains("rotary"), "{error}");
}

#[test]
fn linear_cross_entropy_is_its_formula_and_its_gradient() {
    tch::manual_seed(5);
    let (hidden, weight) = (Tensor::randn([6, 5], DOUBLE), Tensor::randn([9, 5], DOUBLE));
    let targets = Tensor::from_slice(&[0i64, 8, IGNORED, 3, 3, 1]);
    let loss = linear_cross_entropy(&hidden, &weight, &targets).unwrap().double_value(&[]);
    let logits = matrix(&hidden).dot(&matrix(&weight).t());
    let kept: Vec<(usize, usize)> = vec![(0, 0), (1, 8), (3, 3), (4, 3), (5, 1)];
    let expected: f64 = kept
        .iter()
        .map(|&(row, target)| logits.row(row).mapv(f64::exp).sum().ln() - logits[[row, target]])
        .sum::<f64>()
        / kept.len() as f64;
    assert!((loss - expected).abs() < 1e-12, "{loss} against {expected}");
    check_gradients(&[hidden, weight], |t| linear_cross_entropy(&t[0], &t[1], &targets).unwrap());
}

#[test]
fn cross_entropy_in_chunks_equals_all_logits_at_once() {
    tch::manual_seed(6);
    // 300 tokens at 32,768 entries are three chunks.
    let (hidden, weight) = (Tensor::randn([300, 8], DOUBLE), Tensor::randn([32_768, 8], DOUBLE));
    let targets = Tensor::randint(32_768, [300], (Kind::Int64, Device::Cpu));
    check_fused(
        &[hidden.shallow_clone(), weight.shallow_clone()],
        2e-5,
        |t| linear_cross_entropy(&t[0], &t[1], &targets).unwrap(),
        |t| linear_cross_entropy_reference(&t[0], &t[1], &targets).unwrap(),
    );
    let chunked = linear_cross_entropy(&hidden, &weight, &targets).unwrap();
    let whole = linear_cross_entropy_reference(&hidden, &weight, &targets).unwrap();
    assert!(largest_difference(&chunked, &whole) < 1e-10);
}

#[test]
fn linear_distillation_is_its_formula_and_its_gradient() {
    tch::manual_seed(8);
    let (hidden, weight) = (Tensor::randn([6, 5], DOUBLE), Tensor::randn([9, 5], DOUBLE));
    let teacher = Tensor::randn([6, 5], DOUBLE);
    let loss = linear_distillation(&hidden, &weight, &teacher).unwrap().double_value(&[]);
    let softmax = |hidden: &Tensor| {
        let powers = matrix(hidden).dot(&matrix(&weight).t()).mapv(f64::exp);
        let sums = powers.sum_axis(Axis(1)).insert_axis(Axis(1));
        powers / sums
    };
    let expected = -(softmax(&teacher) * softmax(&hidden).mapv(f64::ln)).sum() / 6.0;
    assert!((loss - expected).abs() < 1e-12, "{loss} against {expected}");
    // The teacher's logits follow from the weight as well, and are held fast: finite differences
    // of the weight have to move the student's alone.
    check_gradients(&[hidden.shallow_clone()], |t| {
        linear_distillation(&t[0], &weight, &teacher).unwrap()
    });
    let leaf = weight.copy().set_requires_grad(true);
    linear_distillation(&hidden, &leaf, &teacher).unwrap().backward();
    let by_logits = (softmax(&hidden) - softmax(&teacher)) / 6.0;
    let difference = matrix(&leaf.grad()) - by_logits.t().dot(&matrix(&hidden));
    assert!(difference.iter().all(|x| x.abs() < 1e-12));
}

#[test]
fn distillation_in_chunks_equals_all_logits_at_once() {
    tch::manual_seed(9);
    let [hidden, teacher] = [(); 2].map(|()| Tensor::randn([300, 8], DOUBLE));
    let weight = Tensor::randn([32_768, 8], DOUBLE);
    let all_at_once = |hidden: &Tensor| {
        let weight = weight.to_kind(hidden.kind()).transpose(0, 1);
        let expected = teacher.to_kind(hidden.kind()).matmul(&weight).softmax(-1, hidden.kind());
        let student = hidden.matmul(&weight).log_softmax(-1, hidden.kind());
        -(expected * student).sum(hidden.kind()) / 300.0
    };
    check_fused(
        &[hidden.shallow_clone()],
        2e-5,
        |t| {
            let kind = t[0].kind();
            linear_distillation(&t[0], &weight.to_kind(kind), &teacher.to_kind(kind)).unwrap()
        },
        |t| all_at_once(&t[0]),
    );
    let chunked = linear_distillation(&hidden, &weight, &teacher).unwrap();
    assert!(largest_difference(&chunked, &all_at_once(&hidden)) < 1e-10);
}

#[test]
fn a_target_outside_the_vocabulary_is_refused() {
    let (hidden, weight) = (Tensor::zeros([1, 4], FLOAT), Tensor::zeros([8, 4], FLOAT));
    let error = linear_cross_entropy(&hidden, &weight, &Tensor::from_slice(&[8i64])).unwrap_err();
    assert!(error.to_string().contains("expected 0 to 7, found 8 to 8"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn tables_that_grow_with_the_text_have_the_angles_of_every_position(
        texts in prop::collection::vec((0i64..5000, 1i64..9), 1..6),
    ) {
        let rotary = Rotary::new(4, 100.0, 5008, Kind::Double, Device::Cpu).unwrap();
        let shared = rotary.share();
        let x = |seq| Tensor::cat(
            &[Tensor::ones([1, 1, seq, 2], DOUBLE), Tensor::zeros([1, 1, seq, 2], DOUBLE)], -1,
        );
        for (tables, &(start, seq)) in [&rotary, &shared].into_iter().cycle().zip(&texts) {
            let turned = matrix(&tables.apply(&x(seq), start).unwrap().view([seq, 4]));
            for (position, row) in (start..).zip(turned.rows()) {
                for (pair, frequency) in [1.0, 0.1].into_iter().enumerate() {
                    let (sin, cos) = (position as f64 * frequency).sin_cos();
                    prop_assert!((row[pair] - cos).abs() < 1e-12);
                    prop_assert!((row[2 + pair] - sin).abs() < 1e-12);
                }
            }
        }
        prop_assert_eq!(rotary.positions(), 5008);
        prop_assert!(rotary.apply(&x(9), 5000).is_err());
    }

    #[test]
    fn fused_paths_equal_plain_operators(
        batch in 1i64..4, seq in 1i64..70, kv in 1i64..3, groups in 1i64..3, pairs in 1i64..10,
        seed in 0i64..1000,
    ) {
        tch::manual_seed(seed);
        let shape = AttentionShape { heads: kv * groups, kv_heads: kv, head_dim: 2 * pairs };
        let tables = |kind| Rotary::new(2 * pairs, 1e4, 128, kind, Device::Cpu).unwrap();
        let (narrow, wide) = (tables(Kind::Float), tables(Kind::Double));
        let qkv = Tensor::randn([batch, seq, shape.qkv_width()], DOUBLE);
        check_fused(
            &[qkv], 2e-5,
            |t| causal_attention(&t[0] * 1.0, shape, &narrow).unwrap(),
            |t| causal_attention_reference(&t[0], shape, &wide).unwrap(),
        );
        let width = shape.qkv_width();
        let (x, w) = (Tensor::randn([batch * seq, width], DOUBLE), Tensor::randn([width], DOUBLE));
        check_fused(
            &[x.shallow_clone(), w], 1e-5,
            |t| rms_norm(&t[0], &t[1], 1e-5).unwrap(),
            |t| rms_norm_reference(&t[0], &t[1], 1e-5).unwrap(),
        );
        check_fused(
            &[Tensor::cat(&[&x, &(&x * 2.0)], 1)], 1e-5,
            |t| swiglu(&t[0]).unwrap(),
            |t| swiglu_reference(&t[0]).unwrap(),
        );
        let vocab = width + 3;
        let weight = Tensor::randn([vocab, width], DOUBLE);
        let mut targets = Tensor::randint(vocab, [batch * seq], (Kind::Int64, Device::Cpu));
        if batch > 1 {
            let _ = targets.narrow(0, 0, 1).fill_(IGNORED);
            targets = targets.contiguous();
        }
        check_fused(
            &[x, weight], 2e-5,
            |t| linear_cross_entropy(&t[0], &t[1], &targets).unwrap(),
            |t| linear_cross_entropy_reference(&t[0], &t[1], &targets).unwrap(),
        );
    }
}
