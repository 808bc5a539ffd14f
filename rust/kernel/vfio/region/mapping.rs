// SPDX-License-Identifier: GPL-2.0-only

//! Mappings of regions by userspace.

use super::Position;
use crate::{
    bindings,
    error::to_result,
    mm::virt::{
        flags,
        VmaNew, //
    },
    prelude::*, //
};
use core::marker::PhantomData;

/// A lifetime that can neither be shortened nor extended, and so stands for one request only.
type Brand<'request> = PhantomData<fn(&'request ()) -> &'request ()>;

/// A part of a region that userspace wants to map.
///
/// It is answered once, by value: what maps something takes it, and returns a [`Mapped`]. If that
/// fails, what is left is the error, and mm undoes what was done of the mapping.
///
/// ```
/// # use kernel::{prelude::*, vfio::{region::{Mapped, Mapping}, Memory}};
/// /// Maps `memory` for those who only want to read it.
/// fn map<'request>(memory: &Memory, mapping: Mapping<'request>) -> Result<Mapped<'request>> {
///     mapping.forbid_write()?;
///     memory.map(mapping)
/// }
/// ```
pub struct Mapping<'request> {
    vma: &'request VmaNew,
    position: Position,
    _brand: Brand<'request>,
}

/// The answer to a [`Mapping`]: it is mapped.
///
/// Only what has mapped something makes one, and only for that mapping.
///
/// ```
/// # use kernel::{prelude::*, vfio::{region::{Mapped, Mapping}, Memory}};
/// fn map<'request>(memory: &Memory, mapping: Mapping<'request>) -> Result<Mapped<'request>> {
///     memory.map(mapping)
/// }
/// ```
///
/// One that is made up is refused:
///
/// ```ignore,compile_fail,E0451
/// # use core::marker::PhantomData;
/// # use kernel::{prelude::*, vfio::region::{Mapped, Mapping}};
/// fn map<'request>(_mapping: Mapping<'request>) -> Result<Mapped<'request>> {
///     Ok(Mapped { _brand: PhantomData })
/// }
/// ```
///
/// and so is the one for another mapping:
///
/// ```ignore,compile_fail
/// # use kernel::{prelude::*, vfio::{region::{Mapped, Mapping}, Memory}};
/// fn map<'a, 'b>(memory: &Memory, a: Mapping<'a>, b: Mapping<'b>) -> Result<Mapped<'a>> {
///     memory.map(b)
/// }
/// ```
#[must_use]
pub struct Mapped<'request> {
    _brand: Brand<'request>,
}

impl<'request> Mapping<'request> {
    #[inline]
    pub(in super::super) fn new(vma: &'request VmaNew) -> Self {
        // SAFETY: The reference to `VmaNew` shows that the vma is valid and that it is being set
        // up, during which only its caller changes it.
        let pages = unsafe { (*vma.as_ptr()).vm_pgoff };

        Self {
            vma,
            position: Position::from_pages(pages),
            _brand: PhantomData,
        }
    }

    /// Returns where in the regions of the device the mapping starts, at a multiple of the page
    /// size.
    #[inline]
    pub fn position(&self) -> Position {
        self.position
    }

    /// Returns the size of the mapping in bytes, a multiple of the page size.
    #[expect(clippy::len_without_is_empty)]
    #[inline]
    pub fn len(&self) -> usize {
        self.vma.end() - self.vma.start()
    }

    /// Returns whether what is written to the mapping is seen by others (`MAP_SHARED`).
    #[inline]
    pub fn is_shared(&self) -> bool {
        self.vma.flags() & flags::SHARED != 0
    }

    /// Makes sure that the mapping is never written to, also not after `mprotect(2)`.
    ///
    /// Fails with [`EINVAL`] if it can be written to already.
    #[inline]
    pub fn forbid_write(&self) -> Result {
        self.vma.try_clear_maywrite()
    }

    /// Lets `map`, a function of C, answer the mapping. It returns 0 or an errno.
    #[inline]
    pub(in super::super) fn answer(
        self,
        map: impl FnOnce(*mut bindings::vm_area_struct) -> c_int,
    ) -> Result<Mapped<'request>> {
        to_result(map(self.vma.as_ptr()))?;
        Ok(Mapped {
            _brand: PhantomData,
        })
    }
}
