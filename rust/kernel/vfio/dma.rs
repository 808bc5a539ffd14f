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
//! # use kernel::{prelude::*, vfio::{self, Device, Opened}};
//! fn fetch<T>(device: &Device<T, Opened>, data: &mut [u8]) -> Result
//! where
//!     T: vfio::Operations<Base = vfio::pci::Base>,
//! {
//!     device.dma_read(0x1000, data)
//! }
//! ```
//!
//! While a region is being mapped, memory of userspace cannot be accessed, since the lock that this
//! needs is held:
//!
//! ```ignore,compile_fail,E0599
//! # use kernel::{prelude::*, vfio::{self, Device, Mmap}};
//! fn fetch<T>(device: &Device<T, Mmap>, data: &mut [u8]) -> Result
//! where
//!     T: vfio::Operations<Base = vfio::emulated::Base>,
//! {
//!     device.dma_read(0x1000, data)
//! }
//! ```
//!
//! # Pinned pages
//!
//! [`Device::pin_pages`] pins pages for as long as the driver likes, but userspace can unmap them
//! at any time. It then is the abstraction that unpins them, after [`Operations::dma_unmap`] and
//! before userspace goes on. So nobody waits for a driver, whatever it does with its
//! [`PinnedPages`]: these are a name for the pages, and no longer have access to them.
//!
//! # Limits
//!
//! Two defects of the type1 IOMMU driver concern all who pin, in C as well. When userspace unmaps
//! while pages there are pinned again and again, it gives up with a `BUG_ON()`; pages that were
//! unmapped are not pinned for some milliseconds, which makes that unlikely. When two tasks unmap
//! pinned pages at a time, each can hold the lock that the other waits for (`device_list_lock` and
//! `lock` of `struct vfio_iommu`). IOMMUFD has neither.

use super::{
    emulated,
    pins::{
        Pinned,
        Pins, //
    },
    shared,
    Device,
    Opened,
    Operations, //
};
use crate::{
    bindings,
    dma::DmaAddress,
    error::to_result,
    page::PAGE_SIZE,
    prelude::*,
    sync::Arc, //
};

/// What pages are pinned for.
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
    ///
    /// May sleep. Fails if not all of it is mapped, with the error of the IOMMU backend.
    #[inline]
    pub fn dma_read(&self, iova: DmaAddress, data: &mut [u8]) -> Result {
        // SAFETY: `data` is valid for writes of its length.
        unsafe { self.dma_rw(iova, data.as_mut_ptr(), data.len(), false) }
    }

    /// Writes to what userspace has mapped at `iova`.
    ///
    /// May sleep. Fails if not all of it is mapped to be written, with the error of the IOMMU
    /// backend.
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
    /// They stay pinned until the returned value is dropped, userspace unmaps them, or the device
    /// is closed. The driver must implement [`Operations::dma_unmap`].
    ///
    /// May sleep. Fails with [`E2BIG`] for more than [`MAX_PINNED_PAGES`](Self::MAX_PINNED_PAGES),
    /// with [`EINVAL`] if `count` is 0, with [`EBUSY`] if userspace has just unmapped some of the
    /// pages several times, with [`EFAULT`] if not all of them are mapped, and with the errors of
    /// the IOMMU backend.
    pub fn pin_pages(&self, iova: DmaAddress, count: usize, access: Access) -> Result<PinnedPages> {
        const_assert!(
            T::HAS_DMA_UNMAP,
            "a driver that pins pages must have `dma_unmap`"
        );

        if count > Self::MAX_PINNED_PAGES {
            return Err(E2BIG);
        }
        if count == 0 {
            return Err(EINVAL);
        }
        let prot = match access {
            Access::Read => bindings::IOMMU_READ,
            Access::ReadWrite => bindings::IOMMU_READ | bindings::IOMMU_WRITE,
        };
        // CAST: A page has far less than 2^32 bytes.
        let iova = iova - iova % PAGE_SIZE as DmaAddress;
        let mut pages = KVec::with_capacity(count, GFP_KERNEL)?;

        // SAFETY: By the type invariants, the device is open.
        let pins = unsafe { &self.state().base };
        pins.begin(iova, count)?;

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
            pins.finish(None);
            return Err(Error::from_errno(ret));
        };
        // SAFETY: The function has written so many pointers, which is at most `count`.
        unsafe { pages.inc_len(pinned) };

        // SAFETY: The function has pinned these pages for the device, which is open: `close_device`
        // unpins them.
        let pin = unsafe { Pinned::new(iova, pages, self.as_raw(), Self::unpin) };
        // What is not all is unpinned here.
        let pin = Some(pin).filter(|pin| pin.count() == count);
        let id = pins.finish(pin).ok_or(EFAULT)?;
        Ok(PinnedPages {
            pins: pins.clone(),
            id,
            count,
            access,
        })
    }

    /// Unpins `count` pages at `iova`.
    ///
    /// # Safety
    ///
    /// `vdev` must be an open `Device<T>`, for which so many pages are pinned there.
    unsafe fn unpin(vdev: *mut bindings::vfio_device, iova: DmaAddress, count: usize) {
        // SAFETY: By the requirements of this function.
        // CAST: There are at most `MAX_PINNED_PAGES`.
        unsafe { bindings::vfio_unpin_pages(vdev, iova, count as c_int) };
    }
}

/// Pages of userspace that stay where they are until it unmaps them.
///
/// They can be kept in the open data, or anywhere else, and used and dropped in any callback. When
/// userspace has unmapped one of them, or when the device has been closed, the methods fail with
/// [`ENXIO`].
///
/// Dropping them does not wait: a work item unpins the pages later. The methods and the drop take a
/// mutex for a short time, and so may sleep.
pub struct PinnedPages {
    pins: Arc<Pins>,
    id: u64,
    count: usize,
    access: Access,
}

impl PinnedPages {
    /// Returns the size in bytes, a multiple of the page size.
    #[expect(clippy::len_without_is_empty)]
    #[inline]
    pub fn len(&self) -> usize {
        self.count * PAGE_SIZE
    }

    /// Calls `f` for the pieces of `len` bytes at `offset` that are in one page each, with the
    /// address of the piece, where it is in the `len` bytes, and its size.
    fn each_piece(
        &self,
        offset: usize,
        len: usize,
        mut f: impl FnMut(*mut u8, usize, usize),
    ) -> Result {
        if offset.checked_add(len).is_none_or(|end| end > self.len()) {
            return Err(EINVAL);
        }
        self.pins.with_pages(self.id, |pages| {
            let mut done = 0;
            while done < len {
                let at = offset + done;
                let in_page = at % PAGE_SIZE;
                let size = (PAGE_SIZE - in_page).min(len - done);

                // SAFETY: The page is pinned, and so is valid.
                let start = unsafe { bindings::kmap_local_page(pages[at / PAGE_SIZE]) };
                f(start.cast::<u8>().wrapping_add(in_page), done, size);
                // SAFETY: `start` was returned by `kmap_local_page()`, and is the last such address
                // of this task.
                unsafe { bindings::kunmap_local(start) };
                done += size;
            }
        })
    }

    /// Copies what is at `offset`, in bytes, to `data`.
    ///
    /// May sleep. Fails with [`EINVAL`] if that is not within the pages, and with [`ENXIO`] if they
    /// are no longer pinned.
    pub fn read(&self, offset: usize, data: &mut [u8]) -> Result {
        let len = data.len();
        let data = data.as_mut_ptr();
        self.each_piece(offset, len, |page, at, size| {
            // SAFETY: `page` is mapped and valid for `size` bytes, and so is `data` from `at` on.
            unsafe { shared::read(page, data.add(at), size) }
        })
    }

    /// Copies `data` to `offset`, in bytes.
    ///
    /// May sleep. Fails with [`EACCES`] if the pages are pinned to be read only, and as
    /// [`read`](Self::read) does.
    pub fn write(&self, offset: usize, data: &[u8]) -> Result {
        if self.access == Access::Read {
            return Err(EACCES);
        }
        self.each_piece(offset, data.len(), |page, at, size| {
            // SAFETY: `page` is mapped and valid for `size` bytes, and so is `data` from `at` on.
            unsafe { shared::write(data.as_ptr().add(at), page, size) }
        })
    }

    /// Returns the numbers of the page frames, in the order of the addresses.
    ///
    /// They are for hardware that the driver has told to access them, and that it stops when
    /// [`Operations::dma_unmap`] is called for one of the pages.
    ///
    /// May sleep. Fails with [`ENXIO`] if the pages are no longer pinned, and with [`ENOMEM`].
    pub fn frames(&self) -> Result<KVec<usize>> {
        let mut frames = KVec::with_capacity(self.count, GFP_KERNEL)?;
        self.pins.with_pages(self.id, |pages| -> Result {
            for page in pages {
                // SAFETY: The page is pinned, and so is valid.
                frames.push_within_capacity(unsafe { bindings::page_to_pfn(*page) })?;
            }
            Ok(())
        })??;
        Ok(frames)
    }
}

impl Drop for PinnedPages {
    fn drop(&mut self) {
        self.pins.release(self.id);
    }
}
