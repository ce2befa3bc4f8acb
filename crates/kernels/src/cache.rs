//! Keys and values of the positions seen so far.

use crate::{Error, Result};
use tch::{Device, Kind, Tensor};

/// A key–value cache of one attention layer, with room for `capacity` positions.
///
/// Keys are stored after the rotary turn. [`KvCache::truncate`] takes back positions that a
/// rejected draft wrote: it only moves the end, the next append overwrites.
#[derive(Debug)]
pub struct KvCache {
    keys: Tensor,
    values: Tensor,
    len: i64,
}

impl KvCache {
    /// An empty cache: `[batch, kv_heads, capacity, head_dim]` each for keys and values.
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
        let zeros = || Tensor::f_zeros([batch, kv_heads, capacity, head_dim], (kind, device));
        Ok(Self { keys: zeros()?, values: zeros()?, len: 0 })
    }

    /// Positions held.
    pub fn len(&self) -> i64 {
        self.len
    }

    /// Whether no position is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Positions there is room for.
    pub fn capacity(&self) -> i64 {
        self.keys.size()[2]
    }

    /// Forgets all positions from `len` on; no effect when fewer are held.
    pub fn truncate(&mut self, len: i64) {
        self.len = self.len.min(len.max(0));
    }

    /// Appends keys and values `[batch, kv_heads, new, head_dim]` and returns views of all that is
    /// held now: `[batch, kv_heads, len, head_dim]`.
    ///
    /// # Errors
    /// When the capacity is exceeded (nothing is appended then) or shapes differ.
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
        self.keys.f_narrow(2, self.len, new)?.f_copy_(keys)?;
        self.values.f_narrow(2, self.len, new)?.f_copy_(values)?;
        self.len = end;
        Ok((self.keys.f_narrow(2, 0, end)?, self.values.f_narrow(2, 0, end)?))
    }
}
