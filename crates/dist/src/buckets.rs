//! A flat gradient, averaged over the ranks in pieces while the rest is still being computed.

use std::ops::Range;

use tch::Tensor;

use crate::{Error, ProcessGroup, Result, Work};

/// Where the average goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Destination {
    /// To every rank. The default.
    #[default]
    Everyone,
    /// Each rank's [`slice`](ProcessGroup::slice) to that rank only, at half the traffic: for an
    /// optimiser whose state is shared out (ZeRO-1). The other slices are not defined afterwards.
    Owner,
}

/// A flat gradient tensor in ranges of about one size, each averaged over the ranks on its own.
///
/// A backward pass says which elements are final, by [`ready`](Self::ready) or by
/// [`start`](Self::start), in the same order on every rank; [`finish`](Self::finish) starts what is
/// left, waits for all, and divides by the number of ranks.
///
/// ```
/// use std::time::Duration;
/// use foretoken_dist::{Buckets, Destination, Environment, ProcessGroup};
/// use tch::{Device, Kind, Tensor};
///
/// # let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
/// let alone = Environment::new(0, 1, "127.0.0.1", port);
/// let group = ProcessGroup::connect(&alone, Duration::from_secs(10))?;
/// let gradient = Tensor::ones([10], (Kind::Float, Device::Cpu));
/// let mut buckets = Buckets::new(&group, &gradient, 16, Destination::Everyone)?;
/// assert_eq!(buckets.ranges(), [0..4, 4..8, 8..10]);
/// buckets.ready(3..10)?; // starts the last two
/// buckets.finish()?;
/// assert_eq!(gradient.double_value(&[9]), 1.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Buckets {
    group: ProcessGroup,
    flat: Tensor,
    destination: Destination,
    ranges: Vec<Range<i64>>,
    /// The elements of each range that are not ready yet.
    open: Vec<i64>,
    started: Vec<bool>,
    works: Vec<Work>,
}

impl Buckets {
    /// Cuts `flat`, of one dimension and a floating-point kind, into ranges of about `bytes`.
    ///
    /// # Errors
    /// When the tensor isn't such a one, or when it is to be shared out and its length isn't a
    /// multiple of the number of ranks.
    pub fn new(
        group: &ProcessGroup,
        flat: &Tensor,
        bytes: usize,
        destination: Destination,
    ) -> Result<Self> {
        let unfit = |problem| Error::Tensor { collective: "gradient buckets", problem };
        if flat.dim() != 1 {
            return Err(unfit(format!("has {} dimensions, not one", flat.dim())));
        }
        let kind = flat.f_kind()?;
        if !flat.f_is_floating_point()? {
            return Err(unfit(format!("is of the kind {kind:?}, which has no averages")));
        }
        let step = (bytes / kind.elt_size_in_bytes()).max(1);
        let length = flat.size()[0];
        let ranges = match destination {
            Destination::Everyone => cut(0..length, step),
            Destination::Owner => {
                let slices = (0..group.size()).map(|rank| group.slice(length, rank));
                let slices = slices.collect::<Result<Vec<_>>>()?;
                slices.into_iter().flat_map(|slice| cut(slice, step)).collect()
            }
        };
        let (group, flat) = (group.clone(), flat.shallow_clone());
        let (open, started, works) = (Vec::new(), Vec::new(), Vec::new());
        let mut buckets = Self { group, flat, destination, ranges, open, started, works };
        buckets.reset();
        Ok(buckets)
    }

    /// The ranges, in the order of the elements.
    pub fn ranges(&self) -> &[Range<i64>] {
        &self.ranges
    }

    /// Says that these elements have their final values. Starts every range that is ready whole.
    ///
    /// # Errors
    /// When elements are not in the tensor or were ready before, and when a rank fails.
    pub fn ready(&mut self, elements: Range<i64>) -> Result<()> {
        let length = self.flat.size()[0];
        if elements.start < 0 || elements.end > length || elements.start > elements.end {
            return Err(wrong(&elements, format!("a part of 0..{length}")));
        }
        let first = self.ranges.partition_point(|range| range.end <= elements.start);
        let end = self.ranges.partition_point(|range| range.start < elements.end);
        // From the last: that is how a backward pass goes through the parameters.
        for index in (first..end).rev() {
            let range = &self.ranges[index];
            let part = elements.end.min(range.end) - elements.start.max(range.start);
            if part > self.open[index] {
                return Err(wrong(&elements, "elements that were not ready before".to_owned()));
            }
            self.open[index] -= part;
            if self.open[index] == 0 && part > 0 {
                self.start(index)?;
            }
        }
        Ok(())
    }

    /// Starts range `index`, whose elements all have their final values. Until
    /// [`finish`](Self::finish) nobody may read or write them.
    ///
    /// # Errors
    /// When there is no such range, when it was started before, and when a rank fails.
    pub fn start(&mut self, index: usize) -> Result<()> {
        if self.started.get(index) != Some(&false) {
            return Err(Error::Argument {
                what: "the range to start",
                found: index.to_string(),
                expected: format!("one of {}, each once a step", self.ranges.len()),
            });
        }
        let range = &self.ranges[index];
        let part = self.flat.f_narrow(0, range.start, range.end - range.start)?;
        let work = match self.destination {
            Destination::Everyone => self.group.all_reduce_async(&part)?,
            Destination::Owner => {
                let share = self.flat.size()[0] / self.group.size() as i64;
                self.group.reduce_async(&part, (range.start / share) as usize)?
            }
        };
        self.works.push(work);
        self.started[index] = true;
        self.open[index] = 0;
        Ok(())
    }

    /// Starts every range that was not started, whose elements all have their final values.
    ///
    /// # Errors
    /// When a rank fails.
    pub fn start_rest(&mut self) -> Result<()> {
        let rest: Vec<usize> = (0..self.ranges.len()).filter(|&i| !self.started[i]).collect();
        rest.into_iter().rev().try_for_each(|index| self.start(index))
    }

    /// Starts what was not started, waits for all, divides by the number of ranks, and begins anew.
    ///
    /// # Errors
    /// When a rank fails, which ends the group.
    pub fn finish(&mut self) -> Result<()> {
        self.start_rest()?;
        self.works.drain(..).try_for_each(Work::wait)?;
        self.reset();
        let length = self.flat.size()[0];
        let own = match self.destination {
            Destination::Everyone => 0..length,
            Destination::Owner => self.group.slice(length, self.group.rank())?,
        };
        let mut own = self.flat.f_narrow(0, own.start, own.end - own.start)?;
        if self.group.size() > 1 {
            let _ = tch::no_grad(|| own.f_div_scalar_(self.group.size() as i64))?;
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.open = self.ranges.iter().map(|range| range.end - range.start).collect();
        self.started = vec![false; self.ranges.len()];
    }
}

fn cut(whole: Range<i64>, step: usize) -> Vec<Range<i64>> {
    let (end, length) = (whole.end, i64::try_from(step).unwrap_or(i64::MAX));
    whole.step_by(step).map(|start| start..end.min(start.saturating_add(length))).collect()
}

fn wrong(elements: &Range<i64>, expected: String) -> Error {
    Error::Argument {
        what: "the range of ready elements",
        found: format!("{elements:?}"),
        expected,
    }
}
