//! How large a driver in Rust is, next to the one in C that does the same.

use std::path::Path;
use std::process::Command;

use miette::{Result, miette};

use crate::host::run;
use crate::kernel::{Kernel, VM};
use crate::machine::plan::MODULES;

/// How many per cent of the other one's size it may have.
const LIMIT: u64 = 130;

/// Compares the modules of the virtual machine's kernel; returns what was found.
pub fn compare(kernel: &Kernel<'_>) -> Result<String> {
    let out = kernel.out(&VM);
    let [rust, c] = MODULES.map(|module| size(kernel, &out.join(module)));
    let (rust, c) = (rust?, c?);
    let text = format!(
        "{} has {rust} bytes of text, {} has {c}",
        MODULES[0], MODULES[1]
    );
    if rust * 100 > c * LIMIT {
        return Err(miette!("{text}: that is more than {LIMIT} %"));
    }
    Ok(text)
}

fn size(kernel: &Kernel<'_>, module: &Path) -> Result<u64> {
    let printed = run::output(Command::new(kernel.toolchain.size()).arg(module))?;
    text(&printed).ok_or_else(|| miette!("llvm-size does not tell the size: {printed}"))
}

/// The first column below the headings.
fn text(printed: &str) -> Option<u64> {
    printed
        .lines()
        .nth(1)?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_column_is_text() {
        let printed = "   text\t   data\t    bss\n   2537\t   1088\t    304\tx.ko\n";
        assert_eq!(text(printed), Some(2537));
        assert_eq!(text("no such file\n"), None);
    }
}
