//! Memory on cache-line boundaries, and rows of numbers in it.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use super::real::Real;

/// Rows are as long as a multiple of this, with zeros behind the last value, so that a kernel may
/// read and write whole vectors.
pub(super) const PAD: usize = 16;

/// A zeroed slice on a 64-byte boundary.
pub(super) struct Aligned<T> {
    start: NonNull<T>,
    len: usize,
    /// Where the allocation begins: up to a line before `start`.
    base: NonNull<u8>,
}

// SAFETY: it owns its memory, like a `Vec<T>`.
unsafe impl<T: Send> Send for Aligned<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Aligned<T> {}

/// Bytes of a cache line.
const LINE: usize = 64;

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
        // SAFETY: the layout is of non-zero size; all-zero bits are the number 0.
        let base = unsafe { alloc_zeroed(layout) };
        let base = NonNull::new(base).unwrap_or_else(|| handle_alloc_error(layout));
        let ahead = base.addr().get().next_multiple_of(LINE) - base.addr().get();
        // SAFETY: less than a line ahead, and the allocation is a line longer than the values.
        let start = unsafe { base.add(ahead) }.cast();
        Self { start, len, base }
    }

    /// The address, for kernels that several threads run: whoever writes there answers for nobody
    /// else's having a reference to the same values.
    pub(super) fn address(&self) -> *mut T {
        self.start.as_ptr()
    }
}

impl<T> Drop for Aligned<T> {
    fn drop(&mut self) {
        if let Some(layout) = layout::<T>(self.len) {
            // SAFETY: `zeroed` allocated it with this layout.
            unsafe { dealloc(self.base.as_ptr(), layout) };
        }
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
