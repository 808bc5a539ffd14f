// SPDX-License-Identifier: GPL-2.0-only

//! KUnit tests that register devices and reach them as userspace does: through the files, the
//! system calls' file operations and the C core of VFIO.

use super::{
    dma,
    emulated::{
        self,
        Registration, //
    },
    feature,
    info,
    ioctl,
    irq,
    pins::Pinned,
    placement,
    region,
    vtable::VTable,
    *, //
};
#[cfg(any(CONFIG_X86_64, not(CONFIG_ARCH_HAS_SYSCALL_WRAPPER)))]
use crate::eventfd::userspace::EventFd;
use crate::{
    bindings,
    error::from_err_ptr,
    faux,
    new_mutex,
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*,
    sizes::*,
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        Completion,
        Mutex, //
    },
    uaccess::UserPtr, //
};
use core::ptr::null_mut;

mod access;
mod dma_pins;
mod driver;
mod irqs;
mod lifetimes;
mod mappings;
mod userspace;

use self::{
    driver::*,
    userspace::*, //
};
