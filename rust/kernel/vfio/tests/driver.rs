// SPDX-License-Identifier: GPL-2.0-only

//! The drivers of the tests, and the devices that the tests make with them.

use super::*;
/// What happened to the data of a device, in order.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) enum Event {
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
    Irq(u32, u32, irq::Action),
    Feature(u64),
    Placed(usize),
    DmaRead(u64),
    DmaUnmap(u64, u64),
    Place {
        position: region::Position,
        len: usize,
        hint: Option<usize>,
    },
}

/// What the devices of a test share with the test.
#[pin_data]
pub(super) struct Log {
    #[pin]
    events: Mutex<KVec<Event>>,
    #[pin]
    pub(super) behaviour: Mutex<Behaviour>,
    /// The registration, if it is the driver that drops it.
    #[pin]
    pub(super) registration: Mutex<Option<Registration<Full>>>,
    /// The registration data has been dropped.
    #[pin]
    pub(super) dropped: Completion,
}

/// What a device is to do when it is asked.
#[derive(Copy, Clone)]
pub(super) struct Behaviour {
    pub(super) open: Result,
    /// Whether `open` pins something.
    pub(super) pin: bool,
    pub(super) access: Result,
    pub(super) token: Result,
    pub(super) place: Result<Answer>,
    /// The number, version and content of those in `VFIO_DEVICE_GET_INFO`.
    pub(super) capabilities: &'static [(u16, u16, &'static [u8])],
    /// The file that `request` closes.
    pub(super) close: *mut bindings::file,
    /// The file for which `get_unmapped_area` asks mm itself, too.
    pub(super) ask: *mut bindings::file,
}

// SAFETY: The files are only used by the thread that runs the test.
unsafe impl Send for Behaviour {}

#[derive(Copy, Clone)]
pub(super) enum Answer {
    Anywhere,
    Offset(u32),
    Pfn(usize, u32),
}

impl Log {
    pub(super) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                events <- new_mutex!(KVec::new()),
                behaviour <- new_mutex!(Behaviour {
                    open: Ok(()),
                    pin: false,
                    access: Ok(()),
                    token: Ok(()),
                    place: Ok(Answer::Anywhere),
                    capabilities: &[],
                    close: null_mut(),
                    ask: null_mut(),
                }),
                registration <- new_mutex!(None),
                dropped <- Completion::new(),
            }),
            GFP_KERNEL,
        )
    }

    pub(super) fn push(&self, event: Event) {
        self.events.lock().push(event, GFP_KERNEL).unwrap();
    }

    /// Returns what happened since this was called last.
    pub(super) fn take(&self) -> KVec<Event> {
        core::mem::take(&mut *self.events.lock())
    }

    pub(super) fn set(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.behaviour.lock());
    }

    pub(super) fn behaviour(&self) -> Behaviour {
        *self.behaviour.lock()
    }
}

/// The registration data of [`Full`].
pub(super) struct Data {
    log: Arc<Log>,
    memory: Memory,
    /// What userspace can only read.
    read_only: Memory,
}

impl Drop for Data {
    fn drop(&mut self) {
        self.log.push(Event::DropRegistrationData);
        self.log.dropped.complete_all();
    }
}

/// The open data of [`Full`], which borrows the registration data.
#[pin_data(PinnedDrop)]
pub(super) struct Open<'open> {
    data: &'open Data,
    /// What [`PIN`] has pinned.
    #[pin]
    pinned: Mutex<Option<dma::PinnedPages>>,
}

#[pinned_drop]
impl PinnedDrop for Open<'_> {
    fn drop(self: Pin<&mut Self>) {
        self.data.log.push(Event::CloseOpenData);
    }
}

/// Ioctls of [`Full`]. Those that access memory of userspace take its address.
pub(super) const ADD_ONE: u32 = 0xabc0;
pub(super) const DMA_READ: u32 = 0xabc1;
pub(super) const DMA_WRITE: u32 = 0xabc2;
/// Pins and unpins.
pub(super) const DMA_PIN: u32 = 0xabc3;
/// Pins a page, and keeps it in the open data.
pub(super) const PIN: u32 = 0xabc4;
/// Pins a page, and forgets it.
pub(super) const PIN_AND_FORGET: u32 = 0xabc5;
/// Reads what is pinned, and writes it again at the next word.
pub(super) const USE_PINNED: u32 = 0xabc6;
/// Drops the registration of the device.
pub(super) const UNREGISTER: u32 = 0xabc7;
/// As [`PIN`], but to read only.
pub(super) const PIN_TO_READ: u32 = 0xabc8;

/// How often what `open` has pinned was unpinned.
pub(super) static UNPINNED: Atomic<u32> = Atomic::new(0);

/// # Safety
///
/// None: it is called for no pages.
unsafe fn unpin(_vdev: *mut bindings::vfio_device, _iova: u64, count: usize) {
    assert_eq!(count, 0);
    UNPINNED.fetch_add(1, Relaxed);
}

/// Large enough for leaves above the lowest level.
pub(super) const REGION_SIZE: usize = SZ_8M;

/// A driver that implements everything.
pub(super) struct Full;

impl Full {
    pub(super) fn new_data(log: &Arc<Log>) -> Result<Data> {
        Ok(Data {
            log: log.clone(),
            memory: Memory::new(REGION_SIZE)?,
            read_only: Memory::new(2 * PAGE_SIZE)?,
        })
    }
}

#[vtable]
impl Operations for Full {
    type Base = emulated::Base;
    type RegistrationData<'bound> = Data;
    type OpenData<'open> = Open<'open>;

    fn open<'open, 'bound: 'open>(
        device: &'open Device<Self, Opening>,
        data: Pin<&'open Data>,
    ) -> impl PinInit<Open<'open>, Error> {
        let data = data.get_ref();
        if data.log.behaviour().pin {
            // There is nothing to pin for a device that has just been bound to IOMMUFD. With the
            // container of a group there is.
            // SAFETY: The device is registered.
            let pins = unsafe { &device.state().base };
            pins.begin(0, 1).unwrap();
            // SAFETY: `unpin` is for no pages.
            let pin = unsafe { Pinned::new(0, KVec::new(), device.as_raw(), unpin) };
            pins.finish(Some(pin)).unwrap();
        }
        let ret = data.log.behaviour().open;
        data.log.push(match ret {
            Ok(()) => Event::Open,
            Err(_) => Event::OpenFailed,
        });

        try_pin_init!(Open {
            data: {
                ret?;
                data
            },
            pinned <- new_mutex!(None),
        })
    }

    fn info(_device: &Device<Self, Opened>, _this: Pin<&Open<'_>>) -> DeviceInfo {
        DeviceInfo {
            kind: Kind::Pci,
            num_regions: 2,
            num_irqs: 3,
        }
    }

    fn info_capabilities(
        _device: &Device<Self, Opened>,
        this: Pin<&Open<'_>>,
        capabilities: &mut info::Capabilities,
    ) -> Result {
        for (id, version, body) in this.data.log.behaviour().capabilities {
            capabilities.add(*id, *version, body)?;
        }
        Ok(())
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
            size: this.data.memory.size(),
            flags: region::Flag::Read | region::Flag::Write | region::Flag::Mmap,
        })
    }

    fn read(
        _device: &Device<Self, Opened>,
        this: Pin<&Open<'_>>,
        access: &mut region::Read,
    ) -> Result {
        this.data.memory.read(access)?;
        this.data.log.behaviour().access
    }

    fn write(
        _device: &Device<Self, Opened>,
        this: Pin<&Open<'_>>,
        access: &mut region::Write,
    ) -> Result {
        this.data.memory.write(access)?;
        this.data.log.behaviour().access
    }

    fn mmap<'request>(
        _device: &Device<Self, Mmap>,
        this: Pin<&Open<'_>>,
        mapping: region::Mapping<'request>,
    ) -> Result<region::Mapped<'request>> {
        this.data
            .log
            .push(Event::Mmap(mapping.position(), mapping.len()));
        // What is pinned can be used with `mmap_lock` held.
        if let Some(pages) = this.pinned.lock().take() {
            let mut data = [0; 8];
            pages.read(0, &mut data)?;
            this.data.log.push(Event::DmaRead(u64::from_ne_bytes(data)));
        }
        match mapping.position().index {
            0 => {
                mapping.forbid_write()?;
                this.data.read_only.map(mapping)
            }
            _ => this.data.memory.map(mapping),
        }
    }

    fn get_unmapped_area<'request>(
        _device: &Device<Self, Mmap>,
        this: Pin<&Open<'_>>,
        search: placement::Search<'request>,
    ) -> Result<placement::Placement<'request>> {
        this.data.log.push(Event::Place {
            position: search.position(),
            len: search.len(),
            hint: search.hint(),
        });

        let Behaviour { place, ask, .. } = this.data.log.behaviour();
        if !ask.is_null() {
            let offset = search.position().offset >> PAGE_SHIFT;
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
                    search.hint().unwrap_or(0),
                    search.len(),
                    (in_region_1(0) as usize >> PAGE_SHIFT) + offset as usize,
                    bindings::MAP_SHARED as usize,
                    pfn,
                    order,
                )
            };
            this.data.log.push(Event::Placed(addr));
        }
        Ok(match place? {
            Answer::Anywhere => search.anywhere(),
            Answer::Offset(order) => search.congruent_to_offset(order),
            Answer::Pfn(pfn, order) => search.congruent_to_pfn(pfn, order),
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
        request: irq::SetIrqs<'_>,
    ) -> Result {
        let request = request.decode()?;
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
        this.data.log.push(Event::SetIrqs(
            request.index,
            request.start,
            request.count,
            request.action,
        ));
        Ok(())
    }

    const MASKED_BY_EVENTFD: &'static [u32] = &[1];

    fn irq_event(
        _device: &Device<Self, InRegion>,
        this: Pin<&Open<'_>>,
        index: u32,
        number: u32,
        action: irq::Action,
    ) {
        this.data.log.push(Event::Irq(index, number, action));
    }

    fn reset(_device: &Device<Self, Resetting>, this: Pin<&Open<'_>>) -> Result {
        this.data.memory.clear();
        this.data.log.push(Event::Reset);
        Ok(())
    }

    fn ioctl(
        device: &Device<Self, Opened>,
        this: Pin<&Open<'_>>,
        ioctl: ioctl::Ioctl<'_>,
    ) -> Result<isize> {
        let log = &this.data.log;
        let arg = ioctl.arg();
        let iova = arg as crate::dma::DmaAddress;

        match ioctl.cmd() {
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
                let (one, two) = (one.frames()?, two.frames()?);
                assert_eq!((one.len(), two.len()), (1, 2));
                assert!(two.iter().all(|frame| *frame != 0));
                assert_eq!(one[0], two[0]);
                assert_ne!(one[0], two[1]);
                Ok(0)
            }
            PIN => {
                let pages = device.pin_pages(iova, 1, dma::Access::ReadWrite)?;
                assert_eq!(pages.len(), PAGE_SIZE);
                *this.pinned.lock() = Some(pages);
                Ok(0)
            }
            PIN_TO_READ => {
                *this.pinned.lock() = Some(device.pin_pages(iova, 1, dma::Access::Read)?);
                Ok(0)
            }
            PIN_AND_FORGET => {
                core::mem::forget(device.pin_pages(iova, 1, dma::Access::Read)?);
                Ok(0)
            }
            USE_PINNED => {
                let pinned = this.pinned.lock();
                let pages = pinned.as_ref().ok_or(ENOENT)?;
                let mut data = [0; 11];
                pages.read(3, &mut data)?;
                pages.write(16 + 3, &data)?;
                Ok(0)
            }
            UNREGISTER => {
                drop(log.registration.lock().take());
                Ok(0)
            }
            _ => Err(ENOTTY),
        }
    }

    fn feature(
        _device: &Device<Self, Opened>,
        this: Pin<&Open<'_>>,
        feature: feature::Feature<'_>,
    ) -> Result<c_int> {
        let set = |value| {
            this.data.log.push(Event::Feature(value));
            Ok(())
        };
        match feature.index() {
            100 => feature.get(|| Ok(0x1122_3344_5566_7788u64)),
            101 => feature.set(set),
            102 => feature.get_or_set(|| Ok(7u64), set),
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
        _device: &Device<Self, MatchingToken>,
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
pub(super) struct Bare;

#[vtable]
impl Operations for Bare {
    type Base = emulated::Base;
    type RegistrationData<'bound> = ();
    type OpenData<'open> = ();

    fn open<'open, 'bound: 'open>(
        _device: &'open Device<Self, Opening>,
        _data: Pin<&'open ()>,
    ) -> impl PinInit<(), Error> {
        Ok(())
    }

    fn info(_device: &Device<Self, Opened>, _this: Pin<&()>) -> DeviceInfo {
        DeviceInfo {
            kind: Kind::Other,
            num_regions: 0,
            num_irqs: 0,
        }
    }
}

/// A driver whose devices can be read and mapped, and nothing else.
pub(super) struct Readable;

#[vtable]
impl Operations for Readable {
    type Base = emulated::Base;
    type RegistrationData<'bound> = ();
    type OpenData<'open> = ();

    fn open<'open, 'bound: 'open>(
        _device: &'open Device<Self, Opening>,
        _data: Pin<&'open ()>,
    ) -> impl PinInit<(), Error> {
        Ok(())
    }

    fn info(_device: &Device<Self, Opened>, _this: Pin<&()>) -> DeviceInfo {
        DeviceInfo {
            kind: Kind::Other,
            num_regions: 1,
            num_irqs: 0,
        }
    }

    fn read(_device: &Device<Self, Opened>, _this: Pin<&()>, _access: &mut region::Read) -> Result {
        Err(EIO)
    }

    fn mmap<'request>(
        _device: &Device<Self, Mmap>,
        _this: Pin<&()>,
        _mapping: region::Mapping<'request>,
    ) -> Result<region::Mapped<'request>> {
        Err(EIO)
    }
}

/// Returns a parent whose name is its own, since a test that fails leaves what it has made.
pub(super) fn parent() -> Result<faux::Registration> {
    static NEXT: Atomic<u32> = Atomic::new(0);

    let number = NEXT.fetch_add(1, Relaxed);
    let name = crate::str::CString::try_from_fmt(fmt!("rust-vfio-kunit-{number}"))?;
    faux::Registration::new(&name, None)
}

/// A [`Full`] device below a faux parent.
pub(super) struct Fixture {
    pub(super) registration: Option<Registration<Full>>,
    pub(super) parent: faux::Registration,
    pub(super) log: Arc<Log>,
    pub(super) memory: UserMemory,
}

impl Fixture {
    pub(super) fn new() -> Result<Self> {
        let memory = UserMemory::new();
        let log = Log::new()?;
        let parent = parent()?;
        let registration =
            Registration::register(parent.as_ref().as_ref(), Full::new_data(&log)).map(Some)?;

        Ok(Self {
            registration,
            parent,
            log,
            memory,
        })
    }

    /// Drops the registration, and waits until the device has been unregistered.
    pub(super) fn unregister(&mut self) {
        self.registration = None;
        self.log.dropped.wait_for_completion();
    }

    /// Opens the device.
    pub(super) fn open(&self) -> Result<OpenFile> {
        let file = OpenFile::of(self.registration.as_ref().unwrap().device())?;
        file.bind(&self.memory, None)?;
        // What opening has done is not what most tests are interested in.
        self.log.take();
        Ok(file)
    }
}

/// The position in the file of a byte in region 1.
pub(super) fn in_region_1(offset: usize) -> i64 {
    (1 << 40) + offset as i64
}
