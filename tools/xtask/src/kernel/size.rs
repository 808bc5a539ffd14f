//! How large a driver in Rust is, next to the one in C that does the same.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, anyhow, bail};

use super::Kernel;
use crate::facts::{FACTS, Size};
use crate::host::run;

/// Compares the modules of the virtual machine's kernel; returns what was found.
pub fn compare(kernel: &Kernel<'_>) -> Result<String> {
    let Size { rust, c, percent } = &FACTS.size;
    let out = kernel.out(FACTS.vm());
    let (ours, theirs) = (size(kernel, &out.join(rust))?, size(kernel, &out.join(c))?);
    let text = format!("{rust} has {ours} bytes of text, {c} has {theirs}");
    if ours * 100 > theirs * percent {
        bail!("{text}: that is more than {percent} %");
    }
    Ok(text)
}

fn size(kernel: &Kernel<'_>, module: &Path) -> Result<u64> {
    let printed = run::output(Command::new(kernel.toolchain.size()).arg(module))?;
    text(&printed).ok_or_else(|| anyhow!("llvm-size does not tell the size: {printed}"))
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
