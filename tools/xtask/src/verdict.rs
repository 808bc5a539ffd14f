//! `cargo xtask test`: everything that can be said about the series on this machine, counted.

pub mod bench;
mod compile_fail;
pub mod each;
mod ktap;
mod kunit;
mod machines;
pub mod mutate;
mod parity;
mod report;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, anyhow, bail};

use self::report::{Outcome, Report};
use crate::facts::{Config, FACTS, Leg};
use crate::host::toolchain::{self, Purpose, Toolchain};
use crate::host::{Ctx, cache, run};
use crate::kernel::{Kernel, extracts, size};
use crate::machine::plan::{self, Item};
use crate::machine::{self, Vm};
use crate::series::b4::B4;
use crate::series::overlay::Series;
use crate::series::{Assembled, assembly, export};

/// The stages in their order, and what the summary calls their tests where that does not depend on
/// anything else.
const STAGES: [(&str, &[&str]); 10] = [
    ("unit", &["xtask"]),
    ("overlay", &[COMPLETE, MADE, AGAIN]),
    ("series", &[FORMAT, CHECKPATCH, AM, "b4"]),
    ("thp", &[THP]),
    ("regions", &[REGIONS]),
    ("build", &[IMAGE, DEBUG, SIZE, SELFTESTS]),
    ("compile-fail", &[compile_fail::SAMPLES]),
    ("compile", &[]),
    ("kunit", &[]),
    ("vm", &["parity"]),
];
const COMPLETE: &str = "every path in exactly one commit";
const MADE: &str = "every commit can be made";
const AGAIN: &str = "the same input gives the same trees";
const FORMAT: &str = "git format-patch";
const CHECKPATCH: &str = "rustfmt and checkpatch --strict";
const AM: &str = "git am of the export";
const THP: &str = "THP places mappings as before";
const REGIONS: &str = "drivers state what is in their regions";
const IMAGE: &str = "kernel of the virtual machine";
const DEBUG: &str = "kernel that checks itself";
const SIZE: &str = "text size in Rust and in C";
const SELFTESTS: &str = "selftests";

/// What `--only` leaves: a stage, and of it a test, if it names one.
struct Selection<'a> {
    stage: Option<&'static str>,
    name: Option<&'a str>,
}

impl<'a> Selection<'a> {
    fn new(only: Option<&'a str>) -> Selection<'a> {
        let Some(name) = only else {
            return Selection {
                stage: None,
                name: None,
            };
        };
        if let Some((stage, _)) = STAGES.iter().find(|(stage, _)| *stage == name) {
            return Selection {
                stage: Some(stage),
                name: None,
            };
        }
        let named = STAGES.iter().find(|(_, names)| names.contains(&name));
        let stage = match named {
            Some((stage, _)) => stage,
            None if FACTS.compiled().any(|config| config.name == name) => "compile",
            None if FACTS
                .legs
                .iter()
                .any(|leg| name.split('/').next() == Some(&leg.name)) =>
            {
                "kunit"
            }
            None if name.contains(".rs:") => "compile-fail",
            None => "vm",
        };
        Selection {
            stage: Some(stage),
            name: Some(name),
        }
    }

    fn stage(&self, stage: &str) -> bool {
        self.stage.is_none_or(|only| only == stage)
    }

    /// Whether a test of a stage is selected, by its label, a part of it or its machine's name.
    fn test(&self, stage: &str, label: &str) -> bool {
        let matches = |name: &str| name == label || label.split('/').any(|part| part == name);
        self.stage(stage)
            && self
                .name
                .is_none_or(|name| name == "parity" || matches(name))
    }

    /// The tests of the virtual machines that are selected.
    fn items(&self, programs: &[String]) -> Vec<Item> {
        let machine = self
            .name
            .and_then(|name| name.strip_prefix("machine `")?.strip_suffix('`'));
        match machine {
            Some(name) => plan::deal(plan::items(programs))
                .into_iter()
                .filter(|machine| machine.name == name)
                .flat_map(|machine| machine.items)
                .collect(),
            None => {
                let mut items = plan::items(programs);
                items.retain(|item| self.test("vm", &item.label()));
                items
            }
        }
    }

    /// The legs of KUnit and the configurations to compile.
    fn legs(&self) -> Vec<&'static Leg> {
        let ours = |name: &str, leg: &Leg| name.split('/').next() == Some(&leg.name);
        let selected = |leg: &&Leg| self.name.is_none_or(|name| ours(name, leg));
        FACTS
            .legs
            .iter()
            .filter(selected)
            .filter(|_| self.stage("kunit"))
            .collect()
    }

    fn compiled(&self) -> Vec<&'static Config> {
        FACTS
            .compiled()
            .filter(|config| self.test("compile", &config.name))
            .collect()
    }

    /// Whether the virtual machine's kernel is wanted.
    fn kernel(&self) -> bool {
        ["build", "compile-fail", "vm"]
            .iter()
            .any(|stage| self.stage(stage))
    }

    fn purposes(&self) -> Vec<Purpose> {
        let (legs, compiled) = (self.legs(), self.compiled());
        let wanted = [
            (Purpose::Series, true),
            (
                Purpose::Build,
                self.kernel() || !compiled.is_empty() || !legs.is_empty(),
            ),
            (Purpose::Kunit, !legs.is_empty()),
            (Purpose::Foreign, legs.iter().any(|leg| leg.args.is_none())),
            (Purpose::Vm, self.kernel()),
            (
                Purpose::Cross,
                compiled.iter().any(|config| config.arch == "sh"),
            ),
        ];
        wanted
            .into_iter()
            .filter_map(|(purpose, wanted)| wanted.then_some(purpose))
            .collect()
    }

    /// A name that selects nothing is found out before anything is built for it.
    fn must_match(&self, all: &Assembled) -> Result<()> {
        let sources = all.tree.dir.join("tools/testing/selftests/vfio");
        if let Some(only) = self.name.filter(|_| self.stage == Some("vm"))
            && self
                .items(&machine::programs(&sources, "_test.c")?)
                .is_empty()
        {
            let stages = STAGES.map(|(stage, _)| stage).join(", ");
            bail!(
                "--only {only} selects no test\nhelp: name a stage ({stages}) or a test as the summary names it"
            );
        }
        Ok(())
    }
}

pub fn test(ctx: &Ctx, base: Option<&Path>, only: Option<&str>) -> Result<()> {
    let select = Selection::new(only);
    let mut report = Report::default();
    if select.stage("unit") {
        unit(ctx, &mut report)?;
    }
    if select.stage != Some("unit") {
        // What keeps the stages from running is a failure like any other, and is counted.
        if let Err(error) = kernel_stages(ctx, base, &select, &mut report) {
            report.check::<()>("setup", "what the stages stand on", Err(error));
        }
    }
    if let Some(name) = select
        .name
        .filter(|name| STAGES.iter().any(|(_, names)| names.contains(name)))
    {
        report.keep(name);
    }
    print!("{}", report.render());
    match report.failed() {
        0 => Ok(()),
        // The last line has said it.
        _ => std::process::exit(1),
    }
}

/// Everything that needs the series on its base.
fn kernel_stages(
    ctx: &Ctx,
    base: Option<&Path>,
    select: &Selection<'_>,
    report: &mut Report,
) -> Result<()> {
    let purposes = select.purposes();
    // Everything at once, so that nobody is asked twice.
    toolchain::install(ctx, &purposes)?;
    let Some(all) = overlay(ctx, base, select, report)? else {
        return Ok(());
    };
    if select.stage("series") {
        series(ctx, &all, report)?;
    }
    for (stage, name, program) in [
        (
            "thp",
            THP,
            extracts::equivalence as fn(&Ctx, &Assembled) -> Result<extracts::Said>,
        ),
        ("regions", REGIONS, extracts::regions),
    ] {
        if !select.stage(stage) {
            continue;
        }
        let said = program(ctx, &all).and_then(|said| said.map_err(|wrong| anyhow!("{wrong}")));
        if let Some(said) = report.check(stage, name, said) {
            report.note(format!("{stage}: {said}"));
        }
    }
    select.must_match(&all)?;
    if !purposes.contains(&Purpose::Build) {
        return Ok(());
    }
    let toolchain = Toolchain::open(ctx, &all.tree, &purposes)?;
    builds(
        &Kernel::new(ctx, &toolchain, &all),
        &all.series,
        select,
        report,
    )
}

/// The series on its base, checked on the way if it is selected; None if there is none.
fn overlay(
    ctx: &Ctx,
    base: Option<&Path>,
    select: &Selection<'_>,
    report: &mut Report,
) -> Result<Option<Assembled>> {
    if !select.stage("overlay") {
        return Assembled::on(ctx, base).map(Some);
    }
    if report
        .check("overlay", COMPLETE, Series::read(&ctx.root))
        .is_none()
    {
        return Ok(None);
    }
    let all = report.check("overlay", MADE, Assembled::on(ctx, base));
    if let Some(all) = &all {
        report.check("overlay", AGAIN, again(all));
    }
    Ok(all)
}

/// Everything that needs a compiler.
fn builds(
    kernel: &Kernel<'_>,
    series: &Series,
    select: &Selection<'_>,
    report: &mut Report,
) -> Result<()> {
    let ui = &kernel.ctx.ui;
    let tests = match select.kernel() {
        true => built(kernel, select, report)?,
        false => None,
    };
    if select.stage("compile-fail") && tests.is_some() {
        ui.step("compiling programs that are to be refused");
        compile_fail::run(kernel, series, report)?;
    }
    for config in select.compiled() {
        ui.step(format!("compiling mm and drivers/vfio for {}", config.name));
        let configured = kernel.configure(config);
        let result = configured.and_then(|()| kernel.build(config, &config.targets));
        report.check("compile", &config.name, result);
    }
    for leg in select.legs() {
        ui.step(format!("KUnit: {}", leg.name));
        let suite = select
            .name
            .and_then(|name| name.split_once('/'))
            .map(|(_, suite)| suite);
        kunit::run(kernel, leg, suite, report)?;
    }
    match tests {
        Some(tests) if select.stage("vm") => machines::run(&Vm::new(kernel, tests), select, report),
        _ => Ok(()),
    }
}

/// Builds what the virtual machines boot; returns the directory of the selftests.
fn built(
    kernel: &Kernel<'_>,
    select: &Selection<'_>,
    report: &mut Report,
) -> Result<Option<PathBuf>> {
    let step = "building the kernels of the virtual machine, and the selftests";
    kernel.ctx.ui.step(step);
    let (image, tests) = (kernel.bootable(FACTS.vm()), kernel.selftests());
    let debug = match &tests {
        Ok(tests) if select.stage("vm") => select
            .items(&machine::programs(tests, "_test")?)
            .iter()
            .any(|item| item.variant.config == "debug"),
        _ => false,
    };
    if debug {
        report.check("build", DEBUG, kernel.bootable(FACTS.config("debug")));
    }
    if !select.stage("build") {
        return image.and(tests).map(Some);
    }
    let image = report.check("build", IMAGE, image);
    if image.is_some()
        && let Some(found) = report.check("build", SIZE, size::compare(kernel))
    {
        report.note(found);
    }
    Ok(report
        .check("build", SELFTESTS, tests)
        .filter(|_| image.is_some()))
}

/// xtask's own unit tests, by their names.
fn unit(ctx: &Ctx, report: &mut Report) -> Result<()> {
    ctx.ui.step("unit tests of xtask");
    let mut cargo = Command::new("cargo");
    cargo
        .args([
            "test",
            "--quiet",
            "--release",
            "--locked",
            "--manifest-path",
        ])
        .arg(ctx.root.join("tools/xtask/Cargo.toml"))
        .args(["--", "--format=pretty"]);
    let out = run::finish(&mut cargo, b"")?;
    let text = String::from_utf8_lossy(&out.stdout);
    let tests = text
        .lines()
        .filter_map(|line| line.strip_prefix("test ")?.split_once(" ... "));
    let before = (report.passed(), report.failed());
    for (name, verdict) in tests {
        let outcome = match verdict {
            "ok" => Outcome::Passed,
            // It is a process that another one starts.
            _ if verdict.starts_with("ignored") => continue,
            _ => Outcome::Failed(format!("see `cargo test {name}` in tools/xtask")),
        };
        report.add("unit", "xtask", name, outcome);
    }
    let seen = (report.passed(), report.failed()) != before;
    if !out.status.success() && report.failed() == before.1 || !seen {
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
            bail!("series/{} gave two different trees", one.name);
        }
    }
    Ok(())
}

/// The export, checked and proven as `series` does, and what b4 makes of it.
fn series(ctx: &Ctx, all: &Assembled, report: &mut Report) -> Result<()> {
    ctx.ui.step("exporting, checking and proving the series");
    let out = cache::fresh(&ctx.cache.path("series"))?;
    let exported = export::export(ctx, all, &out);
    let Some(exported) = report.check("series", FORMAT, exported) else {
        return Ok(());
    };
    for patch in export::check(all, &exported)? {
        let name = patch.name();
        let is_error = |line: &String| export::is_error(line);
        let (errors, others): (Vec<_>, Vec<_>) = patch.complaints.into_iter().partition(is_error);
        let outcome = errors
            .into_iter()
            .next()
            .map_or(Outcome::Passed, Outcome::Failed);
        report.add("series", CHECKPATCH, &name, outcome);
        for complaint in others {
            report.note(format!("{name}: {complaint}"));
        }
    }
    report.check("series", AM, export::prove(ctx, all, &exported));
    ctx.ui.step("b4 on the checkout and on the export");
    let b4 = match B4::open(ctx) {
        Ok(b4) => b4,
        Err(error) => {
            let why = format!("b4 cannot be had: {error:#}");
            report.add("series", "b4", "b4", Outcome::Skipped(why));
            return Ok(());
        }
    };
    for (name, result) in b4.check(ctx, all, &exported)? {
        report.case("series", "b4", &name, result);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selection_by_stage_and_by_test() {
        let all = Selection::new(None);
        assert!(all.stage("vm") && all.test("vm", "igb/a"));
        let stage = Selection::new(Some("vm"));
        assert!(stage.stage("vm") && !stage.stage("unit") && stage.test("vm", "igb/a"));
        let test = Selection::new(Some("a"));
        assert!(test.test("vm", "igb/a") && !test.test("vm", "igb/b") && !test.stage("unit"));
        assert!(Selection::new(Some("igb/a")).test("vm", "igb/a"));
        assert!(Selection::new(Some("igb")).test("vm", "igb/a"));
    }

    #[test]
    fn every_name_of_the_summary_has_its_stage() {
        for (name, stage) in [
            (AM, "series"),
            ("b4", "series"),
            (SIZE, "build"),
            ("i386", "compile"),
            ("kunit-um", "kunit"),
            ("kunit-um/vfio_group", "kunit"),
            ("rust/kernel/vfio.rs:12", "compile-fail"),
            ("machine `driver`", "vm"),
            ("rust_vfio_pci/igb/vfio_pci_device_test", "vm"),
            ("parity", "vm"),
        ] {
            assert_eq!(Selection::new(Some(name)).stage, Some(stage), "{name}");
        }
    }

    #[test]
    fn a_machine_is_selected_by_its_name() {
        let programs = ["vfio_pci_driver_test", "vfio_pci_device_test"].map(str::to_owned);
        let items = Selection::new(Some("machine `driver`")).items(&programs);
        let labels: Vec<String> = items.iter().map(Item::label).collect();
        assert_eq!(labels, ["igb/vfio_pci_driver_test"]);
    }
}
