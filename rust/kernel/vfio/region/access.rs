// SPDX-License-Identifier: GPL-2.0-only

//! Reads and writes of regions by userspace.

use super::Position;
use crate::{
    bindings,
    error::from_result,
    prelude::*,
    uaccess::{
        UserPtr,
        UserSlice, //
    },
};

/// A read of a region: where from, and the buffer of userspace that is to be filled.
///
/// Only [`Operations::read`](super::super::Operations::read), and what is called by it, has one. It
/// proceeds: what has been given to userspace moves the position, and shortens what remains.
///
/// # Invariants
///
/// `done` is at most `count`.
pub struct Read {
    start: Position,
    user: UserPtr,
    count: usize,
    done: usize,
}

/// A write to a region: where to, and the buffer of userspace that has the data.
///
/// Only [`Operations::write`](super::super::Operations::write), and what is called by it, has one.
/// It proceeds: what has been taken from userspace moves the position, and shortens what remains.
///
/// # Invariants
///
/// `done` is at most `count`.
pub struct Write {
    start: Position,
    user: UserPtr,
    count: usize,
    done: usize,
}

/// What [`Read`] and [`Write`] have in common.
macro_rules! access {
    ($access:ident, $function:ident) => {
        impl $access {
            #[inline]
            fn new(start: Position, user: UserPtr, count: usize) -> Self {
                // INVARIANT: 0 is at most `count`.
                Self {
                    start,
                    user,
                    count,
                    done: 0,
                }
            }

            /// Returns where in the regions of the device the access continues.
            #[inline]
            pub fn position(&self) -> Position {
                Position {
                    index: self.start.index,
                    offset: self.start.offset.saturating_add(self.done as u64),
                }
            }

            /// Returns the number of bytes that remain.
            #[inline]
            pub fn remaining(&self) -> usize {
                self.count - self.done
            }

            /// Returns where the next `len` bytes are in the memory of userspace.
            ///
            /// Fails with [`EINVAL`] if so many do not remain.
            #[inline]
            fn next(&self, len: usize) -> Result<UserPtr> {
                if len > self.remaining() {
                    return Err(EINVAL);
                }
                Ok(self.user.wrapping_byte_add(self.done))
            }

            /// Lets `core`, a function of C, do what remains. It is given the buffer and the
            /// position in the file, and returns by how much it proceeded, or an errno.
            #[cfg(CONFIG_RUST_VFIO_PCI_ABSTRACTIONS)]
            #[inline]
            pub(in super::super) fn forward(
                &mut self,
                core: impl FnOnce(UserPtr, usize, &mut bindings::loff_t) -> isize,
            ) -> Result {
                let remaining = self.remaining();
                let user = self.next(remaining)?;
                let mut position = self.position().to_file()?;

                let done = core(user, remaining, &mut position);
                // CAST: An errno is an `int`.
                crate::error::to_result(done.min(0) as c_int)?;
                // CAST: It is not negative.
                let done = done as usize;

                self.next(done)?;
                // INVARIANT: `next` checked that so many remain.
                self.done += done;
                Ok(())
            }
        }

        /// Calls `access` for `count` bytes at `user` and the position `file_position`, which it
        /// moves by what was done of the access.
        ///
        /// Returns that number, or the error of `access` and leaves the position as it is.
        #[inline]
        pub(in super::super) fn $function(
            user: UserPtr,
            count: usize,
            file_position: &mut bindings::loff_t,
            access: impl FnOnce(&mut $access) -> Result,
        ) -> isize {
            from_result(|| {
                let start = u64::try_from(*file_position).map_err(|_| EINVAL)?;
                let mut request = $access::new(Position::from_file(start), user, count);
                access(&mut request)?;

                let done = isize::try_from(request.done).map_err(|_| EINVAL)?;
                *file_position = file_position.checked_add(done as i64).ok_or(EOVERFLOW)?;
                Ok(done)
            })
        }
    };
}

access!(Read, read);
access!(Write, write);

impl Read {
    /// Gives `data` to userspace.
    ///
    /// Fails with [`EINVAL`] if it is more than what remains, and with [`EFAULT`] if userspace has
    /// no memory there.
    #[inline]
    pub fn put(&mut self, data: &[u8]) -> Result {
        let user = self.next(data.len())?;
        UserSlice::new(user, data.len())
            .writer()
            .write_slice(data)?;

        // INVARIANT: `next` checked that so many remain.
        self.done += data.len();
        Ok(())
    }

    /// Gives userspace the `len` bytes at `data`, which may change meanwhile.
    ///
    /// Fails as [`put`](Self::put) does.
    ///
    /// # Safety
    ///
    /// `data` must be valid for reads of `len` bytes. Others may write to it at the same time.
    #[inline]
    pub(in super::super) unsafe fn put_shared(&mut self, data: *const u8, len: usize) -> Result {
        let user = self.next(len)?;
        // SAFETY: By the requirements of this function. The compiler does not see what the function
        // reads, and so assumes nothing of it.
        if unsafe { bindings::copy_to_user(user.as_mut_ptr(), data.cast(), len) } != 0 {
            return Err(EFAULT);
        }

        // INVARIANT: `next` checked that so many remain.
        self.done += len;
        Ok(())
    }

    /// Lets `read` do the access but for the bytes of the region from `offset` on that `data` has,
    /// which userspace is given instead.
    ///
    /// `read` is called for what is before, and for what is behind. What it would give for the
    /// bytes in between never reaches userspace.
    ///
    /// ```
    /// use kernel::{prelude::*, vfio::{region, Memory}};
    ///
    /// /// Lets all of `memory` be read but a word at 0x10, which seems to be 0.
    /// fn read(memory: &Memory, access: &mut region::Read) -> Result {
    ///     access.replace(0x10, &[0; 4], |access| memory.read(access))
    /// }
    /// ```
    pub fn replace(
        &mut self,
        offset: u64,
        data: &[u8],
        mut read: impl FnMut(&mut Self) -> Result,
    ) -> Result {
        let end = offset.saturating_add(data.len() as u64);

        // What is before.
        let before = offset.saturating_sub(self.position().offset);
        let before = usize::try_from(before).unwrap_or(usize::MAX);
        self.limit(before, &mut read)?;

        // What is replaced, unless `read` did not get that far.
        let here = self.position().offset;
        if (offset..end).contains(&here) {
            // CAST: It is less than the length of `data`.
            let data = &data[(here - offset) as usize..];
            let len = data.len().min(self.remaining());
            self.put(&data[..len])?;
        }

        // What is behind.
        if self.position().offset >= end {
            read(self)?;
        }
        Ok(())
    }

    /// Lets `read` do the access for not more than `len` bytes.
    fn limit(&mut self, len: usize, read: impl FnOnce(&mut Self) -> Result) -> Result {
        if len == 0 {
            return Ok(());
        }
        let len = len.min(self.remaining());
        let mut part = Self::new(self.position(), self.next(len)?, len);
        read(&mut part)?;

        // `read` may have swapped the part for another access.
        self.next(part.done)?;
        // INVARIANT: `next` checked that so many remain.
        self.done += part.done;
        Ok(())
    }
}

impl Write {
    /// Takes as many bytes from userspace as `data` has room for.
    ///
    /// Fails with [`EINVAL`] if that is more than what remains, and with [`EFAULT`] if userspace
    /// has no memory there.
    #[inline]
    pub fn take(&mut self, data: &mut [u8]) -> Result {
        let user = self.next(data.len())?;
        UserSlice::new(user, data.len()).reader().read_slice(data)?;

        // INVARIANT: `next` checked that so many remain.
        self.done += data.len();
        Ok(())
    }

    /// Takes `len` bytes from userspace and puts them at `data`, where others may read meanwhile.
    ///
    /// Fails as [`take`](Self::take) does.
    ///
    /// # Safety
    ///
    /// `data` must be valid for writes of `len` bytes. Others may read and write it at the same
    /// time.
    #[inline]
    pub(in super::super) unsafe fn take_shared(&mut self, data: *mut u8, len: usize) -> Result {
        let user = self.next(len)?;
        // SAFETY: By the requirements of this function. The compiler does not see what the function
        // writes, and so assumes nothing of it.
        if unsafe { bindings::copy_from_user(data.cast(), user.as_const_ptr(), len) } != 0 {
            return Err(EFAULT);
        }

        // INVARIANT: `next` checked that so many remain.
        self.done += len;
        Ok(())
    }

    /// Ignores the next `len` bytes.
    ///
    /// Fails with [`EINVAL`] if so many do not remain.
    #[inline]
    pub fn skip(&mut self, len: usize) -> Result {
        self.next(len)?;
        // INVARIANT: `next` checked that so many remain.
        self.done += len;
        Ok(())
    }

    /// Copies to `data` what userspace is going to write to the bytes of the region at `offset`,
    /// and returns which of them that are. They still remain to be written.
    ///
    /// Userspace can change them before they are written: a copy is what the driver knows, and not
    /// what somebody else is given later.
    ///
    /// Fails with [`EFAULT`] if userspace has no memory there.
    pub fn peek(&self, offset: u64, data: &mut [u8]) -> Result<core::ops::Range<usize>> {
        let start = self.position().offset;
        let end = start.saturating_add(self.remaining() as u64);
        let from = offset.max(start);
        let to = offset.saturating_add(data.len() as u64).min(end);
        if from >= to {
            return Ok(0..0);
        }

        // CAST: Both are between `offset` and the end of `data`.
        let which = (from - offset) as usize..(to - offset) as usize;
        // CAST: It is less than what remains.
        let user = self
            .user
            .wrapping_byte_add(self.done)
            .wrapping_byte_add((from - start) as usize);
        UserSlice::new(user, which.len())
            .reader()
            .read_slice(&mut data[which.clone()])?;
        Ok(which)
    }
}
