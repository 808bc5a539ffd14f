// SPDX-License-Identifier: GPL-2.0-only

//! What userspace is told of a device (`VFIO_DEVICE_GET_INFO`).
//!
//! C header: [`include/uapi/linux/vfio.h`](srctree/include/uapi/linux/vfio.h)

use super::{
    base::private::Base,
    capability,
    ioctl,
    Device,
    Opened,
    Operations, //
};
use crate::{
    bindings,
    prelude::*,
    transmute::{
        AsBytes,
        FromBytes, //
    },
    uaccess::{
        UserPtr,
        UserSlice, //
    },
};
use core::{
    mem::offset_of,
    ptr::null_mut,
    slice, //
};

/// The fields of `struct vfio_device_info` that always are there, which are `u32`s: `argsz`,
/// `flags`, `num_regions` and `num_irqs`.
pub(super) type Fields = [u32; 4];
static_assert!(offset_of!(bindings::vfio_device_info, num_irqs) == 3 * size_of::<u32>());

/// All of it: `cap_offset` and padding follow.
type AllFields = [u32; 6];
static_assert!(offset_of!(bindings::vfio_device_info, cap_offset) == 4 * size_of::<u32>());
static_assert!(size_of::<bindings::vfio_device_info>() == size_of::<AllFields>());

/// The size of `struct vfio_device_info`, and where the capabilities start.
const SIZE: u32 = size_of::<AllFields>() as u32;

/// Collects what userspace is told of a device beyond its [`DeviceInfo`](super::DeviceInfo).
///
/// # Invariants
///
/// `caps` owns its buffer, which is a chain of capabilities of which the last one is at `last`, or
/// `NULL` if there are none.
pub struct Capabilities {
    caps: bindings::vfio_info_cap,
    last: usize,
}

impl Capabilities {
    #[inline]
    pub(super) fn new() -> Self {
        // INVARIANT: There are none.
        Self {
            caps: bindings::vfio_info_cap {
                buf: null_mut(),
                size: 0,
            },
            last: 0,
        }
    }

    /// Adds a capability: its number and version, and what follows the header of its structure in
    /// `include/uapi/linux/vfio.h`.
    ///
    /// Padding is added so that the next one is aligned to 8 bytes. May sleep. Fails with
    /// [`ENOMEM`].
    #[inline]
    pub fn add(&mut self, id: u16, version: u16, body: &[u8]) -> Result {
        let last = self.caps.size;
        // SAFETY: `caps` is valid, and owned by `self`.
        unsafe { capability::add(&mut self.caps, id, version, body) }?;

        // INVARIANT: It was added at the end of those that were there.
        self.last = last;
        Ok(())
    }

    #[inline]
    fn is_empty(&self) -> bool {
        self.caps.size == 0
    }

    /// Prepares the chain for userspace, which is to find it at `start`, and `next` behind it.
    ///
    /// `start` is a multiple of 8. Must not be called again.
    #[inline]
    fn finish(&mut self, start: u32, next: u32) -> &[u8] {
        if self.is_empty() {
            return &[];
        }

        // SAFETY: By the type invariants, `caps` is a chain, and is not empty.
        unsafe { bindings::vfio_info_cap_shift(&mut self.caps, start as usize) };

        // SAFETY: By the type invariants, there is a capability at `last`.
        unsafe { (*self.caps.buf.byte_add(self.last)).next = next };

        // SAFETY: By the type invariants, the buffer is valid. The C code has initialised `size`
        // bytes of it.
        unsafe { slice::from_raw_parts(self.caps.buf.cast(), self.caps.size) }
    }
}

impl Drop for Capabilities {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariants, the buffer is owned, or `NULL`. The C code allocated it
        // by `krealloc()`.
        unsafe { bindings::kfree(self.caps.buf.cast()) };
    }
}

/// Answers `VFIO_DEVICE_GET_INFO` at the address `arg` of userspace.
pub(super) fn get_info<T: Operations>(
    device: &Device<T, Opened>,
    this: Pin<&T::OpenData<'_>>,
    arg: usize,
) -> Result {
    let core = || {
        // SAFETY: The context of `device` shows that it is open.
        unsafe { T::Base::ioctl(device.as_raw(), ioctl::GET_INFO, arg) }?;
        Ok(())
    };
    let capabilities = |capabilities: &mut Capabilities| {
        if T::HAS_INFO_CAPABILITIES {
            T::info_capabilities(device, this, capabilities)?;
        }
        Ok(())
    };

    answer(
        UserPtr::from_addr(arg),
        T::Base::HAS_CORE.then_some(core),
        capabilities,
        |[argsz, mut flags, mut num_regions, mut num_irqs]| {
            if T::HAS_INFO {
                let info = T::info(device, this);
                let kept = bindings::VFIO_DEVICE_FLAGS_RESET | bindings::VFIO_DEVICE_FLAGS_CAPS;
                flags = (flags & kept) | info.kind as u32;
                (num_regions, num_irqs) = (info.num_regions, info.num_irqs);
            }
            if T::HAS_RESET {
                flags |= bindings::VFIO_DEVICE_FLAGS_RESET;
            }
            [argsz, flags, num_regions, num_irqs]
        },
    )
}

/// Answers `VFIO_DEVICE_GET_INFO` at `user`: with what `core` does there, if it is given, changed
/// by `change`, and with the capabilities of the driver in addition to those of the core.
///
/// Userspace can change what is read again here, and then is told what it has changed it to. It is
/// only written to what it said is there.
#[inline]
pub(super) fn answer(
    user: UserPtr,
    core: Option<impl Fn() -> Result>,
    capabilities: impl FnOnce(&mut Capabilities) -> Result,
    change: impl FnOnce(Fields) -> Fields,
) -> Result {
    let [argsz, ..] = read::<Fields>(user)?;
    if (argsz as usize) < size_of::<Fields>() {
        return Err(EINVAL);
    }

    let mut own = Capabilities::new();
    capabilities(&mut own)?;

    let mut fields = [argsz, 0, 0, 0];
    let mut core_size = 0;
    let has_core = core.is_some();
    if let Some(core) = core {
        if !own.is_empty() {
            // The core says how much room its capabilities need if there is none.
            write(user, &argsz.min(SIZE))?;
            let filled = core();
            let [needed, flags, ..] = read::<Fields>(user)?;
            write(user, &argsz)?;
            filled?;
            if flags & bindings::VFIO_DEVICE_FLAGS_CAPS != 0 {
                core_size = needed.checked_sub(SIZE).ok_or(EINVAL)?;
            }
        }
        core()?;
        fields = read(user)?;
    }
    let [mut needed, mut flags, num_regions, num_irqs] = change(fields);

    if has_core && own.is_empty() {
        // The core has filled in what follows.
        return write(user, &[needed, flags, num_regions, num_irqs]);
    }

    let mut offset = 0;
    if !own.is_empty() {
        // Those of the core, which start where they do without the others, follow these.
        let start = SIZE.checked_add(core_size).ok_or(EINVAL)?;
        if start % 8 != 0 {
            return Err(EINVAL);
        }
        let next = if core_size == 0 { 0 } else { SIZE };
        let own = own.finish(start, next);

        needed = u32::try_from(own.len())?
            .checked_add(start)
            .ok_or(EOVERFLOW)?;
        if needed <= argsz {
            needed = argsz;
            offset = start;
            write_bytes(user.wrapping_byte_add(start as usize), own)?;
        }
        flags |= bindings::VFIO_DEVICE_FLAGS_CAPS;
    }

    let fields: AllFields = [needed, flags, num_regions, num_irqs, offset, 0];
    write_bytes(
        user,
        &AsBytes::as_bytes(&fields)[..argsz.min(SIZE) as usize],
    )
}

/// Reads what is at `user`.
#[inline]
fn read<V: FromBytes>(user: UserPtr) -> Result<V> {
    UserSlice::new(user, size_of::<V>()).reader().read()
}

/// Writes `value` to `user`.
#[inline]
fn write<V: AsBytes>(user: UserPtr, value: &V) -> Result {
    write_bytes(user, AsBytes::as_bytes(value))
}

/// Writes `data` to `user`.
#[inline]
fn write_bytes(user: UserPtr, data: &[u8]) -> Result {
    UserSlice::new(user, data.len()).writer().write_slice(data)
}
