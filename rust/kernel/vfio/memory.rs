// SPDX-License-Identifier: GPL-2.0-only

//! Regions that are ordinary memory.

use super::{
    region::{
        Mapped,
        Mapping,
        Position,
        Read,
        Write, //
    },
    shared, //
};
use crate::{
    bindings,
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*, //
};
use core::ptr::NonNull;

/// The memory of a region that userspace can read, write and map.
///
/// Userspace can change it at any time once it is mapped, so that the kernel never has a reference
/// to its content. All accesses of the kernel are copies by functions of C, which the compiler of
/// Rust does not look into, or volatile: concurrent changes give a mixture of old and new bytes,
/// and nothing worse.
///
/// # Invariants
///
/// `start` is the start of `size` bytes that `vmalloc_user()` allocated and that are owned by
/// `self`. `size` is a multiple of the page size.
///
/// # Examples
///
/// ```
/// use kernel::{page::PAGE_SIZE, vfio};
///
/// let memory = vfio::Memory::new(PAGE_SIZE + 1)?;
/// assert_eq!(memory.size(), 2 * PAGE_SIZE as u64);
/// # Ok::<(), Error>(())
/// ```
pub struct Memory {
    start: NonNull<u8>,
    size: usize,
}

impl Memory {
    /// Allocates `size` bytes of zeroes, rounded up to whole pages.
    ///
    /// May sleep. Fails with [`EINVAL`] if `size` is 0, with [`EOVERFLOW`] if it cannot be rounded
    /// up, and with [`ENOMEM`].
    pub fn new(size: usize) -> Result<Self> {
        if size == 0 {
            return Err(EINVAL);
        }
        let size = size.checked_next_multiple_of(PAGE_SIZE).ok_or(EOVERFLOW)?;

        // SAFETY: The function may be called with any size, from process context.
        let start = unsafe { bindings::vmalloc_user_noprof(size) };

        // INVARIANT: The memory was just allocated, with this size.
        Ok(Self {
            start: NonNull::new(start.cast()).ok_or(ENOMEM)?,
            size,
        })
    }

    /// Returns the size in bytes.
    #[inline]
    pub fn size(&self) -> u64 {
        self.size as u64
    }

    /// Returns the memory at `position`, and how many of `count` bytes there are.
    ///
    /// Fails with [`EINVAL`] behind the end.
    #[inline]
    fn at(&self, position: Position, count: usize) -> Result<(*mut u8, usize)> {
        let len = position.within(count, self.size())?;
        // CAST: `within` checked that it is not larger than `size`.
        let start = self
            .start
            .as_ptr()
            .wrapping_byte_add(position.offset as usize);
        Ok((start, len))
    }

    /// Gives userspace what is at the position of `access`, until the memory or the access ends.
    ///
    /// May sleep. Fails with [`EINVAL`] behind the end of the memory, and with [`EFAULT`] if
    /// userspace has no memory where it said.
    pub fn read(&self, access: &mut Read) -> Result {
        let (data, len) = self.at(access.position(), access.remaining())?;
        // SAFETY: By the type invariant and `at`, `data` is valid for `len` bytes.
        unsafe { access.put_shared(data, len) }
    }

    /// Takes from userspace what is at the position of `access`, until the memory or the access
    /// ends.
    ///
    /// May sleep. Fails with [`EINVAL`] behind the end of the memory, and with [`EFAULT`] if
    /// userspace has no memory where it said.
    pub fn write(&self, access: &mut Write) -> Result {
        let (data, len) = self.at(access.position(), access.remaining())?;
        // SAFETY: By the type invariant and `at`, `data` is valid for `len` bytes.
        unsafe { access.take_shared(data, len) }
    }

    /// Overwrites the memory with zeroes.
    ///
    /// Takes as long as writing so much memory does, during which userspace that has it mapped sees
    /// a part of it overwritten. May be called in any context.
    pub fn clear(&self) {
        // SAFETY: By the type invariant, `start` is valid for `size` bytes.
        unsafe { shared::clear(self.start.as_ptr(), self.size) };
    }

    /// Maps the memory.
    ///
    /// The mapping may outlive `self`. May sleep. Fails with [`EINVAL`] if it is not shared, or not
    /// within the memory, and with [`ENOMEM`].
    pub fn map<'request>(&self, mapping: Mapping<'request>) -> Result<Mapped<'request>> {
        if !mapping.is_shared() {
            return Err(EINVAL);
        }
        let page = usize::try_from(mapping.position().offset >> PAGE_SHIFT)?;

        mapping.answer(|vma| {
            // SAFETY: The vma is being set up, and nothing is mapped yet, as `Mapping` shows. By
            // the type invariant, `start` was returned by `vmalloc_user()`. The function checks the
            // range, and the pages that it inserts are reference counted.
            unsafe { bindings::remap_vmalloc_range(vma, self.start.as_ptr().cast(), page) }
        })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: By the type invariant, `self` owns the allocation. Pages that are still mapped
        // are freed when they are unmapped.
        unsafe { bindings::vfree(self.start.as_ptr().cast()) };
    }
}

// SAFETY: The memory may be used and freed by any task.
unsafe impl Send for Memory {}

// SAFETY: The memory is only copied from and to, which may happen concurrently.
unsafe impl Sync for Memory {}
