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
    /// The same of rows that stand in place of others, a block of keys each, the key in the lane of
    /// its position: `[kv_heads, room, head_dim, 16]` and `[kv_heads, room, head_dim]`.
    aside_keys: Aligned<T>,
    aside_values: Aligned<T>,
    /// The positions of those of the last pass.
    aside: Vec<usize>,
    aside_room: usize,
    kv_heads: usize,
    head_dim: usize,
    capacity: usize,
    len: usize,
}

/// Where the rows of a pass stand: the text's, one behind the other, and then others, each in place
/// of one of the text's rows, whose past it has and which sees nothing of it.
#[derive(Clone, Copy)]
pub(super) struct Places<'p> {
    /// The position of the first row.
    pub(super) start: usize,
    /// Rows of the text.
    pub(super) rows: usize,
    /// The row of the text in whose place each of the others stands.
    pub(super) others: &'p [usize],
}

impl Places<'_> {
    /// Rows in all.
    pub(super) fn count(&self) -> usize {
        self.rows + self.others.len()
    }

    /// The position of row `r`.
    #[inline(always)]
    pub(super) fn position(&self, r: usize) -> usize {
        self.start + self.aside(r).map_or(r, |other| self.others[other])
    }

    /// Which of the others row `r` is.
    #[inline(always)]
    pub(super) fn aside(&self, r: usize) -> Option<usize> {
        r.checked_sub(self.rows)
    }

    /// All but the first `skip` rows, where there are no others, or all.
    pub(super) fn skip(&self, skip: usize) -> Self {
        debug_assert!(skip == 0 || self.others.is_empty());
        Self { start: self.start + skip, rows: self.rows - skip, others: self.others }
    }
}

impl<T: Real> BlockCache<T> {
    /// An empty cache with room for `capacity` positions.
    pub fn new(kv_heads: usize, head_dim: usize, capacity: usize) -> Self {
        let blocks = capacity.div_ceil(BLOCK);
        Self {
            keys: Aligned::zeroed(kv_heads * blocks * head_dim * BLOCK),
            values: Aligned::zeroed(kv_heads * capacity * head_dim.next_multiple_of(PAD)),
            aside_keys: Aligned::zeroed(0),
            aside_values: Aligned::zeroed(0),
            aside: Vec::new(),
            aside_room: 0,
            kv_heads,
            head_dim,
            capacity,
            len: 0,
        }
    }

    /// Makes room for `rows` rows of a pass that stand in place of others ([`super::Pass::others`]).
    #[must_use]
    pub fn with_others(self, rows: usize) -> Self {
        let each = self.kv_heads * rows;
        Self {
            aside_keys: Aligned::zeroed(each * self.head_dim * BLOCK),
            aside_values: Aligned::zeroed(each * self.head_dim.next_multiple_of(PAD)),
            aside: Vec::with_capacity(rows),
            aside_room: rows,
            ..self
        }
    }

    /// Puts what row `other` of the last pass's others has left behind the positions that are there,
    /// which must end at its place.
    ///
    /// # Panics
    /// Where there was no such row or its place is another.
    pub fn take_other(&mut self, other: usize) {
        let position = self.len;
        assert_eq!(self.aside.get(other), Some(&position), "no such row stands there");
        let (d, stride) = (self.head_dim, self.head_dim.next_multiple_of(PAD));
        for head in 0..self.kv_heads {
            let from = (head * self.aside_room + other) * d * BLOCK + position % BLOCK;
            let blocks = self.capacity.div_ceil(BLOCK);
            let to = (head * blocks + position / BLOCK) * d * BLOCK + position % BLOCK;
            for i in (0..d * BLOCK).step_by(BLOCK) {
                self.keys[to + i] = self.aside_keys[from + i];
            }
            let from = (head * self.aside_room + other) * stride;
            let to = (head * self.capacity + position) * stride;
            self.values[to..to + d].copy_from_slice(&self.aside_values[from..from + d]);
        }
        self.len += 1;
        self.aside.clear();
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

    /// How many rows there is room for that stand in place of others.
    pub(super) fn room_for_others(&self) -> usize {
        self.aside_room
    }

    /// Takes in a pass of `rows` rows of the text and others.
    pub(super) fn grow(&mut self, rows: usize, others: &[usize]) {
        self.aside.clear();
        self.aside.extend(others.iter().map(|other| self.len + other));
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
            aside_keys: View {
                start: self.aside_keys.address(),
                stride: self.aside_room * self.head_dim * BLOCK,
            },
            aside_values: View {
                start: self.aside_values.address(),
                stride: self.aside_room * stride,
            },
            head_dim: self.head_dim,
            value_stride: stride,
        }
    }
}

/// Where the keys and values of a cache are: row h of each view is kv head h.
#[derive(Clone, Copy)]
pub(super) struct CacheView<T> {
    pub(super) keys: View<T>,
    pub(super) values: View<T>,
    pub(super) aside_keys: View<T>,
    pub(super) aside_values: View<T>,
    pub(super) head_dim: usize,
    pub(super) value_stride: usize,
}

impl<T: Real> CacheView<T> {
    /// Writes the keys and values of kv head `head` of the rows at `places` behind the ones that are
    /// there, those of others aside; a row of `kv` has the keys of all heads and then their values.
    ///
    /// # Safety
    /// The cache has room for them, `kv` has the rows, and nobody else touches this head meanwhile.
    pub(super) unsafe fn append(
        &self,
        kv: View<T>,
        places: Places<'_>,
        head: usize,
        kv_heads: usize,
    ) {
        let d = self.head_dim;
        for r in 0..places.count() {
            let position = places.position(r);
            // SAFETY: the caller's promise; the key's block and lane and the value's row are those
            // of `position`.
            unsafe {
                let key = kv.row(r).add(head * d);
                let value = kv.row(r).add((kv_heads + head) * d);
                let (block, to) = match places.aside(r) {
                    None => (
                        self.keys.row(head).add(position / BLOCK * d * BLOCK),
                        self.values.row(head).add(position * self.value_stride),
                    ),
                    Some(other) => (self.aside_key(head, other), self.aside_value(head, other)),
                };
                for i in 0..d {
                    *block.add(i * BLOCK + position % BLOCK) = *key.add(i);
                }
                std::ptr::copy_nonoverlapping(value, to, d);
            }
        }
    }

    /// The block of the key of one of the others.
    ///
    /// # Safety
    /// There is room for it.
    #[inline(always)]
    pub(super) unsafe fn aside_key(&self, head: usize, other: usize) -> *mut T {
        // SAFETY: the caller's promise.
        unsafe { self.aside_keys.row(head).add(other * self.head_dim * BLOCK) }
    }

    /// The value of one of the others.
    ///
    /// # Safety
    /// There is room for it.
    #[inline(always)]
    pub(super) unsafe fn aside_value(&self, head: usize, other: usize) -> *mut T {
        // SAFETY: the caller's promise.
        unsafe { self.aside_values.row(head).add(other * self.value_stride) }
    }
}
