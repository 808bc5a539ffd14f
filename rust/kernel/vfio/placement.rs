// SPDX-License-Identifier: GPL-2.0-only

//! Where a region is mapped in the address space of its user.
//!
//! Memory can be mapped by leaves larger than a page, if its address is congruent, modulo the size
//! of the leaf, with the one that it is mapped at. What a driver knows is the former. The latter is
//! mm's to choose, and a driver has no means to do so here: it states what it has, and passes on
//! what mm makes of it.
//!
//! C header: [`include/linux/sched/mm.h`](srctree/include/linux/sched/mm.h)

use super::region::Position;
use crate::{
    bindings,
    impl_flags,
    page::PAGE_SHIFT, //
};
use core::marker::PhantomData;

/// A lifetime that can neither be shortened nor extended, and so stands for one request only.
type Brand<'request> = PhantomData<fn(&'request ()) -> &'request ()>;

impl_flags!(
    /// How userspace asked for a mapping: the flags of `mmap(2)` that concern its place.
    #[derive(Debug, Clone, Default, Copy, PartialEq, Eq)]
    pub struct Flags(u32);

    /// One flag of `mmap(2)`.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Flag {
        /// The mapping is to be at the hint, and replaces what is there.
        Fixed = bindings::MAP_FIXED,
        /// The mapping is to be at the hint, and fails if something is there.
        FixedNoReplace = bindings::MAP_FIXED_NOREPLACE,
    }
);

/// A request for a place for a mapping that does not exist yet.
///
/// Without an MMU there is no choice of places, and no value of this type.
///
/// It is for the call that brings it. Within that it can be put anywhere
///
/// ```
/// # use kernel::vfio::placement::Request;
/// fn keep<'request>(request: Request<'request>, kept: &mut Option<Request<'request>>) {
///     *kept = Some(request);
/// }
/// ```
///
/// but not where it would stay:
///
/// ```ignore,compile_fail
/// # use kernel::vfio::placement::Request;
/// fn keep<'request>(request: Request<'request>, kept: &mut Option<Request<'static>>) {
///     *kept = Some(request);
/// }
/// ```
///
/// # Invariants
///
/// `file`, `addr`, `len`, `pgoff` and `flags` are the arguments of a `get_unmapped_area` file
/// operation that is running on this task.
#[cfg_attr(not(CONFIG_MMU), expect(dead_code))]
pub struct Request<'request> {
    file: *mut bindings::file,
    addr: usize,
    len: usize,
    pgoff: usize,
    flags: usize,
    position: Position,
    #[cfg(not(CONFIG_MMU))]
    never: core::convert::Infallible,
    _brand: Brand<'request>,
}

/// The answer to a [`Request`]: an address that mm found, or why it found none.
///
/// Only the request can make it, and only to that request is it an answer.
///
/// ```
/// # use kernel::vfio::placement::{Placement, Request};
/// fn place<'request>(request: Request<'request>) -> Placement<'request> {
///     request.anywhere()
/// }
/// ```
///
/// An address that the driver thinks of is none:
///
/// ```ignore,compile_fail,E0451
/// # use core::marker::PhantomData;
/// # use kernel::vfio::placement::{Placement, Request};
/// fn place<'request>(_request: Request<'request>) -> Placement<'request> {
///     Placement { addr: 0x20_0000, _brand: PhantomData }
/// }
/// ```
#[must_use]
#[cfg_attr(not(CONFIG_MMU), expect(dead_code))]
pub struct Placement<'request> {
    addr: usize,
    _brand: Brand<'request>,
}

impl Placement<'_> {
    /// Returns the address, or the errno in the form of one.
    #[cfg(CONFIG_MMU)]
    #[inline]
    pub(super) fn into_raw(self) -> usize {
        self.addr
    }
}

impl<'request> Request<'request> {
    /// # Safety
    ///
    /// The arguments must be those of a `get_unmapped_area` file operation that runs on this task
    /// for as long as the returned value lives.
    #[cfg(CONFIG_MMU)]
    #[inline]
    pub(super) unsafe fn new(
        file: *mut bindings::file,
        addr: usize,
        len: usize,
        pgoff: usize,
        flags: usize,
    ) -> Self {
        // INVARIANT: By the requirements of this function.
        Self {
            file,
            addr,
            len,
            pgoff,
            flags,
            position: Position::from_pages(pgoff),
            _brand: PhantomData,
        }
    }

    /// Returns where in the regions of the device the mapping is to start.
    #[inline]
    pub fn position(&self) -> Position {
        self.position
    }

    /// Returns the size of the mapping in bytes, a multiple of the page size.
    #[expect(clippy::len_without_is_empty)]
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns the address that userspace asks for, if it does.
    #[inline]
    pub fn hint(&self) -> Option<usize> {
        (self.addr != 0).then_some(self.addr)
    }

    /// Returns how userspace asks for the mapping.
    #[inline]
    pub fn flags(&self) -> Flags {
        // CAST: The flags of `mmap(2)` are those of an `int`.
        Flags(self.flags as u32 & Flags::all_bits())
    }

    /// Lets `core`, which is a `get_unmapped_area` of C, place the mapping.
    #[cfg(CONFIG_RUST_VFIO_PCI_ABSTRACTIONS)]
    #[inline]
    pub(super) fn by(
        self,
        core: impl FnOnce(*mut bindings::file, usize, usize, usize, usize) -> usize,
    ) -> Placement<'request> {
        Placement {
            addr: core(self.file, self.addr, self.len, self.pgoff, self.flags),
            _brand: PhantomData,
        }
    }

    /// Places the mapping wherever there is room.
    #[inline]
    pub fn anywhere(self) -> Placement<'request> {
        #[cfg(not(CONFIG_MMU))]
        match self.never {}

        #[cfg(CONFIG_MMU)]
        Placement {
            // SAFETY: By the type invariants, the arguments are those that mm gave to a file
            // operation, which are those that this function takes, and the operation is still
            // running: `file` is valid, and `current` has an address space, which is locked.
            addr: unsafe {
                bindings::mm_get_unmapped_area(
                    self.file, self.addr, self.len, self.pgoff, self.flags,
                )
            },
            _brand: PhantomData,
        }
    }

    /// Places the mapping at an address that is congruent with the physical one of the page frame
    /// `pfn`, which is the one that the mapping starts with.
    ///
    /// The driver vouches for nothing but what it has: that the memory which starts at the last
    /// multiple of 2^`order` pages before `pfn` is in one piece up to the next one. mm decides by
    /// which leaves it can be mapped, and places the mapping for them, or anywhere if there are
    /// none. What userspace asks for goes before.
    #[inline]
    pub fn congruent_to_pfn(self, pfn: usize, order: u32) -> Placement<'request> {
        #[cfg(not(CONFIG_MMU))]
        {
            let _ = (pfn, order);
            match self.never {}
        }

        #[cfg(CONFIG_MMU)]
        Placement {
            // SAFETY: By the type invariants, the first five arguments are those that mm gave to a
            // file operation, which are those that this function takes, and the operation is still
            // running: `file` is valid, and `current` has an address space, which is locked. `pfn`
            // and `order` may be any numbers: they influence the choice of the address only.
            addr: unsafe {
                bindings::mm_get_unmapped_area_order(
                    self.file, self.addr, self.len, self.pgoff, self.flags, pfn, order,
                )
            },
            _brand: PhantomData,
        }
    }

    /// As [`congruent_to_pfn`](Self::congruent_to_pfn), for a region that starts at a multiple of
    /// 2^`order` pages.
    #[inline]
    pub fn congruent_to_offset(self, order: u32) -> Placement<'request> {
        // CAST: On 32 bit machines this drops bits that are not in an address either.
        let pfn = (self.position.offset >> PAGE_SHIFT) as usize;
        self.congruent_to_pfn(pfn, order)
    }
}
