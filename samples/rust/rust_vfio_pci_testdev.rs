// SPDX-License-Identifier: GPL-2.0-only

//! Rust VFIO sample: a driver for one type of PCI devices, QEMU's `pci-testdev`.
//!
//! To vfio-pci it adds
//! - another subsystem than the device has, in the configuration space as userspace reads it;
//! - a region of its own: a notebook, of memory that can be read, written and mapped;
//! - an interrupt of its own, which says that the notebook has been cleared;
//! - places for the mappings of the notebook, of which those that differ by a multiple of its size
//!   are at addresses that do so, too;
//! - a reset that clears the notebook, and stops the test that the device is running;
//! - what other devices can have of its BARs as dma-bufs: half of the memory, and no registers.
//!
//! QEMU makes the device with `-device pci-testdev`.

use kernel::{
    eventfd,
    io::Io,
    new_mutex,
    page::PAGE_SHIFT,
    pci,
    prelude::*,
    sizes::SZ_2M,
    sync::{
        Arc,
        Mutex, //
    },
    vfio::{
        self,
        irq,
        pci::dma_buf,
        placement,
        region, //
    },
};

/// The device of QEMU.
const VENDOR: pci::Vendor = pci::Vendor::REDHAT;
const DEVICE: u32 = 0x0005;

/// Where the subsystem's vendor and device are in the configuration space, and what they are.
const SUBSYSTEM: u64 = 0x2c;
const SUBSYSTEM_ID: [u8; 4] = [0x36, 0x1b, 0x52, 0x53];

/// What the notebook is, in numbers that the vendor defines.
const NOTEBOOK: u32 = 1;
const NOTEBOOK_SIZE: usize = SZ_2M;
const NOTEBOOK_ORDER: u32 = NOTEBOOK_SIZE.ilog2() - PAGE_SHIFT as u32;

/// The index of the interrupt for that, behind those that all PCI devices have.
const CLEARED: u32 = vfio::pci::NUM_IRQS;

/// The BAR of the registers, of which the driver uses the one that selects a test.
const REGISTERS: u32 = 0;
const REGISTERS_SIZE: usize = 0x10;
const TEST: usize = 0x0;

/// The BAR of the memory.
const MEMORY: u32 = 2;

struct TestdevDriver;

/// A region that is memory.
struct Notebook(Arc<vfio::Memory>);

#[vtable]
impl vfio::pci::Region for Notebook {
    type Driver = TestdevDriver;

    fn read(
        &self,
        _device: &vfio::Device<TestdevDriver, vfio::InRegion>,
        access: &mut region::Read,
    ) -> Result {
        self.0.read(access)
    }

    fn write(
        &self,
        _device: &vfio::Device<TestdevDriver, vfio::InRegion>,
        access: &mut region::Write,
    ) -> Result {
        self.0.write(access)
    }

    fn mmap<'request>(
        &self,
        _device: &vfio::Device<TestdevDriver, vfio::InRegion>,
        mapping: region::Mapping<'request>,
    ) -> Result<region::Mapped<'request>> {
        self.0.map(mapping)
    }

    fn get_unmapped_area<'request>(
        &self,
        _device: &vfio::Device<TestdevDriver, vfio::InRegion>,
        search: placement::Search<'request>,
    ) -> Result<placement::Placement<'request>> {
        Ok(search.congruent_to_offset(NOTEBOOK_ORDER))
    }
}

/// What there is while the device is open.
#[pin_data]
struct Session<'open> {
    notebook: Arc<vfio::Memory>,
    registers: vfio::pci::Bar<'open, REGISTERS_SIZE>,
    #[pin]
    cleared: Mutex<Option<eventfd::Context>>,
}

impl<'open> Session<'open> {
    fn new(device: &'open vfio::Device<TestdevDriver, vfio::Opening>) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            notebook: Self::add_notebook(device)?,
            registers: device.bar_sized(REGISTERS)?,
            cleared <- new_mutex!(None),
        })
    }

    fn add_notebook(
        device: &vfio::Device<TestdevDriver, vfio::Opening>,
    ) -> Result<Arc<vfio::Memory>> {
        let notebook = Arc::new(vfio::Memory::new(NOTEBOOK_SIZE)?, GFP_KERNEL)?;
        let info = region::Info {
            size: notebook.size(),
            flags: region::Flag::Read | region::Flag::Write | region::Flag::Mmap,
        };

        device.add_region(
            vfio::pci::vendor_kind(VENDOR.as_raw()),
            NOTEBOOK,
            info,
            Notebook(notebook.clone()),
        )?;
        Ok(notebook)
    }
}

#[vtable]
impl vfio::Operations for TestdevDriver {
    type Base = vfio::pci::Base;
    type RegistrationData<'bound> = ();
    type OpenData<'open> = Session<'open>;

    fn open<'open, 'bound: 'open>(
        device: &'open vfio::Device<Self, vfio::Opening>,
        _data: Pin<&'open ()>,
    ) -> impl PinInit<Session<'open>, Error> {
        Session::new(device)
    }

    fn read(
        device: &vfio::Device<Self, vfio::Opened>,
        _this: Pin<&Session<'_>>,
        access: &mut region::Read,
    ) -> Result {
        if access.position().index != vfio::pci::CONFIG_REGION {
            return device.core_read(access);
        }
        access.replace(SUBSYSTEM, &SUBSYSTEM_ID, |access| device.core_read(access))
    }

    fn info(
        device: &vfio::Device<Self, vfio::Opened>,
        _this: Pin<&Session<'_>>,
    ) -> vfio::DeviceInfo {
        vfio::DeviceInfo {
            num_irqs: CLEARED + 1,
            ..device.core_info()
        }
    }

    fn irq_info(
        device: &vfio::Device<Self, vfio::Opened>,
        _this: Pin<&Session<'_>>,
        index: u32,
    ) -> Result<irq::Info> {
        match index {
            CLEARED => Ok(irq::Info {
                count: 1,
                flags: irq::Flag::EventFd.into(),
            }),
            _ => device.core_irq_info(index),
        }
    }

    fn set_irqs(
        device: &vfio::Device<Self, vfio::Opened>,
        this: Pin<&Session<'_>>,
        request: irq::SetIrqs<'_>,
    ) -> Result {
        if request.index() != CLEARED {
            return device.core_set_irqs(request);
        }

        let command = request.decode()?;
        match (command.action, command.data) {
            (irq::Action::Trigger, irq::Data::EventFd(eventfds)) => {
                *this.cleared.lock() = eventfds.into_iter().next().flatten();
                Ok(())
            }
            (irq::Action::Trigger, irq::Data::None) if command.count == 0 => {
                *this.cleared.lock() = None;
                Ok(())
            }
            _ => Err(EINVAL),
        }
    }

    fn reset(device: &vfio::Device<Self, vfio::Resetting>, this: Pin<&Session<'_>>) -> Result {
        this.notebook.clear();
        if let Some(eventfd) = &*this.cleared.lock() {
            eventfd.signal();
        }
        this.registers.write8(0, TEST);

        // The device of QEMU has no reset that vfio-pci-core knows of, which is no reason to fail.
        match device.core_reset() {
            Err(err) if err != EINVAL => Err(err),
            _ => Ok(()),
        }
    }
}

kernel::pci_device_table!(
    PCI_TABLE,
    @none,
    [pci::DeviceId::from_id(VENDOR, DEVICE).for_vfio()]
);

#[vtable]
impl vfio::pci::Driver for TestdevDriver {
    type IdInfo = ();
    const ID_TABLE: pci::IdTable<()> = &PCI_TABLE;

    fn probe<'bound>(
        _dev: &'bound pci::Device,
        _id_info: Option<&'bound ()>,
    ) -> impl PinInit<(), Error> + 'bound {
        Ok(())
    }

    fn export_dma_buf<'request>(
        device: &vfio::Device<Self, vfio::InRegion>,
        _this: Pin<&Session<'_>>,
        export: dma_buf::Export<'request>,
    ) -> Result<dma_buf::Exported<'request>> {
        match export.region() {
            // No other device is to start a test.
            REGISTERS => Err(EACCES),
            MEMORY => {
                let len = device.parent().resource_len(MEMORY)?;
                export.part_of_bar(MEMORY, 0..len / 2)
            }
            _ => export.core_export(),
        }
    }
}

kernel::module_vfio_pci_driver! {
    type: TestdevDriver,
    name: "rust_vfio_pci_testdev",
    authors: ["Rust for Linux Contributors"],
    description: "Rust VFIO sample: a driver for one type of PCI devices",
    license: "GPL",
}
