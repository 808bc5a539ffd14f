// SPDX-License-Identifier: GPL-2.0-only

//! Regions that are ordinary memory.

use super::region::{
    Mapping,
    Position,
    Read,
    Write, //
};
use crate::{
    bindings,
    error::to_result,
    mm::virt::flags,
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*, //
};
use core::ptr::NonNull;

/// The memory of a region that userspace can read, write and map.
///
/// Once it is mapped it can change at any time, so that the kernel never has a reference to its
/// content: it copies.
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
    start: NonNull<c_void>,
    size: usize,
}

/// How much is copied at a time, through a buffer on the stack.
const CHUNK: usize = 256;

impl Memory {
    /// Allocates `size` bytes, rounded up to whole pages, of zeroes. `size` must not be 0.
    pub fn new(size: usize) -> Result<Self> {
        if size == 0 {
            return Err(EINVAL);
        }
        let size = size.checked_next_multiple_of(PAGE_SIZE).ok_or(EOVERFLOW)?;

        // SAFETY: The function may be called with any size, from process context.
        let start = unsafe { bindings::vmalloc_user_noprof(size) };

        // INVARIANT: The memory was just allocated, with this size.
        Ok(Self {
            start: NonNull::new(start).ok_or(ENOMEM)?,
            size,
        })
    }

    /// Returns the size in bytes.
    #[inline]
    pub fn size(&self) -> u64 {
        self.size as u64
    }

    /// Copies to the buffer of `access` what is at its position, until one of them ends.
    pub fn read(&self, access: &mut Read) -> Result {
        let mut chunk = [0; CHUNK];
        let position = access.position();
        let buffer = access.buffer();

        self.each_chunk(position, buffer.len(), |memory, len| {
            // SAFETY: `memory` and `chunk` are valid for `len` bytes and do not overlap. That
            // userspace may write to `memory` meanwhile is `memcpy()`'s to bear, which is not
            // compiled with us.
            unsafe { bindings::memcpy(chunk.as_mut_ptr().cast(), memory.cast_const(), len) };
            buffer.write_slice(&chunk[..len])
        })
    }

    /// Copies what is in the buffer of `access` to its position, until one of them ends.
    pub fn write(&self, access: &mut Write) -> Result {
        let mut chunk = [0; CHUNK];
        let position = access.position();
        let buffer = access.buffer();

        self.each_chunk(position, buffer.len(), |memory, len| {
            buffer.read_slice(&mut chunk[..len])?;
            // SAFETY: As in `read`, the other way round.
            unsafe { bindings::memcpy(memory, chunk.as_ptr().cast(), len) };
            Ok(())
        })
    }

    /// Calls `copy` for the pieces of the memory that are within `count` bytes from `position`.
    ///
    /// Those lengths are at most [`CHUNK`], and the pointers are valid for them.
    fn each_chunk(
        &self,
        position: Position,
        count: usize,
        mut copy: impl FnMut(*mut c_void, usize) -> Result,
    ) -> Result {
        let count = position.within(count, self.size())?;
        // CAST: `within` checked that it is not larger than `size`.
        let offset = position.offset as usize;

        for start in (0..count).step_by(CHUNK) {
            // SAFETY: `start` is less than `count`, and `offset + count` is not beyond `size`,
            // which by the type invariant is the size of the allocation.
            let memory = unsafe { self.start.as_ptr().byte_add(offset + start) };
            copy(memory, CHUNK.min(count - start))?;
        }
        Ok(())
    }

    /// Overwrites the memory with zeroes.
    pub fn clear(&self) {
        // SAFETY: By the type invariant, `start` is valid for `size` bytes. For concurrent accesses
        // see `read`.
        unsafe { bindings::memset(self.start.as_ptr(), 0, self.size) };
    }

    /// Maps the memory as `mapping` asks for.
    ///
    /// Fails with [`EINVAL`] if that is not a shared mapping, or not within the memory. The mapping
    /// may outlive `self`.
    pub fn map(&self, mapping: &Mapping<'_>) -> Result {
        if mapping.vma().flags() & flags::SHARED == 0 {
            return Err(EINVAL);
        }
        let page = usize::try_from(mapping.position().offset >> PAGE_SHIFT)?;

        // SAFETY: The vma is being set up, as `VmaNew` shows. By the type invariant, `start` was
        // returned by `vmalloc_user()`. The function checks the range, and the pages that it
        // inserts are reference counted.
        to_result(unsafe {
            bindings::remap_vmalloc_range(mapping.vma().as_ptr(), self.start.as_ptr(), page)
        })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: By the type invariant, `self` owns the allocation. Pages that are still mapped
        // are freed when they are unmapped.
        unsafe { bindings::vfree(self.start.as_ptr()) };
    }
}

// SAFETY: The memory may be used and freed by any task.
unsafe impl Send for Memory {}

// SAFETY: The memory is only copied from and to, which may happen concurrently.
unsafe impl Sync for Memory {}
