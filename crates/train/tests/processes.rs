//! Several processes on loopback train as one does.

mod common;

use std::collections::BTreeMap;
use std::env;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use foretoken_dist::{Destination, Environment, Limits, ProcessGroup};
use foretoken_heads::{HeadsConfig, ModelConfig, MultiTokenModel};
use foretoken_loss::MultiTokenLoss;
use foretoken_train::{
    Optimizer, OptimizerKind, OptimizerSection, TrainOptions, peak_memory_bytes, train,
};
use foretoken_trunk::{Architecture, Parameter, Role};
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

use common::Place;

const ROLE: &str = "FORETOKEN_TEST_ROLE";
const OUT: &str = "FORETOKEN_TEST_OUT";
const TEXT: &str = "FORETOKEN_TEST_TEXT";
const SETS: &str = "FORETOKEN_TEST_SETS";
const SHARED_BY: &str = "FORETOKEN_TEST_SHARED_BY";

/// A rank: a test that does nothing unless it is told what.
#[test]
fn member() {
    let Ok(role) = env::var(ROLE) else { return };
    let place = Environment::detect().unwrap().unwrap();
    let group = ProcessGroup::connect(&place, Limits::default()).unwrap();
    match role.as_str() {
        "train" => member_trains(group),
        "memory" => member_fills(&group),
        _ => member_steps(&group, role == "steps64"),
    }
}

/// `train`, as the command line would run it.
fn member_trains(group: ProcessGroup) {
    let place = Place::new();
    let sets = env::var(SETS).unwrap();
    let mut config = place.config(&sets.split(' ').collect::<Vec<_>>());
    config.data.path = env::var_os(TEXT).map(PathBuf::from);
    let out = PathBuf::from(env::var_os(OUT).unwrap());
    let options = TrainOptions { resume: true, group: Some(group), ..TrainOptions::default() };
    if let Err(error) = train(&config, &out, &options) {
        eprintln!("{error}");
        std::process::exit(1);
    }
}

/// Steps by hand; says after each what the weights are, and what the first gradient was.
fn member_steps(group: &ProcessGroup, double: bool) {
    let _place = Place::new();
    let kind = if double { Kind::Double } else { Kind::Float };
    let model = small_model(kind);
    let section = OptimizerSection {
        muon_precision: foretoken_train::MuonPrecision::Float32,
        ..Default::default()
    };
    let mut optimizer =
        Optimizer::shared(model.parameters(), None, &section, group, destination()).unwrap();
    let each = 8 / group.size() as i64;
    for step in 0..4 {
        let rows = batch(step).narrow(0, each * group.rank() as i64, each);
        let loss = MultiTokenLoss::new(2);
        // Every other step all gradients wait for the end.
        loss.backward_telling(&model, &rows, |part| {
            if step % 2 == 0 {
                optimizer.ready(&model.part_parameters(part)).unwrap();
            }
        })
        .unwrap();
        let report = optimizer.step(1.0).unwrap();
        println!("@ {step} {} {:e}", hash(&model), report.gradient_norm);
        if step == 0 {
            let gradients = first_gradients(&optimizer, &section, report.gradient_norm);
            if let Some(out) = env::var_os(OUT).filter(|_| group.rank() == 0) {
                std::fs::write(out, serde_json::to_vec(&gradients).unwrap()).unwrap();
            }
        }
    }
    group.barrier().unwrap();
}

/// The joint gradient of each parameter, from what the first step made of it: momentum and mean
/// begin at zero and become a share of the clipped gradient.
fn first_gradients(
    optimizer: &Optimizer,
    section: &OptimizerSection,
    norm: f64,
) -> BTreeMap<String, Vec<f64>> {
    let clipped = if norm > section.clip { section.clip / norm } else { 1.0 };
    let gradient = |(name, moment): (String, Tensor)| {
        let (kind, name) = name.split_once('.')?;
        let share = match kind {
            "momentum" => 1.0 - section.muon_momentum,
            "mean" => 1.0 - section.beta1,
            _ => return None,
        };
        let gradient = moment.to_kind(Kind::Double).reshape([-1]) / (share * clipped);
        Some((name.to_owned(), Vec::try_from(gradient).unwrap()))
    };
    optimizer.state().unwrap().into_iter().filter_map(gradient).collect()
}

/// Who moves the parameters.
fn destination() -> Destination {
    match env::var(SHARED_BY).as_deref() {
        Ok("owner") => Destination::Owner,
        _ => Destination::Everyone,
    }
}

/// A step of a model whose optimiser needs most of the memory.
fn member_fills(group: &ProcessGroup) {
    let weight = Tensor::ones([1 << 23], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let parameters = vec![Parameter::whole(&weight, Role::Vector, "weight")];
    let section = OptimizerSection { kind: OptimizerKind::Adamw, ..Default::default() };
    let mut optimizer =
        Optimizer::shared(parameters, None, &section, group, destination()).unwrap();
    weight.sum(None).backward();
    optimizer.step(1.0).unwrap();
    println!("@ {}", peak_memory_bytes().unwrap_or(0));
    group.barrier().unwrap();
}

fn small_model(kind: Kind) -> MultiTokenModel {
    let architecture = Architecture {
        vocab: 40,
        dim: 24,
        layers: 4,
        attention_heads: 4,
        kv_heads: 2,
        ffn: 40,
        context: 32,
        ..Architecture::default()
    };
    let heads = HeadsConfig::new("block", 2);
    let config = ModelConfig { architecture, heads, end_of_text: Vec::new() };
    MultiTokenModel::new(&config, kind, Device::Cpu, 5).unwrap()
}

fn batch(step: i64) -> Tensor {
    let numbers = Tensor::arange(8 * 18, (Kind::Int64, Device::Cpu)) * 7919 + step * 104_729;
    (&numbers * &numbers).remainder(40).view([8, 18])
}

fn hash(model: &MultiTokenModel) -> String {
    let mut hash = Sha256::new();
    for parameter in model.parameters() {
        let numbers = parameter.tensor.detach().to_kind(Kind::Double).reshape([-1]);
        for number in Vec::<f64>::try_from(numbers).unwrap() {
            hash.update(number.to_le_bytes());
        }
    }
    format!("{:x}", hash.finalize())
}

struct Ranks(Vec<Child>);

impl Ranks {
    fn start(size: usize, role: &str, more: &[(&'static str, &str)]) -> Self {
        let more: Vec<(&'static str, String)> =
            more.iter().map(|&(name, value)| (name, value.to_owned())).collect();
        Self::each(&vec![more; size], role)
    }

    /// Ranks that are told what `more` has for each.
    fn each<M: AsRef<[(&'static str, String)]>>(more: &[M], role: &str) -> Self {
        let size = more.len();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let rank = |rank: usize| {
            Command::new(env::current_exe().unwrap())
                .args(["--exact", "member", "--nocapture", "--test-threads=1"])
                .env(ROLE, role)
                .envs(more[rank].as_ref().iter().map(|(name, value)| (name, value)))
                .env("RANK", rank.to_string())
                .env("WORLD_SIZE", size.to_string())
                .env("MASTER_ADDR", "127.0.0.1")
                .env("MASTER_PORT", port.to_string())
                .env("OMP_NUM_THREADS", "1")
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        };
        Self((0..size).map(rank).collect())
    }

    fn end(self) -> Vec<Output> {
        self.0.into_iter().map(|child| child.wait_with_output().unwrap()).collect()
    }
}

fn said(output: &Output) -> Vec<String> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().filter_map(|line| Some(line.split_once("@ ")?.1.to_owned())).collect()
}

#[test]
fn weights_are_the_same_bits_on_all_ranks_after_every_step() {
    let place = Place::new();
    let norm = |lines: &[String]| {
        lines[0].split(' ').nth(2).and_then(|norm| norm.parse::<f64>().ok()).unwrap()
    };
    let path = place.path("gradients.json");
    let gradients = || -> BTreeMap<String, Vec<f64>> {
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap()
    };
    for (role, bound) in [("steps64", 1e-12), ("steps32", 1e-5)] {
        let out = (OUT, path.to_str().unwrap());
        let alone = said(&Ranks::start(1, role, &[out]).end()[0]);
        let expected = gradients();
        for (size, by) in [(1, "owner"), (2, "all"), (2, "owner"), (4, "all"), (4, "owner")] {
            std::fs::remove_file(&path).unwrap();
            let outputs = Ranks::start(size, role, &[(SHARED_BY, by), out]).end();
            let lines: Vec<Vec<String>> = outputs.iter().map(said).collect();
            assert_eq!(lines[0].len(), 4);
            for others in &lines[1..] {
                assert_eq!(others, &lines[0], "{size} {role} {by}");
            }
            let (together, one) = (norm(&lines[0]), norm(&alone));
            assert!((together - one).abs() < bound * one, "{by}: {together} and {one}");
            let found = gradients();
            assert!(found.keys().eq(expected.keys()) && found.len() > 30);
            for (name, gradient) in found {
                let length = |numbers: &mut dyn Iterator<Item = f64>| {
                    numbers.map(|number| number * number).sum::<f64>().sqrt()
                };
                let expected = &expected[&name];
                let off = length(&mut gradient.iter().zip(expected).map(|(a, b)| a - b));
                let whole = length(&mut expected.iter().copied());
                assert!(whole > 0.0 && off < bound * whole, "{size} {by} {name}: {off} of {whole}");
            }
        }
    }
}

#[test]
fn memory_falls_where_each_process_keeps_a_share_of_the_state() {
    let peak = |by: &str| {
        let outputs = Ranks::start(4, "memory", &[(SHARED_BY, by)]).end();
        outputs.iter().map(|output| said(output)[0].parse::<f64>().unwrap()).fold(0.0, f64::max)
    };
    // Two moments and what AdamW computes in, of 2^23 numbers of 4 bytes each; three quarters of
    // them are the others'.
    let spared = 0.75 * 3.0 * 4.0 * f64::from(1 << 23);
    let (all, owner) = (peak("all"), peak("owner"));
    assert!(all - owner > 0.8 * spared, "{all} and {owner}");
}

fn run(place: &Place, out: &str, size: usize, sets: &str) -> Ranks {
    let text = place.path("text.txt");
    let out: &Path = &place.path(out);
    let more = [(OUT, out.to_str().unwrap()), (TEXT, text.to_str().unwrap()), (SETS, sets)];
    Ranks::start(size, "train", &more)
}

#[test]
fn a_run_of_several_processes_is_that_of_one_with_the_joint_batch() {
    let place = Place::new();
    for kind in ["adamw", "muon"] {
        let sets = format!(
            "train.steps=8 train.batch=4 train.precision=float64 optimizer.type={kind} optimizer.schedule=constant"
        );
        let list: Vec<&str> = sets.split(' ').collect();
        let one = format!("{kind}-1");
        place.train(&one, &list).unwrap();
        for (size, sharded) in [(2, true), (2, false), (4, true), (4, false)] {
            let out = format!("{kind}-{size}{}", if sharded { "" } else { "-whole" });
            let sets = format!("{sets} train.shard_optimizer={sharded}");
            for output in run(&place, &out, size, &sets).end() {
                said(&output);
            }
            let weights = |out: &str| place.weights(&format!("{out}/model"));
            for ((name, a), (_, b)) in weights(&one).iter().zip(weights(&out)) {
                let off = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                assert!(off < 1e-9, "{out}: {name} is off by {off}");
            }
            for ((_, a), (_, b)) in place.losses(&one).iter().zip(place.losses(&out)) {
                assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-9));
            }
        }
    }
    // A checkpoint of two processes goes on in one, and one of one in four; those of four that share
    // the optimiser's state go on in two that do not.
    for kind in ["adamw", "muon"] {
        let sets = format!(
            "train.steps=12 train.batch=4 train.precision=float64 optimizer.type={kind} \
             optimizer.schedule=constant"
        );
        let list: Vec<&str> = sets.split(' ').collect();
        let whole = format!("{kind}-whole");
        place.train(&whole, &list).unwrap();
        place.resume(&format!("{kind}-2"), &list).unwrap();
        let unshared = format!("{sets} train.shard_optimizer=false");
        for (out, size, sets) in [("1", 4, &sets), ("4", 2, &unshared)] {
            for output in run(&place, &format!("{kind}-{out}"), size, sets).end() {
                said(&output);
            }
        }
        for out in ["1", "2", "4"] {
            let other = place.weights(&format!("{kind}-{out}/model"));
            for ((name, a), (_, b)) in place.weights(&format!("{whole}/model")).iter().zip(other) {
                let off = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                assert!(off < 1e-9, "{kind}-{out}: {name} is off by {off}");
            }
        }
    }
}

#[test]
fn a_batch_that_cannot_be_divided_is_one_clear_line() {
    let place = Place::new();
    for output in run(&place, "run", 2, "train.batch=3").end() {
        assert!(!output.status.success());
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains("`train.batch`") && text.contains("2 processes"), "{text}");
    }
}

#[test]
fn when_a_rank_is_killed_the_others_end_and_name_it() {
    let place = Place::new();
    let mut ranks = run(&place, "run", 2, "train.steps=1000000 train.checkpoint_every=50");
    let began = Instant::now();
    while !place.path("run/checkpoints/step-50").exists() {
        assert!(began.elapsed() < Duration::from_secs(60), "no step was taken");
        std::thread::sleep(Duration::from_millis(20));
    }
    ranks.0[1].kill().unwrap();
    let killed = Instant::now();
    let outputs = ranks.end();
    assert!(killed.elapsed() < Duration::from_secs(30), "{:?}", killed.elapsed());
    assert_eq!(outputs[0].status.code(), Some(1));
    let text = String::from_utf8_lossy(&outputs[0].stderr);
    assert!(text.contains("rank 1"), "{text}");
}

#[test]
fn parts_of_packed_documents_and_few_bits_add_up_over_processes() {
    let place = Place::new();
    let exact = "train.steps=6 train.batch=4 train.accumulate=2 data.documents=packed \
                 train.precision=float64 optimizer.schedule=constant";
    let rounded = "train.steps=6 train.batch=4 train.accumulate=2 train.precision=bfloat16";
    for (name, sets, bound) in [("exact", exact, 1e-9), ("rounded", rounded, 0.05)] {
        let list: Vec<&str> = sets.split_whitespace().collect();
        let (one, two) = (format!("{name}-1"), format!("{name}-2"));
        place.train(&one, &list).unwrap();
        for output in run(&place, &two, 2, &list.join(" ")).end() {
            said(&output);
        }
        for ((step, a), (_, b)) in place.losses(&one).iter().zip(place.losses(&two)) {
            let near = a.iter().zip(&b).all(|(a, b)| (a - b).abs() < bound);
            assert!(near, "{name}, step {step}: {a:?} and {b:?}");
        }
    }
}

#[test]
fn processes_that_do_not_begin_with_the_same_are_refused_by_rank() {
    let place = Place::new();
    place.train("here", &["train.steps=4", "train.batch=2"]).unwrap();
    let text = place.path("text.txt");
    let (here, elsewhere) = (place.path("here"), place.path("elsewhere"));
    let sets = "train.steps=6 train.batch=2";
    let other = "train.steps=6 train.batch=2 train.keep=7";
    for (out, sets_of_1, problem) in [
        (&elsewhere, sets, "rank 1 goes on from step 0, and rank 0 from step 4"),
        (&here, other, "rank 1 has another recipe, text or checkpoint than rank 0"),
    ] {
        let more = |out: &Path, sets: &str| {
            [(OUT, out), (TEXT, &text), (SETS, Path::new(sets))]
                .map(|(name, value)| (name, value.to_str().unwrap().to_owned()))
        };
        let outputs = Ranks::each(&[more(&here, sets), more(out, sets_of_1)], "train").end();
        for output in outputs {
            assert_eq!(output.status.code(), Some(1));
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(text.contains(problem), "{text}");
        }
    }
}
