//! The bridge to libtorch's c10d: owned handles around `cpp/c10d.cpp`.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int};
use std::marker::{PhantomData, PhantomPinned};
use std::time::Duration;

use tch::Tensor;
use torch_sys::C_tensor;

/// What libtorch said, in one line.
#[derive(Debug)]
pub(crate) struct Message(pub(crate) String);

type Result<T> = std::result::Result<T, Message>;

/// An object on the C++ side.
#[repr(C)]
struct Opaque {
    _bytes: [u8; 0],
    _marker: PhantomData<(*mut u8, PhantomPinned)>,
}

unsafe extern "C" {
    fn foretoken_dist_free_text(text: *mut c_char);
    fn foretoken_dist_store_open(
        host: *const c_char,
        port: u16,
        server: bool,
        timeout_ms: i64,
        prefix: *const c_char,
        store: *mut *mut Opaque,
    ) -> *mut c_char;
    fn foretoken_dist_store_free(store: *mut Opaque);
    fn foretoken_dist_store_set(
        store: *mut Opaque,
        key: *const c_char,
        value: *const c_char,
    ) -> *mut c_char;
    fn foretoken_dist_store_add(
        store: *mut Opaque,
        key: *const c_char,
        amount: i64,
        sum: *mut i64,
    ) -> *mut c_char;
    fn foretoken_dist_store_exchange(
        store: *mut Opaque,
        key: *const c_char,
        expected: *const c_char,
        wanted: *const c_char,
        now: *mut *mut c_char,
    ) -> *mut c_char;
    fn foretoken_dist_store_has(
        store: *mut Opaque,
        keys: *const *const c_char,
        count: usize,
        has: *mut bool,
    ) -> *mut c_char;
    fn foretoken_dist_store_get(
        store: *mut Opaque,
        keys: *const *const c_char,
        count: usize,
        lines: *mut *mut c_char,
    ) -> *mut c_char;
    fn foretoken_dist_group_open(
        store: *mut Opaque,
        rank: c_int,
        size: c_int,
        timeout_ms: i64,
        interfaces: *const c_char,
        loopback: bool,
        group: *mut *mut Opaque,
    ) -> *mut c_char;
    fn foretoken_dist_group_open_gpus(
        store: *mut Opaque,
        rank: c_int,
        size: c_int,
        timeout_ms: i64,
        gpu: c_int,
        group: *mut *mut Opaque,
    ) -> *mut c_char;
    fn foretoken_dist_group_free(group: *mut Opaque);
    fn foretoken_dist_group_set_timeout(group: *mut Opaque, timeout_ms: i64) -> *mut c_char;
    fn foretoken_dist_broadcast(
        group: *mut Opaque,
        tensor: *const C_tensor,
        root: c_int,
        work: *mut *mut Opaque,
    ) -> *mut c_char;
    fn foretoken_dist_all_reduce(
        group: *mut Opaque,
        tensor: *const C_tensor,
        work: *mut *mut Opaque,
    ) -> *mut c_char;
    fn foretoken_dist_reduce(
        group: *mut Opaque,
        tensor: *const C_tensor,
        root: c_int,
        work: *mut *mut Opaque,
    ) -> *mut c_char;
    fn foretoken_dist_all_gather(
        group: *mut Opaque,
        input: *const C_tensor,
        outputs: *const *const C_tensor,
        count: usize,
        work: *mut *mut Opaque,
    ) -> *mut c_char;
    fn foretoken_dist_barrier(group: *mut Opaque, work: *mut *mut Opaque) -> *mut c_char;
    fn foretoken_dist_work_wait(work: *mut Opaque, wait_ms: i64, done: *mut bool) -> *mut c_char;
    fn foretoken_dist_work_free(work: *mut Opaque);
}

/// A key-value store that all ranks share, by one connection of its own. Calls from several
/// threads take turns.
#[derive(Debug)]
pub(crate) struct Store(*mut Opaque);

// SAFETY: c10d's TCPStore holds a lock around each exchange on its connection.
unsafe impl Send for Store {}
// SAFETY: as above.
unsafe impl Sync for Store {}

impl Store {
    /// Connects to `host`:`port`; as the `server`, listens there first.
    pub(crate) fn open(
        host: &str,
        port: u16,
        server: bool,
        timeout: Duration,
        prefix: &str,
    ) -> Result<Self> {
        let (host, prefix) = (c_string(host), c_string(prefix));
        let mut store = std::ptr::null_mut();
        // SAFETY: the strings outlive the call, which writes `store` where it succeeds.
        check(unsafe {
            foretoken_dist_store_open(
                host.as_ptr(),
                port,
                server,
                milliseconds(timeout),
                prefix.as_ptr(),
                &raw mut store,
            )
        })?;
        Ok(Self(store))
    }

    /// Sets a key; a value is one line of text.
    pub(crate) fn set(&self, key: &str, value: &str) -> Result<()> {
        let (key, value) = (c_string(key), c_string(value));
        // SAFETY: a live store, and strings that outlive the call.
        check(unsafe { foretoken_dist_store_set(self.0, key.as_ptr(), value.as_ptr()) })
    }

    /// Adds one to a counter, which begins at 0, and returns it.
    pub(crate) fn count(&self, key: &str) -> Result<i64> {
        let key = c_string(key);
        let mut sum = 0;
        // SAFETY: a live store, a string that outlives the call, and a place for the sum.
        check(unsafe { foretoken_dist_store_add(self.0, key.as_ptr(), 1, &raw mut sum) })?;
        Ok(sum)
    }

    /// Sets `key` to `wanted` if its value is `expected` (empty: if it has none). Returns the value
    /// that it has afterwards.
    pub(crate) fn exchange(&self, key: &str, expected: &str, wanted: &str) -> Result<String> {
        let (key, expected, wanted) = (c_string(key), c_string(expected), c_string(wanted));
        let mut now = std::ptr::null_mut();
        // SAFETY: a live store, strings that outlive the call, and a place for the text.
        check(unsafe {
            foretoken_dist_store_exchange(
                self.0,
                key.as_ptr(),
                expected.as_ptr(),
                wanted.as_ptr(),
                &raw mut now,
            )
        })?;
        Ok(take(now))
    }

    /// Whether all `keys` exist.
    pub(crate) fn has(&self, keys: &Keys) -> Result<bool> {
        let pointers = keys.pointers();
        let mut has = false;
        // SAFETY: a live store, and strings that `keys` holds for the whole call.
        check(unsafe {
            foretoken_dist_store_has(self.0, pointers.as_ptr(), pointers.len(), &raw mut has)
        })?;
        Ok(has)
    }

    /// The values of `keys`, in their order. Waits for those that do not exist.
    pub(crate) fn get(&self, keys: &Keys) -> Result<Vec<String>> {
        let pointers = keys.pointers();
        let mut lines = std::ptr::null_mut();
        // SAFETY: a live store, strings that `keys` holds for the whole call, a place for the text.
        check(unsafe {
            foretoken_dist_store_get(self.0, pointers.as_ptr(), pointers.len(), &raw mut lines)
        })?;
        let values: Vec<String> = take(lines).lines().map(str::to_owned).collect();
        match values.len() == pointers.len() {
            true => Ok(values),
            false => Err(Message("the store holds what this program did not write".to_owned())),
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: made by `foretoken_dist_store_open`, given back once.
        unsafe { foretoken_dist_store_free(self.0) }
    }
}

/// Names of keys, kept in the form that the C++ side reads.
#[derive(Debug)]
pub(crate) struct Keys(Vec<CString>);

impl Keys {
    fn pointers(&self) -> Vec<*const c_char> {
        self.0.iter().map(|key| key.as_ptr()).collect()
    }
}

impl<S: AsRef<str>> FromIterator<S> for Keys {
    fn from_iter<I: IntoIterator<Item = S>>(keys: I) -> Self {
        Self(keys.into_iter().map(|key| c_string(key.as_ref())).collect())
    }
}

/// Which way Gloo connects the ranks.
pub(crate) struct Network {
    /// `GLOO_SOCKET_IFNAME`, where it is set.
    pub(crate) interfaces: Option<String>,
    /// Whether all ranks are on this machine.
    pub(crate) loopback: bool,
}

/// The connections of this rank to all others. The collectives of one group must start one after
/// the other.
#[derive(Debug)]
pub(crate) struct Group(*mut Opaque);

// SAFETY: a group is bound to no thread; what starts a collective holds `&mut Group`.
unsafe impl Send for Group {}

impl Group {
    /// Connects this rank with the others, which do the same.
    pub(crate) fn open(
        store: &Store,
        rank: usize,
        size: usize,
        timeout: Duration,
        network: &Network,
    ) -> Result<Self> {
        let interfaces = network.interfaces.as_deref().map(c_string);
        let mut group = std::ptr::null_mut();
        // SAFETY: a live store, of which the group keeps a counted reference; strings that outlive
        // the call; and a place for the group.
        check(unsafe {
            foretoken_dist_group_open(
                store.0,
                rank as c_int,
                size as c_int,
                milliseconds(timeout),
                interfaces.as_ref().map_or(std::ptr::null(), |names| names.as_ptr()),
                network.loopback,
                &raw mut group,
            )
        })?;
        Ok(Self(group))
    }

    /// The same between GPUs, by NCCL, which connects them at the first collective.
    pub(crate) fn open_gpus(
        store: &Store,
        rank: usize,
        size: usize,
        timeout: Duration,
        gpu: usize,
    ) -> Result<Self> {
        let mut group = std::ptr::null_mut();
        // SAFETY: a live store, of which the group keeps a counted reference, and a place for the
        // group.
        check(unsafe {
            foretoken_dist_group_open_gpus(
                store.0,
                rank as c_int,
                size as c_int,
                milliseconds(timeout),
                gpu as c_int,
                &raw mut group,
            )
        })?;
        Ok(Self(group))
    }

    /// Sets the time that a collective may take.
    pub(crate) fn set_timeout(&mut self, timeout: Duration) -> Result<()> {
        // SAFETY: a live group.
        check(unsafe { foretoken_dist_group_set_timeout(self.0, milliseconds(timeout)) })
    }

    /// Starts copying `root`'s values into everyone's `tensor`.
    pub(crate) fn broadcast(&mut self, tensor: &Tensor, root: usize) -> Result<Work> {
        // SAFETY: a live group and tensor, of which the work keeps a counted reference.
        start(|work| unsafe {
            foretoken_dist_broadcast(self.0, tensor.as_ptr(), root as c_int, work)
        })
    }

    /// Starts summing `tensor` over all ranks, into all of them.
    pub(crate) fn all_reduce(&mut self, tensor: &Tensor) -> Result<Work> {
        // SAFETY: as for `broadcast`.
        start(|work| unsafe { foretoken_dist_all_reduce(self.0, tensor.as_ptr(), work) })
    }

    /// Starts summing `tensor` over all ranks, into that of `root`.
    pub(crate) fn reduce(&mut self, tensor: &Tensor, root: usize) -> Result<Work> {
        // SAFETY: as for `broadcast`.
        start(|work| unsafe { foretoken_dist_reduce(self.0, tensor.as_ptr(), root as c_int, work) })
    }

    /// Starts copying every rank's `input` into everyone's `outputs[rank]`.
    pub(crate) fn all_gather(&mut self, input: &Tensor, outputs: &[Tensor]) -> Result<Work> {
        let pointers: Vec<_> = outputs.iter().map(Tensor::as_ptr).collect();
        // SAFETY: as for `broadcast`, for the input and for each output.
        start(|work| unsafe {
            foretoken_dist_all_gather(
                self.0,
                input.as_ptr(),
                pointers.as_ptr(),
                pointers.len(),
                work,
            )
        })
    }

    /// Starts waiting for all ranks.
    pub(crate) fn barrier(&mut self) -> Result<Work> {
        // SAFETY: a live group.
        start(|work| unsafe { foretoken_dist_barrier(self.0, work) })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // SAFETY: made by `foretoken_dist_group_open`, given back once.
        unsafe { foretoken_dist_group_free(self.0) }
    }
}

/// A collective under way.
#[derive(Debug)]
pub(crate) struct Work(*mut Opaque);

// SAFETY: c10d's Work guards its state by a lock of its own.
unsafe impl Send for Work {}

impl Work {
    /// Waits up to `limit`; false when the work is still under way then.
    pub(crate) fn wait(&self, limit: Duration) -> Result<bool> {
        let mut done = false;
        // c10d takes 0 for "without end".
        let wait = milliseconds(limit).max(1);
        // SAFETY: a live work and a place for the answer.
        check(unsafe { foretoken_dist_work_wait(self.0, wait, &raw mut done) })?;
        Ok(done)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // SAFETY: made by one of the collectives, given back once.
        unsafe { foretoken_dist_work_free(self.0) }
    }
}

fn start(collective: impl FnOnce(*mut *mut Opaque) -> *mut c_char) -> Result<Work> {
    let mut work = std::ptr::null_mut();
    check(collective(&raw mut work))?;
    Ok(Work(work))
}

fn milliseconds(time: Duration) -> i64 {
    // c10d adds it to the time of day: a century is long enough.
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX).min(100 * 365 * 24 * 3600 * 1000)
}

/// Text for the C++ side, which ends at the first zero byte.
fn c_string(text: &str) -> CString {
    let bytes: Vec<u8> = text.bytes().take_while(|&byte| byte != 0).collect();
    CString::new(bytes).unwrap_or_default()
}

/// Takes over a text that the C++ side allocated.
fn take(text: *mut c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: a C string that the C++ side allocated for us, freed once.
    unsafe {
        let owned = CStr::from_ptr(text).to_string_lossy().into_owned();
        foretoken_dist_free_text(text);
        owned
    }
}

fn check(message: *mut c_char) -> Result<()> {
    if message.is_null() {
        return Ok(());
    }
    Err(Message(take(message).lines().next().unwrap_or_default().trim().to_owned()))
}
