// SPDX-License-Identifier: GPL-2.0-only

//! Rust VFIO sample: a device that is memory.
//!
//! It has one region, which userspace can read, write and map, and one interrupt, which it can
//! trigger itself, mask and unmask. There is no hardware. Userspace opens the device through its
//! IOMMU group or through `/dev/vfio/devices/vfioX`, as any other.

use kernel::{
    eventfd, new_mutex,
    page::PAGE_SHIFT,
    prelude::*,
    sizes::SZ_4M,
    sync::Mutex,
    vfio::{
        self,
        emulated,
        irq,
        placement,
        region, //
    },
};

module! {
    type: SampleModule,
    name: "rust_vfio_mem",
    authors: ["Rust for Linux Contributors"],
    description: "Rust VFIO sample: a device that is memory",
    license: "GPL",
    params: {
        place: bool {
            default: true,
            description: "Whether to have a say in the addresses of mappings",
        },
    },
}

/// The only region.
const MEMORY: u32 = 0;
const MEMORY_SIZE: usize = SZ_4M;

/// The largest piece of the region that is worth an address of its own: all of it.
const MEMORY_ORDER: u32 = MEMORY_SIZE.ilog2() - PAGE_SHIFT as u32;

/// The only interrupt.
const DOORBELL: u32 = 0;

struct MemDriver;

/// What the device is, from when it is registered until it is unregistered.
struct Hardware {
    memory: vfio::Memory,
    place: bool,
}

/// What its user has set up, from the first open to the last close.
#[pin_data]
struct Session<'open> {
    hardware: &'open Hardware,
    #[pin]
    doorbell: Mutex<Doorbell>,
}

/// The state of the interrupt.
#[derive(Default)]
struct Doorbell {
    eventfd: Option<eventfd::Context>,
    masked: bool,
    /// It was triggered while it was masked.
    pending: bool,
}

impl Doorbell {
    fn ring(&mut self) {
        if self.masked {
            self.pending = true;
        } else if let Some(eventfd) = &self.eventfd {
            eventfd.signal();
        }
    }

    fn set_masked(&mut self, masked: bool) {
        self.masked = masked;
        if !masked && core::mem::take(&mut self.pending) {
            self.ring();
        }
    }
}

#[vtable]
impl vfio::Operations for MemDriver {
    type Base = emulated::Base;
    type RegistrationData<'bound> = Hardware;
    type OpenData<'open> = Session<'open>;

    fn open<'open, 'bound: 'open>(
        _device: &'open vfio::Device<Self, vfio::Opening>,
        hardware: Pin<&'open Hardware>,
    ) -> impl PinInit<Session<'open>, Error> {
        // A user finds the device as it was when it was loaded.
        hardware.memory.clear();

        try_pin_init!(Session {
            hardware: hardware.get_ref(),
            doorbell <- new_mutex!(Doorbell::default()),
        })
    }

    fn info(
        _device: &vfio::Device<Self, vfio::Opened>,
        _this: Pin<&Session<'_>>,
    ) -> vfio::DeviceInfo {
        vfio::DeviceInfo {
            kind: vfio::Kind::Other,
            num_regions: MEMORY + 1,
            num_irqs: DOORBELL + 1,
        }
    }

    fn region_info(
        _device: &vfio::Device<Self, vfio::Opened>,
        this: Pin<&Session<'_>>,
        index: u32,
        _capabilities: &mut region::Capabilities<'_>,
    ) -> Result<region::Info> {
        match index {
            MEMORY => Ok(region::Info {
                size: this.hardware.memory.size(),
                flags: region::Flag::Read | region::Flag::Write | region::Flag::Mmap,
            }),
            _ => Err(EINVAL),
        }
    }

    fn read(
        _device: &vfio::Device<Self, vfio::Opened>,
        this: Pin<&Session<'_>>,
        access: &mut region::Read,
    ) -> Result {
        match access.position().index {
            MEMORY => this.hardware.memory.read(access),
            _ => Err(EINVAL),
        }
    }

    fn write(
        _device: &vfio::Device<Self, vfio::Opened>,
        this: Pin<&Session<'_>>,
        access: &mut region::Write,
    ) -> Result {
        match access.position().index {
            MEMORY => this.hardware.memory.write(access),
            _ => Err(EINVAL),
        }
    }

    fn mmap<'request>(
        _device: &vfio::Device<Self, vfio::Mmap>,
        this: Pin<&Session<'_>>,
        mapping: region::Mapping<'request>,
    ) -> Result<region::Mapped<'request>> {
        match mapping.position().index {
            MEMORY => this.hardware.memory.map(mapping),
            _ => Err(EINVAL),
        }
    }

    #[inline]
    fn get_unmapped_area<'request>(
        _device: &vfio::Device<Self, vfio::Mmap>,
        this: Pin<&Session<'_>>,
        search: placement::Search<'request>,
    ) -> Result<placement::Placement<'request>> {
        // Addresses that look like the offsets they stand for are of no use to memory that is
        // mapped page by page. A device whose memory lies together would gain larger leaves.
        match search.position().index {
            MEMORY if this.hardware.place => Ok(search.congruent_to_offset(MEMORY_ORDER)),
            _ => Ok(search.anywhere()),
        }
    }

    fn irq_info(
        _device: &vfio::Device<Self, vfio::Opened>,
        _this: Pin<&Session<'_>>,
        index: u32,
    ) -> Result<irq::Info> {
        match index {
            DOORBELL => Ok(irq::Info {
                count: 1,
                flags: irq::Flag::EventFd | irq::Flag::Maskable,
            }),
            _ => Err(EINVAL),
        }
    }

    fn set_irqs(
        _device: &vfio::Device<Self, vfio::Opened>,
        this: Pin<&Session<'_>>,
        request: irq::SetIrqs<'_>,
    ) -> Result {
        let irq::Command {
            count,
            action,
            data,
            ..
        } = request.decode()?;
        let mut doorbell = this.doorbell.lock();

        let now = match data {
            irq::Data::None if count == 0 && action == irq::Action::Trigger => {
                *doorbell = Doorbell::default();
                false
            }
            irq::Data::None => count > 0,
            irq::Data::Bool(which) => which.iter().any(|now| *now),
            irq::Data::EventFd(eventfds) => {
                doorbell.eventfd = eventfds.into_iter().next().flatten();
                false
            }
        };
        if now {
            match action {
                irq::Action::Trigger => doorbell.ring(),
                irq::Action::Mask => doorbell.set_masked(true),
                irq::Action::Unmask => doorbell.set_masked(false),
            }
        }
        Ok(())
    }

    const MASKED_BY_EVENTFD: &'static [u32] = &[DOORBELL];

    fn irq_event(
        _device: &vfio::Device<Self, vfio::InRegion>,
        this: Pin<&Session<'_>>,
        _index: u32,
        _number: u32,
        action: irq::Action,
    ) {
        this.doorbell.lock().set_masked(action == irq::Action::Mask);
    }

    fn reset(_device: &vfio::Device<Self, vfio::Resetting>, this: Pin<&Session<'_>>) -> Result {
        this.hardware.memory.clear();
        *this.doorbell.lock() = Doorbell::default();
        Ok(())
    }
}

struct SampleModule {
    _registration: emulated::Registration<MemDriver>,
}

impl kernel::Module for SampleModule {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        let hardware = Hardware {
            memory: vfio::Memory::new(MEMORY_SIZE)?,
            place: module_parameters::place.value(),
        };
        let registration = emulated::Registration::new(c"rust_vfio_mem", Ok(hardware))?;

        dev_info!(registration.device(), "ready\n");

        Ok(Self {
            _registration: registration,
        })
    }
}
