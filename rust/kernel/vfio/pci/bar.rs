// SPDX-License-Identifier: GPL-2.0-only

//! BARs of memory, for the driver of a device that userspace has open.

use super::{
    super::{
        Device,
        InRegion,
        Operations, //
    },
    Base, //
};
use crate::{
    bindings,
    error::{
        from_err_ptr,
        to_result, //
    },
    io::{
        IoBackend,
        IoBase,
        IoCapable,
        Region, //
    },
    prelude::*,
    ptr::KnownSize, //
};
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};

impl<T: Operations<Base = Base>> Device<T, InRegion> {
    /// Wakes the device up and returns its BAR `index`, of which at least `SIZE` bytes are needed.
    ///
    /// May sleep. Fails with [`EINVAL`] if the BAR is smaller or is not one of memory, with the
    /// error that vfio-pci-core had when it mapped the BAR, and with [`EIO`] if the device does not
    /// wake up.
    pub fn bar_sized<const SIZE: usize>(&self, index: u32) -> Result<Bar<'_, SIZE>> {
        let core = self.as_core();
        // SAFETY: `vfio_pci_core_init_dev()` set `pdev`, which does not change.
        let pdev = unsafe { (*core).pdev };

        // SAFETY: The device is open. `vfio_pci_core_enable()` mapped its BARs before the driver's
        // `open` was called, and `vfio_pci_core_disable()` unmaps them after the open data was
        // dropped.
        let barmap = unsafe { (*core).barmap };
        let io = *barmap.get(index as usize).ok_or(EINVAL)?;
        let io = NonNull::new(from_err_ptr(io)?).ok_or(EINVAL)?;

        // SAFETY: `pdev` is valid, and `barmap` has shown that it has a BAR `index`.
        let flags = unsafe { (*pdev).resource[index as usize].flags };
        if flags & bindings::IORESOURCE_MEM as usize == 0 {
            return Err(EINVAL);
        }

        let len = usize::try_from(self.parent().resource_len(index)?)?;
        let io = Region::<SIZE>::ptr_try_from_raw_parts_mut(io.as_ptr().cast(), len)?;

        // SAFETY: The device is open, and by `vfio_pci_core_enable()` both are set for that time.
        let (msix_bar, table) = unsafe {
            let start = (*core).msix_offset as usize;
            (
                (*core).msix_bar,
                start..start + usize::from((*core).msix_size),
            )
        };
        // An interrupt vector belongs to vfio-pci-core, and so does its place in the table.
        let table = if u32::from(msix_bar) == index {
            io.addr() + table.start..io.addr() + table.end
        } else {
            0..0
        };

        // SAFETY: `pdev` is valid.
        to_result(unsafe { bindings::pm_runtime_resume_and_get(&raw mut (*pdev).dev) })
            .map_err(|_| EIO)?;

        // INVARIANT: The BAR is one of memory, and is mapped at `io` for as long as the device is
        // open, which it is for as long as the reference to it lives. The device was just resumed.
        Ok(Bar {
            core,
            io,
            table_start: table.start,
            table_end: table.end,
            _device: PhantomData,
        })
    }

    /// Wakes the device up and returns its BAR `index`, as [`bar_sized`](Self::bar_sized) does.
    #[inline]
    pub fn bar(&self, index: u32) -> Result<Bar<'_>> {
        self.bar_sized(index)
    }
}

/// A BAR of memory, for as long as the device is open.
///
/// It is accessed by the methods of [`Io`](crate::io::Io), as little-endian, in 8, 16, 32 and 64
/// bits. It can be kept in the open data.
///
/// The device is kept awake. So the low-power features of userspace
/// (`VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY`) succeed while there is a `Bar`, but the device is not
/// suspended, and the mode only ends when userspace says so. A driver that wants these features to
/// work does not keep one in the open data. One that is forgotten keeps the device awake for ever.
///
/// An access waits for a reset that is in progress; so none is to be made
/// with a lock held that [`Driver::reset_prepare`](super::Driver::reset_prepare) or
/// [`Driver::reset_done`](super::Driver::reset_done) takes. If userspace has disabled the memory of
/// the device, or if the MSI-X table is at the place, which belongs to vfio-pci-core, a read gives
/// a value of all ones, and a write is lost, as if nobody answered on the bus.
///
/// # Examples
///
/// ```
/// use kernel::{io::Io, prelude::*, vfio::{self, Device, InRegion}};
///
/// /// Reads a register of BAR 0, and writes to the one behind.
/// fn acknowledge<T>(device: &Device<T, InRegion>) -> Result
/// where
///     T: vfio::Operations<Base = vfio::pci::Base>,
/// {
///     let bar = device.bar_sized::<0x20>(0)?;
///     let pending = bar.read32(0x10);
///     bar.write32(pending, 0x14);
///     Ok(())
/// }
/// ```
///
/// # Invariants
///
/// `io` is where the BAR, which is one of memory, of the open device `core` is mapped. The MSI-X
/// table is from `table_start` to `table_end` there, which are equal if it is in another BAR.
/// `self` owns a reference that keeps the device awake.
pub struct Bar<'a, const SIZE: usize = 0> {
    core: *mut bindings::vfio_pci_core_device,
    io: *mut Region<SIZE>,
    table_start: usize,
    table_end: usize,
    _device: PhantomData<&'a ()>,
}

// SAFETY: The accessors of vfio-pci-core, and the reference, may be used by any task.
unsafe impl<const SIZE: usize> Send for Bar<'_, SIZE> {}

// SAFETY: The accessors of vfio-pci-core may be used by several tasks at a time.
unsafe impl<const SIZE: usize> Sync for Bar<'_, SIZE> {}

impl<const SIZE: usize> Drop for Bar<'_, SIZE> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, the device is open, so that its parent is valid, and the
        // reference is owned by `self`.
        unsafe { bindings::pm_runtime_put(&raw mut (*(*self.core).pdev).dev) };
    }
}

impl<'a, const SIZE: usize> IoBase<'a> for &'a Bar<'_, SIZE> {
    type Backend = BarBackend;
    type Target = Region<SIZE>;

    #[inline]
    fn as_view(self) -> BarView<'a, Region<SIZE>> {
        // INVARIANT: By the type invariants of `Bar`, which lives for `'a`.
        BarView {
            core: self.core,
            ptr: self.io,
            table_start: self.table_start,
            table_end: self.table_end,
            _bar: PhantomData,
        }
    }
}

/// A view of a [`Bar`], or of a part of one.
///
/// # Invariants
///
/// `ptr` is within the BAR, which lives for `'a` and which the other fields are copied from.
pub struct BarView<'a, T: ?Sized> {
    core: *mut bindings::vfio_pci_core_device,
    ptr: *mut T,
    table_start: usize,
    table_end: usize,
    _bar: PhantomData<&'a ()>,
}

impl<T: ?Sized> Copy for BarView<'_, T> {}
impl<T: ?Sized> Clone for BarView<'_, T> {
    #[inline]
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> BarView<'_, T> {
    /// Returns whether the MSI-X table has a byte in common with the view.
    #[inline]
    fn is_in_table(&self) -> bool {
        self.ptr.addr() < self.table_end && self.table_start < self.ptr.addr() + size_of::<T>()
    }
}

impl<'a, T: ?Sized + KnownSize> IoBase<'a> for BarView<'a, T> {
    type Backend = BarBackend;
    type Target = T;

    #[inline]
    fn as_view(self) -> Self {
        self
    }
}

/// The accessors of vfio-pci-core.
pub struct BarBackend;

impl IoBackend for BarBackend {
    type View<'a, T: ?Sized + KnownSize> = BarView<'a, T>;

    #[inline]
    fn as_ptr<'a, T: ?Sized + KnownSize>(view: BarView<'a, T>) -> *mut T {
        view.ptr
    }

    #[inline]
    unsafe fn project_view<'a, T: ?Sized + KnownSize, U: ?Sized + KnownSize>(
        view: Self::View<'a, T>,
        ptr: *mut U,
    ) -> Self::View<'a, U> {
        // INVARIANT: By the requirements of this function, `ptr` is within the view.
        BarView {
            core: view.core,
            ptr,
            table_start: view.table_start,
            table_end: view.table_end,
            _bar: PhantomData,
        }
    }
}

/// Implements [`IoCapable`] for an integer by two functions of vfio-pci-core.
macro_rules! impl_bar_io_capable {
    ($type:ty, $read:ident, $write:ident) => {
        impl IoCapable<$type> for BarBackend {
            #[inline]
            fn io_read(view: BarView<'_, $type>) -> $type {
                // What the core reads has the byte order of the bus.
                let mut value = <$type>::MAX;

                if !view.is_in_table() {
                    // A failure leaves the value as it is.
                    // SAFETY: By the type invariants, the device is open and `ptr` is in a BAR of
                    // it, which is one of memory.
                    unsafe { bindings::$read(view.core, true, &mut value, view.ptr.cast()) };
                }
                <$type>::from_le(value)
            }

            #[inline]
            fn io_write(view: BarView<'_, $type>, value: $type) {
                if !view.is_in_table() {
                    // SAFETY: By the type invariants, the device is open and `ptr` is in a BAR of
                    // it, which is one of memory.
                    unsafe { bindings::$write(view.core, true, value.to_le(), view.ptr.cast()) };
                }
            }
        }
    };
}

impl_bar_io_capable!(u8, vfio_pci_core_ioread8, vfio_pci_core_iowrite8);
impl_bar_io_capable!(u16, vfio_pci_core_ioread16, vfio_pci_core_iowrite16);
impl_bar_io_capable!(u32, vfio_pci_core_ioread32, vfio_pci_core_iowrite32);
impl_bar_io_capable!(u64, vfio_pci_core_ioread64, vfio_pci_core_iowrite64);
