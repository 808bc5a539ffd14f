//! `cargo xtask test --each`: builds what each commit touches, one commit after the other.

use std::path::Path;

use anyhow::{Result, bail};

use super::report::Report;
use crate::facts::{Config, FACTS};
use crate::host::Ctx;
use crate::host::toolchain::{Purpose, Toolchain};
use crate::kernel::Kernel;
use crate::series::Assembled;

pub fn each(ctx: &Ctx, base: Option<&Path>) -> Result<()> {
    let all = Assembled::on(ctx, base)?;
    let purposes = [Purpose::Build, Purpose::Vm, Purpose::Cross];
    let toolchain = Toolchain::open(ctx, &all.tree, &purposes)?;
    let mut report = Report::default();
    for made in &all.made {
        // A worktree and object trees of their own, so that those of the tip stay up to date.
        let place = all.base.dir.join("each");
        let tree = all.base.repo.worktree(&place, &made.id)?;
        let kernel = Kernel {
            ctx,
            toolchain: &toolchain,
            tree: &tree,
            objects: all.base.dir.join("obj-each"),
            whole: false,
        };
        let changed = tree.changed(&made.parent, &made.id)?;
        for config in std::iter::once(FACTS.vm()).chain(FACTS.compiled()) {
            let targets = touched(&changed, config);
            if targets.is_empty() {
                continue;
            }
            let (name, list) = (format!("{} {}", made.name, config.name), targets.join(" "));
            ctx.ui.step(format!("{name}: {list}"));
            let configured = kernel.configure(config);
            let result = configured.and_then(|()| kernel.build(config, &targets));
            report.check("each", &name, result);
        }
        let selftests = "tools/testing/selftests/vfio/";
        if changed.iter().any(|path| path.starts_with(selftests)) {
            let name = format!("{} selftests", made.name);
            report.check("each", &name, kernel.selftests());
        }
    }
    print!("{}", report.render());
    match report.failed() {
        0 => Ok(()),
        n => bail!("{n} builds failed"),
    }
}

/// What to build of a configuration for a commit: the directories that it touches.
fn touched<'a>(changed: &[String], config: &'a Config) -> Vec<&'a str> {
    let below = |part: &str| changed.iter().any(|path| path.starts_with(part));
    // What includes a header may be in any of them.
    let all = below("include/");
    let parts = config.parts.iter().map(String::as_str);
    parts.filter(|part| all || below(part)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_of_a_commit() {
        let touched = |path: &str| touched(&[path.to_owned()], FACTS.vm());
        assert!(touched("Documentation/a.rst").is_empty());
        assert!(touched("tools/testing/selftests/mm/a.c").is_empty());
        assert_eq!(touched("mm/mmap.c"), ["mm/"]);
        assert_eq!(touched("drivers/vfio/pci/Kconfig"), ["drivers/vfio/"]);
        assert_eq!(touched("include/linux/vfio.h"), FACTS.vm().parts);
    }
}
