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
    /// To be called in a system call: in another task, the descriptor is that of another process,
    /// or of none. Fails with [`EBADF`] if there is no such descriptor, and with [`EINVAL`] if it
    /// is not an eventfd.
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

/// What tests need to play the part of userspace.
///
/// Only a system call makes an eventfd. It is a function like any other where system calls have no
/// wrappers, and takes the registers of its caller where they have; only those of x86 are known
/// here.
#[cfg(all(
    any(CONFIG_RUST_EVENTFD_KUNIT_TEST, CONFIG_RUST_VFIO_KUNIT_TEST),
    any(CONFIG_X86_64, not(CONFIG_ARCH_HAS_SYSCALL_WRAPPER))
))]
pub(crate) mod userspace {
    use super::*;
    use crate::{
        error::to_result,
        fs::{
            file::flags::O_NONBLOCK,
            LocalFile, //
        },
        sync::aref::ARef, //
    };

    /// An eventfd of the current process.
    pub(crate) struct EventFd {
        /// The descriptor, of which others must not dispose.
        pub(crate) fd: i32,
        file: ARef<LocalFile>,
    }

    impl EventFd {
        /// Makes an eventfd that counts from `count`.
        pub(crate) fn new(count: u32) -> Result<Self> {
            let fd = c_int::try_from(Self::create(count))?;
            to_result(fd)?;
            let file = LocalFile::fget(fd.try_into()?)?;
            Ok(Self { fd, file })
        }

        #[cfg(not(CONFIG_ARCH_HAS_SYSCALL_WRAPPER))]
        fn create(count: u32) -> c_long {
            extern "C" {
                fn sys_eventfd2(count: c_uint, flags: c_int) -> c_long;
            }

            // SAFETY: The system call takes two integers, and runs in process context here.
            unsafe { sys_eventfd2(count, O_NONBLOCK as c_int) }
        }

        #[cfg(CONFIG_ARCH_HAS_SYSCALL_WRAPPER)]
        fn create(count: u32) -> c_long {
            extern "C" {
                fn __x64_sys_eventfd2(regs: *const bindings::pt_regs) -> c_long;
            }

            // The registers of the first two arguments.
            let regs = bindings::pt_regs {
                di: count as usize,
                si: O_NONBLOCK as usize,
                ..Default::default()
            };
            // SAFETY: The system call reads two integers from `regs`, and runs in process context
            // here.
            unsafe { __x64_sys_eventfd2(&regs) }
        }

        /// Reads the counter, which is 0 afterwards.
        pub(crate) fn take(&self) -> Result<u64> {
            let mut count = 0u64;
            let mut pos = 0;
            // SAFETY: `file` is a valid file, and `count` has room for the eight bytes of a
            // counter.
            let read = unsafe {
                bindings::kernel_read(self.file.as_ptr(), (&raw mut count).cast(), 8, &mut pos)
            };
            match c_int::try_from(read)? {
                8 => Ok(count),
                errno if errno == EAGAIN.to_errno() => Ok(0),
                errno => Err(Error::from_errno(errno)),
            }
        }

        /// Closes the descriptor, but not the file.
        pub(crate) fn close(&mut self) {
            if self.fd >= 0 {
                // SAFETY: The descriptor is known to `self` only.
                unsafe { bindings::close_fd(self.fd as c_uint) };
                self.fd = -1;
            }
        }
    }

    impl Drop for EventFd {
        fn drop(&mut self) {
            self.close();
        }
    }
}

#[cfg(CONFIG_RUST_EVENTFD_KUNIT_TEST)]
#[kunit_tests(rust_eventfd)]
mod tests {
    use super::*;
    use crate::{
        fs::file::{
            File,
            FileDescriptorReservation, //
        },
        sync::aref::ARef, //
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

    #[cfg(any(CONFIG_X86_64, not(CONFIG_ARCH_HAS_SYSCALL_WRAPPER)))]
    #[test]
    fn signal_outlives_descriptor() -> Result {
        let mut eventfd = userspace::EventFd::new(5)?;
        let fd = eventfd.fd;
        let context = Context::from_fd(fd)?;

        eventfd.close();
        assert_eq!(Context::from_fd(fd).err(), Some(EBADF));

        context.signal();
        context.signal();
        assert_eq!(eventfd.take(), Ok(7));
        assert_eq!(eventfd.take(), Ok(0));
        Ok(())
    }

    #[test]
    fn other_file() -> Result {
        // SAFETY: The path is a string.
        let root = unsafe { bindings::filp_open(c"/".as_char_ptr(), 0, 0) };
        let root = NonNull::new(from_err_ptr(root)?).ok_or(ENOENT)?;
        // SAFETY: The reference to the file is passed on to `ARef`. No other task knows the file.
        let root = unsafe { ARef::from_raw(root.cast::<File>()) };

        let reserved = FileDescriptorReservation::get_unused_fd_flags(0)?;
        let fd = reserved.reserved_fd();
        reserved.fd_install(root);

        assert_eq!(Context::from_fd(fd.try_into()?).err(), Some(EINVAL));
        // SAFETY: Nothing else in the kernel uses the descriptor that was just made.
        assert_eq!(unsafe { bindings::close_fd(fd) }, 0);
        Ok(())
    }
}
