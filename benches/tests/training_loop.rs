//! The naive step and the one in bfloat16 against the plain one.

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

fn built(precision: &str) -> Result<(TrainingLoop, Tensor)> {
    let recipe = format!(
        "[model]\nlayers = 4\nattention_heads = 2\ndim = 32\nffn = 64\ncontext = 32\n\
         [heads]\ncount = 2\n[optimizer]\ntype = \"adamw\"\n\
         [train]\nsteps = 4\nbatch = 2\nsequence = 16\nprecision = \"{precision}\"\n"
    );
    let config = TrainConfig::from_toml(&recipe, &[])?;
    let model = MultiTokenModel::new(&config.model_config(264), Kind::Float, Device::Cpu, 1)?;
    let tokens = Tensor::f_randint(264, [2, 18], (Kind::Int64, Device::Cpu))?;
    Ok((TrainingLoop::new(model, config)?, tokens))
}

#[test]
fn the_naive_step_moves_the_weights_as_the_head_by_head_step_does() -> Result<()> {
    let _turn = turn();
    let (mut one, tokens) = built("float32")?;
    let (mut other, _) = built("float32")?;
    for _ in 0..2 {
        one.step(&tokens)?;
        other.step_all_at_once(&tokens)?;
    }
    let losses = [one.evaluate(&tokens)?.to_vec()?, other.evaluate(&tokens)?.to_vec()?];
    for (a, b) in losses[0].iter().zip(&losses[1]) {
        assert!((a - b).abs() < 1e-3 * b, "{a} and {b}");
    }
    Ok(())
}

#[test]
fn bfloat16_computes_with_copies_that_follow_the_weights() -> Result<()> {
    let _turn = turn();
    let (mut training, tokens) = built("bfloat16")?;
    assert_eq!(training.model().kind(), Kind::BFloat16);
    let before = training.evaluate(&tokens)?.to_vec()?;
    for _ in 0..4 {
        training.step(&tokens)?;
    }
    let after = training.evaluate(&tokens)?.to_vec()?;
    assert!(after.iter().sum::<f64>() < before.iter().sum::<f64>(), "{before:?} {after:?}");
    Ok(())
}
