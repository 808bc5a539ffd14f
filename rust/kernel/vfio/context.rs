// SPDX-License-Identifier: GPL-2.0-only

//! The state of a device that a callback can rely on.

use super::{
    Device,
    Operations, //
};
use core::ops::Deref;

/// The state of a [`Device`] that a reference to it stands for.
pub trait Context: private::Context {}

/// The device exists. Nothing else is known.
///
/// The only context in which a [`Device`] can be sent to another task.
pub struct Normal;

/// The device is open, and the callback is one that the C code below the driver has called to do
/// its own work, so that the driver must not call that code for the same work again, or it is
/// [`Operations::irq_event`], which closing the device waits for.
///
/// What every callback for an open device can do is in this context.
pub struct InRegion;

/// The device is open, in [`Operations::mmap`] and [`Operations::get_unmapped_area`].
///
/// The caller holds `mmap_lock` of the current process for writing, so that memory of userspace
/// must not be accessed.
pub struct Mmap;

/// The device is open, in all other callbacks for an open device.
pub struct Opened;

/// The device is being opened, in [`Operations::open`].
pub struct Opening;

/// The device is open, in [`Operations::reset`].
pub struct Resetting;

/// The device is registered, in [`Operations::matches`].
pub struct Matching;

/// The device is registered, in [`Operations::match_token`].
pub struct MatchingToken;

/// The device is being unregistered, in [`Operations::request`].
pub struct Requesting;

pub(super) mod private {
    /// Keeps others from declaring contexts.
    pub trait Context {}
}

/// Declares contexts, and which other context each of them includes.
macro_rules! context {
    ($($context:ident $(=> $target:ident)?),* $(,)?) => { $(
        impl private::Context for $context {}
        impl Context for $context {}

        $(
            impl<T: Operations> Deref for Device<T, $context> {
                type Target = Device<T, $target>;

                #[inline]
                fn deref(&self) -> &Self::Target {
                    // SAFETY: `self` is a reference to a device in the state of `$context`, for as
                    // long as the reference lives. That state includes the one of `$target`.
                    unsafe { Device::from_raw(self.as_raw()) }
                }
            }
        )?
    )* }
}

context!(
    Normal,
    InRegion => Normal,
    Mmap => InRegion,
    Opened => InRegion,
    Opening => Opened,
    Resetting => Opened,
    Matching => Normal,
    MatchingToken => Normal,
    Requesting => Normal,
);
