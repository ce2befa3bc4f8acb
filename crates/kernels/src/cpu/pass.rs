//! One pass of a few rows through a trunk and some heads: the unit of decoding.

use super::aligned::{Rows, View};
use super::block::{BlockCall, BlockShape, BlockWeights, Scratch};
use super::cache::{BlockCache, Places};
use super::dense::{DenseRows, DenseWeights};
use super::linear::PackedLinear;
use super::logits::argmax;
use super::norm::RmsNorm;
use super::real::Real;
use super::rotary::RotaryTable;
use super::team::{Team, Worker};
use super::told::{TokenWeights, ToldRows};

/// Blocks and their caches, one each.
pub struct Blocks<'p, T> {
    /// The packed blocks.
    pub weights: &'p [BlockWeights<T>],
    /// The cache of each.
    pub caches: &'p mut [BlockCache<T>],
}

impl<T: Real> Blocks<'_, T> {
    fn check(&self, rows: usize, others: usize, scratch: &Scratch<T>, rotary: &RotaryTable<T>) {
        assert_eq!(self.weights.len(), self.caches.len(), "each block needs one cache");
        for (block, cache) in self.weights.iter().zip(self.caches.iter()) {
            let shape = block.shape();
            assert_eq!(shape, scratch.shape(), "the scratch space is made for another shape");
            assert!(cache.fits(shape.kv_heads, shape.head_dim), "the cache has another shape");
            assert!(others <= cache.room_for_others(), "the cache has no room for {others} others");
            assert!(
                cache.len() + rows <= cache.capacity().min(rotary.positions()),
                "{} positions and {rows} rows are more than the cache has room for",
                cache.len()
            );
        }
    }
}

/// The final norm and the unembedding, which all heads share.
pub struct Unembedding<T> {
    /// The norm before the product.
    pub norm: RmsNorm<T>,
    /// `[vocab, dim]`.
    pub product: PackedLinear<T>,
}

/// What a workspace has room for.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Most rows of a pass.
    pub rows: usize,
    /// Most rows that come out of the heads of a pass, over all heads.
    pub outputs: usize,
    /// Positions, from the start of the text.
    pub positions: usize,
    /// Threads that share the work.
    pub threads: usize,
}

/// The working space of passes: threads, rotary table and room for rows, all made once; the table's
/// angles are computed as texts get so far.
pub struct Workspace<T> {
    team: Team,
    rotary: RotaryTable<T>,
    scratch: Scratch<T>,
    /// The rows that go in; after a pass what the trunk made of them.
    x: Rows<T>,
    /// What the heads made of them, one head's rows after the other's.
    y: Rows<T>,
    dense: DenseRows<T>,
    /// For a head that is told tokens.
    told: Option<ToldRows<T>>,
    /// The logits of each row of `y`.
    logits: Rows<T>,
    best: Vec<u32>,
}

/// What a pass does.
pub struct Pass<'p, T> {
    /// New rows, which are in [`Workspace::input`].
    pub rows: usize,
    /// Rows behind these that are not the text's: each stands in the place of the row that is named
    /// here, behind the same rows as that, and nobody sees it. Where there are any, all rows go the
    /// whole way, these as well. [`BlockCache::take_other`] makes one of them the text's.
    pub others: &'p [usize],
    /// Blocks that the rows go through one after the other.
    pub trunk: Blocks<'p, T>,
    /// Blocks that each read what comes out of the trunk.
    pub heads: Blocks<'p, T>,
    /// How many of the last rows of the text go through the heads the whole way, up to the logits.
    /// The rows before only leave their keys and values.
    pub outputs: usize,
    /// What makes logits of the heads' outputs.
    pub unembedding: &'p Unembedding<T>,
}

impl<T: Real> Pass<'_, T> {
    /// Positions of the text that there are behind it.
    fn positions(&self) -> usize {
        let caches = self.trunk.caches.iter().chain(self.heads.caches.iter());
        caches.map(|cache| cache.len() + self.rows).max().unwrap_or(0)
    }
}

impl<T: Real> Workspace<T> {
    /// Room for models of this shape and vocabulary, whose rotary pairs turn by `frequencies`
    /// from one position to the next (see [`rotary_frequencies`](crate::rotary_frequencies)).
    ///
    /// # Panics
    /// Where a head of the shape has not twice as many dimensions as there are frequencies.
    pub fn new(shape: &BlockShape, vocab: usize, frequencies: &[f64], room: Room) -> Self {
        assert_eq!(shape.head_dim, 2 * frequencies.len(), "a pair of dimensions a frequency");
        let team = Team::new(room.threads);
        let rows = room.rows.max(room.outputs);
        Self {
            rotary: RotaryTable::new(frequencies, room.positions),
            scratch: Scratch::new(shape, rows, room.positions, team.threads()),
            x: Rows::new(room.rows, shape.dim),
            y: Rows::new(room.outputs, shape.dim),
            dense: DenseRows::new(room.outputs, shape.dim),
            told: None,
            logits: Rows::new(room.outputs, vocab),
            best: vec![0; room.outputs],
            team,
        }
    }

    /// Makes room for passes of [`Workspace::run_told`].
    #[must_use]
    pub fn with_told(mut self) -> Self {
        self.told = Some(ToldRows::new(self.x.rows(), self.x.width()));
        self
    }

    /// What the head is told beside row `r`, for [`Workspace::run_told`].
    ///
    /// # Panics
    /// Where there is no room for such a row.
    pub fn told(&mut self, r: usize) -> &mut [T] {
        match &mut self.told {
            Some(told) => told.tokens.row_mut(r),
            None => panic!("the workspace was made without room for tokens"),
        }
    }

    /// Puts what came out for row `from` of the last pass in the place of row `to`: what the trunk
    /// made of it, and what the one head did, where all rows went the whole way.
    ///
    /// # Panics
    /// Where there is no room for such rows.
    pub fn move_row(&mut self, from: usize, to: usize) {
        self.x.copy_row(from, to);
        self.y.copy_row(from, to);
    }

    /// Row `r` of what goes into the next pass.
    ///
    /// # Panics
    /// Where there is no room for such a row.
    pub fn input(&mut self, r: usize) -> &mut [T] {
        self.x.row_mut(r)
    }

    /// Row `r` of what the trunk made of the last pass's input.
    ///
    /// # Panics
    /// Where there is no room for such a row.
    pub fn hidden(&self, r: usize) -> &[T] {
        self.x.row(r)
    }

    /// The logits of output row `r` of the last pass: head i's row j of m is row i · m + j.
    ///
    /// # Panics
    /// Where there is no room for such a row.
    pub fn logits(&self, r: usize) -> &[T] {
        self.logits.row(r)
    }

    /// Runs a pass and returns the token of the largest logit for each output row.
    ///
    /// A row's results have the same bits whatever other rows are in the pass.
    ///
    /// # Panics
    /// Where the workspace has no room for the pass or its parts do not fit each other.
    pub fn run(&mut self, pass: Pass<'_, T>) -> &[u32] {
        self.run_with(pass, None)
    }

    /// As [`Workspace::run`], with heads that are told what is in [`Workspace::told`], by `tokens`.
    ///
    /// # Panics
    /// As [`Workspace::run`], and where the workspace was made without room for this.
    pub fn run_told(&mut self, pass: Pass<'_, T>, tokens: &TokenWeights<T>) -> &[u32] {
        self.run_with(pass, Some(tokens))
    }

    fn run_with(&mut self, pass: Pass<'_, T>, tokens: Option<&TokenWeights<T>>) -> &[u32] {
        let outputs = self.check(&pass);
        self.check_tokens(&pass, tokens);
        self.rotary.reach(pass.positions());
        let Pass { rows, others, trunk, heads, unembedding, .. } = pass;
        let (count, through) = (rows + others.len(), pass.outputs + others.len());
        let told = tokens.zip(self.told.as_ref().map(|told| told.views(self.x.view())));
        let (scratch, x, y, logits) =
            (self.scratch.view(), self.x.view(), self.y.view(), self.logits.view());
        let (rotary, best) = (&self.rotary, BestView(self.best.as_mut_ptr()));
        let (trunk_caches, head_caches) = (&*trunk.caches, &*heads.caches);
        self.team.run(|worker| {
            let call = |cache: &BlockCache<T>, x, y, outputs| BlockCall {
                x,
                y,
                places: Places { start: cache.len(), rows, others },
                outputs,
                cache: cache.view(),
                rotary,
                scratch,
            };
            // SAFETY: `check` found room for everything, and the rotary table reaches so far; `self`
            // and the caches are borrowed alone, so they belong to the team for now; every worker runs
            // these same lines.
            unsafe {
                for (block, cache) in trunk.weights.iter().zip(trunk_caches) {
                    block.part(worker, &call(cache, x, x, count));
                    worker.barrier();
                }
                if let Some((by, views)) = told {
                    by.project(worker, views, scratch.normed(worker), count);
                    worker.barrier();
                    for r in worker.share(count) {
                        by.join(views, r);
                    }
                    worker.barrier();
                }
                let x = told.map_or(x, |(_, views)| views.inputs);
                for (i, (block, cache)) in heads.weights.iter().zip(head_caches).enumerate() {
                    let y = y.skip(i * through);
                    block.part(worker, &call(cache, x, y, through));
                }
                worker.barrier();
                if outputs > 0 {
                    let normed = scratch.normed(worker);
                    unembedding.norm.rows(y, normed, outputs);
                    unembedding.product.apply_part(worker, normed, logits, outputs);
                    worker.barrier();
                    best.fill(worker, logits, unembedding.product.outputs(), outputs);
                }
            }
        });
        for cache in trunk.caches.iter_mut().chain(heads.caches) {
            cache.grow(rows, others);
        }
        &self.best[..outputs]
    }

    /// Runs heads that look at one position alone over the final norm of output row `row` of the
    /// last pass, and returns the token of the largest logit for each. `unembedding.norm` is the
    /// final norm; no other follows.
    ///
    /// # Panics
    /// Where there is no such row, or the parts do not fit the workspace.
    pub fn run_dense(
        &mut self,
        row: usize,
        heads: &[DenseWeights<T>],
        unembedding: &Unembedding<T>,
    ) -> &[u32] {
        assert!(row < self.y.rows() && heads.len() <= self.dense.output.rows(), "no such rows");
        let Unembedding { norm, product } = unembedding;
        let dim = self.x.width();
        let fit = heads.iter().all(|head| head.dim() == dim);
        assert!(fit && (norm.width(), product.inputs()) == (dim, dim), "heads of another width");
        self.check_vocabulary(product);
        let (input, output) = (self.dense.input.view(), self.dense.output.view());
        let (y, logits, best) =
            (self.y.view(), self.logits.view(), BestView(self.best.as_mut_ptr()));
        self.team.run(|worker| {
            // SAFETY: the assertions found room for everything, and `self` is borrowed alone.
            // Between two barriers each worker writes to its own columns or rows only.
            unsafe {
                if worker.index() == 0 {
                    norm.rows(y.skip(row), input, 1);
                }
                worker.barrier();
                for (i, head) in heads.iter().enumerate() {
                    head.project(worker, input, output.skip(i));
                }
                worker.barrier();
                for i in worker.share(heads.len()) {
                    heads[i].finish(input, output.skip(i));
                }
                worker.barrier();
                product.apply_part(worker, output, logits, heads.len());
                worker.barrier();
                best.fill(worker, logits, product.outputs(), heads.len());
            }
        });
        &self.best[..heads.len()]
    }

    /// Refuses what would reach beyond a buffer; returns the number of output rows.
    fn check(&self, pass: &Pass<'_, T>) -> usize {
        let (count, others) = (pass.rows + pass.others.len(), pass.others.len());
        let outputs = (pass.outputs + others) * pass.heads.weights.len();
        let all = pass.heads.weights.is_empty() || pass.outputs == pass.rows;
        assert!(
            others == 0 || all,
            "where some rows stand in place of others, all go the whole way"
        );
        assert!(
            pass.others.iter().all(|&other| other < pass.rows),
            "others than the rows there are"
        );
        let positions = pass.positions();
        assert!(
            count <= self.x.rows()
                && pass.outputs <= pass.rows
                && outputs <= self.y.rows()
                && self.scratch.fits(count.max(outputs), positions, self.team.threads()),
            "the workspace has no room for {count} rows, {outputs} outputs, {positions} positions"
        );
        pass.trunk.check(pass.rows, others, &self.scratch, &self.rotary);
        pass.heads.check(pass.rows, others, &self.scratch, &self.rotary);
        let Unembedding { norm, product } = pass.unembedding;
        assert_eq!(
            (norm.width(), product.inputs()),
            (self.x.width(), self.x.width()),
            "the unembedding has another shape"
        );
        self.check_vocabulary(product);
        outputs
    }

    /// Refuses tokens that there is no room for.
    fn check_tokens(&self, pass: &Pass<'_, T>, tokens: Option<&TokenWeights<T>>) {
        let Some(tokens) = tokens else { return };
        let room = self.told.as_ref().map_or(0, |told| told.inputs.rows());
        let rows = pass.rows + pass.others.len();
        assert!(rows <= room, "no room for what heads are told of {rows} rows");
        assert_eq!(tokens.dim(), self.x.width(), "heads of another width");
    }

    /// An unembedding may be of a part of the vocabulary.
    fn check_vocabulary(&self, unembedding: &PackedLinear<T>) {
        assert!(
            unembedding.outputs() <= self.logits.width(),
            "{} logits, and the workspace has room for {}",
            unembedding.outputs(),
            self.logits.width()
        );
    }
}

/// Where the best tokens go.
#[derive(Clone, Copy)]
struct BestView(*mut u32);

// SAFETY: an address; see `fill`.
unsafe impl Send for BestView {}
// SAFETY: as above.
unsafe impl Sync for BestView {}

impl BestView {
    /// Writes the best token of this worker's share of the rows.
    ///
    /// # Safety
    /// There are `rows` rows of `vocab` logits, finished before the last barrier, and as many
    /// places here.
    unsafe fn fill<T: Real>(self, worker: &Worker<'_>, logits: View<T>, vocab: usize, rows: usize) {
        for r in worker.share(rows) {
            // SAFETY: the caller's promise; each row is one worker's.
            unsafe {
                let row = std::slice::from_raw_parts(logits.row(r), vocab);
                *self.0.add(r) = argmax(row) as u32;
            }
        }
    }
}
