// SPDX-License-Identifier: GPL-2.0-only

//! What a VFIO driver implements.

use super::{
    context::{
        InRegion,
        Matching,
        MatchingToken,
        Mmap,
        Opened,
        Opening,
        Requesting,
        Resetting, //
    },
    feature,
    info,
    ioctl,
    irq,
    placement,
    region,
    Base,
    Device, //
};
use crate::{
    bindings,
    error::VTABLE_DEFAULT_ERROR,
    prelude::*, //
};

/// What kind of device this is, and so how its regions and interrupts are numbered.
#[repr(u32)]
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Kind {
    /// None that VFIO knows: the driver and its user agree on the numbers.
    Other = 0,
    /// Regions and interrupts as those of vfio-pci.
    Pci = bindings::VFIO_DEVICE_FLAGS_PCI,
    /// Regions and interrupts as those of vfio-platform.
    Platform = bindings::VFIO_DEVICE_FLAGS_PLATFORM,
    /// As [`Kind::Platform`], on the AMBA bus.
    Amba = bindings::VFIO_DEVICE_FLAGS_AMBA,
    /// Regions and interrupts as those of vfio-ccw.
    Ccw = bindings::VFIO_DEVICE_FLAGS_CCW,
    /// Interrupts as those of vfio-ap.
    Ap = bindings::VFIO_DEVICE_FLAGS_AP,
    /// Regions and interrupts as those of vfio-fsl-mc.
    FslMc = bindings::VFIO_DEVICE_FLAGS_FSL_MC,
    /// Regions and interrupts as those of vfio-cdx.
    Cdx = bindings::VFIO_DEVICE_FLAGS_CDX,
}

/// What userspace is told of the device (`VFIO_DEVICE_GET_INFO`).
///
/// That the device can be reset is told by implementing [`Operations::reset`].
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct DeviceInfo {
    /// How regions and interrupts are numbered.
    pub kind: Kind,
    /// One more than the largest index of a region.
    pub num_regions: u32,
    /// One more than the largest index of an interrupt.
    pub num_irqs: u32,
}

/// What a VFIO driver does for its devices.
///
/// All methods are called in process context, and may sleep. Unless stated otherwise, several tasks
/// may call a method at a time, and the caller holds no locks. An error of a method is what the
/// system call returns, unless stated otherwise.
///
/// # Examples
///
/// A device that userspace can open, and that has nothing.
///
/// ```
/// # #![cfg(CONFIG_VFIO = "y")]
/// use kernel::{
///     prelude::*,
///     vfio, //
/// };
///
/// struct Null;
///
/// #[vtable]
/// impl vfio::Operations for Null {
///     type Base = vfio::emulated::Base;
///     type RegistrationData<'bound> = ();
///     type OpenData<'open> = ();
///
///     fn open<'open, 'bound: 'open>(
///         _device: &'open vfio::Device<Self, vfio::Opening>,
///         _data: Pin<&'open Self::RegistrationData<'bound>>,
///     ) -> impl PinInit<Self::OpenData<'open>, Error> {
///         Ok(())
///     }
///
///     fn info(
///         _device: &vfio::Device<Self, vfio::Opened>,
///         _this: Pin<&Self::OpenData<'_>>,
///     ) -> vfio::DeviceInfo {
///         vfio::DeviceInfo {
///             kind: vfio::Kind::Other,
///             num_regions: 0,
///             num_irqs: 0,
///         }
///     }
/// }
///
/// let registration = vfio::emulated::Registration::<Null>::new(c"rust-vfio-null", Ok(()))?;
/// # drop(registration);
/// # Ok::<(), Error>(())
/// ```
#[vtable]
pub trait Operations: Sized + 'static {
    /// What kind of devices the driver is for.
    type Base: Base;

    /// What belongs to the device as long as it is registered.
    type RegistrationData<'bound>: Send + Sync + 'bound;

    /// What belongs to the device as long as it is open.
    type OpenData<'open>: Send + Sync + 'open;

    /// Called when userspace opens the device and it was not open before.
    ///
    /// The caller holds `dev_set->lock` and, if the device is opened through its group,
    /// `group_lock`: calls of this, and drops of [`OpenData`](Self::OpenData), exclude each other
    /// for all devices of the set, which is the device alone unless it shares a reset with others.
    /// An error makes the system call fail, and what the initialiser has made is dropped.
    fn open<'open, 'bound: 'open>(
        device: &'open Device<Self, Opening>,
        data: Pin<&'open Self::RegistrationData<'bound>>,
    ) -> impl PinInit<Self::OpenData<'open>, Error>;

    /// Tells userspace how many regions and interrupts there are (`VFIO_DEVICE_GET_INFO`).
    ///
    /// Must be implemented for emulated devices. Also called to check what userspace asks of
    /// interrupts.
    fn info(_device: &Device<Self, Opened>, _this: Pin<&Self::OpenData<'_>>) -> DeviceInfo {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Tells userspace more of the device than [`info`](Self::info) does, by capabilities
    /// (`VFIO_DEVICE_GET_INFO`).
    ///
    /// They are added to those of the C code that the device is built on.
    ///
    /// ```
    /// # use kernel::{prelude::*, vfio::info};
    /// /// The capability that has `flags`, a `u32`, behind its header.
    /// fn atomics(capabilities: &mut info::Capabilities, flags: u32) -> Result {
    ///     capabilities.add(5, 1, &flags.to_ne_bytes())
    /// }
    /// ```
    fn info_capabilities(
        _device: &Device<Self, Opened>,
        _this: Pin<&Self::OpenData<'_>>,
        _capabilities: &mut info::Capabilities,
    ) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Tells userspace of the region `index` (`VFIO_DEVICE_GET_REGION_INFO`).
    ///
    /// Fails with [`EINVAL`] if there is no region `index`.
    fn region_info(
        _device: &Device<Self, Opened>,
        _this: Pin<&Self::OpenData<'_>>,
        _index: u32,
        _capabilities: &mut region::Capabilities<'_>,
    ) -> Result<region::Info> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Gives userspace what it reads from a region.
    ///
    /// The file position moves by what userspace has been given, if the method succeeds. Fails with
    /// [`EINVAL`] if the position of `access` is not in a region.
    fn read(
        _device: &Device<Self, Opened>,
        _this: Pin<&Self::OpenData<'_>>,
        _access: &mut region::Read,
    ) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Takes what userspace writes to a region.
    ///
    /// The file position moves by what has been taken, if the method succeeds. Fails with
    /// [`EINVAL`] if the position of `access` is not in a region.
    fn write(
        _device: &Device<Self, Opened>,
        _this: Pin<&Self::OpenData<'_>>,
        _access: &mut region::Write,
    ) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Maps a part of a region.
    ///
    /// `mapping` is answered once, by whoever maps something:
    ///
    /// ```
    /// # use kernel::{prelude::*, vfio::{region, Memory}};
    /// fn map<'request>(
    ///     memory: &Memory,
    ///     mapping: region::Mapping<'request>,
    /// ) -> Result<region::Mapped<'request>> {
    ///     memory.map(mapping)
    /// }
    /// ```
    ///
    /// What has been answered is gone:
    ///
    /// ```ignore,compile_fail,E0382
    /// # use kernel::{prelude::*, vfio::{region, Memory}};
    /// fn map<'request>(
    ///     memory: &Memory,
    ///     mapping: region::Mapping<'request>,
    /// ) -> Result<region::Mapped<'request>> {
    ///     memory.map(mapping)?;
    ///     memory.map(mapping)
    /// }
    /// ```
    ///
    /// The caller holds `mmap_lock` of the current process for writing.
    fn mmap<'request>(
        _device: &Device<Self, Mmap>,
        _this: Pin<&Self::OpenData<'_>>,
        _mapping: region::Mapping<'request>,
    ) -> Result<region::Mapped<'request>> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Chooses where a part of a region will be mapped.
    ///
    /// To be implemented by drivers whose regions can be mapped by larger leaves than single pages,
    /// if the address is right. The answer is a [`Placement`](placement::Placement), which only
    /// `search` can make: it is the one that mm finds for what the driver knows of the region, and
    /// never an address of the driver's own. mm checks it as it checks any other.
    ///
    /// Called before [`mmap`](Self::mmap), and also for mappings that `mmap` is going to refuse.
    /// Such a mapping is to be placed anywhere rather than refused here. Not called for mappings
    /// with `MAP_FIXED`, which have a place.
    ///
    /// The caller holds `mmap_lock` of the current process for writing.
    ///
    /// ```
    /// # use kernel::vfio::placement::{Placement, Search};
    /// fn place<'request>(search: Search<'request>) -> Placement<'request> {
    ///     match search.position().index {
    ///         // Region 0 is made of pieces of 2^9 pages.
    ///         0 => search.congruent_to_offset(9),
    ///         _ => search.anywhere(),
    ///     }
    /// }
    /// ```
    ///
    /// A search does not live longer than the call, and the answer to one is not an answer to
    /// another:
    ///
    /// ```ignore,compile_fail
    /// # use kernel::vfio::placement::{Placement, Search};
    /// fn place<'a, 'b>(a: Search<'a>, b: Search<'b>) -> Placement<'a> {
    ///     b.anywhere()
    /// }
    /// ```
    fn get_unmapped_area<'request>(
        _device: &Device<Self, Mmap>,
        _this: Pin<&Self::OpenData<'_>>,
        _search: placement::Search<'request>,
    ) -> Result<placement::Placement<'request>> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Tells userspace of the interrupts `index` (`VFIO_DEVICE_GET_IRQ_INFO`).
    ///
    /// Must be implemented for emulated devices if [`set_irqs`](Self::set_irqs) is. Fails with
    /// [`EINVAL`] if there is no interrupt `index`, which is less than what [`info`](Self::info)
    /// says.
    fn irq_info(
        _device: &Device<Self, Opened>,
        _this: Pin<&Self::OpenData<'_>>,
        _index: u32,
    ) -> Result<irq::Info> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Sets up interrupts, masks, unmasks or triggers them (`VFIO_DEVICE_SET_IRQS`).
    ///
    /// `request` is within what [`info`](Self::info) and [`irq_info`](Self::irq_info) say.
    fn set_irqs(
        _device: &Device<Self, Opened>,
        _this: Pin<&Self::OpenData<'_>>,
        _request: irq::SetIrqs<'_>,
    ) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// The indices of the interrupts that [`irq_event`](Self::irq_event) masks and unmasks.
    ///
    /// For these, the requests of userspace to have eventfds do so are not for
    /// [`set_irqs`](Self::set_irqs), which must be implemented nevertheless.
    const MASKED_BY_EVENTFD: &'static [u32] = &[];

    /// Masks or unmasks the interrupt `number` of `index`, since userspace has signalled the
    /// eventfd that it has set up for that (`VFIO_DEVICE_SET_IRQS`).
    ///
    /// Must be implemented if there are [such indices](Self::MASKED_BY_EVENTFD). Called in a work
    /// item, and so for another task than that of userspace. Several signals may be one call.
    ///
    /// There are no calls after userspace has taken the eventfd away, and none when the open data
    /// is dropped: both wait for calls that are running, the second with `dev_set->lock` held. So do
    /// all other users of such eventfds, in this driver and in others: what is done here should not
    /// take long, and must not wait for userspace.
    fn irq_event(
        _device: &Device<Self, InRegion>,
        _this: Pin<&Self::OpenData<'_>>,
        _index: u32,
        _number: u32,
        _action: irq::Action,
    ) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Resets the device (`VFIO_DEVICE_RESET`). That it is implemented is told in
    /// `VFIO_DEVICE_GET_INFO`.
    fn reset(_device: &Device<Self, Resetting>, _this: Pin<&Self::OpenData<'_>>) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Handles an ioctl that no other method of this trait stands for.
    ///
    /// Returns what the ioctl is to return. Fails with [`ENOTTY`] if the device does not have it.
    fn ioctl(
        _device: &Device<Self, Opened>,
        _this: Pin<&Self::OpenData<'_>>,
        _ioctl: ioctl::Ioctl<'_>,
    ) -> Result<isize> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Gets, sets or probes a feature that is not the VFIO core's own (`VFIO_DEVICE_FEATURE`).
    ///
    /// Returns what the ioctl is to return. Fails with [`ENOTTY`] if the device does not have it.
    fn feature(
        _device: &Device<Self, Opened>,
        _this: Pin<&Self::OpenData<'_>>,
        _feature: feature::Feature<'_>,
    ) -> Result<c_int> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Asks the driver to make its user let go of the device, which is being unregistered.
    ///
    /// Called again every ten seconds until the device is no longer in use. `count` is the number
    /// of calls before this one. For a PCI device, the caller holds its device lock.
    fn request(
        _device: &Device<Self, Requesting>,
        _data: Pin<&Self::RegistrationData<'_>>,
        _count: u32,
    ) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Says whether `name`, with which userspace asks a group for a device, is the name of this
    /// one (`VFIO_GROUP_GET_DEVICE_FD`).
    ///
    /// If not implemented, an emulated device has the name of its parent, and a PCI device the one
    /// that vfio-pci-core gives it. The caller holds `device_lock` of the group.
    fn matches(
        _device: &Device<Self, Matching>,
        _data: Pin<&Self::RegistrationData<'_>>,
        _name: &CStr,
    ) -> Result<bool> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Checks the token that userspace gave when it bound the device (`VFIO_DEVICE_BIND_IOMMUFD`).
    ///
    /// Fails, with [`EACCES`] or [`EINVAL`] for vfio-pci, if it is not the right one. The caller
    /// holds `dev_set->lock`, or `device_lock` of the group.
    fn match_token(
        _device: &Device<Self, MatchingToken>,
        _data: Pin<&Self::RegistrationData<'_>>,
        _token: Option<&[u8; 16]>,
    ) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Tells the driver that userspace is unmapping `length` bytes at `iova`.
    ///
    /// When this returns, hardware must have stopped to use what the driver has pinned there: the
    /// pages are unpinned next, and their [`PinnedPages`](super::dma::PinnedPages) have no access
    /// to them from then on.
    ///
    /// May be called while the device is being opened or closed, and has no open data therefore.
    /// The caller holds `dev_set->lock`, or `device_list_lock` of the type1 IOMMU driver, or none.
    fn dma_unmap(
        _device: &Device<Self>,
        _data: Pin<&Self::RegistrationData<'_>>,
        _iova: u64,
        _length: u64,
    ) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }
}
