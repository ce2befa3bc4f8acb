//! Muon over matrices, which lie at the beginning of the flat buffers.

use std::ops::Range;

use tch::{Kind, Tensor};

use super::flat::FlatParameters;
use super::newton_schulz::{self, Orientation};
use crate::Error;
use crate::config::{MuonPrecision, OptimizerSection, has_bfloat16_products};

/// Momentum, orthogonalised by Newton–Schulz (Jordan et al., 2024).
///
/// ```text
/// m ← μ m + (1 − μ) g            u = μ m + (1 − μ) g     (Nesterov's form)
/// w ← (1 − η λ) w − η √max(1, rows / columns) · orthogonalize(u)
/// ```
///
/// Each stock matrix counts by itself: the queries', keys' and values' rows of one fused tensor
/// are three matrices. All matrices of one shape in a process's share are one batch.
#[derive(Debug)]
pub(super) struct Muon {
    /// The elements of the flat buffers that it moves: whole matrices.
    pub(super) range: Range<i64>,
    pub(super) momentum: Tensor,
    values: Tensor,
    gradients: Tensor,
    stacks: Vec<Stack>,
}

/// All matrices of one shape.
#[derive(Debug)]
struct Stack {
    rows: i64,
    columns: i64,
    members: Vec<Member>,
    /// `[matrices, rows, columns]` in Newton–Schulz's number format.
    buffer: Tensor,
}

/// The same part of all parameters of a group: `[count, rows, columns]` views.
#[derive(Debug)]
struct Member {
    value: Tensor,
    gradient: Tensor,
}

impl Muon {
    pub(super) fn new(
        flat: &FlatParameters,
        range: Range<i64>,
        section: &OptimizerSection,
    ) -> Result<Self, Error> {
        let length = range.end - range.start;
        let values = flat.values.f_narrow(0, range.start, length)?;
        let gradients = flat.gradients.f_narrow(0, range.start, length)?;
        let mut stacks: Vec<Stack> = Vec::new();
        for group in flat.layout.groups.iter().filter(|group| range.contains(&group.start)) {
            let &[rows, columns] = group.shape.as_slice() else {
                return Err(Error::State {
                    name: "matrices".to_owned(),
                    message: format!("Muon needs two dimensions, not {:?}", group.shape),
                });
            };
            let stacked = |buffer: &Tensor| {
                buffer.f_narrow(0, group.start, group.count * rows * columns)?.f_view([
                    group.count,
                    rows,
                    columns,
                ])
            };
            let (value, gradient) = (stacked(&flat.values)?, stacked(&flat.gradients)?);
            let mut first = 0;
            for &part in &group.parts {
                let member = Member {
                    value: value.f_narrow(1, first, part)?,
                    gradient: gradient.f_narrow(1, first, part)?,
                };
                first += part;
                let known =
                    stacks.iter_mut().find(|stack| stack.rows == part && stack.columns == columns);
                if let Some(stack) = known {
                    stack.members.push(member);
                } else {
                    stacks.push(Stack {
                        rows: part,
                        columns,
                        members: vec![member],
                        buffer: Tensor::new(),
                    });
                }
            }
        }
        let kind = newton_schulz_kind(&values, section.muon_precision);
        for stack in &mut stacks {
            let count: i64 = stack.members.iter().map(|member| member.value.size()[0]).sum();
            let shape = [count, stack.rows, stack.columns];
            stack.buffer = Tensor::f_zeros(shape, (kind, values.device()))?;
        }
        Ok(Self { range, momentum: values.f_zeros_like()?, values, gradients, stacks })
    }

    pub(super) fn step(&mut self, section: &OptimizerSection, factor: f64) -> Result<(), Error> {
        let rate = section.muon_learning_rate * factor;
        let momentum = section.muon_momentum;
        let _ = self.momentum.f_lerp_(&self.gradients, 1.0 - momentum)?;
        if rate == 0.0 {
            return Ok(());
        }
        // The gradients are spent after this: they become the update in place.
        let _ = self.gradients.f_lerp_(&self.momentum, momentum)?;
        if section.weight_decay > 0.0 {
            let _ = self.values.f_mul_scalar_(1.0 - rate * section.weight_decay)?;
        }
        for stack in &mut self.stacks {
            stack.step(rate)?;
        }
        Ok(())
    }
}

impl Stack {
    fn step(&mut self, rate: f64) -> Result<(), Error> {
        let mut first = 0;
        for member in &self.members {
            let count = member.gradient.size()[0];
            let slice = self.buffer.f_narrow(0, first, count)?;
            newton_schulz::normalize_into(&member.gradient, &slice)?;
            first += count;
        }
        let scale = -rate * (self.rows as f64 / self.columns as f64).max(1.0).sqrt();
        let orientation = Orientation::of(self.rows, self.columns);
        let mut update = newton_schulz::iterate(&self.buffer, orientation)?;
        let _ = update.f_mul_scalar_(scale)?;
        let mut first = 0;
        for member in &mut self.members {
            let count = member.value.size()[0];
            let _ = member.value.f_add_(&update.f_narrow(0, first, count)?)?;
            first += count;
        }
        Ok(())
    }
}

/// The number format of the Newton–Schulz products of float32 weights.
fn newton_schulz_kind(values: &Tensor, precision: MuonPrecision) -> Kind {
    let fewer = match precision {
        MuonPrecision::Float32 => false,
        MuonPrecision::Auto => values.device().is_cuda(),
        MuonPrecision::Fast => has_bfloat16_products(values.device()),
        MuonPrecision::Bfloat16 => true,
    };
    if fewer && values.kind() == Kind::Float { Kind::BFloat16 } else { values.kind() }
}
