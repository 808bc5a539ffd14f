// SPDX-License-Identifier: GPL-2.0-only

//! The functions of vfio-pci-core, for the methods that take their place.

use super::{
    super::{
        base::private::Base as _,
        context::private,
        feature,
        ioctl,
        irq,
        placement,
        region,
        Context,
        Device,
        DeviceInfo,
        Matching,
        MatchingToken,
        Mmap,
        Opened,
        Operations,
        Requesting,
        Resetting, //
    },
    Base, //
};
use crate::{
    bindings,
    error::to_result,
    prelude::*, //
};

impl<T: Operations<Base = Base>> Device<T, Opened> {
    /// Lets vfio-pci-core do what remains of a read.
    ///
    /// May sleep. Fails with the error of vfio-pci-core: [`EINVAL`] if there is nothing at the
    /// position, [`EFAULT`] if userspace has no memory where it said, [`EIO`] if the memory of the
    /// device is disabled.
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
    /// A read that userspace did not ask for is none:
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
    ///
    /// The methods of a [`Region`](super::Region) are called by this, and cannot call it again:
    ///
    /// ```ignore,compile_fail,E0599
    /// # use kernel::{prelude::*, vfio::{self, region, Device, InRegion}};
    /// fn read<T>(device: &Device<T, InRegion>, access: &mut region::Read) -> Result
    /// where
    ///     T: vfio::Operations<Base = vfio::pci::Base>,
    /// {
    ///     device.core_read(access)
    /// }
    /// ```
    #[inline]
    pub fn core_read(&self, access: &mut region::Read) -> Result {
        access.forward(|user, count, position| {
            // SAFETY: `Opened` is for a callback that is running, for whose time the core keeps the
            // device open. `position` is valid.
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

    /// Lets vfio-pci-core do what remains of a write.
    ///
    /// Fails as [`core_read`](Self::core_read) does.
    #[inline]
    pub fn core_write(&self, access: &mut region::Write) -> Result {
        access.forward(|user, count, position| {
            // SAFETY: `Opened` is for a callback that is running, for whose time the core keeps the
            // device open. `position` is valid.
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

    /// Returns what vfio-pci-core tells userspace of the device, with the regions that the driver
    /// has added.
    ///
    /// That the device can be reset, and its capabilities, vfio-pci-core tells userspace itself.
    #[inline]
    pub fn core_info(&self) -> DeviceInfo {
        // SAFETY: `Opened` is for a callback that is running, and the core keeps the device open
        // for that time.
        unsafe { Base::info(self.as_raw()) }
    }

    /// Returns what vfio-pci-core tells userspace of the interrupts `index`.
    ///
    /// Fails with [`EINVAL`] if vfio-pci-core knows of no such index.
    #[inline]
    pub fn core_irq_info(&self, index: u32) -> Result<irq::Info> {
        // SAFETY: `Opened` is for a callback that is running, and the core keeps the device open
        // for that time.
        unsafe { Base::irq_info(self.as_raw(), index) }
    }

    /// Lets vfio-pci-core set up interrupts, mask, unmask or trigger them, as userspace asked.
    ///
    /// Takes `igate` of vfio-pci-core, and waits for handlers of interrupts and for
    /// [`irq_event`](vfio::Operations::irq_event) of all devices: no lock must be held that this
    /// takes. Fails with the error of vfio-pci-core: [`EINVAL`] if there are no such interrupts, [`ENOTTY`] if they have
    /// nothing of the kind.
    ///
    /// vfio-pci-core reads the request from the memory of userspace again. Userspace that changes
    /// it meanwhile gets what it has changed it to, of the interrupts that vfio-pci-core has: to
    /// answer for one of these indices itself is for a driver that adds to them, and does not keep
    /// userspace from them.
    ///
    /// ```
    /// # use kernel::{prelude::*, vfio::{self, irq, Device, Opened}};
    /// fn set<T>(device: &Device<T, Opened>, request: irq::SetIrqs<'_>) -> Result
    /// where
    ///     T: vfio::Operations<Base = vfio::pci::Base>,
    /// {
    ///     device.core_set_irqs(request)
    /// }
    /// ```
    ///
    /// What the driver has done itself is not done again:
    ///
    /// ```ignore,compile_fail,E0382
    /// # use kernel::{prelude::*, vfio::{self, irq, Device, Opened}};
    /// fn set<T>(device: &Device<T, Opened>, request: irq::SetIrqs<'_>) -> Result
    /// where
    ///     T: vfio::Operations<Base = vfio::pci::Base>,
    /// {
    ///     request.decode()?;
    ///     device.core_set_irqs(request)
    /// }
    /// ```
    #[inline]
    pub fn core_set_irqs(&self, request: irq::SetIrqs<'_>) -> Result {
        // SAFETY: `Opened` is for a callback that is running, and the core keeps the device open
        // for that time.
        unsafe { Base::ioctl(self.as_raw(), ioctl::SET_IRQS, request.arg()) }?;
        Ok(())
    }

    /// Returns what vfio-pci-core tells userspace of region `index`, and adds its capabilities.
    ///
    /// Fails with [`EINVAL`] if there is no such region, and with [`ENOMEM`].
    pub fn core_region_info(
        &self,
        index: u32,
        capabilities: &mut region::Capabilities<'_>,
    ) -> Result<region::Info> {
        let mut info = bindings::vfio_region_info {
            index,
            ..Default::default()
        };

        // SAFETY: `Opened` is for a callback that is running, and the core keeps the device open
        // for that time. Both pointers are valid, and not used by anyone else.
        to_result(unsafe {
            bindings::vfio_pci_ioctl_get_region_info(
                self.as_raw(),
                &mut info,
                capabilities.as_raw(),
            )
        })?;
        Ok(region::Info::load(&info))
    }

    /// Lets vfio-pci-core handle an ioctl, and returns what it returns.
    ///
    /// May sleep, and accesses the memory of userspace; some ioctls take `dev_set->lock`. Fails
    /// with the error of vfio-pci-core: [`ENOTTY`] if it does not know the ioctl.
    ///
    /// ```
    /// # use kernel::{prelude::*, vfio::{self, ioctl::Ioctl, Device, Opened}};
    /// fn ioctl<T>(device: &Device<T, Opened>, ioctl: Ioctl<'_>) -> Result<isize>
    /// where
    ///     T: vfio::Operations<Base = vfio::pci::Base>,
    /// {
    ///     device.core_ioctl(ioctl)
    /// }
    /// ```
    ///
    /// [`Operations::irq_event`] is waited for with that lock held, and cannot take it:
    ///
    /// ```ignore,compile_fail,E0599
    /// # use kernel::{prelude::*, vfio::{self, ioctl::Ioctl, Device, InRegion}};
    /// fn irq_event<T>(device: &Device<T, InRegion>, ioctl: Ioctl<'_>) -> Result<isize>
    /// where
    ///     T: vfio::Operations<Base = vfio::pci::Base>,
    /// {
    ///     device.core_ioctl(ioctl)
    /// }
    /// ```
    #[inline]
    pub fn core_ioctl(&self, ioctl: ioctl::Ioctl<'_>) -> Result<isize> {
        // SAFETY: `Opened` is for a callback that is running, and the core keeps the device open
        // for that time.
        unsafe { Base::ioctl(self.as_raw(), ioctl.cmd(), ioctl.arg()) }
    }

    /// Lets vfio-pci-core handle a feature, and returns what it returns: for the feature that
    /// exports a dma-buf, the descriptor.
    ///
    /// May sleep, and accesses the memory of userspace. Fails with the error of vfio-pci-core:
    /// [`ENOTTY`] if it does not know the feature.
    #[inline]
    pub fn core_feature(&self, feature: feature::Feature<'_>) -> Result<c_int> {
        // SAFETY: `Opened` is for a callback that is running, and the core keeps the device open
        // for that time. The address is only reached as memory of userspace.
        let ret = unsafe {
            bindings::vfio_pci_core_ioctl_feature(
                self.as_raw(),
                feature.flags,
                feature.data.as_mut_ptr(),
                feature.size,
            )
        };
        to_result(ret)?;
        Ok(ret)
    }
}

impl<T: Operations<Base = Base>> Device<T, Mmap> {
    /// Lets vfio-pci-core map a part of a region.
    ///
    /// What is mapped of a BAR is filled in when userspace accesses it. Fails with the error of
    /// vfio-pci-core: [`EINVAL`] if the part is not in a region that can be mapped, or if the
    /// mapping is not shared.
    ///
    /// ```
    /// # use kernel::{prelude::*, vfio::{self, region, Device, Mmap}};
    /// fn map<'request, T>(
    ///     device: &Device<T, Mmap>,
    ///     mapping: region::Mapping<'request>,
    /// ) -> Result<region::Mapped<'request>>
    /// where
    ///     T: vfio::Operations<Base = vfio::pci::Base>,
    /// {
    ///     device.core_mmap(mapping)
    /// }
    /// ```
    ///
    /// What one has mapped, no other can map over it:
    ///
    /// ```ignore,compile_fail,E0382
    /// # use kernel::{prelude::*, vfio::{self, region, Device, Mmap}};
    /// fn map<'request, T>(
    ///     device: &Device<T, Mmap>,
    ///     memory: &vfio::Memory,
    ///     mapping: region::Mapping<'request>,
    /// ) -> Result<region::Mapped<'request>>
    /// where
    ///     T: vfio::Operations<Base = vfio::pci::Base>,
    /// {
    ///     device.core_mmap(mapping)?;
    ///     memory.map(mapping)
    /// }
    /// ```
    ///
    /// Neither can the flags of the vma be changed behind its back:
    ///
    /// ```ignore,compile_fail,E0599
    /// # use kernel::{prelude::*, vfio::{self, region, Device, Mmap}};
    /// fn map<'request, T>(
    ///     device: &Device<T, Mmap>,
    ///     mapping: region::Mapping<'request>,
    /// ) -> Result<region::Mapped<'request>>
    /// where
    ///     T: vfio::Operations<Base = vfio::pci::Base>,
    /// {
    ///     let mapped = device.core_mmap(mapping)?;
    ///     mapped.vma().set_mixedmap();
    ///     Ok(mapped)
    /// }
    /// ```
    #[inline]
    pub fn core_mmap<'request>(
        &self,
        mapping: region::Mapping<'request>,
    ) -> Result<region::Mapped<'request>> {
        mapping.answer(|vma| {
            // SAFETY: `Mmap` is for a callback that is running, and its file keeps the device open.
            // The vma is being set up, and nothing is mapped yet, as `Mapping` shows.
            unsafe { bindings::vfio_pci_core_mmap(self.as_raw(), vma) }
        })
    }

    /// Lets vfio-pci-core place a mapping: that of a BAR for the largest leaves that can map it.
    ///
    /// An error of mm is part of what is returned, and reaches userspace with it.
    #[inline]
    pub fn core_get_unmapped_area<'request>(
        &self,
        search: placement::Search<'request>,
    ) -> placement::Placement<'request> {
        search.forward(|file, addr, len, pgoff, flags| {
            // SAFETY: `Mmap` is for a callback that is running, and its file keeps the device open.
            // The arguments are those of the file operation that is running.
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
}

impl<T: Operations<Base = Base>> Device<T, Resetting> {
    /// Lets vfio-pci-core reset the device.
    ///
    /// Takes `memory_lock` of vfio-pci-core and the device lock of the PCI device, and calls
    /// [`Driver::reset_prepare`](super::Driver::reset_prepare) and
    /// [`Driver::reset_done`](super::Driver::reset_done): no lock that these take must be held.
    /// Fails with [`EINVAL`] if the device has no reset of its own, and with [`EAGAIN`] if another
    /// task holds the lock of the device.
    #[inline]
    pub fn core_reset(&self) -> Result {
        // SAFETY: `Resetting` is for a callback that is running, for whose time the core keeps the
        // device open.
        unsafe { Base::ioctl(self.as_raw(), ioctl::RESET, 0) }?;
        Ok(())
    }
}

impl<T: Operations<Base = Base>> Device<T, Requesting> {
    /// Lets vfio-pci-core ask the user through the eventfd of the interrupt that is for that.
    ///
    /// `count` is what the method was given, by which vfio-pci-core decides what it logs.
    #[inline]
    pub fn core_request(&self, count: u32) {
        // SAFETY: The device is registered, as it is being unregistered.
        unsafe { bindings::vfio_pci_core_request(self.as_raw(), count) };
    }
}

impl<T: Operations<Base = Base>> Device<T, Matching> {
    /// Lets vfio-pci-core say whether `name` means the device.
    ///
    /// It can be the address of the device on the bus, followed by ` vf_token=` and a token for
    /// [`Operations::match_token`], whose error is returned.
    ///
    /// ```
    /// # use kernel::{prelude::*, vfio::{self, Device, Matching}};
    /// fn matches<T>(device: &Device<T, Matching>, name: &CStr) -> Result<bool>
    /// where
    ///     T: vfio::Operations<Base = vfio::pci::Base>,
    /// {
    ///     device.core_matches(name)
    /// }
    /// ```
    ///
    /// Since this calls that method, it cannot be called by it:
    ///
    /// ```ignore,compile_fail,E0599
    /// # use kernel::{prelude::*, vfio::{self, Device, MatchingToken}};
    /// fn match_token<T>(device: &Device<T, MatchingToken>, name: &CStr) -> Result<bool>
    /// where
    ///     T: vfio::Operations<Base = vfio::pci::Base>,
    /// {
    ///     device.core_matches(name)
    /// }
    /// ```
    #[inline]
    pub fn core_matches(&self, name: &CStr) -> Result<bool> {
        // SAFETY: The device is registered. `name` is a string, and is not changed.
        let ret =
            unsafe { bindings::vfio_pci_core_match(self.as_raw(), name.as_char_ptr().cast_mut()) };
        to_result(ret)?;
        Ok(ret > 0)
    }
}

impl<T: Operations<Base = Base>> Device<T, MatchingToken> {
    /// Lets vfio-pci-core check the token by which the users of physical and virtual functions show
    /// that they work together.
    ///
    /// Fails with [`EACCES`] if it is not the right one, and with [`EINVAL`] if there is none or
    /// should be none.
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

/// The device is registered, in [`Driver::sriov_configure`](super::Driver::sriov_configure).
///
/// The caller holds the device lock of the PCI device.
pub struct Configuring;

impl private::Context for Configuring {}
impl Context for Configuring {}

impl<T: Operations<Base = Base>> Device<T, Configuring> {
    /// Lets vfio-pci-core enable `count` virtual functions, or disable them if it is 0.
    ///
    /// Returns how many there are then. Those that are enabled are sequestered for the driver.
    /// Fails with [`EINVAL`] if there are some already, and with the errors of the PCI core.
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
