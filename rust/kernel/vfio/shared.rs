// SPDX-License-Identifier: GPL-2.0-only

//! Access to memory that userspace can change at the same time.
//!
//! All accesses are volatile: the compiler neither repeats one nor assumes that it gives the same
//! as the one before. What is read while userspace writes is a mixture of old and new bytes.

/// The unit in which memory is copied where its alignment allows it.
const WORD: usize = size_of::<usize>();

/// Copies `len` bytes from `src`, which userspace may write to meanwhile, to `dst`.
///
/// # Safety
///
/// `src` must be valid for reads of `len` bytes, and `dst` for writes. They must not overlap.
pub(super) unsafe fn read(mut src: *const u8, mut dst: *mut u8, mut len: usize) {
    while len > 0 {
        let step = if src.addr() % WORD == 0 && len >= WORD {
            // SAFETY: There are `WORD` bytes left, and `src` is aligned.
            let word = unsafe { src.cast::<usize>().read_volatile() };
            // SAFETY: There are `WORD` bytes left.
            unsafe { dst.cast::<usize>().write_unaligned(word) };
            WORD
        } else {
            // SAFETY: There is a byte left.
            unsafe { dst.write(src.read_volatile()) };
            1
        };
        src = src.wrapping_add(step);
        dst = dst.wrapping_add(step);
        len -= step;
    }
}

/// Copies `len` bytes from `src` to `dst`, which userspace may read and write meanwhile.
///
/// # Safety
///
/// `src` must be valid for reads of `len` bytes, and `dst` for writes. They must not overlap.
pub(super) unsafe fn write(mut src: *const u8, mut dst: *mut u8, mut len: usize) {
    while len > 0 {
        let step = if dst.addr() % WORD == 0 && len >= WORD {
            // SAFETY: There are `WORD` bytes left.
            let word = unsafe { src.cast::<usize>().read_unaligned() };
            // SAFETY: There are `WORD` bytes left, and `dst` is aligned.
            unsafe { dst.cast::<usize>().write_volatile(word) };
            WORD
        } else {
            // SAFETY: There is a byte left.
            unsafe { dst.write_volatile(src.read()) };
            1
        };
        src = src.wrapping_add(step);
        dst = dst.wrapping_add(step);
        len -= step;
    }
}

/// Overwrites `len` bytes at `dst`, which userspace may read and write meanwhile, with zeroes.
///
/// # Safety
///
/// `dst` must be valid for writes of `len` bytes, be aligned to a word, and `len` must be a
/// multiple of the size of one.
pub(super) unsafe fn clear(dst: *mut u8, len: usize) {
    for offset in (0..len).step_by(WORD) {
        // SAFETY: By the requirements of this function, the word is within what `dst` is valid for.
        unsafe { dst.byte_add(offset).cast::<usize>().write_volatile(0) };
    }
}
