// SPDX-License-Identifier: GPL-2.0-only

//! Drivers for PCI devices, and how they are bound to them.

use super::{
    super::{
        device::UnregisteredDevice,
        Context,
        Device,
        InRegion,
        Operations, //
    },
    base::core_of,
    dma_buf,
    Base,
    Configuring, //
};
use crate::{
    bindings,
    device,
    device_id::RawDeviceIdIndex,
    driver,
    error::{
        from_result,
        to_result,
        VTABLE_DEFAULT_ERROR, //
    },
    pci,
    prelude::*,
    types::Opaque, //
};
use core::{
    mem::offset_of,
    ptr::null_mut, //
};

/// What vfio-pci-core is to leave out for a device, all `false` by default.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq)]
pub struct Settings {
    /// To mask INTx interrupts by PCI 2.3: the interrupt line is disabled instead.
    pub no_intx_mask: bool,
    /// The region of the addresses of legacy VGA.
    pub disable_vga: bool,
    /// To put the device into D3 while nobody uses it.
    pub disable_idle_d3: bool,
}

impl Settings {
    /// Stores the settings in a device.
    ///
    /// # Safety
    ///
    /// `core` must be valid, and must not be registered.
    pub(super) unsafe fn apply(self, core: *mut bindings::vfio_pci_core_device) {
        // SAFETY: By the requirements of this function, nobody else uses the fields.
        let core = unsafe { &mut *core };
        core.set_nointxmask(self.no_intx_mask);
        core.set_disable_vga(self.disable_vga);
        core.set_disable_idle_d3(self.disable_idle_d3);
    }
}

/// What is left of the connection to a device after hardware has detected an error.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum ChannelState {
    /// Everything.
    Normal,
    /// Nothing until the device has been reset: its memory cannot be accessed.
    Frozen,
    /// Nothing.
    PermanentFailure,
}

impl ChannelState {
    /// Returns the state that the PCI core means by `state`.
    pub(super) fn from_raw(state: bindings::pci_channel_state_t) -> Self {
        match state {
            bindings::pci_channel_io_normal => Self::Normal,
            bindings::pci_channel_io_frozen => Self::Frozen,
            // The PCI core has no other.
            _ => Self::PermanentFailure,
        }
    }
}

/// A driver for PCI devices.
///
/// # Examples
///
/// A driver that does what vfio-pci does.
///
/// ```
/// # mod driver {
/// use kernel::{
///     pci,
///     prelude::*,
///     vfio, //
/// };
///
/// struct Plain;
///
/// #[vtable]
/// impl vfio::Operations for Plain {
///     type Base = vfio::pci::Base;
///     type RegistrationData<'bound> = ();
///     type OpenData<'open> = ();
///
///     fn open<'open, 'bound: 'open>(
///         _device: &'open vfio::Device<Self, vfio::Opening>,
///         _data: Pin<&'open ()>,
///     ) -> impl PinInit<(), Error> {
///         Ok(())
///     }
/// }
///
/// kernel::pci_device_table!(
///     TABLE,
///     @none,
///     [pci::DeviceId::from_id(pci::Vendor::REDHAT, 0x5).for_vfio()]
/// );
///
/// #[vtable]
/// impl vfio::pci::Driver for Plain {
///     type IdInfo = ();
///     const ID_TABLE: pci::IdTable<()> = &TABLE;
///
///     fn probe<'bound>(
///         _dev: &'bound pci::Device,
///         _id_info: Option<&'bound ()>,
///     ) -> impl PinInit<(), Error> + 'bound {
///         Ok(())
///     }
/// }
/// # }
/// ```
#[vtable]
pub trait Driver: Operations<Base = Base> {
    /// What the driver knows of each entry of its table.
    type IdInfo: 'static;

    /// The devices that the driver is for, with [`pci::DeviceId::for_vfio`] if it takes them only
    /// when asked to.
    ///
    /// Userspace can add others by `new_id` if the table is one without info (`@none`). Otherwise
    /// it would have to name the info, which is at an address that it cannot know.
    const ID_TABLE: pci::IdTable<Self::IdInfo>;

    /// Called when the driver is bound to a device, before that is registered with VFIO.
    ///
    /// What it returns is the registration data, which may borrow `dev`. The device itself belongs
    /// to vfio-pci-core, which enables it when it is opened: what `dev` offers is what the device
    /// is. The caller holds its device lock. An error makes the binding fail.
    fn probe<'bound>(
        dev: &'bound pci::Device,
        id_info: Option<&'bound Self::IdInfo>,
    ) -> impl PinInit<Self::RegistrationData<'bound>, Error> + 'bound;

    /// Says what vfio-pci-core is to leave out for a device, before it is registered with VFIO.
    ///
    /// If not implemented, it leaves out nothing. The caller holds the device lock.
    fn settings(_dev: &pci::Device) -> Settings {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Called when the driver is being unbound, before the device is unregistered.
    ///
    /// Userspace may have it open, and can still open it. The caller holds the device lock. What
    /// has to be undone after userspace has closed the device is for [`Drop`] of the registration
    /// data.
    fn unbind(_device: &Device<Self>, _data: Pin<&Self::RegistrationData<'_>>) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Enables `count` virtual functions, or disables them if it is 0.
    ///
    /// Returns how many there are then. If not implemented, the device has none. The caller holds
    /// the device lock.
    fn sriov_configure(
        _device: &Device<Self, Configuring>,
        _data: Pin<&Self::RegistrationData<'_>>,
        _count: u32,
    ) -> Result<u32> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Says where ranges of a region are, which userspace exports as a dma-buf.
    ///
    /// If not implemented, a region is the BAR of the same number; but if the driver implements
    /// [`read`](Operations::read), [`write`](Operations::write), [`mmap`](Operations::mmap) or
    /// [`region_info`](Operations::region_info), by which it can keep a part of a BAR from userspace,
    /// nothing is exported, and userspace gets [`EOPNOTSUPP`]. vfio-pci-core exports no other
    /// regions than BARs. An error is what userspace gets.
    ///
    /// The caller holds no lock of VFIO. It can be the task that has called `core_feature`, when no
    /// lock must be held that this takes.
    fn export_dma_buf<'request>(
        _device: &Device<Self, InRegion>,
        _this: Pin<&Self::OpenData<'_>>,
        _export: dma_buf::Export<'request>,
    ) -> Result<dma_buf::Exported<'request>> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Called when hardware has detected an error of the device.
    ///
    /// After this vfio-pci-core signals the eventfd of `VFIO_PCI_ERR_IRQ_INDEX`: to recover is for
    /// userspace. The caller holds the device lock.
    fn error_detected(
        _device: &Device<Self>,
        _data: Pin<&Self::RegistrationData<'_>>,
        _state: ChannelState,
    ) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Called before somebody resets the device on purpose.
    ///
    /// There is no open data for this: a [`Bar`](super::Bar) that is kept there waits for
    /// `memory_lock`, which the task may hold itself. What is to be known of a reset while the
    /// device is open belongs into the registration data, which the open data can borrow.
    ///
    /// The caller holds the device lock, and may hold `dev_set->lock` and `memory_lock` of
    /// vfio-pci-core. It may also be the task that called [`Device::core_reset`]: a lock of the
    /// driver's own that this takes must not be held then.
    fn reset_prepare(_device: &Device<Self>, _data: Pin<&Self::RegistrationData<'_>>) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Called after somebody has reset the device on purpose.
    ///
    /// The caller holds the locks that it held for [`reset_prepare`](Self::reset_prepare).
    fn reset_done(_device: &Device<Self>, _data: Pin<&Self::RegistrationData<'_>>) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }
}

/// An adapter for the registration of drivers with the PCI bus.
///
/// Its [`driver::Registration`] has [limits](super::super#limits): it is to be dropped before the
/// module is unloaded, and not in a callback.
pub struct Adapter<T: Driver>(T);

// SAFETY:
// - `bindings::pci_driver` is a C type declared as `repr(C)`.
// - The driver has no private data in the sense of the driver core: drvdata is `NULL` again when
//   `probe_callback` fails and when `remove_callback` returns.
// - `struct pci_driver` embeds a `struct device_driver` at `DEVICE_DRIVER_OFFSET`.
unsafe impl<T: Driver> driver::DriverLayout for Adapter<T> {
    type DriverType = bindings::pci_driver;
    type DriverData<'bound> = ();
    const DEVICE_DRIVER_OFFSET: usize = offset_of!(Self::DriverType, driver);
}

// SAFETY: `unregister` is valid once `register` has succeeded.
unsafe impl<T: Driver + 'static> driver::RegistrationOps for Adapter<T> {
    unsafe fn register(
        pdrv: &Opaque<Self::DriverType>,
        name: &'static CStr,
        module: &'static ThisModule,
    ) -> Result {
        // SAFETY: The fields may be set before the driver is registered. The table of error
        // handlers that is exported is only referred to.
        unsafe {
            (*pdrv.get()).name = name.as_char_ptr();
            (*pdrv.get()).id_table = T::ID_TABLE.as_ptr();
            (*pdrv.get()).probe = Some(Self::probe_callback);
            (*pdrv.get()).remove = Some(Self::remove_callback);
            (*pdrv.get()).sriov_configure = if T::HAS_SRIOV_CONFIGURE {
                Some(Self::sriov_configure_callback)
            } else {
                None
            };
            (*pdrv.get()).err_handler = if Self::HAS_ERROR_HANDLERS {
                &Self::ERROR_HANDLERS
            } else {
                &raw const bindings::vfio_pci_core_err_handlers
            };
            (*pdrv.get()).driver_managed_dma = true;
        }

        // SAFETY: `pdrv` is a valid driver, and stays so until it is unregistered.
        to_result(unsafe {
            bindings::__pci_register_driver(pdrv.get(), module.as_ptr(), name.as_char_ptr())
        })
    }

    unsafe fn unregister(pdrv: &Opaque<Self::DriverType>) {
        // SAFETY: By the requirements of this function, the driver is registered.
        unsafe { bindings::pci_unregister_driver(pdrv.get()) }
    }
}

impl<T: Driver> Adapter<T> {
    /// Whether the driver implements one of the methods that the error handlers call.
    const HAS_ERROR_HANDLERS: bool =
        T::HAS_ERROR_DETECTED || T::HAS_RESET_PREPARE || T::HAS_RESET_DONE;

    const ERROR_HANDLERS: bindings::pci_error_handlers = bindings::pci_error_handlers {
        error_detected: if T::HAS_ERROR_DETECTED {
            Some(Self::error_detected_callback)
        } else {
            Some(bindings::vfio_pci_core_aer_err_detected)
        },
        reset_prepare: if T::HAS_RESET_PREPARE {
            Some(Self::reset_prepare_callback)
        } else {
            None
        },
        reset_done: if T::HAS_RESET_DONE {
            Some(Self::reset_done_callback)
        } else {
            None
        },
        ..pin_init::zeroed()
    };

    /// Whether userspace gets the regions as vfio-pci-core has them, so that there is nothing that a
    /// dma-buf could get around.
    #[cfg(CONFIG_VFIO_PCI_DMABUF)]
    const SHOWS_BARS: bool = !(T::HAS_READ || T::HAS_WRITE || T::HAS_MMAP || T::HAS_REGION_INFO);

    const PCI_OPS: bindings::vfio_pci_device_ops = bindings::vfio_pci_device_ops {
        #[cfg(CONFIG_VFIO_PCI_DMABUF)]
        get_dmabuf_phys: if T::HAS_EXPORT_DMA_BUF {
            Some(Self::get_dmabuf_phys_callback)
        } else if Self::SHOWS_BARS {
            Some(bindings::vfio_pci_core_get_dmabuf_phys)
        } else {
            None
        },
        #[cfg(not(CONFIG_VFIO_PCI_DMABUF))]
        get_dmabuf_phys: None,
    };

    extern "C" fn probe_callback(
        pdev: *mut bindings::pci_dev,
        id: *const bindings::pci_device_id,
    ) -> c_int {
        // SAFETY: The PCI bus calls this with a valid device, which is being bound.
        let dev = unsafe { &*pdev.cast::<pci::Device<device::CoreInternal<'_>>>() };

        // SAFETY: `DeviceId` is a transparent wrapper of `struct pci_device_id`.
        let id = unsafe { &*id.cast::<pci::DeviceId>() };
        // SAFETY: `id` is from `T::ID_TABLE`, is a dynamic one that has the `driver_data` of one
        // from there, or has none.
        let info = unsafe { id.info_unchecked_opt::<T::IdInfo>() };

        from_result(|| {
            // SAFETY: The data may borrow from the device for as long as it is bound. It is dropped
            // below, or by `remove_callback`.
            let device =
                unsafe { UnregisteredDevice::<T>::new(dev.as_ref(), T::probe(dev, info)) }?;
            let core = core_of(device.as_raw());

            // SAFETY: The device is not registered yet, and only it uses `pci_ops`.
            unsafe { (*core).pci_ops = &Self::PCI_OPS };
            if T::HAS_SETTINGS {
                // SAFETY: The device is not registered yet.
                unsafe { T::settings(dev).apply(core) };
            }
            Self::set_drvdata(pdev, core);

            // SAFETY: The device is initialised, as is its data, it is not registered, and it is
            // the drvdata of its parent.
            let ret = to_result(unsafe { bindings::vfio_pci_core_register_device(core) });
            if let Err(err) = ret {
                // Nothing uses it any more: the lock of `pdev` is held.
                Self::set_drvdata(pdev, null_mut());
                return Err(err);
            }

            // From now on it belongs to `pdev`.
            device.into_raw();
            Ok(0)
        })
    }

    extern "C" fn remove_callback(pdev: *mut bindings::pci_dev) {
        let core = Self::drvdata(pdev);

        if T::HAS_UNBIND {
            // SAFETY: `probe_callback` succeeded, so that this is a registered device.
            unsafe {
                Self::with_registered(pdev, |device: &Device<T>, data| T::unbind(device, data))
            };
        }

        // SAFETY: `probe_callback` succeeded, and so the device is registered. This waits until
        // userspace has closed it, and no callback of it runs after that.
        unsafe { bindings::vfio_pci_core_unregister_device(core) };
        // The lock of `pdev` is held, so that none of the callbacks of the driver runs either, and
        // none will before the driver is bound again.
        Self::set_drvdata(pdev, null_mut());

        // SAFETY: `probe_callback` stored what `into_raw` returned. The device has been
        // unregistered.
        drop(unsafe { UnregisteredDevice::<T>::from_raw(core.cast()) });
    }

    /// Calls `f` with the device and its registration data.
    ///
    /// # Safety
    ///
    /// To be called by callbacks of the PCI bus only, which hold the lock of `pdev`, after
    /// `probe_callback` succeeded and before `remove_callback` has unregistered the device, which
    /// must be in the state of `Ctx`.
    unsafe fn with_registered<Ctx: Context, R>(
        pdev: *mut bindings::pci_dev,
        f: impl for<'a> FnOnce(&'a Device<T, Ctx>, Pin<&'a T::RegistrationData<'a>>) -> R,
    ) -> R {
        // SAFETY: By the requirements of this function, drvdata is a `Device<T>`, which is not
        // dropped while the lock is held.
        let device = unsafe { Device::<T, Ctx>::from_raw(Self::drvdata(pdev).cast()) };
        // SAFETY: By the requirements of this function, the device is in the state of `Ctx`, and
        // `remove_callback`, which takes the lock that is held, has not unregistered it.
        unsafe { device.with_data(f) }
    }

    extern "C" fn sriov_configure_callback(pdev: *mut bindings::pci_dev, count: c_int) -> c_int {
        // SAFETY: `sriov_numvfs_store()` calls this for a device that is bound, with its lock held.
        unsafe {
            Self::with_registered(pdev, |device: &Device<T, Configuring>, data| {
                from_result(|| {
                    let count = T::sriov_configure(device, data, count.try_into()?)?;
                    Ok(count.try_into()?)
                })
            })
        }
    }

    extern "C" fn error_detected_callback(
        pdev: *mut bindings::pci_dev,
        state: bindings::pci_channel_state_t,
    ) -> bindings::pci_ers_result_t {
        // SAFETY: The PCI core calls this for a device that is bound, with its lock held.
        unsafe {
            Self::with_registered(pdev, |device: &Device<T>, data| {
                T::error_detected(device, data, ChannelState::from_raw(state))
            })
        };

        // SAFETY: The drvdata of the device is what vfio-pci-core takes for it, and stays so while
        // the lock is held.
        unsafe { bindings::vfio_pci_core_aer_err_detected(pdev, state) }
    }

    extern "C" fn reset_prepare_callback(pdev: *mut bindings::pci_dev) {
        // SAFETY: `pci_dev_save_and_disable()` calls this for a device that is bound, with its lock
        // held.
        unsafe {
            Self::with_registered(pdev, |device: &Device<T>, data| {
                T::reset_prepare(device, data)
            })
        }
    }

    extern "C" fn reset_done_callback(pdev: *mut bindings::pci_dev) {
        // SAFETY: `pci_dev_restore()` calls this for a device that is bound, with its lock held.
        unsafe {
            Self::with_registered(pdev, |device: &Device<T>, data| T::reset_done(device, data))
        }
    }

    /// # Safety
    ///
    /// To be called by vfio-pci-core only, for an open `Device<T>`, with valid pointers.
    #[cfg(CONFIG_VFIO_PCI_DMABUF)]
    unsafe extern "C" fn get_dmabuf_phys_callback(
        core: *mut bindings::vfio_pci_core_device,
        provider: *mut *mut bindings::p2pdma_provider,
        region_index: c_uint,
        phys_vec: *mut bindings::phys_vec,
        dma_ranges: *mut bindings::vfio_region_dma_range,
        nr_ranges: usize,
    ) -> c_int {
        // SAFETY: `vfio_pci_core_feature_dma_buf()` passes on a `Device<T>` that the file of the
        // system call keeps open, and no reference is used after this returns.
        let device = unsafe { Device::<T, InRegion>::from_raw(core.cast()) };
        // SAFETY: The arguments are those of vfio-pci-core. The method called here is for any
        // lifetime, and so for one that ends before this returns.
        let export = unsafe {
            dma_buf::Export::new(
                core,
                provider,
                region_index,
                phys_vec,
                dma_ranges,
                nr_ranges,
            )
        };

        // SAFETY: The file has `access_granted`, which is set after `open_device` succeeded, and
        // `close_device` waits for it.
        unsafe {
            device.with_open_data(|device, this| {
                from_result(|| T::export_dma_buf(device, this, export).map(|_exported| 0))
            })
        }
    }

    /// Returns what vfio-pci-core takes for its device.
    fn drvdata(pdev: *mut bindings::pci_dev) -> *mut bindings::vfio_pci_core_device {
        // SAFETY: The callers were given a valid device by the PCI bus.
        unsafe { bindings::dev_get_drvdata(&raw mut (*pdev).dev) }.cast()
    }

    /// Sets it.
    fn set_drvdata(pdev: *mut bindings::pci_dev, core: *mut bindings::vfio_pci_core_device) {
        // SAFETY: The callers were given a valid device by the PCI bus, and hold its lock.
        unsafe { bindings::dev_set_drvdata(&raw mut (*pdev).dev, core.cast()) };
    }
}

/// Declares a module that is one driver for PCI devices.
///
/// # Examples
///
/// ```ignore
/// kernel::module_vfio_pci_driver! {
///     type: MyDriver,
///     name: "my_vfio_pci",
///     authors: ["Author name"],
///     description: "Description",
///     license: "GPL",
/// }
/// ```
#[macro_export]
macro_rules! module_vfio_pci_driver {
    ($($f:tt)*) => {
        $crate::module_driver!(<T>, $crate::vfio::pci::Adapter<T>, { $($f)* });
    };
}
