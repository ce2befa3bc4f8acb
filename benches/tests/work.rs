//! The work of a step, counted from sizes, against the weights of a model that was built.

use anyhow::Result;
use foretoken_benches::{Stack, StepWork};
use foretoken_heads::MultiTokenModel;
use foretoken_train::TrainConfig;
use foretoken_trunk::Role;
use tch::{Device, Kind};

const VOCAB: usize = 300;

fn config(heads: usize, optimizer: &str) -> Result<TrainConfig> {
    let recipe = format!(
        "[model]\nlayers = 6\nattention_heads = 4\nkv_heads = 2\ndim = 32\nffn = 80\n\
         context = 64\n[heads]\ncount = {heads}\n[optimizer]\ntype = \"{optimizer}\"\n\
         [train]\nsteps = 1\nbatch = 3\nsequence = 40\n"
    );
    Ok(TrainConfig::from_toml(&recipe, &[])?)
}

fn built(config: &TrainConfig) -> Result<(MultiTokenModel, StepWork)> {
    let model = MultiTokenModel::new(&config.model_config(VOCAB)?, Kind::Float, Device::Cpu, 0)?;
    let work = StepWork::new(&model, config);
    Ok((model, work))
}

fn numbers(model: &MultiTokenModel, role: Role) -> usize {
    let all = model.parameters();
    all.iter().filter(|p| p.role == role).map(|p| p.tensor.numel()).sum()
}

#[test]
fn linear_layers_take_six_operations_a_weight_and_token_and_logits_count_for_each_head()
-> Result<()> {
    for heads in [1, 4] {
        let (model, work) = built(&config(heads, "adamw")?)?;
        let weights = numbers(&model, Role::Matrix) + heads * VOCAB * 32;
        assert_eq!(work.linear_flops(), (6 * 3 * 40 * weights) as f64);
    }
    Ok(())
}

#[test]
fn beyond_linear_layers_there_are_the_pairs_of_positions_that_see_each_other() -> Result<()> {
    let (_, work) = built(&config(1, "adamw")?)?;
    let pairs: usize = (1..=40).sum();
    // Batch, blocks, heads, coordinates; scores and sums; forward and twice that backward.
    let attention = (3 * 6 * 4 * 8 * pairs * 2 * 2 * 3) as f64;
    assert_eq!(work.model_flops, work.linear_flops() + attention);
    assert_eq!(work.flops(), work.model_flops);
    Ok(())
}

#[test]
fn muon_moves_the_matrices_and_orthogonalises_all_of_them() -> Result<()> {
    let (model, work) = built(&config(2, "muon")?)?;
    let stacked: i64 = work.stacks.iter().map(|s| s.matrices * s.rows * s.columns).sum();
    let matrices = numbers(&model, Role::Matrix);
    assert_eq!(stacked as usize, matrices);
    let others = model.parameter_count() - matrices;
    assert_eq!(work.update_bytes, (4 * (6 * matrices + 8 * others)) as f64);
    let (_, adamw) = built(&config(2, "adamw")?)?;
    assert!(adamw.stacks.is_empty() && work.flops() > adamw.flops());
    Ok(())
}

#[test]
fn a_wide_matrix_takes_the_gram_matrix_of_its_rows() {
    let one = Stack { matrices: 1, rows: 2, columns: 3 };
    // X Xᵀ: 2·2·3, G²: 2·2·2, P X: 2·2·3 multiplications, with an addition each.
    assert_eq!(one.flops(), 5.0 * 2.0 * (12.0 + 8.0 + 12.0));
    let tall = Stack { matrices: 2, rows: 3, columns: 2 };
    assert_eq!(tall.flops(), 2.0 * one.flops());
}
