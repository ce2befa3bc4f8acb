//! Causal attention of a few new rows over the cached positions.

use super::aligned::View;
use super::cache::{BLOCK, CacheView, Places};
use super::dispatch::{Isa, Kernel};
use super::real::{Real, exp2};
use super::simd::Simd;
use super::tile::{MOST_ROWS, NOTHING, Sums, tile, tile_rows, with_rows};

/// What attention reads and writes.
///
/// A row sees the positions up to its own. Queries come multiplied
/// by log₂(e) / √d, so that the softmax is one of powers of two. Heads count over all query heads;
/// each `group` of them shares a kv head.
pub(super) struct Attention<'p, T> {
    /// `[rows, heads · head_dim]`.
    pub(super) queries: View<T>,
    /// `[rows, heads · head_dim]`.
    pub(super) output: View<T>,
    pub(super) cache: CacheView<T>,
    pub(super) places: Places<'p>,
    /// The query heads to compute.
    pub(super) heads: (usize, usize),
    pub(super) group: usize,
    /// Room of this thread's own for [`MOST_ROWS`] rows of as many scores as there are
    /// positions.
    pub(super) scores: View<T>,
}

impl<T: Real> Attention<'_, T> {
    /// Computes the heads.
    ///
    /// # Safety
    /// The views hold what the fields say; nobody else writes to the cache or to these heads of
    /// `output` meanwhile, nor touches `scores`.
    pub(super) unsafe fn run(self, isa: Isa) {
        T::dispatch(isa, self);
    }
}

/// A query and what it sees.
#[derive(Clone, Copy)]
struct Query<T> {
    input: *const T,
    output: *mut T,
    visible: usize,
    /// Which of those it is that stand in place of others: its own key and value are aside.
    aside: Option<usize>,
}

impl<T> Query<T> {
    const NONE: Self =
        Self { input: std::ptr::null(), output: std::ptr::null_mut(), visible: 0, aside: None };

    /// Positions that it sees in the cache itself.
    #[inline(always)]
    fn cached(&self) -> usize {
        self.visible - usize::from(self.aside.is_some())
    }
}

impl<T: Real> Kernel<T> for Attention<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<T = T>>(self, s: S) {
        let mut head = self.heads.0;
        while head < self.heads.1 {
            let kv_head = head / self.group;
            let last = ((kv_head + 1) * self.group).min(self.heads.1);
            let queries = self.places.count() * (last - head);
            let mut done = 0;
            while done < queries {
                let count = tile_rows(queries - done, S::ROWS);
                let mut batch = [Query::NONE; MOST_ROWS];
                for (i, slot) in batch.iter_mut().enumerate().take(count) {
                    let (row, member) = ((done + i) / (last - head), (done + i) % (last - head));
                    // SAFETY: row < rows and head + member < heads.1.
                    unsafe {
                        let at = (head + member) * self.cache.head_dim;
                        *slot = Query {
                            input: self.queries.row(row).add(at),
                            output: self.output.row(row).add(at),
                            visible: self.places.position(row) + 1,
                            aside: self.places.aside(row),
                        };
                    }
                }
                // SAFETY: the queries are in bounds, as above; count ≤ ROWS.
                unsafe { with_rows!(count, R => self.attend::<S, R>(s, kv_head, &batch)) };
                done += count;
            }
            head = last;
        }
    }
}

impl<T: Real> Attention<'_, T> {
    /// The first `R` queries of the batch, all over the same kv head.
    #[inline(always)]
    unsafe fn attend<S: Simd<T = T>, const R: usize>(
        &self,
        s: S,
        kv_head: usize,
        batch: &[Query<T>; MOST_ROWS],
    ) {
        if R > S::ROWS {
            return; // never asked for: no code for it
        }
        let queries: [Query<T>; R] = std::array::from_fn(|r| batch[r]);
        // SAFETY: the caller's promise, handed on.
        unsafe {
            self.score(s, kv_head, &queries);
            let mut scales = [T::ONE; R];
            for r in 0..R {
                scales[r] = softmax(s, self.scores.row(r), queries[r].visible);
            }
            let vectors = self.cache.value_stride / S::LANES;
            let mut vector = 0;
            while vector + 4 <= vectors {
                self.weigh::<S, R, 4, 1>(s, kv_head, vector, &queries, &scales);
                vector += 4;
            }
            while vector + 2 <= vectors {
                self.weigh::<S, R, 2, 2>(s, kv_head, vector, &queries, &scales);
                vector += 2;
            }
            if vector < vectors {
                self.weigh::<S, R, 1, 4>(s, kv_head, vector, &queries, &scales);
            }
        }
    }

    /// Writes each query's products with the keys to its row of scores, up to the end of the block
    /// of the last position that any of them sees.
    #[inline(always)]
    unsafe fn score<S: Simd<T = T>, const R: usize>(
        &self,
        s: S,
        kv_head: usize,
        queries: &[Query<T>; R],
    ) {
        let visible = queries.iter().map(|q| q.visible).max().unwrap_or(0);
        let vectors = visible.div_ceil(BLOCK) * (BLOCK / S::LANES);
        let mut vector = 0;
        // SAFETY: the caller's promise, handed on.
        unsafe {
            while vector + 4 <= vectors {
                self.score_vectors::<S, R, 4>(s, kv_head, vector, queries);
                vector += 4;
            }
            while vector + 2 <= vectors {
                self.score_vectors::<S, R, 2>(s, kv_head, vector, queries);
                vector += 2;
            }
            if vector < vectors {
                self.score_vectors::<S, R, 1>(s, kv_head, vector, queries);
            }
            for (r, query) in queries.iter().enumerate() {
                if let Some(other) = query.aside {
                    self.score_aside(s, kv_head, other, query, self.scores.row(r));
                }
            }
        }
    }

    /// Puts the product with a query's own key, which lies aside, in the place of its position's: the
    /// same chain of multiply-adds as if it lay there.
    #[inline(always)]
    unsafe fn score_aside<S: Simd<T = T>>(
        &self,
        s: S,
        kv_head: usize,
        other: usize,
        query: &Query<T>,
        scores: *mut T,
    ) {
        let own = query.visible - 1;
        let lane = own % BLOCK;
        // SAFETY: the caller's promise; the vector of the lane lies in the block aside, and no unit
        // has more than 16 lanes.
        unsafe {
            let key = self.cache.aside_key(kv_head, other).cast_const();
            let mut sums: Sums<S, 1, 1> = [[s.zero()]];
            let vector = key.add(lane / S::LANES * S::LANES);
            tile(s, self.cache.head_dim, [query.input], [vector], BLOCK, NOTHING, &mut sums);
            let mut lanes = [T::ZERO; 16];
            s.store(lanes.as_mut_ptr(), sums[0][0]);
            *scores.add(own) = lanes[lane % S::LANES];
        }
    }

    #[inline(always)]
    unsafe fn score_vectors<S: Simd<T = T>, const R: usize, const C: usize>(
        &self,
        s: S,
        kv_head: usize,
        vector: usize,
        queries: &[Query<T>; R],
    ) {
        let d = self.cache.head_dim;
        let mut sums: Sums<S, R, C> = [[s.zero(); C]; R];
        // SAFETY: the caller's promise; the vectors lie in blocks that the cache has.
        unsafe {
            let keys = self.cache.keys.row(kv_head).cast_const();
            let w = std::array::from_fn(|c| {
                let position = (vector + c) * S::LANES;
                keys.add(position / BLOCK * d * BLOCK + position % BLOCK)
            });
            tile(s, d, queries.map(|q| q.input), w, BLOCK, NOTHING, &mut sums);
            for (r, sums) in sums.into_iter().enumerate() {
                let row = self.scores.row(r).add(vector * S::LANES);
                for (c, sum) in sums.into_iter().enumerate() {
                    s.store(row.add(c * S::LANES), sum);
                }
            }
        }
    }

    /// Writes `C` vectors of each query's weighted mean of the values.
    ///
    /// A mean is `P` interleaved chains of multiply-adds over the positions that the query sees,
    /// added at the end: enough chains to keep the unit busy, and the same ones for any `R`.
    #[inline(always)]
    unsafe fn weigh<S: Simd<T = T>, const R: usize, const C: usize, const P: usize>(
        &self,
        s: S,
        kv_head: usize,
        vector: usize,
        queries: &[Query<T>; R],
        scales: &[T; R],
    ) {
        let stride = self.cache.value_stride;
        let least = queries.iter().map(Query::cached).min().unwrap_or(0) / P * P;
        let most = queries.iter().map(|q| q.visible).max().unwrap_or(0);
        let mut sums = [[[s.zero(); C]; P]; R];
        // SAFETY: the caller's promise; every position read is one that some query sees, or that the
        // row has in whose place a query stands.
        unsafe {
            let values = self.cache.values.row(kv_head).add(vector * S::LANES).cast_const();
            let scores: [*const T; R] = std::array::from_fn(|r| self.scores.row(r).cast_const());
            let mut position = 0;
            while position < least {
                for p in 0..P {
                    let at = values.add((position + p) * stride);
                    let v = load_all::<S, C>(s, at);
                    for r in 0..R {
                        let weight = s.splat(*scores[r].add(position + p));
                        for c in 0..C {
                            sums[r][p][c] = s.fma(weight, v[c], sums[r][p][c]);
                        }
                    }
                }
                position += P;
            }
            while position < most {
                for p in 0..P {
                    let at = values.add((position + p).min(most - 1) * stride);
                    let v = load_all::<S, C>(s, at);
                    for r in 0..R {
                        if position + p < queries[r].visible {
                            let weight = s.splat(*scores[r].add(position + p));
                            let v = match queries[r].aside {
                                Some(other) if position + p + 1 == queries[r].visible => {
                                    let own = self.cache.aside_value(kv_head, other).cast_const();
                                    load_all::<S, C>(s, own.add(vector * S::LANES))
                                }
                                _ => v,
                            };
                            for c in 0..C {
                                sums[r][p][c] = s.fma(weight, v[c], sums[r][p][c]);
                            }
                        }
                    }
                }
                position += P;
            }
            let rest = self.cache.head_dim - vector * S::LANES;
            for r in 0..R {
                let scale = s.splat(scales[r]);
                for c in 0..C {
                    let mut sum = sums[r][0][c];
                    for p in 1..P {
                        sum = s.add(sum, sums[r][p][c]);
                    }
                    let to = queries[r].output.add((vector + c) * S::LANES);
                    let left = rest.saturating_sub(c * S::LANES).min(S::LANES);
                    store_first(s, to, s.mul(sum, scale), left);
                }
            }
        }
    }
}

/// Reads `C` vectors that lie one behind the other.
///
/// # Safety
/// They are readable.
#[inline(always)]
unsafe fn load_all<S: Simd, const C: usize>(s: S, from: *const S::T) -> [S::V; C] {
    let mut v = [s.zero(); C];
    for (c, v) in v.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        *v = unsafe { s.load(from.add(c * S::LANES)) };
    }
    v
}

/// Stores the first `count` lanes.
///
/// # Safety
/// `to` has room for as many.
#[inline(always)]
unsafe fn store_first<S: Simd>(s: S, to: *mut S::T, v: S::V, count: usize) {
    // SAFETY: the caller's promise; no unit has more than 16 lanes.
    unsafe {
        if count == S::LANES {
            s.store(to, v);
        } else {
            let mut lanes = [S::T::ZERO; 16];
            s.store(lanes.as_mut_ptr(), v);
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), to, count);
        }
    }
}

/// Turns the first `visible` scores into powers of two of their distance to the largest and
/// returns one over their sum.
///
/// # Safety
/// The row has room up to a multiple of 16 scores.
#[inline(always)]
unsafe fn softmax<S: Simd>(s: S, scores: *mut S::T, visible: usize) -> S::T {
    let vectors = visible.div_ceil(BLOCK) * (BLOCK / S::LANES);
    // SAFETY: the caller's promise.
    unsafe {
        for position in visible..vectors * S::LANES {
            *scores.add(position) = S::T::NEG_INFINITY;
        }
        let mut peak = s.splat(S::T::NEG_INFINITY);
        for v in 0..vectors {
            peak = s.max(peak, s.load(scores.add(v * S::LANES)));
        }
        let peak = s.splat(s.peak(peak));
        let mut total = s.zero();
        for v in 0..vectors {
            let at = scores.add(v * S::LANES);
            let power = exp2(s, s.sub(s.load(at), peak));
            s.store(at, power);
            total = s.add(total, power);
        }
        S::T::ONE / s.sum(total)
    }
}
