//! The optimisers: one flat buffer for all parameters, `AdamW` and Muon over ranges of it.

mod adamw;
mod flat;
mod layout;
mod muon;
mod newton_schulz;
mod shared;
mod state;

#[cfg(test)]
mod tests;

use std::ops::Range;

use foretoken_dist::{Destination, ProcessGroup};
use foretoken_trunk::Parameter;
use tch::Tensor;

use crate::Error;
use crate::config::{OptimizerKind, OptimizerSection};

use adamw::AdamW;
use flat::FlatParameters;
use layout::Plan;
use muon::Muon;
pub use newton_schulz::orthogonalize;
use shared::{Shared, part};

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
    /// What several processes do together; none for one alone.
    shared: Option<Shared>,
}

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
        Self::build(parameters, None, section, None)
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
        Self::build(parameters, Some(copies), section, None)
    }

    /// As [`new`](Self::new), or [`with_copies`](Self::with_copies) where there are any, for one of
    /// the processes of `group`, all of which call it. They begin with the parameters of rank 0,
    /// and each step moves them by the mean of their gradients, each parameter's sent once.
    ///
    /// With [`Destination::Everyone`] each process does the whole of a step. With
    /// [`Destination::Owner`] it keeps the moments of its share of the parameters alone, moves
    /// these, and gets the others' from those who moved them (`ZeRO-1`: Rajbhandari et al. 2020,
    /// *Memory Optimizations Toward Training Trillion Parameter Models*): moments and a step's
    /// work are divided by the number of processes for the same traffic. Matrices that Muon
    /// orthogonalises are whole in one share.
    ///
    /// # Errors
    /// As [`with_copies`](Self::with_copies), and when another process fails.
    pub fn shared(
        parameters: Vec<Parameter>,
        copies: Option<Vec<Parameter>>,
        section: &OptimizerSection,
        group: &ProcessGroup,
        destination: Destination,
    ) -> Result<Self, Error> {
        Self::build(parameters, copies, section, Some((group, destination)))
    }

    fn build(
        parameters: Vec<Parameter>,
        copies: Option<Vec<Parameter>>,
        section: &OptimizerSection,
        with: Option<(&ProcessGroup, Destination)>,
    ) -> Result<Self, Error> {
        let same = |(a, b): (&Parameter, &Parameter)| {
            a.role == b.role && a.parts == b.parts && a.tensor.size() == b.tensor.size()
        };
        let alike = |copies: &Vec<Parameter>| {
            parameters.len() == copies.len() && parameters.iter().zip(copies).all(same)
        };
        if !copies.as_ref().is_none_or(alike) {
            return Err(Error::State {
                name: "the copies".to_owned(),
                message: "are not those of the parameters".to_owned(),
            });
        }
        let _guard = tch::no_grad_guard();
        let owners = match with {
            Some((group, Destination::Owner)) => group.size(),
            _ => 1,
        };
        let matrices_apart = section.kind == OptimizerKind::Muon;
        let mut flat = FlatParameters::new(parameters, copies, Plan { matrices_apart, owners })?;
        let shared = match with {
            Some((group, destination)) => Some(Shared::new(group, &mut flat, destination)?),
            None => None,
        };
        let own = |region: Range<i64>| {
            shared.as_ref().map_or(Ok(region.clone()), |shared| shared.own(region))
        };
        let (matrices_end, len) = (flat.layout.matrices_end, flat.layout.len);
        let muon = match section.kind {
            OptimizerKind::Adamw => None,
            OptimizerKind::Muon => Some(Muon::new(&flat, own(0..matrices_end)?, section)?),
        };
        let adamw = AdamW::new(&flat, own(matrices_end..len)?)?;
        Ok(Self { flat, adamw, muon, section: section.clone(), updates: 0, shared })
    }

    /// Says that a backward pass is done with the gradients of `parameters`, of the copies where
    /// there are any: in a group their means are computed from now on, while it goes on with
    /// others. Nothing may be added to them before [`step`](Self::step). All processes have to say
    /// it of the same parameters in the same order, but need not say it of all or any.
    ///
    /// # Errors
    /// When another process fails.
    pub fn ready(&mut self, parameters: &[Parameter]) -> Result<(), Error> {
        let Some(shared) = &mut self.shared else { return Ok(()) };
        let _guard = tch::no_grad_guard();
        for parameter in parameters {
            if let Some(elements) = self.flat.collect(&parameter.tensor)? {
                shared.ready(&elements)?;
            }
        }
        Ok(())
    }

    /// Says that a part of a step's batch is done: what the copies' gradients have come to is added
    /// to the sums in the parameters' own precision. Between the parts of a step it keeps sums of
    /// many parts from being rounded to the copies' few bits; without copies it does nothing. Not
    /// after [`ready`](Self::ready), which says that nothing more is added in this step.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn part_done(&mut self) -> Result<(), Error> {
        let _guard = tch::no_grad_guard();
        self.flat.collect_from_copies()
    }

    /// Passes `parameters` over in the next step, the copies where there are any: neither decay nor
    /// the momentum of earlier gradients moves them, and both stay as they are.
    pub fn rest(&mut self, parameters: &[Parameter]) {
        for parameter in parameters {
            self.flat.rest(&parameter.tensor);
        }
    }

    /// Clips the gradients, moves the parameters and sets the gradients to zero.
    ///
    /// `factor` multiplies the peak rates: the schedule's word for this step.
    ///
    /// # Errors
    /// When libtorch refuses, or another process fails.
    pub fn step(&mut self, factor: f64) -> Result<StepReport, Error> {
        let _guard = tch::no_grad_guard();
        self.flat.collect_gradients()?;
        let gradient_norm = match &mut self.shared {
            Some(shared) => {
                shared.finish()?;
                shared.norm(&self.flat.gradients)?
            }
            None => self.flat.gradients.f_norm()?.f_double_value(&[])?,
        };
        let updated = gradient_norm.is_finite();
        let resting = self.flat.take_resting();
        if updated {
            let kept = self.copies_of(&resting)?;
            if self.section.clip > 0.0 && gradient_norm > self.section.clip {
                self.scale_gradients(self.section.clip / gradient_norm)?;
            }
            self.updates += 1;
            self.adamw.step(&self.section, factor, self.updates)?;
            if let Some(muon) = &mut self.muon {
                muon.step(&self.section, factor)?;
            }
            for (mut place, copy) in kept {
                place.f_copy_(&copy)?;
            }
            if let Some(shared) = &self.shared {
                shared.gather(&self.flat.values)?;
            }
            self.flat.publish()?;
        }
        let _ = self.flat.gradients.f_zero_()?;
        Ok(StepReport { gradient_norm, updated })
    }

    /// Values and moments of these elements, as far as this process moves them: each a view and a
    /// copy.
    fn copies_of(&self, elements: &[Range<i64>]) -> Result<Vec<(Tensor, Tensor)>, Error> {
        let (values, adamw) = (&self.flat.values, &self.adamw);
        let mut buffers = vec![
            (values, 0, &adamw.range),
            (&adamw.mean, adamw.range.start, &adamw.range),
            (&adamw.square, adamw.range.start, &adamw.range),
        ];
        if let Some(muon) = &self.muon {
            buffers.push((values, 0, &muon.range));
            buffers.push((&muon.momentum, muon.range.start, &muon.range));
        }
        let mut copies = Vec::new();
        for elements in elements {
            for &(buffer, first, own) in &buffers {
                let (start, end) = (elements.start.max(own.start), elements.end.min(own.end));
                if start < end {
                    let view = part(buffer, &(start - first..end - first))?;
                    let copy = view.copy();
                    copies.push((view, copy));
                }
            }
        }
        Ok(copies)
    }

    /// Multiplies the gradients that this process moves parameters by.
    fn scale_gradients(&self, factor: f64) -> Result<(), Error> {
        let muon = self.muon.iter().map(|muon| &muon.range);
        for own in muon.chain([&self.adamw.range]) {
            let _ = part(&self.flat.gradients, own)?.f_mul_scalar_(factor)?;
        }
        Ok(())
    }

    /// Steps in which the parameters moved: what `AdamW`'s bias correction counts.
    pub fn updates(&self) -> u64 {
        self.updates
    }
}
