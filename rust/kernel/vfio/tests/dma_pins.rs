// SPDX-License-Identifier: GPL-2.0-only

//! Access to the memory of userspace.

use super::*;

#[kunit_tests(rust_vfio_dma)]
mod cases {
    use super::*;

    const IOVA: u64 = 1 << 30;
    const PAGE: u64 = PAGE_SIZE as u64;

    /// An open device, and an address space in which memory can be mapped for it.
    ///
    /// The device waits for the file, so that this goes first.
    struct Mapped {
        file: OpenFile,
        iommufd: Descriptor,
        ioas: u32,
        fixture: Fixture,
    }

    impl Mapped {
        fn new() -> Result<Self> {
            let fixture = Fixture::new()?;
            let user = &fixture.memory;
            let file = OpenFile::of(fixture.registration.as_ref().unwrap().device())?;
            let iommufd = file.bind(user, None)?;
            fixture.log.take();

            user.put_at(0, &[12u32, 0, 0]);
            iommufd.ioctl(IOAS_ALLOC, user.0)?;
            let [.., ioas] = user.get_at::<[u32; 3]>(0);
            user.put_at(0, &[12u32, 0, ioas]);
            file.ioctl(ATTACH, user.0)?;
            Ok(Self {
                file,
                iommufd,
                ioas,
                fixture,
            })
        }

        /// Maps pages of the memory from the second one on.
        fn map(&self, iova: u64, pages: u64) -> Result {
            let user = &self.fixture.memory;
            let addr = (user.0 + PAGE_SIZE) as u64 + (iova - IOVA);
            user.put_at(0, &[40u32, IOAS_MAP_FLAGS, self.ioas, 0]);
            user.put_at(16, &[addr, pages * PAGE, iova]);
            self.iommufd.ioctl(IOAS_MAP, user.0)?;
            Ok(())
        }

        fn unmap(&self, iova: u64, pages: u64) -> Result {
            let user = &self.fixture.memory;
            user.put_at(0, &[24u32, self.ioas]);
            user.put_at(8, &[iova, pages * PAGE]);
            self.iommufd.ioctl(IOAS_UNMAP, user.0)?;
            Ok(())
        }

        fn ioctl(&self, cmd: u32, iova: u64) -> Result<isize> {
            self.file.ioctl(cmd, iova as usize)
        }
    }

    #[test]
    fn access() -> Result {
        let mapped = Mapped::new()?;
        let user = &mapped.fixture.memory;
        let log = &mapped.fixture.log;

        // Nothing is mapped.
        assert!(mapped.ioctl(DMA_READ, IOVA).is_err());
        assert!(mapped.ioctl(DMA_PIN, IOVA).is_err());

        mapped.map(IOVA, 2)?;
        user.put_at(PAGE_SIZE + 16, &0x1234u64);
        assert_eq!(mapped.ioctl(DMA_READ, IOVA + 16), Ok(0));
        assert_eq!(log.take()[..], [Event::DmaRead(0x1234)]);
        assert_eq!(mapped.ioctl(DMA_WRITE, IOVA + 16), Ok(0));
        assert_eq!(user.get_at::<[u8; 8]>(PAGE_SIZE + 16), [0x5a; 8]);

        assert_eq!(mapped.ioctl(DMA_PIN, IOVA), Ok(0));
        // Not all of it is mapped.
        assert!(mapped.ioctl(DMA_PIN, IOVA + PAGE).is_err());

        // Nothing stays pinned.
        mapped.unmap(IOVA, 2)?;
        assert!(mapped.ioctl(DMA_READ, IOVA).is_err());
        Ok(())
    }

    /// Pins that are kept can be used until userspace unmaps the pages, which waits for nobody.
    #[test]
    fn kept() -> Result {
        let mapped = Mapped::new()?;
        let user = &mapped.fixture.memory;
        mapped.map(IOVA, 1)?;
        mapped.map(IOVA + PAGE, 1)?;

        assert_eq!(mapped.ioctl(PIN, IOVA), Ok(0));
        user.put_at(PAGE_SIZE, b"0123456789abcdef");
        assert_eq!(mapped.ioctl(USE_PINNED, 0), Ok(0));
        assert_eq!(&user.get_at::<[u8; 11]>(PAGE_SIZE + 16 + 3), b"3456789abcd");

        // The pages next to it do not matter.
        mapped.unmap(IOVA + PAGE, 1)?;
        assert_eq!(mapped.fixture.log.take()[..], []);
        assert_eq!(mapped.ioctl(USE_PINNED, 0), Ok(0));
        // That holds too if the driver is told of them, as it is by the type1 IOMMU driver.
        let device = mapped.fixture.registration.as_ref().unwrap().device();
        for iova in [IOVA - PAGE, IOVA + PAGE] {
            // SAFETY: The device is open.
            unsafe { VTable::<Full>::OPS.dma_unmap.unwrap()(device.as_raw(), iova, PAGE) };
            assert_eq!(mapped.fixture.log.take()[..], [Event::DmaUnmap(iova, PAGE)]);
            assert_eq!(mapped.ioctl(USE_PINNED, 0), Ok(0));
        }

        mapped.unmap(IOVA, 1)?;
        assert_eq!(mapped.fixture.log.take()[..], [Event::DmaUnmap(IOVA, PAGE)]);
        assert_eq!(mapped.ioctl(USE_PINNED, 0), Err(ENXIO));

        // What is mapped there later is something else.
        mapped.map(IOVA, 1)?;
        assert_eq!(mapped.ioctl(USE_PINNED, 0), Err(ENXIO));
        assert_eq!(mapped.ioctl(PIN, IOVA), Ok(0));
        assert_eq!(mapped.ioctl(USE_PINNED, 0), Ok(0));

        // To map a region uses and drops them. They do not stay pinned.
        user.put_at(PAGE_SIZE, &0x5678u64);
        drop(
            mapped
                .file
                .mmap(0, PAGE_SIZE, bindings::MAP_SHARED, in_region_1(0))?,
        );
        assert!(mapped.fixture.log.take()[..].contains(&Event::DmaRead(0x5678)));
        assert_eq!(mapped.ioctl(USE_PINNED, 0), Err(ENOENT));
        mapped.unmap(IOVA, 1)?;
        Ok(())
    }

    /// What is pinned to be read is not written to.
    #[test]
    fn pinned_to_be_read() -> Result {
        let mapped = Mapped::new()?;
        let user = &mapped.fixture.memory;
        mapped.map(IOVA, 1)?;
        user.put_at(PAGE_SIZE, b"0123456789abcdef");

        assert_eq!(mapped.ioctl(PIN_TO_READ, IOVA), Ok(0));
        assert_eq!(mapped.ioctl(USE_PINNED, 0), Err(EACCES));
        assert_eq!(user.get_at::<[u8; 16]>(PAGE_SIZE + 16), [0; 16]);
        Ok(())
    }

    /// Nobody waits for pins that were forgotten.
    #[test]
    fn forgotten() -> Result {
        let mapped = Mapped::new()?;
        mapped.map(IOVA, 2)?;

        assert_eq!(mapped.ioctl(PIN_AND_FORGET, IOVA), Ok(0));
        assert_eq!(mapped.ioctl(PIN_AND_FORGET, IOVA + PAGE), Ok(0));
        mapped.unmap(IOVA, 2)?;
        assert_eq!(
            mapped.fixture.log.take()[..],
            [Event::DmaUnmap(IOVA, 2 * PAGE)]
        );

        // Nor does to close the device.
        mapped.map(IOVA, 1)?;
        assert_eq!(mapped.ioctl(PIN_AND_FORGET, IOVA), Ok(0));
        let Mapped { fixture, file, .. } = mapped;
        drop(file);
        // IOMMUFD asks for all to be unpinned when the device is detached, at which it is closed.
        let all = Event::DmaUnmap(0, usize::MAX as u64);
        assert_eq!(fixture.log.take()[..], [Event::CloseOpenData, all]);
        Ok(())
    }
}
