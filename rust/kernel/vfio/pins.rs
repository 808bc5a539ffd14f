// SPDX-License-Identifier: GPL-2.0-only

//! The pages that are pinned for a device, and who unpins them.
//!
//! To pin and to unpin takes locks of the IOMMU backend, under which in turn `mmap_lock` is taken.
//! So the lock of [`Pins`] is held for neither: a driver can use what it has pinned in any
//! callback, those that are called with `mmap_lock` held included. For the same reason pages are
//! not unpinned by who drops the last that there is of them, but by a work item.

use crate::{
    bindings,
    dma::DmaAddress,
    new_condvar, new_mutex,
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        Arc,
        CondVar,
        Mutex, //
    },
    time::{
        delay::fsleep,
        Delta,
        Instant,
        Monotonic, //
    },
    workqueue::{
        self,
        impl_has_work,
        new_work,
        Work,
        WorkItem, //
    },
};

/// The pages that are pinned for a device.
#[pin_data]
pub struct Pins {
    #[pin]
    state: Mutex<State>,
    /// Nothing is being pinned or unpinned.
    #[pin]
    idle: CondVar,
    #[pin]
    work: Work<Self>,
}

impl_has_work! {
    impl HasWork<Self> for Pins { self.work }
}

/// What the lock of [`Pins`] protects.
struct State {
    /// The pins, in the order of their `id`.
    pins: KVec<Pinned>,
    /// The `id` of the next one.
    next: u64,
    /// How many tasks are pinning or unpinning pages, which are not in `pins`.
    busy: usize,
    /// What userspace has unmapped last, the latest first.
    unmapped: [Option<Unmapped>; UNMAPPED],
}

/// How many of the ranges that were unmapped last are known. There is one for each task that unmaps
/// at a time.
const UNMAPPED: usize = 8;

/// A range of addresses that userspace has unmapped, and when.
struct Unmapped {
    iova: DmaAddress,
    length: u64,
    when: Instant<Monotonic>,
}

impl Unmapped {
    /// Returns whether that was just now.
    fn is_recent(&self) -> bool {
        self.when.elapsed() < QUIET
    }
}

/// How long pages are not pinned after userspace has unmapped them.
///
/// While it unmaps, the type1 IOMMU driver drops its lock to call
/// [`Operations::dma_unmap`](super::Operations::dma_unmap), then looks for pinned pages again, and
/// gives up with a `BUG_ON()` when it found some more than ten times. Who pins in between must not
/// get ahead of it so often.
///
/// This makes that unlikely, and does not exclude it: another task may hold the lock of the type1
/// driver for longer, and more tasks than [`UNMAPPED`] may unmap. Only the type1 driver can.
const QUIET: Delta = Delta::from_millis(10);

/// How often, and for how long each time, who unmaps waits for others to finish to pin or unpin.
///
/// It does not wait longer, as it may hold a lock that they need. The IOMMU backend asks again if
/// pages are still pinned.
const PATIENCE: (usize, Delta) = (10, Delta::from_millis(1));

/// Pages that are pinned.
///
/// # Invariants
///
/// `pages` are pinned for `vdev` from `iova` on, which is a multiple of the page size. `unpin` is
/// for the type of the device, which is open.
pub(super) struct Pinned {
    id: u64,
    iova: DmaAddress,
    pages: KVec<*mut bindings::page>,
    /// Nobody uses the pages any more.
    dropped: bool,
    vdev: *mut bindings::vfio_device,
    unpin: unsafe fn(*mut bindings::vfio_device, DmaAddress, usize),
}

// SAFETY: The pages and the device may be used by any task.
unsafe impl Send for Pinned {}

impl Pinned {
    /// # Safety
    ///
    /// `pages` must be pinned for `vdev` from `iova` on, and `unpin` must unpin so many pages
    /// there. The device must be open for as long as the returned value lives.
    pub(super) unsafe fn new(
        iova: DmaAddress,
        pages: KVec<*mut bindings::page>,
        vdev: *mut bindings::vfio_device,
        unpin: unsafe fn(*mut bindings::vfio_device, DmaAddress, usize),
    ) -> Self {
        // INVARIANT: By the requirements of this function.
        Self {
            id: 0,
            iova,
            pages,
            dropped: false,
            vdev,
            unpin,
        }
    }

    /// Returns the number of pages.
    pub(super) fn count(&self) -> usize {
        self.pages.len()
    }

    /// Returns whether some of the pages are in the `length` bytes at `iova`.
    fn overlaps(&self, iova: DmaAddress, length: u64) -> bool {
        overlap(self.iova, bytes(self.pages.len()), iova, length)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, so many pages are pinned there for `vdev`, which is open.
        unsafe { (self.unpin)(self.vdev, self.iova, self.pages.len()) };
    }
}

/// Returns the size of `count` pages in bytes.
fn bytes(count: usize) -> u64 {
    (count as u64).saturating_mul(PAGE_SIZE as u64)
}

/// Returns whether two ranges, of an address and a size each, have a byte in common.
fn overlap(one: DmaAddress, size: u64, other: DmaAddress, length: u64) -> bool {
    // Their last bytes, as the end may be more than an address can be.
    let last = one.saturating_add(size.saturating_sub(1));
    let other_last = other.saturating_add(length.saturating_sub(1));
    size > 0 && length > 0 && one <= other_last && other <= last
}

impl State {
    /// Returns whether pages at `iova` have been unmapped just now.
    fn is_quiet(&self, iova: DmaAddress, count: usize) -> bool {
        let unmapped = self.unmapped.iter().flatten();
        unmapped
            .filter(|other| overlap(iova, bytes(count), other.iova, other.length))
            .any(Unmapped::is_recent)
    }

    /// Remembers what is being unmapped, in place of what was unmapped longest ago.
    fn set_unmapped(&mut self, iova: DmaAddress, length: u64) {
        let when = Instant::now();
        self.unmapped.rotate_right(1);
        self.unmapped[0] = Some(Unmapped { iova, length, when });
    }

    /// Returns the pin `id`, if it is still there.
    fn find(&self, id: u64) -> Option<usize> {
        self.pins.binary_search_by_key(&id, |pin| pin.id).ok()
    }
}

impl Pins {
    pub(super) fn new() -> Result<Arc<Self>> {
        let init = pin_init!(Self {
            state <- new_mutex!(State {
                pins: KVec::new(),
                next: 0,
                busy: 0,
                unmapped: [const { None }; UNMAPPED],
            }),
            idle <- new_condvar!(),
            work <- new_work!("vfio::Pins::work"),
        });
        Arc::pin_init(init, GFP_KERNEL)
    }

    /// Called before `count` pages are pinned at `iova`. If this succeeds, [`finish`](Self::finish)
    /// must follow.
    ///
    /// Fails with [`EBUSY`] if userspace keeps unmapping the pages, and with [`ENOMEM`].
    pub(super) fn begin(&self, iova: DmaAddress, count: usize) -> Result {
        if self.state.lock().is_quiet(iova, count) {
            fsleep(QUIET);
        }

        let mut state = self.state.lock();
        if state.is_quiet(iova, count) {
            return Err(EBUSY);
        }
        // There is room for all who are pinning.
        let additional = state.busy + 1;
        state.pins.reserve(additional, GFP_KERNEL)?;
        state.busy += 1;
        Ok(())
    }

    /// Takes over what was pinned after [`begin`](Self::begin), and returns the name of it.
    pub(super) fn finish(&self, pin: Option<Pinned>) -> Option<u64> {
        let mut state = self.state.lock();
        self.less_busy(&mut state);

        let mut pin = pin?;
        let id = state.next;
        state.next += 1;
        pin.id = id;
        // There is room, which `begin` has made.
        state.pins.push_within_capacity(pin).ok()?;
        Some(id)
    }

    fn less_busy(&self, state: &mut State) {
        state.busy -= 1;
        if state.busy == 0 {
            self.idle.notify_all();
        }
    }

    /// Unpins those pages that `which` is true for.
    fn unpin(&self, which: impl Fn(&Pinned) -> bool) {
        let mut state = self.state.lock();
        while let Some(index) = state.pins.iter().position(&which) {
            let Ok(pin) = state.pins.remove(index) else {
                break;
            };
            state.busy += 1;
            drop(state);

            // This unpins the pages, without the lock.
            drop(pin);

            state = self.state.lock();
            self.less_busy(&mut state);
        }
    }

    /// Unpins the pages that are in the `length` bytes at `iova`.
    pub(super) fn unmap(&self, iova: DmaAddress, length: u64) {
        // From now on others do not pin them.
        self.state.lock().set_unmapped(iova, length);
        self.unpin(|pin| pin.overlaps(iova, length));

        let (attempts, delay) = PATIENCE;
        for _ in 0..attempts {
            if self.state.lock().busy == 0 {
                break;
            }
            fsleep(delay);
            self.unpin(|pin| pin.overlaps(iova, length));
        }
    }

    /// Unpins all pages, as the device is being closed. Nobody pins pages any more.
    pub(super) fn close(&self) {
        self.unpin(|_| true);

        let mut state = self.state.lock();
        state.unmapped = [const { None }; UNMAPPED];
        // The work item may still be unpinning some.
        while state.busy > 0 {
            self.idle.wait(&mut state);
        }
    }

    /// Calls `f` with the pages `id`, which stay pinned until it returns.
    ///
    /// Fails with [`ENXIO`] if they are no longer pinned.
    pub(super) fn with_pages<R>(
        &self,
        id: u64,
        f: impl FnOnce(&[*mut bindings::page]) -> R,
    ) -> Result<R> {
        let state = self.state.lock();
        let index = state.find(id).ok_or(ENXIO)?;
        Ok(f(&state.pins[index].pages))
    }

    /// Says that nobody uses the pages `id` any more. They are unpinned later.
    pub(super) fn release(self: &Arc<Self>, id: u64) {
        let mut state = self.state.lock();
        if let Some(index) = state.find(id) {
            state.pins[index].dropped = true;
            drop(state);
            // If the work is queued already, the reference is dropped.
            let _ = workqueue::system().enqueue::<Arc<Self>, 0>(self.clone());
        }
    }
}

impl WorkItem for Pins {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.unpin(|pin| pin.dropped);
    }
}
