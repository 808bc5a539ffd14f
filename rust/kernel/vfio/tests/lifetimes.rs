// SPDX-License-Identifier: GPL-2.0-only

//! When data is made and dropped, and devices come and go.

use super::*;

#[kunit_tests(rust_vfio_lifetimes)]
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

        // Each is there for its own method.
        let readable = VTable::<Readable>::OPS;
        assert!(readable.read.is_some() && readable.write.is_none());
        assert!(readable.mmap.is_some() && readable.get_unmapped_area.is_none());
        assert!(readable.get_region_info_caps.is_none() && readable.device_feature.is_none());
        assert!(readable.request.is_none() && readable.dma_unmap.is_none());
        assert!(readable.match_.is_none() && readable.match_token_uuid.is_none());

        // What all have.
        for table in [&bare, &full, &readable] {
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

        fixture.unregister();
        assert_eq!(log.take()[..], [Event::DropRegistrationData]);
        Ok(())
    }

    #[test]
    fn registration_data_fails() -> Result {
        let parent = parent()?;
        let registration =
            Registration::<Full>::register(parent.as_ref().as_ref(), Err::<Data, _>(EXDEV));
        assert_eq!(registration.err(), Some(EXDEV));
        Ok(())
    }

    #[test]
    fn open_fails() -> Result {
        let mut fixture = Fixture::new()?;
        let log = fixture.log.clone();
        let file = OpenFile::of(fixture.registration.as_ref().unwrap().device())?;

        let unpinned = UNPINNED.load(Relaxed);
        log.set(|b| (b.open, b.pin) = (Err(EXDEV), true));
        assert_eq!(file.bind(&fixture.memory, None).err(), Some(EXDEV));
        assert_eq!(log.take()[..], [Event::Token(None), Event::OpenFailed]);

        // What the driver has pinned is not pinned any more.
        assert_eq!(UNPINNED.load(Relaxed), unpinned + 1);
        log.set(|b| b.pin = false);

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

        fixture.unregister();
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
        fixture.unregister();
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

        fixture.unregister();
        drop(fixture.parent);
        // SAFETY: The device is valid, and so are its operations. The parent has waited for it.
        assert!(unsafe { (*(*device.as_raw()).ops).open_device.is_none() });
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

    /// A module that is unloaded takes its devices with it, whatever it has done to what it has.
    #[test]
    fn module_goes_first() -> Result {
        let fixture = Fixture::new()?;
        let entry = fixture.registration.as_ref().unwrap().entry().clone();

        core::mem::forget(fixture.registration);
        // Another one does not.
        entry.other_module_goes();
        entry.module_is_freed();
        assert_eq!(fixture.log.take()[..], []);

        entry.module_goes();
        entry.module_is_freed();
        assert_eq!(fixture.log.take()[..], [Event::DropRegistrationData]);

        // There is nothing left to be done when the parent goes.
        drop(fixture.parent);
        assert_eq!(fixture.log.take()[..], []);
        Ok(())
    }

    /// What is called with the lock of all modules held does not wait for userspace.
    #[test]
    fn module_goes_while_file_is_open() -> Result {
        let fixture = Fixture::new()?;
        let device = fixture.registration.as_ref().unwrap().device();
        let entry = fixture.registration.as_ref().unwrap().entry().clone();
        // It is not bound, so that it does not keep the module in use.
        let file = OpenFile::of(device)?;

        core::mem::forget(fixture.registration);
        entry.module_goes();
        assert!(!fixture.log.take().contains(&Event::DropRegistrationData));

        // The driver's code is needed until the file is closed.
        drop(file);
        entry.module_is_freed();
        assert_eq!(
            fixture.log.take().last(),
            Some(&Event::DropRegistrationData)
        );
        Ok(())
    }

    /// To drop the registration waits for nobody, as it may be a callback of the device that does.
    #[test]
    fn unregister_in_ioctl() -> Result {
        let mut fixture = Fixture::new()?;
        let file = fixture.open()?;
        *fixture.log.registration.lock() = fixture.registration.take();

        assert_eq!(file.ioctl(UNREGISTER, 0), Ok(0));
        // The device is open, and so is still there for who has it open.
        assert_eq!(file.ioctl(ADD_ONE, 1), Ok(2));
        drop(file);
        fixture.log.dropped.wait_for_completion();
        let events = fixture.log.take();
        assert_eq!(
            events[events.len() - 2..],
            [Event::CloseOpenData, Event::DropRegistrationData]
        );
        Ok(())
    }

    /// A parent that is made for the device goes with it.
    #[test]
    fn own_parent() -> Result {
        let name = c"rust-vfio-kunit-own";
        for _ in 0..2 {
            let log = Log::new()?;
            let registration = Registration::<Full>::new(name, Full::new_data(&log))?;
            let entry = registration.entry().clone();
            // The name is taken.
            drop(registration);
            entry.module_goes();
            entry.module_is_freed();
            assert_eq!(log.take()[..], [Event::DropRegistrationData]);
        }
        Ok(())
    }
}
