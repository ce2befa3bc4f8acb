//! Gradients and parameters that several processes have in common.

use std::ops::Range;

use foretoken_dist::{Buckets, Destination, ProcessGroup};
use tch::Tensor;

use super::flat::FlatParameters;
use crate::Error;

/// Bytes of gradients that go over the network at a time.
const BUCKET_BYTES: usize = 4 << 20;

/// The averages of the gradients over processes and, where each process moves a slice of the
/// parameters alone, the way back.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) group: ProcessGroup,
    destination: Destination,
    /// The regions of the flat buffers, each with the buckets of its gradients.
    regions: Vec<(Range<i64>, Buckets)>,
}

impl Shared {
    /// All begin with the parameters of rank 0.
    pub(super) fn new(
        group: &ProcessGroup,
        flat: &mut FlatParameters,
        destination: Destination,
    ) -> Result<Self, Error> {
        group.broadcast(&flat.values, 0)?;
        flat.publish()?;
        let mut regions = Vec::new();
        for region in flat.layout.regions() {
            let part = part(&flat.gradients, &region)?;
            regions.push((region, Buckets::new(group, &part, BUCKET_BYTES, destination)?));
        }
        Ok(Self { group: group.clone(), destination, regions })
    }

    /// The elements of `region` whose parameters this process moves.
    pub(super) fn own(&self, region: Range<i64>) -> Result<Range<i64>, Error> {
        match self.destination {
            Destination::Everyone => Ok(region),
            Destination::Owner => self.slice(&region, self.group.rank()),
        }
    }

    /// The elements of `region` that are a rank's.
    pub(super) fn slice(&self, region: &Range<i64>, rank: usize) -> Result<Range<i64>, Error> {
        let slice = self.group.slice(region.end - region.start, rank)?;
        Ok(region.start + slice.start..region.start + slice.end)
    }

    /// Says that the gradients of these elements, of one region, are complete.
    pub(super) fn ready(&mut self, elements: &Range<i64>) -> Result<(), Error> {
        let of = |(region, _): &&mut (Range<i64>, Buckets)| region.contains(&elements.start);
        if let Some((region, buckets)) = self.regions.iter_mut().find(of) {
            buckets.ready(elements.start - region.start..elements.end - region.start)?;
        }
        Ok(())
    }

    /// Waits until all gradients are averages, where this process has a use for them.
    pub(super) fn finish(&mut self) -> Result<(), Error> {
        for (_, buckets) in self.regions.iter_mut().rev() {
            buckets.start_rest()?;
        }
        for (_, buckets) in &mut self.regions {
            buckets.finish()?;
        }
        Ok(())
    }

    /// The norm of all gradients, from the slices that the processes have.
    pub(super) fn norm(&self, gradients: &Tensor) -> Result<f64, Error> {
        if self.destination == Destination::Everyone {
            return Ok(gradients.f_norm()?.f_double_value(&[])?);
        }
        let mut squares = 0.0;
        for (region, _) in &self.regions {
            let own = self.own(region.clone())?;
            squares += part(gradients, &own)?.f_norm()?.f_double_value(&[])?.powi(2);
        }
        let sum = Tensor::f_from_slice(&[squares])?;
        self.group.all_reduce(&sum)?;
        Ok(sum.f_double_value(&[0])?.sqrt())
    }

    /// Gives every process what the others have moved.
    pub(super) fn gather(&self, values: &Tensor) -> Result<(), Error> {
        if self.destination == Destination::Owner {
            for (region, _) in &self.regions {
                self.group.all_gather_slices(&part(values, region)?)?;
            }
        }
        Ok(())
    }
}

/// A view of some elements.
pub(super) fn part(flat: &Tensor, elements: &Range<i64>) -> Result<Tensor, Error> {
    Ok(flat.f_narrow(0, elements.start, elements.end - elements.start)?)
}
