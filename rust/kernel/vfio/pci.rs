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
//! | [`Operations::info`]                | [`Device::core_info`]                                  |
//! | [`Operations::info_capabilities`]   | called before, adds its own                            |
//! | [`Operations::read`]                | [`Device::core_read`]                                  |
//! | [`Operations::write`]               | [`Device::core_write`]                                 |
//! | [`Operations::region_info`]         | [`Device::core_region_info`]                           |
//! | [`Operations::irq_info`]            | [`Device::core_irq_info`]                              |
//! | [`Operations::set_irqs`]            | [`Device::core_set_irqs`]                              |
//! | [`Operations::mmap`]                | [`Device::core_mmap`]                                  |
//! | [`Operations::get_unmapped_area`]   | [`Device::core_get_unmapped_area`]                     |
//! | [`Operations::reset`]               | [`Device::core_reset`]                                 |
//! | [`Operations::ioctl`]               | [`Device::core_ioctl`]                                 |
//! | [`Operations::feature`]             | [`Device::core_feature`]                               |
//! | [`Operations::request`]             | [`Device::core_request`]                               |
//! | [`Operations::matches`]             | [`Device::core_matches`]                               |
//! | [`Operations::match_token`]         | [`Device::core_match_token`]                           |
//! | [`Driver::sriov_configure`]         | [`Device::core_sriov_configure`]                       |
//! | [`Driver::export_dma_buf`]          | [`dma_buf::Export::core_export`]                       |
//! | [`Driver::error_detected`]          | called after the method                                |
//!
//! Each takes a value, or is for a context, that no other method has, so that none of them leads
//! back to the method that it is called by. What can be done to reset a device
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

#[expect(unused_imports, reason = "the documentation names them")]
use super::{
    Device,
    Operations, //
};
use crate::bindings;

mod bar;
mod base;
mod delegate;
pub mod dma_buf;
mod driver;
mod region;
#[cfg(all(CONFIG_RUST_VFIO_KUNIT_TEST, CONFIG_VFIO_PCI_CORE = "y"))]
mod tests;

pub use self::{
    bar::Bar,
    base::Base,
    delegate::Configuring,
    driver::{
        Adapter,
        ChannelState,
        Driver,
        Settings, //
    },
    region::{
        vendor_kind,
        Region, //
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

/// The indices of interrupts that all PCI devices have: INTx, MSI, MSI-X, errors and requests of
/// the driver. A driver's own can follow.
pub const NUM_IRQS: u32 = bindings::VFIO_PCI_NUM_IRQS;
