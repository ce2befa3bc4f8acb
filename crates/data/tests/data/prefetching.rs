use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use foretoken_data::{Batches, Error, Prefetch, Result, SamplerOptions, TokenBatch};

const OPTIONS: SamplerOptions = SamplerOptions { batch: 2, columns: 3, seed: 0 };

/// What a source does with a step.
type Assemble = fn(u64) -> Result<()>;

/// A source whose batches are full of their step's number.
struct Counting {
    assemble: Assemble,
    assembled: AtomicU64,
}

impl std::fmt::Debug for Counting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Counting")
    }
}

impl Batches for Counting {
    fn options(&self) -> SamplerOptions {
        OPTIONS
    }

    fn rows(&self, step: u64, _first: usize, count: usize) -> Result<TokenBatch> {
        (self.assemble)(step)?;
        self.assembled.fetch_add(1, Ordering::SeqCst);
        let tokens = vec![step as i64; count * OPTIONS.columns];
        Ok(TokenBatch { rows: count, columns: OPTIONS.columns, tokens, documents: None, epoch: 0 })
    }

    fn epochs(&self, _step: u64) -> Vec<u64> {
        vec![0]
    }
}

fn source(assemble: Assemble) -> Arc<Counting> {
    Arc::new(Counting { assemble, assembled: AtomicU64::new(0) })
}

fn prefetch(source: &Arc<Counting>, steps: std::ops::Range<u64>, ahead: usize) -> Prefetch {
    let source: Arc<dyn Batches> = Arc::clone(source) as _;
    Prefetch::new(source, steps, 0..2, ahead).unwrap()
}

/// Waits for what another thread will do soon.
fn eventually(done: impl Fn() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(60), "it does not happen");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn no_more_batches_are_assembled_than_asked_for() {
    for ahead in [0, 1, 2, 5] {
        let source = source(|_| Ok(()));
        let mut batches = prefetch(&source, 0..100, ahead);
        let assembled = || source.assembled.load(Ordering::SeqCst);
        let most = ahead.max(1) as u64;
        eventually(|| assembled() == most);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(assembled(), most);
        assert_eq!(batches.next().unwrap().unwrap().tokens, [0; 6]);
        eventually(|| assembled() == most + 1);
    }
}

#[test]
fn an_error_comes_at_its_step_and_the_next_batch_behind_it() {
    fn fails_at_seven(step: u64) -> Result<()> {
        let problem = "broken on purpose".to_owned();
        if step == 7 { Err(Error::Mixture { problem }) } else { Ok(()) }
    }
    let source = source(fails_at_seven);
    for (step, batch) in (5..10).zip(prefetch(&source, 5..10, 3)) {
        match batch {
            Ok(batch) => assert_eq!(batch.tokens, [step; 6]),
            Err(error) => {
                assert_eq!(step, 7);
                assert!(error.to_string().ends_with("broken on purpose"), "{error}");
            }
        }
    }
}

#[test]
fn a_panic_is_an_error_and_the_end() {
    let source = source(|step| {
        assert!(step != 2, "lost at step {step}");
        Ok(())
    });
    let mut batches = prefetch(&source, 0..10, 4);
    assert!(batches.next().unwrap().is_ok() && batches.next().unwrap().is_ok());
    let error = batches.next().unwrap().unwrap_err();
    assert!(matches!(&error, Error::Panicked { .. }));
    assert!(error.to_string().ends_with("panicked: lost at step 2"), "{error}");
    assert!(batches.next().is_none() && batches.next().is_none());
}

#[test]
fn a_thread_ends_with_its_iterator() {
    let source = source(|_| Ok(()));
    for taken in [0, 1, 5] {
        let mut batches = prefetch(&source, 0..u64::MAX, 2);
        for _ in 0..taken {
            batches.next().unwrap().unwrap();
        }
        drop(batches);
        // The thread had the other one.
        assert_eq!(Arc::strong_count(&source), 1);
    }
    assert_eq!(prefetch(&source, 0..4, 2).count(), 4);
    assert_eq!(Arc::strong_count(&source), 1);
}

#[test]
fn steps_come_in_any_order_asked_for() {
    let source = source(|_| Ok(()));
    let steps = (3..).map(|step| step % 4).take(6);
    let batches: Arc<dyn Batches> = Arc::clone(&source) as _;
    let batches = Prefetch::new(batches, steps, 0..1, 2).unwrap();
    let firsts: Vec<i64> = batches.map(|batch| batch.unwrap().tokens[0]).collect();
    assert_eq!(firsts, [3, 0, 1, 2, 3, 0]);
}

#[test]
fn waiting_is_counted_and_a_batch_that_is_ready_costs_none() {
    let source = source(|step| {
        if step == 0 {
            std::thread::sleep(Duration::from_millis(300));
        }
        Ok(())
    });
    let mut batches = prefetch(&source, 0..10, 3);
    assert_eq!(batches.waited(), Duration::ZERO);
    batches.next().unwrap().unwrap();
    let waited = batches.waited();
    assert!(waited > Duration::from_millis(20), "{waited:?}");
    eventually(|| source.assembled.load(Ordering::SeqCst) == 4);
    std::thread::sleep(Duration::from_millis(20));
    batches.next().unwrap().unwrap();
    assert_eq!(batches.waited(), waited);
}

#[test]
fn any_number_of_batches_ahead_is_taken() {
    let source = source(|_| Ok(()));
    assert_eq!(prefetch(&source, 0..3, usize::MAX).count(), 3);
}
