//! Keys and values of the positions so far, laid out for the products that read them.

use super::aligned::{Aligned, PAD, View};
use super::real::Real;

/// Positions side by side in a block of keys.
pub(super) const BLOCK: usize = 16;

/// The keys and values of one block of a model.
///
/// Keys stand as `[kv_heads, positions / 16, head_dim, 16]`: a query times sixteen keys is a sum of
/// vectors. Values stand as `[kv_heads, positions, head_dim]`, each padded to whole vectors.
pub struct BlockCache<T> {
    keys: Aligned<T>,
    values: Aligned<T>,
    kv_heads: usize,
    head_dim: usize,
    capacity: usize,
    len: usize,
}

impl<T: Real> BlockCache<T> {
    /// An empty cache with room for `capacity` positions.
    pub fn new(kv_heads: usize, head_dim: usize, capacity: usize) -> Self {
        let blocks = capacity.div_ceil(BLOCK);
        Self {
            keys: Aligned::zeroed(kv_heads * blocks * head_dim * BLOCK),
            values: Aligned::zeroed(kv_heads * capacity * head_dim.next_multiple_of(PAD)),
            kv_heads,
            head_dim,
            capacity,
            len: 0,
        }
    }

    /// How many positions it holds.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many positions it has room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets all but the first `len` positions; nothing where there are no more.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Whether it is made for such heads.
    pub(super) fn fits(&self, kv_heads: usize, head_dim: usize) -> bool {
        (self.kv_heads, self.head_dim) == (kv_heads, head_dim)
    }

    pub(super) fn grow(&mut self, rows: usize) {
        self.len += rows;
        debug_assert!(self.len <= self.capacity);
    }

    pub(super) fn view(&self) -> CacheView<T> {
        let stride = self.head_dim.next_multiple_of(PAD);
        CacheView {
            keys: View {
                start: self.keys.address(),
                stride: self.capacity.div_ceil(BLOCK) * self.head_dim * BLOCK,
            },
            values: View { start: self.values.address(), stride: self.capacity * stride },
            head_dim: self.head_dim,
            value_stride: stride,
            len: self.len,
        }
    }
}

/// Where the keys and values of a cache are: row h of each view is kv head h.
#[derive(Clone, Copy)]
pub(super) struct CacheView<T> {
    pub(super) keys: View<T>,
    pub(super) values: View<T>,
    pub(super) head_dim: usize,
    pub(super) value_stride: usize,
    /// Positions that were there before this pass.
    pub(super) len: usize,
}

impl<T: Real> CacheView<T> {
    /// Writes the keys and values of kv head `head` of `rows` rows behind the ones that are there;
    /// a row of `kv` has the keys of all heads and then their values.
    ///
    /// # Safety
    /// The cache has room for them, `kv` has the rows, and nobody else touches this head meanwhile.
    pub(super) unsafe fn append(&self, kv: View<T>, rows: usize, head: usize, kv_heads: usize) {
        let d = self.head_dim;
        for r in 0..rows {
            let position = self.len + r;
            // SAFETY: the caller's promise; the key's block and lane and the value's row are those
            // of `position`.
            unsafe {
                let key = kv.row(r).add(head * d);
                let value = kv.row(r).add((kv_heads + head) * d);
                let block = self.keys.row(head).add(position / BLOCK * d * BLOCK);
                for i in 0..d {
                    *block.add(i * BLOCK + position % BLOCK) = *key.add(i);
                }
                let to = self.values.row(head).add(position * self.value_stride);
                std::ptr::copy_nonoverlapping(value, to, d);
            }
        }
    }
}
