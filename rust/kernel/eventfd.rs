// SPDX-License-Identifier: GPL-2.0-only

//! Event file descriptors, the kernel's side.
//!
//! Userspace makes an `eventfd(2)`, hands its number to a driver, and waits on it; the driver looks
//! the number up once and signals from then on.
//!
//! C header: [`include/linux/eventfd.h`](srctree/include/linux/eventfd.h)

use crate::{
    bindings,
    error::from_err_ptr,
    prelude::*, //
};
use core::ptr::NonNull;

/// An owned reference to the context of an eventfd.
///
/// Corresponds to the C `struct eventfd_ctx`. It stays valid when userspace closes the descriptor
/// it was looked up by.
///
/// # Invariants
///
/// `self.0` points to a valid `struct eventfd_ctx`, and `self` owns one of its references.
///
/// # Examples
///
/// ```
/// use kernel::eventfd;
///
/// /// Takes the number that userspace passed in.
/// fn trigger_once(fd: i32) -> Result {
///     eventfd::Context::from_fd(fd)?.signal();
///     Ok(())
/// }
///
/// // No process can have this descriptor.
/// assert_eq!(trigger_once(-1), Err(EBADF));
/// ```
pub struct Context(NonNull<bindings::eventfd_ctx>);

impl Context {
    /// Looks up the eventfd that `fd` names in the calling process.
    ///
    /// Fails with [`EBADF`] if there is no such descriptor, and with [`EINVAL`] if it is not an
    /// eventfd.
    #[inline]
    pub fn from_fd(fd: i32) -> Result<Self> {
        // SAFETY: `eventfd_ctx_fdget` may be called with any number from process context, and
        // looks it up in the table of `current`.
        let ctx = from_err_ptr(unsafe { bindings::eventfd_ctx_fdget(fd) })?;

        // INVARIANT: `eventfd_ctx_fdget` returned a reference, which is now owned by `Self`.
        Ok(Self(NonNull::new(ctx).ok_or(EBADF)?))
    }

    /// Adds one to the counter of the eventfd and wakes who waits for it.
    ///
    /// May be called from any context, including hard interrupts. A counter that is at its maximum
    /// stays there.
    #[inline]
    pub fn signal(&self) {
        // SAFETY: By the type invariant, `self.0` is a valid `struct eventfd_ctx`.
        unsafe { bindings::eventfd_signal(self.0.as_ptr()) };
    }
}

impl Drop for Context {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant, `self` owns a reference, and it is not used again.
        unsafe { bindings::eventfd_ctx_put(self.0.as_ptr()) };
    }
}

// SAFETY: The reference count is atomic, and the last reference may be put by any task.
unsafe impl Send for Context {}

// SAFETY: `eventfd_signal` takes the lock of the context and may be called concurrently.
unsafe impl Sync for Context {}

#[cfg(CONFIG_RUST_EVENTFD_KUNIT_TEST)]
#[kunit_tests(rust_eventfd)]
mod tests {
    use super::*;
    use crate::fs::{
        file::FileDescriptorReservation,
        LocalFile, //
    };

    #[test]
    fn bad_descriptor() {
        assert_eq!(Context::from_fd(-1).err(), Some(EBADF));
        assert_eq!(Context::from_fd(i32::MIN).err(), Some(EBADF));

        // A number that is reserved has no file yet.
        let reserved = FileDescriptorReservation::get_unused_fd_flags(0).unwrap();
        let fd = i32::try_from(reserved.reserved_fd()).unwrap();
        assert_eq!(Context::from_fd(fd).err(), Some(EBADF));
    }

    // Only a system call makes an eventfd. Where system calls have no wrappers, it is a function
    // like any other.
    #[cfg(not(CONFIG_ARCH_HAS_SYSCALL_WRAPPER))]
    #[test]
    fn signal_outlives_descriptor() {
        extern "C" {
            fn sys_eventfd2(count: c_uint, flags: c_int) -> c_long;
        }

        // SAFETY: The system call takes two integers, and runs in process context here.
        let fd = c_int::try_from(unsafe { sys_eventfd2(5, 0) }).unwrap();
        let file = LocalFile::fget(fd.try_into().unwrap()).unwrap();
        let context = Context::from_fd(fd).unwrap();

        // SAFETY: Nothing else in the kernel uses the descriptor that was just made.
        assert_eq!(unsafe { bindings::close_fd(fd.try_into().unwrap()) }, 0);
        assert_eq!(Context::from_fd(fd).err(), Some(EBADF));

        context.signal();
        context.signal();

        let mut count = 0u64;
        let mut pos = 0;
        // SAFETY: `file` is a valid file, and `count` has room for the eight bytes of a counter.
        let read =
            unsafe { bindings::kernel_read(file.as_ptr(), (&raw mut count).cast(), 8, &mut pos) };
        assert_eq!(read, 8);
        assert_eq!(count, 7);
    }

    #[cfg(not(CONFIG_ARCH_HAS_SYSCALL_WRAPPER))]
    #[test]
    fn other_file() {
        extern "C" {
            fn sys_epoll_create1(flags: c_int) -> c_long;
        }

        // SAFETY: The system call takes an integer, and runs in process context here.
        let fd = c_int::try_from(unsafe { sys_epoll_create1(0) }).unwrap();
        assert_eq!(Context::from_fd(fd).err(), Some(EINVAL));
        // SAFETY: Nothing else in the kernel uses the descriptor that was just made.
        assert_eq!(unsafe { bindings::close_fd(fd.try_into().unwrap()) }, 0);
    }
}
