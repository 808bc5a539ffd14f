//! `cargo xtask test`: everything that can be said about the series on this machine, counted.

pub mod bench;
pub mod compile_fail;
pub mod ktap;
pub mod kunit;
pub mod mutate;
pub mod parity;
pub mod report;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use miette::{IntoDiagnostic, Result, miette};

use crate::host::Ctx;
use crate::host::cache;
use crate::host::toolchain::{Purpose, Toolchain};
use crate::kernel::extracts;
use crate::kernel::size;
use crate::kernel::{COMPILE, Config, DEBUG, Kernel, VM};
use crate::machine::plan::{self, Item, Machine};
use crate::machine::{self, Vm};
use crate::series::Assembled;
use crate::series::assembled;
use crate::series::assembly;
use crate::series::b4;
use crate::series::export;
use crate::series::overlay::Series;
use crate::verdict::kunit::Leg;
use crate::verdict::parity::Parity;
use crate::verdict::report::{Outcome, Report};

/// The stages in their order.
const STAGES: [&str; 10] = [
    "unit",
    "overlay",
    "series",
    "thp",
    "regions",
    "build",
    "compile-fail",
    "compile",
    "kunit",
    "vm",
];

/// What `--only` leaves.
struct Selection<'a>(Option<&'a str>);

impl Selection<'_> {
    fn stage(&self, stage: &str) -> bool {
        self.0.is_none_or(|only| only == stage)
    }

    fn test(&self, stage: &str, label: &str) -> bool {
        self.stage(stage)
            || self
                .0
                .is_some_and(|only| only == label || label.split('/').any(|part| part == only))
    }

    /// A name that selects nothing is found out before anything is built for it.
    fn must_match(&self, all: &Assembled) -> Result<()> {
        let sources = all.tree.dir.join("tools/testing/selftests/vfio");
        let items = plan::items(&machine::programs(&sources, "_test.c")?);
        let known = STAGES.iter().any(|stage| self.stage(stage))
            || COMPILE
                .iter()
                .any(|config| self.test("compile", config.name))
            || kunit::LEGS.iter().any(|leg| self.test("kunit", leg.name))
            || items.iter().any(|item| self.test("vm", &item.label()));
        match self.0 {
            Some(only) if !known => Err(miette!(
                help = format!(
                    "name a stage ({}) or a test as the summary names it",
                    STAGES.join(", ")
                ),
                "--only {only} selects no test"
            )),
            _ => Ok(()),
        }
    }
}

pub fn test(ctx: &Ctx, base: Option<&Path>, only: Option<&str>) -> Result<()> {
    let select = Selection(only);
    let mut report = Report::default();
    if select.stage("unit") {
        unit(ctx, &mut report)?;
    }
    if STAGES[1..].iter().any(|stage| select.stage(stage))
        || only.is_some_and(|only| !STAGES.contains(&only))
    {
        // What keeps the stages from running is a failure like any other, and is counted.
        if let Err(error) = kernel_stages(ctx, base, &select, &mut report) {
            report.check::<()>("setup", "what the stages stand on", Err(error));
        }
    }
    print!("{}", report.render());
    match report.failed() {
        0 => Ok(()),
        // The last line has said it.
        _ => std::process::exit(1),
    }
}

/// The series on its base, checked on the way if it is selected; None if there is none.
fn overlay(
    ctx: &Ctx,
    base: Option<&Path>,
    select: &Selection<'_>,
    report: &mut Report,
) -> Result<Option<Assembled>> {
    if !select.stage("overlay") {
        return assembled(ctx, base).map(Some);
    }
    let read = Series::read(&ctx.root);
    if report
        .check("overlay", "every path in exactly one commit", read)
        .is_none()
    {
        return Ok(None);
    }
    let made = assembled(ctx, base);
    let Some(all) = report.check("overlay", "every commit can be made", made) else {
        return Ok(None);
    };
    report.check(
        "overlay",
        "the same input gives the same trees",
        again(&all),
    );
    Ok(Some(all))
}

/// Everything that needs the series on its base.
fn kernel_stages(
    ctx: &Ctx,
    base: Option<&Path>,
    select: &Selection<'_>,
    report: &mut Report,
) -> Result<()> {
    let Some(all) = overlay(ctx, base, select, report)? else {
        return Ok(());
    };
    if select.stage("series") {
        series(ctx, &all, report)?;
    }
    for (stage, name, program) in [
        (
            "thp",
            "THP places mappings as before",
            extracts::equivalence as fn(&Ctx, &Assembled) -> Result<extracts::Said>,
        ),
        (
            "regions",
            "drivers state what is in their regions",
            extracts::regions,
        ),
    ] {
        if !select.stage(stage) {
            continue;
        }
        let said = program(ctx, &all).and_then(|said| said.map_err(|wrong| miette!("{wrong}")));
        if let Some(said) = report.check(stage, name, said) {
            report.note(format!("{stage}: {said}"));
        }
    }
    select.must_match(&all)?;
    builds(ctx, &all, select, report)
}

/// Everything that needs a compiler.
fn builds(ctx: &Ctx, all: &Assembled, select: &Selection<'_>, report: &mut Report) -> Result<()> {
    let compile: Vec<&Config> = COMPILE
        .iter()
        .filter(|config| select.test("compile", config.name))
        .collect();
    let legs: Vec<&Leg> = kunit::LEGS
        .iter()
        .filter(|leg| select.test("kunit", leg.name))
        .collect();
    // What names nothing else is a test in the virtual machine.
    let wants_vm = select.0.is_none_or(|only| {
        only == "vm" || !STAGES.contains(&only) && compile.is_empty() && legs.is_empty()
    });
    let build = select.stage("build") || select.stage("compile-fail") || wants_vm;
    let wanted = [
        (
            Purpose::Build,
            build || !compile.is_empty() || !legs.is_empty(),
        ),
        (Purpose::Kunit, !legs.is_empty()),
        (Purpose::Foreign, legs.iter().any(|leg| leg.foreign())),
        (Purpose::Vm, build),
        (
            Purpose::Cross,
            compile.iter().any(|config| config.arch == "sh"),
        ),
    ];
    let purposes: Vec<Purpose> = wanted
        .into_iter()
        .filter_map(|(purpose, wanted)| wanted.then_some(purpose))
        .collect();
    if purposes.is_empty() {
        return Ok(());
    }
    let toolchain = Toolchain::open(ctx, &all.tree, &purposes)?;
    let kernel = Kernel::new(ctx, &toolchain, all);
    let built = match build {
        true => built(&kernel, select, report)?,
        false => None,
    };
    if select.stage("compile-fail") && built.is_some() {
        ctx.ui.step("compiling programs that are to be refused");
        compile_fail::run(&kernel, &all.series, report)?;
    }
    for config in compile {
        ctx.ui
            .step(format!("compiling mm and drivers/vfio for {}", config.name));
        let result = kernel
            .configure(config)
            .and_then(|()| kernel.build(config, config.targets));
        report.check("compile", config.name, result);
    }
    for leg in legs {
        ctx.ui.step(format!("KUnit: {}", leg.name));
        kunit::run(&kernel, leg, report)?;
    }
    if let (Some((image, tests)), true) = (built, wants_vm) {
        machines(&Vm::new(&kernel, image, tests), select, report)?;
    }
    Ok(())
}

fn built(
    kernel: &Kernel<'_>,
    select: &Selection<'_>,
    report: &mut Report,
) -> Result<Option<(PathBuf, PathBuf)>> {
    kernel
        .ctx
        .ui
        .step("building the kernels of the virtual machine, and the selftests");
    let (image, tests) = (kernel.vm(), kernel.selftests());
    let debug = match &tests {
        Ok(tests) => selected(select, &machine::programs(tests, "_test")?)
            .iter()
            .any(|item| item.variant.config.name == DEBUG.name),
        Err(_) => false,
    };
    if debug {
        report.check(
            "build",
            "kernel that checks itself",
            kernel.bootable(&DEBUG),
        );
    }
    if !select.stage("build") {
        return Ok(Some((image?, tests?)));
    }
    let image = report.check("build", "kernel of the virtual machine", image);
    if image.is_some()
        && let Some(found) =
            report.check("build", "text size in Rust and in C", size::compare(kernel))
    {
        report.note(found);
    }
    let tests = report.check("build", "selftests", tests);
    Ok(image.zip(tests))
}

/// xtask's own unit tests, by their names.
fn unit(ctx: &Ctx, report: &mut Report) -> Result<()> {
    ctx.ui.step("unit tests of xtask");
    let out = Command::new("cargo")
        .args([
            "test",
            "--quiet",
            "--release",
            "--locked",
            "--manifest-path",
        ])
        .arg(ctx.root.join("tools/xtask/Cargo.toml"))
        .args(["--", "--format=pretty"])
        .output()
        .into_diagnostic()?;
    let text = String::from_utf8_lossy(&out.stdout);
    let before = report.failed();
    let mut seen = false;
    for line in text.lines() {
        let Some((name, verdict)) = line
            .strip_prefix("test ")
            .and_then(|line| line.split_once(" ... "))
        else {
            continue;
        };
        let outcome = match verdict {
            "ok" => Outcome::Passed,
            _ => Outcome::Failed(format!("see `cargo test {name}` in tools/xtask")),
        };
        report.add("unit", "xtask", name, outcome);
        seen = true;
    }
    if !out.status.success() && report.failed() == before || !seen {
        let why = String::from_utf8_lossy(&out.stderr).trim().to_owned();
        report.add("unit", "xtask", "(the tests)", Outcome::Failed(why));
    }
    Ok(())
}

/// Makes the commits a second time and compares the trees.
fn again(all: &Assembled) -> Result<()> {
    let second = assembly::assemble(&all.base, &all.series, &all.identity)?;
    for (one, other) in all.made.iter().zip(&second) {
        if all.base.repo.tree(&one.id)? != all.base.repo.tree(&other.id)? {
            return Err(miette!("series/{} gave two different trees", one.name));
        }
    }
    Ok(())
}

/// The export, checked and proven as `series` does, and what b4 makes of it.
fn series(ctx: &Ctx, all: &Assembled, report: &mut Report) -> Result<()> {
    ctx.ui.step("exporting, checking and proving the series");
    let out = cache::fresh(&ctx.cache.path("series"))?;
    let exported = export::export(ctx, all, &out);
    let Some(exported) = report.check("series", "git format-patch", exported) else {
        return Ok(());
    };
    for patch in export::check(all, &exported)? {
        let (errors, others): (Vec<String>, Vec<String>) = patch
            .complaints
            .iter()
            .cloned()
            .partition(|line| export::is_error(line));
        let outcome = match errors.into_iter().next() {
            None => Outcome::Passed,
            Some(first) => Outcome::Failed(first),
        };
        let name = patch.name();
        report.add("series", "rustfmt and checkpatch --strict", &name, outcome);
        for complaint in others {
            report.note(format!("{name}: {complaint}"));
        }
    }
    report.check(
        "series",
        "git am of the export",
        export::prove(ctx, all, &exported),
    );
    b4::check(ctx, all, &exported, report)
}

fn selected(select: &Selection<'_>, programs: &[String]) -> Vec<Item> {
    let mut items = plan::items(programs);
    items.retain(|item| select.test("vm", &item.label()));
    items
}

/// One test in the virtual machine, as the summary names it.
pub fn one(vm: &Vm<'_>, label: &str, report: &mut Report) -> Result<()> {
    machines(vm, &Selection(Some(label)), report)
}

fn machines(vm: &Vm<'_>, select: &Selection<'_>, report: &mut Report) -> Result<()> {
    let programs = machine::programs(&vm.tests, "_test")?;
    let machines = plan::deal(selected(select, &programs));
    for machine in &machines {
        vm.ctx.ui.step(format!(
            "virtual machine `{}`: {} selftests, the devices bound to {}",
            machine.name,
            machine.items.len(),
            machine.driver
        ));
    }
    // Two at a time, each of which keeps a processor busy at most.
    let next = AtomicUsize::new(0);
    let mut ended: Vec<(usize, Result<machine::Finished>)> = std::thread::scope(|scope| {
        let run = || -> Vec<_> {
            std::iter::from_fn(|| {
                let index = next.fetch_add(1, Ordering::Relaxed);
                Some((index, vm.run(machines.get(index)?, "")))
            })
            .collect()
        };
        let running = [scope.spawn(run), scope.spawn(run)];
        running
            .into_iter()
            .flat_map(|thread| thread.join().expect("a machine's thread does not panic"))
            .collect()
    });
    ended.sort_by_key(|(index, _)| *index);
    let mut parity = Parity::default();
    for (machine, (_, finished)) in machines.iter().zip(ended) {
        let name = format!("machine `{}`", machine.name);
        if let Some(finished) = report.check("vm", &name, finished) {
            read(machine, &finished, &mut parity, report);
            let clean = machine::clean(&finished.console);
            report.add("vm", &name, "no warning in the kernel's log", clean);
        }
    }
    parity.report(report);
    Ok(())
}

/// Reports what the programs of a machine printed.
fn read(machine: &Machine, finished: &machine::Finished, parity: &mut Parity, report: &mut Report) {
    let runs = ktap::runs(&finished.results);
    for item in &machine.items {
        let label = item.label();
        let Some(run) = runs.iter().find(|run| run.label == label) else {
            let why = Outcome::Failed("it was not run".to_owned());
            report.add("vm", &label, "(the program)", why);
            continue;
        };
        for (case, outcome) in ktap::cases(run) {
            parity.add(item, &case, &outcome);
            report.add("vm", &label, &case, outcome);
        }
        // Those of a kernel that checks itself say nothing.
        for figure in ktap::figures(run)
            .iter()
            .filter(|_| machine.variant.slow == 1)
        {
            report.note(format!("{label}: {figure}"));
        }
    }
}

/// Builds what each commit touches, one commit after the other.
pub fn each(ctx: &Ctx, base: Option<&Path>) -> Result<()> {
    let all = assembled(ctx, base)?;
    let toolchain = Toolchain::open(
        ctx,
        &all.tree,
        &[Purpose::Build, Purpose::Vm, Purpose::Cross],
    )?;
    let mut report = Report::default();
    for made in &all.made {
        // A worktree and object trees of their own, so that those of the tip stay up to date.
        let tree = all
            .base
            .repo
            .worktree("each", &all.base.dir.join("each"), &made.id)?;
        let kernel = Kernel {
            ctx,
            toolchain: &toolchain,
            tree: &tree,
            objects: all.base.dir.join("obj-each"),
            whole: false,
        };
        let changed = tree.changed(&made.parent, &made.id)?;
        for config in std::iter::once(&VM).chain(COMPILE) {
            let targets = touched(&changed, config);
            if targets.is_empty() {
                continue;
            }
            ctx.ui.step(format!(
                "{}: {} for {}",
                made.name,
                targets.join(" "),
                config.name
            ));
            let result = kernel
                .configure(config)
                .and_then(|()| kernel.build(config, &targets));
            report.check("each", &format!("{} {}", made.name, config.name), result);
        }
        if changed
            .iter()
            .any(|path| path.starts_with("tools/testing/selftests/vfio/"))
        {
            report.check(
                "each",
                &format!("{} selftests", made.name),
                kernel.selftests(),
            );
        }
    }
    print!("{}", report.render());
    match report.failed() {
        0 => Ok(()),
        n => Err(miette!("{n} builds failed")),
    }
}

/// What to build of a configuration for a commit: the directories that it touches.
fn touched(changed: &[String], config: &Config) -> Vec<&'static str> {
    let parts = config.parts.iter().copied();
    let below = |part: &str| changed.iter().any(|path| path.starts_with(part));
    // What includes a header may be in any of them.
    let all = below("include/");
    parts.filter(|part| all || below(part)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selection_by_stage_and_by_test() {
        let all = Selection(None);
        assert!(all.stage("vm") && all.test("vm", "igb/a"));
        let stage = Selection(Some("vm"));
        assert!(stage.stage("vm") && !stage.stage("unit") && stage.test("vm", "igb/a"));
        let test = Selection(Some("a"));
        assert!(!test.stage("vm") && test.test("vm", "igb/a") && !test.test("vm", "igb/b"));
        assert!(Selection(Some("igb/a")).test("vm", "igb/a"));
        assert!(Selection(Some("igb")).test("vm", "igb/a"));
    }

    #[test]
    fn directories_of_a_commit() {
        let touched = |path: &str| touched(&[path.to_owned()], &VM);
        assert!(touched("Documentation/a.rst").is_empty());
        assert!(touched("tools/testing/selftests/mm/a.c").is_empty());
        assert_eq!(touched("mm/mmap.c"), ["mm/"]);
        assert_eq!(touched("drivers/vfio/pci/Kconfig"), ["drivers/vfio/"]);
        assert_eq!(touched("include/linux/vfio.h"), VM.parts);
    }
}
