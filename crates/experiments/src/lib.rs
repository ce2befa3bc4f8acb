//! The paper's experiments as recipes: config in, report out.
//!
//! # Overview
//!
//! - [`reproduce`] runs an experiment at a [`Preset`]: it prepares the corpus, trains every model
//!   of the [`Recipe`], measures how each decodes, and writes `report.json`, `report.md`,
//!   `report.html` and a picture. What is finished is kept, so an interrupted run goes on where it
//!   was when it is called again.
//! - [`Report`] is what every experiment writes: models, decoding rows, an experiment's own figures
//!   ([`SpeedResults`] for `speed`) and the paper's beside them ([`PaperFigures`]).
//! - [`plot`] draws the curves of trainings out of their `metrics.jsonl`.
//! - [`render`] draws page, text and picture from a report alone, so that a report that was written
//!   elsewhere can be rendered again.
//!
//! Two experiments are built in: `speed` trains models from scratch, `pretrained` trains heads for
//! a published model and decodes programming problems with them.
//!
//! Figures come from the run that wrote them, never from a constant, except for those of the paper.
//!
//! # Example
//!
//! A recipe of one's own starts from a built-in one:
//!
//! ```
//! use foretoken_experiments::{Preset, Recipe};
//!
//! let mut recipe = Recipe::named("speed", Preset::Smoke)?;
//! recipe.heads = vec![1, 3];
//! assert_eq!(recipe.config(3)?.heads.count, 3);
//! # Ok::<(), anyhow::Error>(())
//! ```
//!
//! [`reproduce_with`] then runs it.

mod agreement;
mod clock;
mod corpus;
mod curves;
mod files;
mod grown;
mod kept;
mod machine;
mod measure;
mod metrics;
mod options;
mod paper;
mod plot;
mod pretrained;
mod problems;
mod recipe;
mod render;
mod report;
mod results;
mod rows;
mod run;
mod say;
mod speed;
mod stretches;
mod timing;
mod training;

pub use options::{Outcome, Preset, ReproduceOptions, Training};
pub use paper::{PaperFigures, PaperModel, PaperRow};
pub use plot::{Metric, Plot, PlotOptions, XAxis, plot};
pub use recipe::{CompactPlan, DecodingPlan, HeldOutPlan, Recipe, SmallerPlan, ValidationPlan};
pub use render::{Rendered, render};
pub use report::{Corpus, DecodingRow, ModelRow, Report, Versions};
pub use results::{
    Agreement, CompactRow, Difference, HeldOutRow, LossCurve, Machine, OutOfDomain, Sample,
    Settings, SpeedResults, Timing,
};
pub use run::{EXPERIMENTS, reproduce, reproduce_with};
