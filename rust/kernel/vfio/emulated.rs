// SPDX-License-Identifier: GPL-2.0-only

//! Devices that have no IOMMU of their own, as they do not access memory by themselves.

use super::{
    base::private,
    device::UnregisteredDevice,
    pins::Pins,
    registry::{
        Entry,
        Registered, //
    },
    Device,
    Operations, //
};
use crate::{
    bindings, device,
    error::to_result,
    faux,
    module::this_module,
    platform,
    prelude::*,
    sync::{
        aref::ARef,
        Arc, //
    },
};

/// VFIO itself: there is no other C code that knows what the device is.
pub enum Base {}

impl super::Base for Base {}

// SAFETY: `Raw` is a `struct vfio_device`. The functions in `OPS` are for any device that is
// registered with `vfio_register_emulated_iommu_dev()`.
unsafe impl private::Base for Base {
    type Raw = bindings::vfio_device;
    type State = Arc<Pins>;

    // Without IOMMUFD the members stay `NULL`, as C has it.
    const OPS: bindings::vfio_device_ops = bindings::vfio_device_ops {
        #[cfg(CONFIG_IOMMUFD)]
        bind_iommufd: Some(bindings::vfio_iommufd_emulated_bind),
        #[cfg(CONFIG_IOMMUFD)]
        unbind_iommufd: Some(bindings::vfio_iommufd_emulated_unbind),
        #[cfg(CONFIG_IOMMUFD)]
        attach_ioas: Some(bindings::vfio_iommufd_emulated_attach_ioas),
        #[cfg(CONFIG_IOMMUFD)]
        detach_ioas: Some(bindings::vfio_iommufd_emulated_detach_ioas),
        ..pin_init::zeroed()
    };

    // The parent may be bound to the driver of another module, as a faux device is.
    const HOLDS_MODULE: bool = true;
    const HAS_CORE: bool = false;

    fn new_state() -> Result<Arc<Pins>> {
        Pins::new()
    }

    #[inline]
    unsafe fn cancel(_vdev: *mut bindings::vfio_device, pins: &Arc<Pins>) {
        pins.close();
    }

    #[inline]
    unsafe fn close(_vdev: *mut bindings::vfio_device, pins: &Arc<Pins>) {
        pins.close();
    }

    #[inline]
    fn dma_unmap(pins: &Arc<Pins>, iova: u64, length: u64) {
        pins.unmap(iova, length);
    }
}

/// A device that a driver can register others below.
///
/// The driver core unbinds such a device, and waits then until what is registered below it has been
/// closed. That is not to be asked for in a callback of a device below: see
/// [Limits](super#limits).
pub trait Parent: AsRef<device::Device<device::Bound>> + sealed::Parent {}

mod sealed {
    pub trait Parent {}
}

impl sealed::Parent for platform::Device<device::Bound> {}
impl Parent for platform::Device<device::Bound> {}

#[cfg(CONFIG_PCI)]
impl sealed::Parent for crate::pci::Device<device::Bound> {}
#[cfg(CONFIG_PCI)]
impl Parent for crate::pci::Device<device::Bound> {}

/// A registered device.
///
/// Userspace can open the device from when it is registered until the registration is dropped, the
/// parent is unbound, or the module of the driver is unloaded, whatever is first. The registration
/// belongs to the module: to forget it, or to keep it in a static, has no other consequence.
///
/// To unregister the device takes until userspace has closed it; see [`Operations::request`]. To
/// drop the registration, which any method of the driver may do, may sleep, but does not wait for
/// that. To unbind the parent does. The module cannot be unloaded while the device is open. When
/// it is unloaded, its memory is not freed before the registration data has been dropped.
pub struct Registration<T: Operations<Base = Base>> {
    device: ARef<Device<T>>,
    entry: Arc<Entry>,
}

impl<T: Operations<Base = Base>> Registration<T> {
    /// Registers a new device with the given data, below a parent that is made for it and has the
    /// name `name`.
    ///
    /// May sleep. Fails with the error of `data`, with [`ENODEV`] if there can be no device of that
    /// name or the module is being unloaded, and with [`ENOMEM`].
    pub fn new(
        name: &CStr,
        data: impl PinInit<T::RegistrationData<'static>, Error>,
    ) -> Result<Self> {
        let parent = faux::Registration::new(name, None)?;
        let this = Self::register(parent.as_ref().as_ref(), data)?;
        this.entry.as_arc_borrow().own_parent(parent);
        Ok(this)
    }

    /// Registers a new device with the given data below `parent`.
    ///
    /// May sleep. Fails with the error of `data`, with [`ENODEV`] if the module is being unloaded,
    /// and with [`ENOMEM`].
    pub fn below(
        parent: &impl Parent,
        data: impl PinInit<T::RegistrationData<'static>, Error>,
    ) -> Result<Self> {
        Self::register(parent.as_ref(), data)
    }

    /// Registers a new device below `parent`.
    // The device stays registered until `parent` is unbound. A lifetime that stands for that would
    // have to be invariant to be that of the data; the one of a reference is not.
    pub(super) fn register(
        parent: &device::Device<device::Bound>,
        data: impl PinInit<T::RegistrationData<'static>, Error>,
    ) -> Result<Self> {
        const_assert!(T::HAS_INFO, "an emulated device must have `info`");

        let entry = Entry::new(this_module::<T::OwnerModule>())?;
        // SAFETY: `'static` does not end.
        let device = unsafe { UnregisteredDevice::<T>::new(parent, data) }?;

        // SAFETY: The device is initialised, as is its data, and it is not registered. Its parent
        // is bound, so that it has a driver.
        to_result(unsafe { bindings::vfio_register_emulated_iommu_dev(device.as_raw()) })?;

        let reference: ARef<Device<T>> = (&*device).into();
        let registered = Registered {
            vdev: device.into_raw(),
            unregister: unregister::<T>,
        };
        // SAFETY: `unregister` is for the device, and `T::OwnerModule` is what it is part of.
        unsafe { entry.as_arc_borrow().add(registered, parent) }?;

        Ok(Self {
            device: reference,
            entry,
        })
    }

    /// Returns what the registration belongs to, for a test.
    #[cfg(CONFIG_RUST_VFIO_KUNIT_TEST)]
    pub(super) fn entry(&self) -> &Arc<Entry> {
        &self.entry
    }

    /// Returns the device, which may have been unregistered since.
    #[inline]
    pub fn device(&self) -> &Device<T> {
        &self.device
    }
}

impl<T: Operations<Base = Base>> Drop for Registration<T> {
    fn drop(&mut self) {
        self.entry.as_arc_borrow().remove();
    }
}

/// Unregisters a device, and drops its registration data.
///
/// # Safety
///
/// `vdev` must be a registered `Device<T>`, must come from [`UnregisteredDevice::into_raw`], and
/// its parent must be bound.
unsafe fn unregister<T: Operations<Base = Base>>(vdev: *mut bindings::vfio_device) {
    // SAFETY: By the requirements of this function, the device is registered, and its parent has
    // the driver that the core looks at for as long as the device is open. This waits until
    // userspace has closed the device, and no callback runs after it.
    unsafe { bindings::vfio_unregister_group_dev(vdev) };

    // SAFETY: By the requirements of this function. The device has just been unregistered.
    drop(unsafe { UnregisteredDevice::<T>::from_raw(vdev) });
}
