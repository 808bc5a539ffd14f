// SPDX-License-Identifier: GPL-2.0-only

//! The ioctls that the VFIO core leaves to drivers.
//!
//! C header: [`include/uapi/linux/vfio.h`](srctree/include/uapi/linux/vfio.h)

use super::{
    base::private::Base,
    info,
    irq,
    virqfd::Virqfds,
    Device,
    Opened,
    Operations,
    Resetting, //
};
use crate::{
    bindings,
    ioctl::_IO,
    prelude::*,
    uaccess::{
        UserPtr,
        UserSlice, //
    },
};
use core::marker::PhantomData;

/// The number of an ioctl of VFIO.
const fn number(nr: u32) -> u32 {
    // CAST: `VFIO_TYPE` is a character.
    _IO(bindings::VFIO_TYPE as u32, bindings::VFIO_BASE + nr)
}

pub(super) const GET_INFO: u32 = number(7);
const GET_IRQ_INFO: u32 = number(9);
pub(super) const SET_IRQS: u32 = number(10);
pub(super) const RESET: u32 = number(11);

/// `VFIO_DEVICE_GET_PCI_HOT_RESET_INFO`, of PCI devices.
pub const GET_PCI_HOT_RESET_INFO: u32 = number(12);

/// `VFIO_DEVICE_PCI_HOT_RESET`, of PCI devices.
pub const PCI_HOT_RESET: u32 = number(13);

/// `VFIO_DEVICE_IOEVENTFD`, of PCI devices.
pub const IOEVENTFD: u32 = number(16);

/// `struct vfio_irq_info`, as its four `u32`s.
type IrqInfo = [u32; 4];
static_assert!(size_of::<bindings::vfio_irq_info>() == size_of::<IrqInfo>());

/// An ioctl that no other method of the driver stands for.
///
/// Userspace waits for it, so that it is handled before the method returns:
///
/// ```
/// # use kernel::{prelude::*, vfio::ioctl::Ioctl};
/// fn queue<'request>(ioctl: Ioctl<'request>, later: &mut KVec<Ioctl<'request>>) -> Result {
///     Ok(later.push(ioctl, GFP_KERNEL)?)
/// }
/// ```
///
/// is possible within the call, and not with a queue that is there for longer:
///
/// ```ignore,compile_fail,E0521
/// # use kernel::{prelude::*, vfio::ioctl::Ioctl};
/// fn queue<'request>(ioctl: Ioctl<'request>, later: &mut KVec<Ioctl<'static>>) -> Result {
///     Ok(later.push(ioctl, GFP_KERNEL)?)
/// }
/// ```
pub struct Ioctl<'request> {
    cmd: u32,
    arg: usize,
    _brand: PhantomData<fn(&'request ()) -> &'request ()>,
}

impl Ioctl<'_> {
    /// Returns the number of the ioctl.
    #[inline]
    pub fn cmd(&self) -> u32 {
        self.cmd
    }

    /// Returns the argument: a number, or an address of userspace.
    #[inline]
    pub fn arg(&self) -> usize {
        self.arg
    }

    /// Returns the `size` bytes of userspace that the argument is the address of.
    #[inline]
    pub fn buffer(&self, size: usize) -> UserSlice {
        UserSlice::new(UserPtr::from_addr(self.arg), size)
    }
}

/// Decodes an ioctl and calls the method of the driver that it is for.
pub(super) fn dispatch<T: Operations>(
    device: &Device<T, Resetting>,
    this: Pin<&T::OpenData<'_>>,
    cmd: u32,
    arg: usize,
) -> Result<isize> {
    const_assert!(
        T::HAS_INFO || T::Base::HAS_CORE || !T::HAS_IRQ_INFO,
        "a driver with `irq_info` must have `info`"
    );
    const_assert!(
        T::HAS_IRQ_INFO || T::Base::HAS_CORE || !T::HAS_SET_IRQS,
        "a driver with `set_irqs` must have `irq_info`"
    );
    const_assert!(
        !Virqfds::<T>::NEEDED || T::HAS_SET_IRQS && T::HAS_IRQ_EVENT,
        "a driver with `MASKED_BY_EVENTFD` must have `set_irqs` and `irq_event`"
    );

    let user = UserPtr::from_addr(arg);

    match cmd {
        GET_INFO if T::HAS_INFO || T::HAS_INFO_CAPABILITIES || T::HAS_RESET => {
            info::get_info(device, this, arg)?;
            Ok(0)
        }
        GET_IRQ_INFO if T::HAS_IRQ_INFO => {
            let (mut reader, mut writer) =
                UserSlice::new(user, size_of::<IrqInfo>()).reader_writer();

            let [argsz, _, index, _] = reader.read::<IrqInfo>()?;
            if (argsz as usize) < size_of::<IrqInfo>() {
                return Err(EINVAL);
            }

            let info = irq_info(device, this, index, num_irqs(device, this))?;
            writer.write::<IrqInfo>(&[argsz, info.flags.into(), index, info.count])?;
            Ok(0)
        }
        SET_IRQS if T::HAS_SET_IRQS => {
            let fields = UserSlice::new(user, size_of::<irq::Fields>())
                .reader()
                .read::<irq::Fields>()?;

            let [_, _, index, ..] = fields;
            let num_irqs = num_irqs(device, this);
            let count = irq_info(device, this, index, num_irqs)?.count;

            let request = irq::SetIrqs::new(fields, arg, count, num_irqs)?;
            if Virqfds::<T>::NEEDED && T::MASKED_BY_EVENTFD.contains(&index) {
                if let Some(action) = request.masks_by_eventfd() {
                    // SAFETY: The device is open, and so has not been unregistered.
                    let state = unsafe { device.state() };
                    let virqfds = state.virqfds.as_ref().ok_or(ENOTTY)?;
                    virqfds.set_up(device, &request, action)?;
                    return Ok(0);
                }
            }
            T::set_irqs(device, this, request)?;
            Ok(0)
        }
        RESET if T::HAS_RESET => {
            T::reset(device, this)?;
            Ok(0)
        }
        _ => forward(device, this, cmd, arg),
    }
}

/// Passes on an ioctl that no other method of the driver stands for.
fn forward<T: Operations>(
    device: &Device<T, Opened>,
    this: Pin<&T::OpenData<'_>>,
    cmd: u32,
    arg: usize,
) -> Result<isize> {
    if T::HAS_IOCTL {
        let ioctl = Ioctl {
            cmd,
            arg,
            _brand: PhantomData,
        };
        return T::ioctl(device, this, ioctl);
    }

    // SAFETY: The context of `device` shows that it is open.
    unsafe { T::Base::ioctl(device.as_raw(), cmd, arg) }
}

/// Returns how many indices of interrupts there are.
fn num_irqs<T: Operations>(device: &Device<T, Opened>, this: Pin<&T::OpenData<'_>>) -> u32 {
    let info = if T::HAS_INFO {
        T::info(device, this)
    } else {
        // SAFETY: The context of `device` shows that it is open.
        unsafe { T::Base::info(device.as_raw()) }
    };
    info.num_irqs
}

/// Returns what is told of the interrupts `index`, of `num_irqs` indices.
///
/// Fails with [`EINVAL`] if there is no such index.
fn irq_info<T: Operations>(
    device: &Device<T, Opened>,
    this: Pin<&T::OpenData<'_>>,
    index: u32,
    num_irqs: u32,
) -> Result<irq::Info> {
    if index >= num_irqs {
        return Err(EINVAL);
    }
    if T::HAS_IRQ_INFO {
        T::irq_info(device, this, index)
    } else {
        // SAFETY: The context of `device` shows that it is open.
        unsafe { T::Base::irq_info(device.as_raw(), index) }
    }
}
