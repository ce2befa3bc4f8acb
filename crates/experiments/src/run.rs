//! The entry: which experiment, and its end.

use anyhow::{Context, ensure};

use crate::measure::Stopped;
use crate::render::{self, Rendered};
use crate::report::Report;
use crate::say::{self, progress};
use crate::{Outcome, Recipe, ReproduceOptions, pretrained, speed};

/// The experiments that [`reproduce`] knows.
pub const EXPERIMENTS: [&str; 2] = ["speed", "pretrained"];

/// Runs an experiment and writes its report, going on where an interrupted run was.
///
/// Progress goes to stderr. At the end the table and the paths of the report go to stdout.
///
/// # Errors
///
/// When the experiment is unknown, the corpus is missing, a file cannot be written or a training
/// fails. What is finished is kept.
pub fn reproduce(options: &ReproduceOptions) -> anyhow::Result<Outcome> {
    let recipe = Recipe::named(&options.experiment, options.preset)?;
    // Heads that were trained before take a slower processor no training.
    let recipe = match options.pretrained_heads {
        None => recipe.on(options.device)?,
        Some(_) => recipe,
    };
    reproduce_with(options, &recipe)
}

/// As [`reproduce`], by a recipe of one's own.
///
/// # Errors
///
/// As [`reproduce`].
pub fn reproduce_with(options: &ReproduceOptions, recipe: &Recipe) -> anyhow::Result<Outcome> {
    let run = match recipe.pretrained() {
        None => {
            let of_heads = options.pretrained_heads.is_some() || options.keep_heads.is_some();
            ensure!(
                !of_heads,
                "--pretrained-heads and --keep-heads are of heads for a published model: {} trains \
                 models from scratch",
                options.experiment
            );
            speed::run
        }
        Some(_) => pretrained::run,
    };
    match run(options, recipe) {
        Ok(report) => finish(options, &report),
        Err(error) if error.is::<Stopped>() => {
            progress!(
                "{error}; go on with: foretoken reproduce {} --preset {} and the same options",
                options.experiment,
                options.preset
            );
            Ok(Outcome::Interrupted)
        }
        Err(error) => Err(error),
    }
}

/// Writes the report in all its forms and says where it is.
fn finish(options: &ReproduceOptions, report: &Report) -> anyhow::Result<Outcome> {
    let folder = options.folder();
    let rendered = render::render(report)?;
    let json = folder.join("report.json");
    let markdown = folder.join("report.md");
    let html = folder.join("report.html");
    crate::files::write_atomically(&json, &report.to_json()?)?;
    crate::files::write_atomically(&markdown, &rendered.markdown)?;
    crate::files::write_atomically(&html, &rendered.html)?;
    crate::files::write_atomically(
        &folder.join(format!("{}.svg", report.experiment)),
        &rendered.svg,
    )?;
    if let Some(place) = &options.publish {
        publish(place, report, &rendered)?;
    }
    say::result(&rendered.summary)?;
    for path in [&markdown, &json, &html] {
        say::result(&path.display().to_string())?;
    }
    Ok(Outcome::Finished { json, markdown, html })
}

/// Copies the report to where finished reports are kept, as `EXPERIMENT-PRESET.…`.
fn publish(place: &std::path::Path, report: &Report, rendered: &Rendered) -> anyhow::Result<()> {
    std::fs::create_dir_all(place)
        .with_context(|| format!("cannot make the folder {}", place.display()))?;
    let name = report.name();
    let file = |ending: &str| place.join(format!("{name}.{ending}"));
    crate::files::write_atomically(&file("json"), &report.to_json()?)?;
    crate::files::write_atomically(&file("md"), &rendered.markdown)?;
    crate::files::write_atomically(&file("svg"), &rendered.svg)
}
