//! The heads that a run measures on a published model: trained by it, or kept from before.

use std::path::Path;

use anyhow::Context;
use foretoken_heads::{ModelSource, MultiTokenModel, Registry};
use foretoken_train::TrainConfig;
use tch::{Device, Kind};

use crate::curves::loss_curve;
use crate::files::file_sha256;
use crate::kept::Kept;
use crate::training::{Job, Trained};

/// Heads that can be measured.
pub(crate) enum Grown<'j> {
    /// Trained by this run.
    Trained(Job<'j>, Trained),
    /// Kept from an earlier one.
    Kept(Kept),
}

impl Grown<'_> {
    /// What they were trained by.
    pub(crate) fn config(&self) -> &TrainConfig {
        match self {
            Self::Trained(job, _) => &job.config,
            Self::Kept(kept) => &kept.config,
        }
    }

    /// What their training came to.
    pub(crate) fn trained(&self) -> &Trained {
        match self {
            Self::Trained(_, trained) => trained,
            Self::Kept(kept) => &kept.record.trained,
        }
    }

    /// Where they were trained, `cpu` or `cuda`; `here` where that is not known.
    pub(crate) fn trained_on<'a>(&'a self, here: &'a str) -> &'a str {
        match self {
            Self::Trained(_, trained) => trained.device.as_deref().unwrap_or(here),
            Self::Kept(kept) => &kept.record.device,
        }
    }

    /// Tokens seen and the mean loss of the first head that was trained.
    pub(crate) fn loss_curve(&self) -> anyhow::Result<Vec<(f64, f64)>> {
        match self {
            Self::Trained(job, _) => loss_curve(&job.folder.metrics()),
            Self::Kept(kept) => Ok(kept.record.loss_curve.clone()),
        }
    }

    /// A hash of the weights of the `published` model and the heads.
    pub(crate) fn weights(&self, published: &Path) -> anyhow::Result<String> {
        match self {
            Self::Trained(job, _) => job.folder.weights(),
            Self::Kept(kept) => Ok(file_sha256(published)? + &kept.record.heads_sha256),
        }
    }

    /// The `published` model with the heads.
    pub(crate) fn model(
        &self,
        published: &Path,
        kind: Kind,
        device: Device,
    ) -> anyhow::Result<MultiTokenModel> {
        match self {
            Self::Trained(job, _) => {
                let folder = job.folder.model();
                MultiTokenModel::load(&folder, kind, device)
                    .with_context(|| format!("loading {}", folder.display()))
            }
            Self::Kept(kept) => {
                // Heads are told from others by weights in float32.
                let model = ModelSource::open(published)?.model(Kind::Float, device)?;
                let model = kept.join(model)?;
                match kind {
                    Kind::Float => Ok(model),
                    _ => Ok(model.in_kind(kind, &Registry::stock())?),
                }
            }
        }
    }
}
