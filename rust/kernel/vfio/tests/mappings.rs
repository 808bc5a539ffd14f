// SPDX-License-Identifier: GPL-2.0-only

//! Mappings of regions, and where they are placed.

use super::*;

#[kunit_tests(rust_vfio_mappings)]
mod cases {
    use super::*;

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

        // One that can only be read, of other memory.
        let read_only =
            |count: usize, flags, prot| file.mmap_prot(0, count * PAGE_SIZE, flags, 0, prot);
        let (read, write) = (bindings::PROT_READ, bindings::PROT_WRITE);
        let mapped_read = read_only(2, shared, read)?;
        assert_eq!(get::<[u8; 8]>(mapped_read.addr + PAGE_SIZE), [0; 8]);
        assert_eq!(read_only(2, shared, read | write), Err(EINVAL));
        assert_eq!(read_only(2, private, read), Err(EINVAL));
        assert_eq!(read_only(3, shared, read), Err(EINVAL));
        drop(mapped_read);

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
    fn memory() -> Result {
        assert_eq!(Memory::new(0).err(), Some(EINVAL));
        assert_eq!(Memory::new(usize::MAX).err(), Some(EOVERFLOW));
        assert_eq!(Memory::new(1)?.size(), PAGE_SIZE as u64);

        // All of it is cleared.
        let fixture = Fixture::new()?;
        let file = fixture.open()?;
        let mapped = file.mmap(0, REGION_SIZE, bindings::MAP_SHARED, in_region_1(0))?;
        let words = || (mapped.addr..mapped.addr + REGION_SIZE).step_by(PAGE_SIZE / 2 + 8);
        let last = mapped.addr + REGION_SIZE - 8;
        for addr in words() {
            put(addr, &u64::MAX);
        }
        put(last, &u64::MAX);
        assert_eq!(file.ioctl(RESET, 0), Ok(0));
        assert!(words().all(|addr| get::<u64>(addr) == 0));
        assert_eq!(get::<u64>(last), 0);
        Ok(())
    }

    #[test]
    fn placement_request() -> Result {
        let fixture = Fixture::new()?;
        let file = fixture.open()?;
        let shared = bindings::MAP_SHARED;
        let len = 2 * PAGE_SIZE;
        let start = in_region_1(PAGE_SIZE);
        let place = |hint| Event::Place {
            position: region::Position {
                index: 1,
                offset: PAGE_SIZE as u64,
            },
            len,
            hint,
        };

        let addr = file.mmap(0, len, shared, start)?.addr;
        assert_eq!(fixture.log.take()[0], place(None));

        // A hint that is free.
        let mapped = file.mmap(addr, len, shared, start)?;
        assert_eq!(mapped.addr, addr);
        assert_eq!(fixture.log.take()[0], place(Some(addr)));

        // One that is not, on which userspace may insist.
        assert_ne!(file.mmap(addr, len, shared, start)?.addr, addr);
        assert_eq!(fixture.log.take()[0], place(Some(addr)));
        assert_eq!(
            file.mmap(addr, len, shared | bindings::MAP_FIXED_NOREPLACE, start),
            Err(EEXIST)
        );
        // There was nothing to choose, so that the driver was not asked.
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
