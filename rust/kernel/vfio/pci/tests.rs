// SPDX-License-Identifier: GPL-2.0-only

//! KUnit tests of what is decided without a device.

#[cfg(CONFIG_VFIO_PCI_DMABUF)]
use super::dma_buf::{
    Export,
    Exported, //
};
use super::{
    super::{
        base::private::Base as _,
        irq,
        region,
        vtable::VTable,
        Device,
        DeviceInfo,
        Kind,
        Opened,
        Opening,
        Operations,
        Resetting, //
    },
    region::{
        checked_index,
        checked_size, //
    },
    Base,
    ChannelState,
    Settings,
    NUM_REGIONS, //
};
#[cfg(CONFIG_VFIO_PCI_DMABUF)]
use crate::page::PAGE_SIZE;
use crate::{
    alloc::flags::__GFP_ZERO,
    bindings,
    pci,
    prelude::*, //
};

/// What the vfio-pci core keeps of a device, of one that is none.
fn core_device() -> Result<KBox<bindings::vfio_pci_core_device>> {
    let core = KBox::new_uninit(GFP_KERNEL | __GFP_ZERO)?;
    // SAFETY: All members of the structure are of C, and zero is a value of each. bindgen does not
    // know it of those whose alignment depends on the configuration.
    Ok(unsafe { core.assume_init() })
}

/// What the PCI core keeps of a device, of one that is none.
#[cfg(CONFIG_VFIO_PCI_DMABUF)]
fn pci_device() -> Result<KBox<bindings::pci_dev>> {
    let pdev = KBox::new_uninit(GFP_KERNEL | __GFP_ZERO)?;
    // SAFETY: All members of the structure are of C, and zero is a value of each.
    Ok(unsafe { pdev.assume_init() })
}

/// Asks where two ranges of region 2 are, and returns what `answer` says: by which provider they
/// are reached, their addresses and lengths.
///
/// Of `core` everything must be set that vfio-pci-core looks at for that.
#[cfg(CONFIG_VFIO_PCI_DMABUF)]
fn exported(
    core: &mut bindings::vfio_pci_core_device,
    ranges: [(u64, u64); 2],
    answer: impl for<'a> FnOnce(Export<'a>) -> Result<Exported<'a>>,
) -> Result<(*mut bindings::p2pdma_provider, [(u64, u64); 2])> {
    let mut ranges =
        ranges.map(|(offset, length)| bindings::vfio_region_dma_range { offset, length });
    let mut phys_vec = [bindings::phys_vec::default(); 2];
    let mut provider = core::ptr::null_mut();

    // SAFETY: All of this outlives the export, and nobody else uses it.
    let export = unsafe {
        Export::new(
            core,
            &mut provider,
            2,
            phys_vec.as_mut_ptr(),
            ranges.as_mut_ptr(),
            ranges.len(),
        )
    };
    assert_eq!(export.region(), 2);
    let _exported = answer(export)?;
    Ok((provider, phys_vec.map(|vec| (vec.paddr, vec.len as u64))))
}

#[kunit_tests(rust_vfio_pci)]
mod cases {
    use super::*;

    /// A driver that implements nothing that it need not.
    struct Plain;

    #[vtable]
    impl Operations for Plain {
        type Base = Base;
        type RegistrationData<'bound> = ();
        type OpenData<'open> = ();

        fn open<'open, 'bound: 'open>(
            _device: &'open Device<Self, Opening>,
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
            _device: &'open Device<Self, Opening>,
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

    #[test]
    fn regions() {
        assert_eq!(checked_size(0), Ok(0));
        assert_eq!(
            checked_size(1 << 40),
            usize::try_from(1u64 << 40).map_err(|_| EOVERFLOW)
        );
        assert_eq!(checked_size((1 << 40) + 1), Err(EOVERFLOW));
        assert_eq!(checked_size(u64::MAX), Err(EOVERFLOW));

        // The last one that the position in a file has room for.
        let last = (1 << 23) - 1 - NUM_REGIONS as c_int;
        assert_eq!(checked_index(0), Ok(NUM_REGIONS));
        assert_eq!(checked_index(last), Ok((1 << 23) - 1));
        assert_eq!(checked_index(last + 1), Err(ENOSPC));
        assert_eq!(checked_index(c_int::MAX), Err(ENOSPC));
    }

    #[test]
    fn settings() -> Result {
        let mut core = core_device()?;
        for bits in 0..8 {
            let [no_intx_mask, disable_vga, disable_idle_d3] = [1, 2, 4].map(|bit| bits & bit != 0);
            let settings = Settings {
                no_intx_mask,
                disable_vga,
                disable_idle_d3,
            };
            // SAFETY: The structure is valid, and not a device.
            unsafe { settings.apply(&mut *core) };
            assert_eq!(core.nointxmask(), no_intx_mask);
            assert_eq!(core.disable_vga(), disable_vga);
            assert_eq!(core.disable_idle_d3(), disable_idle_d3);
            // Its neighbours among the bits.
            assert!(!core.has_dyn_msix() && !core.needs_pm_restore());
        }
        Ok(())
    }

    /// What vfio-pci-core says of a device, as `vfio_pci_ioctl_get_irq_info()` does.
    #[test]
    fn infos() -> Result {
        const MSI: u8 = 0x50;
        const MSIX: u8 = 0x70;

        /// Reads the flags of the capabilities: 8 vectors of MSI, and 2048 of MSI-X.
        unsafe extern "C" fn read(
            _bus: *mut bindings::pci_bus,
            _devfn: c_uint,
            offset: c_int,
            size: c_int,
            value: *mut u32,
        ) -> c_int {
            assert_eq!(size, 2);
            let flags = match offset as u8 {
                flags if flags == MSI + bindings::PCI_MSI_FLAGS as u8 => 0xff87,
                flags if flags == MSIX + bindings::PCI_MSIX_FLAGS as u8 => 0xffff,
                _ => 0,
            };
            // SAFETY: The function that calls this has a variable there.
            unsafe { *value = flags };
            0
        }
        let mut ops = bindings::pci_ops {
            read: Some(read),
            ..pin_init::zeroed()
        };
        let zeroed = GFP_KERNEL | __GFP_ZERO;
        // SAFETY: All members of the structures are of C, and zero is a value of each.
        let (mut bus, mut pdev) = unsafe {
            (
                KBox::<bindings::pci_bus>::new_uninit(zeroed)?.assume_init(),
                KBox::<bindings::pci_dev>::new_uninit(zeroed)?.assume_init(),
            )
        };
        let mut config = [0u8; 256];
        let mut core = core_device()?;
        bus.ops = &mut ops;
        pdev.bus = &mut *bus;
        core.pdev = &mut *pdev;
        core.vconfig = config.as_mut_ptr();
        core.num_regions = 3;
        let vdev = &raw mut core.vdev;

        // SAFETY: What the function looks at is there.
        let info = unsafe { Base::info(vdev) };
        let expected = DeviceInfo {
            kind: Kind::Pci,
            num_regions: NUM_REGIONS + 3,
            num_irqs: 5,
        };
        assert_eq!(info, expected);

        let eventfd = irq::Flags::from(irq::Flag::EventFd);
        let fixed = eventfd | irq::Flag::NoResize;
        let intx = eventfd | irq::Flag::Maskable | irq::Flag::AutoMasked;
        // SAFETY: What the function looks at is there.
        let infos = || [0, 1, 2, 3, 4].map(|index| unsafe { Base::irq_info(vdev, index) });
        let expect = |counts: [u32; 5], flags: [irq::Flags; 5]| {
            let mut at = 0;
            [(); 5].map(|()| {
                at += 1;
                Ok(irq::Info {
                    count: counts[at - 1],
                    flags: flags[at - 1],
                })
            })
        };
        let flags = [intx, fixed, fixed, fixed, fixed];
        assert_eq!(infos(), expect([0, 0, 0, 1, 1], flags));

        // SAFETY: `pdev` and the configuration space are those from above.
        unsafe {
            (*core.pdev).msi_cap = MSI;
            (*core.pdev).msix_cap = MSIX;
            *core.vconfig.add(bindings::PCI_INTERRUPT_PIN as usize) = 4;
        }
        assert_eq!(infos(), expect([1, 8, 2048, 1, 1], flags));

        core.set_has_dyn_msix(true);
        let flags = [intx, fixed, eventfd, fixed, fixed];
        assert_eq!(infos(), expect([1, 8, 2048, 1, 1], flags));
        for index in [5, 6, u32::MAX] {
            // SAFETY: What the function looks at is there.
            assert_eq!(unsafe { Base::irq_info(vdev, index) }, Err(EINVAL));
        }
        Ok(())
    }

    #[test]
    fn channel_states() {
        use bindings::{
            pci_channel_io_frozen,
            pci_channel_io_normal,
            pci_channel_io_perm_failure, //
        };
        let known = [
            (pci_channel_io_normal, ChannelState::Normal),
            (pci_channel_io_frozen, ChannelState::Frozen),
            (pci_channel_io_perm_failure, ChannelState::PermanentFailure),
            (0, ChannelState::PermanentFailure),
        ];
        for (raw, state) in known {
            assert_eq!(ChannelState::from_raw(raw), state);
        }
    }

    /// A device that has been released is not on the list of its set, whoever still has it.
    #[test]
    fn release() -> Result {
        fn init(list: *mut bindings::list_head) {
            // SAFETY: The callers pass on what they own.
            unsafe { bindings::INIT_LIST_HEAD(list) };
        }
        let mut set = KBox::init(
            pin_init::init_zeroed::<bindings::vfio_device_set>(),
            GFP_KERNEL,
        )?;
        let (mut one, mut other) = (core_device()?, core_device()?);

        init(&mut set.device_list);
        // SAFETY: The lock is in memory that is not moved. The key is static.
        unsafe {
            bindings::__mutex_init(
                &mut set.lock,
                c"set".as_char_ptr(),
                crate::static_lock_class!().as_ptr(),
            )
        };
        for core in [&mut one, &mut other] {
            core.vdev.dev_set = &mut *set;
            // SAFETY: Both are valid, and not on a list yet.
            unsafe {
                bindings::list_add_tail(&mut core.vdev.dev_set_list, &mut set.device_list);
            }
        }

        // SAFETY: The device is not registered, and used no more but to look at it.
        unsafe { Base::release(&mut one.vdev) };
        assert_eq!(set.device_list.next, &raw mut other.vdev.dev_set_list);
        assert_eq!(set.device_list.prev, &raw mut other.vdev.dev_set_list);
        // The VFIO core takes it off the list again.
        assert_eq!(one.vdev.dev_set_list.next, &raw mut one.vdev.dev_set_list);
        assert_eq!(one.vdev.dev_set_list.prev, &raw mut one.vdev.dev_set_list);
        Ok(())
    }

    /// What BARs the answer to an export can name, and where in physical memory they are.
    #[cfg(CONFIG_VFIO_PCI_DMABUF)]
    #[test]
    fn dma_bufs() -> Result {
        const PAGE: u64 = PAGE_SIZE as u64;
        const LEN: u64 = 16 * PAGE;
        const START: u64 = 1 << 32;

        // Of a device that nobody uses the function that is called needs the address only.
        let mut p2pdma = KBox::new([0u64; 64], GFP_KERNEL)?;
        let mut pdev = pci_device()?;
        let mut core = core_device()?;

        // BARs 2 and 3 are memory that is claimed, 4 is not claimed, 0 is ports.
        pdev.p2pdma = p2pdma.as_mut_ptr().cast();
        core.barmap = [EBUSY.to_ptr(); 6];
        for bar in [0, 2, 3, 4] {
            let start = START * bar as u64;
            pdev.resource[bar].start = start;
            pdev.resource[bar].end = start + LEN - 1;
            pdev.resource[bar].flags = bindings::IORESOURCE_MEM as usize;
            if bar != 4 {
                core.barmap[bar] = core::ptr::dangling_mut::<u8>().cast();
            }
        }
        pdev.resource[0].flags = bindings::IORESOURCE_IO as usize;
        core.pdev = &mut *pdev;

        // The BAR of the region, to its end and no further
        let ranges = [(0, PAGE), (PAGE, LEN - PAGE)];
        let (two, places) = exported(&mut core, ranges, |it| it.core_export())?;
        assert!(!two.is_null());
        assert_eq!(
            places,
            ranges.map(|(offset, len)| (2 * START + offset, len))
        );
        let found = exported(&mut core, ranges, |it| it.part_of_bar(2, 0..LEN));
        assert_eq!(found, Ok((two, places)));
        let beyond = [(0, PAGE), (PAGE, LEN)];
        let found = exported(&mut core, beyond, |it| it.core_export());
        assert_eq!(found, Err(EINVAL));

        // A part of another
        let ranges = [(3 * PAGE, PAGE), (0, 4 * PAGE)];
        let part = 2 * PAGE..6 * PAGE;
        let (three, places) = exported(&mut core, ranges, |it| it.part_of_bar(3, part))?;
        assert!(!three.is_null() && three != two);
        let start = 3 * START + 2 * PAGE;
        assert_eq!(places, ranges.map(|(offset, len)| (start + offset, len)));
        for part in [2 * PAGE..5 * PAGE, 2 * PAGE..2 * PAGE, LEN..LEN] {
            let found = exported(&mut core, ranges, |it| it.part_of_bar(3, part));
            assert_eq!(found, Err(EINVAL));
        }

        // Parts that there are not, and those that are not of whole pages
        let ranges = [(0, PAGE); 2];
        for (start, end) in [
            (0, LEN + PAGE),
            (LEN, LEN + PAGE),
            (2 * PAGE, PAGE),
            (0, PAGE + 1),
            (1, 2 * PAGE),
            (PAGE / 2, 2 * PAGE + PAGE / 2),
            (u64::MAX - PAGE + 1, PAGE),
            (0, u64::MAX - PAGE + 1),
        ] {
            let found = exported(&mut core, ranges, |it| it.part_of_bar(3, start..end));
            assert_eq!(found, Err(EINVAL));
        }

        // No BAR of memory, none that is claimed, and numbers that are none of BARs
        for (bar, err) in [
            (0, EINVAL),
            (4, EBUSY),
            (5, EINVAL),
            (6, EINVAL),
            (u32::MAX, EINVAL),
        ] {
            let found = exported(&mut core, ranges, |it| it.part_of_bar(bar, 0..PAGE));
            assert_eq!(found, Err(err));
        }
        Ok(())
    }
}
