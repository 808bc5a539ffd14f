// SPDX-License-Identifier: GPL-2.0-only

//! Regions of a driver's own, behind those that all PCI devices have.

use super::{
    super::{
        placement,
        region,
        Device,
        InRegion,
        Opening,
        Operations, //
    },
    Base,
    NUM_REGIONS, //
};
use crate::{
    bindings,
    error::{
        from_result,
        to_result,
        VTABLE_DEFAULT_ERROR, //
    },
    mm::virt::VmaNew,
    prelude::*,
    types::ForeignOwnable,
    uaccess::UserPtr, //
};
use core::marker::PhantomData;

impl<T: Operations<Base = Base>> Device<T, Opening> {
    /// Adds a region of the driver's own for as long as the device is open, and returns its index.
    ///
    /// `kind` and `subtype` tell userspace what it is. They are defined in
    /// `include/uapi/linux/vfio.h`; drivers for one vendor's devices use [`vendor_kind`].
    ///
    /// Fails with [`EOVERFLOW`] if the region is larger than
    /// [`region::MAX_SIZE`](super::super::region::MAX_SIZE) or than the address space of the
    /// kernel, with [`ENOSPC`] if there can be no more regions, and with [`ENOMEM`].
    pub fn add_region<R: Region<Driver = T>>(
        &self,
        kind: u32,
        subtype: u32,
        info: region::Info,
        region: R,
    ) -> Result<u32> {
        let size = checked_size(info.size)?;
        // SAFETY: The device is being opened, with `dev_set->lock` held: nobody else adds regions.
        let count = unsafe { (*self.as_core()).num_regions };
        let index = checked_index(count)?;
        let region = KBox::new(region, GFP_KERNEL_ACCOUNT)?.into_foreign();

        // SAFETY: The device is being opened, with `dev_set->lock` held, and no file has access:
        // nobody else uses the regions. The table is never freed, and its
        // functions are for the type of `region`.
        let ret = to_result(unsafe {
            bindings::vfio_pci_core_register_dev_region(
                self.as_core(),
                kind,
                subtype,
                &RegionTable::<R>::OPS,
                size,
                info.flags.into(),
                region,
            )
        });
        if let Err(err) = ret {
            // SAFETY: It was just returned by `into_foreign()`, and the core did not keep it.
            drop(unsafe { KBox::<R>::from_foreign(region) });
            return Err(err);
        }
        Ok(index)
    }
}

/// Checks the size of a region, in bytes.
#[inline]
pub(super) fn checked_size(size: u64) -> Result<usize> {
    if size > region::MAX_SIZE {
        return Err(EOVERFLOW);
    }
    usize::try_from(size).map_err(|_| EOVERFLOW)
}

/// Returns the index of the next region of a device that has `count` of its own.
#[inline]
pub(super) fn checked_index(count: c_int) -> Result<u32> {
    let index = u32::try_from(count)?
        .checked_add(NUM_REGIONS)
        .ok_or(ENOSPC)?;
    if index >= region::Position::MAX_REGIONS {
        return Err(ENOSPC);
    }
    Ok(index)
}

/// Returns the kind of a region that is defined by the vendor of the device.
#[inline]
pub const fn vendor_kind(vendor: u16) -> u32 {
    bindings::VFIO_REGION_TYPE_PCI_VENDOR_TYPE | vendor as u32
}

/// A region of a driver's own, which [`Device::add_region`] adds to a device.
///
/// It is dropped when the device has been closed.
///
/// The methods are called by vfio-pci-core, when userspace or the driver asks that to access the
/// region. So they cannot ask vfio-pci-core in turn: their device is in a context of its own.
///
/// ```
/// # use kernel::{prelude::*, vfio::{self, region, Device, Opened}};
/// fn read<T>(device: &Device<T, Opened>, access: &mut region::Read) -> Result
/// where
///     T: vfio::Operations<Base = vfio::pci::Base>,
/// {
///     device.core_read(access)
/// }
/// ```
///
/// in a method of [`Operations`] leads to the method of the region, from where there is no way
/// back:
///
/// ```ignore,compile_fail,E0599
/// # use kernel::{prelude::*, vfio::{self, pci::Region, region, Device, InRegion}};
/// # struct LocalModule;
/// # impl kernel::ModuleMetadata for LocalModule {
/// #     const NAME: &'static CStr = c"endless";
/// #     const THIS_MODULE: ThisModule = unsafe { ThisModule::from_ptr(core::ptr::null_mut()) };
/// # }
/// struct Endless<T>(core::marker::PhantomData<fn() -> T>);
///
/// #[vtable]
/// impl<T: vfio::Operations<Base = vfio::pci::Base>> Region for Endless<T> {
///     type Driver = T;
///
///     fn read(&self, device: &Device<T, InRegion>, access: &mut region::Read) -> Result {
///         device.core_read(access)
///     }
/// }
/// ```
#[vtable]
pub trait Region: Sized + Send + Sync + 'static {
    /// The driver.
    type Driver: Operations<Base = Base>;

    /// Gives userspace what it reads, as [`Operations::read`] does.
    ///
    /// If not implemented, to read fails with [`EINVAL`].
    fn read(&self, _device: &Device<Self::Driver, InRegion>, _access: &mut region::Read) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Takes what userspace writes, as [`Operations::write`] does.
    ///
    /// If not implemented, to write fails with [`EINVAL`].
    fn write(
        &self,
        _device: &Device<Self::Driver, InRegion>,
        _access: &mut region::Write,
    ) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Maps a part of the region, as [`Operations::mmap`] does, with `mmap_lock` held.
    ///
    /// If not implemented, to map fails with [`EINVAL`].
    fn mmap<'request>(
        &self,
        _device: &Device<Self::Driver, InRegion>,
        _mapping: region::Mapping<'request>,
    ) -> Result<region::Mapped<'request>> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Chooses where a part of the region will be mapped, as [`Operations::get_unmapped_area`]
    /// does, with `mmap_lock` held.
    ///
    /// If not implemented, mm places the mapping as any other.
    fn get_unmapped_area<'request>(
        &self,
        _device: &Device<Self::Driver, InRegion>,
        _search: placement::Search<'request>,
    ) -> Result<placement::Placement<'request>> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Adds capabilities to what userspace is told of the region, which says its kind already.
    ///
    /// If not implemented, there are no others.
    fn capabilities(
        &self,
        _device: &Device<Self::Driver, InRegion>,
        _capabilities: &mut region::Capabilities<'_>,
    ) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }
}

/// The callbacks of a [`Region`] for vfio-pci-core.
///
/// vfio-pci-core calls `release` in `vfio_pci_core_disable()`, once for each region, when the
/// device is being closed or was not opened, and the others for a file that keeps the device open.
struct RegionTable<R: Region>(PhantomData<R>);

impl<R: Region> RegionTable<R> {
    const OPS: bindings::vfio_pci_regops = bindings::vfio_pci_regops {
        rw: Some(Self::rw),
        release: Some(Self::release),
        mmap: if R::HAS_MMAP { Some(Self::mmap) } else { None },
        get_unmapped_area: if R::HAS_GET_UNMAPPED_AREA {
            Some(Self::get_unmapped_area)
        } else {
            None
        },
        add_capability: if R::HAS_CAPABILITIES {
            Some(Self::add_capability)
        } else {
            None
        },
    };

    /// Returns the device and the region.
    ///
    /// # Safety
    ///
    /// To be called by vfio-pci-core only, for an open device of `R::Driver` and a region that is
    /// an `R` of it. Neither reference must be used after the callback has returned.
    #[inline(always)]
    unsafe fn parts<'a>(
        core: *mut bindings::vfio_pci_core_device,
        region: *mut bindings::vfio_pci_region,
    ) -> (&'a Device<R::Driver, InRegion>, &'a R) {
        // SAFETY: By the requirements of this function, `core` is a device of `R::Driver` that the
        // file of the system call keeps open.
        let device = unsafe { Device::from_raw(core.cast()) };
        // SAFETY: By the requirements of this function, `data` is what `add_region` stored there.
        // It is released after the device has been closed.
        let this = unsafe { KBox::<R>::borrow((*region).data) };
        (device, this)
    }

    /// # Safety
    ///
    /// To be called by vfio-pci-core only, for an open device of `R::Driver`, with a buffer of
    /// userspace and a valid position in an `R` of it.
    unsafe extern "C" fn rw(
        core: *mut bindings::vfio_pci_core_device,
        buf: *mut c_char,
        count: usize,
        ppos: *mut bindings::loff_t,
        iswrite: bool,
    ) -> isize {
        // SAFETY: `vfio_pci_core_read()` and `vfio_pci_core_write()` pass on a position that is
        // valid, and that nobody else uses during the call.
        let position = unsafe { &mut *ppos };
        let index = (*position >> region::OFFSET_BITS) as usize - NUM_REGIONS as usize;
        // SAFETY: `vfio_pci_rw()` has checked that there is such a region. None is added while the
        // device is open.
        let (device, this) = unsafe { Self::parts(core, (*core).region.add(index)) };
        let user = UserPtr::from_ptr(buf.cast());

        if iswrite && R::HAS_WRITE {
            region::write(user, count, position, |access| {
                R::write(this, device, access)
            })
        } else if !iswrite && R::HAS_READ {
            region::read(user, count, position, |access| {
                R::read(this, device, access)
            })
        } else {
            EINVAL.to_errno() as isize
        }
    }

    /// # Safety
    ///
    /// To be called by vfio-pci-core only, for a region that is an `R` of a device that is being
    /// closed.
    unsafe extern "C" fn release(
        _core: *mut bindings::vfio_pci_core_device,
        region: *mut bindings::vfio_pci_region,
    ) {
        // SAFETY: The core calls this once for what `add_region` stored there. No file has the
        // device open, so that none of the other callbacks is running, or will run.
        drop(unsafe { KBox::<R>::from_foreign((*region).data) });
    }

    /// # Safety
    ///
    /// To be called by vfio-pci-core only, for an open device of `R::Driver`, a region that is an
    /// `R` of it, and a vma that is being set up.
    unsafe extern "C" fn mmap(
        core: *mut bindings::vfio_pci_core_device,
        region: *mut bindings::vfio_pci_region,
        vma: *mut bindings::vm_area_struct,
    ) -> c_int {
        // SAFETY: `vfio_pci_core_mmap()` passes on its device, one of its regions, and no reference
        // is used after this returns.
        let (device, this) = unsafe { Self::parts(core, region) };
        // SAFETY: `vfio_pci_core_mmap()` passes on the vma that mm is setting up, with `mmap_lock`
        // held for writing. It has done nothing to it.
        let vma = unsafe { VmaNew::from_raw(vma) };

        from_result(|| R::mmap(this, device, region::Mapping::new(vma)).map(|_mapped| 0))
    }

    /// # Safety
    ///
    /// To be called by vfio-pci-core only, for an open device of `R::Driver`, a region that is an
    /// `R` of it, and with the arguments of a `get_unmapped_area` file operation.
    unsafe extern "C" fn get_unmapped_area(
        core: *mut bindings::vfio_pci_core_device,
        region: *mut bindings::vfio_pci_region,
        file: *mut bindings::file,
        addr: c_ulong,
        len: c_ulong,
        pgoff: c_ulong,
        flags: c_ulong,
    ) -> c_ulong {
        // SAFETY: `vfio_pci_core_get_unmapped_area()` passes on its device, one of its regions, and
        // no reference is used after this returns.
        let (device, this) = unsafe { Self::parts(core, region) };
        // SAFETY: It also passes on what mm gave to the file operation, which is still running when
        // the search is gone: the method called here is for any lifetime of it.
        let search = unsafe { placement::Search::new(file, addr, len, pgoff, flags) };

        match R::get_unmapped_area(this, device, search) {
            Ok(placement) => placement.into_raw(),
            // CAST: An errno as mm expects it, in an address.
            Err(err) => err.to_errno() as c_ulong,
        }
    }

    /// # Safety
    ///
    /// To be called by vfio-pci-core only, for an open device of `R::Driver`, a region that is an
    /// `R` of it, and valid capabilities.
    unsafe extern "C" fn add_capability(
        core: *mut bindings::vfio_pci_core_device,
        region: *mut bindings::vfio_pci_region,
        caps: *mut bindings::vfio_info_cap,
    ) -> c_int {
        // SAFETY: `vfio_pci_ioctl_get_region_info()` passes on its device, one of its regions, and
        // no reference is used after this returns.
        let (device, this) = unsafe { Self::parts(core, region) };
        // SAFETY: It also passes on the capabilities that it was given.
        let mut capabilities = unsafe { region::Capabilities::from_raw(caps) };

        from_result(|| {
            R::capabilities(this, device, &mut capabilities)?;
            Ok(0)
        })
    }
}
