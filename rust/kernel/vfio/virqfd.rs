// SPDX-License-Identifier: GPL-2.0-only

//! Eventfds that mask and unmask interrupts when userspace signals them.
//!
//! C header: [`include/linux/vfio.h`](srctree/include/linux/vfio.h)

use super::{
    irq::{
        Action,
        SetIrqs, //
    },
    Device,
    InRegion,
    Opened,
    Operations, //
};
use crate::{
    bindings,
    error::to_result,
    prelude::*,
    static_lock_class,
    sync::Mutex, //
};
use core::{
    cell::UnsafeCell,
    marker::PhantomData,
    ptr::null_mut, //
};

/// The name of the lock. As the lock class, it has to stay when the module of the driver is unloaded:
/// a literal in generic code would be in that module.
static NAME: &CStr = c"vfio::Virqfds";

/// The eventfds of an open device of `T`.
///
/// The driver has none of them itself: it could forget it, and its code be called when its module
/// is gone.
#[pin_data]
pub(super) struct Virqfds<T: Operations> {
    #[pin]
    list: Mutex<KVec<KBox<Virqfd<T>>>>,
}

/// What an eventfd does, if there is one.
///
/// # Invariants
///
/// `virqfd` is `NULL`, or points to what `vfio_virqfd_enable()` has made for this.
struct Virqfd<T: Operations> {
    /// Protected by a lock of `drivers/vfio/virqfd.c`. It is `NULL` again when userspace closes the
    /// eventfd.
    virqfd: UnsafeCell<*mut bindings::virqfd>,
    vdev: *mut bindings::vfio_device,
    index: u32,
    number: u32,
    action: Action,
    _driver: PhantomData<fn(T)>,
}

// SAFETY: All members but `virqfd` are constant, and the C functions for that may be called by any
// task.
unsafe impl<T: Operations> Send for Virqfd<T> {}

impl<T: Operations> Virqfds<T> {
    /// Whether the driver needs any. If not, there is no code for them.
    pub(super) const NEEDED: bool = !T::MASKED_BY_EVENTFD.is_empty();

    /// Makes a list without eventfds.
    pub(super) fn new() -> Result<Pin<KBox<Self>>> {
        let init = pin_init!(Self {
            list <- Mutex::new(KVec::new(), NAME, static_lock_class!()),
        });
        KBox::pin_init(init, GFP_KERNEL_ACCOUNT)
    }

    /// Sets up eventfds as `request` says, or takes them away.
    ///
    /// Waits for the calls of [`Operations::irq_event`] for those that are taken away. If one
    /// cannot be set up, neither are the others of the request.
    pub(super) fn set_up(
        &self,
        device: &Device<T, Opened>,
        request: &SetIrqs<'_>,
        action: Action,
    ) -> Result {
        let fds = request.descriptors()?;
        let mut list = self.list.lock();

        for (done, fd) in fds.iter().enumerate() {
            if let Err(err) = Self::set_one(&mut list, device, request, action, done, *fd) {
                for (done, fd) in fds[..done].iter().enumerate() {
                    if *fd != -1 {
                        // It only takes away what is there.
                        Self::set_one(&mut list, device, request, action, done, -1)?;
                    }
                }
                return Err(err);
            }
        }
        Ok(())
    }

    /// Sets up the eventfd `fd` for the interrupt `nth` of `request`, or none if it is -1.
    fn set_one(
        list: &mut KVec<KBox<Virqfd<T>>>,
        device: &Device<T, Opened>,
        request: &SetIrqs<'_>,
        action: Action,
        nth: usize,
        fd: c_int,
    ) -> Result {
        let index = request.index();
        // It is less than the count of the request, which with the start fits.
        let number = request.start() + nth as u32;
        let known = list.iter().position(|virqfd| {
            (virqfd.index, virqfd.number, virqfd.action) == (index, number, action)
        });

        let at = match known {
            Some(at) => at,
            None if fd == -1 => return Ok(()),
            None => {
                // INVARIANT: `virqfd` is `NULL`.
                let virqfd = Virqfd {
                    virqfd: UnsafeCell::new(null_mut()),
                    vdev: device.as_raw(),
                    index,
                    number,
                    action,
                    _driver: PhantomData,
                };
                list.push(KBox::new(virqfd, GFP_KERNEL_ACCOUNT)?, GFP_KERNEL_ACCOUNT)?;
                list.len() - 1
            }
        };
        list[at].set(fd)
    }

    /// Takes all eventfds away, and waits for the calls of [`Operations::irq_event`].
    pub(super) fn clear(&self) {
        let list = core::mem::take(&mut *self.list.lock());
        drop(list);
    }
}

impl<T: Operations> Virqfd<T> {
    /// Sets up the eventfd `fd`, or none if it is -1.
    ///
    /// Fails with [`EBUSY`] if there is one, with [`EBADF`] if there is no descriptor `fd`, with
    /// [`EINVAL`] if it is not one of an eventfd, and with [`ENOMEM`].
    fn set(&self, fd: c_int) -> Result {
        if fd == -1 {
            self.disable();
            return Ok(());
        }

        // INVARIANT: The function stores what it makes.
        // SAFETY: This runs in process context. `self` is in a box and is not moved. Until it is
        // dropped, which waits for `signalled`, all pointers are valid. The caller holds the lock
        // of the list, so that the function is not called by several tasks for one `virqfd`.
        to_result(unsafe {
            bindings::vfio_virqfd_enable(
                core::ptr::from_ref(self).cast_mut().cast(),
                None,
                Some(Self::signalled),
                null_mut(),
                self.virqfd.get(),
                fd,
            )
        })
    }

    /// Takes the eventfd away, and waits until [`signalled`](Self::signalled) has returned.
    fn disable(&self) {
        // SAFETY: By the type invariants. The function may sleep, and so may this.
        unsafe { bindings::vfio_virqfd_disable(self.virqfd.get()) };
    }

    /// # Safety
    ///
    /// To be called by a work item of `drivers/vfio/virqfd.c` only, with a `Virqfd<T>`.
    unsafe extern "C" fn signalled(this: *mut c_void, _data: *mut c_void) {
        // SAFETY: By the requirements of this function. It is not dropped before this has returned.
        let this = unsafe { &*this.cast::<Self>() };

        // SAFETY: `vdev` is a `Device<T>`, which was open when the eventfd was set up.
        // `close_device` takes all eventfds away, and so waits for this, before anything else.
        let device = unsafe { Device::<T, InRegion>::from_raw(this.vdev) };
        // SAFETY: As the device has been open since, there is open data, and `close_device` drops
        // it after it has waited for this.
        unsafe {
            device.with_open_data(|device, open| {
                T::irq_event(device, open, this.index, this.number, this.action)
            })
        }
    }
}

impl<T: Operations> Drop for Virqfd<T> {
    fn drop(&mut self) {
        self.disable();
    }
}
