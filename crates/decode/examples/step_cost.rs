//! What a step costs: microseconds per pass of plain and of speculative decoding on random weights.
//!
//! `cargo run --release -p foretoken-decode --example step_cost [-- THREADS [PROMPT]]`
//!
//! The median over all passes is printed, so that a pass that another process interrupts does not
//! count. Drafts of a random model are hardly ever accepted, so a pass brings one token and the figures
//! are the cost of a pass alone: what speculation gains is tokens per pass divided by the ratio.

use std::ops::ControlFlow;
use std::time::Instant;

use foretoken_decode::{Decoder, DecoderOptions, Decoding, GenerateOptions};
use foretoken_heads::{HeadsConfig, ModelConfig, MultiTokenModel};
use foretoken_trunk::Architecture;
use tch::{Device, Kind};

/// Rounds in which every setting takes its turn, so that all see the same state of the machine.
const ROUNDS: usize = 9;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<usize>());
    let threads = arguments.next().transpose()?;
    let prompt = arguments.next().transpose()?.unwrap_or(128);
    let bytes = Architecture { layers: 10, context: prompt + 256, ..Architecture::default() };
    let words = Architecture {
        vocab: 49_152,
        dim: 576,
        layers: 30,
        attention_heads: 9,
        kv_heads: 3,
        ffn: 1536,
        ..bytes.clone()
    };
    measure("10 layers of dim 128, bytes", bytes, prompt, 256, threads)?;
    measure("30 layers of dim 576, 49152 tokens", words, prompt, 24, threads)
}

fn measure(
    name: &str,
    architecture: Architecture,
    prompt: usize,
    new_tokens: usize,
    threads: Option<usize>,
) -> Result<(), Box<dyn std::error::Error>> {
    let vocab = architecture.vocab as u32;
    let heads = HeadsConfig::new("block", 4);
    let config = ModelConfig { architecture, heads, end_of_text: Vec::new() };
    let model = MultiTokenModel::new(&config, Kind::Float, Device::Cpu, 0)?;
    let options = DecoderOptions { threads, ..DecoderOptions::default() };
    let mut decoder = Decoder::with_options(&model, options)?;
    let prompt: Vec<u32> = (0..prompt as u32).map(|i| i * i % vocab).collect();
    let settings = [
        Decoding::Autoregressive,
        Decoding::Speculative { heads: 2 },
        Decoding::Speculative { heads: 3 },
        Decoding::Speculative { heads: 4 },
    ];
    let mut seconds = vec![Vec::new(); settings.len()];
    let mut prefill = f64::MAX;
    for _ in 0..ROUNDS {
        for (setting, seconds) in settings.into_iter().zip(&mut seconds) {
            let options = GenerateOptions {
                max_new_tokens: new_tokens,
                decoding: setting,
                ..GenerateOptions::default()
            };
            let mut last = None;
            // Each pass ends with a token of head 0.
            let text = decoder.generate(&prompt, &options, &mut |_, heads| {
                if heads == [0] {
                    let now = Instant::now();
                    let started = last.replace(now);
                    seconds.extend(started.map(|started| (now - started).as_secs_f64()));
                }
                ControlFlow::Continue(())
            })?;
            prefill = prefill.min(text.prefill.as_secs_f64());
        }
    }
    println!("{name}: prompt of {} tokens {:.2} ms", prompt.len(), prefill * 1e3);
    let plain = median(&mut seconds[0]);
    for (setting, seconds) in settings.iter().zip(&mut seconds) {
        let cost = median(seconds);
        println!(
            "  {setting:?}: {:.1} µs a pass (least {:.1}), {:.2} × plain",
            cost * 1e6,
            seconds[0] * 1e6,
            cost / plain
        );
    }
    Ok(())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
