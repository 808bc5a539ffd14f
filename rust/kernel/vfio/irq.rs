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
use core::{
    marker::PhantomData,
    mem::offset_of, //
};

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

/// Which of the interrupts of a [`Command`] the action is for, and when.
pub enum Data {
    /// For all of them, now.
    None,
    /// For those that are `true`, now.
    Bool(KVec<bool>),
    /// For each that has one, the eventfd to signal from now on, with [`Action::Trigger`] only.
    /// [`None`] is to signal none.
    ///
    /// Eventfds that mask or unmask when userspace signals them are for
    /// [`Operations::irq_event`](super::Operations::irq_event).
    EventFd(KVec<Option<eventfd::Context>>),
}

/// What userspace asks for by a [`SetIrqs`].
///
/// `count` may be 0. Then [`Action::Trigger`] with [`Data::None`] is to disable all interrupts of
/// `index`.
pub struct Command {
    /// The index of the interrupts.
    pub index: u32,
    /// The first of them that the command is for.
    pub start: u32,
    /// For how many it is, which is the number of elements of [`Data`] unless that is
    /// [`Data::None`].
    pub count: u32,
    /// What to do.
    pub action: Action,
    /// For which, and when.
    pub data: Data,
}

/// The fields of `struct vfio_irq_set` that precede the data, as its five `u32`s.
pub(super) type Fields = [u32; 5];
static_assert!(offset_of!(bindings::vfio_irq_set, data) == size_of::<Fields>());
static_assert!(offset_of!(bindings::vfio_irq_set, count) == 4 * size_of::<u32>());

/// A request to set up, mask, unmask or trigger interrupts (`VFIO_DEVICE_SET_IRQS`).
///
/// A driver [decodes](Self::decode) it, or lets the C code do that which its devices are built on.
///
/// # Examples
///
/// ```
/// use kernel::{prelude::*, vfio::irq};
///
/// /// Whether interrupts are to be triggered now.
/// fn now(request: irq::SetIrqs<'_>) -> Result<bool> {
///     let command = request.decode()?;
///     Ok(command.action == irq::Action::Trigger
///         && !matches!(command.data, irq::Data::EventFd(_)))
/// }
/// ```
///
/// The rest of the request is in the memory of the program that waits for the answer, so that it
/// cannot be kept for later:
///
/// ```ignore,compile_fail,E0521
/// # use kernel::{prelude::*, vfio::irq};
/// fn queue<'request>(
///     request: irq::SetIrqs<'request>,
///     later: &mut KVec<irq::SetIrqs<'static>>,
/// ) -> Result {
///     Ok(later.push(request, GFP_KERNEL)?)
/// }
/// ```
///
/// # Invariants
///
/// `vfio_set_irqs_validate_and_prepare()` has checked `set`, and has computed `size` from it.
pub struct SetIrqs<'request> {
    set: bindings::vfio_irq_set,
    /// Where all of it is in the memory of userspace.
    arg: usize,
    /// The size of what follows `set` there.
    size: usize,
    _brand: PhantomData<fn(&'request ()) -> &'request ()>,
}

impl SetIrqs<'_> {
    /// Checks a request at `arg` that starts with `fields`, for the interrupts of an index of which
    /// there are `interrupts`, on a device that has `num_irqs` indices.
    ///
    /// Fails with [`EINVAL`] if the request is not within that.
    // What calls a function of VFIO is inlined: VFIO can be a module, and so is the driver then.
    #[inline]
    pub(super) fn new(fields: Fields, arg: usize, interrupts: u32, num_irqs: u32) -> Result<Self> {
        let [argsz, flags, index, start, count] = fields;
        let mut set = bindings::vfio_irq_set {
            argsz,
            flags,
            index,
            start,
            count,
            ..Default::default()
        };
        let mut size = 0;

        // SAFETY: Both pointers are valid, and the function reads nothing beyond the fields of
        // `set` that precede the data.
        to_result(unsafe {
            bindings::vfio_set_irqs_validate_and_prepare(
                &mut set,
                interrupts.try_into()?,
                num_irqs.try_into()?,
                &mut size,
            )
        })?;

        // INVARIANT: The function has just checked `set` and computed `size`.
        Ok(Self {
            set,
            arg,
            size,
            _brand: PhantomData,
        })
    }

    /// Returns the index of the interrupts.
    #[inline]
    pub fn index(&self) -> u32 {
        self.set.index
    }

    /// Returns where the request is in the memory of userspace.
    #[cfg(CONFIG_RUST_VFIO_PCI_ABSTRACTIONS)]
    #[inline]
    pub(super) fn arg(&self) -> usize {
        self.arg
    }

    /// Reads the rest of the request, and looks up its eventfds.
    ///
    /// What is returned is within what [`Operations::info`](super::Operations::info) and
    /// [`Operations::irq_info`](super::Operations::irq_info) say.
    ///
    /// May sleep, and accesses the memory of userspace. Fails with [`EINVAL`] if userspace asks for
    /// no action or for several, or has a descriptor that is no eventfd, with [`EBADF`] if a
    /// descriptor is not open, with [`ENOTTY`] if an eventfd is to mask or unmask, with [`EFAULT`]
    /// if userspace has no memory where it said, and with [`ENOMEM`].
    pub fn decode(self) -> Result<Command> {
        let bindings::vfio_irq_set {
            flags,
            index,
            start,
            count,
            ..
        } = self.set;

        let action = self.action()?;
        if self.masks_by_eventfd().is_some() {
            return Err(ENOTTY);
        }

        let bytes = self.data()?;
        let data = match flags & bindings::VFIO_IRQ_SET_DATA_TYPE_MASK {
            bindings::VFIO_IRQ_SET_DATA_NONE => Data::None,
            bindings::VFIO_IRQ_SET_DATA_BOOL => {
                let mut bools = KVec::with_capacity(bytes.len(), gfp())?;
                for byte in bytes {
                    bools.push(byte != 0, gfp())?;
                }
                Data::Bool(bools)
            }
            bindings::VFIO_IRQ_SET_DATA_EVENTFD => {
                let fds = descriptors(&bytes)?;
                let mut eventfds = KVec::with_capacity(fds.len(), gfp())?;
                for fd in fds {
                    let eventfd = match fd {
                        -1 => None,
                        fd => Some(eventfd::Context::from_fd(fd)?),
                    };
                    eventfds.push(eventfd, gfp())?;
                }
                Data::EventFd(eventfds)
            }
            _ => return Err(EINVAL),
        };

        Ok(Command {
            index,
            start,
            count,
            action,
            data,
        })
    }

    /// Returns the first of the interrupts.
    #[inline]
    pub(super) fn start(&self) -> u32 {
        self.set.start
    }

    /// Returns the action.
    ///
    /// Fails with [`EINVAL`] if there is none, or more than one.
    fn action(&self) -> Result<Action> {
        match self.set.flags & bindings::VFIO_IRQ_SET_ACTION_TYPE_MASK {
            bindings::VFIO_IRQ_SET_ACTION_MASK => Ok(Action::Mask),
            bindings::VFIO_IRQ_SET_ACTION_UNMASK => Ok(Action::Unmask),
            bindings::VFIO_IRQ_SET_ACTION_TRIGGER => Ok(Action::Trigger),
            _ => Err(EINVAL),
        }
    }

    /// Returns the action that is to be done when userspace signals eventfds, if it is that.
    pub(super) fn masks_by_eventfd(&self) -> Option<Action> {
        match self.set.flags & bindings::VFIO_IRQ_SET_DATA_TYPE_MASK {
            bindings::VFIO_IRQ_SET_DATA_EVENTFD => self
                .action()
                .ok()
                .filter(|action| *action != Action::Trigger),
            _ => None,
        }
    }

    /// Reads the descriptors of the eventfds, of which there is one for each interrupt.
    pub(super) fn descriptors(&self) -> Result<KVec<c_int>> {
        descriptors(&self.data()?)
    }

    /// Reads what follows the fields.
    fn data(&self) -> Result<KVec<u8>> {
        let data = UserPtr::from_addr(self.arg).wrapping_byte_add(size_of::<Fields>());
        let mut bytes = KVec::new();
        UserSlice::new(data, self.size).read_all(&mut bytes, gfp())?;
        Ok(bytes)
    }
}

/// Returns the descriptors that `bytes` are.
fn descriptors(bytes: &[u8]) -> Result<KVec<c_int>> {
    let bytes = bytes.chunks_exact(size_of::<c_int>());
    let mut fds = KVec::with_capacity(bytes.len(), gfp())?;
    for fd in bytes {
        let fd = c_int::from_ne_bytes(fd.try_into().map_err(|_| EINVAL)?);
        fds.push(fd, gfp())?;
    }
    Ok(fds)
}

/// Returns how a copy of a request is allocated. Its size is bounded by the number of interrupts
/// that the driver said it has. That may be more than can be allocated, which is nothing to warn
/// of.
fn gfp() -> crate::alloc::Flags {
    GFP_KERNEL_ACCOUNT | __GFP_NOWARN
}
