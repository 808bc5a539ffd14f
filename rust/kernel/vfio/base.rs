// SPDX-License-Identifier: GPL-2.0-only

//! The C code that the devices of a driver are built on.

use super::{
    irq,
    DeviceInfo,
    Kind, //
};
use crate::{
    bindings,
    prelude::*, //
};

/// The C code that a device is built on: [`emulated::Base`](super::emulated::Base) or
/// `pci::Base`.
pub trait Base: private::Base {}

pub(super) mod private {
    use super::*;

    /// What differs from base to base.
    ///
    /// # Safety
    ///
    /// - `Raw` must be a C structure that starts with a `struct vfio_device`.
    /// - Those members of `OPS` that are not `NULL` must be functions for a device that was
    ///   allocated with `init` of `OPS`, if there is one, and that is open if the VFIO core calls
    ///   the member for open devices only.
    pub unsafe trait Base: 'static {
        /// The C structure of a device.
        type Raw;

        /// What the abstraction itself keeps for a device, from its allocation until it has been
        /// unregistered.
        type State: Send + Sync;

        /// The members of the table that the driver does not implement, without `name`,
        /// `open_device` and `close_device`.
        const OPS: bindings::vfio_device_ops;

        /// Whether an open device has to keep the module of its driver loaded. If not, the parent
        /// device is bound to a driver of that module, which the VFIO core keeps loaded.
        const HOLDS_MODULE: bool;

        /// Whether [`ioctl`](Self::ioctl), [`info`](Self::info) and [`irq_info`](Self::irq_info)
        /// answer what the driver does not.
        const HAS_CORE: bool;

        /// Makes the [`State`](Self::State) of a new device.
        fn new_state() -> Result<Self::State>;

        /// Prepares the device for [`Operations::open`](super::super::Operations::open).
        ///
        /// # Safety
        ///
        /// `vdev` must be a registered device that is being opened, with `dev_set->lock` held.
        #[inline]
        unsafe fn open(_vdev: *mut bindings::vfio_device) -> Result {
            Ok(())
        }

        /// Undoes [`Base::open`], since the driver failed to open the device.
        ///
        /// # Safety
        ///
        /// As for [`Base::open`], which must have succeeded.
        #[inline]
        unsafe fn cancel(_vdev: *mut bindings::vfio_device, _state: &Self::State) {}

        /// Completes [`Base::open`], since the driver opened the device.
        ///
        /// # Safety
        ///
        /// As for [`Base::open`], which must have succeeded.
        #[inline]
        unsafe fn opened(_vdev: *mut bindings::vfio_device, _state: &Self::State) {}

        /// Called before the open data is dropped.
        ///
        /// # Safety
        ///
        /// `vdev` must be an open device that is being closed, with `dev_set->lock` held.
        #[inline]
        unsafe fn closing(_vdev: *mut bindings::vfio_device, _state: &Self::State) {}

        /// Closes the device, after the open data was dropped.
        ///
        /// # Safety
        ///
        /// As for [`Base::closing`].
        #[inline]
        unsafe fn close(_vdev: *mut bindings::vfio_device, _state: &Self::State) {}

        /// Called when userspace unmaps `length` bytes at `iova`, after the driver was told.
        #[inline]
        fn dma_unmap(_state: &Self::State, _iova: u64, _length: u64) {}

        /// Handles an ioctl that the driver does not.
        ///
        /// # Safety
        ///
        /// `vdev` must be an open device.
        #[inline]
        unsafe fn ioctl(
            _vdev: *mut bindings::vfio_device,
            _cmd: u32,
            _arg: usize,
        ) -> Result<isize> {
            Err(ENOTTY)
        }

        /// Returns what userspace is told of the device.
        ///
        /// # Safety
        ///
        /// `vdev` must be an open device.
        #[inline]
        unsafe fn info(_vdev: *mut bindings::vfio_device) -> DeviceInfo {
            DeviceInfo {
                kind: Kind::Other,
                num_regions: 0,
                num_irqs: 0,
            }
        }

        /// Returns what userspace is told of the interrupts `index`.
        ///
        /// Fails with [`EINVAL`] if there is no interrupt `index`.
        ///
        /// # Safety
        ///
        /// `vdev` must be an open device.
        #[inline]
        unsafe fn irq_info(_vdev: *mut bindings::vfio_device, _index: u32) -> Result<irq::Info> {
            Err(EINVAL)
        }

        /// Frees what `init` of `OPS` and the use of the device have left behind.
        ///
        /// # Safety
        ///
        /// `vdev` must not be registered, and must not be used again but by `vfio_put_device()`.
        #[inline]
        unsafe fn release(_vdev: *mut bindings::vfio_device) {}
    }
}
