// SPDX-License-Identifier: GPL-2.0-only

//! Regions that userspace exports as dma-bufs, for DMA by other devices.

#[cfg(CONFIG_VFIO_PCI_DMABUF)]
use crate::error::{
    from_err_ptr,
    to_result, //
};
use crate::{
    bindings,
    io::ResourceSize,
    page::PAGE_SIZE,
    pci,
    prelude::*, //
};
use core::{
    marker::PhantomData,
    ops::Range, //
};

/// A lifetime that can neither be shortened nor extended, and so stands for one request only.
type Brand<'request> = PhantomData<fn(&'request ()) -> &'request ()>;

/// Ranges of a region that userspace wants to export as a dma-buf.
///
/// It is answered once, by value: what says where the ranges are in physical memory takes it, and
/// returns an [`Exported`]. No answer is a physical address. What is not in a BAR of the device
/// that the request is for, and in one that vfio-pci-core has claimed, cannot be named.
///
/// The dma-buf is revoked by vfio-pci-core: while the memory of the device is disabled, when the
/// device is reset, and for good when it is closed.
///
/// # Examples
///
/// ```
/// use kernel::{prelude::*, vfio::{self, pci::dma_buf::{Export, Exported}, Device, InRegion}};
///
/// /// Keeps all BARs from other devices but BAR 2, of which they get the second half.
/// fn export<'request, T>(
///     device: &Device<T, InRegion>,
///     export: Export<'request>,
/// ) -> Result<Exported<'request>>
/// where
///     T: vfio::Operations<Base = vfio::pci::Base>,
/// {
///     if export.region() != 2 {
///         return Err(EACCES);
///     }
///     let len = device.parent().resource_len(2)?;
///     export.part_of_bar(2, len / 2..len)
/// }
/// ```
///
/// # Invariants
///
/// `core` is open. `provider` is valid for a write. `ranges` and `phys_vec` have `count` elements
/// each, which nobody else uses. The offsets and the lengths of the former are multiples of
/// the page size. All this holds until the request ends, which `self` does not outlive.
#[cfg_attr(not(CONFIG_VFIO_PCI_DMABUF), expect(dead_code))]
pub struct Export<'request> {
    core: *mut bindings::vfio_pci_core_device,
    region: u32,
    provider: *mut *mut bindings::p2pdma_provider,
    phys_vec: *mut bindings::phys_vec,
    ranges: *mut bindings::vfio_region_dma_range,
    count: usize,
    _brand: Brand<'request>,
}

/// The answer to an [`Export`]: where its ranges are is known.
///
/// Only what has answered one makes it, and only for that one. One that is made up is refused:
///
/// ```
/// # use kernel::{prelude::*, vfio::pci::dma_buf::{Export, Exported}};
/// fn export<'request>(export: Export<'request>) -> Result<Exported<'request>> {
///     export.core_export()
/// }
/// ```
///
/// ```ignore,compile_fail,E0451
/// # use core::marker::PhantomData;
/// # use kernel::{prelude::*, vfio::pci::dma_buf::{Export, Exported}};
/// fn export<'request>(_export: Export<'request>) -> Result<Exported<'request>> {
///     Ok(Exported { _brand: PhantomData })
/// }
/// ```
///
/// and an answer cannot be replaced by another:
///
/// ```ignore,compile_fail,E0382
/// # use kernel::{prelude::*, vfio::pci::dma_buf::{Export, Exported}};
/// fn export<'request>(export: Export<'request>) -> Result<Exported<'request>> {
///     export.core_export()?;
///     export.part_of_bar(0, 0..4096)
/// }
/// ```
#[must_use]
pub struct Exported<'request> {
    _brand: Brand<'request>,
}

impl<'request> Export<'request> {
    /// # Safety
    ///
    /// To be called with the arguments that vfio-pci-core passes to `get_dmabuf_phys`, for a
    /// `'request` that ends before that returns.
    #[inline]
    #[cfg_attr(not(CONFIG_VFIO_PCI_DMABUF), expect(dead_code))]
    pub(super) unsafe fn new(
        core: *mut bindings::vfio_pci_core_device,
        provider: *mut *mut bindings::p2pdma_provider,
        region: u32,
        phys_vec: *mut bindings::phys_vec,
        ranges: *mut bindings::vfio_region_dma_range,
        count: usize,
    ) -> Self {
        // INVARIANT: By the requirements of this function and by `vfio_pci_core_feature_dma_buf()`,
        // which has checked the ranges with `validate_dmabuf_input()`, and frees them, and what has
        // been allocated for as many, afterwards.
        Self {
            core,
            region,
            provider,
            phys_vec,
            ranges,
            count,
            _brand: PhantomData,
        }
    }

    /// Returns the number of the region, which is that of a BAR of the device.
    #[inline]
    pub fn region(&self) -> u32 {
        self.region
    }

    #[inline]
    fn parent(&self) -> &pci::Device {
        // SAFETY: By the type invariants, the device is open, and so `pdev`, which
        // `vfio_pci_core_init_dev()` set, is bound to its driver.
        // CAST: `pci::Device` is a transparent wrapper of `struct pci_dev`.
        unsafe { &*(*self.core).pdev.cast() }
    }

    /// Answers that the region is the BAR of the same number, as vfio-pci-core does.
    ///
    /// Fails with [`EINVAL`] if the BAR is not one of memory, or if a range is not in it, and with
    /// [`EOVERFLOW`] if there is no such address.
    #[inline]
    pub fn core_export(self) -> Result<Exported<'request>> {
        self.whole_bar(self.region)?;
        Ok(Exported {
            _brand: PhantomData,
        })
    }

    /// Answers that the region is a part of BAR `bar`: what is at offset 0 of the region is at
    /// `part.start` of the BAR, in bytes.
    ///
    /// Fails with [`EINVAL`] if the BAR does not have that part, which starts and ends at a
    /// multiple of the page size, with the error that vfio-pci-core had when it mapped the BAR, and
    /// else as [`core_export`](Self::core_export) does.
    #[inline]
    pub fn part_of_bar(self, bar: u32, part: Range<ResourceSize>) -> Result<Exported<'request>> {
        // CAST: The size of a page is one of the smaller sizes of a BAR.
        let page = PAGE_SIZE as ResourceSize;
        if part.start >= part.end || part.end > self.parent().resource_len(bar)? {
            return Err(EINVAL);
        }
        // DMA is mapped by the page: nothing else must be in those of the part.
        if part.start % page != 0 || part.end % page != 0 {
            return Err(EINVAL);
        }

        // This also sets the provider. A range that is not in the BAR is not in a part of it.
        self.whole_bar(bar)?;
        let start = self.parent().resource_start(bar)? + part.start;
        self.fill(start, part.end - part.start)?;
        Ok(Exported {
            _brand: PhantomData,
        })
    }

    /// Lets vfio-pci-core say where the ranges are if they are those of a BAR.
    // What calls vfio-pci-core is inline, and so is part of the driver: both can be modules.
    #[cfg(CONFIG_VFIO_PCI_DMABUF)]
    #[inline]
    fn whole_bar(&self, bar: u32) -> Result {
        // SAFETY: By the type invariants, the device is open. `vfio_pci_core_enable()` claims and
        // maps the BARs, and sets all elements, before it is, and `vfio_pci_core_disable()` unmaps
        // them when it is not any more.
        let barmap = unsafe { (*self.core).barmap };
        // Of what it has not claimed it cannot revoke the dma-buf.
        from_err_ptr(*barmap.get(bar as usize).ok_or(EINVAL)?)?;

        // SAFETY: By the type invariants, all pointers are valid for what the function does, which
        // is to read `count` ranges and to write the provider and as many addresses. `bar` is the
        // number of a BAR, as `barmap` has shown.
        to_result(unsafe {
            bindings::vfio_pci_core_get_dmabuf_phys(
                self.core,
                self.provider,
                bar,
                self.phys_vec,
                self.ranges,
                self.count,
            )
        })
    }

    /// Says that the ranges are those of `len` bytes of physical memory at `start`, which must be
    /// in a BAR.
    #[cfg(CONFIG_VFIO_PCI_DMABUF)]
    #[inline]
    fn fill(&self, start: ResourceSize, len: ResourceSize) -> Result {
        // SAFETY: By the type invariants, the function can read `count` ranges and write as many
        // addresses.
        to_result(unsafe {
            bindings::vfio_pci_core_fill_phys_vec(
                self.phys_vec,
                self.ranges,
                self.count,
                start,
                len,
            )
        })
    }

    // Without `CONFIG_VFIO_PCI_DMABUF`, vfio-pci-core knows no such requests.
    #[cfg(not(CONFIG_VFIO_PCI_DMABUF))]
    fn whole_bar(&self, _bar: u32) -> Result {
        Err(EOPNOTSUPP)
    }

    #[cfg(not(CONFIG_VFIO_PCI_DMABUF))]
    fn fill(&self, _start: ResourceSize, _len: ResourceSize) -> Result {
        Err(EOPNOTSUPP)
    }
}
