//! Both optimisers, step by step, beside float64 `ndarray` references that share no code with them.

use foretoken_trunk::{Parameter, Role};
use ndarray::{Array1, Array2};
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};

use super::*;
use crate::config::MuonPrecision;

/// One parameter with its own gradients for every step.
struct Fixture {
    parameters: Vec<Parameter>,
    gradients: Vec<Vec<Tensor>>,
}

const STEPS: usize = 6;

/// Seeded by itself: libtorch's generator is one for all tests that run at once.
fn random(shape: &[i64], kind: Kind, seed: i64) -> Tensor {
    let count: i64 = shape.iter().product();
    let mixed = (Tensor::arange(count, (Kind::Double, Device::Cpu)) + 1.0 + seed * 7919) * 12.9898;
    let uniform = (mixed.sin() * 43758.5453).frac();
    (uniform * 1.7).reshape(shape).to_kind(kind)
}

/// Name, shape, role and parts of a parameter.
type Layout = (&'static str, &'static [i64], Role, &'static [(&'static str, i64)]);

fn fixture(kind: Kind) -> Fixture {
    let layout: [Layout; 8] = [
        ("embed", &[11, 6], Role::Embedding, &[]),
        ("a.norm", &[6], Role::Vector, &[]),
        ("a.qkv", &[12, 6], Role::Matrix, &[("a.q", 6), ("a.k", 3), ("a.v", 3)]),
        ("a.down", &[6, 10], Role::Matrix, &[]),
        ("b.norm", &[6], Role::Vector, &[]),
        ("b.qkv", &[12, 6], Role::Matrix, &[("b.q", 6), ("b.k", 3), ("b.v", 3)]),
        ("b.down", &[6, 10], Role::Matrix, &[]),
        ("unembed", &[11, 6], Role::Unembedding, &[]),
    ];
    let mut parameters = Vec::new();
    let mut gradients = Vec::new();
    for (name, shape, role, parts) in layout {
        let seed = 10 * parameters.len() as i64;
        let tensor = random(shape, kind, seed).set_requires_grad(true);
        parameters.push(if parts.is_empty() {
            Parameter::whole(&tensor, role, name)
        } else {
            Parameter::new(&tensor, role, parts.iter().copied())
        });
        gradients.push((1..=STEPS as i64).map(|step| random(shape, kind, seed + step)).collect());
    }
    Fixture { parameters, gradients }
}

impl Fixture {
    fn clones(&self) -> Vec<Parameter> {
        self.parameters
            .iter()
            .map(|parameter| Parameter {
                tensor: parameter.tensor.shallow_clone(),
                role: parameter.role,
                parts: parameter.parts.clone(),
            })
            .collect()
    }

    /// Gives every parameter the step's gradient, by a backward pass of Σ p·g.
    fn backward(&self, step: usize) {
        for (parameter, gradients) in self.parameters.iter().zip(&self.gradients) {
            (&parameter.tensor * &gradients[step]).sum(None).backward();
        }
    }
}

fn flat(tensor: &Tensor) -> Array1<f64> {
    let numbers: Vec<f64> =
        Vec::try_from(tensor.detach().to_kind(Kind::Double).reshape([-1])).unwrap();
    Array1::from(numbers)
}

fn section(kind: OptimizerKind) -> OptimizerSection {
    OptimizerSection {
        kind,
        learning_rate: 0.01,
        muon_learning_rate: 0.05,
        weight_decay: 0.1,
        clip: 8.0,
        muon_precision: MuonPrecision::Float32,
        ..OptimizerSection::default()
    }
}

/// The textbook's `AdamW`.
struct ReferenceAdamW {
    m: Array1<f64>,
    v: Array1<f64>,
}

impl ReferenceAdamW {
    fn new(size: usize) -> Self {
        Self { m: Array1::zeros(size), v: Array1::zeros(size) }
    }

    fn step(
        &mut self,
        p: &mut Array1<f64>,
        g: &Array1<f64>,
        s: &OptimizerSection,
        rate: f64,
        decay: f64,
        t: i32,
    ) {
        self.m = &self.m * s.beta1 + g * (1.0 - s.beta1);
        self.v = &self.v * s.beta2 + g * g * (1.0 - s.beta2);
        let m = &self.m / (1.0 - s.beta1.powi(t));
        let v = &self.v / (1.0 - s.beta2.powi(t));
        *p = &*p * (1.0 - rate * decay) - m / (v.mapv(f64::sqrt) + s.epsilon) * rate;
    }
}

/// Jordan's Muon for one matrix, always on the side with fewer rows.
fn reference_orthogonal(update: &Array2<f64>) -> Array2<f64> {
    if update.nrows() > update.ncols() {
        return reference_orthogonal(&update.t().to_owned()).t().to_owned();
    }
    let mut x = update / (update.mapv(|value| value * value).sum().sqrt() + 1e-7);
    for _ in 0..5 {
        let gram = x.dot(&x.t());
        let polynomial = &gram * -4.7750 + gram.dot(&gram) * 2.0315;
        x = &x * 3.4445 + polynomial.dot(&x);
    }
    x
}

fn reference_muon(
    p: &mut Array2<f64>,
    m: &mut Array2<f64>,
    g: &Array2<f64>,
    s: &OptimizerSection,
    rate: f64,
) {
    *m = &*m * s.muon_momentum + g * (1.0 - s.muon_momentum);
    let update = &*m * s.muon_momentum + g * (1.0 - s.muon_momentum);
    let scale = (p.nrows() as f64 / p.ncols() as f64).max(1.0).sqrt();
    *p = &*p * (1.0 - rate * s.weight_decay) - reference_orthogonal(&update) * (rate * scale);
}

/// What every stock tensor has to be after [`STEPS`] steps, by the references.
fn expected(
    fixture: &Fixture,
    s: &OptimizerSection,
    factors: &[f64],
) -> Vec<(String, Array1<f64>)> {
    let norms: Vec<f64> = (0..STEPS)
        .map(|step| {
            fixture
                .gradients
                .iter()
                .map(|g| flat(&g[step]).mapv(|x| x * x).sum())
                .sum::<f64>()
                .sqrt()
        })
        .collect();
    let mut all = Vec::new();
    for (parameter, gradients) in fixture.parameters.iter().zip(&fixture.gradients) {
        let columns = parameter.tensor.size().get(1).copied().unwrap_or(1);
        let mut first = 0;
        for part in &parameter.parts {
            let slice = |tensor: &Tensor| flat(&tensor.narrow(0, first, part.rows));
            let mut p = slice(&parameter.tensor);
            let shape = (part.rows as usize, columns as usize);
            let mut adam = ReferenceAdamW::new(p.len());
            let mut momentum = Array2::zeros(shape);
            for step in 0..STEPS {
                let clip = (s.clip / norms[step]).min(1.0);
                let g = slice(&gradients[step]) * clip;
                if s.kind == OptimizerKind::Muon && parameter.role == Role::Matrix {
                    let mut matrix = p.clone().into_shape_with_order(shape).unwrap();
                    let g = g.into_shape_with_order(shape).unwrap();
                    reference_muon(
                        &mut matrix,
                        &mut momentum,
                        &g,
                        s,
                        s.muon_learning_rate * factors[step],
                    );
                    p = Array1::from_iter(matrix);
                } else {
                    let decay = if parameter.role == Role::Vector { 0.0 } else { s.weight_decay };
                    adam.step(
                        &mut p,
                        &g,
                        s,
                        s.learning_rate * factors[step],
                        decay,
                        step as i32 + 1,
                    );
                }
            }
            first += part.rows;
            all.push((part.name.clone(), p));
        }
    }
    all
}

fn compare(kind: OptimizerKind, number: Kind, tolerance: f64) {
    let fixture = fixture(number);
    let section = section(kind);
    let factors = [0.25, 0.5, 1.0, 0.0, 0.9, 0.3];
    let expected = expected(&fixture, &section, &factors);
    let mut optimizer = Optimizer::new(fixture.clones(), &section).unwrap();
    for (step, factor) in factors.into_iter().enumerate() {
        fixture.backward(step);
        assert!(optimizer.step(factor).unwrap().updated);
    }
    let named: Vec<(String, Tensor)> =
        fixture.parameters.iter().flat_map(|parameter| parameter.named().unwrap()).collect();
    assert_eq!(named.len(), expected.len());
    for ((name, ours), (_, reference)) in named.iter().zip(&expected) {
        let worst = (flat(ours) - reference).mapv(f64::abs).fold(0.0, |a: f64, &b| a.max(b));
        assert!(worst < tolerance, "{name} is off by {worst:e}");
    }
}

#[test]
fn adamw_follows_the_reference_step_by_step_in_both_precisions() {
    compare(OptimizerKind::Adamw, Kind::Double, 1e-12);
    compare(OptimizerKind::Adamw, Kind::Float, 1e-5);
}

#[test]
fn muon_follows_the_reference_step_by_step_in_both_precisions() {
    compare(OptimizerKind::Muon, Kind::Double, 1e-11);
    compare(OptimizerKind::Muon, Kind::Float, 1e-4);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn muons_update_has_singular_values_near_one(
        rows in 4i64..40, columns in 4i64..40, scale in -6.0f64..6.0, seed in 0i64..1000,
        half in any::<bool>(),
    ) {
        // Square random matrices have singular values near 0, which five iterations can't lift.
        let columns = if (rows - columns).abs() < 3 { columns + 8 } else { columns };
        let kind = if half { Kind::BFloat16 } else { Kind::Double };
        let stack = random(&[2, rows, columns], Kind::Double, seed) * 10f64.powf(scale);
        let update = orthogonalize(&stack.to_kind(kind)).unwrap().to_kind(Kind::Double);
        let values = update.svd(true, false).1;
        prop_assert!(values.min().double_value(&[]) > 0.6, "{values}");
        prop_assert!(values.max().double_value(&[]) < 1.3, "{values}");
    }
}

#[test]
fn matrices_of_zeros_and_single_rows_stay_finite() {
    for shape in [[2, 5, 5], [1, 1, 7], [3, 7, 1]] {
        let zeros = Tensor::zeros(shape, (Kind::Float, Device::Cpu));
        let update = orthogonalize(&zeros).unwrap();
        assert_eq!(update.abs().max().double_value(&[]), 0.0);
    }
}

#[test]
fn a_gradient_that_is_not_finite_moves_nothing_and_is_forgotten() {
    let fixture = fixture(Kind::Float);
    let mut optimizer = Optimizer::new(fixture.clones(), &section(OptimizerKind::Muon)).unwrap();
    let before: Vec<Tensor> = fixture.parameters.iter().map(|p| p.tensor.detach().copy()).collect();
    (&fixture.parameters[2].tensor * f64::NAN).sum(None).backward();
    let report = optimizer.step(1.0).unwrap();
    assert!(!report.updated && !report.gradient_norm.is_finite());
    assert_eq!(optimizer.updates(), 0);
    for (parameter, before) in fixture.parameters.iter().zip(&before) {
        assert_eq!(&parameter.tensor.detach(), before);
    }
    fixture.backward(0);
    assert!(optimizer.step(1.0).unwrap().updated);
}

#[test]
fn the_reported_norm_is_that_of_all_gradients_before_clipping() {
    let fixture = fixture(Kind::Double);
    let mut optimizer = Optimizer::new(fixture.clones(), &section(OptimizerKind::Adamw)).unwrap();
    for step in 0..2 {
        fixture.backward(step);
        let all: f64 = fixture.gradients.iter().map(|g| flat(&g[step]).mapv(|x| x * x).sum()).sum();
        let norm = optimizer.step(1.0).unwrap().gradient_norm;
        assert!((norm - all.sqrt()).abs() < 1e-9);
    }
}

#[test]
fn a_restored_optimizer_goes_on_bit_for_bit() {
    for kind in [OptimizerKind::Adamw, OptimizerKind::Muon] {
        let section = section(kind);
        let (whole, split) = (fixture(Kind::Float), fixture(Kind::Float));
        let mut uninterrupted = Optimizer::new(whole.clones(), &section).unwrap();
        let mut first = Optimizer::new(split.clones(), &section).unwrap();
        for step in 0..3 {
            whole.backward(step);
            uninterrupted.step(0.7).unwrap();
            split.backward(step);
            first.step(0.7).unwrap();
        }
        let saved: Vec<(String, Tensor)> =
            first.state().unwrap().into_iter().map(|(name, t)| (name, t.copy())).collect();
        let mut second = Optimizer::new(split.clones(), &section).unwrap();
        second.restore(&saved, first.updates()).unwrap();
        for step in 3..STEPS {
            whole.backward(step);
            uninterrupted.step(0.7).unwrap();
            split.backward(step);
            second.step(0.7).unwrap();
        }
        for (a, b) in whole.parameters.iter().zip(&split.parameters) {
            assert_eq!(a.tensor.detach(), b.tensor.detach());
        }
    }
}

#[test]
fn states_that_do_not_fit_are_refused_by_name() {
    let fixture = fixture(Kind::Float);
    let mut optimizer = Optimizer::new(fixture.clones(), &section(OptimizerKind::Muon)).unwrap();
    let state = optimizer.state().unwrap();
    let names: Vec<&str> = state.iter().map(|(name, _)| name.as_str()).collect();
    assert!(names.contains(&"momentum.b.k") && names.contains(&"square.embed"), "{names:?}");
    let mut missing: Vec<(String, Tensor)> =
        state.iter().map(|(name, t)| (name.clone(), t.copy())).collect();
    let (name, _) = missing.remove(2);
    let error = optimizer.restore(&missing, 3).unwrap_err().to_string();
    assert!(error.contains(&name) && error.contains("missing"), "{error}");
    missing.push((name.clone(), Tensor::zeros([1], (Kind::Float, Device::Cpu))));
    let error = optimizer.restore(&missing, 3).unwrap_err().to_string();
    assert!(error.contains(&name) && error.contains("shape [1]"), "{error}");
    let mut extra = state;
    extra.push(("mean.other".to_owned(), Tensor::zeros([1], (Kind::Float, Device::Cpu))));
    let error = optimizer.restore(&extra, 3).unwrap_err().to_string();
    assert!(error.contains("mean.other"), "{error}");
}

#[test]
fn what_rests_stays_as_it_is_and_goes_on_as_if_it_had_not_been_asked() {
    for kind in [OptimizerKind::Adamw, OptimizerKind::Muon] {
        let fixture = fixture(Kind::Double);
        let mut optimizer = Optimizer::new(fixture.clones(), &section(kind)).unwrap();
        // The embedding, one of the fused matrices, one of the others.
        let resting = |place: usize| [0, 2, 6].contains(&place);
        let all = fixture.clones().into_iter().enumerate();
        let rest: Vec<Parameter> = all.filter(|(place, _)| resting(*place)).map(|p| p.1).collect();
        let values = || -> Vec<Tensor> {
            fixture.parameters.iter().map(|p| p.tensor.detach().copy()).collect()
        };
        let moments = |optimizer: &Optimizer| -> Vec<Tensor> {
            let state = optimizer.state().unwrap();
            let names = rest.iter().flat_map(|p| &p.parts).map(|part| &part.name);
            let mut moments = Vec::new();
            for name in names {
                let of = |(full, _): &&(String, Tensor)| {
                    full.split_once('.').is_some_and(|(_, stock)| stock == name)
                };
                moments.extend(state.iter().filter(of).map(|(_, tensor)| tensor.copy()));
            }
            moments
        };
        fixture.backward(0);
        optimizer.step(1.0).unwrap();
        let (before, moments_before) = (values(), moments(&optimizer));
        assert!(moments_before.len() >= rest.len());
        for step in 1..3 {
            optimizer.rest(&rest);
            fixture.backward(step);
            assert!(optimizer.step(1.0).unwrap().updated);
        }
        for (place, (a, b)) in values().iter().zip(&before).enumerate() {
            assert_eq!(a == b, resting(place), "{kind:?}, parameter {place}");
        }
        assert_eq!(moments(&optimizer), moments_before);
        fixture.backward(3);
        optimizer.step(1.0).unwrap();
        assert!(values().iter().zip(&before).all(|(a, b)| a != b));
    }
}

#[test]
fn copies_in_fewer_bits_follow_and_their_gradients_count() {
    for kind in [OptimizerKind::Adamw, OptimizerKind::Muon] {
        let section = OptimizerSection {
            kind,
            muon_precision: MuonPrecision::Float32,
            clip: 0.0,
            ..OptimizerSection::default()
        };
        let (plain, master) = (fixture(Kind::Float), fixture(Kind::Float));
        let leaf = |parameter: &Parameter| Parameter {
            tensor: parameter.tensor.detach().to_kind(Kind::BFloat16).set_requires_grad(true),
            role: parameter.role,
            parts: parameter.parts.clone(),
        };
        let copies: Vec<Parameter> = master.parameters.iter().map(leaf).collect();
        let leaves: Vec<Tensor> = copies.iter().map(|copy| copy.tensor.shallow_clone()).collect();
        let mut ours = Optimizer::with_copies(master.clones(), copies, &section).unwrap();
        let mut theirs = Optimizer::new(plain.clones(), &section).unwrap();
        for step in 0..STEPS {
            for (place, leaf) in leaves.iter().enumerate() {
                // The same numbers for both: those that bfloat16 has.
                let gradient = plain.gradients[place][step].to_kind(Kind::BFloat16);
                (leaf * &gradient).sum(Kind::Float).backward();
                let wide = gradient.to_kind(Kind::Float);
                (&plain.parameters[place].tensor * &wide).sum(Kind::Float).backward();
            }
            ours.step(1.0).unwrap();
            theirs.step(1.0).unwrap();
            for (place, leaf) in leaves.iter().enumerate() {
                let (a, b) = (&master.parameters[place].tensor, &plain.parameters[place].tensor);
                assert_eq!(a, b, "{kind:?}, parameter {place}, step {step}");
                assert_eq!(leaf, &a.to_kind(Kind::BFloat16));
            }
        }
    }
    let (one, other) = (fixture(Kind::Float), fixture(Kind::Float));
    let fewer = other.clones().into_iter().skip(1).collect();
    assert!(Optimizer::with_copies(one.clones(), fewer, &OptimizerSection::default()).is_err());
}

#[test]
fn sums_over_many_parts_are_not_those_of_the_copies_few_bits() {
    let section = OptimizerSection { clip: 0.0, ..section(OptimizerKind::Adamw) };
    let sum = |parts_done: bool| {
        let value = |kind| Tensor::zeros([3], (kind, Device::Cpu)).set_requires_grad(true);
        let (master, copy) = (value(Kind::Float), value(Kind::BFloat16));
        let whole =
            |tensor: &Tensor| vec![Parameter::whole(tensor, Role::Vector, "weight".to_owned())];
        let mut optimizer = Optimizer::with_copies(whole(&master), whole(&copy), &section).unwrap();
        for _ in 0..1024 {
            copy.sum(Kind::Float).backward();
            if parts_done {
                optimizer.part_done().unwrap();
            }
        }
        optimizer.step(1.0).unwrap().gradient_norm / 3f64.sqrt()
    };
    assert_eq!(sum(true).round(), 1024.0);
    // In bfloat16 256 + 1 is 256.
    assert_eq!(sum(false).round(), 256.0);
}
