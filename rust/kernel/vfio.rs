// SPDX-License-Identifier: GPL-2.0-only

//! Abstractions for VFIO, which hands devices to userspace.
//!
//! A driver implements [`Operations`] for devices of one kind, which it names as their [`Base`]:
//! it registers those without an IOMMU of their own itself ([`emulated::Registration`]), and those
//! on the PCI bus are registered when the driver is bound to them (`vfio::pci`). Userspace opens a
//! device through its group or its character device.
//!
//! # Lifetimes
//!
//! - The *registration data* is there before userspace can see the device, and is dropped when the
//!   device has been unregistered and all calls into the driver have returned.
//! - The *open data* is made when the first file is opened, and dropped when the last one is
//!   closed.
//!   It may borrow from the registration data.
//!
//! Both are in the one allocation that starts with the C `struct vfio_device`. The module of the
//! driver cannot be unloaded while the device is open. That it is registered does not keep the
//! module: an [`emulated::Registration`] is undone when the module is unloaded, even one that was
//! forgotten, and a PCI device is unregistered when its driver is unbound.
//!
//! # Limits
//!
//! What follows is not excluded by types, and cannot be by the abstractions of VFIO alone. It is
//! what the registration of a bus driver ([`driver::Registration`](crate::driver::Registration))
//! does for all buses.
//!
//! - It must be dropped before the module is unloaded. One that was forgotten, or is in a static
//!   that is never dropped, leaves the bus with callbacks in memory that is freed. What
//!   [`module_vfio_pci_driver!`](crate::module_vfio_pci_driver) and its like make drops it.
//! - It must not be dropped in a callback of a device that is bound to the driver, or is registered
//!   below one that is. To drop it unbinds the driver, which waits until userspace has closed the
//!   device, and so for the callback itself. The task waits for ever, with the lock of the parent
//!   held.
//!
//! # Contexts
//!
//! What a method of the driver can do with its device depends on the method: the second parameter
//! of the type of the [`Device`] says which one it is. What the method has to answer is a value
//! that only this method is given, and that does not outlive the call.
//!
//! A device of which nothing is known but that it exists can be shared with another task
//! ```
//! # use kernel::vfio::{Device, Operations};
//! # fn hand_over<T: Send>(_: T) {}
//! fn share<T: Operations>(device: &Device<T>) {
//!     hand_over(device);
//! }
//! ```
//!
//! while only the task that runs the callback knows that it is open:
//!
//! ```ignore,compile_fail,E0277
//! # use kernel::vfio::{Device, Opened, Operations};
//! # fn hand_over<T: Send>(_: T) {}
//! fn share<T: Operations>(device: &Device<T, Opened>) {
//!     hand_over(device);
//! }
//! ```
//!
//! and only for as long as that runs:
//!
//! ```ignore,compile_fail
//! # use kernel::vfio::{Device, Opened, Operations};
//! fn keep<T: Operations>(device: &Device<T, Opened>, kept: &mut &'static Device<T, Opened>) {
//!     *kept = device;
//! }
//! ```
//!
//! # The members of `struct vfio_device_ops`
//!
//! | Member                 | Here                                                              |
//! |------------------------|-------------------------------------------------------------------|
//! | `name`                 | the name of the driver's module                                   |
//! | `init`                 | fixed by [`Operations::Base`]; data has an initializer            |
//! | `release`              | not for drivers: can run after their module was unloaded          |
//! | `bind_iommufd`         | fixed by [`Operations::Base`]: physical or emulated               |
//! | `unbind_iommufd`       | fixed by [`Operations::Base`]: physical or emulated               |
//! | `attach_ioas`          | fixed by [`Operations::Base`]: physical or emulated               |
//! | `detach_ioas`          | fixed by [`Operations::Base`]: physical or emulated               |
//! | `pasid_attach_ioas`    | fixed by [`Operations::Base`]: physical or `NULL`                 |
//! | `pasid_detach_ioas`    | fixed by [`Operations::Base`]: physical or `NULL`                 |
//! | `open_device`          | [`Operations::open`]                                              |
//! | `close_device`         | [`Drop`] of [`Operations::OpenData`]                              |
//! | `read`                 | [`Operations::read`]                                              |
//! | `write`                | [`Operations::write`]                                             |
//! | `ioctl`                | [`Operations::ioctl`] and others, see below                       |
//! | `get_region_info_caps` | [`Operations::region_info`]                                       |
//! | `mmap`                 | [`Operations::mmap`]                                              |
//! | `get_unmapped_area`    | [`Operations::get_unmapped_area`]                                 |
//! | `request`              | [`Operations::request`]                                           |
//! | `match`                | [`Operations::matches`]                                           |
//! | `match_token_uuid`     | [`Operations::match_token`]                                       |
//! | `dma_unmap`            | [`Operations::dma_unmap`]                                         |
//! | `device_feature`       | [`Operations::feature`]                                           |
//!
//! A member whose method the driver does not implement is that of the base: the function of the C
//! code that the device is built on or, if there is none, `NULL`.
//!
//! Of the ioctls that the core leaves to drivers, those that are the same for all kinds of devices
//! are decoded for [`Operations::info`], [`Operations::info_capabilities`],
//! [`Operations::irq_info`], [`Operations::set_irqs`], [`Operations::irq_event`] and
//! [`Operations::reset`].
//!
//! C header: [`include/linux/vfio.h`](srctree/include/linux/vfio.h)

pub mod dma;
pub mod emulated;
pub mod feature;
pub mod info;
pub mod ioctl;
pub mod irq;
pub mod placement;
pub mod region;

mod base;
mod capability;
mod context;
mod device;
mod memory;
mod operations;
mod pins;
mod registry;
mod shared;
mod virqfd;
mod vtable;

pub use self::{
    base::Base,
    context::{
        Context,
        InRegion,
        Matching,
        MatchingToken,
        Mmap,
        Normal,
        Opened,
        Opening,
        Requesting,
        Resetting, //
    },
    device::Device,
    memory::Memory,
    operations::{
        DeviceInfo,
        Kind,
        Operations, //
    },
};
