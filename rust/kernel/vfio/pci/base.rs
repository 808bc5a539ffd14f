// SPDX-License-Identifier: GPL-2.0-only

//! vfio-pci-core as the base of devices.

use super::super::{
    base::private,
    irq,
    Context,
    Device,
    DeviceInfo,
    InRegion,
    Kind,
    Operations, //
};
use crate::{
    bindings,
    error::to_result,
    pci,
    prelude::*, //
};
use core::{
    mem::offset_of,
    ptr::NonNull, //
};

/// vfio-pci-core.
pub enum Base {}

impl super::super::Base for Base {}

static_assert!(offset_of!(bindings::vfio_pci_core_device, vdev) == 0);

/// Returns the `struct vfio_pci_core_device` that starts with `vdev`.
#[inline]
pub(super) fn core_of(vdev: *mut bindings::vfio_device) -> *mut bindings::vfio_pci_core_device {
    vdev.cast()
}

// SAFETY: `Raw` starts with a `struct vfio_device`, as asserted above. The functions in `OPS` are
// for any device that was initialised with `vfio_pci_core_init_dev()`.
unsafe impl private::Base for Base {
    type Raw = bindings::vfio_pci_core_device;
    type State = ();

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

    // The parent is bound to the driver's own `struct pci_driver`.
    const HOLDS_MODULE: bool = false;
    const HAS_CORE: bool = true;

    #[inline]
    fn new_state() -> Result {
        Ok(())
    }

    #[inline]
    unsafe fn open(vdev: *mut bindings::vfio_device) -> Result {
        // SAFETY: By the requirements of this function, the device is registered and being opened.
        to_result(unsafe { bindings::vfio_pci_core_enable(core_of(vdev)) })
    }

    #[inline]
    unsafe fn cancel(vdev: *mut bindings::vfio_device, _state: &()) {
        // SAFETY: By the requirements of this function, the device is enabled, and `dev_set->lock`
        // is held as it is whenever a device is being opened.
        unsafe { bindings::vfio_pci_core_disable(core_of(vdev)) };
    }

    #[inline]
    unsafe fn opened(vdev: *mut bindings::vfio_device, _state: &()) {
        // SAFETY: By the requirements of this function, the device is enabled.
        unsafe { bindings::vfio_pci_core_finish_enable(core_of(vdev)) };
    }

    #[inline]
    unsafe fn close(vdev: *mut bindings::vfio_device, _state: &()) {
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

    #[inline]
    unsafe fn info(vdev: *mut bindings::vfio_device) -> DeviceInfo {
        // SAFETY: By the requirements of this function, the device is open. Regions are only added
        // while it is being opened.
        let added = unsafe { (*core_of(vdev)).num_regions };

        DeviceInfo {
            kind: Kind::Pci,
            // CAST: A count is not negative.
            num_regions: super::NUM_REGIONS + added as u32,
            num_irqs: super::NUM_IRQS,
        }
    }

    // What `vfio_pci_ioctl_get_irq_info()` says. The function itself reads its argument from the
    // memory of userspace, and writes its answer there: it is not for what the kernel relies on.
    unsafe fn irq_info(vdev: *mut bindings::vfio_device, index: u32) -> Result<irq::Info> {
        let core = core_of(vdev);
        // SAFETY: By the requirements of this function, the device is open. `pdev` and the
        // capabilities do not change, and neither does the rest while the device is open: that is
        // what `vfio_pci_core_enable()` found, and for `vconfig` what it allocated. Userspace can
        // write to that, and the pin is one byte of it.
        let (pdev, pin, dynamic) = unsafe {
            (
                (*core).pdev,
                (*core)
                    .vconfig
                    .add(bindings::PCI_INTERRUPT_PIN as usize)
                    .read_volatile(),
                bindings::vfio_pci_core_device::has_dyn_msix_raw(core),
            )
        };
        // SAFETY: `pdev` is valid as long as the device is bound, which it is while it is open.
        // `pci_device_add()` set both.
        let (msi, msix) = unsafe { ((*pdev).msi_cap, (*pdev).msix_cap) };
        // Reads the flags of a capability, if the device has it.
        let flags = |capability: u8, offset: u32| {
            let mut flags = 0;
            (capability != 0).then(|| {
                // SAFETY: The PCI device is valid while it is bound, and so is the pointer. On
                // failure, the function stores what a device reads as that is gone, as for C.
                unsafe {
                    bindings::pci_read_config_word(
                        pdev,
                        c_int::from(capability) + offset as c_int,
                        &mut flags,
                    )
                };
                u32::from(flags)
            })
        };

        let count = match index {
            bindings::VFIO_PCI_INTX_IRQ_INDEX => u32::from(pin != 0),
            bindings::VFIO_PCI_MSI_IRQ_INDEX => flags(msi, bindings::PCI_MSI_FLAGS)
                .map_or(0, |flags| {
                    1 << ((flags & bindings::PCI_MSI_FLAGS_QMASK) >> 1)
                }),
            bindings::VFIO_PCI_MSIX_IRQ_INDEX => flags(msix, bindings::PCI_MSIX_FLAGS)
                .map_or(0, |flags| (flags & bindings::PCI_MSIX_FLAGS_QSIZE) + 1),
            bindings::VFIO_PCI_ERR_IRQ_INDEX | bindings::VFIO_PCI_REQ_IRQ_INDEX => 1,
            _ => return Err(EINVAL),
        };
        let flags = match index {
            bindings::VFIO_PCI_INTX_IRQ_INDEX => {
                irq::Flag::EventFd | irq::Flag::Maskable | irq::Flag::AutoMasked
            }
            bindings::VFIO_PCI_MSIX_IRQ_INDEX if dynamic => irq::Flag::EventFd.into(),
            _ => irq::Flag::EventFd | irq::Flag::NoResize,
        };
        Ok(irq::Info { count, flags })
    }

    // `vfio_device_release()` takes a device off the list of its set, and calls `release` of the
    // table after that. Here the second happens first, when the device has been unregistered, since
    // the function for it may be gone later. So the first must happen here as well: a reset of the
    // set looks at all devices on the list, at their PCI devices and at what is freed here.
    #[inline]
    unsafe fn release(vdev: *mut bindings::vfio_device) {
        // SAFETY: By the requirements of this function, `vdev` is valid. The set is assigned when
        // the device is registered, and is not freed before the reference of the caller is put.
        if let Some(set) = NonNull::new(unsafe { (*vdev).dev_set }) {
            // SAFETY: The set is valid, and its lock protects the list. When the device is taken
            // off the list for the second time, by `vfio_device_release()`, that changes nothing.
            unsafe {
                bindings::mutex_lock(&raw mut (*set.as_ptr()).lock);
                bindings::list_del_init(&raw mut (*vdev).dev_set_list);
                bindings::mutex_unlock(&raw mut (*set.as_ptr()).lock);
            }
        }

        // SAFETY: By the requirements of this function, the device is not used again.
        unsafe { bindings::vfio_pci_core_release_dev(vdev) };
    }
}

impl<T: Operations<Base = Base>, Ctx: Context> Device<T, Ctx> {
    /// Returns the `struct vfio_pci_core_device`.
    #[inline]
    pub(super) fn as_core(&self) -> *mut bindings::vfio_pci_core_device {
        core_of(self.as_raw())
    }
}

impl<T: Operations<Base = Base>> Device<T, InRegion> {
    /// Returns the PCI device: what it is, and the sizes of its BARs.
    ///
    /// Its interrupts, its BARs and its DMA are in the hands of vfio-pci-core and of userspace. So
    /// what is for drivers of the device itself
    ///
    /// ```
    /// # use kernel::{device::Bound, pci, prelude::*};
    /// fn claim(dev: &pci::Device<Bound>) -> Result {
    ///     dev.alloc_irq_vectors(1, 1, pci::IrqTypes::all())?;
    ///     Ok(())
    /// }
    /// ```
    ///
    /// is not there:
    ///
    /// ```ignore,compile_fail,E0599
    /// # use kernel::{pci, prelude::*, vfio};
    /// fn claim<T>(device: &vfio::Device<T, vfio::Opened>) -> Result
    /// where
    ///     T: vfio::Operations<Base = vfio::pci::Base>,
    /// {
    ///     device.parent().alloc_irq_vectors(1, 1, pci::IrqTypes::all())?;
    ///     Ok(())
    /// }
    /// ```
    ///
    /// and neither are its BARs, but by [`bar`](Self::bar):
    ///
    /// ```ignore,compile_fail,E0599
    /// # use kernel::{prelude::*, vfio};
    /// fn claim<T>(device: &vfio::Device<T, vfio::Opened>) -> Result
    /// where
    ///     T: vfio::Operations<Base = vfio::pci::Base>,
    /// {
    ///     device.parent().iomap_region(0, c"mine")?;
    ///     Ok(())
    /// }
    /// ```
    #[inline]
    pub fn parent(&self) -> &pci::Device {
        // SAFETY: `vfio_pci_core_init_dev()` set `pdev`, which does not change.
        let pdev = unsafe { (*self.as_core()).pdev };

        // SAFETY: The device is open, and `remove_callback` waits until it is not. Until that
        // returns the PCI device is bound, and the driver core has a reference to it.
        // CAST: `pci::Device` is a transparent wrapper of `struct pci_dev`.
        unsafe { &*pdev.cast() }
    }
}
