//! The heartbeat: a thread that tells the other ranks that this one lives, and watches them.
//!
//! Every rank writes `beat/RANK` into the store, a count and how many collectives it has started,
//! and reads everyone else's. `trouble` holds what ended the group: the first to write it wins.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::failure::milliseconds;
use crate::native::{Keys, Message, Store};
use crate::{Environment, Error, Failure, Limits, Result};

/// The key of what ended the group, and its value while nothing has.
pub(crate) const TROUBLE: &str = "trouble";
pub(crate) const NO_TROUBLE: &str = "-";

/// A rank that has missed so many beats is taken for dead once a collective has failed; until then
/// it has the whole of the silence that is allowed.
const SUSPICIOUS_BEATS: u32 = 4;
/// A rank that has left so long ago won't finish a collective that others are in.
const LEFT_BEATS: u32 = 3;

/// The key of a rank's heartbeat.
pub(crate) fn beat_key(rank: usize) -> String {
    format!("beat/{rank}")
}

/// A rank's thread and what it has seen. Dropping it says goodbye to the others.
#[derive(Debug)]
pub(crate) struct Watch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    place: Environment,
    silence: Duration,
    beat: Duration,
    keys: Keys,
    started: AtomicU64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// How long this process has watched, without the time that it was held up itself.
    clock: Duration,
    rounds: u64,
    peers: Vec<Peer>,
    verdict: Option<Failure>,
    /// Whether the verdict is this rank's, and the others don't have it yet.
    unpublished: bool,
    /// Asks the thread for a round at once.
    hurry: bool,
    stage: Stage,
}

impl State {
    /// The time since `moment`, on the clock.
    fn since(&self, moment: Duration) -> Duration {
        self.clock.saturating_sub(moment)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Watching,
    /// The group is dropped; the others have to be told.
    Leaving,
    /// The thread makes no more rounds.
    Ended,
}

#[derive(Clone, Debug, Default)]
struct Peer {
    beat: String,
    started: u64,
    /// When its beat last changed, on the clock.
    moved: Duration,
    left: bool,
}

impl Watch {
    /// Starts the thread; `store` is a connection for it alone, and every rank's first beat is in.
    pub(crate) fn start(store: Store, place: &Environment, limits: Limits) -> Result<Self> {
        let keys = (0..place.size).map(beat_key).chain([TROUBLE.to_owned()]).collect();
        let state = State {
            clock: Duration::ZERO,
            rounds: 0,
            peers: vec![Peer::default(); place.size],
            verdict: None,
            unpublished: false,
            hurry: false,
            stage: Stage::Watching,
        };
        let shared = Arc::new(Shared {
            place: place.clone(),
            silence: limits.silence,
            beat: limits.beat(),
            keys,
            started: AtomicU64::new(0),
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        let own = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("heartbeat".to_owned())
            .spawn(move || own.run(&store))
            .map_err(Error::Thread)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Counts a collective that this rank starts.
    pub(crate) fn count_collective(&self) {
        self.shared.started.fetch_add(1, Ordering::Relaxed);
    }

    /// What ended the group, once something has.
    pub(crate) fn verdict(&self) -> Option<Failure> {
        self.shared.lock().verdict.clone()
    }

    /// The rounds that the thread has made.
    pub(crate) fn rounds(&self) -> u64 {
        self.shared.lock().rounds
    }

    /// What ended the group, or a rank that left it, when `collective` doesn't end.
    pub(crate) fn trouble_with(&self, collective: &str) -> Option<Failure> {
        let state = self.shared.lock();
        state.verdict.clone().or_else(|| self.shared.gone(&state, collective, false))
    }

    /// Waits until it is clear which rank broke `collective`; `None` when all live on.
    pub(crate) fn culprit(&self, collective: &str) -> Option<Failure> {
        let mut state = self.shared.lock();
        let last = state.rounds + 2 * u64::from(SUSPICIOUS_BEATS);
        loop {
            let found = state.verdict.clone();
            if let Some(found) = found.or_else(|| self.shared.gone(&state, collective, true)) {
                return Some(found);
            }
            if state.stage == Stage::Ended || state.rounds >= last {
                return None;
            }
            let rounds = state.rounds;
            let (next, waited) = self
                .shared
                .changed
                .wait_timeout_while(state, self.shared.silence, |state| {
                    state.rounds == rounds && state.verdict.is_none() && state.stage != Stage::Ended
                })
                .unwrap_or_else(PoisonError::into_inner);
            if waited.timed_out() {
                return Some(self.mute());
            }
            state = next;
        }
    }

    /// The rank that has started the fewest collectives, when it is behind this one.
    pub(crate) fn late(&self, collective: &str, waited: Duration) -> Option<Failure> {
        let own = self.shared.started.load(Ordering::Relaxed);
        let state = self.shared.lock();
        let (rank, peer) = self.shared.others(&state).min_by_key(|(_, peer)| peer.started)?;
        (peer.started < own).then(|| Failure::Late {
            rank,
            size: self.shared.place.size,
            collective: collective.to_owned(),
            milliseconds: milliseconds(waited),
        })
    }

    /// The store takes no beat any more, though its connection stands.
    pub(crate) fn mute(&self) -> Failure {
        let Environment { size, .. } = self.shared.place;
        match self.shared.place.server() {
            Some(rank) if rank != self.shared.place.rank => {
                Failure::Silent { rank, size, milliseconds: milliseconds(self.shared.silence) }
            }
            rank => Failure::StoreLost { rank, size, address: self.shared.place.address() },
        }
    }

    /// Tells the others what ended the group, and returns what all of them will report: this, or
    /// what another rank said before.
    pub(crate) fn agree(&self, failure: Failure) -> Failure {
        let mut state = self.shared.lock();
        if state.verdict.is_none() {
            state.verdict = Some(failure.clone());
            state.unpublished = true;
            state.hurry = true;
            self.shared.changed.notify_all();
        }
        let patience = 4 * self.shared.beat + Duration::from_millis(500);
        let (state, _) = self
            .shared
            .changed
            .wait_timeout_while(state, patience, |state| {
                state.unpublished && state.stage != Stage::Ended
            })
            .unwrap_or_else(PoisonError::into_inner);
        state.verdict.clone().unwrap_or(failure)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.stage = state.stage.max(Stage::Leaving);
        state.hurry = true;
        self.shared.changed.notify_all();
        // The one that serves the store stays for the others; see `may_end`.
        let stay = if self.shared.place.serves() { self.shared.silence } else { Duration::ZERO };
        let patience = stay.saturating_add(2 * self.shared.beat + Duration::from_secs(1));
        let (state, _) = self
            .shared
            .changed
            .wait_timeout_while(state, patience, |state| state.stage != Stage::Ended)
            .unwrap_or_else(PoisonError::into_inner);
        let ended = state.stage == Stage::Ended;
        drop(state);
        // A thread that waits for an answer that never comes is left alone.
        if let Some(thread) = self.thread.take().filter(|_| ended) {
            drop(thread.join());
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, store: &Store) {
        let mut last = Instant::now();
        let mut leaving_since = None;
        for count in 1_u64.. {
            let (leaving, news) = self.news();
            let seen = self.round(store, count, leaving, news);
            let mut state = self.lock();
            let Ok((beats, verdict)) = seen else {
                return self.lose_store(state);
            };
            state.clock += last.elapsed().min(2 * self.beat);
            last = Instant::now();
            self.take_in(&mut state, beats, verdict);
            if leaving {
                let since = *leaving_since.get_or_insert(state.clock);
                if self.may_end(&state, since) {
                    state.stage = Stage::Ended;
                }
            }
            self.changed.notify_all();
            if state.stage == Stage::Ended {
                return;
            }
            drop(self.changed.wait_timeout_while(state, self.beat, |state| !state.hurry));
        }
    }

    /// What the others have to be told: whether this rank leaves, and why the group ends.
    fn news(&self) -> (bool, Option<Failure>) {
        let mut state = self.lock();
        state.hurry = false;
        (state.stage == Stage::Leaving, state.verdict.clone().filter(|_| state.unpublished))
    }

    /// Beats once and reads the others: their beats, and what ended the group.
    fn round(
        &self,
        store: &Store,
        count: u64,
        leaving: bool,
        news: Option<Failure>,
    ) -> std::result::Result<(Vec<String>, Option<Failure>), Message> {
        if let Some(failure) = news {
            store.exchange(TROUBLE, NO_TROUBLE, &failure.to_line())?;
        }
        let word = if leaving { "left".to_owned() } else { count.to_string() };
        let started = self.started.load(Ordering::Relaxed);
        store.set(&beat_key(self.place.rank), &format!("{word} {started}"))?;
        let mut values = store.get(&self.keys)?;
        let trouble = values.pop().unwrap_or_default();
        Ok((values, Failure::from_line(&trouble)))
    }

    fn take_in(&self, state: &mut State, beats: Vec<String>, verdict: Option<Failure>) {
        state.rounds += 1;
        let clock = state.clock;
        for (peer, beat) in state.peers.iter_mut().zip(beats) {
            if peer.beat != beat {
                let (word, started) = beat.split_once(' ').unwrap_or((beat.as_str(), "0"));
                peer.left = word == "left";
                peer.started = started.parse().unwrap_or(0);
                peer.moved = clock;
                peer.beat = beat;
            }
        }
        if verdict.is_some() {
            state.verdict = verdict;
            state.unpublished = false;
        } else if state.verdict.is_none() {
            state.verdict = self.silent(state, self.silence);
            state.unpublished = state.verdict.is_some();
            state.hurry |= state.unpublished;
        }
    }

    /// The rank that has said nothing for the longest time, if that is longer than `limit`.
    fn silent(&self, state: &State, limit: Duration) -> Option<Failure> {
        let (rank, peer) = self
            .others(state)
            .filter(|(_, peer)| !peer.left && state.since(peer.moved) > limit)
            .min_by_key(|(_, peer)| peer.moved)?;
        let silence = milliseconds(state.since(peer.moved));
        Some(Failure::Silent { rank, size: self.place.size, milliseconds: silence })
    }

    /// A rank that won't take part in `collective` because it has left, or, once something is known
    /// to be wrong, because it has missed a few beats.
    fn gone(&self, state: &State, collective: &str, wrong: bool) -> Option<Failure> {
        let left = self
            .others(state)
            .find(|(_, peer)| peer.left && state.since(peer.moved) > LEFT_BEATS * self.beat);
        if let Some((rank, _)) = left {
            let collective = collective.to_owned();
            return Some(Failure::Left { rank, size: self.place.size, collective });
        }
        wrong.then(|| self.silent(state, SUSPICIOUS_BEATS * self.beat)).flatten()
    }

    fn others<'a>(&self, state: &'a State) -> impl Iterator<Item = (usize, &'a Peer)> {
        let own = self.place.rank;
        state.peers.iter().enumerate().filter(move |(rank, _)| *rank != own)
    }

    /// Whether this rank may go: at once, unless it serves the store. Then it stays until the others
    /// have left or died, but not longer than the silence that is allowed.
    fn may_end(&self, state: &State, since: Duration) -> bool {
        let dead = |peer: &Peer| state.since(peer.moved) > SUSPICIOUS_BEATS * self.beat;
        !self.place.serves()
            || state.since(since) > self.silence
            || self.others(state).all(|(_, peer)| peer.left || dead(peer))
    }

    fn lose_store(&self, mut state: MutexGuard<'_, State>) {
        if state.verdict.is_none() {
            state.verdict = Some(Failure::StoreLost {
                rank: self.place.server(),
                size: self.place.size,
                address: self.place.address(),
            });
        }
        state.stage = Stage::Ended;
        self.changed.notify_all();
    }
}
