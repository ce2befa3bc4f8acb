//! The group: what ranks do together.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tch::{Device, Kind, Tensor};

use crate::environment::argument;
use crate::native::{self, Message, Network};
use crate::rendezvous::{Meeting, meet};
use crate::watch::Watch;
use crate::{Environment, Error, Failure, Limits, Result, Work};

/// The kinds that Gloo adds and copies, and NCCL.
const KINDS: [Kind; 8] = [
    Kind::Float,
    Kind::Double,
    Kind::Half,
    Kind::BFloat16,
    Kind::Int64,
    Kind::Int,
    Kind::Int8,
    Kind::Uint8,
];

/// Gathering needs a buffer for all ranks' pieces; this is its size in bytes.
const GATHER_BYTES: usize = 8 << 20;

/// libtorch's own limit is this much longer than ours, which names the rank.
const GRACE: Duration = Duration::from_secs(60);

/// Between two looks at the heartbeat while Gloo connects.
const POLL: Duration = Duration::from_millis(100);

/// A connection between this process, one rank, and all others.
///
/// Each method but the first few is a **collective**: all ranks have to call it, in one order, with
/// tensors of one size and kind. A collective that fails, or that takes longer than the limit, ends
/// the group; its error names the rank at fault where one is, and all ranks report the same.
///
/// Clones are the same group. When the last one is dropped, this rank leaves it; rank 0 then stays
/// until the others have left too, because it serves the store.
#[derive(Clone, Debug)]
pub struct ProcessGroup {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    rank: usize,
    size: usize,
    limits: Limits,
    /// Taken out only when the group ends.
    native: Mutex<Option<Links>>,
    /// Whether a collective may be under way for ever.
    broken: AtomicBool,
    /// Before the store, which it needs to say goodbye.
    watch: Watch,
    /// On the rank that serves, the server lives in it.
    store: Arc<native::Store>,
}

/// The ways to the other ranks.
#[derive(Debug)]
struct Links {
    /// For what is in the CPU's memory.
    gloo: native::Group,
    /// For what is in a GPU's.
    nccl: Option<native::Group>,
}

impl ProcessGroup {
    /// Joins the group that `place` describes, and returns when all ranks are there and connected.
    ///
    /// `limits` is a [`Limits`], or a duration for all of them. Gloo uses the interfaces that
    /// `GLOO_SOCKET_IFNAME` names, between commas; otherwise the loopback interface when every rank
    /// knows the master by a loopback address, or that of the host's name.
    ///
    /// # Errors
    /// When rank 0's port is in use, when the master can't be reached, when ranks are missing at the
    /// end of the time, when they were told different sizes or the same rank, or when Gloo can't
    /// connect them.
    pub fn connect(place: &Environment, limits: impl Into<Limits>) -> Result<Self> {
        place.check()?;
        let limits = limits.into();
        // Dropped from the last to the first: the watch needs the store to say goodbye.
        let Meeting { store, watch, loopback } = meet(place, limits)?;
        let interfaces = std::env::var("GLOO_SOCKET_IFNAME").ok().filter(|names| !names.is_empty());
        let native = open(&store, &watch, place, limits, Network { interfaces, loopback })?;
        let Environment { rank, size, .. } = *place;
        let links = Links { gloo: native, nccl: None };
        let (native, broken) = (Mutex::new(Some(links)), AtomicBool::new(false));
        let inner = Inner { rank, size, limits, native, broken, watch, store };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Whether this program can connect GPUs: whether it is built with the feature `nccl`.
    ///
    /// # Errors
    /// When it is not; the message says how to build it.
    pub fn supports_gpus() -> Result<()> {
        if cfg!(feature = "nccl") { Ok(()) } else { Err(Error::NoNccl) }
    }

    /// Connects the ranks' GPUs by NCCL, of which `gpu` is this rank's among those that it sees: from
    /// then on collectives take what is in its memory, too. A collective itself.
    ///
    /// # Errors
    /// When the program is built without the feature `nccl`, NCCL finds no GPU or cannot connect
    /// them, or a rank fails.
    pub fn connect_gpus(&self, gpu: usize) -> Result<()> {
        Self::supports_gpus()?;
        let Inner { rank, size, limits, ref store, ref watch, .. } = *self.inner;
        let timeout = limits.collective.saturating_add(GRACE);
        let refused = |Message(message)| Error::ConnectGpu { rank, gpu, message };
        let opened = native::Group::open_gpus(store, rank, size, timeout, gpu);
        // All connect, or none: who comes to the first collective waits for all.
        let failed = Tensor::f_from_slice(&[i64::from(opened.is_err())])?;
        self.all_reduce(&failed)?;
        let mut nccl = opened.map_err(refused)?;
        if failed.f_int64_value(&[0])? > 0 {
            return Err(refused(Message("another rank has no GPU to connect".to_owned())));
        }
        let connect = move || {
            let one = Tensor::f_ones([1], (Kind::Float, Device::Cuda(gpu)));
            let one = one.map_err(|error| Message(error.to_string()))?;
            let work = nccl.all_reduce(&one)?;
            while !work.wait(POLL)? {}
            Ok(nccl)
        };
        let nccl = apart(watch, "connecting GPUs", limits.join, connect)?.map_err(refused)?;
        if let Some(links) = &mut *self.inner.native.lock().unwrap_or_else(PoisonError::into_inner)
        {
            links.nccl = Some(nccl);
        }
        Ok(())
    }

    /// This process, from 0.
    pub fn rank(&self) -> usize {
        self.inner.rank
    }

    /// The number of processes.
    pub fn size(&self) -> usize {
        self.inner.size
    }

    /// Which elements of a flat tensor of `length` elements are a rank's own.
    ///
    /// # Errors
    /// When the length isn't a multiple of the size, or the rank isn't in the group.
    pub fn slice(&self, length: i64, rank: usize) -> Result<Range<i64>> {
        let size = self.size();
        if rank >= size {
            return Err(argument("rank", rank, format!("less than the size, {size}")));
        }
        if length < 0 || length % size as i64 != 0 {
            let expected = format!("a multiple of {size}, the number of ranks; pad it with zeros");
            return Err(Error::Argument {
                what: "the flat tensor's length",
                found: length.to_string(),
                expected,
            });
        }
        let share = length / size as i64;
        Ok(rank as i64 * share..(rank as i64 + 1) * share)
    }

    /// Copies `root`'s values into everyone's `tensor`.
    ///
    /// # Errors
    /// When the tensor isn't one that Gloo sends (dense, contiguous, in the CPU's memory, or in a
    /// GPU's where these are connected, of a number's kind, not empty), when `root` isn't in the group,
    /// or when a rank fails.
    pub fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<()> {
        if root >= self.size() {
            return Err(argument("root", root, format!("less than the size, {}", self.size())));
        }
        self.start("broadcast", tensor, |group| group.broadcast(tensor, root))?.wait()
    }

    /// Sums `tensor` over all ranks, in place, on each. The sums are the same bits on all ranks and
    /// in every run: Gloo's ring adds an element's terms in an order that depends only on the
    /// element's place and the number of ranks.
    ///
    /// # Errors
    /// As for [`broadcast`](Self::broadcast).
    pub fn all_reduce(&self, tensor: &Tensor) -> Result<()> {
        self.all_reduce_async(tensor)?.wait()
    }

    /// Starts [`all_reduce`](Self::all_reduce); until the work is done nobody may read or write the
    /// tensor's values. Several may be under way.
    ///
    /// # Errors
    /// As for [`broadcast`](Self::broadcast).
    pub fn all_reduce_async(&self, tensor: &Tensor) -> Result<Work> {
        self.start("all_reduce", tensor, |group| group.all_reduce(tensor))
    }

    /// Starts summing `tensor` over all ranks into that of `owner`, at half of an all-reduce's
    /// traffic. What the others' tensors hold afterwards isn't defined.
    ///
    /// # Errors
    /// As for [`broadcast`](Self::broadcast).
    pub fn reduce_async(&self, tensor: &Tensor, owner: usize) -> Result<Work> {
        if owner >= self.size() {
            return Err(argument("owner", owner, format!("less than the size, {}", self.size())));
        }
        self.start("reduce", tensor, |group| group.reduce(tensor, owner))
    }

    /// Sums a flat tensor over all ranks, each [`slice`](Self::slice) into that of its own rank: the
    /// half of an all-reduce that sharded optimisers need. The other slices are not defined
    /// afterwards.
    ///
    /// # Errors
    /// When the length isn't a multiple of the size, and as for [`broadcast`](Self::broadcast).
    pub fn reduce_slices(&self, flat: &Tensor) -> Result<()> {
        let works = (0..self.size())
            .map(|owner| self.reduce_async(&self.part(flat, "reduce", owner)?, owner))
            .collect::<Result<Vec<Work>>>()?;
        works.into_iter().try_for_each(Work::wait)
    }

    /// Copies every rank's own [`slice`](Self::slice) of a flat tensor to all ranks, in place. A
    /// buffer of a few megabytes is enough for any length.
    ///
    /// # Errors
    /// When the length isn't a multiple of the size, and as for [`broadcast`](Self::broadcast).
    pub fn all_gather_slices(&self, flat: &Tensor) -> Result<()> {
        const NAME: &str = "all_gather";
        let slices = (0..self.size())
            .map(|rank| self.part(flat, NAME, rank))
            .collect::<Result<Vec<Tensor>>>()?;
        let share = slices[self.rank()].numel() as i64;
        let row = flat.f_kind()?.elt_size_in_bytes() * self.size();
        let piece = ((GATHER_BYTES / row.max(1)) as i64).max(1);
        let mut works = Vec::new();
        for start in (0..share).step_by(piece as usize) {
            let outputs = slices
                .iter()
                .map(|slice| Ok(slice.f_narrow(0, start, piece.min(share - start))?))
                .collect::<Result<Vec<Tensor>>>()?;
            let own = &outputs[self.rank()];
            works.push(self.start(NAME, own, |group| group.all_gather(own, &outputs))?);
        }
        works.into_iter().try_for_each(Work::wait)
    }

    /// Returns when all ranks have called it. Call it before the end of the program: what another
    /// rank does wrong until then is an error here too.
    ///
    /// # Errors
    /// When a rank fails.
    pub fn barrier(&self) -> Result<()> {
        self.begin("barrier", Device::Cpu, native::Group::barrier)?.wait()
    }

    /// Tells the other ranks that this one fails, and why, so that they end at once and say so. Not
    /// a collective; call it before the group is dropped because of an error of this rank's own.
    pub fn fail(&self, reason: &str) {
        let reason = reason.lines().next().unwrap_or_default().to_owned();
        let (rank, size) = (self.rank(), self.size());
        self.inner.broken.store(true, Ordering::Relaxed);
        self.inner.watch.agree(Failure::Failed { rank, size, reason });
    }

    /// What the heartbeat knows, without a collective.
    ///
    /// # Errors
    /// When a rank, or this one, has failed.
    pub fn check(&self) -> Result<()> {
        self.inner.watch.verdict().map_or(Ok(()), |failure| Err(failure.into()))
    }

    fn part(&self, flat: &Tensor, collective: &'static str, rank: usize) -> Result<Tensor> {
        if flat.dim() != 1 {
            let problem = format!("has {} dimensions, not one", flat.dim());
            return Err(Error::Tensor { collective, problem });
        }
        let own = self.slice(flat.size()[0], rank)?;
        Ok(flat.f_narrow(0, own.start, own.end - own.start)?)
    }

    fn start(
        &self,
        collective: &'static str,
        tensor: &Tensor,
        start: impl FnOnce(&mut native::Group) -> std::result::Result<native::Work, Message>,
    ) -> Result<Work> {
        if let Some(problem) = problem(tensor) {
            return Err(Error::Tensor { collective, problem });
        }
        self.begin(collective, tensor.device(), start)
    }

    fn begin(
        &self,
        collective: &'static str,
        place: Device,
        start: impl FnOnce(&mut native::Group) -> std::result::Result<native::Work, Message>,
    ) -> Result<Work> {
        self.check()?;
        let mut native = self.inner.native.lock().unwrap_or_else(PoisonError::into_inner);
        let over = || Message("the group has ended".to_owned());
        let link = native.as_mut().ok_or_else(over).and_then(|links| match place {
            Device::Cpu => Ok(&mut links.gloo),
            _ => links.nccl.as_mut().ok_or_else(|| {
                let message =
                    "the tensor is in a GPU's memory, but the ranks' GPUs are not connected";
                Message(message.to_owned())
            }),
        });
        let started = link.and_then(start);
        let work = started.map_err(|Message(message)| Error::Collective {
            collective,
            rank: self.rank(),
            message,
        })?;
        self.inner.watch.count_collective();
        Ok(Work::new(Arc::clone(&self.inner), work, collective))
    }
}

impl Inner {
    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    pub(crate) fn watch(&self) -> &Watch {
        &self.watch
    }

    /// A collective may go on for ever; what it uses must stay.
    pub(crate) fn abandon(&self) {
        self.broken.store(true, Ordering::Relaxed);
    }

    /// The error of a collective that failed with `message`, after telling the others.
    pub(crate) fn explain(&self, collective: &'static str, message: String) -> Error {
        self.abandon();
        if let Some(failure) = self.watch.culprit(collective) {
            return self.watch.agree(failure).into();
        }
        let (rank, size) = (self.rank, self.size);
        let own = Failure::Failed { rank, size, reason: format!("{collective}: {message}") };
        match self.watch.agree(own.clone()) {
            agreed if agreed == own => Error::Collective { collective, rank, message },
            agreed => agreed.into(),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let native = self.native.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if *self.broken.get_mut() {
            // Its end would wait for collectives that have none; the process ends soon.
            std::mem::forget(native);
        }
    }
}

/// Connects the ranks by Gloo.
fn open(
    store: &Arc<native::Store>,
    watch: &Watch,
    place: &Environment,
    limits: Limits,
    network: Network,
) -> Result<native::Group> {
    let Environment { rank, size, .. } = *place;
    let keys = Arc::clone(store);
    let connect = move || {
        let mut group = native::Group::open(&keys, rank, size, limits.join, &network)?;
        group.set_timeout(limits.collective.saturating_add(GRACE))?;
        Ok(group)
    };
    // Gloo has that limit, too, and says more.
    let limit = limits.join.saturating_add(GRACE);
    apart(watch, "connecting", limit, connect)?.map_err(|message| refused(watch, place, message))
}

/// Does what can't be ended from outside in a thread of its own, which is left alone when a rank dies
/// meanwhile, or after the limit.
fn apart<T: Send + 'static>(
    watch: &Watch,
    what: &'static str,
    limit: Duration,
    work: impl FnOnce() -> std::result::Result<T, Message> + Send + 'static,
) -> Result<std::result::Result<T, Message>> {
    let (send, receive) = mpsc::channel();
    std::thread::Builder::new()
        .name("connect".to_owned())
        .spawn(move || send.send(work()))
        .map_err(Error::Thread)?;
    let began = Instant::now();
    loop {
        match receive.recv_timeout(POLL) {
            Ok(done) => return Ok(done),
            Err(RecvTimeoutError::Timeout) => {
                if let Some(failure) = watch.trouble_with(what) {
                    return Err(watch.agree(failure).into());
                }
                if began.elapsed() >= limit {
                    let message = format!("not connected within {} s", limit.as_secs());
                    return Ok(Err(Message(message)));
                }
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Ok(Err(Message("the connecting thread ended".to_owned())));
            }
        }
    }
}

/// The error of a group that Gloo can't connect.
fn refused(watch: &Watch, place: &Environment, Message(message): Message) -> Error {
    if let Some(failure) = watch.culprit("connecting") {
        return watch.agree(failure).into();
    }
    let reason = format!("connecting: {message}");
    watch.agree(Failure::Failed { rank: place.rank, size: place.size, reason });
    Error::Connect { rank: place.rank, message }
}

/// Why neither Gloo nor NCCL can take the tensor, if they can't.
fn problem(tensor: &Tensor) -> Option<String> {
    if !matches!(tensor.device(), Device::Cpu | Device::Cuda(_)) {
        return Some(format!("is on {:?}, neither in a CPU's nor a GPU's memory", tensor.device()));
    }
    match tensor.f_kind() {
        Ok(kind) if KINDS.contains(&kind) => {}
        Ok(kind) => return Some(format!("is of the kind {kind:?}, which Gloo does not send")),
        Err(_) => return Some("is of a kind that Gloo does not send".to_owned()),
    }
    if tensor.is_sparse() || !tensor.is_contiguous() {
        return Some("is not dense and contiguous".to_owned());
    }
    (tensor.numel() == 0).then(|| "is empty".to_owned())
}
