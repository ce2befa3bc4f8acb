//! The optimisers: one flat buffer for all parameters, `AdamW` and Muon over ranges of it.

mod adamw;
mod flat;
mod muon;
mod newton_schulz;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use foretoken_dist::{Buckets, Destination, ProcessGroup};
use foretoken_trunk::Parameter;
use tch::Tensor;

use crate::Error;
use crate::config::{OptimizerKind, OptimizerSection};

use adamw::AdamW;
use flat::FlatParameters;
use muon::Muon;
pub use newton_schulz::orthogonalize;

/// Moves a model's parameters along their gradients.
///
/// The parameters' values and gradients become views of two flat buffers, so that norms, decay
/// and moments each take one operator for the whole model instead of one per parameter. With
/// Muon, matrices of one shape lie beside each other and are orthogonalised as one batch.
///
/// ```
/// use foretoken_train::{Optimizer, OptimizerSection};
/// use foretoken_trunk::{Parameter, Role};
/// use tch::{Device, Kind, Tensor};
///
/// let weight = Tensor::ones([4, 6], (Kind::Float, Device::Cpu)).set_requires_grad(true);
/// let parameters = vec![Parameter::whole(&weight, Role::Matrix, "weight")];
/// let mut optimizer = Optimizer::new(parameters, &OptimizerSection::default())?;
/// for _ in 0..20 {
///     weight.square().sum(None).backward();
///     optimizer.step(1.0)?;
/// }
/// assert!(weight.square().sum(None).double_value(&[]) < 24.0);
/// # Ok::<(), foretoken_train::Error>(())
/// ```
#[derive(Debug)]
pub struct Optimizer {
    flat: FlatParameters,
    adamw: AdamW,
    muon: Option<Muon>,
    section: OptimizerSection,
    updates: u64,
    /// The gradients in ranges that are averaged over processes; none for one alone.
    shared: Option<Buckets>,
}

/// Bytes of gradients that go over the network at a time.
const BUCKET_BYTES: usize = 4 << 20;

/// What one [`Optimizer::step`] saw and did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Norm of all gradients together, before clipping.
    pub gradient_norm: f64,
    /// Whether the parameters moved; they don't where the norm isn't finite.
    pub updated: bool,
}

impl Optimizer {
    /// Takes over `parameters`: their storage moves into this optimiser's flat buffer, where
    /// every clone of the tensors follows.
    ///
    /// # Errors
    /// When libtorch refuses, for lack of memory for one.
    pub fn new(parameters: Vec<Parameter>, section: &OptimizerSection) -> Result<Self, Error> {
        Self::build(parameters, None, section)
    }

    /// As [`new`](Self::new) for a model that computes in fewer bits than it learns in: gradients
    /// come to `copies`, the same parameters in the same order in another kind; `parameters` are
    /// moved, and the copies follow, rounded.
    ///
    /// # Errors
    /// As [`new`](Self::new), and when the copies are not those of `parameters`.
    pub fn with_copies(
        parameters: Vec<Parameter>,
        copies: Vec<Parameter>,
        section: &OptimizerSection,
    ) -> Result<Self, Error> {
        let same = |(a, b): (&Parameter, &Parameter)| {
            a.role == b.role && a.parts == b.parts && a.tensor.size() == b.tensor.size()
        };
        if parameters.len() != copies.len() || !parameters.iter().zip(&copies).all(same) {
            return Err(Error::State {
                name: "the copies".to_owned(),
                message: "are not those of the parameters".to_owned(),
            });
        }
        Self::build(parameters, Some(copies), section)
    }

    fn build(
        parameters: Vec<Parameter>,
        copies: Option<Vec<Parameter>>,
        section: &OptimizerSection,
    ) -> Result<Self, Error> {
        let _guard = tch::no_grad_guard();
        let flat = FlatParameters::new(parameters, copies)?;
        let (adamw, muon) = match section.kind {
            OptimizerKind::Adamw => (AdamW::new(&flat, 0)?, None),
            OptimizerKind::Muon => {
                (AdamW::new(&flat, flat.matrices_end)?, Some(Muon::new(&flat, section)?))
            }
        };
        Ok(Self { flat, adamw, muon, section: section.clone(), updates: 0, shared: None })
    }

    /// Averages gradients over the processes of `group` from now on, each parameter's once a step.
    /// All begin with the parameters of rank 0.
    ///
    /// # Errors
    /// When another process fails.
    pub fn share(&mut self, group: &ProcessGroup) -> Result<(), Error> {
        let _guard = tch::no_grad_guard();
        group.broadcast(&self.flat.values, 0)?;
        self.flat.publish()?;
        let (gradients, everyone) = (&self.flat.gradients, Destination::Everyone);
        self.shared = Some(Buckets::new(group, gradients, BUCKET_BYTES, everyone)?);
        Ok(())
    }

    /// Clips the gradients, moves the parameters and sets the gradients to zero.
    ///
    /// `factor` multiplies the peak rates: the schedule's word for this step.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn step(&mut self, factor: f64) -> Result<StepReport, Error> {
        let _guard = tch::no_grad_guard();
        self.flat.collect_gradients()?;
        if let Some(shared) = &mut self.shared {
            shared.finish()?;
        }
        let gradient_norm = self.flat.gradients.f_norm()?.f_double_value(&[])?;
        let updated = gradient_norm.is_finite();
        if updated {
            if self.section.clip > 0.0 && gradient_norm > self.section.clip {
                let _ = self.flat.gradients.f_mul_scalar_(self.section.clip / gradient_norm)?;
            }
            self.updates += 1;
            self.adamw.step(&self.section, factor, self.updates)?;
            if let Some(muon) = &mut self.muon {
                muon.step(&self.section, factor)?;
            }
            self.flat.publish()?;
        }
        let _ = self.flat.gradients.f_zero_()?;
        Ok(StepReport { gradient_norm, updated })
    }

    /// Steps in which the parameters moved: what `AdamW`'s bias correction counts.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// The moments, as views named `STATE.PART` after the stock names of the parameters' parts.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn state(&self) -> Result<Vec<(String, Tensor)>, Error> {
        let mut state = Vec::new();
        let (start, end) = (self.adamw.start, self.flat.len());
        if let Some(muon) = &self.muon {
            self.flat.named(&muon.momentum, "momentum", 0, start, &mut state)?;
        }
        self.flat.named(&self.adamw.mean, "mean", start, end, &mut state)?;
        self.flat.named(&self.adamw.square, "square", start, end, &mut state)?;
        Ok(state)
    }

    /// Takes back what [`state`](Self::state) gave, after `updates` updates.
    ///
    /// # Errors
    /// When a tensor is missing, superfluous or of another shape or type; nothing has moved then.
    pub fn restore(&mut self, saved: &[(String, Tensor)], updates: u64) -> Result<(), Error> {
        let _guard = tch::no_grad_guard();
        let mut saved: BTreeMap<&str, &Tensor> =
            saved.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let fail = |name: &str, message: String| Error::State { name: name.to_owned(), message };
        let mut pairs = Vec::new();
        for (name, ours) in self.state()? {
            let theirs =
                saved.remove(name.as_str()).ok_or_else(|| fail(&name, "is missing".to_owned()))?;
            let (shape, kind) = (theirs.size(), theirs.kind());
            if shape != ours.size() || kind != ours.kind() {
                return Err(fail(
                    &name,
                    format!(
                        "has shape {shape:?} and type {kind:?} where the model needs {:?} and {:?}",
                        ours.size(),
                        ours.kind()
                    ),
                ));
            }
            pairs.push((ours, theirs));
        }
        if let Some(name) = saved.keys().next() {
            return Err(fail(name, "belongs to no parameter of the model".to_owned()));
        }
        for (mut ours, theirs) in pairs {
            ours.f_copy_(theirs)?;
        }
        self.updates = updates;
        Ok(())
    }
}
