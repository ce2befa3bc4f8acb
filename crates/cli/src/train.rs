//! `foretoken train`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use foretoken_dist::{Environment, Limits, ProcessGroup};
use foretoken_train::{TrainConfig, TrainOptions, TrainOutcome, train};
use serde_json::json;
use tch::Device;

use crate::arguments::{DeviceName, TrainArguments};
use crate::device::device_of;
use crate::failure::usage;
use crate::interrupt::stop_flag;
use crate::output::Output;

pub(crate) fn run(arguments: &TrainArguments) -> anyhow::Result<ExitCode> {
    if let Some(seconds) = arguments.max_seconds
        && (seconds.is_nan() || seconds <= 0.0)
    {
        return usage(format!("--max-seconds {seconds}: give more than 0"));
    }
    if arguments.patience == 0 {
        return usage("--patience 0: give at least 1");
    }
    let config = TrainConfig::from_file(&arguments.config, &arguments.set)?;
    let out = out_folder(arguments);
    let place = Environment::detect()?;
    let device = device_of(arguments.device, place.as_ref().map_or(0, |place| place.local_rank))?;
    // One process that a launcher started is one process.
    let group = place.filter(|place| place.size > 1);
    config.rows_of_each(group.as_ref().map_or(1, |place| place.size))?;
    let group = group.map(|place| connect(&place, device, arguments.patience)).transpose()?;
    let several = group.is_some();
    let first = group.as_ref().is_none_or(|group| group.rank() == 0);
    let options = TrainOptions {
        group,
        resume: arguments.resume,
        stop: stop_flag()?,
        progress: first,
        tensorboard: arguments.tensorboard,
        corpus_root: arguments.corpus.clone(),
        shards_dir: arguments.shards.clone(),
        max_seconds: arguments.max_seconds,
        device,
        ..TrainOptions::default()
    };
    let outcome = train(&config, &out, &options)?;
    if first {
        report(&outcome, arguments.json)?;
    }
    if outcome.interrupted {
        if !first {
            return Ok(ExitCode::FAILURE);
        }
        let _ = writeln!(
            std::io::stderr(),
            "stopped after step {} of {}; go on{} with: {}",
            outcome.steps,
            config.train.steps,
            if several { ", by the launcher that started this," } else { "" },
            go_on(arguments, &out)
        );
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// The processes that torchrun, SLURM, a `PyTorchJob` or `cargo xtask launch` started together.
fn connect(place: &Environment, device: Device, patience: u64) -> anyhow::Result<ProcessGroup> {
    if device.is_cuda() {
        ProcessGroup::supports_gpus()?;
    }
    let limits = Limits { collective: Duration::from_secs(patience), ..Limits::default() };
    let group = saying_that_we_wait(place, || ProcessGroup::connect(place, limits))?;
    if let Device::Cuda(gpu) = device {
        group.connect_gpus(gpu).inspect_err(|error| group.fail(&error.to_string()))?;
    }
    Ok(group)
}

/// Says where the others are waited for when `meet` takes a while: they have ten minutes.
fn saying_that_we_wait<R>(place: &Environment, meet: impl FnOnce() -> R) -> R {
    let (done, waiting) = mpsc::channel::<()>();
    let Environment { rank, size, host, port, .. } = place;
    let line = format!("rank {rank} of {size} waits for the others, who meet at {host}:{port}");
    std::thread::spawn(move || {
        if waiting.recv_timeout(UNSAID) == Err(RecvTimeoutError::Timeout) {
            let _ = writeln!(std::io::stderr(), "{line}");
        }
    });
    let met = meet();
    drop(done);
    met
}

/// How long waiting for other processes is no news.
const UNSAID: Duration = Duration::from_secs(5);

fn out_folder(arguments: &TrainArguments) -> PathBuf {
    arguments.out.clone().unwrap_or_else(|| {
        let name = arguments.config.file_stem().unwrap_or_default();
        PathBuf::from("runs").join(name)
    })
}

fn report(outcome: &TrainOutcome, as_json: bool) -> anyhow::Result<()> {
    let mut output = Output::new();
    if as_json {
        return output.json(&json!({
            "model": (!outcome.interrupted).then_some(&outcome.model_dir),
            "checkpoint": outcome.checkpoint,
            "best_checkpoint": outcome.best_checkpoint,
            "interrupted": outcome.interrupted,
            "steps": outcome.steps,
            "skipped_steps": outcome.skipped_steps,
            "tokens_seen": outcome.tokens_seen,
            "seconds": outcome.seconds,
            "tokens_per_second": outcome.tokens_per_second(),
            "data_wait_seconds": outcome.data_wait_seconds,
            "parameters": outcome.parameters,
            "validation_loss": outcome.validation_loss,
            "peak_memory_bytes": outcome.peak_memory_bytes,
        }));
    }
    if outcome.interrupted {
        return Ok(());
    }
    let losses: Vec<String> =
        outcome.validation_loss.iter().map(|loss| format!("{loss:.3}")).collect();
    let losses = match losses.len() {
        0 => String::new(),
        _ => format!(", validation loss {} nats a token", losses.join(" ")),
    };
    let skipped = match outcome.skipped_steps {
        0 => String::new(),
        skipped => format!(" ({skipped} without a finite gradient)"),
    };
    output.line(&format!(
        "{}: {} steps{skipped}, {} tokens, {:.0} tokens/s{losses}",
        outcome.model_dir.display(),
        outcome.steps,
        outcome.tokens_seen,
        outcome.tokens_per_second(),
    ))?;
    match &outcome.best_checkpoint {
        // The last one is the model itself.
        Some(best) if Some(best) != outcome.checkpoint.as_ref() => {
            output.line(&format!("{} did better on the validation split", best.display()))
        }
        _ => Ok(()),
    }
}

/// The command line that goes on with this run.
fn go_on(arguments: &TrainArguments, out: &std::path::Path) -> String {
    let program = std::env::args().next().unwrap_or_else(|| "foretoken".to_owned());
    let mut words = vec![program, "train".to_owned(), "--config".to_owned()];
    words.push(arguments.config.display().to_string());
    for set in &arguments.set {
        words.extend(["--set".to_owned(), set.clone()]);
    }
    words.extend(["--out".to_owned(), out.display().to_string()]);
    for (option, folder) in [("--corpus", &arguments.corpus), ("--shards", &arguments.shards)] {
        if let Some(folder) = folder {
            words.extend([option.to_owned(), folder.display().to_string()]);
        }
    }
    if arguments.tensorboard {
        words.push("--tensorboard".to_owned());
    }
    if arguments.device == DeviceName::Cuda {
        words.extend(["--device", "cuda"].map(str::to_owned));
    }
    if arguments.patience != TrainArguments::PATIENCE {
        words.extend(["--patience".to_owned(), arguments.patience.to_string()]);
    }
    words.push("--resume".to_owned());
    words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
}

/// A word as a shell takes it back.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_a_shell() {
        assert_eq!(quoted("train.steps=40"), "train.steps=40");
        assert_eq!(quoted("my runs"), "'my runs'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }
}
