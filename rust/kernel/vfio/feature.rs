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
    uaccess::UserSlice,
};

/// A request to get, set or probe a feature (`VFIO_DEVICE_FEATURE`).
///
/// Whatever it is that userspace wants, the driver says what it offers: a value to get, one to set,
/// or both. The request then is answered or refused as is right.
///
/// # Examples
///
/// ```
/// use kernel::{prelude::*, vfio::feature};
///
/// /// The number of a feature, and its value, a `u64` that can be read only.
/// fn feature(request: feature::Request) -> Result {
///     match request.index() {
///         0x40 => request.get(|| Ok(42u64)),
///         _ => Err(ENOTTY),
///     }
/// }
/// ```
pub struct Request {
    flags: u32,
    buffer: UserSlice,
    size: usize,
}

impl Request {
    /// `flags` are those that the VFIO core has checked, and `size` is that of `buffer`.
    #[inline]
    pub(super) fn new(flags: u32, buffer: UserSlice, size: usize) -> Self {
        Self {
            flags,
            buffer,
            size,
        }
    }

    /// Returns the number of the feature.
    #[inline]
    pub fn index(&self) -> u16 {
        // CAST: `VFIO_DEVICE_FEATURE_MASK` has 16 bits.
        (self.flags & bindings::VFIO_DEVICE_FEATURE_MASK) as u16
    }

    /// Answers the request for a feature that can be read.
    #[inline]
    pub fn get<V: AsBytes>(self, get: impl FnOnce() -> Result<V>) -> Result {
        if self.check(bindings::VFIO_DEVICE_FEATURE_GET, size_of::<V>())? {
            self.buffer.writer().write(&get()?)?;
        }
        Ok(())
    }

    /// Answers the request for a feature that can be written.
    #[inline]
    pub fn set<V: FromBytes>(self, set: impl FnOnce(V) -> Result) -> Result {
        if self.check(bindings::VFIO_DEVICE_FEATURE_SET, size_of::<V>())? {
            set(self.buffer.reader().read()?)?;
        }
        Ok(())
    }

    /// Answers the request for a feature that can be read and written.
    #[inline]
    pub fn get_or_set<V: AsBytes + FromBytes>(
        self,
        get: impl FnOnce() -> Result<V>,
        set: impl FnOnce(V) -> Result,
    ) -> Result {
        let offered = bindings::VFIO_DEVICE_FEATURE_GET | bindings::VFIO_DEVICE_FEATURE_SET;

        if !self.check(offered, size_of::<V>())? {
            return Ok(());
        }
        // The core refuses both at a time.
        if self.flags & bindings::VFIO_DEVICE_FEATURE_GET != 0 {
            self.buffer.writer().write(&get()?)
        } else {
            set(self.buffer.reader().read()?)
        }
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
