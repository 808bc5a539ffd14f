// SPDX-License-Identifier: GPL-2.0-only

//! Rust VFIO sample: what vfio-pci does, for any PCI device.
//!
//! All of it is done by vfio-pci-core. A driver for devices of one type starts from here, and
//! implements the methods of [`vfio::Operations`] in which its devices differ.
//!
//! A device is given to the driver by its `driver_override`, or by an id that the driver gets when
//! it is loaded:
//!
//! ```sh
//! echo rust_vfio_pci > /sys/bus/pci/devices/0000:00:04.0/driver_override
//! echo 0000:00:04.0 > /sys/bus/pci/drivers_probe
//!
//! echo 1b36 0005 > /sys/bus/pci/drivers/rust_vfio_pci/new_id
//! ```
//!
//! What only vfio-pci has is its list of devices that are not to be given away, the regions of
//! Intel graphics, and the module parameters `ids` and `disable_denylist`.

use kernel::{
    pci,
    prelude::*,
    vfio, //
};

struct PciDriver;

#[vtable]
impl vfio::Operations for PciDriver {
    type Base = vfio::pci::Base;
    type RegistrationData<'bound> = ();
    type OpenData<'open> = ();

    fn open<'open, 'bound: 'open>(
        _device: &'open vfio::Device<Self, vfio::Opening>,
        _data: Pin<&'open ()>,
    ) -> impl PinInit<(), Error> {
        Ok(())
    }
}

kernel::pci_device_table!(
    PCI_TABLE,
    @none,
    [pci::DeviceId::from_class(0, 0).for_vfio()]
);

#[vtable]
impl vfio::pci::Driver for PciDriver {
    type IdInfo = ();
    const ID_TABLE: pci::IdTable<()> = &PCI_TABLE;

    fn probe<'bound>(
        _dev: &'bound pci::Device,
        _id_info: Option<&'bound ()>,
    ) -> impl PinInit<(), Error> + 'bound {
        Ok(())
    }

    fn settings(_dev: &pci::Device) -> vfio::pci::Settings {
        vfio::pci::Settings {
            no_intx_mask: module_parameters::nointxmask.value(),
            disable_vga: module_parameters::disable_vga.value(),
            disable_idle_d3: module_parameters::disable_idle_d3.value(),
        }
    }

    fn sriov_configure(
        device: &vfio::Device<Self, vfio::pci::Configuring>,
        _data: Pin<&()>,
        count: u32,
    ) -> Result<u32> {
        if !module_parameters::enable_sriov.value() {
            return Err(ENOENT);
        }
        device.core_sriov_configure(count)
    }
}

kernel::module_vfio_pci_driver! {
    type: PciDriver,
    name: "rust_vfio_pci",
    authors: ["Rust for Linux Contributors"],
    description: "Rust VFIO sample: what vfio-pci does, for any PCI device",
    license: "GPL",
    params: {
        enable_sriov: bool {
            default: false,
            description: "Whether virtual functions can be enabled",
        },
        nointxmask: bool {
            default: false,
            description: "Whether not to mask INTx by PCI 2.3",
        },
        disable_vga: bool {
            default: false,
            description: "Whether not to give access to the addresses of legacy VGA",
        },
        disable_idle_d3: bool {
            default: false,
            description: "Whether not to put unused devices into D3",
        },
    },
}
