// SPDX-License-Identifier: GPL-2.0-only

//! The functions that the VFIO core calls.

use super::{
    base::private::Base as _,
    context::{
        Context,
        Matching,
        MatchingToken,
        Mmap,
        Opened,
        Opening,
        Requesting,
        Resetting, //
    },
    device::Device,
    feature,
    ioctl,
    region,
    virqfd::Virqfds,
    Operations, //
};
use crate::{
    bindings,
    error::from_result,
    mm::virt::VmaNew,
    module::this_module,
    prelude::*,
    str::as_char_ptr_in_const_context,
    uaccess::UserPtr,
    ModuleMetadata, //
};
use core::marker::PhantomData;

/// The `struct vfio_device_ops` of the devices of `T`.
///
/// The VFIO core guarantees for each member, with functions of `drivers/vfio/vfio_main.c` unless
/// stated otherwise:
///
/// - `open_device` is called by `vfio_df_open()` for the first file, and `close_device` by
///   `vfio_df_close()` for the last, both with `dev_set->lock` held.
/// - `read`, `write`, `ioctl`, `get_region_info_caps`, `mmap`, `get_unmapped_area` and
///   `device_feature` are called by `vfio_device_fops` for a file with `access_granted`, which is
///   set after `open_device` succeeded. The file, which the calling system call holds a reference
///   to, is one of those that `close_device` waits for.
/// - `request` is called by `vfio_unregister_group_dev()`, before it returns to who drops the data.
/// - `match` is called by `vfio_device_get_from_name()` of `drivers/vfio/group.c` for a device on
///   the list of a group, with the `device_lock` of the group held, with which
///   `vfio_unregister_group_dev()` takes the device off the list before all else.
/// - `match_token_uuid` is called by `vfio_df_ioctl_bind_iommufd()` of `drivers/vfio/device_cdev.c`
///   for a file that holds a registration reference, for which `vfio_unregister_group_dev()` waits.
///   The function for `match` of vfio-pci-core calls it, too.
/// - `dma_unmap` is called between the moments at which a file that opens the device is attached to
///   its IOMMU context and detached again. That file holds a registration reference.
pub(super) struct VTable<T: Operations>(PhantomData<T>);

impl<T: Operations> VTable<T> {
    /// What the driver does not implement.
    const BASE: bindings::vfio_device_ops = T::Base::OPS;

    /// Whether the driver implements one of the methods that [`ioctl::dispatch`] calls.
    const HAS_IOCTLS: bool = T::HAS_INFO
        || T::HAS_INFO_CAPABILITIES
        || T::HAS_IRQ_INFO
        || T::HAS_SET_IRQS
        || T::HAS_RESET
        || T::HAS_IOCTL;

    pub(super) const OPS: bindings::vfio_device_ops = bindings::vfio_device_ops {
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

    /// Calls `f` with an open device and its open data.
    ///
    /// # Safety
    ///
    /// To be called by the VFIO core only, by way of a member of the table that is for a file with
    /// `access_granted`, with a `Device<T>` that is in the state of `Ctx`.
    #[inline(always)]
    unsafe fn with_open<Ctx: Context, R>(
        vdev: *mut bindings::vfio_device,
        f: impl for<'a> FnOnce(&'a Device<T, Ctx>, Pin<&'a T::OpenData<'a>>) -> R,
    ) -> R {
        // SAFETY: By the requirements of this function, `vdev` is a `Device<T>` in the state of
        // `Ctx`. The file keeps it open until the call returns.
        let device = unsafe { Device::<T, Ctx>::from_raw(vdev) };
        // SAFETY: `access_granted` shows that `open_device` succeeded, and `close_device` waits for
        // the file.
        unsafe { device.with_open_data(f) }
    }

    /// Calls `f` with a device and its registration data.
    ///
    /// # Safety
    ///
    /// To be called by the VFIO core only, by way of a member of the table, with a `Device<T>` that
    /// is in the state of `Ctx`.
    #[inline(always)]
    unsafe fn with_registered<Ctx: Context, R>(
        vdev: *mut bindings::vfio_device,
        f: impl for<'a> FnOnce(&'a Device<T, Ctx>, Pin<&'a T::RegistrationData<'a>>) -> R,
    ) -> R {
        // SAFETY: By the requirements of this function, `vdev` is a `Device<T>` in the state of
        // `Ctx`.
        let device = unsafe { Device::<T, Ctx>::from_raw(vdev) };
        // SAFETY: As documented for `VTable`, the data is not dropped before any of the members
        // returns.
        unsafe { device.with_data(f) }
    }

    /// # Safety
    ///
    /// To be called by the VFIO core only, for a registered `Device<T>`, with `dev_set->lock` held,
    /// and not again before `close_device`.
    unsafe extern "C" fn open_device(vdev: *mut bindings::vfio_device) -> c_int {
        from_result(|| {
            let module = Module::get::<T>()?;

            // SAFETY: By the requirements of this function, the device is registered and is being
            // opened with `dev_set->lock` held.
            unsafe { T::Base::open(vdev) }?;

            // SAFETY: The core calls this with a `Device<T>` that is being opened: `open_count` is
            // 1 already, and does not change while `dev_set->lock` is held.
            let ret = unsafe {
                Self::with_registered(vdev, |device: &Device<T, Opening>, data| {
                    // `OpenData` may borrow the registration data, which is not dropped before
                    // `close_device` has dropped the open data: the file that opens the device
                    // holds a registration reference.
                    //
                    // SAFETY: This is `open_device`, with `dev_set->lock` held.
                    device.init_open_data(T::open(device, data))
                })
            };

            // SAFETY: The device has not been unregistered: the file holds a registration
            // reference.
            let state = unsafe { Device::<T, Opening>::from_raw(vdev).state() };
            match ret {
                Ok(()) => {
                    // SAFETY: `open` of the base succeeded.
                    unsafe { T::Base::opened(vdev, &state.base) };
                    module.keep();
                    Ok(0)
                }
                Err(err) => {
                    // SAFETY: `open` of the base succeeded.
                    unsafe { T::Base::cancel(vdev, &state.base) };
                    Err(err)
                }
            }
        })
    }

    /// # Safety
    ///
    /// To be called by the VFIO core only, after `open_device` succeeded, with `dev_set->lock`
    /// held.
    unsafe extern "C" fn close_device(vdev: *mut bindings::vfio_device) {
        // SAFETY: The core calls this with a `Device<T>`, before it drops `open_count` to 0.
        let device = unsafe { Device::<T, Opened>::from_raw(vdev) };
        // SAFETY: The device has not been unregistered: the file that is closed holds a
        // registration reference until this has returned.
        let state = unsafe { device.state() };

        // `irq_event` is given the open data.
        if Virqfds::<T>::NEEDED {
            if let Some(virqfds) = &*state.virqfds {
                virqfds.clear();
            }
        }
        // SAFETY: The core calls this for a device that is open, to close it, with `dev_set->lock`
        // held.
        unsafe { T::Base::closing(vdev, &state.base) };
        // SAFETY: This is `close_device`, with `dev_set->lock` held.
        unsafe { device.drop_open_data() };
        // SAFETY: As for `closing`.
        unsafe { T::Base::close(vdev, &state.base) };

        // The code of the module is used until this returns. The file holds a registration
        // reference until then, for which the module is waited for when it is unloaded.
        // SAFETY: `open_device` got a reference.
        unsafe { Module::put::<T>() };
    }

    /// # Safety
    ///
    /// To be called by the VFIO core only, for an open `Device<T>`, with a buffer of userspace and
    /// a valid position.
    unsafe extern "C" fn read(
        vdev: *mut bindings::vfio_device,
        buf: *mut c_char,
        count: usize,
        ppos: *mut bindings::loff_t,
    ) -> isize {
        // SAFETY: `vfio_device_fops_read()` passes on a position that is valid, and that nobody
        // else uses during the call.
        let position = unsafe { &mut *ppos };
        let user = UserPtr::from_ptr(buf.cast());

        // SAFETY: This is called for a file with `access_granted`.
        unsafe {
            Self::with_open(vdev, |device: &Device<T, Opened>, this| {
                region::read(user, count, position, |access| {
                    T::read(device, this, access)
                })
            })
        }
    }

    /// # Safety
    ///
    /// To be called by the VFIO core only, for an open `Device<T>`, with a buffer of userspace and
    /// a valid position.
    unsafe extern "C" fn write(
        vdev: *mut bindings::vfio_device,
        buf: *const c_char,
        count: usize,
        ppos: *mut bindings::loff_t,
    ) -> isize {
        // SAFETY: `vfio_device_fops_write()` passes on a position that is valid, and that nobody
        // else uses during the call.
        let position = unsafe { &mut *ppos };
        let user = UserPtr::from_ptr(buf.cast_mut().cast());

        // SAFETY: This is called for a file with `access_granted`.
        unsafe {
            Self::with_open(vdev, |device: &Device<T, Opened>, this| {
                region::write(user, count, position, |access| {
                    T::write(device, this, access)
                })
            })
        }
    }

    /// # Safety
    ///
    /// To be called by the VFIO core only, for an open `Device<T>`.
    unsafe extern "C" fn ioctl(
        vdev: *mut bindings::vfio_device,
        cmd: c_uint,
        arg: c_ulong,
    ) -> c_long {
        // SAFETY: This is called for a file with `access_granted`. `dispatch` passes the device on
        // to `Operations::reset` only for the ioctl that this is for.
        unsafe {
            Self::with_open(vdev, |device: &Device<T, Resetting>, this| {
                from_result(|| ioctl::dispatch(device, this, cmd, arg))
            })
        }
    }

    /// # Safety
    ///
    /// To be called by the VFIO core only, for an open `Device<T>`, with valid pointers.
    unsafe extern "C" fn get_region_info_caps(
        vdev: *mut bindings::vfio_device,
        info: *mut bindings::vfio_region_info,
        caps: *mut bindings::vfio_info_cap,
    ) -> c_int {
        // SAFETY: `vfio_get_region_info()` passes on a variable of its own.
        let info = unsafe { &mut *info };
        // SAFETY: `vfio_get_region_info()` passes on a variable of its own, which nobody else uses
        // until this returns.
        let mut capabilities = unsafe { region::Capabilities::from_raw(caps) };

        // SAFETY: This is called for a file with `access_granted`.
        unsafe {
            Self::with_open(vdev, |device: &Device<T, Opened>, this| {
                from_result(|| {
                    T::region_info(device, this, info.index, &mut capabilities)?.store(info)?;
                    Ok(0)
                })
            })
        }
    }

    /// # Safety
    ///
    /// To be called by the VFIO core only, for an open `Device<T>`, with a vma that is being set
    /// up.
    unsafe extern "C" fn mmap(
        vdev: *mut bindings::vfio_device,
        vma: *mut bindings::vm_area_struct,
    ) -> c_int {
        // SAFETY: `vfio_device_fops_mmap()` passes on the vma that mm is setting up, with
        // `mmap_lock` held for writing.
        let vma = unsafe { VmaNew::from_raw(vma) };

        // SAFETY: This is called for a file with `access_granted`.
        unsafe {
            Self::with_open(vdev, |device: &Device<T, Mmap>, this| {
                from_result(|| T::mmap(device, this, region::Mapping::new(vma)).map(|_mapped| 0))
            })
        }
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
        // SAFETY: The arguments are those that mm gave to the file operation, which is still
        // running when the search is gone: the method called here is for any lifetime of it.
        let search = unsafe { super::placement::Search::new(file, addr, len, pgoff, flags) };

        // SAFETY: This is called for a file with `access_granted`.
        unsafe {
            Self::with_open(vdev, |device: &Device<T, Mmap>, this| {
                match T::get_unmapped_area(device, this, search) {
                    Ok(placement) => placement.into_raw(),
                    // CAST: An errno as mm expects it, in an address.
                    Err(err) => err.to_errno() as c_ulong,
                }
            })
        }
    }

    /// # Safety
    ///
    /// To be called by the VFIO core only, for a registered `Device<T>`.
    unsafe extern "C" fn request(vdev: *mut bindings::vfio_device, count: c_uint) {
        // SAFETY: This is called by `vfio_unregister_group_dev()` with a `Device<T>`.
        unsafe {
            Self::with_registered(vdev, |device: &Device<T, Requesting>, data| {
                T::request(device, data, count)
            })
        }
    }

    /// # Safety
    ///
    /// To be called by the VFIO core only, for a registered `Device<T>`, with a string.
    unsafe extern "C" fn match_(vdev: *mut bindings::vfio_device, buf: *mut c_char) -> c_int {
        // SAFETY: `vfio_group_ioctl_get_device_fd()` made the string, and nobody changes it during
        // the call.
        let name = unsafe { CStr::from_char_ptr(buf) };

        // SAFETY: This is called with a `Device<T>` on the list of a group, under its lock.
        unsafe {
            Self::with_registered(vdev, |device: &Device<T, Matching>, data| {
                from_result(|| Ok(c_int::from(T::matches(device, data, name)?)))
            })
        }
    }

    /// # Safety
    ///
    /// To be called by the VFIO core only, for a registered `Device<T>`, with a UUID or `NULL`.
    unsafe extern "C" fn match_token_uuid(
        vdev: *mut bindings::vfio_device,
        uuid: *const bindings::uuid_t,
    ) -> c_int {
        // SAFETY: `uuid` is `NULL`, or a copy that the caller does not change during the call.
        let token = unsafe { uuid.as_ref() }.map(|uuid| &uuid.b);

        // SAFETY: This is called with a `Device<T>` of which the caller has a registration
        // reference, or which is on the list of a group, under its lock.
        unsafe {
            Self::with_registered(vdev, |device: &Device<T, MatchingToken>, data| {
                from_result(|| {
                    T::match_token(device, data, token)?;
                    Ok(0)
                })
            })
        }
    }

    /// # Safety
    ///
    /// To be called by the VFIO core only, for a registered `Device<T>`.
    unsafe extern "C" fn dma_unmap(vdev: *mut bindings::vfio_device, iova: u64, length: u64) {
        // SAFETY: This is called with a `Device<T>` that a file with a registration reference is
        // opening, has open, or is closing.
        unsafe {
            Self::with_registered(vdev, |device: &Device<T>, data| {
                T::dma_unmap(device, data, iova, length);
                // The same reference keeps the device from being unregistered.
                T::Base::dma_unmap(&device.state().base, iova, length);
            })
        }
    }

    /// # Safety
    ///
    /// To be called by the VFIO core only, for an open `Device<T>`, with a buffer of userspace.
    unsafe extern "C" fn device_feature(
        vdev: *mut bindings::vfio_device,
        flags: u32,
        arg: *mut c_void,
        argsz: usize,
    ) -> c_int {
        let feature = feature::Feature::new(flags, UserPtr::from_ptr(arg), argsz);

        // SAFETY: This is called for a file with `access_granted`.
        unsafe {
            Self::with_open(vdev, |device: &Device<T, Opened>, this| {
                from_result(|| T::feature(device, this, feature))
            })
        }
    }
}

/// A reference to the module of a driver, which keeps it loaded.
struct Module(*mut bindings::module);

impl Module {
    /// Gets a reference if devices of `T` need one.
    ///
    /// Fails with [`ENODEV`] if the module is being unloaded.
    #[inline]
    fn get<T: Operations>() -> Result<Self> {
        if !T::Base::HOLDS_MODULE {
            return Ok(Self(core::ptr::null_mut()));
        }
        let module = this_module::<T::OwnerModule>().as_ptr();
        // SAFETY: `module` is `NULL`, for code that is not in a module, or the one that this code
        // is in, which is there as long as the registration that the open file has a reference to.
        if !unsafe { bindings::try_module_get(module) } {
            return Err(ENODEV);
        }
        Ok(Self(module))
    }

    /// Keeps the reference until [`put`](Self::put) is called.
    #[inline]
    fn keep(self) {
        core::mem::forget(self);
    }

    /// Puts the reference that was kept.
    ///
    /// # Safety
    ///
    /// There must be one.
    #[inline]
    unsafe fn put<T: Operations>() {
        if T::Base::HOLDS_MODULE {
            drop(Self(this_module::<T::OwnerModule>().as_ptr()));
        }
    }
}

impl Drop for Module {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: `self` owns a reference to the module, or is `NULL`, which the function ignores.
        unsafe { bindings::module_put(self.0) };
    }
}
