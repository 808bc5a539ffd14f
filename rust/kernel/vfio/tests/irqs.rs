// SPDX-License-Identifier: GPL-2.0-only

//! Requests to set up interrupts.

use super::*;

#[kunit_tests(rust_vfio_irqs)]
mod cases {
    use super::*;

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

    /// Eventfds by which userspace masks and unmasks.
    #[cfg(any(CONFIG_X86_64, not(CONFIG_ARCH_HAS_SYSCALL_WRAPPER)))]
    #[test]
    fn masked_by_eventfd() -> Result {
        const EVENTFD: u32 = bindings::VFIO_IRQ_SET_DATA_EVENTFD;
        const MASK: u32 = EVENTFD | bindings::VFIO_IRQ_SET_ACTION_MASK;
        const UNMASK: u32 = EVENTFD | bindings::VFIO_IRQ_SET_ACTION_UNMASK;

        let fixture = Fixture::new()?;
        let user = &fixture.memory;
        let file = fixture.open()?;
        let set = |flags: u32, index: u32, start: u32, fds: &[i32]| {
            let count = fds.len() as u32;
            user.put_at(0, &[20 + 4 * count, flags, index, start, count]);
            for (at, fd) in fds.iter().enumerate() {
                user.put_at(20 + 4 * at, fd);
            }
            file.ioctl(SET_IRQS, user.0)
        };
        let signal = |eventfd: &EventFd| -> Result {
            crate::eventfd::Context::from_fd(eventfd.fd)?.signal();
            Ok(())
        };
        let [mask, unmask, other] = [EventFd::new(0)?, EventFd::new(0)?, EventFd::new(0)?];
        let masked = |number| Event::Irq(1, number, irq::Action::Mask);
        let unmasked = |number| Event::Irq(1, number, irq::Action::Unmask);

        // The driver hears of the signals, and of nothing else.
        assert_eq!(set(MASK, 1, 6, &[-1, mask.fd]), Ok(0));
        assert_eq!(set(UNMASK, 1, 6, &[unmask.fd, -1]), Ok(0));
        assert_eq!(fixture.log.take()[..], []);
        signal(&mask)?;
        // To take one away waits for the calls.
        assert_eq!(set(MASK, 1, 7, &[-1]), Ok(0));
        assert_eq!(fixture.log.take()[..], [masked(7)]);
        // The signal was for the kernel.
        assert_eq!(mask.take(), Ok(0));
        signal(&mask)?;
        assert_eq!(mask.take(), Ok(1));

        // It is set up again, and one that has been signalled already is not missed.
        signal(&mask)?;
        assert_eq!(set(MASK, 1, 7, &[mask.fd]), Ok(0));
        // There is one for each interrupt and action.
        assert_eq!(set(MASK, 1, 7, &[other.fd]), Err(EBUSY));
        assert_eq!(set(MASK, 1, 7, &[-1]), Ok(0));
        assert_eq!(fixture.log.take()[..], [masked(7)]);

        // One that cannot be set up, after others: then those are not either.
        assert_eq!(set(MASK, 1, 0, &[mask.fd, -1, i32::MAX]), Err(EBADF));
        assert_eq!(set(MASK, 1, 0, &[mask.fd, unmask.fd, -2]), Err(EBADF));
        let iommu = Descriptor::new(OpenFile::new(c"iommu")?)?;
        assert_eq!(set(MASK, 1, 0, &[mask.fd, iommu.0]), Err(EINVAL));
        mask.take()?;
        signal(&mask)?;
        assert_eq!(set(MASK, 1, 0, &[-1]), Ok(0));
        assert_eq!(fixture.log.take()[..], []);
        assert_eq!(mask.take(), Ok(1));

        // What the driver does not mask by eventfd, nobody does.
        assert_eq!(set(MASK, 0, 0, &[mask.fd]), Err(ENOTTY));
        assert_eq!(set(MASK, 1, 0, &[-1; 9]), Err(EINVAL));
        assert_eq!(fixture.log.take()[..], []);

        // Closing the device takes all of them away, and waits for the calls.
        signal(&unmask)?;
        drop(file);
        assert_eq!(fixture.log.take()[..], [unmasked(6), Event::CloseOpenData]);
        signal(&unmask)?;
        assert_eq!(unmask.take(), Ok(1));

        // When the eventfd is closed first, there is nothing left.
        let file = fixture.open()?;
        user.put_at(0, &[24u32, MASK, 1, 0, 1, mask.fd as u32]);
        assert_eq!(file.ioctl(SET_IRQS, user.0), Ok(0));
        drop(mask);
        // SAFETY: The tests run in kernel threads, and hold no locks.
        unsafe { bindings::flush_delayed_fput() };
        user.put_at(20, &other.fd);
        assert_eq!(file.ioctl(SET_IRQS, user.0), Ok(0));
        assert_eq!(file.ioctl(SET_IRQS, user.0), Err(EBUSY));
        Ok(())
    }
}
