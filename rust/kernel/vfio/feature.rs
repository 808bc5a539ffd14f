// SPDX-License-Identifier: GPL-2.0-only

//! Features of a VFIO device that are not the VFIO core's own.
//!
//! C header: [`include/uapi/linux/vfio.h`](srctree/include/uapi/linux/vfio.h)

use crate::{
    bindings,
    error::to_result,
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
use core::marker::PhantomData;

// CAST: `VFIO_DEVICE_FEATURE_MASK` has 16 bits.

/// To set the token by which the users of virtual functions show that they may have them.
pub const PCI_VF_TOKEN: u16 = bindings::VFIO_DEVICE_FEATURE_PCI_VF_TOKEN as u16;

/// To let the device sleep.
pub const LOW_POWER_ENTRY: u16 = bindings::VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY as u16;

/// To let the device sleep, and to be told when it wakes up.
pub const LOW_POWER_ENTRY_WITH_WAKEUP: u16 =
    bindings::VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP as u16;

/// To wake the device up.
pub const LOW_POWER_EXIT: u16 = bindings::VFIO_DEVICE_FEATURE_LOW_POWER_EXIT as u16;

/// To export a part of a region as a dma-buf.
pub const DMA_BUF: u16 = bindings::VFIO_DEVICE_FEATURE_DMA_BUF as u16;

/// A request to get, set or probe a feature (`VFIO_DEVICE_FEATURE`).
///
/// The driver says what it offers: a value to get, one to set, or both. The request is then
/// answered or refused accordingly.
///
/// The methods that answer it return what the ioctl is to return. They fail with [`EINVAL`] if
/// userspace asks for something that is not offered or has too small a buffer, and with [`EFAULT`]
/// if it has no memory where it said.
///
/// # Examples
///
/// ```
/// use kernel::{prelude::*, vfio::feature};
///
/// /// The number of a feature, and its value, a `u64` that can be read only.
/// fn feature(feature: feature::Feature<'_>) -> Result<i32> {
///     match feature.index() {
///         0x40 => feature.get(|| Ok(42u64)),
///         _ => Err(ENOTTY),
///     }
/// }
/// ```
pub struct Feature<'request> {
    pub(super) flags: u32,
    pub(super) data: UserPtr,
    pub(super) size: usize,
    _brand: PhantomData<fn(&'request ()) -> &'request ()>,
}

impl Feature<'_> {
    /// `flags` are those that the VFIO core has checked, and `size` is that of what is at `data`.
    #[inline]
    pub(super) fn new(flags: u32, data: UserPtr, size: usize) -> Self {
        Self {
            flags,
            data,
            size,
            _brand: PhantomData,
        }
    }

    #[inline]
    fn buffer(&self) -> UserSlice {
        UserSlice::new(self.data, self.size)
    }

    /// Returns the number of the feature.
    #[inline]
    pub fn index(&self) -> u16 {
        // CAST: `VFIO_DEVICE_FEATURE_MASK` has 16 bits.
        (self.flags & bindings::VFIO_DEVICE_FEATURE_MASK) as u16
    }

    /// Answers the request for a feature that can be read.
    #[inline]
    pub fn get<V: AsBytes>(self, get: impl FnOnce() -> Result<V>) -> Result<c_int> {
        if self.check(bindings::VFIO_DEVICE_FEATURE_GET, size_of::<V>())? {
            self.buffer().writer().write(&get()?)?;
        }
        Ok(0)
    }

    /// Answers the request for a feature that can be written.
    #[inline]
    pub fn set<V: FromBytes>(self, set: impl FnOnce(V) -> Result) -> Result<c_int> {
        if self.check(bindings::VFIO_DEVICE_FEATURE_SET, size_of::<V>())? {
            set(self.buffer().reader().read()?)?;
        }
        Ok(0)
    }

    /// Answers the request for a feature that can be read and written.
    #[inline]
    pub fn get_or_set<V: AsBytes + FromBytes>(
        self,
        get: impl FnOnce() -> Result<V>,
        set: impl FnOnce(V) -> Result,
    ) -> Result<c_int> {
        let offered = bindings::VFIO_DEVICE_FEATURE_GET | bindings::VFIO_DEVICE_FEATURE_SET;

        if !self.check(offered, size_of::<V>())? {
            return Ok(0);
        }
        // The core refuses both at a time.
        if self.flags & bindings::VFIO_DEVICE_FEATURE_GET != 0 {
            self.buffer().writer().write(&get()?)?;
        } else {
            set(self.buffer().reader().read()?)?;
        }
        Ok(0)
    }

    /// Checks the request against what is offered. Returns whether there is something to be done:
    /// to probe needs nothing more.
    #[inline]
    fn check(&self, offered: u32, size: usize) -> Result<bool> {
        // SAFETY: The function only compares numbers.
        let ret = unsafe { bindings::vfio_check_feature(self.flags, self.size, offered, size) };
        to_result(ret)?;
        Ok(ret > 0)
    }
}
