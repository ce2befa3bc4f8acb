//! The speed experiment: a next-token baseline beside models with more heads, trained on equal
//! terms, then decoded with k = 1 … n heads.

use anyhow::Context;
use foretoken_data::{Split, TokenShard, open_split};
use foretoken_eval::Walk;
use foretoken_heads::MultiTokenModel;
use serde_json::to_value;

use crate::clock::Clock;
use crate::corpus::{Prepared, other_corpus, training_corpus};
use crate::curves::loss_curve;
use crate::files::{cache, cached, fingerprint};
use crate::machine::{device_name, machine};
use crate::measure::{Measured, Texts, check, measure};
use crate::paper::PaperFigures;
use crate::recipe::precision;
use crate::render::text::duration;
use crate::report::{HOST_MEMORY, ModelRow, Report, Versions};
use crate::results::{LossCurve, SpeedResults};
use crate::rows::{
    about, begin, compact_rows, decoding_rows, held_out_rows, model_row, name, out_of_domain,
    settings, timing,
};
use crate::say::progress;
use crate::stretches::stretches;
use crate::training::{Job, ModelFolder, Trained};
use crate::{Recipe, ReproduceOptions};

/// Raised when what is measured changes, so that cached measurements are taken again.
const MEASUREMENTS: &str = "6";

/// Runs the experiment and returns its report.
pub(crate) fn run(options: &ReproduceOptions, recipe: &Recipe) -> anyhow::Result<Report> {
    let mut clock = begin(options, &format!("{} models, {}", recipe.heads.len(), about(recipe)))?;
    clock.start("corpus", true)?;
    progress!("preparing the corpus");
    let corpus = training_corpus(options, &recipe.largest()?)?;
    let other = other_corpus(options, &corpus.tokenizer, "")?;
    clock.stop()?;
    let run = Run { options, recipe, corpus: &corpus, other: other.as_ref() };
    let jobs = run.jobs()?;
    let trained = run.train(&jobs, &mut clock)?;
    let measured = run.measure(&jobs, &mut clock)?;
    run.report(&jobs, &trained, &measured, clock.seconds())
}

/// What all steps of a run share.
struct Run<'r> {
    options: &'r ReproduceOptions,
    recipe: &'r Recipe,
    corpus: &'r Prepared,
    other: Option<&'r Prepared>,
}

impl<'r> Run<'r> {
    /// A training for each number of heads.
    fn jobs(&self) -> anyhow::Result<Vec<Job<'r>>> {
        let job = |&heads: &usize| {
            Ok(Job {
                options: self.options,
                config_toml: self.recipe.config_toml(heads)?,
                config: self.recipe.config(heads)?,
                corpus: self.corpus,
                folder: ModelFolder(self.options.folder().join("models").join(name(heads))),
            })
        };
        self.recipe.heads.iter().map(job).collect()
    }

    /// Trains what is not trained yet.
    fn train(&self, jobs: &[Job], clock: &mut Clock) -> anyhow::Result<Vec<Trained>> {
        let mut all = Vec::new();
        for (index, job) in jobs.iter().enumerate() {
            check(&self.options.stop)?;
            let name = name(job.config.heads.count);
            let place = format!("[{}/{}]", index + 1, 2 * jobs.len());
            if let Some(trained) = job.finished() {
                progress!("{place} {name} is trained already");
                all.push(trained);
                continue;
            }
            progress!(
                "{place} training {name}: {} steps of {} tokens; {} of about {} are over",
                job.config.train.steps,
                job.config.tokens_per_step(),
                duration(clock.seconds()),
                duration(self.recipe.minutes * 60.0)
            );
            all.push(job.run(clock, &format!("train {name}"))?);
        }
        Ok(all)
    }

    /// Measures what is not measured yet.
    fn measure(&self, jobs: &[Job], clock: &mut Clock) -> anyhow::Result<Vec<Measured>> {
        let texts = OwnedTexts::open(self)?;
        let mut all: Vec<Measured> = Vec::new();
        for (index, job) in jobs.iter().enumerate() {
            check(&self.options.stop)?;
            let name = name(job.config.heads.count);
            let place = format!("[{}/{}]", jobs.len() + index + 1, 2 * jobs.len());
            let path = job.folder.measured();
            let fingerprint = self.measurement(&jobs[0], job)?;
            if let Some(measured) = cached(&path, &fingerprint) {
                progress!("{place} {name} is measured already");
                all.push(measured);
                continue;
            }
            progress!(
                "{place} measuring {name}: {} prompts, {} held-out tokens",
                self.recipe.decoding.prompts,
                self.recipe.held_out.tokens
            );
            clock.start(&format!("measure {name}"), true)?;
            let measured = self.measure_one(&jobs[0], job, &texts.borrowed(self))?;
            cache(&path, &fingerprint, measured.clone())?;
            clock.stop()?;
            all.push(measured);
        }
        Ok(all)
    }

    /// Everything that a measurement depends on.
    fn measurement(&self, baseline: &Job, job: &Job) -> anyhow::Result<String> {
        let (decoding, held_out) = (&self.recipe.decoding, &self.recipe.held_out);
        let plan = format!("{decoding:?} {held_out:?} {:?}", self.recipe.validation);
        let other = self.other.map_or("", |other| &other.manifest.sha256);
        Ok(fingerprint(&[
            MEASUREMENTS,
            &job.folder.weights()?,
            &baseline.folder.weights()?,
            &self.corpus.manifest.sha256,
            &plan,
            other,
            device_name(self.options.device),
        ]))
    }

    fn measure_one(&self, baseline: &Job, job: &Job, texts: &Texts) -> anyhow::Result<Measured> {
        let kind = precision(&self.recipe.decoding.precision)?;
        let load = |job: &Job| {
            MultiTokenModel::load(&job.folder.model(), kind, self.options.device)
                .with_context(|| format!("loading {}", job.folder.model().display()))
        };
        let model = load(job)?;
        let is_baseline = job.config.heads.count == baseline.config.heads.count;
        let baseline = if is_baseline { None } else { Some(load(baseline)?) };
        measure(
            &name(job.config.heads.count),
            &model,
            baseline.as_ref(),
            texts,
            self.recipe,
            &self.options.stop,
        )
    }

    fn report(
        &self,
        jobs: &[Job],
        trained: &[Trained],
        measured: &[Measured],
        wall_seconds: f64,
    ) -> anyhow::Result<Report> {
        let models = jobs.iter().zip(trained).zip(measured);
        let models: Vec<ModelRow> =
            models.map(|((job, t), m)| model_row(&job.config, t, m)).collect();
        let decoding = jobs.iter().zip(measured);
        let decoding = decoding.flat_map(|(job, measured)| {
            decoding_rows(&name(job.config.heads.count), &self.recipe.decoding, measured)
        });
        Ok(Report {
            experiment: self.options.experiment.clone(),
            preset: self.options.preset.to_string(),
            pretrained_heads: false,
            without_bfloat16: self.recipe.smaller().is_some(),
            seed: jobs[0].config.train.seed,
            device: device_name(self.options.device).to_owned(),
            versions: Versions::current(),
            wall_seconds,
            corpus: self.corpus.row(),
            models,
            decoding: decoding.collect(),
            results: to_value(self.results(jobs, measured)?)?,
            paper: to_value(PaperFigures::for_heads(&self.recipe.heads))?,
        })
    }

    fn results(&self, jobs: &[Job], measured: &[Measured]) -> anyhow::Result<SpeedResults> {
        let named = || {
            let names = jobs.iter().map(|job| name(job.config.heads.count));
            names.zip(measured)
        };
        let loss_curves = jobs.iter().map(|job| {
            Ok(LossCurve {
                model: name(job.config.heads.count),
                points: loss_curve(&job.folder.metrics())?,
            })
        });
        Ok(SpeedResults {
            settings: settings(self.recipe, jobs[0].config.train.sequence, self.options.device),
            machine: machine(self.options.device),
            timing: named().flat_map(|(name, m)| timing(&name, m)).collect(),
            compact: named().flat_map(|(name, m)| compact_rows(&name, m)).collect(),
            differences: measured.iter().flat_map(|m| m.differences.clone()).collect(),
            agreement: measured.iter().filter_map(|m| m.agreement.clone()).collect(),
            held_out: named().flat_map(|(name, m)| held_out_rows(&name, &m.held_out)).collect(),
            out_of_domain: self
                .other
                .and_then(|other| out_of_domain(self.recipe, &other.manifest, named())),
            loss_curves: loss_curves.collect::<anyhow::Result<_>>()?,
            sample: best_sample(measured),
            notes: self.notes(),
            trained_on: None,
        })
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.other.is_none() {
            notes.push(
                "Python from another package was not at hand, so the out-of-domain check was left \
                 out: `cargo xtask setup` fetches it, and any folder of .py files will do."
                    .to_owned(),
            );
        }
        if self.options.device.is_cuda() {
            notes.push(HOST_MEMORY.to_owned());
        }
        notes
    }
}

/// Shards and prompts, open.
struct OwnedTexts {
    validation: TokenShard,
    test: TokenShard,
    other: Option<TokenShard>,
    prompts: Vec<Vec<u32>>,
}

impl OwnedTexts {
    fn open(run: &Run) -> anyhow::Result<Self> {
        let test = open_split(&run.corpus.folder, Split::Test)?;
        let plan = &run.recipe.decoding;
        let seed = run.recipe.largest()?.train.seed;
        let other = run.other.map(|other| open_split(&other.folder, Split::Test));
        Ok(Self {
            validation: open_split(&run.corpus.folder, Split::Validation)?,
            prompts: stretches(&test, plan.prompts, plan.prompt_tokens, seed)?,
            test,
            other: other.transpose()?,
        })
    }

    fn borrowed<'t>(&'t self, run: &Run<'t>) -> Texts<'t> {
        Texts {
            tokenizer: &run.corpus.tokenizer,
            validation: &self.validation,
            test: &self.test,
            other: self.other.as_ref(),
            prompts: &self.prompts,
        }
    }
}

/// The sample of the model that reaches farthest for how well it predicts the next token: the one
/// with the most heads may draft far and write badly.
fn best_sample(measured: &[Measured]) -> Option<crate::Sample> {
    let worth = |m: &Measured| {
        let reach = m.held_out.walks().last().map_or(0.0, Walk::tokens_per_forward);
        reach / m.validation_loss.first().copied().unwrap_or(f64::INFINITY)
    };
    measured
        .iter()
        .filter(|m| m.sample.is_some())
        .max_by(|a, b| worth(a).total_cmp(&worth(b)))
        .and_then(|m| m.sample.clone())
}
