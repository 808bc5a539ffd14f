// SPDX-License-Identifier: GPL-2.0-only

//! Registrations that belong to a module.
//!
//! Safe code can forget a value or put it in a static, and then nothing drops it. A device must not
//! be registered any more when the code of its driver is gone, nor when its parent is unbound. So
//! the registration belongs to an [`Entry`], which the driver has no influence on: it is undone
//! when the driver drops what it has of it, when the parent is unbound, or when the module of the
//! driver is unloaded, whatever comes first.
//!
//! To undo it waits until userspace has closed the device. A driver never does that itself, as it
//! may be in a callback of that very device: a work item does.
//!
//! The notifier of the module must not wait either, neither for userspace nor for data that is
//! dropped: the chain's rwsem is held, which all that loads or unloads a module takes, and so does
//! [`Entry::add`]. It only queues the work. What waits is what frees the module, which holds no
//! lock then: an entry has a reference to the module's kobject, and the memory of a module is not
//! freed before all those are gone.
//!
//! So code of the driver can run after other notifiers have been told that the module goes. That is
//! of no consequence to Rust code, with one exception that is not handled: a kprobe in a function
//! of the driver is dead from then on, but still armed. Remove it before the module is unloaded.
//!
//! Nothing here is generic: the code is in the image of the kernel, where it stays when modules go.

use crate::{
    bindings, device,
    devres::Devres,
    faux, new_mutex,
    prelude::*,
    sync::{
        Arc,
        ArcBorrow,
        Completion,
        Mutex, //
    },
    types::Opaque,
    workqueue::{
        self,
        impl_has_work,
        new_work,
        Work,
        WorkItem, //
    },
};
use core::ptr::NonNull;

/// A registered device, and how to unregister it.
pub(super) struct Registered {
    pub(super) vdev: *mut bindings::vfio_device,
    /// Unregisters `vdev` and gives up the ownership of it. Is part of the module of the driver.
    pub(super) unregister: unsafe fn(*mut bindings::vfio_device),
}

// SAFETY: A device can be unregistered by any task.
unsafe impl Send for Registered {}

/// The registration of one device.
///
/// # Invariants
///
/// `notifier` is registered from when [`Entry::add`] succeeds until the work has run, and owns a
/// reference to `self` for that time.
#[pin_data]
pub(super) struct Entry {
    /// The module, which is only compared with.
    module: *mut bindings::module,
    /// What keeps it, until nothing is left that needs its code.
    #[pin]
    memory: Mutex<Option<ModuleMemory>>,
    #[pin]
    notifier: Opaque<bindings::notifier_block>,
    /// The device, until somebody unregisters it.
    #[pin]
    registered: Mutex<Option<Registered>>,
    /// That has happened.
    #[pin]
    unregistered: Completion,
    /// The tie to the parent, and the parent itself if it was made for this device.
    #[pin]
    parent: Mutex<Parent>,
    #[pin]
    work: Work<Self>,
}

/// The parent of a device, in the order in which its parts are dropped.
struct Parent {
    unbinding: Option<Devres<Unbinding>>,
    faux: Option<faux::Registration>,
}

impl_has_work! {
    impl HasWork<Self> for Entry { self.work }
}

// SAFETY: The notifier is only used by C code, which has locks of its own, and the pointer to the
// module is not dereferenced.
unsafe impl Send for Entry {}

// SAFETY: As for `Send`. The other fields are `Sync`.
unsafe impl Sync for Entry {}

impl Entry {
    /// Makes an entry for a device of a driver of `module`. Nothing is registered yet.
    ///
    /// Fails with [`ENODEV`] if the module is being freed, and with [`ENOMEM`].
    pub(super) fn new(module: &'static ThisModule) -> Result<Arc<Self>> {
        let memory = ModuleMemory::of(module)?;
        let init = pin_init!(Self {
            module: module.as_ptr(),
            memory <- new_mutex!(memory),
            notifier: Opaque::new(bindings::notifier_block {
                notifier_call: Some(Self::notifier_call),
                // Before others, which makes the time after them in which the work runs short.
                priority: c_int::MAX,
                ..Default::default()
            }),
            registered <- new_mutex!(None),
            unregistered <- Completion::new(),
            parent <- new_mutex!(Parent {
                unbinding: None,
                faux: None,
            }),
            work <- new_work!("vfio::Entry::work"),
        });
        Arc::pin_init(init, GFP_KERNEL)
    }

    /// Takes over a device that was registered below `parent`. On failure, it is unregistered.
    ///
    /// Fails with [`ENODEV`] if the module is being unloaded, and with [`ENOMEM`].
    ///
    /// # Safety
    ///
    /// `registered.unregister` must be for `registered.vdev`, and be part of the module of the
    /// entry. This must not be called twice.
    pub(super) unsafe fn add(
        self: ArcBorrow<'_, Self>,
        registered: Registered,
        parent: &device::Device<device::Bound>,
    ) -> Result {
        *self.registered.lock() = Some(registered);

        let unbinding = Devres::new(parent, Unbinding(self.into())).and_then(|unbinding| {
            Self::register_notifier(self)?;
            Ok(unbinding)
        });
        match unbinding {
            Ok(unbinding) => {
                self.parent.lock().unbinding = Some(unbinding);
            }
            Err(err) => {
                self.unregister();
                return Err(err);
            }
        }

        // If the notifiers were called before this one was registered, nobody else would do it. The
        // module is marked before they are called, and their rwsem orders that.
        if self.is_going() {
            self.remove();
            return Err(ENODEV);
        }
        Ok(())
    }

    /// Takes over the parent of the device, which is removed after the device.
    pub(super) fn own_parent(self: ArcBorrow<'_, Self>, faux: faux::Registration) {
        self.parent.lock().faux = Some(faux);

        // The work may have run since `add`, and then has to run again for the parent.
        if self.is_going() {
            self.remove();
        }
    }

    /// Returns whether the module is being unloaded, or its `init` has failed.
    fn is_going(&self) -> bool {
        match &*self.memory.lock() {
            Some(memory) => memory.is_going(),
            // The work has run, unless there is no module.
            None => !self.module.is_null(),
        }
    }

    /// Undoes the registration, without waiting for that.
    pub(super) fn remove(self: ArcBorrow<'_, Self>) {
        // If the work is queued already, the reference is dropped.
        let _ = workqueue::system_long().enqueue::<Arc<Self>, 0>(self.into());
    }

    /// Unregisters the device, or waits until another task has done so.
    ///
    /// Waits until userspace has closed the device, and all callbacks have returned.
    fn unregister(&self) {
        // The lock is not held while userspace is waited for.
        let registered = self.registered.lock().take();
        match registered {
            Some(Registered { vdev, unregister }) => {
                // SAFETY: By the requirements of `add`, the function is for the device. Its code is
                // there: either `add` is called by the module, or `memory`, which is dropped after
                // this, keeps it.
                unsafe { unregister(vdev) };
                self.unregistered.complete_all();
            }
            None => self.unregistered.wait_for_completion(),
        }
    }

    /// Asks to be called when a module is unloaded.
    #[cfg(CONFIG_MODULES)]
    fn register_notifier(this: ArcBorrow<'_, Self>) -> Result {
        let notifier = this.notifier.get();
        let owned = Arc::into_raw(Arc::from(this));
        // SAFETY: `notifier` is initialised, and is not freed while it is registered: by the type
        // invariants, it owns a reference.
        let ret = unsafe { bindings::register_module_notifier(notifier) };
        crate::error::to_result(ret).inspect_err(|_| {
            // SAFETY: The pointer was returned by `into_raw`, and the notifier does not own it.
            drop(unsafe { Arc::from_raw(owned) });
        })
    }

    #[cfg(not(CONFIG_MODULES))]
    fn register_notifier(_this: ArcBorrow<'_, Self>) -> Result {
        Ok(())
    }

    /// Undoes [`register_notifier`](Self::register_notifier).
    #[cfg(CONFIG_MODULES)]
    fn unregister_notifier(this: &Arc<Self>) {
        // SAFETY: `notifier` is initialised. That it is not registered, since this runs for the
        // second time, is an error that the function returns. It waits until no notifier runs.
        if unsafe { bindings::unregister_module_notifier(this.notifier.get()) } == 0 {
            // SAFETY: The notifier owned this reference. `this` is another one.
            drop(unsafe { Arc::from_raw(Arc::as_ptr(this)) });
        }
    }

    #[cfg(not(CONFIG_MODULES))]
    fn unregister_notifier(_this: &Arc<Self>) {}

    /// Does what the chain of notifiers does when the module is unloaded, for a test.
    #[cfg(CONFIG_RUST_VFIO_KUNIT_TEST)]
    pub(super) fn module_goes(&self) {
        self.some_module_goes(self.module);
    }

    /// Does what the chain of notifiers does when another module is unloaded, for a test.
    #[cfg(CONFIG_RUST_VFIO_KUNIT_TEST)]
    pub(super) fn other_module_goes(&self) {
        self.some_module_goes(NonNull::dangling().as_ptr());
    }

    #[cfg(CONFIG_RUST_VFIO_KUNIT_TEST)]
    fn some_module_goes(&self, module: *mut bindings::module) {
        let going = bindings::module_state_MODULE_STATE_GOING as c_ulong;
        // SAFETY: `notifier` is that of an entry. The caller has a reference to it, as the chain.
        unsafe { Self::notifier_call(self.notifier.get(), going, module.cast()) };
    }

    /// Waits as what frees the module does, for a test.
    #[cfg(CONFIG_RUST_VFIO_KUNIT_TEST)]
    pub(super) fn module_is_freed(&self) {
        // SAFETY: `work` is initialised, and is not freed while `self` is borrowed.
        unsafe { bindings::flush_work(Work::raw_get(&self.work)) };
    }

    /// # Safety
    ///
    /// To be called by the chain of the modules' notifiers only, for the `notifier` of an
    /// [`Entry`].
    unsafe extern "C" fn notifier_call(
        notifier: *mut bindings::notifier_block,
        state: c_ulong,
        module: *mut c_void,
    ) -> c_int {
        // SAFETY: By the requirements of this function, `notifier` is that of an entry.
        let entry = unsafe { crate::container_of!(Opaque::cast_from(notifier), Self, notifier) };
        // SAFETY: By the type invariants, the notifier owns a reference. `unregister_notifier` does
        // not drop it while this runs, as it takes the rwsem of the chain for writing.
        let entry = unsafe { ArcBorrow::from_raw(entry) };

        // The `exit` of the module has returned, or its `init` has failed, so that it has dropped
        // what it was going to drop. From now on the device cannot be opened, but it may be open.
        // CAST: The states are small numbers.
        if state == bindings::module_state_MODULE_STATE_GOING as c_ulong
            && module == entry.module.cast()
        {
            entry.remove();
        }
        bindings::NOTIFY_DONE as c_int
    }
}

impl WorkItem for Entry {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.unregister();

        // The parent is not unbound before this, since that waits for `unregistered` only.
        let parent = core::mem::replace(
            &mut *this.parent.lock(),
            Parent {
                unbinding: None,
                faux: None,
            },
        );
        drop(parent);

        Self::unregister_notifier(&this);
        // The module can be freed from here on. This is not part of it.
        let memory = this.memory.lock().take();
        drop(memory);
    }
}

/// A reference to a module by which its memory, and so its code, is not freed.
///
/// Other than a reference that `try_module_get()` takes, it does not keep the module from being
/// unloaded: what frees it waits, after its `exit` or failed `init`, and with no lock held.
///
/// # Invariants
///
/// The pointer is to a module, and a reference to its kobject is owned.
struct ModuleMemory(NonNull<bindings::module>);

// SAFETY: A reference to a kobject may be put by any task.
unsafe impl Send for ModuleMemory {}

impl ModuleMemory {
    /// Takes a reference. There is nothing to be kept of a module that is built in.
    fn of(module: &'static ThisModule) -> Result<Option<Self>> {
        let Some(module) = NonNull::new(module.as_ptr()) else {
            return Ok(None);
        };
        // SAFETY: The module is valid: it is the one of the caller. Its kobject was initialised by
        // `mod_sysfs_setup()` before any of its code ran; `RUST_VFIO_ABSTRACTIONS` has SYSFS.
        if unsafe { bindings::kobject_get_unless_zero(&raw mut (*module.as_ptr()).mkobj.kobj) }
            .is_null()
        {
            return Err(ENODEV);
        }
        // INVARIANT: The reference was just taken.
        Ok(Some(Self(module)))
    }

    /// Returns whether the module is being unloaded, or its `init` has failed.
    fn is_going(&self) -> bool {
        // SAFETY: By the type invariants, the module is valid. Its state is an integer that others
        // write to as a whole, so that any value is one of the states.
        // FIXME: Use `READ_ONCE` when available.
        let state = unsafe { (&raw const (*self.0.as_ptr()).state).read_volatile() };
        state == bindings::module_state_MODULE_STATE_GOING
    }
}

impl Drop for ModuleMemory {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, a reference is owned. `free_module()` waits for it in
        // `mod_kobject_put()`. The module is not used after this.
        unsafe { bindings::kobject_put(&raw mut (*self.0.as_ptr()).mkobj.kobj) };
    }
}

/// What devres drops when the parent is unbound.
struct Unbinding(Arc<Entry>);

impl Drop for Unbinding {
    fn drop(&mut self) {
        // The parent must not be unbound before: the VFIO core looks at its driver for as long as
        // the device is open.
        self.0.unregister();

        // Otherwise this is dropped by the work, or since `add` failed.
        if self.0.parent.lock().unbinding.is_some() {
            self.0.as_arc_borrow().remove();
        }
    }
}
