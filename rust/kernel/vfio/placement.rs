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
    page::PAGE_SHIFT, //
};
use core::marker::PhantomData;

/// A lifetime that can neither be shortened nor extended, and so stands for one search only.
type Brand<'request> = PhantomData<fn(&'request ()) -> &'request ()>;

/// The search for an unmapped area, for a mapping that does not exist yet.
///
/// Without an MMU there is no choice of places, and no value of this type.
///
/// A search is valid during the call that it is given to. Within that it can be put anywhere
///
/// ```
/// # use kernel::vfio::placement::Search;
/// fn keep<'request>(search: Search<'request>, kept: &mut Option<Search<'request>>) {
///     *kept = Some(search);
/// }
/// ```
///
/// but not where it would stay:
///
/// ```ignore,compile_fail
/// # use kernel::vfio::placement::Search;
/// fn keep<'request>(search: Search<'request>, kept: &mut Option<Search<'static>>) {
///     *kept = Some(search);
/// }
/// ```
///
/// # Invariants
///
/// `file`, `addr`, `len`, `pgoff` and `flags` are the arguments of a `get_unmapped_area` file
/// operation that is running on this task.
#[cfg_attr(not(CONFIG_MMU), expect(dead_code))]
pub struct Search<'request> {
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

/// The result of a [`Search`]: an address that mm found, or why it found none.
///
/// Only the search can make it, and it is the result of no other.
///
/// ```
/// # use kernel::vfio::placement::{Placement, Search};
/// fn place<'request>(search: Search<'request>) -> Placement<'request> {
///     search.anywhere()
/// }
/// ```
///
/// An address of the driver's own is not a result:
///
/// ```ignore,compile_fail,E0451
/// # use core::marker::PhantomData;
/// # use kernel::vfio::placement::{Placement, Search};
/// fn place<'request>(_search: Search<'request>) -> Placement<'request> {
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

impl<'request> Search<'request> {
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

    /// Returns the address that userspace would like best, if it said one.
    #[inline]
    pub fn hint(&self) -> Option<usize> {
        (self.addr != 0).then_some(self.addr)
    }

    /// Lets `core`, a `get_unmapped_area` of C, place the mapping.
    #[cfg(CONFIG_RUST_VFIO_PCI_ABSTRACTIONS)]
    #[inline]
    pub(super) fn forward(
        self,
        core: impl FnOnce(*mut bindings::file, usize, usize, usize, usize) -> usize,
    ) -> Placement<'request> {
        Placement {
            addr: core(self.file, self.addr, self.len, self.pgoff, self.flags),
            _brand: PhantomData,
        }
    }

    /// Places the mapping where mm would place any other.
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
    /// `order` says what the memory is like around `pfn`: that the 2^`order` pages between the two
    /// multiples of 2^`order` pages next to it are in one piece. mm decides by which leaves it can
    /// be mapped, and places the mapping for them, or anywhere if there are none. The address that
    /// userspace would like best comes first.
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
