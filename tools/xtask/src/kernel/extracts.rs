//! Code of the kernel, cut out of it and run with stubs in place of the rest: what has to hold for
//! all arguments, or without the hardware.
//!
//! The claim of the first patch of the placement, that THP places mappings as before, is checked by
//! running the code from before and after it side by side, see extracts/equivalence.c. What vfio-pci and
//! nvgrace-gpu state of a mapping is checked for devices of any kind, see extracts/regions.c.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, anyhow};
use fs_err as fs;

use crate::facts::{FACTS, Function};
use crate::host::{Ctx, cache, run};
use crate::series::Assembled;

const EQUIVALENCE: &str = include_str!("../../extracts/equivalence.c");
const REGIONS: &str = include_str!("../../extracts/regions.c");
/// Tried in about two seconds.
const MAPPINGS: &str = "10000000";

/// What a program says; an Err of it if it found something wrong.
pub type Said = std::result::Result<String, String>;

/// Whether THP places mappings as before.
pub fn equivalence(ctx: &Ctx, all: &Assembled) -> Result<Said> {
    let dir = cache::fresh(&ctx.cache.path("thp"))?;
    let before = |path: &str| {
        let source = all.base.repo.blob(&all.base.commit, path)?;
        Ok(String::from_utf8_lossy(&source).into_owned())
    };
    fs::write(dir.join("old.h"), cut(&FACTS.extracts.before, &before)?)?;
    fs::write(
        dir.join("new.h"),
        cut(&FACTS.extracts.after, &|path| source(all, path))?,
    )?;
    run(&dir, EQUIVALENCE)
}

/// Whether drivers state of their regions what is in them.
pub fn regions(ctx: &Ctx, all: &Assembled) -> Result<Said> {
    let dir = cache::fresh(&ctx.cache.path("regions"))?;
    fs::write(
        dir.join("regions.h"),
        cut(&FACTS.extracts.stated, &|path| source(all, path))?,
    )?;
    run(&dir, REGIONS)
}

/// A file as it is in the worktree of the series.
fn source(all: &Assembled, path: &str) -> Result<String> {
    Ok(fs::read_to_string(all.tree.dir.join(path))?)
}

fn run(dir: &Path, text: &str) -> Result<Said> {
    let (program, code) = (dir.join("program"), dir.join("program.c"));
    fs::write(&code, text)?;
    let mut cc = Command::new("cc");
    run::output(cc.args(["-O2", "-o"]).args([&program, &code]))?;
    let out = run::finish(Command::new(&program).arg(MAPPINGS), b"")?;
    let said = String::from_utf8_lossy(&out.stdout).trim().to_owned();
    Ok(match out.status.success() {
        true => Ok(said),
        false => Err(format!("{said} ({})", out.status)),
    })
}

/// The functions, out of what `source` has for their files.
fn cut(functions: &[Function], source: &dyn Fn(&str) -> Result<String>) -> Result<String> {
    let mut code = String::new();
    for (path, function) in functions {
        code += definition(&source(path)?, function)
            .ok_or_else(|| anyhow!("{path} does not define {function}()"))?;
    }
    Ok(code)
}

/// The definition of a function, in kernel style: it starts and ends in the first column.
fn definition<'a>(source: &'a str, function: &str) -> Option<&'a str> {
    let call = format!("{function}(");
    let mut start = 0;
    while let Some(found) = source[start..].find(&call) {
        let at = start + found;
        let line = source[..at].rfind('\n').map_or(0, |newline| newline + 1);
        let rest = &source[line..];
        let named = source[..at].ends_with([' ', '*']);
        let in_first_column = rest.starts_with(|c: char| c.is_ascii_alphabetic());
        let declares = rest.find(';').unwrap_or(rest.len()) < rest.find('{').unwrap_or(0);
        if named && in_first_column && !declares {
            return rest.find("\n}\n").map(|end| &rest[..end + 3]);
        }
        start = at + call.len();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_definition_is_neither_a_declaration_nor_a_call() {
        let source = "int f(int a);\n\nint g(void)\n{\n\treturn f(1) + xf(2);\n}\n\nstatic int f(int a,\n\t\tint b)\n{\n\tif (a) {\n\t}\n\treturn 0;\n}\nint h;\n";
        assert_eq!(
            definition(source, "f"),
            Some("static int f(int a,\n\t\tint b)\n{\n\tif (a) {\n\t}\n\treturn 0;\n}\n")
        );
        assert_eq!(definition(source, "x"), None);
    }
}
