//! Milliseconds of one forward and backward pass, head by head.
//!
//! `cargo run --release -p foretoken-loss --example step_time -- DIM FFN LAYERS HEADS BATCH SEQ VOCAB`

use foretoken_heads::{HeadsConfig, ModelConfig, MultiTokenModel};
use foretoken_loss::MultiTokenLoss;
use foretoken_trunk::Architecture;
use std::time::Instant;
use tch::{Device, Kind, Tensor};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut sizes = [128usize, 344, 10, 4, 4, 256, 264];
    for (slot, value) in sizes.iter_mut().zip(std::env::args().skip(1)) {
        *slot = value.parse()?;
    }
    let [dim, ffn, layers, count, batch, seq, vocab] = sizes;
    let architecture =
        Architecture { vocab, dim, layers, ffn, context: seq, ..Architecture::default() };
    let heads = HeadsConfig::new("block", count);
    let config = ModelConfig { architecture, heads, end_of_text: Vec::new() };
    let model = MultiTokenModel::new(&config, Kind::Float, Device::Cpu, 0)?;
    let shape = [batch as i64, (seq + count) as i64];
    let tokens = Tensor::randint(vocab as i64, shape, (Kind::Int64, Device::Cpu));
    let loss = MultiTokenLoss::new(count);
    let mut times = Vec::new();
    for _ in 0..40 {
        let start = Instant::now();
        for parameter in model.parameters() {
            let mut gradient = parameter.tensor.grad();
            if gradient.defined() {
                let _ = gradient.zero_();
            }
        }
        loss.backward(&model, &tokens)?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    let median = times[times.len() / 2];
    let least = times[0];
    let parameters = model.parameter_count();
    let tokens_per_second = (batch * seq) as f64 / median * 1e3;
    let gigaflops = 6.0 * (parameters - vocab * dim) as f64 * tokens_per_second / 1e9;
    println!(
        "{parameters} parameters: {median:.2} ms a step (least {least:.2}), {tokens_per_second:.0} tokens/s, {gigaflops:.0} GFLOP/s"
    );
    Ok(())
}
