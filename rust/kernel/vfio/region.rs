// SPDX-License-Identifier: GPL-2.0-only

//! Regions of a VFIO device: how they are addressed, described, accessed and mapped.
//!
//! Userspace reaches all regions through one file. As with vfio-pci, each region has 2^40 bytes of
//! it, in the order of the index.
//!
//! C header: [`include/uapi/linux/vfio.h`](srctree/include/uapi/linux/vfio.h)

use super::capability;
use crate::{
    bindings,
    impl_flags,
    page::PAGE_SHIFT,
    prelude::*, //
};
use core::marker::PhantomData;

mod access;
mod mapping;

pub use self::{
    access::{
        Read,
        Write, //
    },
    mapping::{
        Mapped,
        Mapping, //
    },
};

pub(super) use self::access::{
    read,
    write, //
};

/// The bits of a file position that are the offset in a region.
pub(super) const OFFSET_BITS: u32 = 40;

/// The largest size of a region, in bytes.
pub const MAX_SIZE: u64 = 1 << OFFSET_BITS;

/// A place in the regions of a device.
///
/// # Examples
///
/// ```
/// use kernel::vfio::region::Position;
///
/// let position = Position { index: 0, offset: 0x1ff8 };
///
/// // What a read of so many bytes gets of a region of 8 KiB.
/// assert_eq!(position.within(4, 0x2000), Ok(4));
/// assert_eq!(position.within(16, 0x2000), Ok(8));
/// assert_eq!(Position { index: 0, offset: 0x2000 }.within(4, 0x2000), Ok(0));
/// assert_eq!(Position { index: 0, offset: 0x2001 }.within(4, 0x2000), Err(EINVAL));
/// ```
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct Position {
    /// The index of the region.
    pub index: u32,
    /// The offset in the region, in bytes.
    pub offset: u64,
}

impl Position {
    /// One more than the largest index of a region: a position in a file is not negative.
    pub(super) const MAX_REGIONS: u32 = 1 << (i64::BITS - 1 - OFFSET_BITS);

    /// Returns the position in the file of the device where the region `index` starts.
    ///
    /// Fails with [`EINVAL`] if the file has no room for such a region.
    #[inline]
    pub(super) fn start_of(index: u32) -> Result<u64> {
        if index >= Self::MAX_REGIONS {
            return Err(EINVAL);
        }
        Ok(u64::from(index) << OFFSET_BITS)
    }

    /// Splits an offset in the file of the device.
    #[inline]
    pub(super) fn from_file(offset: u64) -> Self {
        Self {
            // CAST: There are 24 bits left.
            index: (offset >> OFFSET_BITS) as u32,
            offset: offset & ((1 << OFFSET_BITS) - 1),
        }
    }

    /// Returns the offset in the file of the device.
    ///
    /// Fails with [`EINVAL`] if there is none.
    #[cfg(CONFIG_RUST_VFIO_PCI_ABSTRACTIONS)]
    #[inline]
    fn to_file(self) -> Result<bindings::loff_t> {
        let start = Self::start_of(self.index)?;
        if self.offset >= MAX_SIZE {
            return Err(EINVAL);
        }
        i64::try_from(start | self.offset).map_err(|_| EINVAL)
    }

    /// Splits an offset in the file of the device that is given in pages.
    ///
    /// It can be larger than that of any file, and then is in a region that no device has.
    #[inline]
    pub(super) fn from_pages(pages: usize) -> Self {
        const PAGE_BITS: u32 = OFFSET_BITS - PAGE_SHIFT as u32;

        // On 32 bit machines a number of pages can stand for more bytes than `usize` can.
        let pages = pages as u64;
        Self {
            index: u32::try_from(pages >> PAGE_BITS).unwrap_or(u32::MAX),
            offset: (pages & ((1 << PAGE_BITS) - 1)) << PAGE_SHIFT,
        }
    }

    /// Returns how many of `count` bytes from here on are within a region of `size` bytes.
    ///
    /// At the end of the region that is 0. Fails with [`EINVAL`] behind the end.
    #[inline]
    pub fn within(&self, count: usize, size: u64) -> Result<usize> {
        let left = size.checked_sub(self.offset).ok_or(EINVAL)?;
        Ok(usize::try_from(left).map_or(count, |left| left.min(count)))
    }
}

impl_flags!(
    /// What userspace can do with a region.
    #[derive(Debug, Clone, Default, Copy, PartialEq, Eq)]
    pub struct Flags(u32);

    /// One thing that userspace can do with a region.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Flag {
        /// It can be read.
        Read = bindings::VFIO_REGION_INFO_FLAG_READ,
        /// It can be written.
        Write = bindings::VFIO_REGION_INFO_FLAG_WRITE,
        /// It can be mapped.
        Mmap = bindings::VFIO_REGION_INFO_FLAG_MMAP,
    }
);

/// What userspace is told of a region (`VFIO_DEVICE_GET_REGION_INFO`).
///
/// # Examples
///
/// ```
/// use kernel::vfio::region::{Flag, Info};
///
/// let info = Info { size: 0x1000, flags: Flag::Read | Flag::Mmap };
/// assert!(!info.flags.contains(Flag::Write));
/// ```
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct Info {
    /// The size of the region in bytes, at most [`MAX_SIZE`].
    pub size: u64,
    /// What can be done with it.
    pub flags: Flags,
}

impl Info {
    /// Returns what `info` has of it.
    #[cfg(CONFIG_RUST_VFIO_PCI_ABSTRACTIONS)]
    pub(super) fn load(info: &bindings::vfio_region_info) -> Self {
        Self {
            size: info.size,
            flags: Flags(info.flags & Flags::all_bits()),
        }
    }

    /// Fills in `info`, which has the index already.
    ///
    /// Fails with [`EOVERFLOW`] if the region is too large, and with [`EINVAL`] if there can be no
    /// region of the index.
    pub(super) fn store(&self, info: &mut bindings::vfio_region_info) -> Result {
        if self.size > MAX_SIZE {
            return Err(EOVERFLOW);
        }

        info.offset = Position::start_of(info.index)?;
        info.size = self.size;
        info.flags = self.flags.into();
        Ok(())
    }
}

/// A part of a region that can be mapped.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct Area {
    /// The offset in the region, in bytes.
    pub offset: u64,
    /// The size in bytes.
    pub size: u64,
}

/// Collects what userspace is told of a region beyond its [`Info`].
///
/// The methods fail with [`ENOMEM`] if there is no memory for the capability.
pub struct Capabilities<'a> {
    caps: *mut bindings::vfio_info_cap,
    _lifetime: PhantomData<&'a mut bindings::vfio_info_cap>,
}

impl Capabilities<'_> {
    /// # Safety
    ///
    /// `caps` must be valid, and not be used by anyone else, for as long as the returned value.
    pub(super) unsafe fn from_raw(caps: *mut bindings::vfio_info_cap) -> Self {
        Self {
            caps,
            _lifetime: PhantomData,
        }
    }

    #[cfg(CONFIG_RUST_VFIO_PCI_ABSTRACTIONS)]
    #[inline]
    pub(super) fn as_raw(&mut self) -> *mut bindings::vfio_info_cap {
        self.caps
    }

    /// Says that only `areas` of the region can be mapped.
    ///
    /// Fails with [`EOVERFLOW`] if there are more than 2^32 - 1.
    #[inline]
    pub fn sparse_mmap(&mut self, areas: &[Area]) -> Result {
        let count = u32::try_from(areas.len()).map_err(|_| EOVERFLOW)?;

        // The fields of `struct vfio_region_info_cap_sparse_mmap` behind the header, which are
        // `u32`s and then pairs of `u64`s.
        let mut body = KVec::new();
        body.extend_from_slice(&count.to_ne_bytes(), GFP_KERNEL)?;
        body.extend_from_slice(&0u32.to_ne_bytes(), GFP_KERNEL)?;
        for area in areas {
            body.extend_from_slice(&area.offset.to_ne_bytes(), GFP_KERNEL)?;
            body.extend_from_slice(&area.size.to_ne_bytes(), GFP_KERNEL)?;
        }
        self.add(bindings::VFIO_REGION_INFO_CAP_SPARSE_MMAP, &body)
    }

    /// Says what the region is, by numbers of `include/uapi/linux/vfio.h` or of the vendor.
    #[inline]
    pub fn region_type(&mut self, kind: u32, subtype: u32) -> Result {
        // The fields of `struct vfio_region_info_cap_type` behind the header.
        let mut body = [0; 8];
        body[..4].copy_from_slice(&kind.to_ne_bytes());
        body[4..].copy_from_slice(&subtype.to_ne_bytes());
        self.add(bindings::VFIO_REGION_INFO_CAP_TYPE, &body)
    }

    /// Says that the region may be mapped although it contains the MSI-X table.
    #[inline]
    pub fn msix_mappable(&mut self) -> Result {
        self.add(bindings::VFIO_REGION_INFO_CAP_MSIX_MAPPABLE, &[])
    }

    /// Adds a capability of version 1.
    #[inline]
    fn add(&mut self, id: u32, body: &[u8]) -> Result {
        // SAFETY: By the requirements of `from_raw`, `caps` is valid, and not used by anyone else.
        unsafe { capability::add(self.caps, id.try_into()?, 1, body) }
    }
}
