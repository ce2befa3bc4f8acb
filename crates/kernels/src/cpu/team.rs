//! A few threads that run one function together, with barriers of a few hundred nanoseconds.

use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long an idle thread watches for work before it sleeps: longer than the pause between two
/// steps of a decoder, so that a step never waits for the scheduler.
const WATCH: Duration = Duration::from_micros(200);

/// Turns of a barrier's loop before it lets others run, for machines with more work than cores.
const SPINS: u32 = 4_000;

/// Threads that stay about between the passes of a model.
///
/// The thread that calls [`Team::new`] is one of them. Results never depend on their number: they
/// share the columns of a product and the heads of an attention, never a sum.
pub(super) struct Team {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

type Task<'t> = dyn Fn(&Worker<'_>) + Sync + 't;

#[repr(align(128))]
struct Line<T>(T);

struct Shared {
    /// Raised by one for each new task.
    turn: Line<AtomicUsize>,
    /// Workers that still run the task.
    running: Line<AtomicUsize>,
    /// Workers that have reached the barrier.
    arrived: Line<AtomicUsize>,
    /// Barriers passed.
    passed: Line<AtomicUsize>,
    task: UnsafeCell<Option<*const Task<'static>>>,
    stop: AtomicBool,
    panicked: AtomicBool,
}

// SAFETY: `task` is written by the leader alone while no worker runs (`running` is 0), and read by
// workers after they have seen the new `turn`, which is stored after it.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `task` is used only while `Team::run`, which made it, waits.
unsafe impl Send for Shared {}

impl Team {
    /// A team of `threads` threads, the calling one among them.
    ///
    /// It has fewer where the system gives no more.
    pub(super) fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            turn: Line(AtomicUsize::new(0)),
            running: Line(AtomicUsize::new(0)),
            arrived: Line(AtomicUsize::new(0)),
            passed: Line(AtomicUsize::new(0)),
            task: UnsafeCell::new(None),
            stop: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
        });
        let mut team = Self { shared, threads: Vec::new() };
        let wanted = threads.max(1) - 1;
        let count = Arc::new(AtomicUsize::new(0));
        for index in 1..=wanted {
            let (shared, count) = (Arc::clone(&team.shared), Arc::clone(&count));
            let builder = std::thread::Builder::new().name(format!("foretoken-{index}"));
            match builder.spawn(move || shared.serve(index, &count)) {
                Ok(thread) => team.threads.push(thread),
                Err(_) => break,
            }
        }
        count.store(team.threads.len() + 1, Ordering::Release);
        team
    }

    /// How many threads there are.
    pub(super) fn threads(&self) -> usize {
        self.threads.len() + 1
    }

    /// Runs `task` on every thread at once and waits for all.
    pub(super) fn run<F: Fn(&Worker<'_>) + Sync>(&mut self, task: F) {
        if self.threads.is_empty() {
            return task(&Worker::ALONE);
        }
        let shared = &*self.shared;
        let task: &Task<'_> = &task;
        // SAFETY: only the lifetime changes, and this function does not return before the workers
        // are done with the task. No worker runs now, so none reads the cell.
        unsafe {
            *shared.task.get() =
                Some(std::mem::transmute::<&Task<'_>, &'static Task<'static>>(task));
        }
        shared.running.0.store(self.threads.len(), Ordering::Relaxed);
        shared.turn.0.fetch_add(1, Ordering::Release);
        for thread in &self.threads {
            thread.thread().unpark();
        }
        let worker = Worker { index: 0, count: self.threads.len() + 1, shared: Some(shared) };
        let outcome = shared.guarded(|| task(&worker));
        wait(|| shared.running.0.load(Ordering::Acquire) == 0);
        if let Err(panic) = outcome {
            resume_unwind(panic);
        }
        assert!(!shared.panicked.load(Ordering::Relaxed), "a thread of the team panicked");
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.turn.0.fetch_add(1, Ordering::Release);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            drop(thread.join());
        }
    }
}

impl Shared {
    /// A worker's life.
    fn serve(&self, index: usize, count: &AtomicUsize) {
        wait(|| count.load(Ordering::Acquire) > 0);
        let worker = Worker { index, count: count.load(Ordering::Acquire), shared: Some(self) };
        let mut turn = 0;
        loop {
            turn = self.next_turn(turn);
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            // SAFETY: the leader stored the task before it raised `turn`, and keeps it alive until
            // `running` is 0.
            if let Some(task) = unsafe { *self.task.get() } {
                // A panic is told to the leader by the flag.
                drop(self.guarded(|| unsafe { (*task)(&worker) }));
            }
            self.running.0.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits, awake at first and then asleep, until the turn is another than `last`.
    fn next_turn(&self, last: usize) -> usize {
        let since = Instant::now();
        let mut spins = 0u32;
        loop {
            let turn = self.turn.0.load(Ordering::Acquire);
            if turn != last {
                return turn;
            }
            spins = spins.wrapping_add(1);
            if spins.is_multiple_of(64) && since.elapsed() > WATCH {
                std::thread::park();
            } else {
                std::hint::spin_loop();
            }
        }
    }

    /// Runs `f`; a panic lets the others leave their barriers.
    fn guarded(&self, f: impl FnOnce()) -> std::thread::Result<()> {
        let outcome = catch_unwind(AssertUnwindSafe(f));
        if outcome.is_err() {
            self.panicked.store(true, Ordering::Relaxed);
        }
        outcome
    }
}

/// Spins until `done`, after a while letting other threads run in between.
fn wait(done: impl Fn() -> bool) {
    let mut spins = 0;
    while !done() {
        spins += 1;
        if spins < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
    }
}

/// One thread's place in a team at work.
pub(super) struct Worker<'t> {
    index: usize,
    count: usize,
    shared: Option<&'t Shared>,
}

impl Worker<'_> {
    /// The only worker of a team of one.
    pub(super) const ALONE: Self = Self { index: 0, count: 1, shared: None };

    /// Which one of the team's this is.
    pub(super) fn index(&self) -> usize {
        self.index
    }

    /// This worker's part of `0..items`.
    pub(super) fn share(&self, items: usize) -> Range<usize> {
        items * self.index / self.count..items * (self.index + 1) / self.count
    }

    /// Waits until every worker of the team is here: what they wrote before is seen after it.
    pub(super) fn barrier(&self) {
        let Some(shared) = self.shared else { return };
        let passed = shared.passed.0.load(Ordering::Relaxed);
        if shared.arrived.0.fetch_add(1, Ordering::AcqRel) + 1 == self.count {
            shared.arrived.0.store(0, Ordering::Relaxed);
            shared.passed.0.store(passed.wrapping_add(1), Ordering::Release);
            return;
        }
        let alone = || shared.panicked.load(Ordering::Relaxed);
        wait(|| shared.passed.0.load(Ordering::Acquire) != passed || alone());
        assert!(!alone(), "another thread of the team panicked");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn a_barrier_lets_no_worker_run_ahead() {
        for threads in 1..=4 {
            let mut team = Team::new(threads);
            let counts: Vec<AtomicU64> = (0..threads).map(|_| AtomicU64::new(0)).collect();
            for _ in 0..20 {
                team.run(|worker| {
                    for round in 0..50 {
                        counts[worker.index()].fetch_add(1, Ordering::Relaxed);
                        worker.barrier();
                        let least = counts.iter().map(|c| c.load(Ordering::Relaxed)).min();
                        let own = counts[worker.index()].load(Ordering::Relaxed);
                        assert!(least >= Some(own), "round {round}: {least:?} < {own}");
                        worker.barrier();
                    }
                });
            }
            assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1000));
        }
    }

    #[test]
    fn shares_cover_everything_once() {
        for count in 1..6 {
            for items in 0..20 {
                let shares: Vec<usize> = (0..count)
                    .flat_map(|index| Worker { index, count, shared: None }.share(items))
                    .collect();
                assert_eq!(shares, (0..items).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn a_team_wakes_after_a_rest() {
        let mut team = Team::new(2);
        let total = AtomicU64::new(0);
        for _ in 0..3 {
            std::thread::sleep(WATCH * 20);
            team.run(|_| {
                total.fetch_add(1, Ordering::Relaxed);
            });
        }
        assert_eq!(total.into_inner(), 6);
    }

    #[test]
    #[should_panic(expected = "panicked")]
    fn a_panic_on_another_thread_reaches_the_caller() {
        Team::new(2).run(|worker| {
            assert_eq!(worker.index(), 0);
            worker.barrier();
        });
    }
}
