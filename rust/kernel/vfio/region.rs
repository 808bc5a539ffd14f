// SPDX-License-Identifier: GPL-2.0-only

//! Regions of a VFIO device: how they are addressed, described and mapped.
//!
//! Userspace reaches all regions through one file. As vfio-pci does, drivers written in Rust give
//! each region 2^40 bytes of it, in the order of the index.
//!
//! C header: [`include/uapi/linux/vfio.h`](srctree/include/uapi/linux/vfio.h)

use crate::{
    bindings,
    error::{
        from_result,
        to_result, //
    },
    impl_flags,
    mm::virt::VmaNew,
    page::PAGE_SHIFT,
    prelude::*,
    uaccess::{
        UserPtr,
        UserSlice,
        UserSliceReader,
        UserSliceWriter, //
    },
};
use core::marker::PhantomData;

/// The bits of a file position that are the offset in a region.
pub(super) const OFFSET_BITS: u32 = 40;

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
    /// The position in the file of the device where the region `index` starts, if it has one.
    #[inline]
    fn start_of(index: u32) -> Result<u64> {
        let start = u64::from(index) << OFFSET_BITS;
        // A file position is never negative.
        i64::try_from(start).map_err(|_| EINVAL)?;
        Ok(start)
    }

    /// Splits an offset in the file of the device.
    #[inline]
    fn from_file(offset: u64) -> Self {
        Self {
            // CAST: The 24 bits that are left fit.
            index: (offset >> OFFSET_BITS) as u32,
            offset: offset & ((1 << OFFSET_BITS) - 1),
        }
    }

    /// Returns the offset in the file of the device.
    #[cfg(CONFIG_RUST_VFIO_PCI_ABSTRACTIONS)]
    #[inline]
    fn to_file(self) -> Result<bindings::loff_t> {
        let start = Self::start_of(self.index)?;
        i64::try_from(start + self.offset).map_err(|_| EINVAL)
    }

    /// Splits an offset in the file of the device that is given in pages.
    ///
    /// That can be larger than any file, and then is in a region that no device has.
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

    /// Returns how many of `count` bytes from here on are within the first `size` bytes of the
    /// region.
    ///
    /// That is none at the end of the region, and an error behind it.
    #[inline]
    pub fn within(&self, count: usize, size: u64) -> Result<usize> {
        let rest = size.checked_sub(self.offset).ok_or(EINVAL)?;
        Ok(usize::try_from(rest).map_or(count, |rest| rest.min(count)))
    }
}

/// A read of a region: where from, and the buffer of userspace that is to be filled.
///
/// Only [`Operations::read`](super::Operations::read) and what is called by it has one.
pub struct Read {
    start: Position,
    user: UserPtr,
    count: usize,
    buffer: UserSliceWriter,
}

/// A write to a region: where to, and the buffer of userspace that has the data.
///
/// Only [`Operations::write`](super::Operations::write) and what is called by it has one.
pub struct Write {
    start: Position,
    #[cfg_attr(not(CONFIG_RUST_VFIO_PCI_ABSTRACTIONS), expect(dead_code))]
    user: UserPtr,
    count: usize,
    buffer: UserSliceReader,
}

/// What [`Read`] and [`Write`] have in common.
macro_rules! access {
    ($access:ident, $buffer:ty, $make:ident, $function:ident) => {
        impl $access {
            #[inline]
            fn new(start: Position, user: UserPtr, count: usize) -> Self {
                Self {
                    start,
                    user,
                    count,
                    buffer: UserSlice::new(user, count).$make(),
                }
            }

            /// Returns how much of the buffer has been used.
            #[inline]
            fn done(&self) -> Result<usize> {
                // A driver may have put another, longer one in the place of the one it was given.
                self.count.checked_sub(self.buffer.len()).ok_or(EINVAL)
            }

            /// Returns the position in the region that goes with what is left of the buffer.
            #[inline]
            pub fn position(&self) -> Position {
                let done = self.count.saturating_sub(self.buffer.len());
                Position {
                    index: self.start.index,
                    offset: self.start.offset.saturating_add(done as u64),
                }
            }

            /// Returns what is left of the buffer.
            #[inline]
            pub fn buffer(&mut self) -> &mut $buffer {
                &mut self.buffer
            }

            /// Lets `core` do what is left. It is given the buffer and the position in the file,
            /// and returns how far it came, or an errno.
            #[cfg(CONFIG_RUST_VFIO_PCI_ABSTRACTIONS)]
            #[inline]
            pub(super) fn forward(
                &mut self,
                core: impl FnOnce(UserPtr, usize, &mut bindings::loff_t) -> isize,
            ) -> Result {
                let done = self.done()?;
                let rest = self.count - done;
                let mut position = self.position().to_file()?;

                let user = self.user.wrapping_byte_add(done);
                let further = core(user, rest, &mut position);
                let further = usize::try_from(further).map_err(|_| {
                    // CAST: An errno is an `int`.
                    Error::from_errno(further as c_int)
                })?;

                let rest = rest.checked_sub(further).ok_or(EINVAL)?;
                self.buffer = UserSlice::new(user.wrapping_byte_add(further), rest).$make();
                Ok(())
            }
        }

        /// Calls `access` for `count` bytes at `user` and the position `file_position`, which it
        /// moves by what of the buffer has been used.
        ///
        /// Returns that number, or the error of `access` and leaves the position as it is.
        #[inline]
        pub(super) fn $function(
            user: UserPtr,
            count: usize,
            file_position: &mut bindings::loff_t,
            access: impl FnOnce(&mut $access) -> Result,
        ) -> isize {
            from_result(|| {
                let start = u64::try_from(*file_position).map_err(|_| EINVAL)?;
                let mut request = $access::new(Position::from_file(start), user, count);
                access(&mut request)?;

                let done = isize::try_from(request.done()?).map_err(|_| EINVAL)?;
                *file_position = file_position.checked_add(done as i64).ok_or(EOVERFLOW)?;
                Ok(done)
            })
        }
    };
}

access!(Read, UserSliceWriter, writer, read);
access!(Write, UserSliceReader, reader, write);

impl Read {
    /// Replaces with `data` what userspace has been given of the bytes at `offset` in the region.
    ///
    /// That may be all of them, a part, or none.
    ///
    /// ```
    /// use kernel::{prelude::*, vfio::{region, Memory}};
    ///
    /// /// Lets all of `memory` be read but a word at 0x10, which seems to be 0.
    /// fn read(memory: &Memory, access: &mut region::Read) -> Result {
    ///     memory.read(access)?;
    ///     access.patch(0x10, &[0; 4])
    /// }
    /// ```
    pub fn patch(&mut self, offset: u64, data: &[u8]) -> Result {
        let start = self.start.offset;
        let end = self.position().offset;

        let from = offset.max(start);
        let to = offset.saturating_add(data.len() as u64).min(end);
        if from >= to {
            return Ok(());
        }

        // CAST: Both lie between `offset` and the end of `data`.
        let data = &data[(from - offset) as usize..(to - offset) as usize];
        // CAST: It lies between the start of the buffer and its end.
        let user = self.user.wrapping_byte_add((from - start) as usize);
        UserSlice::new(user, data.len()).writer().write_slice(data)
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
    /// The size of the region in bytes, at most 2^40.
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
    pub(super) fn store(&self, info: &mut bindings::vfio_region_info) -> Result {
        if self.size > 1 << OFFSET_BITS {
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

/// Collects what there is to say of a region beyond its [`Info`].
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

    /// Says what the region is, in numbers that are defined for the kind of device.
    pub fn region_type(&mut self, kind: u32, subtype: u32) -> Result {
        // The fields of `struct vfio_region_info_cap_type` behind the header.
        let mut body = [0; 8];
        body[..4].copy_from_slice(&kind.to_ne_bytes());
        body[4..].copy_from_slice(&subtype.to_ne_bytes());
        self.add(bindings::VFIO_REGION_INFO_CAP_TYPE, &body)
    }

    /// Says that the region may be mapped although it contains the MSI-X table.
    pub fn msix_mappable(&mut self) -> Result {
        self.add(bindings::VFIO_REGION_INFO_CAP_MSIX_MAPPABLE, &[])
    }

    /// Adds a capability, all of which are of version 1.
    fn add(&mut self, id: u32, body: &[u8]) -> Result {
        const HEADER: usize = size_of::<bindings::vfio_info_cap_header>();

        let id = u16::try_from(id)?;
        let mut capability = KVec::with_capacity(HEADER + body.len(), GFP_KERNEL)?;
        // The fields of `struct vfio_info_cap_header`.
        capability.extend_from_slice(&id.to_ne_bytes(), GFP_KERNEL)?;
        capability.extend_from_slice(&1u16.to_ne_bytes(), GFP_KERNEL)?;
        capability.extend_from_slice(&0u32.to_ne_bytes(), GFP_KERNEL)?;
        capability.extend_from_slice(body, GFP_KERNEL)?;

        // SAFETY: By the requirements of `from_raw`, `caps` is valid. `capability` starts with a
        // header, for which the allocator's alignment is sufficient, and has the size given. The C
        // function copies it.
        to_result(unsafe {
            bindings::vfio_info_add_capability(
                self.caps,
                capability.as_mut_ptr().cast(),
                capability.len(),
            )
        })
    }
}

/// A part of a region that is being mapped.
pub struct Mapping<'a> {
    vma: &'a VmaNew,
    position: Position,
}

impl<'a> Mapping<'a> {
    pub(super) fn new(vma: &'a VmaNew) -> Self {
        // SAFETY: The reference to `VmaNew` shows that the vma is valid and that its set-up, during
        // which only its caller changes it, has not ended.
        let pages = unsafe { (*vma.as_ptr()).vm_pgoff };

        Self {
            vma,
            position: Position::from_pages(pages),
        }
    }

    /// Returns where in the regions of the device the mapping starts, at a multiple of the page
    /// size.
    #[inline]
    pub fn position(&self) -> Position {
        self.position
    }

    /// Returns the size of the mapping in bytes, a multiple of the page size.
    #[expect(clippy::len_without_is_empty)]
    #[inline]
    pub fn len(&self) -> usize {
        self.vma.end() - self.vma.start()
    }

    /// Returns the area of the user's address space that is being set up.
    #[inline]
    pub fn vma(&self) -> &'a VmaNew {
        self.vma
    }
}
