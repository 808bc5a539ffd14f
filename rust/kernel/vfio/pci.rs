// SPDX-License-Identifier: GPL-2.0-only

//! Drivers for devices on the PCI bus, on top of vfio-pci-core.
//!
//! A driver implements [`Operations`] with [`Base`] for what userspace does with a device, of which
//! vfio-pci-core does all that the driver has no method for, and [`Driver`] for how it is bound to
//! devices. [`module_vfio_pci_driver!`](crate::module_vfio_pci_driver) makes a module of it.
//!
//! # vfio-pci-core from within a method
//!
//! A method that the driver implements takes the place of the function of vfio-pci-core, and can
//! call it with what it was given itself:
//!
//! | Method                              | Function of vfio-pci-core                              |
//! |-------------------------------------|--------------------------------------------------------|
//! | [`Operations::open`]                | called before and after the method                     |
//! | [`Operations::read`]                | [`Device::core_read`]                                  |
//! | [`Operations::write`]               | [`Device::core_write`]                                 |
//! | [`Operations::region_info`]         | [`Device::core_region_info`]                           |
//! | [`Operations::mmap`]                | [`Device::core_mmap`]                                  |
//! | [`Operations::get_unmapped_area`]   | [`Device::core_place`]                                 |
//! | [`Operations::reset`]               | [`Device::core_reset`]                                 |
//! | [`Operations::ioctl`]               | [`Device::core_ioctl`]                                 |
//! | [`Operations::feature`]             | [`Device::core_feature`]                               |
//! | [`Operations::request`]             | [`Device::core_request`]                               |
//! | [`Operations::matches`]             | [`Device::core_matches`]                               |
//! | [`Operations::match_token`]         | [`Device::core_match_token`]                           |
//! | [`Driver::sriov_configure`]         | [`Device::core_sriov_configure`]                       |
//!
//! Each takes a value, or is for a context, that no other method has. What can be done to reset a
//! device
//!
//! ```
//! # use kernel::{prelude::*, vfio};
//! fn reset<T>(device: &vfio::Device<T, vfio::Resetting>) -> Result
//! where
//!     T: vfio::Operations<Base = vfio::pci::Base>,
//! {
//!     device.core_reset()
//! }
//! ```
//!
//! cannot be done to describe it:
//!
//! ```ignore,compile_fail,E0599
//! # use kernel::{prelude::*, vfio};
//! fn info<T>(device: &vfio::Device<T, vfio::Opened>) -> Result
//! where
//!     T: vfio::Operations<Base = vfio::pci::Base>,
//! {
//!     device.core_reset()
//! }
//! ```
//!
//! # Lifetimes
//!
//! vfio-pci-core wants the drvdata of the PCI device to be its `struct vfio_pci_core_device`. So it
//! is: what the driver has of its own is in the same allocation, is initialised before the device
//! is registered with VFIO, and dropped after it is unregistered, when the driver is being unbound.
//!
//! C header: [`include/linux/vfio_pci_core.h`](srctree/include/linux/vfio_pci_core.h)

use super::{
    feature,
    ioctl,
    placement,
    private,
    region,
    Device,
    Matching,
    Opened,
    Opening,
    Operations,
    Owner,
    Placement,
    Requesting,
    Resetting, //
};
use crate::{
    bindings,
    device,
    device_id::RawDeviceIdIndex,
    driver,
    error::{
        from_result,
        to_result,
        VTABLE_DEFAULT_ERROR, //
    },
    mm::virt::VmaNew,
    pci,
    prelude::*,
    types::{
        ForeignOwnable,
        Opaque, //
    },
    uaccess::UserPtr, //
};
use core::{
    marker::PhantomData,
    mem::{
        offset_of,
        ManuallyDrop, //
    },
    ptr::{
        null_mut,
        NonNull, //
    },
};

/// The region of the configuration space. Those of the BARs have the numbers of the BARs.
pub const CONFIG_REGION: u32 = bindings::VFIO_PCI_CONFIG_REGION_INDEX;

/// The region of the expansion ROM.
pub const ROM_REGION: u32 = bindings::VFIO_PCI_ROM_REGION_INDEX;

/// The region of the addresses of legacy VGA.
pub const VGA_REGION: u32 = bindings::VFIO_PCI_VGA_REGION_INDEX;

/// The regions that all PCI devices have. Those of a driver's own ([`Region`]) follow.
pub const NUM_REGIONS: u32 = bindings::VFIO_PCI_NUM_REGIONS;

/// vfio-pci-core.
pub enum Base {}

impl super::Base for Base {}

static_assert!(offset_of!(bindings::vfio_pci_core_device, vdev) == 0);

/// Returns the `struct vfio_pci_core_device` that starts with `vdev`.
#[inline]
fn core_of(vdev: *mut bindings::vfio_device) -> *mut bindings::vfio_pci_core_device {
    vdev.cast()
}

// SAFETY: `Raw` starts with a `struct vfio_device`, as asserted above. The functions in `OPS` are
// for any device that was initialised with `vfio_pci_core_init_dev()`.
unsafe impl private::Base for Base {
    type Raw = bindings::vfio_pci_core_device;

    // Without IOMMUFD its members stay `NULL`, as C has it.
    const OPS: bindings::vfio_device_ops = bindings::vfio_device_ops {
        init: Some(bindings::vfio_pci_core_init_dev),
        #[cfg(CONFIG_IOMMUFD)]
        bind_iommufd: Some(bindings::vfio_iommufd_physical_bind),
        #[cfg(CONFIG_IOMMUFD)]
        unbind_iommufd: Some(bindings::vfio_iommufd_physical_unbind),
        #[cfg(CONFIG_IOMMUFD)]
        attach_ioas: Some(bindings::vfio_iommufd_physical_attach_ioas),
        #[cfg(CONFIG_IOMMUFD)]
        detach_ioas: Some(bindings::vfio_iommufd_physical_detach_ioas),
        #[cfg(CONFIG_IOMMUFD)]
        pasid_attach_ioas: Some(bindings::vfio_iommufd_physical_pasid_attach_ioas),
        #[cfg(CONFIG_IOMMUFD)]
        pasid_detach_ioas: Some(bindings::vfio_iommufd_physical_pasid_detach_ioas),
        read: Some(bindings::vfio_pci_core_read),
        write: Some(bindings::vfio_pci_core_write),
        ioctl: Some(bindings::vfio_pci_core_ioctl),
        get_region_info_caps: Some(bindings::vfio_pci_ioctl_get_region_info),
        mmap: Some(bindings::vfio_pci_core_mmap),
        #[cfg(CONFIG_MMU)]
        get_unmapped_area: Some(bindings::vfio_pci_core_get_unmapped_area),
        request: Some(bindings::vfio_pci_core_request),
        match_: Some(bindings::vfio_pci_core_match),
        match_token_uuid: Some(bindings::vfio_pci_core_match_token_uuid),
        device_feature: Some(bindings::vfio_pci_core_ioctl_feature),
        ..pin_init::zeroed()
    };

    #[inline]
    unsafe fn open(vdev: *mut bindings::vfio_device) -> Result {
        // SAFETY: By the requirements of this function, the device is registered and being opened.
        to_result(unsafe { bindings::vfio_pci_core_enable(core_of(vdev)) })
    }

    #[inline]
    unsafe fn cancel(vdev: *mut bindings::vfio_device) {
        // SAFETY: By the requirements of this function, the device is enabled, and `dev_set->lock`
        // is held as it is whenever a device is being opened.
        unsafe { bindings::vfio_pci_core_disable(core_of(vdev)) };
    }

    #[inline]
    unsafe fn opened(vdev: *mut bindings::vfio_device) {
        // SAFETY: By the requirements of this function, the device is enabled.
        unsafe { bindings::vfio_pci_core_finish_enable(core_of(vdev)) };
    }

    #[inline]
    unsafe fn close(vdev: *mut bindings::vfio_device) {
        // SAFETY: By the requirements of this function, the device is open and being closed.
        unsafe { bindings::vfio_pci_core_close_device(vdev) };
    }

    #[inline]
    unsafe fn ioctl(vdev: *mut bindings::vfio_device, cmd: u32, arg: usize) -> Result<isize> {
        // SAFETY: By the requirements of this function, the device is open. `arg` may be anything:
        // what it is the address of is only reached as memory of userspace.
        let ret = unsafe { bindings::vfio_pci_core_ioctl(vdev, cmd, arg) };

        // CAST: An errno is an `int`.
        to_result(ret.min(0) as c_int)?;
        Ok(ret)
    }

    // To be called when the device is unregistered, instead of by `release` of the table, which may
    // be looked up when the modules of the driver and of vfio-pci-core are gone.
    #[inline]
    unsafe fn release(vdev: *mut bindings::vfio_device) {
        // SAFETY: By the requirements of this function, the device is not used again.
        unsafe { bindings::vfio_pci_core_release_dev(vdev) };
    }
}

impl<T: Operations<Base = Base>, Ctx: super::Context> Device<T, Ctx> {
    #[inline]
    fn as_core(&self) -> *mut bindings::vfio_pci_core_device {
        core_of(self.as_raw())
    }
}

impl<T: Operations<Base = Base>> Device<T, Opened> {
    /// Returns the PCI device.
    #[inline]
    pub fn parent(&self) -> &pci::Device<device::Bound> {
        // SAFETY: `vfio_pci_core_init_dev()` set `pdev`, which does not change.
        let pdev = unsafe { (*self.as_core()).pdev };

        // CAST: `pci::Device` is a transparent wrapper of `struct pci_dev`.
        // SAFETY: The device is open, and for as long as it is, its parent is bound: to unbind it
        // is to unregister the device, which waits until it is closed.
        unsafe { &*pdev.cast() }
    }

    /// Wakes the device up and returns BAR `index`, if it is one of memory that the kernel can reach.
    ///
    /// Otherwise fails with [`EINVAL`], with what made vfio-pci-core fail to map it, or with [`EIO`]
    /// if the device does not wake up. May sleep.
    pub fn bar(&self, index: u32) -> Result<Bar<'_>> {
        // SAFETY: `vfio_pci_core_init_dev()` set `pdev`, which does not change.
        let pdev = unsafe { (*self.as_core()).pdev };

        // SAFETY: The device is open. Its BARs were mapped before the driver's data was made, and
        // stay mapped until after it is dropped.
        let barmap = unsafe { (*self.as_core()).barmap };
        let io = *barmap.get(index as usize).ok_or(EINVAL)?;
        let io = NonNull::new(crate::error::from_err_ptr(io)?).ok_or(EINVAL)?;

        // SAFETY: `pdev` is valid, and the above has shown that it has a BAR `index`.
        let flags = unsafe { (*pdev).resource[index as usize].flags };
        if flags & bindings::IORESOURCE_MEM as usize == 0 {
            return Err(EINVAL);
        }

        let len = self.parent().resource_len(index)?;

        // SAFETY: `pdev` is valid.
        to_result(unsafe { bindings::pm_runtime_resume_and_get(&raw mut (*pdev).dev) })
            .map_err(|_| EIO)?;

        // INVARIANT: The BAR is one of memory, and is mapped at `io` for as long as the device is
        // open, which it is for as long as the reference to it lives. The device was just resumed.
        Ok(Bar {
            core: self.as_core(),
            io,
            len,
            _device: PhantomData,
        })
    }

    /// Lets vfio-pci-core do what is left of a read.
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
    /// Of a read that userspace did not ask for there is nothing:
    ///
    /// ```ignore,compile_fail,E0624
    /// # use kernel::{prelude::*, uaccess::UserPtr, vfio::{self, region, Device, Opened}};
    /// fn read<T>(device: &Device<T, Opened>, start: region::Position, user: UserPtr) -> Result
    /// where
    ///     T: vfio::Operations<Base = vfio::pci::Base>,
    /// {
    ///     device.core_read(&mut region::Read::new(start, user, 4))
    /// }
    /// ```
    #[inline]
    pub fn core_read(&self, access: &mut region::Read) -> Result {
        access.forward(|user, count, position| {
            // SAFETY: The device is open. `position` is valid.
            unsafe {
                bindings::vfio_pci_core_read(
                    self.as_raw(),
                    user.as_mut_ptr().cast(),
                    count,
                    position,
                )
            }
        })
    }

    /// Lets vfio-pci-core do what is left of a write.
    #[inline]
    pub fn core_write(&self, access: &mut region::Write) -> Result {
        access.forward(|user, count, position| {
            // SAFETY: The device is open. `position` is valid.
            unsafe {
                bindings::vfio_pci_core_write(
                    self.as_raw(),
                    user.as_const_ptr().cast(),
                    count,
                    position,
                )
            }
        })
    }

    /// Returns what vfio-pci-core tells userspace of region `index`.
    pub fn core_region_info(
        &self,
        index: u32,
        capabilities: &mut region::Capabilities<'_>,
    ) -> Result<region::Info> {
        let mut info = bindings::vfio_region_info {
            index,
            ..Default::default()
        };

        // SAFETY: The device is open. Both pointers are valid, and not used by anyone else.
        to_result(unsafe {
            bindings::vfio_pci_ioctl_get_region_info(
                self.as_raw(),
                &mut info,
                capabilities.as_raw(),
            )
        })?;
        Ok(region::Info::load(&info))
    }

    /// Lets vfio-pci-core map a part of a region.
    #[inline]
    pub fn core_mmap(&self, mapping: &region::Mapping<'_>) -> Result {
        // SAFETY: The device is open. `VmaNew` shows that the vma is being set up.
        to_result(unsafe { bindings::vfio_pci_core_mmap(self.as_raw(), mapping.vma().as_ptr()) })
    }

    /// Lets vfio-pci-core place a mapping: that of a BAR for the largest leaves that can map it.
    #[inline]
    pub fn core_place<'request>(
        &self,
        request: placement::Request<'request>,
    ) -> Placement<'request> {
        request.by(|file, addr, len, pgoff, flags| {
            // SAFETY: The device is open. The arguments are those of the file operation that is
            // running.
            unsafe {
                bindings::vfio_pci_core_get_unmapped_area(
                    self.as_raw(),
                    file,
                    addr,
                    len,
                    pgoff,
                    flags,
                )
            }
        })
    }

    /// Lets vfio-pci-core handle an ioctl.
    #[inline]
    pub fn core_ioctl(&self, request: ioctl::Request<'_>) -> Result<isize> {
        // SAFETY: The device is open.
        unsafe { <Base as private::Base>::ioctl(self.as_raw(), request.cmd(), request.arg()) }
    }

    /// Lets vfio-pci-core handle a feature, and returns what it returns: for that of exporting a
    /// dma-buf, the descriptor.
    #[inline]
    pub fn core_feature(&self, request: feature::Request<'_>) -> Result<c_int> {
        // SAFETY: The device is open. The address is only reached as memory of userspace.
        let ret = unsafe {
            bindings::vfio_pci_core_ioctl_feature(
                self.as_raw(),
                request.flags,
                request.data.as_mut_ptr(),
                request.size,
            )
        };
        to_result(ret)?;
        Ok(ret)
    }
}

impl<T: Operations<Base = Base>> Device<T, Opening> {
    /// Adds a region of the driver's own for as long as the device is open, and returns its index.
    ///
    /// `kind` and `subtype` tell userspace what it is. They are defined in
    /// `include/uapi/linux/vfio.h`; drivers for one vendor's devices use
    /// [`vendor_kind`].
    pub fn add_region<R: Region<Driver = T>>(
        &self,
        kind: u32,
        subtype: u32,
        info: region::Info,
        region: R,
    ) -> Result<u32> {
        let size = usize::try_from(info.size)?;
        let region = KBox::new(region, GFP_KERNEL_ACCOUNT)?.into_foreign();

        // SAFETY: The device is being opened: nobody else uses its regions. The table is never
        // freed, and its functions are for the type of `region`.
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

        // SAFETY: As above.
        let count = unsafe { (*self.as_core()).num_regions };
        // CAST: There is at least the one that was just added, and there is memory for all.
        Ok(NUM_REGIONS + count as u32 - 1)
    }
}

/// Returns the kind of a region that is defined by the vendor of the device.
#[inline]
pub const fn vendor_kind(vendor: u16) -> u32 {
    bindings::VFIO_REGION_TYPE_PCI_VENDOR_TYPE | vendor as u32
}

impl<T: Operations<Base = Base>> Device<T, Resetting> {
    /// Lets vfio-pci-core reset the device.
    ///
    /// Fails with [`EINVAL`] if the device has no reset of its own.
    #[inline]
    pub fn core_reset(&self) -> Result {
        // SAFETY: The device is open.
        unsafe { <Base as private::Base>::ioctl(self.as_raw(), ioctl::RESET, 0) }?;
        Ok(())
    }
}

impl<T: Operations<Base = Base>> Device<T, Requesting> {
    /// Lets vfio-pci-core ask the user through the eventfd of the interrupt that is for that.
    #[inline]
    pub fn core_request(&self, count: u32) {
        // SAFETY: The device is registered, as it is being unregistered.
        unsafe { bindings::vfio_pci_core_request(self.as_raw(), count) };
    }
}

impl<T: Operations<Base = Base>> Device<T, Matching> {
    /// Lets vfio-pci-core say whether `name` means the device.
    ///
    /// It may be the address of the device on the bus, and ` vf_token=` with a token for
    /// [`Operations::match_token`], whose error is returned.
    #[inline]
    pub fn core_matches(&self, name: &CStr) -> Result<bool> {
        // SAFETY: The device is registered. `name` is a string, and is not changed.
        let ret =
            unsafe { bindings::vfio_pci_core_match(self.as_raw(), name.as_char_ptr().cast_mut()) };
        to_result(ret)?;
        Ok(ret > 0)
    }

    /// Lets vfio-pci-core check the token by which the users of physical and virtual functions show
    /// that they work together.
    #[inline]
    pub fn core_match_token(&self, token: Option<&[u8; 16]>) -> Result {
        let token = token.map(|token| bindings::uuid_t { b: *token });
        let token = token
            .as_ref()
            .map_or(core::ptr::null(), core::ptr::from_ref);

        // SAFETY: The device is registered. `token` is `NULL` or valid.
        to_result(unsafe { bindings::vfio_pci_core_match_token_uuid(self.as_raw(), token) })
    }
}

/// A BAR of memory, which is only reached when the device answers.
///
/// The device does not go to sleep meanwhile. vfio-pci-core makes an access wait for a reset, and
/// fail with [`EIO`] if userspace has disabled the memory of the device. An access that is not
/// within the BAR, or not aligned to its size, fails with [`EINVAL`].
///
/// # Invariants
///
/// `io` is where the BAR, which is one of memory and has `len` bytes, of the open device `core` is
/// mapped. `self` owns a reference that keeps the device from going to sleep.
pub struct Bar<'a> {
    core: *mut bindings::vfio_pci_core_device,
    io: NonNull<c_void>,
    len: u64,
    _device: PhantomData<&'a ()>,
}

macro_rules! bar_access {
    ($type:ty, $bits:literal) => {
        ::kernel::macros::paste! {
            /// Reads from `offset`, in bytes.
            #[inline]
            pub fn [<read $bits>](&self, offset: u64) -> Result<$type> {
                let io = self.at(offset, size_of::<$type>())?;
                let mut value = 0;

                // SAFETY: By the type invariants, the device is open and `io` in a BAR of it.
                to_result(unsafe {
                    bindings::[<vfio_pci_core_ioread $bits>](self.core, true, &mut value, io)
                })?;
                Ok(value)
            }

            /// Writes to `offset`, in bytes.
            #[inline]
            pub fn [<write $bits>](&self, value: $type, offset: u64) -> Result {
                let io = self.at(offset, size_of::<$type>())?;

                // SAFETY: By the type invariants, the device is open and `io` in a BAR of it.
                to_result(unsafe {
                    bindings::[<vfio_pci_core_iowrite $bits>](self.core, true, value, io)
                })
            }
        }
    };
}

impl Bar<'_> {
    /// Returns the size in bytes.
    #[expect(clippy::len_without_is_empty)]
    #[inline]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Returns the address of the `size` bytes at `offset`.
    #[inline]
    fn at(&self, offset: u64, size: usize) -> Result<*mut c_void> {
        let end = offset.checked_add(size as u64).ok_or(EINVAL)?;
        if end > self.len || offset % size as u64 != 0 {
            return Err(EINVAL);
        }
        // CAST: All of the BAR is mapped, so that an offset in it is that of an address.
        Ok(self.io.as_ptr().wrapping_byte_add(offset as usize))
    }

    bar_access!(u8, 8);
    bar_access!(u16, 16);
    bar_access!(u32, 32);
}

impl Drop for Bar<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, the device is open, so that its parent is valid, and the
        // reference is owned by `self`.
        unsafe { bindings::pm_runtime_put(&raw mut (*(*self.core).pdev).dev) };
    }
}

/// A region of a driver's own, which [`Device::add_region`] gives to a device.
///
/// It is dropped when the device has been closed. Its mappings are placed by
/// [`Operations::get_unmapped_area`] of the driver.
#[vtable]
pub trait Region: Sized + Send + Sync + 'static {
    /// The driver.
    type Driver: Operations<Base = Base>;

    /// As [`Operations::read`]. If not implemented, to read fails with [`EINVAL`].
    fn read(&self, _device: &Device<Self::Driver, Opened>, _access: &mut region::Read) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// As [`Operations::write`]. If not implemented, to write fails with [`EINVAL`].
    fn write(&self, _device: &Device<Self::Driver, Opened>, _access: &mut region::Write) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// As [`Operations::mmap`]. If not implemented, to map fails with [`EINVAL`].
    fn mmap(
        &self,
        _device: &Device<Self::Driver, Opened>,
        _mapping: &region::Mapping<'_>,
    ) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }
}

/// The callbacks of a [`Region`] for vfio-pci-core.
struct RegionTable<R: Region>(PhantomData<R>);

impl<R: Region> RegionTable<R> {
    const OPS: bindings::vfio_pci_regops = bindings::vfio_pci_regops {
        rw: Some(Self::rw),
        release: Some(Self::release),
        mmap: if R::HAS_MMAP { Some(Self::mmap) } else { None },
        get_unmapped_area: None,
        add_capability: None,
    };

    /// # Safety
    ///
    /// To be called by vfio-pci-core only, for an open device of `R::Driver`, with a user buffer
    /// and a valid position in an `R` of it.
    unsafe extern "C" fn rw(
        core: *mut bindings::vfio_pci_core_device,
        buf: *mut c_char,
        count: usize,
        ppos: *mut bindings::loff_t,
        iswrite: bool,
    ) -> isize {
        // SAFETY: The core calls this with a device that the file keeps open.
        let device = unsafe { Device::<R::Driver, Opened>::from_raw(core.cast()) };
        // SAFETY: `ppos` is valid and not used by anyone else during the call.
        let position = unsafe { &mut *ppos };
        let index = (*position >> region::OFFSET_BITS) as usize - NUM_REGIONS as usize;
        // SAFETY: The position is in a region that was added, and none is while the device is open.
        let data = unsafe { (*(*core).region.add(index)).data };
        // SAFETY: It is what `add_region` stored there, and is not released while the device is
        // open.
        let this = unsafe { KBox::<R>::borrow(data) };
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
    /// To be called by vfio-pci-core only, for a region that is an `R` of a device which is being
    /// closed.
    unsafe extern "C" fn release(
        _core: *mut bindings::vfio_pci_core_device,
        region: *mut bindings::vfio_pci_region,
    ) {
        // SAFETY: The core calls this once for what `add_region` stored there, when no callback
        // that uses it is running, or will.
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
        // SAFETY: The core calls this with a device that the file being mapped keeps open.
        let device = unsafe { Device::<R::Driver, Opened>::from_raw(core.cast()) };
        // SAFETY: It is what `add_region` stored there, and is not released while the device is
        // open.
        let this = unsafe { KBox::<R>::borrow((*region).data) };
        // SAFETY: The core passes on the vma that mm is setting up.
        let vma = unsafe { VmaNew::from_raw(vma) };

        from_result(|| {
            R::mmap(this, device, &region::Mapping::new(vma))?;
            Ok(0)
        })
    }
}

/// A device in [`Driver::sriov_configure`].
pub struct Configuring;

impl private::Context for Configuring {}
impl super::Context for Configuring {}

impl<T: Operations<Base = Base>> Device<T, Configuring> {
    /// Lets vfio-pci-core enable `count` virtual functions, or disable them if it is 0.
    ///
    /// Returns how many there are then. Those that are enabled are sequestered for the driver.
    ///
    /// ```
    /// # use kernel::{prelude::*, vfio};
    /// fn one<T>(device: &vfio::Device<T, vfio::pci::Configuring>) -> Result<u32>
    /// where
    ///     T: vfio::Operations<Base = vfio::pci::Base>,
    /// {
    ///     device.core_sriov_configure(1)
    /// }
    /// ```
    ///
    /// In other methods the lock is not held that this needs:
    ///
    /// ```ignore,compile_fail,E0599
    /// # use kernel::{prelude::*, vfio};
    /// fn one<T>(device: &vfio::Device<T, vfio::Opened>) -> Result<u32>
    /// where
    ///     T: vfio::Operations<Base = vfio::pci::Base>,
    /// {
    ///     device.core_sriov_configure(1)
    /// }
    /// ```
    #[inline]
    pub fn core_sriov_configure(&self, count: u32) -> Result<u32> {
        // SAFETY: The device is registered, and the lock of its parent is held by the caller of
        // `sriov_configure`, which only is in this context.
        let ret =
            unsafe { bindings::vfio_pci_core_sriov_configure(self.as_core(), count.try_into()?) };
        to_result(ret)?;
        // CAST: It is not negative.
        Ok(ret as u32)
    }
}

/// A driver for PCI devices.
///
/// Errors are reported to userspace by vfio-pci-core.
///
/// # Examples
///
/// A driver that does what vfio-pci does.
///
/// ```
/// # mod driver {
/// use kernel::{
///     device::Core,
///     pci,
///     prelude::*,
///     vfio, //
/// };
///
/// struct Plain;
///
/// #[vtable]
/// impl vfio::Operations for Plain {
///     type Base = vfio::pci::Base;
///     type RegistrationData<'bound> = ();
///     type OpenData<'open> = ();
///
///     fn open<'open, 'bound: 'open>(
///         _device: &vfio::Device<Self, vfio::Opening>,
///         _data: Pin<&'open ()>,
///     ) -> impl PinInit<(), Error> {
///         Ok(())
///     }
/// }
///
/// kernel::pci_device_table!(
///     TABLE,
///     @none,
///     [pci::DeviceId::from_id(pci::Vendor::REDHAT, 0x5).for_vfio()]
/// );
///
/// #[vtable]
/// impl vfio::pci::Driver for Plain {
///     type IdInfo = ();
///     const ID_TABLE: pci::IdTable<()> = &TABLE;
///
///     fn probe<'bound>(
///         _dev: &'bound pci::Device<Core<'_>>,
///         _id_info: Option<&'bound ()>,
///     ) -> impl PinInit<(), Error> + 'bound {
///         Ok(())
///     }
/// }
/// # }
/// ```
#[vtable]
pub trait Driver: Operations<Base = Base> {
    /// What the driver knows of each entry of its table.
    type IdInfo: 'static;

    /// The devices that the driver is for, with [`pci::DeviceId::for_vfio`] if it takes them only
    /// when asked to.
    ///
    /// Userspace can add others by `new_id` if the table is one without info (`@none`). Otherwise
    /// it would have to name the info, which is at an address that it cannot know.
    const ID_TABLE: pci::IdTable<Self::IdInfo>;

    /// Called when the driver is bound to a device, before that is registered with VFIO.
    ///
    /// The device is not enabled: it is when it is opened.
    fn probe<'bound>(
        dev: &'bound pci::Device<device::Core<'_>>,
        id_info: Option<&'bound Self::IdInfo>,
    ) -> impl PinInit<Self::RegistrationData<'bound>, Error> + 'bound;

    /// Asked to enable `count` virtual functions, or to disable them if it is 0.
    ///
    /// Returns how many there are then. If not implemented, the device has none.
    fn sriov_configure(
        _device: &Device<Self, Configuring>,
        _data: Pin<&Self::RegistrationData<'_>>,
        _count: u32,
    ) -> Result<u32> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Called before somebody resets the device on purpose.
    fn reset_prepare(_device: &Device<Self>, _data: Pin<&Self::RegistrationData<'_>>) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Called after that.
    fn reset_done(_device: &Device<Self>, _data: Pin<&Self::RegistrationData<'_>>) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }
}

/// An adapter for the registration of drivers with the PCI bus.
pub struct Adapter<T: Driver>(T);

// SAFETY:
// - `bindings::pci_driver` is a C type declared as `repr(C)`.
// - The driver has no private data in the sense of the driver core: drvdata is `NULL` again when
//   `probe_callback` fails and when `remove_callback` returns.
// - `struct pci_driver` embeds a `struct device_driver` at `DEVICE_DRIVER_OFFSET`.
unsafe impl<T: Driver> driver::DriverLayout for Adapter<T> {
    type DriverType = bindings::pci_driver;
    type DriverData<'bound> = ();
    const DEVICE_DRIVER_OFFSET: usize = offset_of!(Self::DriverType, driver);
}

// SAFETY: `unregister` is valid once `register` has succeeded.
unsafe impl<T: Driver + 'static> driver::RegistrationOps for Adapter<T> {
    unsafe fn register(
        pdrv: &Opaque<Self::DriverType>,
        name: &'static CStr,
        module: &'static ThisModule,
    ) -> Result {
        // SAFETY: The fields may be set before the driver is registered. The table of error
        // handlers that is exported is only referred to.
        unsafe {
            (*pdrv.get()).name = name.as_char_ptr();
            (*pdrv.get()).id_table = T::ID_TABLE.as_ptr();
            (*pdrv.get()).probe = Some(Self::probe_callback);
            (*pdrv.get()).remove = Some(Self::remove_callback);
            (*pdrv.get()).sriov_configure = if T::HAS_SRIOV_CONFIGURE {
                Some(Self::sriov_configure_callback)
            } else {
                None
            };
            (*pdrv.get()).err_handler = if T::HAS_RESET_PREPARE || T::HAS_RESET_DONE {
                &Self::ERROR_HANDLERS
            } else {
                &raw const bindings::vfio_pci_core_err_handlers
            };
            (*pdrv.get()).driver_managed_dma = true;
        }

        // SAFETY: `pdrv` is a valid driver, and stays so until it is unregistered.
        to_result(unsafe {
            bindings::__pci_register_driver(pdrv.get(), module.as_ptr(), name.as_char_ptr())
        })
    }

    unsafe fn unregister(pdrv: &Opaque<Self::DriverType>) {
        // SAFETY: By the requirements of this function, the driver is registered.
        unsafe { bindings::pci_unregister_driver(pdrv.get()) }
    }
}

impl<T: Driver> Adapter<T> {
    const ERROR_HANDLERS: bindings::pci_error_handlers = bindings::pci_error_handlers {
        error_detected: Some(bindings::vfio_pci_core_aer_err_detected),
        reset_prepare: if T::HAS_RESET_PREPARE {
            Some(Self::reset_prepare_callback)
        } else {
            None
        },
        reset_done: if T::HAS_RESET_DONE {
            Some(Self::reset_done_callback)
        } else {
            None
        },
        ..pin_init::zeroed()
    };

    const PCI_OPS: bindings::vfio_pci_device_ops = bindings::vfio_pci_device_ops {
        #[cfg(CONFIG_VFIO_PCI_DMABUF)]
        get_dmabuf_phys: Some(bindings::vfio_pci_core_get_dmabuf_phys),
        #[cfg(not(CONFIG_VFIO_PCI_DMABUF))]
        get_dmabuf_phys: None,
    };

    extern "C" fn probe_callback(
        pdev: *mut bindings::pci_dev,
        id: *const bindings::pci_device_id,
    ) -> c_int {
        // SAFETY: The PCI bus calls this with a valid device, which is being bound.
        let dev = unsafe { &*pdev.cast::<pci::Device<device::CoreInternal<'_>>>() };

        // SAFETY: `DeviceId` is a transparent wrapper of `struct pci_device_id`.
        let id = unsafe { &*id.cast::<pci::DeviceId>() };
        // SAFETY: `id` is from `T::ID_TABLE`, is a dynamic one that has the `driver_data` of one
        // from there, or has none.
        let info = unsafe { id.info_unchecked_opt::<T::IdInfo>() };

        from_result(|| {
            // SAFETY: The data may borrow from the device for as long as it is bound. It is dropped
            // below, or by `remove_callback`.
            let owner = unsafe { Owner::<T>::new(dev.as_ref(), T::probe(dev, info)) }?;
            let core = core_of(owner.as_raw());

            // SAFETY: The device is not registered yet, and only it uses `pci_ops`.
            unsafe { (*core).pci_ops = &Self::PCI_OPS };
            Self::set_drvdata(pdev, core);

            // SAFETY: The device is initialised, as is its data, it is not registered, and it is
            // the drvdata of its parent.
            let ret = to_result(unsafe { bindings::vfio_pci_core_register_device(core) });
            if let Err(err) = ret {
                // Nothing uses it any more: the lock of `pdev` is held.
                Self::set_drvdata(pdev, null_mut());
                return Err(err);
            }

            // From now on `pdev` owns it.
            let _ = ManuallyDrop::new(owner);
            Ok(0)
        })
    }

    extern "C" fn remove_callback(pdev: *mut bindings::pci_dev) {
        let core = Self::drvdata(pdev);

        // SAFETY: `probe_callback` succeeded, and so the device is registered. This waits until
        // userspace has closed it, and no callback of it runs after that.
        unsafe { bindings::vfio_pci_core_unregister_device(core) };
        // The lock of `pdev` is held, so that none of the callbacks of the driver runs either, and
        // none will before the driver is bound again.
        Self::set_drvdata(pdev, null_mut());

        // INVARIANT: The data is still initialised, and the device has been unregistered.
        // SAFETY: `probe_callback` stored the pointer of the `Owner` that it did not drop.
        drop(Owner::<T>(unsafe { NonNull::new_unchecked(core.cast()) }));
    }

    extern "C" fn sriov_configure_callback(pdev: *mut bindings::pci_dev, count: c_int) -> c_int {
        // SAFETY: The PCI bus calls this for a device that is bound, with the lock of `pdev` held,
        // under which it is bound and unbound: `probe_callback` has registered a device, and
        // `remove_callback` has not unregistered it.
        let device = unsafe { Device::<T, Configuring>::from_raw(Self::drvdata(pdev).cast()) };
        // SAFETY: As above.
        let data = unsafe { device.data() };

        from_result(|| {
            let count = T::sriov_configure(device, data, count.try_into()?)?;
            Ok(count.try_into()?)
        })
    }

    extern "C" fn reset_prepare_callback(pdev: *mut bindings::pci_dev) {
        // SAFETY: As in `sriov_configure_callback`.
        let device = unsafe { Device::<T>::from_raw(Self::drvdata(pdev).cast()) };
        // SAFETY: As above.
        let data = unsafe { device.data() };

        T::reset_prepare(device, data);
    }

    extern "C" fn reset_done_callback(pdev: *mut bindings::pci_dev) {
        // SAFETY: As in `sriov_configure_callback`.
        let device = unsafe { Device::<T>::from_raw(Self::drvdata(pdev).cast()) };
        // SAFETY: As above.
        let data = unsafe { device.data() };

        T::reset_done(device, data);
    }

    /// Returns what vfio-pci-core takes for its device.
    fn drvdata(pdev: *mut bindings::pci_dev) -> *mut bindings::vfio_pci_core_device {
        // SAFETY: The callers were given a valid device by the PCI bus.
        unsafe { bindings::dev_get_drvdata(&raw mut (*pdev).dev) }.cast()
    }

    /// Sets it.
    fn set_drvdata(pdev: *mut bindings::pci_dev, core: *mut bindings::vfio_pci_core_device) {
        // SAFETY: The callers were given a valid device by the PCI bus, and hold its lock.
        unsafe { bindings::dev_set_drvdata(&raw mut (*pdev).dev, core.cast()) };
    }
}

/// Declares a module that is one driver for PCI devices.
///
/// # Examples
///
/// ```ignore
/// kernel::module_vfio_pci_driver! {
///     type: MyDriver,
///     name: "my_vfio_pci",
///     authors: ["Author name"],
///     description: "Description",
///     license: "GPL",
/// }
/// ```
#[macro_export]
macro_rules! module_vfio_pci_driver {
    ($($f:tt)*) => {
        $crate::module_driver!(<T>, $crate::vfio::pci::Adapter<T>, { $($f)* });
    };
}

#[cfg(all(CONFIG_RUST_VFIO_KUNIT_TEST, CONFIG_VFIO_PCI_CORE = "y"))]
#[kunit_tests(rust_vfio_pci)]
mod tests {
    use super::{
        super::VTable,
        *, //
    };

    /// A driver that implements nothing that it need not.
    struct Plain;

    #[vtable]
    impl Operations for Plain {
        type Base = Base;
        type RegistrationData<'bound> = ();
        type OpenData<'open> = ();

        fn open<'open, 'bound: 'open>(
            _device: &Device<Self, Opening>,
            _data: Pin<&'open ()>,
        ) -> impl PinInit<(), Error> {
            Ok(())
        }
    }

    /// A driver that has its own reads and resets.
    struct Own;

    #[vtable]
    impl Operations for Own {
        type Base = Base;
        type RegistrationData<'bound> = ();
        type OpenData<'open> = ();

        fn open<'open, 'bound: 'open>(
            _device: &Device<Self, Opening>,
            _data: Pin<&'open ()>,
        ) -> impl PinInit<(), Error> {
            Ok(())
        }

        fn read(
            device: &Device<Self, Opened>,
            _this: Pin<&()>,
            access: &mut region::Read,
        ) -> Result {
            device.core_read(access)
        }

        fn reset(device: &Device<Self, Resetting>, _this: Pin<&()>) -> Result {
            device.core_reset()
        }
    }

    /// The address of the function of a member.
    macro_rules! address {
        ($table:expr, $member:ident) => {
            $table.$member.map(|function| function as usize)
        };
    }

    /// Fails unless the members of both tables are the same functions.
    macro_rules! assert_same {
        ($one:expr, $other:expr, $($member:ident),* $(,)?) => { $(
            assert_eq!(address!($one, $member), address!($other, $member));
        )* }
    }

    #[test]
    fn slots_of_the_core() {
        let plain = VTable::<Plain>::OPS;
        let core = bindings::vfio_device_ops {
            read: Some(bindings::vfio_pci_core_read),
            write: Some(bindings::vfio_pci_core_write),
            ioctl: Some(bindings::vfio_pci_core_ioctl),
            get_region_info_caps: Some(bindings::vfio_pci_ioctl_get_region_info),
            mmap: Some(bindings::vfio_pci_core_mmap),
            get_unmapped_area: Some(bindings::vfio_pci_core_get_unmapped_area),
            request: Some(bindings::vfio_pci_core_request),
            match_: Some(bindings::vfio_pci_core_match),
            match_token_uuid: Some(bindings::vfio_pci_core_match_token_uuid),
            device_feature: Some(bindings::vfio_pci_core_ioctl_feature),
            ..pin_init::zeroed()
        };
        assert_same!(plain, core, read, write, ioctl, get_region_info_caps, mmap);
        assert_same!(
            plain,
            core,
            get_unmapped_area,
            request,
            match_,
            match_token_uuid
        );
        assert_same!(plain, core, device_feature, dma_unmap, release);

        // Those of the driver's own take the place of the core's, and of no others.
        let own = VTable::<Own>::OPS;
        assert_ne!(address!(own, read), address!(plain, read));
        assert_ne!(address!(own, ioctl), address!(plain, ioctl));
        assert_same!(
            own,
            plain,
            write,
            get_region_info_caps,
            mmap,
            get_unmapped_area
        );
        assert_same!(
            own,
            plain,
            request,
            match_,
            match_token_uuid,
            device_feature
        );
        assert_same!(own, plain, init, bind_iommufd, unbind_iommufd, attach_ioas);
        assert_same!(
            own,
            plain,
            detach_ioas,
            pasid_attach_ioas,
            pasid_detach_ioas
        );
    }

    #[test]
    fn ids() {
        let id = pci::DeviceId::from_id(pci::Vendor::REDHAT, 5);
        // SAFETY: `DeviceId` is a transparent wrapper of `struct pci_device_id`.
        let raw = |id: pci::DeviceId| unsafe {
            core::mem::transmute::<pci::DeviceId, bindings::pci_device_id>(id)
        };
        assert_eq!(raw(id).override_only, 0);

        let id = raw(id.for_vfio());
        assert_eq!(
            (id.vendor, id.device, id.override_only),
            (0x1b36, 5, bindings::PCI_ID_F_VFIO_DRIVER_OVERRIDE)
        );
    }
}
