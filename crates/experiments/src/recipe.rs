//! What an experiment trains and measures, as a TOML file says it.

use anyhow::{Context, bail, ensure};
use foretoken_train::{Precision, TrainConfig};
use serde::Deserialize;
use tch::{Device, Kind};

use crate::Preset;

/// A preset of an experiment: models, how long they are trained, how much is measured.
///
/// The recipes of the presets are compiled in, so that the binary needs no other file; their
/// sources are in `configs/`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Minutes that the whole run is meant to take on the hardware of its preset.
    pub minutes: f64,
    /// Heads of each model, n. A baseline with one head comes first, unless heads are put on a
    /// pretrained model, which is its own baseline.
    pub heads: Vec<usize>,
    /// Decoding of the models' own text.
    pub decoding: DecodingPlan,
    /// The walk over held-out text.
    pub held_out: HeldOutPlan,
    /// The validation loss.
    pub validation: ValidationPlan,
    /// The training that all models share but for `heads.count`: a config as `foretoken train`
    /// reads it.
    pub config: toml::Table,
    /// What processors without products of bfloat16 can do in these minutes, where it is less:
    /// [`Recipe::on`] puts it in place of the recipe's own amounts.
    #[serde(default)]
    pub without_bfloat16: Option<SmallerPlan>,
}

/// The part of a recipe's work for which a processor has the time that takes several times as long
/// for a training, because it multiplies numbers of 32 bits in place of 16.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SmallerPlan {
    /// `config.data.batches`.
    pub batches: u32,
    /// `config.train.steps`.
    pub steps: u32,
    /// `decoding.repeats`.
    pub repeats: usize,
}

/// How the models' own text is decoded.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecodingPlan {
    /// Prompts, cut from the test split at seeded places.
    pub prompts: usize,
    /// Tokens of each.
    pub prompt_tokens: usize,
    /// New tokens of each.
    pub new_tokens: usize,
    /// Times that every prompt is decoded in every way.
    pub repeats: usize,
    /// New tokens of the coloured sample.
    pub sample_tokens: usize,
    /// Most alternatives to drafts that a pass verifies beside these.
    #[serde(default)]
    pub alternatives: usize,
    /// Number format of the weights: `float32`, `bfloat16` or `float64`.
    pub precision: String,
    /// The same prompts once more with weights in as few bytes as have the same bits.
    #[serde(default)]
    pub compact: Option<CompactPlan>,
}

/// How compact weights are decoded with.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CompactPlan {
    /// Most alternatives to drafts: a row more costs a larger share of a pass that reads less.
    pub alternatives: usize,
}

/// How much held-out text is walked.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldOutPlan {
    /// Tokens in all, in windows at seeded places that spread over the test split.
    pub tokens: usize,
    /// Positions in a window.
    pub window: usize,
    /// Positions at a window's start that are read but not walked: the text's prompt.
    pub prompt: usize,
}

impl HeldOutPlan {
    /// Windows whose walked parts make up at least as many tokens as asked for.
    pub fn windows(&self) -> usize {
        self.tokens.div_ceil(self.window.saturating_sub(self.prompt).max(1))
    }
}

/// On how much text losses are measured.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValidationPlan {
    /// Windows, cut from the validation split at seeded places; each as long as a training
    /// sequence.
    pub windows: usize,
}

impl Recipe {
    /// The recipe of an experiment at a preset.
    ///
    /// # Errors
    ///
    /// When there is no such experiment.
    pub fn named(experiment: &str, preset: Preset) -> anyhow::Result<Self> {
        let text = match (experiment, preset) {
            ("speed", Preset::Smoke) => include_str!("../configs/speed-smoke.toml"),
            ("speed", Preset::Quick) => include_str!("../configs/speed-quick.toml"),
            ("speed", Preset::Long) => include_str!("../configs/speed-long.toml"),
            ("speed", Preset::Full) => include_str!("../configs/speed-full.toml"),
            ("pretrained", Preset::Smoke) => include_str!("../configs/pretrained-smoke.toml"),
            ("pretrained", Preset::Quick) => include_str!("../configs/pretrained-quick.toml"),
            ("pretrained", Preset::Long) => include_str!("../configs/pretrained-long.toml"),
            ("pretrained", Preset::Full) => include_str!("../configs/pretrained-full.toml"),
            _ => bail!(
                "no experiment is called \"{experiment}\": there is {}",
                crate::EXPERIMENTS.join(" and ")
            ),
        };
        Self::from_toml(text).with_context(|| format!("the recipe {experiment}-{preset}"))
    }

    /// Reads a recipe and checks it.
    ///
    /// # Errors
    ///
    /// When a key is missing, unknown or has a value that cannot work; the message names it.
    pub fn from_toml(text: &str) -> anyhow::Result<Self> {
        let recipe: Self = toml::from_str(text).context("not a recipe")?;
        recipe.check()?;
        Ok(recipe)
    }

    /// The training config of the model with `heads` heads, as TOML.
    ///
    /// # Errors
    ///
    /// When `config` is not a table of tables.
    pub fn config_toml(&self, heads: usize) -> anyhow::Result<String> {
        let mut recipe = self.clone();
        recipe.set("heads", "count", heads as i64)?;
        toml::to_string(&recipe.config).context("cannot write the training config")
    }

    /// Sets a key of the training config.
    pub(crate) fn set(
        &mut self,
        section: &str,
        key: &str,
        value: impl Into<toml::Value>,
    ) -> anyhow::Result<()> {
        let empty = || toml::Value::Table(toml::Table::new());
        self.config
            .entry(section)
            .or_insert_with(empty)
            .as_table_mut()
            .with_context(|| format!("config.{section} is not a section"))?
            .insert(key.to_owned(), value.into());
        Ok(())
    }

    /// The recipe as `device` has the time for it.
    ///
    /// # Errors
    ///
    /// When `config.data` or `config.train` is not a section.
    pub fn on(self, device: Device) -> anyhow::Result<Self> {
        let slow = Precision::Fast.products(device) != Kind::BFloat16;
        match self.without_bfloat16.filter(|_| slow) {
            Some(less) => self.with(less),
            None => Ok(self),
        }
    }

    fn with(mut self, less: SmallerPlan) -> anyhow::Result<Self> {
        self.set("data", "batches", i64::from(less.batches))?;
        self.set("train", "steps", i64::from(less.steps))?;
        self.decoding.repeats = less.repeats;
        Ok(self)
    }

    /// The amounts that [`Recipe::on`] took in place of the recipe's own, where it did.
    pub(crate) fn smaller(&self) -> Option<SmallerPlan> {
        let steps = self.config.get("train")?.get("steps")?.as_integer()?;
        self.without_bfloat16.filter(|less| i64::from(less.steps) == steps)
    }

    /// The training config of the model with `heads` heads.
    ///
    /// # Errors
    ///
    /// When the config is not one that `foretoken train` accepts.
    pub fn config(&self, heads: usize) -> anyhow::Result<TrainConfig> {
        let text = self.config_toml(heads)?;
        TrainConfig::from_toml(&text, &[])
            .with_context(|| format!("the config of the model with {heads} heads"))
    }

    /// The training config of the model with the most heads; what models of a recipe share is in
    /// it too.
    ///
    /// # Errors
    ///
    /// As [`Recipe::config`].
    pub fn largest(&self) -> anyhow::Result<TrainConfig> {
        self.config(self.heads.last().copied().unwrap_or(1))
    }

    /// The pretrained model that heads are put on, by name or path.
    pub fn pretrained(&self) -> Option<&str> {
        self.config.get("model")?.get("init_from")?.as_str()
    }

    fn check(&self) -> anyhow::Result<()> {
        ensure!(!self.heads.is_empty(), "heads names no model");
        ensure!(
            self.heads.first() == Some(&1) || self.pretrained().is_some(),
            "heads has to start with 1, the baseline that all speed-ups refer to"
        );
        ensure!(
            self.heads.is_sorted_by(|a, b| a < b),
            "heads has to name each number once, in rising order"
        );
        for (key, value) in [
            ("decoding.prompts", self.decoding.prompts),
            ("decoding.prompt_tokens", self.decoding.prompt_tokens),
            ("decoding.new_tokens", self.decoding.new_tokens),
            ("decoding.repeats", self.decoding.repeats),
            ("held_out.tokens", self.held_out.tokens),
            ("held_out.window", self.held_out.window),
            ("validation.windows", self.validation.windows),
        ] {
            ensure!(value > 0, "{key} is 0: it has to be at least 1");
        }
        for &heads in &self.heads {
            let config = self.config(heads)?;
            ensure!(
                config.heads_config()?.drafting() == heads,
                "config.loss.offsets: the experiment decodes with all heads, so none may leap"
            );
            // A pretrained model says itself what fits, when it is opened.
            let context = match self.pretrained() {
                None => config.model.context,
                Some(_) => usize::MAX,
            };
            let longest = self.decoding.new_tokens.max(self.decoding.sample_tokens);
            let needed = self.decoding.prompt_tokens + longest + heads;
            ensure!(
                needed <= context,
                "prompt, new tokens and drafts need {needed} positions, but config.model.context is {context}"
            );
            ensure!(
                self.held_out.prompt < self.held_out.window,
                "held_out.prompt is {}, but held_out.window only {}",
                self.held_out.prompt,
                self.held_out.window
            );
            ensure!(
                self.held_out.window <= context,
                "held_out.window is {}, but config.model.context is {context}",
                self.held_out.window
            );
        }
        if let Some(less) = self.without_bfloat16 {
            let least = u64::from(less.batches.min(less.steps)).min(less.repeats as u64);
            ensure!(least > 0, "without_bfloat16: each of its amounts has to be at least 1");
            let own = self.largest()?.train.steps;
            ensure!(
                u64::from(less.steps) < own,
                "without_bfloat16.steps is {}, but config.train.steps only {own}",
                less.steps
            );
            self.clone().with(less)?.largest().context("without_bfloat16")?;
        }
        precision(&self.decoding.precision)?;
        ensure!(
            self.decoding.compact.is_none() || self.decoding.precision == "float32",
            "decoding.compact keeps float32 weights in fewer bytes, but decoding.precision is \"{}\"",
            self.decoding.precision
        );
        Ok(())
    }
}

/// The tensor kind of a precision's name.
pub(crate) fn precision(name: &str) -> anyhow::Result<tch::Kind> {
    match name {
        "float32" => Ok(tch::Kind::Float),
        "bfloat16" => Ok(tch::Kind::BFloat16),
        "float64" => Ok(tch::Kind::Double),
        other => {
            bail!("decoding.precision is \"{other}\": it has to be float32, bfloat16 or float64")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_has_a_recipe_whose_models_can_be_trained() {
        for preset in Preset::ALL {
            let recipe = Recipe::named("speed", preset).unwrap();
            for &heads in &recipe.heads {
                let config = recipe.config(heads).unwrap();
                assert_eq!(config.heads.count, heads);
            }
        }
    }

    #[test]
    fn heads_of_a_pretrained_model_are_trained_alone() {
        for preset in Preset::ALL {
            let recipe = Recipe::named("pretrained", preset).unwrap();
            assert_eq!(recipe.pretrained(), Some("smollm2"), "{preset}");
            let heads = recipe.largest().unwrap().heads;
            assert_eq!(heads.train, foretoken_train::HeadTraining::Alone);
        }
    }

    #[test]
    fn a_processor_without_products_of_bfloat16_does_what_it_has_the_time_for() {
        for preset in [Preset::Quick, Preset::Long] {
            let recipe = Recipe::named("pretrained", preset).unwrap();
            // A GPU has such products.
            assert_eq!(recipe.clone().on(Device::Cuda(0)).unwrap(), recipe);
            let less = recipe.without_bfloat16.unwrap();
            let smaller = recipe.clone().with(less).unwrap();
            let (config, own) = (smaller.largest().unwrap(), recipe.largest().unwrap());
            assert_eq!(config.data.batches, u64::from(less.batches));
            assert_eq!(config.train.steps, u64::from(less.steps));
            assert_eq!(smaller.decoding.repeats, less.repeats);
            assert_eq!((recipe.smaller(), smaller.smaller()), (None, Some(less)));
            assert!(config.data.batches < own.data.batches && config.train.steps < own.train.steps);
            let here = recipe.clone().on(Device::Cpu).unwrap();
            let has_products = Precision::Fast.products(Device::Cpu) == Kind::BFloat16;
            assert_eq!(here, if has_products { recipe } else { smaller });
        }
        let text = include_str!("../configs/pretrained-quick.toml");
        let steps = Recipe::from_toml(text).unwrap().without_bfloat16.unwrap().steps;
        let none = text.replacen(&format!("steps = {steps}"), "steps = 0", 1);
        let error = Recipe::from_toml(&none).unwrap_err().to_string();
        assert!(error.contains("without_bfloat16"), "{error}");
    }

    #[test]
    fn models_of_a_recipe_differ_in_their_heads_alone() {
        let recipe = Recipe::named("speed", Preset::Quick).unwrap();
        let mut eight = recipe.config(8).unwrap();
        eight.heads.count = 1;
        assert_eq!(eight, recipe.config(1).unwrap());
    }

    #[test]
    fn the_models_with_eight_heads_have_at_least_ten_layers() {
        for preset in Preset::ALL {
            let recipe = Recipe::named("speed", preset).unwrap();
            if recipe.heads.contains(&8) {
                assert!(recipe.config(8).unwrap().model.layers >= 10, "{preset}");
            }
        }
    }

    #[test]
    fn an_unknown_experiment_is_named_beside_those_that_exist() {
        let error = Recipe::named("speeed", Preset::Quick).unwrap_err().to_string();
        assert!(error.contains("speeed") && error.contains("there is speed and pretrained"));
    }

    #[test]
    fn a_recipe_without_baseline_or_with_a_short_context_is_refused() {
        let text = include_str!("../configs/speed-smoke.toml");
        let without = text.replace("heads = [1, ", "heads = [2, ");
        assert!(Recipe::from_toml(&without).unwrap_err().to_string().contains("baseline"));
        let long = text.replace("new_tokens = ", "new_tokens = 10");
        let error = Recipe::from_toml(&long).unwrap_err().to_string();
        assert!(error.contains("config.model.context"), "{error}");
    }
}
