//! Memory on cache-line boundaries, and rows of numbers in it.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Weak};

use super::real::Real;

/// Rows are as long as a multiple of this, with zeros behind the last value, so that a kernel may
/// read and write whole vectors.
pub(super) const PAD: usize = 16;

/// A zeroed slice on a 64-byte boundary.
pub(super) struct Aligned<T> {
    start: NonNull<T>,
    len: usize,
    /// What holds it.
    _memory: Arc<Memory>,
}

/// Zeroed bytes from the allocator, of one slice or of several.
struct Memory {
    base: NonNull<u8>,
    layout: Layout,
}

// SAFETY: it is bytes, which nobody reads or writes but the slices in it.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    fn zeroed(layout: Layout) -> Self {
        // SAFETY: no layout here is of zero size; all-zero bits are the number 0.
        let base = unsafe { alloc_zeroed(layout) };
        Self { base: NonNull::new(base).unwrap_or_else(|| handle_alloc_error(layout)), layout }
    }

    /// Asks the system to map it in large pages, where it has them.
    #[cfg(target_os = "linux")]
    fn in_large_pages(self) -> Self {
        let base = self.base.addr().get();
        let (from, to) = (base.next_multiple_of(PAGE), (base + self.layout.size()) / PAGE * PAGE);
        if to > from {
            // SAFETY: whole pages of this memory; the call is advice, and moves nothing.
            unsafe {
                let start = self.base.as_ptr().with_addr(from).cast();
                libc::madvise(start, to - from, libc::MADV_HUGEPAGE);
            }
        }
        self
    }

    #[cfg(not(target_os = "linux"))]
    fn in_large_pages(self) -> Self {
        self
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: `zeroed` allocated it with this layout.
        unsafe { dealloc(self.base.as_ptr(), self.layout) };
    }
}

/// Memory that weights which are packed one after the other share, and how much of it is taken: a
/// matrix of a few large pages would have none whole to itself.
#[derive(Default)]
struct Shared {
    memory: Weak<Memory>,
    taken: usize,
}

/// Bytes that are shared. They cost nothing before they are written.
const SHARED: usize = 256 << 20;

/// Bytes from which on a slice lies in shared memory: smaller ones are of models whose weights stay
/// in the caches.
const LEAST_SHARED: usize = 256 << 10;

/// Returns to the system what the allocator keeps of memory that was let go. Weights are packed one
/// by one and their tensors let go: kept for allocations that never come, these would be in memory
/// beside what was packed of them.
fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it takes no memory from anyone.
    unsafe {
        libc::malloc_trim(0);
    }
}

thread_local! {
    static SHARING: RefCell<Shared> = RefCell::default();
}

impl Shared {
    /// A place for `bytes`, of which there are fewer than are shared.
    fn take(&mut self, bytes: usize) -> (Arc<Memory>, usize) {
        let left = self.memory.upgrade().filter(|_| self.taken + bytes <= SHARED);
        let memory = left.unwrap_or_else(|| {
            let layout = Layout::from_size_align(SHARED, 1).unwrap_or_else(|_| Layout::new::<u8>());
            let memory = Arc::new(Memory::zeroed(layout).in_large_pages());
            (self.memory, self.taken) = (Arc::downgrade(&memory), 0);
            memory
        });
        let at = self.taken;
        self.taken += bytes;
        (memory, at)
    }
}

// SAFETY: it owns its memory, like a `Vec<T>`.
unsafe impl<T: Send> Send for Aligned<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Aligned<T> {}

/// Bytes of a cache line.
const LINE: usize = 64;

/// Bytes of a page at least: advice is given for whole ones.
#[cfg(target_os = "linux")]
const PAGE: usize = 4096;

/// The layout behind `len` values: with room to move their start to a line. It asks for no large
/// alignment itself, because then the allocator would write the zeros, and memory for a long
/// context would be taken before a position is used.
fn layout<T>(len: usize) -> Option<Layout> {
    let bytes = len.checked_mul(size_of::<T>())?.checked_add(LINE)?;
    Layout::from_size_align(bytes, align_of::<T>()).ok()
}

impl<T: Real> Aligned<T> {
    pub(super) fn zeroed(len: usize) -> Self {
        let layout = layout::<T>(len);
        assert!(layout.is_some(), "{len} values are more than the address space holds");
        let layout = layout.unwrap_or_else(Layout::new::<T>);
        Self::at(Arc::new(Memory::zeroed(layout)), 0, len)
    }

    /// As [`Aligned::zeroed`], for weights, which are read from one end to the other again and
    /// again: in memory that the system maps in large pages where it has them, so that reading
    /// seldom waits for an address.
    pub(super) fn in_large_pages(len: usize) -> Self {
        let large = layout::<T>(len).filter(|layout| layout.size() >= LEAST_SHARED);
        let Some(layout) = large else { return Self::zeroed(len) };
        give_back();
        let (memory, at) = if layout.size() > SHARED / 4 {
            (Arc::new(Memory::zeroed(layout).in_large_pages()), 0)
        } else {
            SHARING.with_borrow_mut(|shared| shared.take(layout.size()))
        };
        Self::at(memory, at, len)
    }

    /// `len` values from the first line on behind byte `at` of `memory`, which nobody else has.
    fn at(memory: Arc<Memory>, at: usize, len: usize) -> Self {
        let address = memory.base.addr().get() + at;
        let ahead = at + address.next_multiple_of(LINE) - address;
        // SAFETY: less than a line ahead, and there is a line more than the values take.
        let start = unsafe { memory.base.add(ahead) }.cast();
        Self { start, len, _memory: memory }
    }

    /// The address, for kernels that several threads run: whoever writes there answers for nobody
    /// else's having a reference to the same values.
    pub(super) fn address(&self) -> *mut T {
        self.start.as_ptr()
    }
}

impl<T> Deref for Aligned<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: `len` values live there as long as `self` does.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

/// A matrix of activations, `[rows, width]`: each row starts on a cache line and has zeros behind
/// its last value.
pub struct Rows<T> {
    values: Aligned<T>,
    count: usize,
    width: usize,
}

impl<T: Real> Rows<T> {
    /// `rows` rows of `width` zeros.
    pub fn new(rows: usize, width: usize) -> Self {
        Self { values: Aligned::zeroed(rows * width.next_multiple_of(PAD)), count: rows, width }
    }

    /// How many rows there are.
    pub fn rows(&self) -> usize {
        self.count
    }

    /// Values of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Row `r`.
    ///
    /// # Panics
    /// Where there is no such row.
    pub fn row(&self, r: usize) -> &[T] {
        &self.values[r * self.stride()..][..self.width]
    }

    /// Row `r`, to write to.
    ///
    /// # Panics
    /// Where there is no such row.
    pub fn row_mut(&mut self, r: usize) -> &mut [T] {
        let (stride, width) = (self.stride(), self.width);
        &mut self.values[r * stride..][..width]
    }

    /// Writes row `from` over row `to`.
    ///
    /// # Panics
    /// Where there is no such row.
    pub(super) fn copy_row(&mut self, from: usize, to: usize) {
        let (stride, width) = (self.stride(), self.width);
        self.values.copy_within(from * stride..from * stride + width, to * stride);
    }

    /// From the start of one row to that of the next.
    pub(super) fn stride(&self) -> usize {
        self.width.next_multiple_of(PAD)
    }

    pub(super) fn view(&self) -> View<T> {
        View { start: self.values.address(), stride: self.stride() }
    }
}

/// One row that stands for any number of equal ones: a bias.
pub(super) struct Repeated<T>(Rows<T>);

impl<T: Real> Repeated<T> {
    pub(super) fn new(values: &[T]) -> Self {
        let mut row = Rows::new(1, values.len());
        row.row_mut(0).copy_from_slice(values);
        Self(row)
    }

    /// A view whose rows are all the same one; only to be read.
    pub(super) fn view(&self) -> View<T> {
        View { start: self.0.values.address(), stride: 0 }
    }
}

/// Where rows of numbers start and how far apart they are: what a kernel works on.
///
/// Threads of one team share such views; which thread writes which columns is the kernel's affair.
pub(super) struct View<T> {
    pub(super) start: *mut T,
    pub(super) stride: usize,
}

impl<T> Clone for View<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for View<T> {}

// SAFETY: a view is only an address; every access through it is an unsafe block that says why no
// other thread touches the same place between two barriers.
unsafe impl<T: Send> Send for View<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for View<T> {}

impl<T> View<T> {
    /// The start of row `r`.
    ///
    /// # Safety
    /// The row is inside the memory that the view was made from.
    #[inline(always)]
    pub(super) unsafe fn row(self, r: usize) -> *mut T {
        // SAFETY: the caller's promise.
        unsafe { self.start.add(r * self.stride) }
    }

    /// The view from row `r` on.
    ///
    /// # Safety
    /// As for [`View::row`].
    #[inline(always)]
    pub(super) unsafe fn skip(self, r: usize) -> Self {
        // SAFETY: the caller's promise.
        Self { start: unsafe { self.row(r) }, stride: self.stride }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_in_large_pages_are_zeroed_apart_and_on_lines() {
        let least = LEAST_SHARED / size_of::<f32>();
        let lengths = [1, least - 17, least, least + 5, 3 * least, SHARED / 16 + 1, 2, least + 1];
        let mut slices: Vec<Aligned<f32>> = lengths.map(Aligned::in_large_pages).into();
        for (number, slice) in (1u8..).zip(&mut slices) {
            assert_eq!(slice.address().addr() % LINE, 0);
            assert!(slice.iter().all(|value| *value == 0.0));
            slice.fill(f32::from(number));
        }
        // What is let go leaves the others as they are, and is not given out again.
        drop(slices.remove(3));
        slices.push(Aligned::in_large_pages(least));
        assert!(slices.pop().is_some_and(|slice| slice.iter().all(|value| *value == 0.0)));
        for (slice, number) in slices.iter().zip([1u8, 2, 3, 5, 6, 7, 8]) {
            assert!(slice.iter().all(|value| *value == f32::from(number)), "slice {number}");
        }
    }
}
