// SPDX-License-Identifier: GPL-2.0-only

//! What a test needs to play the part of a program: files, descriptors, memory and mappings.

use super::*;
use crate::{
    error::to_result,
    uaccess::UserSlice, //
};
/// An open file, of a device or of IOMMUFD.
pub(super) struct OpenFile(pub(super) *mut bindings::file);

impl OpenFile {
    /// Opens the device node `path`.
    pub(super) fn new(path: &CStr) -> Result<Self> {
        // SAFETY: The name is a string. The type of a file system that is built in stays.
        let devtmpfs = unsafe { bindings::get_fs_type(c"devtmpfs".as_char_ptr()) };
        // SAFETY: `devtmpfs` is a file system type.
        let mount = from_err_ptr(unsafe { bindings::kern_mount(devtmpfs) })?;
        let root = bindings::path {
            mnt: mount,
            // SAFETY: `mount` is a valid mount.
            dentry: unsafe { (*mount).mnt_root },
        };

        // SAFETY: `root` is a valid path, and `path` a string.
        let file = from_err_ptr(unsafe {
            bindings::file_open_root(&root, path.as_char_ptr(), bindings::O_RDWR as c_int, 0)
        });
        // The file keeps what it needs of the mount.
        // SAFETY: `mount` was returned by `kern_mount()` and is not used again.
        unsafe { bindings::kern_unmount(mount) };
        Ok(Self(file?))
    }

    /// Opens the character device of `device`.
    pub(super) fn of<T: Operations<Base = emulated::Base>>(device: &Device<T>) -> Result<Self> {
        let name = device.as_ref().name();
        let path = crate::str::CString::try_from_fmt(fmt!("vfio/devices/{name}"))?;
        Self::new(&path)
    }

    /// Passes the reference on.
    pub(super) fn into_raw(self) -> *mut bindings::file {
        core::mem::ManuallyDrop::new(self).0
    }

    pub(super) fn ops(&self) -> &bindings::file_operations {
        // SAFETY: The file is open, and so its operations are valid.
        unsafe { &*(*self.0).f_op }
    }

    pub(super) fn ioctl(&self, cmd: u32, arg: usize) -> Result<isize> {
        let ioctl = self.ops().unlocked_ioctl.unwrap();
        // SAFETY: The operation belongs to the file, and checks its other arguments.
        result(unsafe { ioctl(self.0, cmd, arg) })
    }

    /// Reads `count` bytes to `buffer`, and returns how many it were and the position afterwards.
    pub(super) fn read(&self, buffer: usize, count: usize, mut pos: i64) -> (Result<isize>, i64) {
        let read = self.ops().read.unwrap();
        let buffer = UserPtr::from_addr(buffer).as_mut_ptr().cast();
        // SAFETY: The operation belongs to the file, `pos` is valid, and the buffer is checked.
        let ret = result(unsafe { read(self.0, buffer, count, &mut pos) });
        (ret, pos)
    }

    /// As `read`, in the other direction.
    pub(super) fn write(&self, buffer: usize, count: usize, mut pos: i64) -> (Result<isize>, i64) {
        let write = self.ops().write.unwrap();
        let buffer = UserPtr::from_addr(buffer).as_const_ptr().cast();
        // SAFETY: The operation belongs to the file, `pos` is valid, and the buffer is checked.
        let ret = result(unsafe { write(self.0, buffer, count, &mut pos) });
        (ret, pos)
    }

    /// Maps `len` bytes of the file, to be read and written.
    pub(super) fn mmap(&self, addr: usize, len: usize, flags: u32, offset: i64) -> Result<Mapped> {
        let prot = bindings::PROT_READ | bindings::PROT_WRITE;
        self.mmap_prot(addr, len, flags, offset, prot)
    }

    /// Maps `len` bytes of the file.
    pub(super) fn mmap_prot(
        &self,
        addr: usize,
        len: usize,
        flags: u32,
        offset: i64,
        prot: u32,
    ) -> Result<Mapped> {
        let (prot, flags) = (prot as usize, flags as usize);
        // SAFETY: The thread has an address space, and the function checks its arguments.
        let addr = unsafe { bindings::vm_mmap(self.0, addr, len, prot, flags, offset as usize) };
        let addr = result(addr as isize)? as usize;
        Ok(Mapped { addr, len })
    }

    /// Binds the device to an IOMMU context, which opens it.
    pub(super) fn bind(&self, memory: &UserMemory, token: Option<[u8; 16]>) -> Result<Descriptor> {
        let iommufd = Descriptor::new(Self::new(c"iommu")?)?;

        let token_addr = memory.0 + 64;
        let (flags, token_ptr) = match token {
            None => (0, 0),
            Some(token) => {
                memory.put_at(64, &token);
                (bindings::VFIO_DEVICE_BIND_FLAG_TOKEN, token_addr as u64)
            }
        };
        memory.put_at(0, &[24u32, flags, iommufd.0 as u32, 0]);
        memory.put_at(16, &token_ptr);
        self.ioctl(BIND, memory.0)?;
        Ok(iommufd)
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        // SAFETY: The reference is owned by `self`. The tests run in kernel threads.
        unsafe { bindings::__fput_sync(self.0) };
    }
}

/// A mapping of a file, which it keeps open.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Mapped {
    pub(super) addr: usize,
    pub(super) len: usize,
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: The thread has an address space, and uses the mapping no more.
        unsafe { bindings::vm_munmap(self.addr, self.len) };
        // SAFETY: The tests run in kernel threads, and hold no locks.
        unsafe { bindings::flush_delayed_fput() };
    }
}

/// A file in the table of the thread.
#[derive(Debug)]
pub(super) struct Descriptor(pub(super) c_int, *mut bindings::file);

impl Descriptor {
    pub(super) fn new(file: OpenFile) -> Result<Self> {
        // SAFETY: The function may be called with these flags.
        let fd = unsafe { bindings::get_unused_fd_flags(0) };
        to_result(fd)?;
        let file = file.into_raw();
        // SAFETY: `fd` is reserved, and the reference to the file is passed on.
        unsafe { bindings::fd_install(fd as c_uint, file) };
        Ok(Self(fd, file))
    }

    pub(super) fn ioctl(&self, cmd: u32, arg: usize) -> Result<isize> {
        // The reference is that of the descriptor.
        core::mem::ManuallyDrop::new(OpenFile(self.1)).ioctl(cmd, arg)
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: The descriptor is in use, and known to this value only.
        unsafe { bindings::close_fd(self.0 as c_uint) };
    }
}

/// Memory in the user's part of the address space that the thread has for the test.
pub(super) struct UserMemory(pub(super) usize);

impl UserMemory {
    pub(super) const SIZE: usize = 4 * PAGE_SIZE;

    pub(super) fn new() -> Self {
        // SAFETY: The test is running.
        let addr = unsafe {
            bindings::kunit_vm_mmap(
                bindings::kunit_get_current_test(),
                null_mut(),
                0,
                Self::SIZE,
                (bindings::PROT_READ | bindings::PROT_WRITE) as usize,
                (bindings::MAP_ANONYMOUS | bindings::MAP_PRIVATE) as usize,
                0,
            )
        };
        assert!(addr != 0);
        Self(addr)
    }

    pub(super) fn put_at<V: crate::transmute::AsBytes>(&self, offset: usize, value: &V) {
        put(self.0 + offset, value);
    }

    pub(super) fn get_at<V: crate::transmute::FromBytes>(&self, offset: usize) -> V {
        get(self.0 + offset)
    }
}

pub(super) fn put<V: crate::transmute::AsBytes>(addr: usize, value: &V) {
    UserSlice::new(UserPtr::from_addr(addr), size_of::<V>())
        .writer()
        .write(value)
        .unwrap();
}

pub(super) fn get<V: crate::transmute::FromBytes>(addr: usize) -> V {
    UserSlice::new(UserPtr::from_addr(addr), size_of::<V>())
        .reader()
        .read()
        .unwrap()
}

pub(super) fn result(ret: isize) -> Result<isize> {
    match c_int::try_from(ret) {
        Ok(errno) if (-4095..0).contains(&errno) => Err(Error::from_errno(errno)),
        _ => Ok(ret),
    }
}

pub(super) const fn number(nr: u32) -> u32 {
    crate::ioctl::_IO(bindings::VFIO_TYPE as u32, bindings::VFIO_BASE + nr)
}

pub(super) const GET_INFO: u32 = number(7);
pub(super) const GET_REGION_INFO: u32 = number(8);
pub(super) const GET_IRQ_INFO: u32 = number(9);
pub(super) const SET_IRQS: u32 = number(10);
pub(super) const RESET: u32 = number(11);
pub(super) const FEATURE: u32 = number(17);
pub(super) const BIND: u32 = number(18);
pub(super) const ATTACH: u32 = number(19);

/// Ioctls of IOMMUFD, which is not part of the bindings.
pub(super) const IOAS_ALLOC: u32 = crate::ioctl::_IO(b';' as u32, 0x81);
pub(super) const IOAS_MAP: u32 = crate::ioctl::_IO(b';' as u32, 0x85);
pub(super) const IOAS_UNMAP: u32 = crate::ioctl::_IO(b';' as u32, 0x86);
/// A fixed address, to be read and written.
pub(super) const IOAS_MAP_FLAGS: u32 = 7;
