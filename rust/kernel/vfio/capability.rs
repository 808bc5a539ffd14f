// SPDX-License-Identifier: GPL-2.0-only

//! Chains of capabilities, by which userspace is told more of a device or a region.

use crate::{
    bindings,
    error::to_result,
    prelude::*, //
};

/// The size of what each capability starts with.
const HEADER: usize = size_of::<bindings::vfio_info_cap_header>();

/// Adds a capability at the end of a chain.
///
/// Fails with [`ENOMEM`].
///
/// # Safety
///
/// `caps` must be valid, and not be used by anyone else.
// What calls a function of VFIO is inlined: VFIO can be a module, and so is the driver then.
#[inline]
pub(super) unsafe fn add(
    caps: *mut bindings::vfio_info_cap,
    id: u16,
    version: u16,
    body: &[u8],
) -> Result {
    let size = HEADER.checked_add(body.len()).ok_or(ENOMEM)?;
    let mut capability = KVec::with_capacity(size, GFP_KERNEL)?;
    // The fields of `struct vfio_info_cap_header`.
    capability.extend_from_slice(&id.to_ne_bytes(), GFP_KERNEL)?;
    capability.extend_from_slice(&version.to_ne_bytes(), GFP_KERNEL)?;
    capability.extend_from_slice(&0u32.to_ne_bytes(), GFP_KERNEL)?;
    capability.extend_from_slice(body, GFP_KERNEL)?;

    // SAFETY: By the requirements of this function, `caps` is valid. `capability` starts with a
    // header, for which the allocator's alignment is sufficient, and has the size given. The C
    // function copies it.
    to_result(unsafe {
        bindings::vfio_info_add_capability(caps, capability.as_mut_ptr().cast(), capability.len())
    })
}
