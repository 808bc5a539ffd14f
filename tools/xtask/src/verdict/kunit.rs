//! KUnit as the kernel's own tool runs it: `kunit.py run --kunitconfig=drivers/vfio`, in steps.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use miette::{IntoDiagnostic, Result};

use crate::host::run;
use crate::kernel::{Config, Kernel};
use crate::machine;
use crate::verdict::ktap;
use crate::verdict::report::{Outcome, Report};

/// One architecture.
pub struct Leg {
    pub name: &'static str,
    arch: &'static str,
    suites: Suites,
    /// About how many lines a build of everything prints, for the first bar.
    lines: u64,
}

/// What is built and run.
enum Suites {
    /// All that there is for VFIO, as anybody runs it: kunit.py configures the kernel, with these
    /// arguments.
    All(&'static [&'static str]),
    /// Those in C, in a kernel that has nothing else.
    C(Config),
}

impl Leg {
    fn out(&self, kernel: &Kernel<'_>) -> PathBuf {
        kernel.objects.join(format!("obj-{}", self.name))
    }

    /// Whether it takes an emulator that nothing else here does.
    pub fn foreign(&self) -> bool {
        matches!(self.suites, Suites::C(_))
    }

    /// A leg for one more architecture; its file of symbols has the leg's name.
    const fn c(name: &'static str, arch: &'static str) -> Leg {
        Leg {
            name,
            arch,
            suites: Suites::C(Config::tiny(name, arch, C_SUITES)),
            lines: 0,
        }
    }
}

/// The configuration that those of the other architectures are on.
const C_SUITES: &str = "kunit-c";

pub const LEGS: &[Leg] = &[
    // A program like any other, whose suites end within a second.
    Leg {
        name: "kunit-um",
        arch: "um",
        suites: Suites::All(&[]),
        lines: 6700,
    },
    // Emulated, and so the place for what costs time: lockdep, and the checks that go with it. There
    // is PCI as well.
    Leg {
        name: "kunit-x86_64",
        arch: "x86_64",
        suites: Suites::All(&[
            "--qemu_args=-cpu max",
            "--kconfig_add=CONFIG_DEBUG_KERNEL=y",
            "--kconfig_add=CONFIG_PROVE_LOCKING=y",
            "--kconfig_add=CONFIG_DEBUG_ATOMIC_SLEEP=y",
            "--kconfig_add=CONFIG_PCI=y",
            "--kconfig_add=CONFIG_VFIO_PCI=y",
            "--kconfig_add=CONFIG_RUST_VFIO_PCI_ABSTRACTIONS=y",
            // BARs as dma-bufs, and what they stand on
            "--kconfig_add=CONFIG_SYNC_FILE=y",
            "--kconfig_add=CONFIG_MEMORY_HOTPLUG=y",
            "--kconfig_add=CONFIG_MEMORY_HOTREMOVE=y",
            "--kconfig_add=CONFIG_ZONE_DEVICE=y",
            "--kconfig_add=CONFIG_PCI_P2PDMA=y",
            "--kconfig_add=CONFIG_VFIO_PCI_DMABUF=y",
        ]),
        lines: 1500,
    },
    // 32 bits; other leaves, address spaces and ways to place mappings.
    Leg::c("kunit-i386", "i386"),
    Leg::c("kunit-arm64", "arm64"),
    Leg::c("kunit-riscv64", "riscv"),
];

/// Builds and runs the suites, and reports case by case.
pub fn run(kernel: &Kernel<'_>, leg: &Leg, report: &mut Report) -> Result<()> {
    let built = build(kernel, leg);
    if report.check("kunit", leg.name, built).is_none() {
        return Ok(());
    }
    exec(kernel, leg, None, report)
}

/// Runs what is built, or the suites of it whose names match.
pub fn exec(
    kernel: &Kernel<'_>,
    leg: &Leg,
    suites: Option<&str>,
    report: &mut Report,
) -> Result<()> {
    // The kernel's log, as kunit.py leaves it there.
    let log = leg.out(kernel).join("test.log");
    if log.exists() {
        fs::remove_file(&log).into_diagnostic()?;
    }
    let mut exec = kunit_py(kernel, leg, "exec");
    exec.args(suites);
    // kunit.py has QEMU use KVM wherever there is a /dev/kvm; the QEMU in there does not.
    let mut path = kernel.ctx.root.join("tools/xtask/host").into_os_string();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    exec.env("PATH", path);
    let ran = run::logged(kernel.ctx, leg.name, leg.name, 0, exec);
    let log = match fs::read(&log) {
        Ok(log) => String::from_utf8_lossy(&log).into_owned(),
        // No kernel was run, and kunit.py has said why.
        Err(_) => {
            report.check("kunit", &format!("{} run", leg.name), ran);
            return Ok(());
        }
    };
    let (suites, planned) = ktap::suites(&log);
    for suite in &suites {
        let label = format!("{}/{}", leg.name, suite.label);
        for (case, outcome) in ktap::cases(suite) {
            report.add("kunit", &label, &case, outcome);
        }
    }
    let outcome = match planned {
        Some(planned) if planned == suites.len() => Outcome::Passed,
        _ => Outcome::Failed(format!(
            "the kernel planned {planned:?} suites and ran {}",
            suites.len()
        )),
    };
    report.add("kunit", leg.name, "all suites", outcome);
    report.add(
        "kunit",
        leg.name,
        "no warning in the kernel's log",
        machine::clean(&log),
    );
    // Behind the cases, since it fails if any of them does.
    report.check("kunit", &format!("{} run", leg.name), ran);
    Ok(())
}

/// `kunit.py build`, whose build tells nobody how far it is, by hand.
pub fn build(kernel: &Kernel<'_>, leg: &Leg) -> Result<()> {
    match &leg.suites {
        Suites::C(config) => kernel.configure(config)?,
        Suites::All(_) => {
            // kunit.py makes the last directory only.
            fs::create_dir_all(leg.out(kernel)).into_diagnostic()?;
            let config = kunit_py(kernel, leg, "config");
            run::logged(kernel.ctx, leg.name, leg.name, 0, config)?;
        }
    }
    make(kernel, leg)
}

/// Builds what is configured.
pub fn make(kernel: &Kernel<'_>, leg: &Leg) -> Result<()> {
    let out = leg.out(kernel);
    let mut make = kernel.toolchain.make(kernel.tree, &out, leg.arch);
    make.arg("all");
    let build = format!("build-{}", leg.name);
    let label = format!("build {}", leg.name);
    run::logged(kernel.ctx, &build, &label, leg.lines, make)
}

fn kunit_py(kernel: &Kernel<'_>, leg: &Leg, command: &str) -> Command {
    let out = leg.out(kernel);
    let mut cmd = kernel.toolchain.kunit(kernel.tree, &out, command);
    cmd.arg(format!("--arch={}", leg.arch));
    if let Suites::All(args) = leg.suites {
        cmd.arg("--kunitconfig=drivers/vfio").args(args);
    }
    cmd
}
