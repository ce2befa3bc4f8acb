//! Keys and values of the positions seen so far.

use crate::{Error, Result};
use tch::{Device, Kind, Tensor};

/// Rows of an attention behind a cache of which the last do not follow the others: each stands in
/// place of one of them.
///
/// Of the first rows, the chain, row i has position `start + i` and sees the cache and the chain up
/// to itself, as always. A row in place of row p has position `start + p` and sees the cache, the
/// chain before row p, and itself: it computes what row p would, were its token this one's.
#[derive(Debug)]
pub struct Branch {
    /// `[rows]`, int64
    positions: Tensor,
    /// What a row does not see: `[rows, start + rows]`, bool
    unseen: Tensor,
    /// The last position and one more.
    end: i64,
}

impl Branch {
    /// `chain` rows from position `start` on, and one row for each of `places`: the row of the chain
    /// that it stands in place of, or `chain` for one behind them all.
    ///
    /// # Errors
    /// When a place lies beyond the chain or the memory cannot be had.
    pub fn new(start: i64, chain: i64, places: &[i64], device: Device) -> Result<Self> {
        if let Some(place) = places.iter().find(|&&place| place < 0 || place > chain) {
            return Err(Error::Shape {
                what: "the place of a row beside a chain",
                expected: format!("0 to {chain}"),
                found: place.to_string(),
            });
        }
        let rows = chain + places.len() as i64;
        let positions: Vec<i64> =
            (0..chain).chain(places.iter().copied()).map(|place| start + place).collect();
        let end = positions.iter().max().map_or(start, |last| last + 1);
        let positions = Tensor::f_from_slice(&positions)?;
        // A row sees what has a position before its own, the rows beside the chain left out, and
        // itself.
        let chain_ends = start + chain;
        let columns = Tensor::f_arange(start + rows, (Kind::Int64, Device::Cpu))?;
        let before = columns.f_lt_tensor(&positions.f_unsqueeze(1)?)?;
        let in_chain = columns.f_lt(chain_ends)?;
        let itself =
            Tensor::f_eye_m(rows, start + rows, (Kind::Bool, Device::Cpu))?.f_roll([start], [1])?;
        let seen = before.f_logical_and(&in_chain)?.f_logical_or(&itself)?;
        Ok(Self {
            positions: positions.f_to_device(device)?,
            unseen: seen.f_logical_not()?.f_to_device(device)?,
            end,
        })
    }

    /// The same one: the tensors are these.
    #[must_use]
    pub fn share(&self) -> Self {
        let (positions, unseen) = (self.positions.shallow_clone(), self.unseen.shallow_clone());
        Self { positions, unseen, end: self.end }
    }

    /// `[rows]`, int64.
    pub(crate) fn positions(&self) -> &Tensor {
        &self.positions
    }

    /// `[rows, start + rows]`, bool.
    pub(crate) fn unseen(&self) -> &Tensor {
        &self.unseen
    }

    /// One behind the last of the positions.
    pub(crate) fn end(&self) -> i64 {
        self.end
    }

    /// Checks that it is for `rows` rows behind `start` positions.
    pub(crate) fn check(&self, start: i64, rows: i64) -> Result<()> {
        if self.unseen.size() != [rows, start + rows] {
            return Err(Error::Shape {
                what: "rows beside a chain",
                expected: format!("{:?}, rows and what they may see", self.unseen.size()),
                found: format!("[{rows}, {}]", start + rows),
            });
        }
        Ok(())
    }
}

/// Positions that a cache takes memory for at first.
const FIRST_ROOM: i64 = 1024;

/// A key–value cache of one attention layer, for at most `capacity` positions.
///
/// It takes memory for a thousand positions, and for twice as many whenever these are full: a model
/// made for long texts does not pay for them with every short one. Keys are stored after the rotary turn.
/// [`KvCache::truncate`] takes back positions that a
/// rejected draft wrote: it only moves the end, the next append overwrites.
#[derive(Debug)]
pub struct KvCache {
    keys: Tensor,
    values: Tensor,
    len: i64,
    capacity: i64,
    /// Of the rows that are appended next.
    branch: Option<Branch>,
}

impl KvCache {
    /// An empty cache: up to `[batch, kv_heads, capacity, head_dim]` each for keys and values.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn new(
        batch: i64,
        kv_heads: i64,
        capacity: i64,
        head_dim: i64,
        kind: Kind,
        device: Device,
    ) -> Result<Self> {
        let room = capacity.min(FIRST_ROOM);
        let zeros = || Tensor::f_zeros([batch, kv_heads, room, head_dim], (kind, device));
        Ok(Self { keys: zeros()?, values: zeros()?, len: 0, capacity, branch: None })
    }

    /// Positions held.
    pub fn len(&self) -> i64 {
        self.len
    }

    /// Whether no position is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The most positions that it can hold.
    pub fn capacity(&self) -> i64 {
        self.capacity
    }

    /// Forgets all positions from `len` on, where so many are held, and what [`KvCache::branch`] said.
    pub fn truncate(&mut self, len: i64) {
        self.len = self.len.min(len.max(0));
        self.branch = None;
    }

    /// Says how the rows of the next [`cached_attention`](crate::cached_attention) stand to each
    /// other. Those beside the chain are held behind it until [`KvCache::keep`] or
    /// [`KvCache::truncate`] takes them back, and nothing may be appended before that.
    pub fn branch(&mut self, branch: &Branch) {
        self.branch = Some(branch.share());
    }

    pub(crate) fn take_branch(&mut self) -> Option<Branch> {
        self.branch.take()
    }

    /// Forgets all positions from `len` on, but for what is held at `other`, which comes to stand
    /// there.
    ///
    /// # Errors
    /// When nothing is held at `other`, or it lies before `len`.
    pub fn keep(&mut self, len: i64, other: i64) -> Result<()> {
        if other < len || other >= self.len {
            return Err(Error::Shape {
                what: "the position that a key-value cache keeps",
                expected: format!("{len} to {}", self.len - 1),
                found: other.to_string(),
            });
        }
        if other > len {
            for all in [&self.keys, &self.values] {
                all.f_narrow(2, len, 1)?.f_copy_(&all.f_narrow(2, other, 1)?)?;
            }
        }
        self.truncate(len + 1);
        Ok(())
    }

    /// Appends keys and values `[batch, kv_heads, new, head_dim]` and returns views of all that is
    /// held now: `[batch, kv_heads, len, head_dim]`.
    ///
    /// # Errors
    /// When the capacity is exceeded or the memory cannot be had (nothing is appended then), or shapes
    /// differ.
    pub fn append(&mut self, keys: &Tensor, values: &Tensor) -> Result<(Tensor, Tensor)> {
        let new = keys.size4()?.2;
        let end = self.len + new;
        if end > self.capacity() {
            return Err(Error::Capacity {
                what: "the key-value cache",
                needed: end,
                capacity: self.capacity(),
            });
        }
        self.make_room(end)?;
        self.keys.f_narrow(2, self.len, new)?.f_copy_(keys)?;
        self.values.f_narrow(2, self.len, new)?.f_copy_(values)?;
        self.len = end;
        Ok((self.keys.f_narrow(2, 0, end)?, self.values.f_narrow(2, 0, end)?))
    }

    /// Makes room for `end` positions, which are no more than the capacity.
    fn make_room(&mut self, end: i64) -> Result<()> {
        let room = self.keys.size()[2];
        if end <= room {
            return Ok(());
        }
        let grown = |all: &Tensor| -> Result<Tensor> {
            let mut size = all.size();
            size[2] = end.max(2 * room).min(self.capacity);
            let larger = Tensor::f_zeros(&size, (all.kind(), all.device()))?;
            larger.f_narrow(2, 0, self.len)?.f_copy_(&all.f_narrow(2, 0, self.len)?)?;
            Ok(larger)
        };
        (self.keys, self.values) = (grown(&self.keys)?, grown(&self.values)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_grows_up_to_its_capacity_and_keeps_what_it_holds() {
        let capacity = 2 * FIRST_ROOM + 300;
        let mut cache = KvCache::new(1, 2, capacity, 3, Kind::Float, Device::Cpu).unwrap();
        let rows = |count: i64| Tensor::randn([1, 2, count, 3], (Kind::Float, Device::Cpu));
        let (mut keys, mut values) = (rows(0), rows(0));
        for count in [5, FIRST_ROOM - 5, 1, FIRST_ROOM, 299] {
            let (new_keys, new_values) = (rows(count), rows(count));
            keys = Tensor::cat(&[&keys, &new_keys], 2);
            values = Tensor::cat(&[&values, &new_values], 2);
            let (held_keys, held_values) = cache.append(&new_keys, &new_values).unwrap();
            assert_eq!((held_keys, held_values), (keys.shallow_clone(), values.shallow_clone()));
            // It takes no more than twice what it needs.
            assert!(cache.keys.size()[2] < (2 * keys.size()[2]).max(FIRST_ROOM + 1));
        }
        assert_eq!((cache.len(), cache.capacity()), (capacity, capacity));
        assert!(cache.append(&rows(1), &rows(1)).is_err());
        assert_eq!(cache.len(), capacity);
        cache.truncate(7);
        let (held, _) = cache.append(&rows(1), &rows(1)).unwrap();
        assert_eq!(held.narrow(2, 0, 7), keys.narrow(2, 0, 7));
    }
}
