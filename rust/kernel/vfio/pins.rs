// SPDX-License-Identifier: GPL-2.0-only

//! The pages that are pinned for a device, and who unpins them.

use crate::{
    bindings,
    dma::DmaAddress,
    new_mutex,
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    },
    time::{
        Delta,
        Instant,
        Monotonic, //
    },
};

/// The pages that are pinned for a device.
#[pin_data]
pub struct Pins {
    #[pin]
    pub(super) state: Mutex<State>,
}

/// What the lock of [`Pins`] protects.
pub(super) struct State {
    /// The pins, in the order of their `id`.
    pub(super) pins: KVec<Pinned>,
    /// The `id` of the next one.
    pub(super) next: u64,
    /// What userspace has unmapped last, and when.
    unmapped: Option<(DmaAddress, u64, Instant<Monotonic>)>,
}

/// How long pages are not pinned after userspace has unmapped them.
///
/// While it unmaps, the type1 IOMMU driver drops its lock to call
/// [`Operations::dma_unmap`](super::Operations::dma_unmap), then looks for pinned pages again, and
/// gives up with a `BUG_ON()` when it found some ten times. Who pins in between must not get ahead
/// of it so often.
pub(super) const QUIET: Delta = Delta::from_millis(10);

/// Pages that are pinned.
///
/// # Invariants
///
/// `pages` are pinned for `vdev` from `iova` on, which is a multiple of the page size. `unpin` is
/// for the type of the device, which is open.
pub(super) struct Pinned {
    pub(super) id: u64,
    pub(super) iova: DmaAddress,
    pub(super) pages: KVec<*mut bindings::page>,
    pub(super) vdev: *mut bindings::vfio_device,
    pub(super) unpin: unsafe fn(*mut bindings::vfio_device, DmaAddress, usize),
}

// SAFETY: The pages and the device may be used by any task.
unsafe impl Send for Pinned {}

impl Pinned {
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
    pub(super) fn is_quiet(&self, iova: DmaAddress, count: usize) -> bool {
        self.unmapped.as_ref().is_some_and(|(other, length, when)| {
            overlap(iova, bytes(count), *other, *length) && when.elapsed() < QUIET
        })
    }

    /// Returns the pin `id`, if it is still there.
    pub(super) fn find(&self, id: u64) -> Option<usize> {
        self.pins.binary_search_by_key(&id, |pin| pin.id).ok()
    }
}

impl Pins {
    pub(super) fn new() -> Result<Arc<Self>> {
        let init = pin_init!(Self {
            state <- new_mutex!(State {
                pins: KVec::new(),
                next: 0,
                unmapped: None,
            }),
        });
        Arc::pin_init(init, GFP_KERNEL)
    }

    /// Unpins the pages that are in the `length` bytes at `iova`.
    pub(super) fn unmap(&self, iova: DmaAddress, length: u64) {
        let mut state = self.state.lock();
        state.pins.retain(|pin| !pin.overlaps(iova, length));
        state.unmapped = Some((iova, length, Instant::now()));
    }

    /// Unpins all pages, as the device is being closed.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.pins.clear();
        state.unmapped = None;
    }
}
