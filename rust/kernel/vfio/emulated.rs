// SPDX-License-Identifier: GPL-2.0-only

//! Devices that have no IOMMU of their own, as they do not access memory by themselves.

use super::{
    private,
    Device,
    Operations,
    Owner, //
};
use crate::{
    bindings,
    device,
    devres::Devres,
    error::to_result,
    prelude::*,
    sync::aref::ARef, //
};

/// VFIO itself: there is no other C code that knows what the device is.
pub enum Base {}

impl super::Base for Base {}

// SAFETY: `Raw` is a `struct vfio_device`. The functions in `OPS` are for any device that is
// registered with `vfio_register_emulated_iommu_dev()`.
unsafe impl private::Base for Base {
    type Raw = bindings::vfio_device;

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
}

/// A registered device.
///
/// Userspace can open the device from when [`Registration::new`] succeeds until the registration is
/// dropped or the parent is unbound, whatever is first. The parent is not unbound before the device
/// is unregistered, even if the registration was forgotten.
///
/// To unregister waits until userspace has closed the device; see [`Operations::request`].
pub struct Registration<T: Operations<Base = Base>> {
    device: ARef<Device<T>>,
    _registered: Devres<Registered<T>>,
}

impl<T: Operations<Base = Base>> Registration<T> {
    /// Registers a new device below `parent`, with the given data.
    // As the registration can be forgotten, the lifetime of a borrow of `parent` is no bound for
    // that of the data. It would have to be that of the binding.
    pub fn new(
        parent: &device::Device<device::Bound>,
        data: impl PinInit<T::RegistrationData<'static>, Error>,
    ) -> Result<Self> {
        const_assert!(T::HAS_INFO, "an emulated device must have `info`");

        // SAFETY: `'static` does not end.
        let owner = unsafe { Owner::<T>::new(parent, data) }?;

        // SAFETY: The device is initialised, as is its data, and it is not registered. Its parent
        // is bound, so that it has a driver.
        to_result(unsafe { bindings::vfio_register_emulated_iommu_dev(owner.as_raw()) })?;

        // SAFETY: `owner` has a reference, so that there is a device to take another one of.
        let device = unsafe { owner.0.as_ref() }.into();
        // INVARIANT: The device has just been registered.
        let registered = Devres::new(parent, Registered(owner))?;

        Ok(Self {
            device,
            _registered: registered,
        })
    }

    /// Returns the device.
    #[inline]
    pub fn device(&self) -> &Device<T> {
        &self.device
    }
}

/// The ownership of a registration.
///
/// # Invariants
///
/// The device is registered. It is dropped before the parent of the device is unbound.
struct Registered<T: Operations<Base = Base>>(Owner<T>);

impl<T: Operations<Base = Base>> Drop for Registered<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, the device is registered, and its parent still has the
        // driver that the core looks at for as long as the device is open. This waits until
        // userspace has closed the device, and no callback runs after it.
        unsafe { bindings::vfio_unregister_group_dev(self.0.as_raw()) };

        // `self.0` is dropped now, and with it the registration data.
    }
}
