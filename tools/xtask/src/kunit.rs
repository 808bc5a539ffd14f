//! KUnit as the kernel's own tool runs it: `kunit.py run --kunitconfig=drivers/vfio`.

use std::fs;
use std::path::Path;

use miette::{IntoDiagnostic, Result};

use crate::kernel::Kernel;
use crate::report::{Outcome, Report};
use crate::{ktap, run, vm};

/// One architecture.
pub struct Leg {
    pub name: &'static str,
    arch: &'static str,
    suites: Suites,
    args: &'static [&'static str],
    /// About how many lines a build of everything prints, for the first bar.
    lines: u64,
}

/// What is built and run.
#[derive(PartialEq, Eq)]
enum Suites {
    /// All that there is for VFIO, as anybody runs it.
    All,
    /// Those in C, in a kernel with little else.
    C,
}

impl Leg {
    /// Whether it takes an emulator that nothing else here does.
    pub fn foreign(&self) -> bool {
        self.suites == Suites::C
    }

    /// A leg for one more architecture, with the large leaves of it.
    const fn c(name: &'static str, arch: &'static str, args: &'static [&'static str]) -> Leg {
        Leg {
            name,
            arch,
            suites: Suites::C,
            args,
            lines: 1500,
        }
    }
}

const THP: &[&str] = &["--kconfig_add=CONFIG_TRANSPARENT_HUGEPAGE=y"];

pub const LEGS: &[Leg] = &[
    // A program like any other, whose suites end within a second.
    Leg {
        name: "kunit-um",
        arch: "um",
        suites: Suites::All,
        args: &[],
        lines: 6700,
    },
    // Emulated, and so the place for what costs time: lockdep, and the checks that go with it. There
    // is PCI as well.
    Leg {
        name: "kunit-x86_64",
        arch: "x86_64",
        suites: Suites::All,
        args: &[
            "--qemu_args=-cpu max",
            "--kconfig_add=CONFIG_DEBUG_KERNEL=y",
            "--kconfig_add=CONFIG_PROVE_LOCKING=y",
            "--kconfig_add=CONFIG_DEBUG_ATOMIC_SLEEP=y",
            "--kconfig_add=CONFIG_PCI=y",
            "--kconfig_add=CONFIG_VFIO_PCI=y",
            "--kconfig_add=CONFIG_RUST_VFIO_PCI_ABSTRACTIONS=y",
        ],
        lines: 1500,
    },
    // 32 bits; other leaves, address spaces and ways to place mappings.
    Leg::c("kunit-i386", "i386", &[]),
    Leg::c("kunit-arm64", "arm64", THP),
    Leg::c("kunit-s390", "s390", THP),
    Leg::c("kunit-riscv64", "riscv", THP),
];

/// Builds and runs the suites, and reports case by case.
pub fn run(kernel: &Kernel<'_>, leg: &Leg, report: &mut Report) -> Result<()> {
    let out = kernel.objects.join(format!("obj-{}", leg.name));
    // The kernel's log, as kunit.py leaves it there.
    let log = out.join("test.log");
    if log.exists() {
        fs::remove_file(&log).into_diagnostic()?;
    }
    report.check("kunit", leg.name, kunit_py(kernel, leg, &out));
    // Without a log no kernel was run, and the line above has said why.
    let Ok(log) = fs::read(&log) else {
        return Ok(());
    };
    let log = String::from_utf8_lossy(&log);
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
        vm::clean(&log),
    );
    Ok(())
}

/// `kunit.py run` in two steps, since it tells nobody how far its build is.
fn kunit_py(kernel: &Kernel<'_>, leg: &Leg, out: &Path) -> Result<()> {
    let Kernel {
        ctx,
        toolchain,
        tree,
        ..
    } = kernel;
    let command = |command: &str| {
        let mut cmd = toolchain.kunit(tree, out, command);
        let config = match leg.suites {
            Suites::All => "drivers/vfio".to_owned(),
            Suites::C => {
                let file = ctx.root.join("tools/xtask/configs/kunit-c.config");
                file.to_string_lossy().into_owned()
            }
        };
        cmd.arg(format!("--arch={}", leg.arch))
            .arg(format!("--kunitconfig={config}"))
            .args(leg.args);
        cmd
    };
    // kunit.py makes the last directory only.
    fs::create_dir_all(out).into_diagnostic()?;
    run::logged(ctx, leg.name, leg.name, 0, command("config"))?;
    let mut make = toolchain.make(tree, out, leg.arch);
    make.arg("all");
    let build = format!("build-{}", leg.name);
    run::logged(ctx, &build, &format!("build {}", leg.name), leg.lines, make)?;
    let mut run = command("run");
    run.arg(format!("--jobs={}", toolchain.jobs));
    // kunit.py has QEMU use KVM wherever there is a /dev/kvm; the QEMU in there does not.
    let mut path = ctx.root.join("tools/xtask/host").into_os_string();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    run.env("PATH", path);
    run::logged(ctx, leg.name, leg.name, 0, run)
}
