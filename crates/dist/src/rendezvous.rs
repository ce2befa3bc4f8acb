//! How the ranks find each other: through the store, each by a key of its own.

use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use crate::environment::whole_seconds;
use crate::failure::milliseconds;
use crate::native::{Keys, Message, Store};
use crate::watch::{NO_TROUBLE, TROUBLE, Watch, beat_key};
use crate::{Environment, Error, Failure, Limits, Result};

/// Between two looks at who has come.
const POLL: Duration = Duration::from_millis(50);
/// For the others to read why a meeting fails, before the rank that serves the store goes.
const FAREWELL: Duration = Duration::from_millis(500);
/// For libtorch to give up by itself before we do.
const GRACE: Duration = Duration::from_secs(2);

/// All ranks are here.
pub(crate) struct Meeting {
    pub(crate) store: Arc<Store>,
    pub(crate) watch: Watch,
    /// Whether all of them know the master by a loopback address: they are on one machine.
    pub(crate) loopback: bool,
}

/// Waits for all ranks to come.
pub(crate) fn meet(place: &Environment, limits: Limits) -> Result<Meeting> {
    let since = Instant::now();
    let store = open(place, limits.join, place.serves())?;
    let loopback = match join(&store, place, limits.join, since) {
        Ok(loopback) => loopback,
        Err(failure) => {
            let failure = publish(&store, failure);
            if place.serves() {
                std::thread::sleep(FAREWELL);
            }
            return Err(failure.into());
        }
    };
    let watch = Watch::start(open(place, limits.join, false)?, place, limits)?;
    Ok(Meeting { store: Arc::new(store), watch, loopback })
}

/// Opens a connection to the store; libtorch tries again until the time is over. Something else
/// that listens there may never answer, so the call waits in a thread of its own.
fn open(place: &Environment, limit: Duration, serve: bool) -> Result<Store> {
    let (send, receive) = mpsc::channel();
    let Environment { host, port, attempt, .. } = place.clone();
    std::thread::Builder::new()
        .name("store".to_owned())
        .spawn(move || {
            let prefix = format!("foretoken/{attempt}");
            let _ = send.send(Store::open(&host, port, serve, limit, &prefix));
        })
        .map_err(Error::Thread)?;
    match receive.recv_timeout(limit.saturating_add(GRACE)) {
        Ok(Ok(store)) => Ok(store),
        Ok(Err(Message(text))) if serve && text.contains("EADDRINUSE") => {
            Err(Error::PortInUse { port: place.port })
        }
        Ok(Err(Message(text))) => Err(unreachable(place, limit, text)),
        Err(_) => Err(unreachable(place, limit, "what listens there gives no answer".to_owned())),
    }
}

fn unreachable(place: &Environment, limit: Duration, message: String) -> Error {
    let server = match place.server() {
        Some(rank) => format!("rank {rank} of {}, which serves the others,", place.size),
        None => "the launcher, which serves the ranks,".to_owned(),
    };
    Error::Unreachable { server, address: place.address(), seconds: whole_seconds(limit), message }
}

/// Says that this rank is here and waits for the others. Returns whether all are on one machine.
fn join(
    store: &Store,
    place: &Environment,
    limit: Duration,
    since: Instant,
) -> std::result::Result<bool, Failure> {
    let lost =
        |_| Failure::StoreLost { rank: place.server(), size: place.size, address: place.address() };
    announce(store, place).map_err(lost)??;
    let here: Keys = (0..place.size).map(here_key).collect();
    loop {
        let trouble = store.exchange(TROUBLE, "", NO_TROUBLE).map_err(lost)?;
        if let Some(failure) = Failure::from_line(&trouble) {
            return Err(failure);
        }
        if store.has(&here).map_err(lost)? {
            let networks = store.get(&here).map_err(lost)?;
            return Ok(networks.iter().all(|network| network == "loopback"));
        }
        if since.elapsed() > limit {
            let missing = missing(store, place.size).map_err(lost)?;
            if !missing.is_empty() {
                let (size, milliseconds) = (place.size, milliseconds(limit));
                return Err(Failure::Missing { missing, size, milliseconds });
            }
        }
        std::thread::sleep(POLL);
    }
}

/// Writes this rank's keys. The inner error says that it doesn't fit the ranks that are here.
fn announce(
    store: &Store,
    place: &Environment,
) -> std::result::Result<std::result::Result<(), Failure>, Message> {
    let Environment { rank, size, .. } = *place;
    let agreed = store.exchange("size", "", &size.to_string())?;
    if let Some(expected) = agreed.parse::<usize>().ok().filter(|&expected| expected != size) {
        return Ok(Err(Failure::WorldSize { rank, size, expected }));
    }
    if store.count(&format!("taken/{rank}"))? > 1 {
        return Ok(Err(Failure::SameRank { rank, size }));
    }
    store.set(&beat_key(rank), "0 0")?;
    store.set(&here_key(rank), if place.is_loopback() { "loopback" } else { "network" })?;
    Ok(Ok(()))
}

fn here_key(rank: usize) -> String {
    format!("here/{rank}")
}

fn missing(store: &Store, size: usize) -> std::result::Result<Vec<usize>, Message> {
    let mut missing = Vec::new();
    for rank in 0..size {
        if !store.has(&Keys::from_iter([here_key(rank)]))? {
            missing.push(rank);
        }
    }
    Ok(missing)
}

/// Tells the others why the meeting fails; returns what was said first.
fn publish(store: &Store, failure: Failure) -> Failure {
    let said = store
        .exchange(TROUBLE, "", NO_TROUBLE)
        .and_then(|_| store.exchange(TROUBLE, NO_TROUBLE, &failure.to_line()));
    said.ok().and_then(|line| Failure::from_line(&line)).unwrap_or(failure)
}
