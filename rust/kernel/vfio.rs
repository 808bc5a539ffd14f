// SPDX-License-Identifier: GPL-2.0-only

//! Abstractions for VFIO, which hands devices to userspace.
//!
//! A driver implements [`Operations`] for devices of one kind, which it names as their [`Base`]:
//! those without an IOMMU of their own it registers itself ([`emulated::Registration`]), those on
//! the PCI bus are registered when the driver is bound to them (`vfio::pci`). Userspace opens a
//! device through its group or its character device.
//!
//! # Lifetimes
//!
//! - The *registration data* is published before userspace can see the device, and dropped when the
//!   device is unregistered and no call into the driver can be running any more.
//! - The *open data* is made when the first file is opened and dropped when the last one is closed.
//!   It may borrow from the registration data.
//!
//! Both lie in the one allocation that starts with the C `struct vfio_device`.
//!
//! # Contexts
//!
//! What a method of the driver may do with its device depends on the method, and is said by the
//! second parameter of the type of the [`Device`]. What it has to answer is said by a value that
//! only the method is given and that does not outlive the call.
//!
//! A device of which nothing is known may be of interest to another task
//!
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
//! | `release`              | not for drivers: runs when their module may be gone               |
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
//! are decoded for [`Operations::info`], [`Operations::irq_info`], [`Operations::set_irqs`] and
//! [`Operations::reset`].
//!
//! C header: [`include/linux/vfio.h`](srctree/include/linux/vfio.h)

use crate::{
    alloc::allocator::Kmalloc,
    bindings,
    device,
    error::{
        from_err_ptr,
        from_result,
        VTABLE_DEFAULT_ERROR, //
    },
    mm::virt::VmaNew,
    page::PAGE_SIZE,
    prelude::*,
    str::as_char_ptr_in_const_context,
    sync::aref::AlwaysRefCounted,
    types::Opaque,
    uaccess::UserPtr,
    ModuleMetadata, //
};
use core::{
    alloc::Layout,
    cell::UnsafeCell,
    marker::PhantomData,
    mem::{
        offset_of,
        MaybeUninit, //
    },
    ops::Deref,
    ptr::{
        drop_in_place,
        NonNull, //
    },
};

pub mod dma;
pub mod emulated;
pub mod feature;
pub mod ioctl;
pub mod irq;
pub mod memory;
#[cfg(CONFIG_RUST_VFIO_PCI_ABSTRACTIONS)]
pub mod pci;
pub mod placement;
pub mod region;
#[cfg(CONFIG_RUST_VFIO_KUNIT_TEST)]
mod tests;

pub use self::{
    memory::Memory,
    placement::Placement, //
};

/// The C code that a device is built on: [`emulated::Base`] or `pci::Base`.
pub trait Base: private::Base {}

/// The state of a [`Device`] that a reference stands for.
pub trait Context: private::Context {}

/// Nothing is known of the device but that it exists.
///
/// The only context in which a [`Device`] can be sent to another task and be reference counted.
pub struct Normal;

/// The device is open, for as long as the callback runs that was given the reference.
pub struct Opened;

/// As [`Opened`], in [`Operations::open`].
pub struct Opening;

/// As [`Opened`], in [`Operations::reset`].
pub struct Resetting;

/// As [`Normal`], in [`Operations::matches`] and [`Operations::match_token`].
pub struct Matching;

/// As [`Normal`], in [`Operations::request`].
pub struct Requesting;

mod private {
    use super::*;

    pub trait Context {}

    /// What is different from base to base.
    ///
    /// # Safety
    ///
    /// - `Raw` must be a C structure that starts with a `struct vfio_device`.
    /// - Those members of `OPS` that are not `NULL` must be functions for a device that was
    ///   allocated with `init` of `OPS`, if it has one, and is open if the core requires that.
    pub unsafe trait Base: 'static {
        /// The C structure of a device.
        type Raw;

        /// The members that the driver does not implement, without `name`, `open_device` and
        /// `close_device`.
        const OPS: bindings::vfio_device_ops;

        /// Prepares the device for [`Operations::open`].
        ///
        /// # Safety
        ///
        /// `vdev` must be the device, which must be registered and is being opened.
        #[inline]
        unsafe fn open(_vdev: *mut bindings::vfio_device) -> Result {
            Ok(())
        }

        /// Undoes [`Base::open`] as the driver failed.
        ///
        /// # Safety
        ///
        /// As for [`Base::open`], which must have succeeded.
        #[inline]
        unsafe fn cancel(_vdev: *mut bindings::vfio_device) {}

        /// Completes what [`Base::open`] prepared.
        ///
        /// # Safety
        ///
        /// As for [`Base::open`], which must have succeeded.
        #[inline]
        unsafe fn opened(_vdev: *mut bindings::vfio_device) {}

        /// Closes the device.
        ///
        /// # Safety
        ///
        /// `vdev` must be the device, which must be open and is being closed.
        #[inline]
        unsafe fn close(_vdev: *mut bindings::vfio_device) {}

        /// Handles an ioctl that the driver does not.
        ///
        /// # Safety
        ///
        /// `vdev` must be the device, which must be open.
        #[inline]
        unsafe fn ioctl(
            _vdev: *mut bindings::vfio_device,
            _cmd: u32,
            _arg: usize,
        ) -> Result<isize> {
            Err(ENOTTY)
        }

        /// Frees what `init` of `OPS` and the use of the device have left.
        ///
        /// # Safety
        ///
        /// `vdev` must be the device, which must not be registered, and which is not used again.
        #[inline]
        unsafe fn release(_vdev: *mut bindings::vfio_device) {}
    }
}

/// Lets a context stand for all that another one does.
macro_rules! context {
    ($($context:ident $(=> $target:ident)?),* $(,)?) => { $(
        impl private::Context for $context {}
        impl Context for $context {}

        $(
            impl<T: Operations> Deref for Device<T, $context> {
                type Target = Device<T, $target>;

                #[inline]
                fn deref(&self) -> &Self::Target {
                    // SAFETY: `self` is a device that lives, and is in the state of `$context`, for
                    // as long as the reference to it. That includes the state of `$target`.
                    unsafe { Device::from_raw(self.as_raw()) }
                }
            }
        )?
    )* }
}

context!(
    Normal,
    Opened => Normal,
    Opening => Opened,
    Resetting => Opened,
    Matching => Normal,
    Requesting => Normal,
);

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
/// That the device can be reset need not be told: [`Operations::reset`] is implemented or not.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct Info {
    /// How regions and interrupts are numbered.
    pub kind: Kind,
    /// One more than the largest index of a region.
    pub num_regions: u32,
    /// One more than the largest index of an interrupt.
    pub num_irqs: u32,
}

/// What a VFIO driver does for its devices.
///
/// Unless stated otherwise, a method may be called by several tasks at a time.
///
/// # Examples
///
/// A device that userspace can open, and that has nothing.
///
/// ```
/// use kernel::{
///     faux,
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
///         _device: &vfio::Device<Self, vfio::Opening>,
///         _data: Pin<&'open Self::RegistrationData<'bound>>,
///     ) -> impl PinInit<Self::OpenData<'open>, Error> {
///         Ok(())
///     }
///
///     fn info(
///         _device: &vfio::Device<Self, vfio::Opened>,
///         _this: Pin<&Self::OpenData<'_>>,
///     ) -> vfio::Info {
///         vfio::Info {
///             kind: vfio::Kind::Other,
///             num_regions: 0,
///             num_irqs: 0,
///         }
///     }
/// }
///
/// let parent = faux::Registration::new(c"rust-vfio-null", None)?;
/// let registration = vfio::emulated::Registration::<Null>::new(parent.as_ref().as_ref(), Ok(()))?;
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
    /// Calls of `open`, and drops of [`OpenData`](Self::OpenData), exclude each other.
    fn open<'open, 'bound: 'open>(
        device: &Device<Self, Opening>,
        data: Pin<&'open Self::RegistrationData<'bound>>,
    ) -> impl PinInit<Self::OpenData<'open>, Error>;

    /// Tells userspace how many regions and interrupts there are.
    ///
    /// Must be implemented for emulated devices, and if [`set_irqs`](Self::set_irqs) is.
    fn info(_device: &Device<Self, Opened>, _this: Pin<&Self::OpenData<'_>>) -> Info {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Tells userspace of one region.
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

    /// Reads from a region into the buffer of `access`.
    ///
    /// The file position moves by what was put there, if the method succeeds.
    fn read(
        _device: &Device<Self, Opened>,
        _this: Pin<&Self::OpenData<'_>>,
        _access: &mut region::Read,
    ) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Writes what is in the buffer of `access` to a region.
    ///
    /// The file position moves by what was taken from there, if the method succeeds.
    fn write(
        _device: &Device<Self, Opened>,
        _this: Pin<&Self::OpenData<'_>>,
        _access: &mut region::Write,
    ) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Maps a part of a region.
    fn mmap(
        _device: &Device<Self, Opened>,
        _this: Pin<&Self::OpenData<'_>>,
        _mapping: &region::Mapping<'_>,
    ) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Chooses where a part of a region will be mapped.
    ///
    /// To be implemented by drivers whose regions can be mapped by larger leaves than single pages,
    /// if the address is right. The answer is a [`Placement`], which only `request` can make: it is
    /// the one that mm finds for what the driver knows of the region, and never an address of the
    /// driver's own. mm checks it as it checks any other.
    ///
    /// Called before [`mmap`](Self::mmap), and for what that is going to refuse as well. Such a
    /// request is to be placed anywhere rather than refused here.
    ///
    /// ```
    /// # use kernel::vfio::placement::{Placement, Request};
    /// fn place<'request>(request: Request<'request>) -> Placement<'request> {
    ///     match request.position().index {
    ///         // Region 0 is made of pieces of 2^9 pages.
    ///         0 => request.congruent_to_offset(9),
    ///         _ => request.anywhere(),
    ///     }
    /// }
    /// ```
    ///
    /// Requests do not live longer than the call, and an answer to one is not an answer to another:
    ///
    /// ```ignore,compile_fail
    /// # use kernel::vfio::placement::{Placement, Request};
    /// fn place<'a, 'b>(a: Request<'a>, b: Request<'b>) -> Placement<'a> {
    ///     b.anywhere()
    /// }
    /// ```
    fn get_unmapped_area<'request>(
        _device: &Device<Self, Opened>,
        _this: Pin<&Self::OpenData<'_>>,
        _request: placement::Request<'request>,
    ) -> Result<Placement<'request>> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Tells userspace of the interrupts `index`.
    ///
    /// Fails with [`EINVAL`] if there is no interrupt `index`. Must be implemented if
    /// [`set_irqs`](Self::set_irqs) is.
    fn irq_info(
        _device: &Device<Self, Opened>,
        _this: Pin<&Self::OpenData<'_>>,
        _index: u32,
    ) -> Result<irq::Info> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Sets up interrupts, masks, unmasks or triggers them.
    ///
    /// `request` lies within what [`info`](Self::info) and [`irq_info`](Self::irq_info) told.
    fn set_irqs(
        _device: &Device<Self, Opened>,
        _this: Pin<&Self::OpenData<'_>>,
        _request: irq::Request,
    ) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Resets the device.
    fn reset(_device: &Device<Self, Resetting>, _this: Pin<&Self::OpenData<'_>>) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Handles an ioctl that no other method of this trait stands for.
    fn ioctl(
        _device: &Device<Self, Opened>,
        _this: Pin<&Self::OpenData<'_>>,
        _request: ioctl::Request<'_>,
    ) -> Result<isize> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Gets, sets or probes a feature that is not the VFIO core's own.
    ///
    /// Returns what the ioctl is to return. Fails with [`ENOTTY`] if the device does not have it.
    fn feature(
        _device: &Device<Self, Opened>,
        _this: Pin<&Self::OpenData<'_>>,
        _request: feature::Request<'_>,
    ) -> Result<c_int> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Asks the driver to make its user let go of the device, which is being unregistered.
    ///
    /// Called again every ten seconds until the device is no longer in use. `count` is the number
    /// of calls before this one.
    fn request(
        _device: &Device<Self, Requesting>,
        _data: Pin<&Self::RegistrationData<'_>>,
        _count: u32,
    ) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Says whether `name`, with which userspace asks a group for a device, means this one.
    ///
    /// If not implemented, the name of the parent device does. What follows it is for the driver.
    fn matches(
        _device: &Device<Self, Matching>,
        _data: Pin<&Self::RegistrationData<'_>>,
        _name: &CStr,
    ) -> Result<bool> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Fails if `token`, which userspace gave when binding the device, is not the right one.
    fn match_token(
        _device: &Device<Self, Matching>,
        _data: Pin<&Self::RegistrationData<'_>>,
        _token: Option<&[u8; 16]>,
    ) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Tells the driver that userspace has unmapped `length` bytes at `iova`.
    ///
    /// May be called while the device is being opened or closed, and has no open data therefore. No
    /// pages are pinned for the device at the time.
    fn dma_unmap(
        _device: &Device<Self>,
        _data: Pin<&Self::RegistrationData<'_>>,
        _iova: u64,
        _length: u64,
    ) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }
}

/// A VFIO device.
///
/// # Invariants
///
/// - `dev` was initialised by `_vfio_alloc_device()`, which also allocated `self`. Its reference
///   count owns the allocation.
/// - `data` is initialised from before the device is registered until after it is unregistered.
/// - `open` is initialised from when `open_device` succeeds until `close_device`.
/// - `pins` is initialised, and has nothing to drop.
/// - If `Ctx` is [`Opened`], [`Opening`] or [`Resetting`], the device is open for as long as the
///   reference to it lives. Those in other contexts than [`Normal`] are given to callbacks only.
#[repr(C)]
pub struct Device<T: Operations, Ctx: Context = Normal> {
    dev: Opaque<<T::Base as private::Base>::Raw>,
    data: UnsafeCell<MaybeUninit<T::RegistrationData<'static>>>,
    open: UnsafeCell<MaybeUninit<T::OpenData<'static>>>,
    pins: dma::Pins,
    _ctx: PhantomData<Ctx>,
}

impl<T: Operations, Ctx: Context> Device<T, Ctx> {
    /// Returns the underlying `struct vfio_device`.
    #[inline]
    fn as_raw(&self) -> *mut bindings::vfio_device {
        // CAST: `private::Base::Raw` starts with a `struct vfio_device`.
        self.dev.get().cast()
    }

    /// Borrows a device from its C pointer.
    ///
    /// # Safety
    ///
    /// `ptr` must point to the `struct vfio_device` of a [`Device<T>`] that lives for `'a`, and is
    /// in the state that `Ctx` stands for.
    #[inline]
    unsafe fn from_raw<'a>(ptr: *mut bindings::vfio_device) -> &'a Self {
        // CAST: `Device` has the `struct vfio_device` at offset 0, see `Owner::new`.
        // SAFETY: By the requirements of this function, `ptr` points to a `Device<T>`, whose layout
        // does not depend on `Ctx`.
        unsafe { &*ptr.cast() }
    }

    /// Returns the registration data.
    ///
    /// Only to be passed on to methods that are generic over both lifetimes of what is returned:
    /// those can neither learn that `'static` is an invention, nor make use of it.
    ///
    /// # Safety
    ///
    /// The device must be registered, or must be about to be or have just been, for the lifetime of
    /// the returned reference.
    #[inline]
    unsafe fn data(&self) -> Pin<&T::RegistrationData<'static>> {
        // SAFETY: By the requirements of this function and the type invariants, `data` is
        // initialised, and nothing mutates it. It is never moved, since the device is not.
        unsafe { Pin::new_unchecked((*self.data.get()).assume_init_ref()) }
    }
}

impl<T: Operations> Device<T, Opened> {
    /// Returns the open data.
    ///
    /// As for [`Device::data`], the lifetime that is the parameter of the returned type is erased.
    ///
    /// # Safety
    ///
    /// `open_device` must have succeeded, and `close_device` must not be called for the lifetime of
    /// the returned reference.
    #[inline]
    unsafe fn open_data(&self) -> Pin<&T::OpenData<'static>> {
        // SAFETY: By the requirements of this function and the type invariants, `open` is
        // initialised, and nothing mutates it. It is never moved, since the device is not.
        unsafe { Pin::new_unchecked((*self.open.get()).assume_init_ref()) }
    }
}

impl<T: Operations> AsRef<device::Device> for Device<T> {
    #[inline]
    fn as_ref(&self) -> &device::Device {
        // SAFETY: By the type invariants, `self` has a `struct vfio_device`, which embeds a
        // `struct device`.
        let dev = unsafe { &raw mut (*self.as_raw()).device };
        // SAFETY: The `struct device` was initialised by `_vfio_alloc_device()`, and lives as long
        // as `self`.
        unsafe { device::Device::from_raw(dev) }
    }
}

// Devices on a bus stay in the set of those that are reset together until their last reference is
// put, and there are looked at by C code that knows nothing of them being gone. So these are not to
// be kept.
//
// SAFETY: The `struct device` in `struct vfio_device` is reference counted, and the VFIO core frees
// the allocation of `Device` when the count drops to zero.
unsafe impl<T: Operations<Base = emulated::Base>> AlwaysRefCounted for Device<T> {
    #[inline]
    fn inc_ref(&self) {
        // SAFETY: The reference to `self` shows that the count is not zero.
        unsafe { bindings::get_device(&raw mut (*self.as_raw()).device) };
    }

    #[inline]
    unsafe fn dec_ref(obj: NonNull<Self>) {
        // SAFETY: The caller owns a reference, so that `obj` is valid, and gives it up. A
        // `struct vfio_device` is at the start of `Device`.
        unsafe { bindings::vfio_put_device(obj.as_ptr().cast()) };
    }
}

// SAFETY: A device is reference counted, and the last reference may be put by any task. By the
// bounds of `Operations`, its data can be sent to other tasks.
unsafe impl<T: Operations> Send for Device<T> {}

// SAFETY: Through a shared `Device<T>` only its `struct device` is reached, which synchronises
// itself. By the bounds of `Operations`, its data can be shared.
unsafe impl<T: Operations> Sync for Device<T> {}

/// Puts the reference that the allocation of `vdev` returned. Others may outlive the driver's
/// module.
///
/// # Safety
///
/// `vdev` must be a valid [`Device<T>`] that is not registered, and that its driver does not use
/// again. The reference must be owned by the caller.
unsafe fn retire<T: Operations>(vdev: *mut bindings::vfio_device) {
    // SAFETY: By the requirements of this function.
    unsafe { <T::Base as private::Base>::release(vdev) };

    // SAFETY: By the requirements of this function, no callback runs or will run.
    unsafe { forget_ops(vdev) };

    // SAFETY: By the requirements of this function.
    unsafe { bindings::vfio_put_device(vdev) };
}

/// Makes `vdev` stop depending on the module of its driver and on that of its base.
///
/// # Safety
///
/// `vdev` must be valid, and either not have been registered or have been unregistered.
// Not generic, so that it is in the same image as the table that it installs.
#[inline(never)]
unsafe fn forget_ops(vdev: *mut bindings::vfio_device) {
    const RETIRED: bindings::vfio_device_ops = pin_init::zeroed();

    // SAFETY: By the requirements of this function, no callback runs or will run but `release`,
    // which `vfio_device_release()` looks up when the last reference is put.
    unsafe { (*vdev).ops = &RETIRED };
}

/// An initialised device that is not registered.
///
/// # Invariants
///
/// The registration data of the device is initialised. The device is not registered. `self` owns
/// the reference to it that its allocation returned.
struct Owner<T: Operations>(NonNull<Device<T>>);

impl<T: Operations> Owner<T> {
    /// Allocates a device below `parent`, with `data`.
    ///
    /// # Safety
    ///
    /// The returned value must be dropped, and not be forgotten, before `'bound` ends.
    unsafe fn new<'bound>(
        parent: &device::Device<device::Bound>,
        data: impl PinInit<T::RegistrationData<'bound>, Error>,
    ) -> Result<Self> {
        const_assert!(
            offset_of!(Device<T>, dev) == 0,
            "struct vfio_device must be at offset 0"
        );
        const_assert!(
            align_of::<Device<T>>() <= PAGE_SIZE,
            "kvmalloc() aligns to a page at most"
        );

        let size = Kmalloc::aligned_layout(Layout::new::<Device<T>>()).size();

        // SAFETY: `parent` is a valid device, the table is never freed, and `size` has room for the
        // C structure that `init` of the table expects.
        let raw = unsafe { bindings::_vfio_alloc_device(size, parent.as_raw(), &VTable::<T>::OPS) };
        let device = NonNull::new(from_err_ptr(raw)?)
            .ok_or(ENOMEM)?
            .cast::<Device<T>>();

        // SAFETY: `pins` has room for its type, and is not moved. Nothing else can reach it yet.
        let Ok(()) =
            unsafe { pin_init::raw_try_init(&raw mut (*device.as_ptr()).pins, dma::Pins::new()) };

        // CAST: A lifetime has no influence on the layout.
        // SAFETY: The device was just allocated, with room for and the alignment of `Device<T>`.
        let slot = unsafe { (*device.as_ptr()).data.get() }.cast::<T::RegistrationData<'bound>>();

        // SAFETY: `slot` has room for the registration data, is not initialised yet, and is not
        // moved. Nothing else can reach it. On failure it is left uninitialised.
        if let Err(err) = unsafe { pin_init::raw_try_init(slot, data) } {
            // SAFETY: `raw` is valid, has not been registered, and is not used again. The reference
            // is the one that `_vfio_alloc_device()` returned.
            unsafe { retire::<T>(raw) };
            return Err(err);
        }

        // INVARIANT: The registration data was just initialised.
        Ok(Self(device))
    }

    /// Returns the underlying `struct vfio_device`.
    #[inline]
    fn as_raw(&self) -> *mut bindings::vfio_device {
        self.0.as_ptr().cast()
    }
}

impl<T: Operations> Drop for Owner<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, the device is valid.
        let data = unsafe { (*self.0.as_ptr()).data.get() };

        // SAFETY: By the type invariants, `data` is initialised and the device not registered: no
        // callback that uses it runs or will run. It is not used again.
        unsafe { drop_in_place((*data).as_mut_ptr()) };

        // SAFETY: By the type invariants, the device is valid, not registered, and its reference
        // owned by `self`, which does not use it again.
        unsafe { retire::<T>(self.as_raw()) };
    }
}

// SAFETY: The device can be dropped by any task. By the bounds of `Operations`, so can its data.
unsafe impl<T: Operations> Send for Owner<T> {}

// SAFETY: Through a shared `Owner` only the address of the device is reached.
unsafe impl<T: Operations> Sync for Owner<T> {}

/// The callbacks for the VFIO core.
///
/// All but `request`, `match`, `match_token_uuid` and `dma_unmap` are for an open device:
/// `vfio_df_open()` calls `open_device` for the first file and `vfio_df_close()` calls
/// `close_device` for the last, both with `dev_set->lock` held. `vfio_device_fops` calls the others
/// for files with `access_granted` only, which is set after the open succeeded and stays set until
/// the file is released.
struct VTable<T: Operations>(PhantomData<T>);

impl<T: Operations> VTable<T> {
    /// What the driver does not implement.
    const BASE: bindings::vfio_device_ops = <T::Base as private::Base>::OPS;

    /// Whether the driver implements one of the methods that [`ioctl::dispatch`] calls.
    const HAS_IOCTLS: bool =
        T::HAS_INFO || T::HAS_IRQ_INFO || T::HAS_SET_IRQS || T::HAS_RESET || T::HAS_IOCTL;

    const OPS: bindings::vfio_device_ops = bindings::vfio_device_ops {
        name: as_char_ptr_in_const_context(<T::OwnerModule as ModuleMetadata>::NAME).cast_mut(),
        open_device: Some(Self::open_device),
        close_device: Some(Self::close_device),
        read: if T::HAS_READ {
            Some(Self::read)
        } else {
            Self::BASE.read
        },
        write: if T::HAS_WRITE {
            Some(Self::write)
        } else {
            Self::BASE.write
        },
        ioctl: if Self::HAS_IOCTLS {
            Some(Self::ioctl)
        } else {
            Self::BASE.ioctl
        },
        get_region_info_caps: if T::HAS_REGION_INFO {
            Some(Self::get_region_info_caps)
        } else {
            Self::BASE.get_region_info_caps
        },
        mmap: if T::HAS_MMAP {
            Some(Self::mmap)
        } else {
            Self::BASE.mmap
        },
        #[cfg(CONFIG_MMU)]
        get_unmapped_area: if T::HAS_GET_UNMAPPED_AREA {
            Some(Self::get_unmapped_area)
        } else {
            Self::BASE.get_unmapped_area
        },
        request: if T::HAS_REQUEST {
            Some(Self::request)
        } else {
            Self::BASE.request
        },
        match_: if T::HAS_MATCHES {
            Some(Self::match_)
        } else {
            Self::BASE.match_
        },
        match_token_uuid: if T::HAS_MATCH_TOKEN {
            Some(Self::match_token_uuid)
        } else {
            Self::BASE.match_token_uuid
        },
        dma_unmap: if T::HAS_DMA_UNMAP {
            Some(Self::dma_unmap)
        } else {
            Self::BASE.dma_unmap
        },
        device_feature: if T::HAS_FEATURE {
            Some(Self::device_feature)
        } else {
            Self::BASE.device_feature
        },
        ..Self::BASE
    };

    /// # Safety
    ///
    /// To be called by the VFIO core only, for a registered `Device<T>`, with `dev_set->lock` held,
    /// and not again before `close_device`.
    unsafe extern "C" fn open_device(vdev: *mut bindings::vfio_device) -> c_int {
        // SAFETY: The core calls this with a `Device<T>`, for which `open_count` is 1 already, and
        // cannot drop before this returns since the core holds `dev_set->lock`.
        let device = unsafe { Device::<T, Opening>::from_raw(vdev) };
        // SAFETY: The device that is being opened is registered, and `vfio_unregister_group_dev()`
        // waits for the file by which it is opened.
        let data = unsafe { device.data() };

        // SAFETY: The device is registered and is being opened, as above.
        if let Err(err) = unsafe { <T::Base as private::Base>::open(vdev) } {
            return err.to_errno();
        }

        // SAFETY: `open` has room for the open data, which is not initialised as the device was not
        // open. It is not moved, and nothing else can reach it before this succeeds. Its lifetime
        // parameter has no influence on its layout; what it stands for, the lifetime of the borrow
        // of the registration data, does not end before `close_device` drops the open data.
        let ret = unsafe {
            pin_init::raw_try_init((*device.open.get()).as_mut_ptr(), T::open(device, data))
        };
        match ret {
            Ok(()) => {
                // SAFETY: As for `open` of the base, which succeeded.
                unsafe { <T::Base as private::Base>::opened(vdev) };
                0
            }
            Err(err) => {
                // SAFETY: As for `open` of the base, which succeeded.
                unsafe { <T::Base as private::Base>::cancel(vdev) };
                err.to_errno()
            }
        }
    }

    /// # Safety
    ///
    /// To be called by the VFIO core only, after `open_device` succeeded, with `dev_set->lock`
    /// held.
    unsafe extern "C" fn close_device(vdev: *mut bindings::vfio_device) {
        // SAFETY: The core calls this with a `Device<T>`, before it drops `open_count` to 0.
        let device = unsafe { Device::<T, Opened>::from_raw(vdev) };

        // SAFETY: `open_device` initialised the open data. The core calls this when the last file
        // is closed, so that no callback that uses it is running, and none will run before
        // `open_device` has initialised it again.
        unsafe { drop_in_place((*device.open.get()).as_mut_ptr()) };

        // SAFETY: The core calls this for a device that is open, to close it.
        unsafe { <T::Base as private::Base>::close(vdev) };
    }

    /// # Safety
    ///
    /// To be called by the VFIO core only, for an open `Device<T>`, with a user buffer and a valid
    /// position.
    unsafe extern "C" fn read(
        vdev: *mut bindings::vfio_device,
        buf: *mut c_char,
        count: usize,
        ppos: *mut bindings::loff_t,
    ) -> isize {
        // SAFETY: The core calls this with a `Device<T>` that the file being read keeps open.
        let device = unsafe { Device::<T, Opened>::from_raw(vdev) };
        // SAFETY: As above.
        let this = unsafe { device.open_data() };

        // SAFETY: `ppos` is valid and not used by anyone else during the call.
        let position = unsafe { &mut *ppos };
        region::read(UserPtr::from_ptr(buf.cast()), count, position, |access| {
            T::read(device, this, access)
        })
    }

    /// # Safety
    ///
    /// To be called by the VFIO core only, for an open `Device<T>`, with a user buffer and a valid
    /// position.
    unsafe extern "C" fn write(
        vdev: *mut bindings::vfio_device,
        buf: *const c_char,
        count: usize,
        ppos: *mut bindings::loff_t,
    ) -> isize {
        // SAFETY: The core calls this with a `Device<T>` that the file being written keeps open.
        let device = unsafe { Device::<T, Opened>::from_raw(vdev) };
        // SAFETY: As above.
        let this = unsafe { device.open_data() };
        let user = UserPtr::from_ptr(buf.cast_mut().cast());

        // SAFETY: `ppos` is valid and not used by anyone else during the call.
        let position = unsafe { &mut *ppos };
        region::write(user, count, position, |access| {
            T::write(device, this, access)
        })
    }

    /// # Safety
    ///
    /// To be called by the VFIO core only, for an open `Device<T>`.
    unsafe extern "C" fn ioctl(
        vdev: *mut bindings::vfio_device,
        cmd: c_uint,
        arg: c_ulong,
    ) -> c_long {
        // SAFETY: The core calls this with a `Device<T>` that the file of the ioctl keeps open.
        let device = unsafe { Device::<T, Resetting>::from_raw(vdev) };
        // SAFETY: As above.
        let this = unsafe { device.open_data() };

        from_result(|| ioctl::dispatch(device, this, cmd, arg))
    }

    /// # Safety
    ///
    /// To be called by the VFIO core only, for an open `Device<T>`, with valid pointers.
    unsafe extern "C" fn get_region_info_caps(
        vdev: *mut bindings::vfio_device,
        info: *mut bindings::vfio_region_info,
        caps: *mut bindings::vfio_info_cap,
    ) -> c_int {
        // SAFETY: The core calls this with a `Device<T>` that the file of the ioctl keeps open.
        let device = unsafe { Device::<T, Opened>::from_raw(vdev) };
        // SAFETY: As above.
        let this = unsafe { device.open_data() };
        // SAFETY: `info` is valid and not used by anyone else during the call.
        let info = unsafe { &mut *info };
        // SAFETY: `caps` is valid and not used by anyone else during the call.
        let mut capabilities = unsafe { region::Capabilities::from_raw(caps) };

        from_result(|| {
            T::region_info(device, this, info.index, &mut capabilities)?.store(info)?;
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// To be called by the VFIO core only, for an open `Device<T>`, with a vma that is being set
    /// up.
    unsafe extern "C" fn mmap(
        vdev: *mut bindings::vfio_device,
        vma: *mut bindings::vm_area_struct,
    ) -> c_int {
        // SAFETY: The core calls this with a `Device<T>` that the file being mapped keeps open.
        let device = unsafe { Device::<T, Opened>::from_raw(vdev) };
        // SAFETY: As above.
        let this = unsafe { device.open_data() };
        // SAFETY: The core passes on the vma that mm is setting up.
        let vma = unsafe { VmaNew::from_raw(vma) };

        from_result(|| {
            T::mmap(device, this, &region::Mapping::new(vma))?;
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// To be called by the VFIO core only, for an open `Device<T>`, with `file` open on it, and
    /// with the arguments of a `get_unmapped_area` file operation.
    #[cfg(CONFIG_MMU)]
    unsafe extern "C" fn get_unmapped_area(
        vdev: *mut bindings::vfio_device,
        file: *mut bindings::file,
        addr: c_ulong,
        len: c_ulong,
        pgoff: c_ulong,
        flags: c_ulong,
    ) -> c_ulong {
        // SAFETY: The core calls this with a `Device<T>` that `file` keeps open.
        let device = unsafe { Device::<T, Opened>::from_raw(vdev) };
        // SAFETY: As above.
        let this = unsafe { device.open_data() };
        // SAFETY: The arguments are those that mm gave to the file operation, which is still
        // running when the request is gone: the lifetime is chosen by the method called here, for
        // any.
        let request = unsafe { placement::Request::new(file, addr, len, pgoff, flags) };

        match T::get_unmapped_area(device, this, request) {
            Ok(placement) => placement.into_raw(),
            // CAST: An errno as mm expects it, in an address.
            Err(err) => err.to_errno() as c_ulong,
        }
    }

    /// # Safety
    ///
    /// To be called by the VFIO core only, for a registered `Device<T>`.
    unsafe extern "C" fn request(vdev: *mut bindings::vfio_device, count: c_uint) {
        // SAFETY: The core calls this with a `Device<T>`.
        let device = unsafe { Device::<T, Requesting>::from_raw(vdev) };
        // SAFETY: `vfio_unregister_group_dev()` calls this, before it returns to who drops the
        // data.
        let data = unsafe { device.data() };

        T::request(device, data, count);
    }

    /// # Safety
    ///
    /// To be called by the VFIO core only, for a registered `Device<T>`, with a string.
    unsafe extern "C" fn match_(vdev: *mut bindings::vfio_device, buf: *mut c_char) -> c_int {
        // SAFETY: The core calls this with a `Device<T>`.
        let device = unsafe { Device::<T, Matching>::from_raw(vdev) };
        // SAFETY: The core calls this for devices on the list of a group, with `device_lock` held
        // under which `vfio_unregister_group_dev()` takes the device off it.
        let data = unsafe { device.data() };
        // SAFETY: `buf` is a string that nobody changes during the call.
        let name = unsafe { CStr::from_char_ptr(buf) };

        from_result(|| Ok(c_int::from(T::matches(device, data, name)?)))
    }

    /// # Safety
    ///
    /// To be called by the VFIO core only, for a registered `Device<T>`, with a UUID or `NULL`.
    unsafe extern "C" fn match_token_uuid(
        vdev: *mut bindings::vfio_device,
        uuid: *const bindings::uuid_t,
    ) -> c_int {
        // SAFETY: The core calls this with a `Device<T>`.
        let device = unsafe { Device::<T, Matching>::from_raw(vdev) };
        // SAFETY: The core calls this for a device that is being opened through its own file, of
        // which it holds a registration reference that `vfio_unregister_group_dev()` waits for.
        // `match_` calls it as well, for whose device see there.
        let data = unsafe { device.data() };
        // SAFETY: `uuid` is `NULL`, or valid and not changed during the call.
        let token = unsafe { uuid.as_ref() }.map(|uuid| &uuid.b);

        from_result(|| {
            T::match_token(device, data, token)?;
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// To be called by the VFIO core only, for a registered `Device<T>`.
    unsafe extern "C" fn dma_unmap(vdev: *mut bindings::vfio_device, iova: u64, length: u64) {
        // SAFETY: The core calls this with a `Device<T>`.
        let device = unsafe { Device::<T>::from_raw(vdev) };
        // SAFETY: The core calls this between the moment that a file that opens the device is
        // attached to its IOMMU context and the moment that it is detached again, at which it is
        // still open: `vfio_unregister_group_dev()` waits for it.
        let data = unsafe { device.data() };

        // Who unmaps what is pinned is called again, and may not be so often.
        device.pins.wait_for_none();
        T::dma_unmap(device, data, iova, length);
    }

    /// # Safety
    ///
    /// To be called by the VFIO core only, for an open `Device<T>`, with a user buffer.
    unsafe extern "C" fn device_feature(
        vdev: *mut bindings::vfio_device,
        flags: u32,
        arg: *mut c_void,
        argsz: usize,
    ) -> c_int {
        // SAFETY: The core calls this with a `Device<T>` that the file of the ioctl keeps open.
        let device = unsafe { Device::<T, Opened>::from_raw(vdev) };
        // SAFETY: As above.
        let this = unsafe { device.open_data() };
        let request = feature::Request::new(flags, UserPtr::from_ptr(arg), argsz);

        from_result(|| T::feature(device, this, request))
    }
}
