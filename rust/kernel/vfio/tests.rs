// SPDX-License-Identifier: GPL-2.0-only

//! KUnit tests that register devices and reach them as userspace does: through the files, the
//! system calls' file operations and the C core of VFIO.

use super::{
    dma,
    emulated::{
        self,
        Registration, //
    },
    irq,
    placement,
    region,
    *, //
};
#[cfg(any(CONFIG_X86_64, not(CONFIG_ARCH_HAS_SYSCALL_WRAPPER)))]
use crate::eventfd::userspace::EventFd;
use crate::{
    error::to_result,
    faux,
    new_mutex,
    page::PAGE_SHIFT,
    sizes::*,
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        Completion,
        Mutex, //
    },
    time::{
        delay::fsleep,
        Delta, //
    },
    uaccess::UserSlice,
    workqueue, //
};
use core::ptr::null_mut;

/// What happened to the data of a device, in order.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
enum Event {
    Open,
    OpenFailed,
    CloseOpenData,
    DropRegistrationData,
    Request(u32),
    Matches,
    Token(Option<[u8; 16]>),
    Reset,
    Mmap(region::Position, usize),
    SetIrqs(u32, u32, u32, irq::Action),
    Feature(u64),
    Placed(usize),
    DmaRead(u64),
    DmaUnmap(u64, u64),
    Place {
        position: region::Position,
        len: usize,
        hint: Option<usize>,
        flags: placement::Flags,
    },
}

/// What the devices of a test share with the test.
#[pin_data]
struct Log {
    #[pin]
    events: Mutex<KVec<Event>>,
    #[pin]
    behaviour: Mutex<Behaviour>,
}

/// What a device is to do when it is asked.
#[derive(Copy, Clone)]
struct Behaviour {
    open: Result,
    access: Result,
    token: Result,
    place: Result<Answer>,
    /// The file that `request` closes.
    close: *mut bindings::file,
    /// The file for which `get_unmapped_area` asks mm itself, too.
    ask: *mut bindings::file,
}

// SAFETY: The files are only used by the thread that runs the test.
unsafe impl Send for Behaviour {}

#[derive(Copy, Clone)]
enum Answer {
    Anywhere,
    Offset(u32),
    Pfn(usize, u32),
}

impl Log {
    fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                events <- new_mutex!(KVec::new()),
                behaviour <- new_mutex!(Behaviour {
                    open: Ok(()),
                    access: Ok(()),
                    token: Ok(()),
                    place: Ok(Answer::Anywhere),
                    close: null_mut(),
                    ask: null_mut(),
                }),
            }),
            GFP_KERNEL,
        )
    }

    fn push(&self, event: Event) {
        self.events.lock().push(event, GFP_KERNEL).unwrap();
    }

    /// Returns what happened since this was called last.
    fn take(&self) -> KVec<Event> {
        core::mem::take(&mut *self.events.lock())
    }

    fn set(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.behaviour.lock());
    }

    fn behaviour(&self) -> Behaviour {
        *self.behaviour.lock()
    }
}

/// The registration data of [`Full`].
struct Data {
    log: Arc<Log>,
    memory: Memory,
}

impl Drop for Data {
    fn drop(&mut self) {
        self.log.push(Event::DropRegistrationData);
    }
}

/// The open data of [`Full`], which borrows the registration data.
struct Open<'open>(&'open Data);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.log.push(Event::CloseOpenData);
    }
}

/// Ioctls of [`Full`].
const ADD_ONE: u32 = 0xabc0;
const DMA_READ: u32 = 0xabc1;
const DMA_WRITE: u32 = 0xabc2;
const DMA_PIN: u32 = 0xabc3;
const DMA_PIN_AND_UNMAP: u32 = 0xabc4;

/// Large enough for leaves above the lowest level.
const REGION_SIZE: usize = SZ_8M;

/// A driver that implements everything.
struct Full;

impl Full {
    fn new_data(log: &Arc<Log>) -> Result<Data> {
        Ok(Data {
            log: log.clone(),
            memory: Memory::new(REGION_SIZE)?,
        })
    }
}

#[vtable]
impl Operations for Full {
    type Base = emulated::Base;
    type RegistrationData<'bound> = Data;
    type OpenData<'open> = Open<'open>;

    fn open<'open, 'bound: 'open>(
        _device: &Device<Self, Opening>,
        data: Pin<&'open Data>,
    ) -> impl PinInit<Open<'open>, Error> {
        let data = data.get_ref();
        if let Err(err) = data.log.behaviour().open {
            data.log.push(Event::OpenFailed);
            return Err(err);
        }
        data.log.push(Event::Open);
        Ok(Open(data))
    }

    fn info(_device: &Device<Self, Opened>, _this: Pin<&Open<'_>>) -> Info {
        Info {
            kind: Kind::Pci,
            num_regions: 2,
            num_irqs: 3,
        }
    }

    fn region_info(
        _device: &Device<Self, Opened>,
        this: Pin<&Open<'_>>,
        index: u32,
        capabilities: &mut region::Capabilities<'_>,
    ) -> Result<region::Info> {
        if index != 1 {
            return Err(EINVAL);
        }
        capabilities.region_type(0x1234, 0x5678)?;
        capabilities.sparse_mmap(&[
            region::Area {
                offset: 0,
                size: PAGE_SIZE as u64,
            },
            region::Area {
                offset: 2 * PAGE_SIZE as u64,
                size: 2 * PAGE_SIZE as u64,
            },
        ])?;
        capabilities.msix_mappable()?;
        Ok(region::Info {
            size: this.0.memory.size(),
            flags: region::Flag::Read | region::Flag::Write | region::Flag::Mmap,
        })
    }

    fn read(
        _device: &Device<Self, Opened>,
        this: Pin<&Open<'_>>,
        access: &mut region::Read,
    ) -> Result {
        this.0.memory.read(access)?;
        this.0.log.behaviour().access
    }

    fn write(
        _device: &Device<Self, Opened>,
        this: Pin<&Open<'_>>,
        access: &mut region::Write,
    ) -> Result {
        this.0.memory.write(access)?;
        this.0.log.behaviour().access
    }

    fn mmap(
        _device: &Device<Self, Opened>,
        this: Pin<&Open<'_>>,
        mapping: &region::Mapping<'_>,
    ) -> Result {
        this.0
            .log
            .push(Event::Mmap(mapping.position(), mapping.len()));
        this.0.memory.map(mapping)
    }

    fn get_unmapped_area<'request>(
        _device: &Device<Self, Opened>,
        this: Pin<&Open<'_>>,
        request: placement::Request<'request>,
    ) -> Result<Placement<'request>> {
        this.0.log.push(Event::Place {
            position: request.position(),
            len: request.len(),
            hint: request.hint(),
            flags: request.flags(),
        });

        let Behaviour { place, ask, .. } = this.0.log.behaviour();
        if !ask.is_null() {
            let offset = request.position().offset >> PAGE_SHIFT;
            let (pfn, order) = match place? {
                Answer::Anywhere => (0, 0),
                Answer::Offset(order) => (offset as usize, order),
                Answer::Pfn(pfn, order) => (pfn, order),
            };
            // SAFETY: This is running in the file operation of `ask`, so that the thread has an
            // address space and holds its lock.
            let addr = unsafe {
                bindings::mm_get_unmapped_area_order(
                    ask,
                    request.hint().unwrap_or(0),
                    request.len(),
                    (in_region_1(0) as usize >> PAGE_SHIFT) + offset as usize,
                    bindings::MAP_SHARED as usize,
                    pfn,
                    order,
                )
            };
            this.0.log.push(Event::Placed(addr));
        }
        Ok(match place? {
            Answer::Anywhere => request.anywhere(),
            Answer::Offset(order) => request.congruent_to_offset(order),
            Answer::Pfn(pfn, order) => request.congruent_to_pfn(pfn, order),
        })
    }

    fn irq_info(
        _device: &Device<Self, Opened>,
        _this: Pin<&Open<'_>>,
        index: u32,
    ) -> Result<irq::Info> {
        Ok(irq::Info {
            // Index 2 exists, and has none.
            count: [1, 8, 0][index as usize],
            flags: irq::Flag::EventFd | irq::Flag::NoResize,
        })
    }

    fn set_irqs(
        _device: &Device<Self, Opened>,
        this: Pin<&Open<'_>>,
        request: irq::Request,
    ) -> Result {
        let count = match request.data {
            irq::Data::None => request.count,
            irq::Data::Bool(bools) => {
                assert!(bools.iter().enumerate().all(|(i, b)| *b == (i % 2 == 1)));
                bools.len() as u32
            }
            irq::Data::EventFd(eventfds) => {
                // As often as is the interrupt's number, from one on.
                for (nth, eventfd) in eventfds.iter().enumerate() {
                    if let Some(eventfd) = eventfd {
                        (0..=nth).for_each(|_| eventfd.signal());
                    }
                }
                eventfds.len() as u32
            }
        };
        assert_eq!(count, request.count);
        this.0.log.push(Event::SetIrqs(
            request.index,
            request.start,
            request.count,
            request.action,
        ));
        Ok(())
    }

    fn reset(_device: &Device<Self, Resetting>, this: Pin<&Open<'_>>) -> Result {
        this.0.memory.clear();
        this.0.log.push(Event::Reset);
        Ok(())
    }

    fn ioctl(
        device: &Device<Self, Opened>,
        this: Pin<&Open<'_>>,
        request: ioctl::Request<'_>,
    ) -> Result<isize> {
        let log = &this.0.log;
        let arg = request.arg();
        let iova = arg as crate::dma::DmaAddress;

        match request.cmd() {
            ADD_ONE => Ok(arg as isize + 1),
            DMA_READ => {
                let mut data = [0; 8];
                device.dma_read(iova, &mut data)?;
                log.push(Event::DmaRead(u64::from_ne_bytes(data)));
                Ok(0)
            }
            DMA_WRITE => {
                device.dma_write(iova, &[0x5a; 8])?;
                Ok(0)
            }
            DMA_PIN => {
                let one = device.pin_pages(iova, 1, dma::Access::Read)?;
                let two = device.pin_pages(iova, 2, dma::Access::ReadWrite)?;
                assert_eq!(two.frames().len(), 2);
                assert!(two.frames().all(|frame| frame != 0));
                assert_eq!(one.frames().next(), two.frames().next());
                assert_ne!(one.frames().next(), two.frames().nth(1));
                Ok(0)
            }
            DMA_PIN_AND_UNMAP => {
                let pages = device.pin_pages(iova, 1, dma::Access::ReadWrite)?;
                let done = Arc::pin_init(Completion::new(), GFP_KERNEL)?;

                let remote: (ARef<Device<Full>>, _) = ((&**device).into(), done.clone());
                workqueue::system_long().try_spawn(GFP_KERNEL, move || {
                    let dma_unmap = VTable::<Full>::OPS.dma_unmap.unwrap();
                    // SAFETY: The device is registered and open, while the other thread waits.
                    unsafe { dma_unmap(remote.0.as_raw(), 1, 2) };
                    remote.1.complete_all();
                })?;

                // It waits for the pages.
                fsleep(Delta::from_millis(50));
                assert_eq!(log.take()[..], []);
                drop(pages);
                done.wait_for_completion();
                assert_eq!(log.take()[..], [Event::DmaUnmap(1, 2)]);
                Ok(0)
            }
            _ => Err(ENOTTY),
        }
    }

    fn feature(
        _device: &Device<Self, Opened>,
        this: Pin<&Open<'_>>,
        request: feature::Request<'_>,
    ) -> Result<c_int> {
        let set = |value| {
            this.0.log.push(Event::Feature(value));
            Ok(())
        };
        match request.index() {
            100 => request.get(|| Ok(0x1122_3344_5566_7788u64)),
            101 => request.set(set),
            102 => request.get_or_set(|| Ok(7u64), set),
            _ => Err(ENOTTY),
        }
    }

    fn request(_device: &Device<Self, Requesting>, data: Pin<&Data>, count: u32) {
        data.log.push(Event::Request(count));
        let file = data.log.behaviour().close;
        if !file.is_null() {
            data.log.set(|b| b.close = null_mut());
            // SAFETY: The test passed on its reference, and is the thread that unregisters the
            // device and so calls this.
            unsafe { bindings::__fput_sync(file) };
        }
    }

    fn matches(_device: &Device<Self, Matching>, data: Pin<&Data>, name: &CStr) -> Result<bool> {
        data.log.push(Event::Matches);
        match name.to_bytes() {
            b"me" => Ok(true),
            b"error" => Err(ENXIO),
            _ => Ok(false),
        }
    }

    fn match_token(
        _device: &Device<Self, Matching>,
        data: Pin<&Data>,
        token: Option<&[u8; 16]>,
    ) -> Result {
        data.log.push(Event::Token(token.copied()));
        data.log.behaviour().token
    }

    fn dma_unmap(_device: &Device<Self>, data: Pin<&Data>, iova: u64, length: u64) {
        data.log.push(Event::DmaUnmap(iova, length));
    }
}

/// A driver that implements nothing that it need not.
struct Bare;

#[vtable]
impl Operations for Bare {
    type Base = emulated::Base;
    type RegistrationData<'bound> = ();
    type OpenData<'open> = ();

    fn open<'open, 'bound: 'open>(
        _device: &Device<Self, Opening>,
        _data: Pin<&'open ()>,
    ) -> impl PinInit<(), Error> {
        Ok(())
    }

    fn info(_device: &Device<Self, Opened>, _this: Pin<&()>) -> Info {
        Info {
            kind: Kind::Other,
            num_regions: 0,
            num_irqs: 0,
        }
    }
}

/// An open file, of a device or of IOMMUFD.
struct OpenFile(*mut bindings::file);

impl OpenFile {
    /// Opens the device node `path`.
    fn new(path: &CStr) -> Result<Self> {
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
    fn of<T: Operations>(device: &Device<T>) -> Result<Self> {
        let name = device.as_ref().name();
        let path = crate::str::CString::try_from_fmt(fmt!("vfio/devices/{name}"))?;
        Self::new(&path)
    }

    /// Passes the reference on.
    fn into_raw(self) -> *mut bindings::file {
        core::mem::ManuallyDrop::new(self).0
    }

    fn ops(&self) -> &bindings::file_operations {
        // SAFETY: The file is open, and so its operations are valid.
        unsafe { &*(*self.0).f_op }
    }

    fn ioctl(&self, cmd: u32, arg: usize) -> Result<isize> {
        let ioctl = self.ops().unlocked_ioctl.unwrap();
        // SAFETY: The operation belongs to the file, and checks its other arguments.
        result(unsafe { ioctl(self.0, cmd, arg) })
    }

    /// Reads `count` bytes to `buffer`, and returns how many it were and the position afterwards.
    fn read(&self, buffer: usize, count: usize, mut pos: i64) -> (Result<isize>, i64) {
        let read = self.ops().read.unwrap();
        let buffer = UserPtr::from_addr(buffer).as_mut_ptr().cast();
        // SAFETY: The operation belongs to the file, `pos` is valid, and the buffer is checked.
        let ret = result(unsafe { read(self.0, buffer, count, &mut pos) });
        (ret, pos)
    }

    /// As `read`, in the other direction.
    fn write(&self, buffer: usize, count: usize, mut pos: i64) -> (Result<isize>, i64) {
        let write = self.ops().write.unwrap();
        let buffer = UserPtr::from_addr(buffer).as_const_ptr().cast();
        // SAFETY: The operation belongs to the file, `pos` is valid, and the buffer is checked.
        let ret = result(unsafe { write(self.0, buffer, count, &mut pos) });
        (ret, pos)
    }

    /// Maps `len` bytes of the file.
    fn mmap(&self, addr: usize, len: usize, flags: u32, offset: i64) -> Result<Mapped> {
        let prot = (bindings::PROT_READ | bindings::PROT_WRITE) as usize;
        // SAFETY: The thread has an address space, and the function checks its arguments.
        let addr =
            unsafe { bindings::vm_mmap(self.0, addr, len, prot, flags as usize, offset as usize) };
        let addr = result(addr as isize)? as usize;
        Ok(Mapped { addr, len })
    }

    /// Binds the device to an IOMMU context, which opens it.
    fn bind(&self, memory: &UserMemory, token: Option<[u8; 16]>) -> Result<Descriptor> {
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
struct Mapped {
    addr: usize,
    len: usize,
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
struct Descriptor(c_int, *mut bindings::file);

impl Descriptor {
    fn new(file: OpenFile) -> Result<Self> {
        // SAFETY: The function may be called with these flags.
        let fd = unsafe { bindings::get_unused_fd_flags(0) };
        to_result(fd)?;
        let file = file.into_raw();
        // SAFETY: `fd` is reserved, and the reference to the file is passed on.
        unsafe { bindings::fd_install(fd as c_uint, file) };
        Ok(Self(fd, file))
    }

    fn ioctl(&self, cmd: u32, arg: usize) -> Result<isize> {
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
struct UserMemory(usize);

impl UserMemory {
    const SIZE: usize = 4 * PAGE_SIZE;

    fn new() -> Self {
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

    fn put_at<V: crate::transmute::AsBytes>(&self, offset: usize, value: &V) {
        put(self.0 + offset, value);
    }

    fn get_at<V: crate::transmute::FromBytes>(&self, offset: usize) -> V {
        get(self.0 + offset)
    }
}

fn put<V: crate::transmute::AsBytes>(addr: usize, value: &V) {
    UserSlice::new(UserPtr::from_addr(addr), size_of::<V>())
        .writer()
        .write(value)
        .unwrap();
}

fn get<V: crate::transmute::FromBytes>(addr: usize) -> V {
    UserSlice::new(UserPtr::from_addr(addr), size_of::<V>())
        .reader()
        .read()
        .unwrap()
}

fn result(ret: isize) -> Result<isize> {
    match c_int::try_from(ret) {
        Ok(errno) if (-4095..0).contains(&errno) => Err(Error::from_errno(errno)),
        _ => Ok(ret),
    }
}

const fn number(nr: u32) -> u32 {
    crate::ioctl::_IO(bindings::VFIO_TYPE as u32, bindings::VFIO_BASE + nr)
}

const GET_INFO: u32 = number(7);
const GET_REGION_INFO: u32 = number(8);
const GET_IRQ_INFO: u32 = number(9);
const SET_IRQS: u32 = number(10);
const RESET: u32 = number(11);
const FEATURE: u32 = number(17);
const BIND: u32 = number(18);
const ATTACH: u32 = number(19);

/// Ioctls of IOMMUFD, which is not part of the bindings.
const IOAS_ALLOC: u32 = crate::ioctl::_IO(b';' as u32, 0x81);
const IOAS_MAP: u32 = crate::ioctl::_IO(b';' as u32, 0x85);
const IOAS_UNMAP: u32 = crate::ioctl::_IO(b';' as u32, 0x86);
/// A fixed address, to be read and written.
const IOAS_MAP_FLAGS: u32 = 7;

/// Returns a parent whose name is its own, since a test that fails leaves what it has made.
fn parent() -> Result<faux::Registration> {
    static NEXT: Atomic<u32> = Atomic::new(0);

    let number = NEXT.fetch_add(1, Relaxed);
    let name = crate::str::CString::try_from_fmt(fmt!("rust-vfio-kunit-{number}"))?;
    faux::Registration::new(&name, None)
}

/// A [`Full`] device below a faux parent.
struct Fixture {
    registration: Option<Registration<Full>>,
    parent: faux::Registration,
    log: Arc<Log>,
    memory: UserMemory,
}

impl Fixture {
    fn new() -> Result<Self> {
        let memory = UserMemory::new();
        let log = Log::new()?;
        let parent = parent()?;
        let registration =
            Registration::new(parent.as_ref().as_ref(), Full::new_data(&log)).map(Some)?;

        Ok(Self {
            registration,
            parent,
            log,
            memory,
        })
    }

    /// Opens the device.
    fn open(&self) -> Result<OpenFile> {
        let file = OpenFile::of(self.registration.as_ref().unwrap().device())?;
        file.bind(&self.memory, None)?;
        // What opening has done is not what most tests are interested in.
        self.log.take();
        Ok(file)
    }
}

/// The position in the file of a byte in region 1.
fn in_region_1(offset: usize) -> i64 {
    (1 << 40) + offset as i64
}

#[kunit_tests(rust_vfio)]
mod cases {
    use super::*;

    #[test]
    fn slots() {
        let bare = VTable::<Bare>::OPS;
        let full = VTable::<Full>::OPS;

        // What the driver does not implement is not there.
        assert!(bare.init.is_none() && full.init.is_none());
        assert!(bare.release.is_none() && full.release.is_none());
        assert!(bare.read.is_none() && full.read.is_some());
        assert!(bare.write.is_none() && full.write.is_some());
        assert!(bare.get_region_info_caps.is_none() && full.get_region_info_caps.is_some());
        assert!(bare.mmap.is_none() && full.mmap.is_some());
        assert!(bare.get_unmapped_area.is_none() && full.get_unmapped_area.is_some());
        assert!(bare.request.is_none() && full.request.is_some());
        assert!(bare.match_.is_none() && full.match_.is_some());
        assert!(bare.match_token_uuid.is_none() && full.match_token_uuid.is_some());
        assert!(bare.dma_unmap.is_none() && full.dma_unmap.is_some());
        assert!(bare.device_feature.is_none() && full.device_feature.is_some());

        // What all have.
        for table in [&bare, &full] {
            assert!(!table.name.is_null());
            assert!(table.open_device.is_some());
            assert!(table.close_device.is_some());
            assert!(table.ioctl.is_some());
            assert!(table.bind_iommufd.is_some());
            assert!(table.unbind_iommufd.is_some());
            assert!(table.attach_ioas.is_some());
            assert!(table.detach_ioas.is_some());
            assert!(table.pasid_attach_ioas.is_none());
            assert!(table.pasid_detach_ioas.is_none());
        }
    }

    #[test]
    fn lifetimes() -> Result {
        let mut fixture = Fixture::new()?;
        let log = fixture.log.clone();
        let file = OpenFile::of(fixture.registration.as_ref().unwrap().device())?;
        assert_eq!(log.take()[..], []);

        file.bind(&fixture.memory, None)?;
        assert_eq!(log.take()[..], [Event::Token(None), Event::Open]);

        // Bound once, and no more.
        assert_eq!(file.bind(&fixture.memory, None).err(), Some(EINVAL));
        assert_eq!(log.take()[..], []);

        drop(file);
        assert_eq!(log.take()[..], [Event::CloseOpenData]);

        // A second time is like the first.
        drop(fixture.open()?);
        assert_eq!(log.take()[..], [Event::CloseOpenData]);

        fixture.registration = None;
        assert_eq!(log.take()[..], [Event::DropRegistrationData]);
        Ok(())
    }

    #[test]
    fn registration_data_fails() -> Result {
        let parent = parent()?;
        let registration =
            Registration::<Full>::new(parent.as_ref().as_ref(), Err::<Data, _>(EXDEV));
        assert_eq!(registration.err(), Some(EXDEV));
        Ok(())
    }

    #[test]
    fn open_fails() -> Result {
        let mut fixture = Fixture::new()?;
        let log = fixture.log.clone();
        let file = OpenFile::of(fixture.registration.as_ref().unwrap().device())?;

        log.set(|b| b.open = Err(EXDEV));
        assert_eq!(file.bind(&fixture.memory, None).err(), Some(EXDEV));
        assert_eq!(log.take()[..], [Event::Token(None), Event::OpenFailed]);

        // There is no open data, and nothing that would look for it.
        assert_eq!(file.ioctl(RESET, 0), Err(EINVAL));
        assert_eq!(
            file.mmap(0, PAGE_SIZE, bindings::MAP_SHARED, 0),
            Err(EINVAL)
        );
        drop(file);
        assert_eq!(log.take()[..], []);

        // It can succeed later.
        log.set(|b| b.open = Ok(()));
        drop(fixture.open()?);
        assert_eq!(log.take()[..], [Event::CloseOpenData]);

        fixture.registration = None;
        assert_eq!(log.take()[..], [Event::DropRegistrationData]);
        Ok(())
    }

    #[test]
    fn unregister_while_open() -> Result {
        let mut fixture = Fixture::new()?;
        let log = fixture.log.clone();
        let file = fixture.open()?;

        // The driver is asked, and closes the file.
        log.set(|b| b.close = file.into_raw());
        fixture.registration = None;
        assert_eq!(
            log.take()[..],
            [
                Event::Request(0),
                Event::CloseOpenData,
                Event::DropRegistrationData
            ]
        );
        Ok(())
    }

    #[test]
    fn forgotten_registration() -> Result {
        let mut fixture = Fixture::new()?;
        let log = fixture.log.clone();
        core::mem::forget(fixture.registration.take());
        assert_eq!(log.take()[..], []);

        drop(fixture.parent);
        assert_eq!(log.take()[..], [Event::DropRegistrationData]);
        Ok(())
    }

    #[test]
    fn parent_goes_first() -> Result {
        let Fixture {
            registration,
            parent,
            log,
            ..
        } = Fixture::new()?;

        drop(parent);
        assert_eq!(log.take()[..], [Event::DropRegistrationData]);
        drop(registration);
        assert_eq!(log.take()[..], []);
        Ok(())
    }

    #[test]
    fn device_outlives_registration() -> Result {
        let mut fixture = Fixture::new()?;
        let device: ARef<Device<Full>> = fixture.registration.as_ref().unwrap().device().into();

        fixture.registration = None;
        // SAFETY: The device is valid, and so are its operations.
        assert!(unsafe { (*(*device.as_raw()).ops).open_device.is_none() });
        drop(fixture);
        drop(device);
        Ok(())
    }

    #[test]
    fn tokens() -> Result {
        let fixture = Fixture::new()?;
        let file = OpenFile::of(fixture.registration.as_ref().unwrap().device())?;
        let token = *b"0123456789abcdef";

        fixture.log.set(|b| b.token = Err(EACCES));
        assert_eq!(file.bind(&fixture.memory, Some(token)).err(), Some(EACCES));
        assert_eq!(fixture.log.take()[..], [Event::Token(Some(token))]);
        Ok(())
    }

    #[test]
    fn names() -> Result {
        let fixture = Fixture::new()?;
        let device = fixture.registration.as_ref().unwrap().device().as_raw();
        // SAFETY: The device is registered, and the strings are strings.
        let matches = |name: &CStr| unsafe {
            VTable::<Full>::OPS.match_.unwrap()(device, name.as_char_ptr().cast_mut())
        };

        assert_eq!(matches(c"me"), 1);
        assert_eq!(matches(c"you"), 0);
        assert_eq!(matches(c"error"), ENXIO.to_errno());
        Ok(())
    }

    #[test]
    fn positions() {
        let nowhere = UserPtr::from_addr(0);
        let at = |index, offset| region::Position { index, offset };
        let bytes = |pos: i64| {
            let mut pos = pos;
            let mut seen = None;
            let ret = region::write(nowhere, 8, &mut pos, |access| {
                seen = Some(access.position());
                access.buffer().skip(5)
            });
            (ret, pos, seen)
        };

        assert_eq!(bytes(0), (5, 5, Some(at(0, 0))));
        assert_eq!(
            bytes((1 << 40) - 1),
            (5, (1 << 40) + 4, Some(at(0, (1 << 40) - 1)))
        );
        assert_eq!(bytes(1 << 40), (5, (1 << 40) + 5, Some(at(1, 0))));
        assert_eq!(
            bytes(i64::MAX - 5),
            (5, i64::MAX, Some(at((1 << 23) - 1, (1 << 40) - 6)))
        );
        // Behind the end, and before the start.
        assert_eq!(bytes(i64::MAX - 4).0, EOVERFLOW.to_errno() as isize);
        assert_eq!(bytes(i64::MAX - 4).1, i64::MAX - 4);
        assert_eq!(bytes(-1), (EINVAL.to_errno() as isize, -1, None));

        // More left than there was.
        let mut pos = 16;
        assert_eq!(
            region::write(nowhere, 8, &mut pos, |access| {
                *access.buffer() = UserSlice::new(nowhere, 9).reader();
                Ok(())
            }),
            EINVAL.to_errno() as isize
        );
        assert_eq!(pos, 16);

        assert_eq!(at(0, 0).within(0, 0), Ok(0));
        assert_eq!(at(0, 0).within(1, 0), Ok(0));
        assert_eq!(at(0, 1).within(1, 0), Err(EINVAL));
        assert_eq!(at(0, u64::MAX).within(usize::MAX, u64::MAX), Ok(0));
        assert_eq!(at(0, 0).within(usize::MAX, u64::MAX), Ok(usize::MAX));
        assert_eq!(at(0, 4).within(8, 8), Ok(4));

        let page = PAGE_SIZE as u64;
        let pages = |index: usize| index << (40 - PAGE_SHIFT);
        let from_pages = region::Position::from_pages;
        assert_eq!(from_pages(3), at(0, 3 * page));
        assert_eq!(from_pages(pages(1) - 1), at(0, (1 << 40) - page));
        assert_eq!(from_pages(pages(1)), at(1, 0));
        #[cfg(CONFIG_64BIT)]
        {
            assert_eq!(
                from_pages(pages(u32::MAX as usize - 1)),
                at(u32::MAX - 1, 0)
            );
            assert_eq!(from_pages(usize::MAX), at(u32::MAX, (1 << 40) - page));
        }
    }

    #[test]
    fn read_and_write() -> Result {
        let fixture = Fixture::new()?;
        let user = &fixture.memory;
        let file = fixture.open()?;

        // Over several of the chunks that are copied at a time.
        let end = in_region_1(REGION_SIZE);
        for i in 0..128 {
            user.put_at(8 * i, &(i as u64));
        }
        assert_eq!(file.write(user.0, 1024, end - 1000), (Ok(1000), end));
        user.put_at(0, &[0u8; 1024]);
        assert_eq!(file.read(user.0, 1024, end - 1000), (Ok(1000), end));
        assert_eq!(user.get_at::<u64>(0), 0);
        assert_eq!(user.get_at::<u64>(8 * 124), 124);
        assert_eq!(user.get_at::<u64>(8 * 125), 0);

        // At the end, and behind it.
        assert_eq!(file.read(user.0, 8, end), (Ok(0), end));
        assert_eq!(file.read(user.0, 8, end + 1), (Err(EINVAL), end + 1));
        assert_eq!(file.write(user.0, 8, end), (Ok(0), end));

        // A bad buffer, and an error after the copy.
        let start = in_region_1(0);
        assert_eq!(file.read(usize::MAX - 7, 4, start), (Err(EFAULT), start));
        fixture.log.set(|b| b.access = Err(EIO));
        assert_eq!(file.read(user.0, 8, start), (Err(EIO), start));
        assert_eq!(file.write(user.0, 8, start), (Err(EIO), start));
        Ok(())
    }

    #[test]
    fn infos() -> Result {
        let fixture = Fixture::new()?;
        let user = &fixture.memory;
        let file = fixture.open()?;

        user.put_at(0, &[16u32, 0, 0, 0]);
        assert_eq!(file.ioctl(GET_INFO, user.0), Ok(0));
        let flags = bindings::VFIO_DEVICE_FLAGS_PCI | bindings::VFIO_DEVICE_FLAGS_RESET;
        assert_eq!(user.get_at::<[u32; 4]>(0), [16, flags, 2, 3]);
        user.put_at(0, &[15u32, 0, 0, 0]);
        assert_eq!(file.ioctl(GET_INFO, user.0), Err(EINVAL));
        assert_eq!(file.ioctl(GET_INFO, usize::MAX - 7), Err(EFAULT));

        user.put_at(0, &[16u32, 0, 1, 0]);
        assert_eq!(file.ioctl(GET_IRQ_INFO, user.0), Ok(0));
        let flags = bindings::VFIO_IRQ_INFO_EVENTFD | bindings::VFIO_IRQ_INFO_NORESIZE;
        assert_eq!(user.get_at::<[u32; 4]>(0), [16, flags, 1, 8]);
        user.put_at(0, &[16u32, 0, 3, 0]);
        assert_eq!(file.ioctl(GET_IRQ_INFO, user.0), Err(EINVAL));
        user.put_at(0, &[16u32, 0, u32::MAX, 0]);
        assert_eq!(file.ioctl(GET_IRQ_INFO, user.0), Err(EINVAL));

        assert_eq!(file.ioctl(RESET, 0), Ok(0));
        assert_eq!(fixture.log.take()[..], [Event::Reset]);

        assert_eq!(file.ioctl(ADD_ONE, 41), Ok(42));
        assert_eq!(file.ioctl(0xabcd, 41), Err(ENOTTY));
        Ok(())
    }

    #[test]
    fn bare_ioctls() -> Result {
        let memory = UserMemory::new();
        let parent = parent()?;
        let registration = Registration::<Bare>::new(parent.as_ref().as_ref(), Ok(()))?;
        let file = OpenFile::of(registration.device())?;
        file.bind(&memory, None)?;

        memory.put_at(0, &[16u32, 0, 0, 0]);
        assert_eq!(file.ioctl(GET_INFO, memory.0), Ok(0));
        assert_eq!(memory.get_at::<[u32; 4]>(0), [16, 0, 0, 0]);
        for cmd in [GET_IRQ_INFO, SET_IRQS, RESET, 0xabcd] {
            assert_eq!(file.ioctl(cmd, memory.0), Err(ENOTTY));
        }
        assert_eq!(file.read(memory.0, 1, 0).0, Err(EINVAL));
        assert_eq!(file.write(memory.0, 1, 0).0, Err(EINVAL));
        Ok(())
    }

    #[test]
    fn region_info() -> Result {
        let fixture = Fixture::new()?;
        let user = &fixture.memory;
        let file = fixture.open()?;

        // Room for the capabilities: type, two areas, MSI-X.
        let size = 32 + 16 + (16 + 2 * 16) + 8;
        user.put_at(0, &[size as u32, 0, 1, 0]);
        assert_eq!(file.ioctl(GET_REGION_INFO, user.0), Ok(0));
        let flags = bindings::VFIO_REGION_INFO_FLAG_READ
            | bindings::VFIO_REGION_INFO_FLAG_WRITE
            | bindings::VFIO_REGION_INFO_FLAG_MMAP
            | bindings::VFIO_REGION_INFO_FLAG_CAPS;
        assert_eq!(user.get_at::<[u32; 4]>(0), [size as u32, flags, 1, 32]);
        assert_eq!(user.get_at::<[u64; 2]>(16), [REGION_SIZE as u64, 1 << 40]);

        let page = PAGE_SIZE as u64;
        assert_eq!(user.get_at::<[u16; 2]>(32), [2, 1]);
        assert_eq!(user.get_at::<[u32; 3]>(36), [48, 0x1234, 0x5678]);
        assert_eq!(user.get_at::<[u16; 2]>(48), [1, 1]);
        assert_eq!(user.get_at::<[u32; 3]>(52), [96, 2, 0]);
        assert_eq!(user.get_at::<[u64; 4]>(64), [0, page, 2 * page, 2 * page]);
        assert_eq!(user.get_at::<[u16; 2]>(96), [3, 1]);
        assert_eq!(user.get_at::<u32>(100), 0);

        user.put_at(0, &[32u32, 0, 0, 0]);
        assert_eq!(file.ioctl(GET_REGION_INFO, user.0), Err(EINVAL));

        // What the file has no room for.
        let mut raw = bindings::vfio_region_info::default();
        let info = |size| region::Info {
            size,
            flags: region::Flags::empty(),
        };
        assert_eq!(info(1 << 40).store(&mut raw), Ok(()));
        assert_eq!(info((1 << 40) + 1).store(&mut raw), Err(EOVERFLOW));
        raw.index = 1 << 23;
        assert_eq!(info(1).store(&mut raw), Err(EINVAL));
        Ok(())
    }

    #[test]
    fn patches() -> Result {
        let fixture = Fixture::new()?;
        let user = &fixture.memory;
        // What userspace gets of 8 bytes at 0x100, of which the driver gives it `given`.
        let read = |given: usize, offset: u64, data: &[u8]| {
            user.put_at(0, &[0xffu8; 16]);
            let mut position = in_region_1(0x100);
            let ret = region::read(UserPtr::from_addr(user.0 + 4), 8, &mut position, |access| {
                access.buffer().write_slice(&[0u8; 8][..given])?;
                access.patch(offset, data)
            });
            assert_eq!(ret, given as isize);
            assert_eq!(position, in_region_1(0x100 + given));
            assert_eq!(user.get_at::<[u8; 4]>(0), [0xff; 4]);
            assert_eq!(user.get_at::<[u8; 4]>(12), [0xff; 4]);
            user.get_at::<[u8; 8]>(4)
        };

        assert_eq!(read(8, 0xfc, &[1, 2, 3, 4]), [0; 8]);
        assert_eq!(read(8, 0xfe, &[1, 2, 3, 4]), [3, 4, 0, 0, 0, 0, 0, 0]);
        assert_eq!(read(8, 0x100, &[1, 2]), [1, 2, 0, 0, 0, 0, 0, 0]);
        assert_eq!(read(8, 0x103, &[1, 2]), [0, 0, 0, 1, 2, 0, 0, 0]);
        assert_eq!(read(8, 0x106, &[1, 2, 3]), [0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(read(8, 0x108, &[1]), [0; 8]);
        assert_eq!(read(8, 0xff, &[9; 10]), [9; 8]);
        assert_eq!(read(8, u64::MAX, &[1, 2]), [0; 8]);
        assert_eq!(read(8, 0x100, &[]), [0; 8]);
        // What has not been given is not written.
        assert_eq!(
            read(2, 0x101, &[1, 2]),
            [0, 1, 255, 255, 255, 255, 255, 255]
        );
        assert_eq!(read(0, 0x100, &[1, 2]), [255; 8]);
        Ok(())
    }

    #[test]
    fn set_irqs() -> Result {
        const NONE: u32 = bindings::VFIO_IRQ_SET_DATA_NONE;
        const BOOL: u32 = bindings::VFIO_IRQ_SET_DATA_BOOL;
        const EVENTFD: u32 = bindings::VFIO_IRQ_SET_DATA_EVENTFD;
        const MASK: u32 = bindings::VFIO_IRQ_SET_ACTION_MASK;
        const UNMASK: u32 = bindings::VFIO_IRQ_SET_ACTION_UNMASK;
        const TRIGGER: u32 = bindings::VFIO_IRQ_SET_ACTION_TRIGGER;

        let fixture = Fixture::new()?;
        let user = &fixture.memory;
        let file = fixture.open()?;
        let set = |fields: [u32; 5], data: &[u8; 32]| {
            user.put_at(0, &fields);
            user.put_at(20, data);
            file.ioctl(SET_IRQS, user.0)
        };
        let mut bools = [0u8; 32];
        bools.iter_mut().skip(1).step_by(2).for_each(|b| *b = 0xff);
        let none = [0xffu8; 32];

        let good = [
            ([20, NONE | TRIGGER, 1, 0, 8], irq::Action::Trigger),
            ([20, NONE | TRIGGER, 1, 0, 0], irq::Action::Trigger),
            ([20, NONE | MASK, 1, 7, 1], irq::Action::Mask),
            ([20, NONE | UNMASK, 0, 0, 1], irq::Action::Unmask),
            ([28, BOOL | TRIGGER, 1, 0, 8], irq::Action::Trigger),
            ([u32::MAX, BOOL | MASK, 1, 1, 7], irq::Action::Mask),
        ];
        for (fields, action) in good {
            assert_eq!(set(fields, &bools), Ok(0));
            let [_, _, index, start, count] = fields;
            assert_eq!(
                fixture.log.take()[..],
                [Event::SetIrqs(index, start, count, action)]
            );
        }
        // No eventfds, but places for them.
        assert_eq!(set([52, EVENTFD | TRIGGER, 1, 0, 8], &none), Ok(0));
        assert_eq!(
            fixture.log.take()[..],
            [Event::SetIrqs(1, 0, 8, irq::Action::Trigger)]
        );

        // Those that the C helper knows to be wrong, and those that only we do.
        let bad = [
            [19, NONE | TRIGGER, 1, 0, 8],
            [27, BOOL | TRIGGER, 1, 0, 8],
            [51, EVENTFD | TRIGGER, 1, 0, 8],
            [20, NONE | TRIGGER, 1, 0, 9],
            [20, NONE | TRIGGER, 1, 1, 8],
            [20, NONE | TRIGGER, 1, 8, 0],
            [20, NONE | TRIGGER, 1, 8, u32::MAX - 8],
            [20, NONE | TRIGGER, 1, u32::MAX, 1],
            [20, NONE | TRIGGER, 1, u32::MAX, u32::MAX],
            [20, NONE | TRIGGER, 2, 0, 0],
            [20, NONE | TRIGGER, 3, 0, 1],
            [20, NONE | TRIGGER, u32::MAX, 0, 1],
            [28, NONE | BOOL | TRIGGER, 1, 0, 8],
            [28, TRIGGER, 1, 0, 8],
            [20, NONE | TRIGGER | 64, 1, 0, 8],
            [20, NONE, 1, 0, 8],
            [20, NONE | TRIGGER | MASK, 1, 0, 8],
        ];
        for fields in bad {
            let [argsz, flags, index, start, count] = fields;
            let mut raw = bindings::vfio_irq_set {
                argsz,
                flags,
                index,
                start,
                count,
                ..Default::default()
            };
            let num = [1, 8, 0].get(index as usize).copied().unwrap_or(0);
            let mut size = 0;
            // SAFETY: The pointers are valid.
            let verdict = unsafe {
                bindings::vfio_set_irqs_validate_and_prepare(&mut raw, num, 3, &mut size)
            };
            let actions = (flags & (MASK | UNMASK | TRIGGER)).count_ones();
            assert!(verdict == EINVAL.to_errno() || actions != 1);
            assert_eq!(set(fields, &bools), Err(EINVAL));
            assert_eq!(fixture.log.take()[..], []);
        }

        // A descriptor that is not open.
        let mut fds = none;
        fds[..4].copy_from_slice(&i32::MAX.to_ne_bytes());
        assert_eq!(set([52, EVENTFD | TRIGGER, 1, 0, 8], &fds), Err(EBADF));
        // One that is no eventfd.
        let other = Descriptor::new(OpenFile::new(c"iommu")?)?;
        fds[..4].copy_from_slice(&other.0.to_ne_bytes());
        assert_eq!(set([52, EVENTFD | TRIGGER, 1, 0, 8], &fds), Err(EINVAL));
        // Data that is not there.
        user.put_at(PAGE_SIZE, &0u8);
        let end = user.0 + UserMemory::SIZE - 20;
        put(end, &[28u32, BOOL | TRIGGER, 1, 0, 8]);
        // SAFETY: The thread has an address space.
        unsafe { bindings::vm_munmap(user.0 + UserMemory::SIZE, PAGE_SIZE) };
        assert_eq!(file.ioctl(SET_IRQS, end), Err(EFAULT));
        assert_eq!(fixture.log.take()[..], []);
        Ok(())
    }

    #[cfg(any(CONFIG_X86_64, not(CONFIG_ARCH_HAS_SYSCALL_WRAPPER)))]
    #[test]
    fn set_irqs_by_eventfd() -> Result {
        const EVENTFD: u32 = bindings::VFIO_IRQ_SET_DATA_EVENTFD;
        const TRIGGER: u32 = bindings::VFIO_IRQ_SET_ACTION_TRIGGER;

        let fixture = Fixture::new()?;
        let user = &fixture.memory;
        let file = fixture.open()?;
        let [first, second, third] = [EventFd::new(0)?, EventFd::new(0)?, EventFd::new(100)?];

        // Each is the one of its interrupt, if that has any.
        user.put_at(0, &[36u32, EVENTFD | TRIGGER, 1, 4, 4]);
        user.put_at(20, &[first.fd, -1, second.fd, third.fd]);
        assert_eq!(file.ioctl(SET_IRQS, user.0), Ok(0));
        assert_eq!(
            fixture.log.take()[..],
            [Event::SetIrqs(1, 4, 4, irq::Action::Trigger)]
        );
        assert_eq!(first.take(), Ok(1));
        assert_eq!(second.take(), Ok(3));
        assert_eq!(third.take(), Ok(104));

        // One that is bad, after one that is good: the driver does not see any.
        user.put_at(20, &[first.fd, second.fd, i32::MAX, third.fd]);
        assert_eq!(file.ioctl(SET_IRQS, user.0), Err(EBADF));
        assert_eq!(fixture.log.take()[..], []);
        assert_eq!(first.take(), Ok(0));
        Ok(())
    }

    #[test]
    fn features() -> Result {
        const GET: u32 = bindings::VFIO_DEVICE_FEATURE_GET;
        const SET: u32 = bindings::VFIO_DEVICE_FEATURE_SET;
        const PROBE: u32 = bindings::VFIO_DEVICE_FEATURE_PROBE;

        let fixture = Fixture::new()?;
        let user = &fixture.memory;
        let file = fixture.open()?;
        let feature = |size: u32, flags: u32| {
            user.put_at(0, &[size, flags]);
            user.put_at(8, &0xaau64);
            file.ioctl(FEATURE, user.0)
        };

        assert_eq!(feature(16, GET | 100), Ok(0));
        assert_eq!(user.get_at::<u64>(8), 0x1122_3344_5566_7788);
        assert_eq!(feature(15, GET | 100), Err(EINVAL));
        assert_eq!(feature(16, SET | 100), Err(EINVAL));
        assert_eq!(feature(16, 100), Err(EINVAL));
        assert_eq!(feature(8, PROBE | GET | 100), Ok(0));
        assert_eq!(feature(8, PROBE | GET | SET | 100), Err(EINVAL));
        assert_eq!(fixture.log.take()[..], []);

        assert_eq!(feature(16, SET | 101), Ok(0));
        assert_eq!(fixture.log.take()[..], [Event::Feature(0xaa)]);
        assert_eq!(feature(16, GET | 101), Err(EINVAL));

        assert_eq!(feature(8, PROBE | GET | SET | 102), Ok(0));
        assert_eq!(fixture.log.take()[..], []);
        assert_eq!(feature(16, SET | 102), Ok(0));
        assert_eq!(fixture.log.take()[..], [Event::Feature(0xaa)]);
        assert_eq!(feature(16, GET | 102), Ok(0));
        assert_eq!(user.get_at::<u64>(8), 7);

        assert_eq!(feature(16, GET | 103), Err(ENOTTY));
        Ok(())
    }

    #[test]
    fn memory_of_userspace() -> Result {
        const IOVA: u64 = 1 << 30;

        let fixture = Fixture::new()?;
        let user = &fixture.memory;
        let file = OpenFile::of(fixture.registration.as_ref().unwrap().device())?;
        let iommufd = file.bind(user, None)?;
        fixture.log.take();

        // Nothing is mapped.
        assert!(file.ioctl(DMA_READ, IOVA as usize).is_err());
        assert!(file.ioctl(DMA_PIN, IOVA as usize).is_err());

        user.put_at(0, &[12u32, 0, 0]);
        iommufd.ioctl(IOAS_ALLOC, user.0)?;
        let [.., ioas] = user.get_at::<[u32; 3]>(0);
        user.put_at(0, &[12u32, 0, ioas]);
        file.ioctl(ATTACH, user.0)?;

        let (addr, length) = ((user.0 + PAGE_SIZE) as u64, 2 * PAGE_SIZE as u64);
        user.put_at(0, &[40u32, IOAS_MAP_FLAGS, ioas, 0]);
        user.put_at(16, &[addr, length, IOVA]);
        iommufd.ioctl(IOAS_MAP, user.0)?;

        user.put_at(PAGE_SIZE + 16, &0x1234u64);
        assert_eq!(file.ioctl(DMA_READ, IOVA as usize + 16), Ok(0));
        assert_eq!(fixture.log.take()[..], [Event::DmaRead(0x1234)]);
        assert_eq!(file.ioctl(DMA_WRITE, IOVA as usize + 16), Ok(0));
        assert_eq!(user.get_at::<[u8; 8]>(PAGE_SIZE + 16), [0x5a; 8]);

        assert_eq!(file.ioctl(DMA_PIN, IOVA as usize), Ok(0));
        assert_eq!(file.ioctl(DMA_PIN_AND_UNMAP, IOVA as usize), Ok(0));
        // Not all of it is mapped.
        assert!(file.ioctl(DMA_PIN, IOVA as usize + PAGE_SIZE).is_err());

        // Nothing stays pinned.
        user.put_at(0, &[24u32, ioas]);
        user.put_at(8, &[IOVA, length]);
        iommufd.ioctl(IOAS_UNMAP, user.0)?;
        assert_eq!(fixture.log.take()[..], []);
        assert!(file.ioctl(DMA_READ, IOVA as usize).is_err());
        Ok(())
    }

    #[test]
    fn map() -> Result {
        let fixture = Fixture::new()?;
        let user = &fixture.memory;
        let file = fixture.open()?;
        let start = in_region_1(0);
        let shared = bindings::MAP_SHARED;

        let mapped = file.mmap(0, 2 * PAGE_SIZE, shared, start)?;
        let position = region::Position {
            index: 1,
            offset: 0,
        };
        assert_eq!(
            fixture.log.take()[1..],
            [Event::Mmap(position, 2 * PAGE_SIZE)]
        );

        // The mapping and the file are the same memory.
        let second = start + PAGE_SIZE as i64;
        put(mapped.addr + PAGE_SIZE, &0x1234u64);
        assert_eq!(file.read(user.0, 8, second).0, Ok(8));
        assert_eq!(user.get_at::<u64>(0), 0x1234);
        user.put_at(0, &0x5678u64);
        assert_eq!(file.write(user.0, 8, second).0, Ok(8));
        assert_eq!(get::<u64>(mapped.addr + PAGE_SIZE), 0x5678);
        assert_eq!(file.ioctl(RESET, 0), Ok(0));
        assert_eq!(get::<u64>(mapped.addr + PAGE_SIZE), 0);

        // Only within the region, and only shared.
        let last = in_region_1(REGION_SIZE - PAGE_SIZE);
        let end = in_region_1(REGION_SIZE);
        assert!(file.mmap(0, PAGE_SIZE, shared, last).is_ok());
        assert_eq!(file.mmap(0, 2 * PAGE_SIZE, shared, last), Err(EINVAL));
        assert_eq!(file.mmap(0, PAGE_SIZE, shared, end), Err(EINVAL));
        let private = bindings::MAP_PRIVATE;
        assert_eq!(file.mmap(0, PAGE_SIZE, private, start), Err(EINVAL));

        // A mapping keeps the device open.
        fixture.log.take();
        drop(file);
        assert_eq!(fixture.log.take()[..], []);
        put(mapped.addr, &1u64);
        drop(mapped);
        assert_eq!(fixture.log.take()[..], [Event::CloseOpenData]);
        Ok(())
    }

    #[test]
    fn placement_request() -> Result {
        let fixture = Fixture::new()?;
        let file = fixture.open()?;
        let shared = bindings::MAP_SHARED;
        let len = 2 * PAGE_SIZE;
        let start = in_region_1(PAGE_SIZE);
        let place = |hint, flags| Event::Place {
            position: region::Position {
                index: 1,
                offset: PAGE_SIZE as u64,
            },
            len,
            hint,
            flags,
        };
        let none = placement::Flags::empty();

        let addr = file.mmap(0, len, shared, start)?.addr;
        assert_eq!(fixture.log.take()[0], place(None, none));

        // A hint that is free.
        let mapped = file.mmap(addr, len, shared, start)?;
        assert_eq!(mapped.addr, addr);
        assert_eq!(fixture.log.take()[0], place(Some(addr), none));

        // One that is not, on which userspace may insist.
        assert_ne!(file.mmap(addr, len, shared, start)?.addr, addr);
        assert_eq!(fixture.log.take()[0], place(Some(addr), none));
        let noreplace = placement::Flag::FixedNoReplace;
        assert_eq!(
            file.mmap(addr, len, shared | noreplace as u32, start),
            Err(EEXIST)
        );
        // There was nothing to choose, so the driver was not asked.
        assert_eq!(fixture.log.take()[..], []);

        // Nor is it for what is to replace a mapping.
        let pfn = (addr >> PAGE_SHIFT) + 1;
        fixture.log.set(|b| b.place = Ok(Answer::Pfn(pfn, 1)));
        let other = file.mmap(addr, len, shared | bindings::MAP_FIXED, start)?;
        assert_eq!(other.addr, addr);
        let position = region::Position {
            index: 1,
            offset: PAGE_SIZE as u64,
        };
        assert_eq!(fixture.log.take()[..], [Event::Mmap(position, len)]);
        // That has replaced the first.
        core::mem::forget(mapped);
        Ok(())
    }

    #[test]
    fn placement_answer() -> Result {
        let fixture = Fixture::new()?;
        let file = fixture.open()?;
        let shared = bindings::MAP_SHARED;
        let len = SZ_4M;
        let start = in_region_1(PAGE_SIZE);

        // What the driver says is what mm is told, and what mm says is what userspace is told.
        fixture.log.set(|b| b.ask = file.0);
        let orders = [0, 1, 9, 18, 63, u32::MAX];
        let pfns = orders
            .into_iter()
            .flat_map(|order| [0, 1, 513, usize::MAX].map(|pfn| Answer::Pfn(pfn, order)));
        let offsets = orders.into_iter().map(Answer::Offset);
        for answer in Iterator::chain(pfns, offsets) {
            fixture.log.set(|b| b.place = Ok(answer));
            let addr = file.mmap(0, len, shared, start)?.addr;
            assert_eq!(fixture.log.take()[1], Event::Placed(addr));
        }
        fixture.log.set(|b| b.ask = null_mut());

        // Where there are larger leaves, they fit.
        #[cfg(all(CONFIG_X86_64, CONFIG_ARCH_SUPPORTS_PMD_PFNMAP))]
        for page in [0, 1, 511] {
            fixture.log.set(|b| b.place = Ok(Answer::Offset(9)));
            let offset = page * PAGE_SIZE;
            let addr = file.mmap(0, len, shared, in_region_1(offset))?.addr;
            assert_eq!(addr % SZ_2M, offset);

            fixture.log.set(|b| b.place = Ok(Answer::Pfn(page, 9)));
            let addr = file.mmap(0, len, shared, start)?.addr;
            assert_eq!(addr % SZ_2M, offset);
        }

        // The errors of the driver, and that of mm.
        for err in [ENOSPC, EPERM, ENOMEM] {
            fixture.log.set(|b| b.place = Err(err));
            assert_eq!(file.mmap(0, len, shared, start), Err(err));
        }
        let too_long = 1 << (usize::BITS - 2);
        fixture.log.set(|b| b.place = Ok(Answer::Anywhere));
        assert_eq!(file.mmap(0, too_long, shared, start), Err(ENOMEM));
        Ok(())
    }

    #[test]
    fn placement_denied() -> Result {
        let fixture = Fixture::new()?;
        let file = OpenFile::of(fixture.registration.as_ref().unwrap().device())?;

        // The file is open, the device is not: the driver must not be asked.
        assert_eq!(
            file.mmap(0, PAGE_SIZE, bindings::MAP_SHARED, 0),
            Err(EINVAL)
        );
        assert_eq!(fixture.log.take()[..], []);
        Ok(())
    }
}
