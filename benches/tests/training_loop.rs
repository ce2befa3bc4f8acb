//! The naive step, the one in bfloat16, grouped heads and recomputed blocks against the plain step.

use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use foretoken_benches::TrainingLoop;
use foretoken_heads::MultiTokenModel;
use foretoken_train::TrainConfig;
use tch::{Device, Kind, Tensor};

/// libtorch's random numbers are global: models are made in turns.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn built(sets: &[&str]) -> Result<(TrainingLoop, Tensor)> {
    let recipe = "[model]\nlayers = 4\nattention_heads = 2\ndim = 32\nffn = 64\ncontext = 32\n\
         [heads]\ncount = 2\n[optimizer]\ntype = \"adamw\"\n\
         [train]\nsteps = 4\nbatch = 2\nsequence = 16\n";
    let sets: Vec<String> = sets.iter().map(|&set| set.to_owned()).collect();
    let config = TrainConfig::from_toml(recipe, &sets)?;
    let model = MultiTokenModel::new(&config.model_config(264)?, Kind::Float, Device::Cpu, 1)?;
    let tokens = Tensor::f_randint(264, [2, 18], (Kind::Int64, Device::Cpu))?;
    Ok((TrainingLoop::new(model, config)?, tokens))
}

/// Losses of two trainings on the same tokens are the same.
fn assert_same(what: &str, sides: [&TrainingLoop; 2], tokens: &Tensor) -> Result<()> {
    let [one, other] = sides;
    let losses = [one.evaluate(tokens)?.to_vec()?, other.evaluate(tokens)?.to_vec()?];
    for (a, b) in losses[0].iter().zip(&losses[1]) {
        assert!((a - b).abs() < 1e-3 * b, "{what}: {a} and {b}");
    }
    Ok(())
}

#[test]
fn the_naive_step_moves_the_weights_as_the_head_by_head_step_does() -> Result<()> {
    let _turn = turn();
    let (mut one, tokens) = built(&[])?;
    let (mut other, _) = built(&[])?;
    for _ in 0..2 {
        one.step(&tokens)?;
        other.step_all_at_once(&tokens)?;
    }
    assert_same("all at once", [&one, &other], &tokens)
}

#[test]
fn grouped_heads_and_recomputed_blocks_move_the_weights_as_the_plain_step_does() -> Result<()> {
    let _turn = turn();
    for set in ["heads.execution=grouped", "train.recompute=true"] {
        let (mut one, tokens) = built(&[])?;
        let (mut other, _) = built(&[set])?;
        for _ in 0..2 {
            one.step(&tokens)?;
            other.step(&tokens)?;
        }
        assert_same(set, [&one, &other], &tokens)?;
    }
    Ok(())
}

#[test]
fn bfloat16_computes_with_copies_that_follow_the_weights() -> Result<()> {
    let _turn = turn();
    let (mut training, tokens) = built(&["train.precision=bfloat16"])?;
    assert_eq!(training.model().kind(), Kind::BFloat16);
    let before = training.evaluate(&tokens)?.to_vec()?;
    for _ in 0..4 {
        training.step(&tokens)?;
    }
    let after = training.evaluate(&tokens)?.to_vec()?;
    assert!(after.iter().sum::<f64>() < before.iter().sum::<f64>(), "{before:?} {after:?}");
    Ok(())
}
