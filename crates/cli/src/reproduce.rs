//! `foretoken reproduce`.

use std::process::ExitCode;

use foretoken_experiments::{Outcome, Preset, ReproduceOptions, reproduce};

use crate::arguments::{PresetName, ReproduceArguments};
use crate::device::device;
use crate::interrupt::stop_flag;

pub(crate) fn run(arguments: &ReproduceArguments) -> anyhow::Result<ExitCode> {
    let preset = match arguments.preset {
        PresetName::Smoke => Preset::Smoke,
        PresetName::Quick => Preset::Quick,
        PresetName::Long => Preset::Long,
        PresetName::Full => Preset::Full,
    };
    let options = ReproduceOptions {
        out: arguments.out.clone(),
        device: device(arguments.device)?,
        corpus: arguments.corpus.clone(),
        other_corpus: arguments.other_corpus.clone(),
        publish: arguments.publish.clone(),
        pretrained_heads: arguments.pretrained_heads.clone(),
        keep_heads: arguments.keep_heads.clone(),
        stop: stop_flag()?,
        ..ReproduceOptions::new(&arguments.experiment, preset)?
    };
    match reproduce(&options)? {
        Outcome::Finished { .. } => Ok(ExitCode::SUCCESS),
        Outcome::Interrupted => Ok(ExitCode::FAILURE),
    }
}
