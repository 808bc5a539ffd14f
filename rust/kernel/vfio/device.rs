// SPDX-License-Identifier: GPL-2.0-only

//! The device, in one allocation with the data of its driver.

use super::{
    base::private::Base as _,
    context::{
        Context,
        Normal, //
    },
    emulated,
    virqfd::Virqfds,
    vtable::VTable,
    Operations, //
};
use crate::{
    alloc::allocator::Kmalloc,
    bindings,
    device,
    error::from_err_ptr,
    page::PAGE_SIZE,
    prelude::*,
    sync::aref::AlwaysRefCounted,
    types::Opaque, //
};
use core::{
    alloc::Layout,
    cell::UnsafeCell,
    marker::PhantomData,
    mem::{
        offset_of,
        ManuallyDrop,
        MaybeUninit, //
    },
    ptr::{
        drop_in_place,
        NonNull, //
    },
};

/// The C structure of a device of `T`.
type Raw<T> = <<T as Operations>::Base as super::base::private::Base>::Raw;

/// What the abstraction keeps for a device of `T`.
pub(super) struct State<T: Operations> {
    /// For its base.
    pub(super) base: <T::Base as super::base::private::Base>::State,
    /// For the time in which it is open. There is nothing to be dropped unless the driver needs it.
    pub(super) virqfds: ManuallyDrop<Option<Pin<KBox<Virqfds<T>>>>>,
}

impl<T: Operations> Drop for State<T> {
    #[inline]
    fn drop(&mut self) {
        if Virqfds::<T>::NEEDED {
            // SAFETY: This is the only place where it is dropped, and it is not used again.
            unsafe { ManuallyDrop::drop(&mut self.virqfds) };
        }
    }
}

/// A VFIO device.
///
/// # Invariants
///
/// - `dev` was initialised by `_vfio_alloc_device()`, which also allocated `self`. Its reference
///   count owns the allocation.
/// - `state` is initialised from the allocation until the device has been unregistered.
/// - `data` is initialised from before the device is registered until it has been unregistered.
/// - `open` is initialised from when `open_device` succeeds until `close_device`.
/// - The device is in the state of `Ctx` for as long as a reference to `self` lives.
#[repr(C)]
pub struct Device<T: Operations, Ctx: Context = Normal> {
    dev: Opaque<Raw<T>>,
    state: UnsafeCell<MaybeUninit<State<T>>>,
    data: UnsafeCell<MaybeUninit<T::RegistrationData<'static>>>,
    open: UnsafeCell<MaybeUninit<T::OpenData<'static>>>,
    _ctx: PhantomData<Ctx>,
}

impl<T: Operations, Ctx: Context> Device<T, Ctx> {
    /// Returns the `struct vfio_device`.
    #[inline]
    pub(super) fn as_raw(&self) -> *mut bindings::vfio_device {
        // CAST: `Raw` starts with a `struct vfio_device`.
        self.dev.get().cast()
    }

    /// Returns the device of a C pointer.
    ///
    /// # Safety
    ///
    /// `vdev` must point to the `struct vfio_device` of a [`Device<T>`] that lives for `'a`, and is
    /// in the state of `Ctx` for that time.
    #[inline]
    pub(super) unsafe fn from_raw<'a>(vdev: *mut bindings::vfio_device) -> &'a Self {
        // CAST: `Device` has the `struct vfio_device` at offset 0, see `UnregisteredDevice::new`.
        // SAFETY: By the requirements of this function, `vdev` points to a `Device<T>`, whose
        // layout does not depend on `Ctx`.
        unsafe { &*vdev.cast() }
    }

    /// Returns what the abstraction keeps for the device.
    ///
    /// # Safety
    ///
    /// The device must not have been unregistered yet, for the lifetime of the returned reference.
    #[inline]
    pub(super) unsafe fn state(&self) -> &State<T> {
        // SAFETY: By the type invariants, `state` is initialised until the device has been
        // unregistered. It is not mutated.
        unsafe { (*self.state.get()).assume_init_ref() }
    }

    /// Calls `f` with the registration data.
    ///
    /// `f` is for any lifetime: it can neither choose the one that the data is given, nor let the
    /// data escape.
    ///
    /// # Safety
    ///
    /// The device must be registered, or must not have been unregistered completely, until this
    /// returns.
    #[inline(always)]
    pub(super) unsafe fn with_data<R>(
        &self,
        f: impl for<'a> FnOnce(&'a Self, Pin<&'a T::RegistrationData<'a>>) -> R,
    ) -> R {
        // CAST: A lifetime has no influence on the layout.
        let data = self.data.get().cast::<T::RegistrationData<'_>>();
        // SAFETY: By the requirements of this function and the type invariants, `data` is
        // initialised. It is not mutated and not moved.
        f(self, unsafe { Pin::new_unchecked(&*data) })
    }

    /// Calls `f` with the open data, as [`with_data`](Self::with_data) does with the other.
    ///
    /// # Safety
    ///
    /// `open_device` must have succeeded, and `close_device` must not drop the open data before
    /// this returns.
    #[inline(always)]
    pub(super) unsafe fn with_open_data<R>(
        &self,
        f: impl for<'a> FnOnce(&'a Self, Pin<&'a T::OpenData<'a>>) -> R,
    ) -> R {
        // CAST: A lifetime has no influence on the layout.
        let open = self.open.get().cast::<T::OpenData<'_>>();
        // SAFETY: By the requirements of this function and the type invariants, `open` is
        // initialised. It is not mutated and not moved.
        f(self, unsafe { Pin::new_unchecked(&*open) })
    }

    /// Makes the open data.
    ///
    /// # Safety
    ///
    /// To be called by `open_device` only, with `dev_set->lock` held.
    #[inline]
    pub(super) unsafe fn init_open_data<'open>(
        &self,
        init: impl PinInit<T::OpenData<'open>, Error>,
    ) -> Result {
        // CAST: A lifetime has no influence on the layout.
        let open = self.open.get().cast::<T::OpenData<'open>>();
        // SAFETY: `open` has room for the open data, which is not initialised since the device was
        // not open. It is not moved, and nothing else reaches it before `open_device` succeeds.
        unsafe { pin_init::raw_try_init(open, init) }
    }

    /// Drops the open data.
    ///
    /// # Safety
    ///
    /// To be called by `close_device` only, with `dev_set->lock` held.
    #[inline]
    pub(super) unsafe fn drop_open_data(&self) {
        // SAFETY: `open_device` initialised the open data. `vfio_df_close()` calls `close_device`
        // for the last file, so that no callback that uses the data is running. None will run
        // before `open_device` has initialised it again.
        unsafe { drop_in_place((*self.open.get()).as_mut_ptr()) };
    }
}

// There is no way from a device on a bus to a reference that outlives the callback. `struct device`
// has one, hence the bound.
impl<T: Operations<Base = emulated::Base>> AsRef<device::Device> for Device<T> {
    #[inline]
    fn as_ref(&self) -> &device::Device {
        // SAFETY: By the type invariants, `self` starts with a `struct vfio_device`.
        let dev = unsafe { &raw mut (*self.as_raw()).device };
        // SAFETY: The `struct device` was initialised by `_vfio_alloc_device()`, and lives as long
        // as `self`.
        unsafe { device::Device::from_raw(dev) }
    }
}

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

/// An initialised device that is not registered.
///
/// # Invariants
///
/// - `state` and `data` of the device are initialised, and the device is not registered.
/// - `self` owns the reference to the device that its allocation returned.
pub(super) struct UnregisteredDevice<T: Operations>(NonNull<Device<T>>);

impl<T: Operations> UnregisteredDevice<T> {
    /// Allocates a device below `parent`, with `data`.
    ///
    /// # Safety
    ///
    /// The returned value must be dropped, and not be forgotten, before `'bound` ends.
    pub(super) unsafe fn new<'bound>(
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

        let state = State {
            base: T::Base::new_state()?,
            virqfds: ManuallyDrop::new(if Virqfds::<T>::NEEDED {
                Some(Virqfds::new()?)
            } else {
                None
            }),
        };
        let size = Kmalloc::aligned_layout(Layout::new::<Device<T>>()).size();

        // SAFETY: `parent` is a valid device, the table is never freed, and `size` has room for the
        // C structure that `init` of the table expects.
        let raw = unsafe { bindings::_vfio_alloc_device(size, parent.as_raw(), &VTable::<T>::OPS) };
        let device = NonNull::new(from_err_ptr(raw)?)
            .ok_or(ENOMEM)?
            .cast::<Device<T>>();

        // SAFETY: The device was just allocated, and nothing else can reach it yet.
        unsafe {
            (*device.as_ptr())
                .state
                .get()
                .write(MaybeUninit::new(state))
        };

        // CAST: A lifetime has no influence on the layout.
        // SAFETY: The device was just allocated, with room for and the alignment of `Device<T>`.
        let slot = unsafe { (*device.as_ptr()).data.get() }.cast::<T::RegistrationData<'bound>>();

        // SAFETY: `slot` has room for the registration data, is not initialised yet, and is not
        // moved. Nothing else can reach it. On failure it is left uninitialised.
        if let Err(err) = unsafe { pin_init::raw_try_init(slot, data) } {
            // SAFETY: The device has not been registered, `state` was just initialised, and the
            // reference is the one that `_vfio_alloc_device()` returned.
            unsafe { release(device) };
            return Err(err);
        }

        // INVARIANT: `state` and `data` were just initialised. The reference is the one that
        // `_vfio_alloc_device()` returned.
        Ok(Self(device))
    }

    /// Returns the device of a C pointer.
    ///
    /// # Safety
    ///
    /// `vdev` must come from [`into_raw`](Self::into_raw), and must have been unregistered if it
    /// was registered since.
    pub(super) unsafe fn from_raw(vdev: *mut bindings::vfio_device) -> Self {
        // INVARIANT: By the requirements of this function.
        // SAFETY: By the requirements of this function, `vdev` is not `NULL`.
        Self(unsafe { NonNull::new_unchecked(vdev.cast()) })
    }

    /// Returns the `struct vfio_device`, and with it the ownership.
    #[inline]
    pub(super) fn into_raw(self) -> *mut bindings::vfio_device {
        ManuallyDrop::new(self).as_raw()
    }

    /// Returns the `struct vfio_device`.
    #[inline]
    pub(super) fn as_raw(&self) -> *mut bindings::vfio_device {
        self.0.as_ptr().cast()
    }
}

impl<T: Operations> core::ops::Deref for UnregisteredDevice<T> {
    type Target = Device<T>;

    #[inline]
    fn deref(&self) -> &Device<T> {
        // SAFETY: By the type invariants, `self` owns a reference to the device.
        unsafe { self.0.as_ref() }
    }
}

impl<T: Operations> Drop for UnregisteredDevice<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, `data` is initialised and the device is not registered:
        // `vfio_unregister_group_dev()` has waited for all callbacks. It is not used again.
        unsafe { drop_in_place((*self.data.get()).as_mut_ptr()) };

        // SAFETY: By the type invariants, the device is not registered, `state` is initialised, and
        // the reference is owned by `self`, which does not use it again.
        unsafe { release(self.0) };
    }
}

/// Drops `state` and puts the reference that the allocation of `device` returned.
///
/// Other references may outlive the module of the driver.
///
/// # Safety
///
/// `device` must not be registered, and its `state` must be initialised. The reference must be
/// owned by the caller, who must not use it again.
unsafe fn release<T: Operations>(device: NonNull<Device<T>>) {
    let vdev = device.as_ptr().cast::<bindings::vfio_device>();

    // SAFETY: By the requirements of this function, `device` is valid and not registered, so that
    // no callback that uses `state` runs.
    unsafe { drop_in_place((*(*device.as_ptr()).state.get()).as_mut_ptr()) };

    // SAFETY: By the requirements of this function.
    unsafe { T::Base::release(vdev) };

    // SAFETY: By the requirements of this function, the device is not registered.
    unsafe { forget_ops(vdev) };

    // SAFETY: By the requirements of this function, the caller owns the reference.
    unsafe { bindings::vfio_put_device(vdev) };
}

/// Makes `vdev` independent of the modules of its driver and of its base.
///
/// `vfio_device_release()` looks up `release` in the table when the last reference is put, and that
/// may be long after the modules were unloaded.
///
/// # Safety
///
/// `vdev` must be valid and not registered.
// Not generic, so that the table is in the image of the kernel.
#[inline(never)]
unsafe fn forget_ops(vdev: *mut bindings::vfio_device) {
    const EMPTY: bindings::vfio_device_ops = pin_init::zeroed();

    // SAFETY: By the requirements of this function, nothing looks at `ops` but
    // `vfio_device_release()`, which runs after the caller has put its reference.
    unsafe { (*vdev).ops = &EMPTY };
}
