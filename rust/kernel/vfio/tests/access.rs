// SPDX-License-Identifier: GPL-2.0-only

//! Reads, writes and ioctls.

use super::*;

#[kunit_tests(rust_vfio_access)]
mod cases {
    use super::*;

    #[test]
    fn positions() {
        let nowhere = UserPtr::from_addr(0);
        let at = |index, offset| region::Position { index, offset };
        let bytes = |pos: i64| {
            let mut pos = pos;
            let mut seen = None;
            let ret = region::write(nowhere, 8, &mut pos, |access| {
                seen = Some(access.position());
                access.skip(5)
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

        // More than there is.
        let mut pos = 16;
        let ret = region::write(nowhere, 8, &mut pos, |access| access.skip(9));
        assert_eq!((ret, pos), (EINVAL.to_errno() as isize, 16));
        let ret = region::read(nowhere, 8, &mut pos, |access| access.put(&[0; 9]));
        assert_eq!((ret, pos), (EINVAL.to_errno() as isize, 16));

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
            assert_eq!(from_pages(pages(1 << 32)), at(u32::MAX, 0));
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

    /// Capabilities of the driver, which userspace has room for or not.
    #[test]
    fn info_capabilities() -> Result {
        let fixture = Fixture::new()?;
        let user = &fixture.memory;
        let file = fixture.open()?;
        let flags = bindings::VFIO_DEVICE_FLAGS_PCI | bindings::VFIO_DEVICE_FLAGS_RESET;
        let caps = flags | bindings::VFIO_DEVICE_FLAGS_CAPS;
        let info = |argsz: u32| {
            user.put_at(0, &[0xffu8; 64]);
            user.put_at(0, &argsz);
            file.ioctl(GET_INFO, user.0)
        };

        // There are none.
        assert_eq!(info(64), Ok(0));
        assert_eq!(user.get_at::<[u32; 6]>(0), [64, flags, 2, 3, 0, 0]);
        assert_eq!(user.get_at::<[u8; 40]>(24), [0xff; 40]);

        fixture
            .log
            .set(|b| b.capabilities = &[(5, 1, &[1, 2, 3, 4]), (0x1234, 7, &[5, 6, 7, 8, 9])]);
        assert_eq!(info(56), Ok(0));
        assert_eq!(user.get_at::<[u32; 6]>(0), [56, caps, 2, 3, 24, 0]);
        assert_eq!(user.get_at::<[u16; 2]>(24), [5, 1]);
        assert_eq!(user.get_at::<u32>(28), 40);
        // Padded.
        assert_eq!(user.get_at::<[u8; 8]>(32), [1, 2, 3, 4, 0, 0, 0, 0]);
        assert_eq!(user.get_at::<[u16; 2]>(40), [0x1234, 7]);
        assert_eq!(user.get_at::<u32>(44), 0);
        assert_eq!(user.get_at::<[u8; 8]>(48), [5, 6, 7, 8, 9, 0, 0, 0]);
        assert_eq!(user.get_at::<[u8; 8]>(56), [0xff; 8]);

        // Too little room for them, for where they are, and for the rest.
        assert_eq!(info(55), Ok(0));
        assert_eq!(user.get_at::<[u32; 6]>(0), [56, caps, 2, 3, 0, 0]);
        assert_eq!(user.get_at::<[u8; 40]>(24), [0xff; 40]);
        assert_eq!(info(18), Ok(0));
        assert_eq!(user.get_at::<[u32; 4]>(0), [56, caps, 2, 3]);
        assert_eq!(user.get_at::<[u8; 4]>(16), [0, 0, 0xff, 0xff]);
        assert_eq!(info(15), Err(EINVAL));
        Ok(())
    }

    /// Capabilities of the driver, in addition to those of a core that has some itself.
    #[test]
    fn info_of_core() -> Result {
        const CAPS: u32 = bindings::VFIO_DEVICE_FLAGS_CAPS;
        let memory = UserMemory::new();
        let user = UserPtr::from_addr(memory.0);
        // What vfio-pci-core does: two capabilities of 16 and of 8 bytes, or none.
        let core = |has: bool| {
            let argsz: u32 = memory.get_at(0);
            let fields = match has {
                true if argsz < 48 => [48, CAPS, 9, 5, 0, 0],
                true => {
                    memory.put_at(24, &[5u16, 1]);
                    memory.put_at(28, &[40u32, 0x55, 0]);
                    memory.put_at(40, &[1u16, 2]);
                    memory.put_at(44, &0u32);
                    [argsz, CAPS, 9, 5, 24, 0]
                }
                false => [argsz, 0, 9, 5, 0, 0],
            };
            for (at, field) in fields.into_iter().enumerate() {
                if 4 * (at + 1) <= argsz as usize {
                    memory.put_at(4 * at, &field);
                }
            }
            Ok(())
        };
        let info = |argsz: u32, has: bool, own: &[u8]| {
            memory.put_at(0, &[0xffu8; 80]);
            memory.put_at(0, &argsz);
            info::answer(
                user,
                Some(|| core(has)),
                |capabilities| match own {
                    [] => Ok(()),
                    _ => {
                        capabilities.add(0x100, 1, own)?;
                        capabilities.add(0x101, 1, own)
                    }
                },
                |[argsz, flags, _, num_irqs]| [argsz, flags | 2, 7, num_irqs],
            )
        };
        let fields = || memory.get_at::<[u32; 6]>(0);
        let header = |at: usize| (memory.get_at::<[u16; 2]>(at), memory.get_at::<u32>(at + 4));

        // Only the fields are changed.
        assert_eq!(info(64, true, &[]), Ok(()));
        assert_eq!(fields(), [64, CAPS | 2, 7, 5, 24, 0]);
        assert_eq!(header(24), ([5, 1], 40));
        assert_eq!(header(40), ([1, 2], 0));
        assert_eq!(info(47, true, &[]), Ok(()));
        assert_eq!(fields(), [48, CAPS | 2, 7, 5, 0, 0]);

        // All capabilities, of which those of the core stay where they are.
        assert_eq!(info(80, true, &[1; 8]), Ok(()));
        assert_eq!(fields(), [80, CAPS | 2, 7, 5, 48, 0]);
        assert_eq!(header(48), ([0x100, 1], 64));
        assert_eq!(header(64), ([0x101, 1], 24));
        assert_eq!(header(24), ([5, 1], 40));
        assert_eq!(memory.get_at::<[u32; 2]>(32), [0x55, 0]);
        assert_eq!(header(40), ([1, 2], 0));
        // Room for the core's only, or for none.
        for argsz in [79, 48, 47, 24, 16] {
            assert_eq!(info(argsz, true, &[1; 8]), Ok(()));
            let [needed, flags, .., offset, _] = fields();
            assert_eq!((needed, flags), (80, CAPS | 2));
            assert_eq!(offset, if argsz < 20 { u32::MAX } else { 0 });
            assert_eq!(header(64), ([0xffff; 2], u32::MAX));
        }

        // The core has none.
        assert_eq!(info(56, false, &[1; 8]), Ok(()));
        assert_eq!(fields(), [56, CAPS | 2, 7, 5, 24, 0]);
        assert_eq!(header(24), ([0x100, 1], 40));
        assert_eq!(header(40), ([0x101, 1], 0));

        assert_eq!(info(15, true, &[]), Err(EINVAL));
        Ok(())
    }

    #[test]
    fn bare_ioctls() -> Result {
        let memory = UserMemory::new();
        let parent = parent()?;
        let registration = Registration::<Bare>::register(parent.as_ref().as_ref(), Ok(()))?;
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
        for index in [1 << 23, 1 << 24, (1 << 24) + 1, u32::MAX] {
            raw.index = index;
            assert_eq!(info(1).store(&mut raw), Err(EINVAL));
        }
        raw.index = (1 << 23) - 1;
        assert_eq!(info(1).store(&mut raw), Ok(()));
        assert_eq!(raw.offset, ((1 << 23) - 1) << 40);
        Ok(())
    }

    /// What is replaced never reaches userspace.
    #[test]
    fn replace() -> Result {
        let fixture = Fixture::new()?;
        let user = &fixture.memory;
        // What userspace gets of 8 bytes at 0x100, of which the driver gives it `given` zeroes, and
        // which bytes of the region it is asked for.
        let read = |given: usize, offset: u64, data: &[u8]| {
            user.put_at(0, &[0xffu8; 16]);
            let mut asked = [false; 8];
            let mut position = in_region_1(0x100);
            let ret = region::read(UserPtr::from_addr(user.0 + 4), 8, &mut position, |access| {
                access.replace(offset, data, |access| {
                    let at = (access.position().offset - 0x100) as usize;
                    let len = access.remaining().min(given.saturating_sub(at));
                    asked[at..at + len].fill(true);
                    access.put(&[0u8; 8][..len])
                })
            });
            assert_eq!(position, in_region_1(0x100 + ret as usize));
            assert_eq!(user.get_at::<[u8; 4]>(0), [0xff; 4]);
            assert_eq!(user.get_at::<[u8; 4]>(12), [0xff; 4]);
            let got = user.get_at::<[u8; 8]>(4);
            for (at, asked) in asked.into_iter().enumerate() {
                let at = 0x100 + at as u64;
                let replaced = at >= offset && at - offset < data.len() as u64;
                assert!(!(asked && replaced));
            }
            (ret, got)
        };

        assert_eq!(read(8, 0xfc, &[1, 2, 3, 4]), (8, [0; 8]));
        assert_eq!(read(8, 0xfe, &[1, 2, 3, 4]), (8, [3, 4, 0, 0, 0, 0, 0, 0]));
        assert_eq!(read(8, 0x100, &[1, 2]), (8, [1, 2, 0, 0, 0, 0, 0, 0]));
        assert_eq!(read(8, 0x103, &[1, 2]), (8, [0, 0, 0, 1, 2, 0, 0, 0]));
        assert_eq!(read(8, 0x106, &[1, 2, 3]), (8, [0, 0, 0, 0, 0, 0, 1, 2]));
        assert_eq!(read(8, 0x108, &[1]), (8, [0; 8]));
        assert_eq!(read(8, 0xff, &[9; 10]), (8, [9; 8]));
        assert_eq!(read(8, u64::MAX, &[1, 2]), (8, [0; 8]));
        assert_eq!(read(8, 0x100, &[]), (8, [0; 8]));
        // A read that ends before, and one that ends behind.
        let rest = 0xff;
        assert_eq!(
            read(2, 0x104, &[1, 2]),
            (2, [0, 0, rest, rest, rest, rest, rest, rest])
        );
        assert_eq!(read(7, 0x104, &[1, 2]), (7, [0, 0, 0, 0, 1, 2, 0, rest]));
        Ok(())
    }

    #[test]
    fn peek() -> Result {
        let fixture = Fixture::new()?;
        let user = &fixture.memory;
        user.put_at(0, &[1u8, 2, 3, 4, 5, 6, 7, 8]);
        // What is known of the 4 bytes at `offset` when 8 are written at 0x100, of which `done`
        // have been taken.
        let peek = |done: usize, offset: u64| {
            let mut data = [0u8; 4];
            let mut which = 0..0;
            let mut position = in_region_1(0x100);
            let ret = region::write(UserPtr::from_addr(user.0), 8, &mut position, |access| {
                access.skip(done)?;
                which = access.peek(offset, &mut data)?;
                Ok(())
            });
            assert_eq!(ret, done as isize);
            (which, data)
        };

        assert_eq!(peek(0, 0x100), (0..4, [1, 2, 3, 4]));
        assert_eq!(peek(0, 0x102), (0..4, [3, 4, 5, 6]));
        assert_eq!(peek(0, 0xfe), (2..4, [0, 0, 1, 2]));
        assert_eq!(peek(0, 0x106), (0..2, [7, 8, 0, 0]));
        assert_eq!(peek(0, 0xfc), (0..0, [0; 4]));
        assert_eq!(peek(0, 0x108), (0..0, [0; 4]));
        assert_eq!(peek(0, u64::MAX), (0..0, [0; 4]));
        assert_eq!(peek(2, 0x100), (2..4, [0, 0, 3, 4]));
        assert_eq!(peek(8, 0x100), (0..0, [0; 4]));
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
}
