// SPDX-License-Identifier: GPL-2.0-only

//! Interrupts of a VFIO device.
//!
//! C header: [`include/uapi/linux/vfio.h`](srctree/include/uapi/linux/vfio.h)

use crate::{
    bindings,
    error::to_result,
    eventfd, impl_flags,
    prelude::*,
    uaccess::{
        UserPtr,
        UserSlice, //
    },
};
use core::mem::offset_of;

impl_flags!(
    /// What userspace can do with interrupts.
    #[derive(Debug, Clone, Default, Copy, PartialEq, Eq)]
    pub struct Flags(u32);

    /// One thing that userspace can do with interrupts.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Flag {
        /// They can be signalled through eventfds.
        EventFd = bindings::VFIO_IRQ_INFO_EVENTFD,
        /// They can be masked and unmasked.
        Maskable = bindings::VFIO_IRQ_INFO_MASKABLE,
        /// They are masked when they trigger, until they are unmasked.
        AutoMasked = bindings::VFIO_IRQ_INFO_AUTOMASKED,
        /// They are set up all at once: to change their number, they are disabled first.
        NoResize = bindings::VFIO_IRQ_INFO_NORESIZE,
    }
);

/// What userspace is told of the interrupts of one index (`VFIO_DEVICE_GET_IRQ_INFO`).
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct Info {
    /// How many there are.
    pub count: u32,
    /// What can be done with them.
    pub flags: Flags,
}

/// What to do with interrupts.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Action {
    /// Do not let them through.
    Mask,
    /// Let them through.
    Unmask,
    /// Signal them.
    Trigger,
}

/// Which of the interrupts of a [`SetIrqs`] the action is for, and when.
pub enum Data {
    /// For all of them, now.
    None,
    /// For those that are `true`, now.
    Bool(KVec<bool>),
    /// For each that has one, its eventfd: with [`Action::Trigger`] the one to signal from now on,
    /// with the others one whose signal does the action. [`None`] is to undo that.
    EventFd(KVec<Option<eventfd::Context>>),
}

/// A request to set up, mask, unmask or trigger interrupts (`VFIO_DEVICE_SET_IRQS`).
///
/// `count` may be 0. Then [`Action::Trigger`] with [`Data::None`] is to disable all interrupts of
/// `index`.
pub struct SetIrqs {
    /// The index of the interrupts.
    pub index: u32,
    /// The first of them that the request is for.
    pub start: u32,
    /// For how many it is, which is the number of elements of [`Data`] unless that is
    /// [`Data::None`].
    pub count: u32,
    /// What to do.
    pub action: Action,
    /// For which, and when.
    pub data: Data,
}

impl SetIrqs {
    /// The number of fields of `struct vfio_irq_set` before the data, each of which is a `u32`.
    pub(super) const FIELDS: usize = offset_of!(bindings::vfio_irq_set, data) / size_of::<u32>();

    /// Decodes a request that starts with `fields` and continues at `data`, for the interrupts of
    /// an index of which there are `count`, on a device that has `num_irqs` indices.
    ///
    /// Fails with [`EINVAL`] if the request is not within that, with [`EBADF`] if a descriptor is
    /// not open, with [`EFAULT`] if userspace has no memory where it said, and with [`ENOMEM`].
    // What calls a function of VFIO is inlined: VFIO can be a module, and so is the driver then.
    #[inline]
    pub(super) fn decode(
        fields: [u32; Self::FIELDS],
        data: UserPtr,
        count: u32,
        num_irqs: u32,
    ) -> Result<Self> {
        let [argsz, flags, index, start, _] = fields;
        let mut set = bindings::vfio_irq_set {
            argsz,
            flags,
            index,
            start,
            count: fields[4],
            ..Default::default()
        };
        let mut size = 0;

        // SAFETY: Both pointers are valid, and the function reads nothing beyond the fields of
        // `set` that precede the data.
        to_result(unsafe {
            bindings::vfio_set_irqs_validate_and_prepare(
                &mut set,
                count.try_into()?,
                num_irqs.try_into()?,
                &mut size,
            )
        })?;

        let action = match flags & bindings::VFIO_IRQ_SET_ACTION_TYPE_MASK {
            bindings::VFIO_IRQ_SET_ACTION_MASK => Action::Mask,
            bindings::VFIO_IRQ_SET_ACTION_UNMASK => Action::Unmask,
            bindings::VFIO_IRQ_SET_ACTION_TRIGGER => Action::Trigger,
            _ => return Err(EINVAL),
        };

        // The size is bounded by the number of interrupts that the driver said it has. That may be
        // more than can be allocated, which is nothing to warn of.
        let gfp = GFP_KERNEL_ACCOUNT | __GFP_NOWARN;
        let mut bytes = KVec::new();
        UserSlice::new(data, size).read_all(&mut bytes, gfp)?;

        let data = match flags & bindings::VFIO_IRQ_SET_DATA_TYPE_MASK {
            bindings::VFIO_IRQ_SET_DATA_NONE => Data::None,
            bindings::VFIO_IRQ_SET_DATA_BOOL => {
                let mut bools = KVec::with_capacity(bytes.len(), gfp)?;
                for byte in bytes {
                    bools.push(byte != 0, gfp)?;
                }
                Data::Bool(bools)
            }
            bindings::VFIO_IRQ_SET_DATA_EVENTFD => {
                let fds = bytes.chunks_exact(size_of::<i32>());
                let mut eventfds = KVec::with_capacity(fds.len(), gfp)?;
                for fd in fds {
                    let eventfd = match i32::from_ne_bytes(fd.try_into().map_err(|_| EINVAL)?) {
                        -1 => None,
                        fd => Some(eventfd::Context::from_fd(fd)?),
                    };
                    eventfds.push(eventfd, GFP_KERNEL_ACCOUNT)?;
                }
                Data::EventFd(eventfds)
            }
            _ => return Err(EINVAL),
        };

        Ok(Self {
            index,
            start,
            count: set.count,
            action,
            data,
        })
    }
}
