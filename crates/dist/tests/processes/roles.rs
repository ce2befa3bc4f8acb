//! What the ranks of the tests do. A line that begins with `@ ` is for the test that started them.

use std::time::Duration;

use foretoken_dist::{Buckets, Destination, Environment, Limits, ProcessGroup, Result};
use tch::{Device, Kind, Tensor};

use crate::launch::{JOIN, ROLE};

/// The sums whose bits the role `collectives` shows.
pub(crate) const SUMS: usize = LENGTHS.len() * REPEATS;
const LENGTHS: [usize; 4] = [1, 7, 1000, 100_003];
const REPEATS: usize = 3;

pub(crate) fn run() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let join = std::env::var(JOIN).unwrap().parse().unwrap();
    let seconds = Duration::from_secs;
    let limits = Limits {
        join: Duration::from_millis(join),
        collective: seconds(if role == "dawdle" { 3 } else { 30 }),
        silence: seconds(2),
    };
    let place = Environment::detect().unwrap().unwrap();
    match ProcessGroup::connect(&place, limits).and_then(|group| play(&role, group)) {
        Ok(()) => say("done"),
        Err(error) => say(&format!("error: {error}")),
    }
}

fn say(line: &str) {
    println!("@ {line}");
}

fn play(role: &str, group: ProcessGroup) -> Result<()> {
    match role {
        "collectives" => collectives(&group),
        "buckets" => buckets(&group),
        "sum for ever" => sum_for_ever(&group),
        "dawdle" => dawdle(&group),
        "fail" => fail(&group),
        "leave" => leave(group),
        _ => panic!("no role {role}"),
    }
}

/// Values of about unit size that differ from rank to rank.
fn values(rank: usize, length: usize) -> Vec<f64> {
    (0..length).map(|i| ((i * 37 + rank * 101 + 5) as f64 * 0.618).sin()).collect()
}

fn sums(size: usize, length: usize) -> Vec<f64> {
    let ranks: Vec<_> = (0..size).map(|rank| values(rank, length)).collect();
    (0..length).map(|i| ranks.iter().map(|values| values[i]).sum()).collect()
}

fn tensor(values: &[f64], kind: Kind) -> Tensor {
    Tensor::from_slice(values).to_kind(kind)
}

#[track_caller]
fn check(found: &Tensor, expected: &[f64], tolerance: f64) {
    let found = Vec::<f64>::try_from(found.to_kind(Kind::Double)).unwrap();
    assert_eq!(found.len(), expected.len());
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() <= tolerance, "{i}: {found} instead of {expected}");
    }
}

/// A fingerprint of a float32 tensor's bits (FNV-1a).
fn bits(tensor: &Tensor) -> u64 {
    let values = Vec::<f32>::try_from(tensor).unwrap();
    values
        .iter()
        .flat_map(|value| value.to_bits().to_le_bytes())
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
}

fn collectives(group: &ProcessGroup) -> Result<()> {
    let (rank, size) = (group.rank(), group.size());
    group.check()?;
    for root in 0..size {
        let shared = tensor(&values(rank, 5), Kind::Double).view([5, 1]);
        group.broadcast(&shared, root)?;
        check(&shared.view([-1]), &values(root, 5), 0.0);
    }
    summed(group)?;
    for (kind, tolerance) in [(Kind::Double, 1e-14), (Kind::Half, 1e-2), (Kind::BFloat16, 6e-2)] {
        let sum = tensor(&values(rank, 300), kind);
        group.all_reduce(&sum)?;
        check(&sum, &sums(size, 300), tolerance);
    }
    let count = Tensor::from_slice(&[rank as i64, 1 << 60]);
    group.all_reduce(&count)?;
    let ranks = size as i64;
    assert_eq!(Vec::<i64>::try_from(&count).unwrap(), [ranks * (ranks - 1) / 2, ranks << 60]);
    slices(group, 8)?;
    slices(group, 3_000_000)?; // longer than one piece of a gather
    refusals(group);
    group.barrier()
}

/// Sums of several lengths, twice each under way, the ranks out of step in a new way each time.
fn summed(group: &ProcessGroup) -> Result<()> {
    let (rank, size) = (group.rank(), group.size());
    for length in LENGTHS {
        let mut seen = Vec::new();
        for repeat in 0..REPEATS {
            std::thread::sleep(Duration::from_millis((rank * 7 + repeat * 13) as u64 % 20));
            let [first, second] = [0, 1].map(|_| tensor(&values(rank, length), Kind::Float));
            let works = [group.all_reduce_async(&first)?, group.all_reduce_async(&second)?];
            works.into_iter().try_for_each(foretoken_dist::Work::wait)?;
            check(&first, &sums(size, length), 1e-5);
            assert_eq!(bits(&first), bits(&second));
            seen.push(bits(&first));
            say(&format!("sum {length} {:016x}", bits(&first)));
        }
        assert!(seen.iter().all(|bits| *bits == seen[0]), "{seen:x?}");
    }
    Ok(())
}

/// Reduces slices to their owners and gathers them again: an all-reduce.
fn slices(group: &ProcessGroup, length: usize) -> Result<()> {
    let (rank, size) = (group.rank(), group.size());
    let length = length - length % size;
    let flat = tensor(&values(rank, length), Kind::Float);
    group.reduce_slices(&flat)?;
    let expected = sums(size, length);
    let own = group.slice(length as i64, rank)?;
    let part = flat.narrow(0, own.start, own.end - own.start);
    check(&part, &expected[own.start as usize..own.end as usize], 1e-5);
    group.all_gather_slices(&flat)?;
    check(&flat, &expected, 1e-5);
    Ok(())
}

/// What can't be is said before anything is sent, so that the group goes on.
fn refusals(group: &ProcessGroup) {
    let size = group.size();
    let said = |result: Result<()>| result.unwrap_err().to_string();
    let options = (Kind::Float, Device::Cpu);
    let square = Tensor::ones([2, 3], options);
    assert_eq!(
        said(group.broadcast(&square, size)),
        format!("root is {size}: expected less than the size, {size}")
    );
    assert!(said(group.all_reduce(&square.tr())).contains("is not dense and contiguous"));
    assert!(said(group.all_reduce(&Tensor::zeros([0], options))).contains("is empty"));
    assert!(said(group.all_reduce(&square.to_kind(Kind::Bool))).contains("of the kind Bool"));
    assert!(said(group.all_gather_slices(&square)).contains("has 2 dimensions"));
    if size > 1 {
        let odd = Tensor::ones([size as i64 + 1], options);
        assert!(said(group.reduce_slices(&odd)).contains("expected a multiple of"));
        assert!(said(group.all_gather_slices(&odd)).contains("pad it"));
    }
    if !cfg!(feature = "nccl") {
        assert!(said(group.connect_gpus(0)).contains("--features nccl"));
    } else if !tch::Cuda::is_available() {
        let expected = format!("rank {} cannot connect its GPU 0", group.rank());
        assert!(said(group.connect_gpus(0)).starts_with(&expected));
    }
}

fn buckets(group: &ProcessGroup) -> Result<()> {
    let (rank, size) = (group.rank(), group.size());
    let length = 6 * 1000;
    let means: Vec<f64> = sums(size, length).iter().map(|sum| sum / size as f64).collect();
    for destination in [Destination::Everyone, Destination::Owner] {
        let mut flat = Tensor::zeros([length as i64], (Kind::Float, Device::Cpu));
        let mut buckets = Buckets::new(group, &flat, 1500, destination)?;
        let parts = buckets.ranges().len();
        assert!(parts >= length * 4 / 1500, "{:?}", buckets.ranges());
        for step in 0..3 {
            flat.copy_(&tensor(&values(rank, length), Kind::Float));
            match step {
                0 => {}
                1 => {
                    for start in (0..length).step_by(60).rev().map(|start| start as i64) {
                        buckets.ready(start..start + 60)?;
                    }
                    assert!(buckets.ready(5..6).is_err(), "ready twice");
                    assert!(buckets.start(0).is_err(), "started twice");
                }
                _ => buckets.start(parts / 2)?,
            }
            buckets.finish()?;
            let own = match destination {
                Destination::Everyone => 0..length as i64,
                Destination::Owner => group.slice(length as i64, rank)?,
            };
            let part = flat.narrow(0, own.start, own.end - own.start);
            check(&part, &means[own.start as usize..own.end as usize], 1e-5);
        }
        assert!(buckets.ready(0..length as i64 + 1).is_err());
        assert!(buckets.start(parts).is_err());
    }
    group.barrier()
}

fn one() -> Tensor {
    Tensor::ones([1000], (Kind::Float, Device::Cpu))
}

fn sum_for_ever(group: &ProcessGroup) -> Result<()> {
    group.barrier()?;
    say("ready");
    loop {
        group.all_reduce(&one())?;
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Rank 1 does something else, in good health.
fn dawdle(group: &ProcessGroup) -> Result<()> {
    group.barrier()?;
    if group.rank() == 1 {
        while group.check().is_ok() {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    group.all_reduce(&one())
}

fn fail(group: &ProcessGroup) -> Result<()> {
    group.barrier()?;
    if group.rank() == 1 {
        group.fail("the disk is full\nand this is a stack trace");
        return group.check();
    }
    group.all_reduce(&one())
}

fn leave(group: ProcessGroup) -> Result<()> {
    group.barrier()?;
    if group.rank() == 1 {
        drop(group);
        return Ok(());
    }
    group.all_reduce(&one())
}
