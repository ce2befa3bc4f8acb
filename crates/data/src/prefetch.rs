//! Batches assembled before they are asked for.

use std::any::Any;
use std::iter::FusedIterator;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::{Batches, Error, Result, TokenBatch};

/// The most batches that are read ahead.
const MAX_AHEAD: usize = 1024;

/// The batches of the given steps, in their order, read ahead on a thread of its own.
///
/// One thread, not a pool: assembling a batch is copying, which one core does many times faster
/// than any training takes it (`examples/shard_speed.rs` measures it); and a second pool would
/// fight libtorch's own threads for the cores. What reading ahead hides is not work but waiting,
/// for pages of a shard that are not in memory yet.
///
/// The thread holds at most as many batches as it was told and sleeps until one is taken. It ends
/// when the iterator is dropped. A batch that cannot be assembled is an error at its place; the
/// next item is the next step's.
///
/// ```no_run
/// use std::path::Path;
/// use std::sync::Arc;
/// use foretoken_data::{BatchSampler, Prefetch, SamplerOptions, Split, open_split};
///
/// # fn main() -> foretoken_data::Result<()> {
/// let shard = open_split(Path::new("shards"), Split::Train)?;
/// let options = SamplerOptions { batch: 8, columns: 256 + 4, seed: 1 };
/// let sampler = BatchSampler::new(shard, options)?;
/// // Goes on at step 1,000, in the second of two processes.
/// let mut batches = Prefetch::new(Arc::new(sampler), 1_000.., 4..8, 2)?;
/// while let Some(batch) = batches.next() {
///     assert_eq!(batch?.rows, 4);
/// #   break;
/// }
/// println!("waited {:?} for data", batches.waited());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Prefetch {
    /// None once the last batch was taken.
    ready: Option<Receiver<Result<TokenBatch>>>,
    thread: Option<JoinHandle<()>>,
    waited: Duration,
}

impl Prefetch {
    /// Starts to read: rows `rows` of the batch of each of the `steps`, `ahead` batches before
    /// they are asked for (1 to 1,024; others are taken for the nearest).
    ///
    /// # Errors
    /// When the operating system has no thread to give.
    pub fn new<S>(
        batches: Arc<dyn Batches>,
        steps: S,
        rows: Range<usize>,
        ahead: usize,
    ) -> Result<Self>
    where
        S: IntoIterator<Item = u64>,
        S::IntoIter: Send + 'static,
    {
        // One more waits in the thread's hands.
        let (sender, ready) = sync_channel(ahead.clamp(1, MAX_AHEAD) - 1);
        let steps = steps.into_iter();
        let thread = std::thread::Builder::new()
            .name("batches".to_owned())
            .spawn(move || read(batches.as_ref(), steps, &rows, &sender))
            .map_err(|source| Error::Thread { source })?;
        Ok(Self { ready: Some(ready), thread: Some(thread), waited: Duration::ZERO })
    }

    /// How long all calls of `next` together stood and waited for a batch.
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// The thread has nothing more to give: there were no more steps, or it panicked.
    fn end(&mut self) -> Option<Result<TokenBatch>> {
        self.ready = None;
        let panic = self.thread.take()?.join().err()?;
        Some(Err(Error::Panicked { message: message(panic.as_ref()) }))
    }
}

fn read(
    batches: &dyn Batches,
    steps: impl Iterator<Item = u64>,
    rows: &Range<usize>,
    sender: &SyncSender<Result<TokenBatch>>,
) {
    for step in steps {
        // Nobody waits any more once the other end is gone.
        if sender.send(batches.rows(step, rows.start, rows.len())).is_err() {
            return;
        }
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("it left no message").to_owned()
}

impl Iterator for Prefetch {
    type Item = Result<TokenBatch>;

    fn next(&mut self) -> Option<Result<TokenBatch>> {
        let ready = self.ready.as_ref()?;
        let batch = match ready.try_recv() {
            Err(TryRecvError::Empty) => {
                let began = Instant::now();
                let batch = ready.recv();
                self.waited += began.elapsed();
                batch.ok()
            }
            taken => taken.ok(),
        };
        batch.or_else(|| self.end())
    }
}

impl FusedIterator for Prefetch {}

impl Drop for Prefetch {
    fn drop(&mut self) {
        // The thread notices at its next batch.
        self.ready = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
