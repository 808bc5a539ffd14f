// SPDX-License-Identifier: GPL-2.0-only

//! Access to the memory that userspace has mapped for a device without an IOMMU of its own.
//!
//! ```
//! # use kernel::{prelude::*, vfio::{self, Device, Opened}};
//! fn fetch<T>(device: &Device<T, Opened>, data: &mut [u8]) -> Result
//! where
//!     T: vfio::Operations<Base = vfio::emulated::Base>,
//! {
//!     device.dma_read(0x1000, data)
//! }
//! ```
//!
//! What is mapped for a device on a bus is for that device, and not for its driver:
//!
//! ```ignore,compile_fail,E0599
//! # use kernel::{prelude::*, vfio::{self, dma::Access, Device, Opened}};
//! fn fetch<T>(device: &Device<T, Opened>, data: &mut [u8]) -> Result
//! where
//!     T: vfio::Operations<Base = vfio::pci::Base>,
//! {
//!     let _pages = device.pin_pages(0x1000, 1, Access::Read)?;
//!     device.dma_read(0x1000, data)
//! }
//! ```

use super::{
    emulated,
    Device,
    Opened,
    Operations, //
};
use crate::{
    bindings,
    dma::DmaAddress,
    error::to_result,
    new_condvar, new_mutex,
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        CondVar,
        Mutex, //
    },
};

/// How many [`PinnedPages`] a device has.
#[pin_data]
pub(super) struct Pins {
    #[pin]
    count: Mutex<usize>,
    #[pin]
    none: CondVar,
}

impl Pins {
    pub(super) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            count <- new_mutex!(0),
            none <- new_condvar!(),
        })
    }

    fn add(&self) {
        *self.count.lock() += 1;
    }

    fn remove(&self) {
        let mut count = self.count.lock();
        *count -= 1;
        if *count == 0 {
            self.none.notify_all();
        }
    }

    /// Waits until there are none.
    pub(super) fn wait_for_none(&self) {
        let mut count = self.count.lock();
        while *count > 0 {
            self.none.wait(&mut count);
        }
    }
}

/// What [`PinnedPages`] are pinned for.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Access {
    /// To be read.
    Read,
    /// To be read and written.
    ReadWrite,
}

impl<T: Operations<Base = emulated::Base>> Device<T, Opened> {
    /// The most pages that can be pinned at a time.
    pub const MAX_PINNED_PAGES: usize = PAGE_SIZE / size_of::<usize>();

    /// Reads what userspace has mapped at `iova`.
    #[inline]
    pub fn dma_read(&self, iova: DmaAddress, data: &mut [u8]) -> Result {
        // SAFETY: `data` is valid for writes of its length.
        unsafe { self.dma_rw(iova, data.as_mut_ptr(), data.len(), false) }
    }

    /// Writes to what userspace has mapped at `iova`.
    #[inline]
    pub fn dma_write(&self, iova: DmaAddress, data: &[u8]) -> Result {
        // SAFETY: `data` is valid for reads of its length, and is not written to.
        unsafe { self.dma_rw(iova, data.as_ptr().cast_mut(), data.len(), true) }
    }

    /// # Safety
    ///
    /// `data` must be valid for `len` bytes: for reads if `write`, for writes otherwise.
    unsafe fn dma_rw(&self, iova: DmaAddress, data: *mut u8, len: usize, write: bool) -> Result {
        // SAFETY: By the type invariants, the device is open. By the requirements of this function,
        // `data` is valid for what is done with it.
        to_result(unsafe { bindings::vfio_dma_rw(self.as_raw(), iova, data.cast(), len, write) })
    }

    /// Pins `count` pages of what userspace has mapped at `iova`, rounded down to whole pages.
    ///
    /// They are pinned until the returned value is dropped. Userspace can unmap them meanwhile, but
    /// waits for that: they are not for work that takes long.
    ///
    /// The driver must implement [`Operations::dma_unmap`].
    pub fn pin_pages(
        &self,
        iova: DmaAddress,
        count: usize,
        access: Access,
    ) -> Result<PinnedPages<'_, T>> {
        const_assert!(
            T::HAS_DMA_UNMAP,
            "a driver that pins pages must have `dma_unmap`"
        );

        if count > Self::MAX_PINNED_PAGES {
            return Err(E2BIG);
        }
        let prot = match access {
            Access::Read => bindings::IOMMU_READ,
            Access::ReadWrite => bindings::IOMMU_READ | bindings::IOMMU_WRITE,
        };
        let mut pages = KVec::with_capacity(count, GFP_KERNEL)?;

        self.pins.add();
        // SAFETY: By the type invariants, the device is open. `pages` has room for `count`
        // pointers.
        // CAST: `count` is at most `MAX_PINNED_PAGES`, and the flags are small as well.
        let ret = unsafe {
            bindings::vfio_pin_pages(
                self.as_raw(),
                iova,
                count as c_int,
                prot as c_int,
                pages.as_mut_ptr(),
            )
        };
        let Ok(pinned) = usize::try_from(ret) else {
            self.pins.remove();
            return Err(Error::from_errno(ret));
        };
        // SAFETY: The function has written so many pointers, which is at most `count`.
        unsafe { pages.inc_len(pinned) };

        // INVARIANT: The function has pinned these pages, and they were counted above.
        let pages = PinnedPages {
            device: self,
            iova,
            pages,
        };
        if pinned < count {
            return Err(EFAULT);
        }
        Ok(pages)
    }
}

/// Pages of userspace that stay where they are.
///
/// # Invariants
///
/// `pages` are those that are pinned for `device` from `iova` on. They are counted in its `pins`.
pub struct PinnedPages<'a, T: Operations<Base = emulated::Base>> {
    device: &'a Device<T, Opened>,
    iova: DmaAddress,
    pages: KVec<*mut bindings::page>,
}

impl<T: Operations<Base = emulated::Base>> PinnedPages<'_, T> {
    /// Returns the page frames, in the order of the addresses that userspace has given them.
    pub fn frames(&self) -> impl ExactSizeIterator<Item = usize> + '_ {
        self.pages.iter().map(|page| {
            // SAFETY: By the type invariants, the page is pinned, and therefore valid.
            unsafe { bindings::page_to_pfn(*page) }
        })
    }
}

impl<T: Operations<Base = emulated::Base>> Drop for PinnedPages<'_, T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, so many pages are pinned there, and the device is open.
        // CAST: There are at most `MAX_PINNED_PAGES`.
        unsafe {
            bindings::vfio_unpin_pages(self.device.as_raw(), self.iova, self.pages.len() as c_int)
        };
        self.device.pins.remove();
    }
}
