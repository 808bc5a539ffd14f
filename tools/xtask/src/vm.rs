//! The virtual machine: an initramfs of busybox and the selftests, and QEMU with an IOMMU and three
//! devices bound to vfio-pci.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use miette::{IntoDiagnostic, Result, WrapErr, miette};

use crate::{Ctx, cache, run, toolchain};

/// A device of the machine, as QEMU makes it and as the guest finds it.
pub struct Device {
    pub name: &'static str,
    id: &'static str,
    args: &'static [&'static str],
}

pub const DEVICES: &[Device] = &[
    // DMA, MSI-X and SR-IOV; behind a port, as a card of its kind is.
    Device {
        name: "igb",
        id: "0x8086:0x10c9",
        args: &[
            "-device",
            "pcie-root-port,id=rp0,chassis=1",
            "-device",
            "igb,bus=rp0",
        ],
    },
    // A BAR of 2 GiB with nothing behind it: quick to touch.
    Device {
        name: "testdev",
        id: "0x1b36:0x0005",
        args: &["-device", "pci-testdev,membar=2G"],
    },
    // A BAR of 4 GiB that is memory.
    Device {
        name: "ivshmem",
        id: "0x1af4:0x1110",
        args: &[
            "-object",
            "memory-backend-memfd,id=shared,size=4G,share=on",
            "-device",
            "ivshmem-plain,memdev=shared",
        ],
    },
];

/// vfio-pci makes virtual functions only when told so (else writing sriov_numvfs gives ENOENT, and
/// vfio_pci_sriov_uapi_test stops there); the 1 GiB page is for vfio_dma_mapping_test.
const COMMAND_LINE: &str = "console=ttyS0 intel_iommu=on iommu=pt vfio_pci.enable_sriov=1 \
    hugepagesz=1G hugepages=1 panic=-1";

/// From start to the guest's first program: three seconds where nothing else runs, but now and then
/// an emulated boot stalls with both processors idle, long before any of our code.
const BOOT_LIMIT: Duration = Duration::from_secs(90);
/// Where a KVM guest is not there by then, KVM does not work here.
const KVM_LIMIT: Duration = Duration::from_secs(15);
/// The program that reports what KUnit found, on no device.
pub const KUNIT: &str = "kunit";
/// On top of a program's own limit, which the guest keeps.
const GRACE: Duration = Duration::from_secs(60);

/// One program on one device.
pub struct Item {
    pub device: &'static str,
    pub program: String,
    pub limit: Duration,
}

impl Item {
    pub fn label(&self) -> String {
        format!("{}/{}", self.device, self.program)
    }
}

pub struct Vm<'a> {
    pub ctx: &'a Ctx,
    pub image: &'a Path,
    /// Directory of the selftests.
    pub tests: &'a Path,
    /// The kernel's own tool, as its build left it.
    pub gen_init_cpio: &'a Path,
}

/// What a machine that ended left behind.
pub struct Finished {
    /// The second serial port: what the programs printed.
    pub results: String,
    /// The first: the kernel's log.
    pub console: String,
}

impl Vm<'_> {
    fn initramfs(&self, dir: &Path, plan: Option<&[Item]>) -> Result<PathBuf> {
        let busybox =
            toolchain::static_busybox().ok_or_else(|| miette!("there is no static busybox"))?;
        let init = self.ctx.root.join("tools/xtask/guest/init");
        let mut spec = String::from(
            "dir /bin 0755 0 0\ndir /dev 0755 0 0\ndir /tests 0755 0 0\nnod /dev/console 0600 0 0 c 5 1\n",
        );
        let mut add = |to: &str, from: &Path, mode: &str| {
            spec.push_str(&format!("file {to} {} {mode} 0 0\n", from.display()));
        };
        add("/bin/busybox", &busybox, "0755");
        add("/init", &init, "0755");
        let devices: String = DEVICES
            .iter()
            .map(|device| format!("{} {}\n", device.name, device.id))
            .collect();
        fs::write(dir.join("devices"), devices).into_diagnostic()?;
        add("/devices", &dir.join("devices"), "0644");
        for program in programs(self.tests, "_test")? {
            add(
                &format!("/tests/{program}"),
                &self.tests.join(&program),
                "0755",
            );
        }
        let kunit = self.ctx.root.join("tools/xtask/guest/kunit");
        add(&format!("/tests/{KUNIT}"), &kunit, "0755");
        if let Some(plan) = plan {
            let lines: String = plan
                .iter()
                .map(|item| {
                    format!(
                        "{} {} {} {}\n",
                        item.label(),
                        item.device,
                        item.limit.as_secs(),
                        item.program
                    )
                })
                .collect();
            fs::write(dir.join("plan"), lines).into_diagnostic()?;
            add("/plan", &dir.join("plan"), "0644");
        }
        fs::write(dir.join("spec"), spec).into_diagnostic()?;
        let image = dir.join("initramfs");
        let out = File::create(&image).into_diagnostic()?;
        let mut cmd = Command::new(self.gen_init_cpio);
        let status = cmd
            .arg(dir.join("spec"))
            .stdout(out)
            .status()
            .into_diagnostic()?;
        if !status.success() {
            return Err(miette!("gen_init_cpio failed: {status}"));
        }
        Ok(image)
    }

    fn qemu(&self, initramfs: &Path, kvm: bool) -> Command {
        let mut cmd = Command::new("qemu-system-x86_64");
        cmd.args([
            "-machine",
            "q35,kernel-irqchip=split",
            "-cpu",
            if kvm { "host" } else { "max" },
        ])
        // With a thread for each processor, TCG loses one's timer once in a thousand sleeps or so:
        // the boot stalls, or a device reset never ends. In turns is as fast for these tests.
        .args(["-accel", if kvm { "kvm" } else { "tcg,thread=single" }])
        .args(["-smp", "2", "-m", "4G", "-nodefaults", "-no-reboot"])
        .args(["-device", "intel-iommu,intremap=on,aw-bits=48"])
        .arg("-kernel")
        .arg(self.image)
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", COMMAND_LINE]);
        for device in DEVICES {
            cmd.args(device.args);
        }
        cmd
    }

    /// Boots, runs the plan to its end and returns what was printed.
    pub fn run(&self, name: &str, plan: &[Item]) -> Result<Finished> {
        let dir = cache::fresh(&self.ctx.cache.path("vm").join(name))?;
        let initramfs = self.initramfs(&dir, Some(plan))?;
        let mut machine = self.boot(name, &dir, &initramfs)?;
        let mut bar = self.ctx.ui.bar(name, plan.len() as u64);
        for (index, item) in plan.iter().enumerate() {
            let label = item.label();
            match machine.wait(item.limit + GRACE, &|line| {
                line.starts_with(&format!("xtask: end {label} "))
            })? {
                Ready::Yes => bar.set(index as u64 + 1),
                Ready::Ended(status) => {
                    return Err(machine.failure(&format!("ended during {label} ({status})"))?);
                }
                Ready::Late => {
                    let limit = item.limit + GRACE;
                    return Err(machine.failure(&format!(
                        "does not answer: {label} took more than {} s",
                        limit.as_secs()
                    ))?);
                }
            }
        }
        // No line says so: only the end of QEMU ends this wait.
        if let Ready::Late = machine.wait(GRACE, &|_| false)? {
            return Err(machine.failure("did not shut down")?);
        }
        machine.finished()
    }

    /// Starts the machine and waits for its first program: with KVM where that works, else with
    /// emulation, twice if need be.
    fn boot(&self, name: &str, dir: &Path, initramfs: &Path) -> Result<Machine> {
        if Path::new("/dev/kvm").exists() {
            let mut machine = Machine::start(self.ctx, name, self.qemu(initramfs, true), dir)?;
            match machine.ready(KVM_LIMIT)? {
                Ready::Yes => return Ok(machine),
                _ => self.ctx.ui.step(format!(
                    "{name}: KVM cannot run this machine here: emulating it"
                )),
            }
        }
        let mut stalled = false;
        loop {
            let mut machine = Machine::start(self.ctx, name, self.qemu(initramfs, false), dir)?;
            let limit = BOOT_LIMIT.as_secs();
            match machine.ready(BOOT_LIMIT)? {
                Ready::Yes => return Ok(machine),
                Ready::Ended(status) => {
                    return Err(machine.failure(&format!("ended at once ({status})"))?);
                }
                Ready::Late if stalled => {
                    return Err(machine.failure(&format!("did not boot in {limit} s, twice"))?);
                }
                Ready::Late => {
                    self.ctx.ui.step(format!(
                        "{name}: the boot stalled for {limit} s: trying once more"
                    ));
                    stalled = true;
                }
            }
        }
    }

    /// A shell in the machine, on this terminal.
    pub fn shell(&self) -> Result<()> {
        let dir = cache::fresh(&self.ctx.cache.path("vm/shell"))?;
        let initramfs = self.initramfs(&dir, None)?;
        let mut cmd = self.qemu(&initramfs, false);
        cmd.args(["-nographic", "-serial", "mon:stdio"]);
        self.ctx
            .ui
            .step("booting; Ctrl-A X ends the machine at once");
        self.ctx.cache.unlock()?;
        let status = cmd
            .status()
            .into_diagnostic()
            .wrap_err("cannot run qemu-system-x86_64")?;
        if !status.success() {
            return Err(miette!("QEMU ended with {status}"));
        }
        Ok(())
    }
}

/// The selftests in a directory, by name: the programs, or their sources.
pub fn programs(dir: &Path, ending: &str) -> Result<Vec<String>> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .into_diagnostic()
        .wrap_err_with(|| format!("there are no selftests in {}", dir.display()))?
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .filter(|name| name.starts_with("vfio_") && name.ends_with(ending))
        .map(|name| name.trim_end_matches(".c").to_owned())
        .collect();
    names.sort();
    Ok(names)
}

enum Ready {
    Yes,
    Ended(ExitStatus),
    Late,
}

/// A running QEMU and the files that its serial ports write.
struct Machine {
    name: String,
    qemu: Child,
    console: PathBuf,
    results: PathBuf,
    /// What QEMU prints.
    messages: PathBuf,
}

impl Machine {
    fn start(ctx: &Ctx, name: &str, mut cmd: Command, dir: &Path) -> Result<Machine> {
        let console = ctx.cache.log(&format!("vm-{name}-console"));
        let results = dir.join("results");
        for file in [&console, &results] {
            File::create(file).into_diagnostic()?;
        }
        // QEMU speaks of every DMA fault that a test provokes.
        let messages = ctx.cache.log(&format!("vm-{name}-qemu"));
        let stderr = File::create(&messages).into_diagnostic()?;
        cmd.args(["-display", "none", "-serial"])
            .arg(format!("file:{}", console.display()))
            .arg("-serial")
            .arg(format!("file:{}", results.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr);
        let qemu = cmd
            .spawn()
            .into_diagnostic()
            .wrap_err("cannot run qemu-system-x86_64")?;
        Ok(Machine {
            name: name.to_owned(),
            qemu,
            console,
            results,
            messages,
        })
    }

    /// Waits for a line of the results, or for the end of QEMU.
    fn wait(&mut self, limit: Duration, wanted: &dyn Fn(&str) -> bool) -> Result<Ready> {
        let start = Instant::now();
        loop {
            let status = self.qemu.try_wait().into_diagnostic()?;
            let results = fs::read(&self.results).into_diagnostic()?;
            if String::from_utf8_lossy(&results).lines().any(wanted) {
                return Ok(Ready::Yes);
            }
            if let Some(status) = status {
                return Ok(Ready::Ended(status));
            }
            if start.elapsed() > limit {
                return Ok(Ready::Late);
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Waits for the guest's first program.
    fn ready(&mut self, limit: Duration) -> Result<Ready> {
        self.wait(limit, &|line| line.starts_with("xtask: ready"))
    }

    fn finished(&self) -> Result<Finished> {
        let read = |path: &Path| -> Result<String> {
            Ok(String::from_utf8_lossy(&fs::read(path).into_diagnostic()?).into_owned())
        };
        Ok(Finished {
            results: read(&self.results)?,
            console: read(&self.console)?,
        })
    }

    fn failure(&self, what: &str) -> Result<miette::Report> {
        // Where the console is empty, QEMU itself had something to say.
        let empty = self.console.metadata().into_diagnostic()?.len() == 0;
        let log = if empty { &self.messages } else { &self.console };
        Ok(miette!(
            help = format!("the whole log is {}", log.display()),
            "the virtual machine {} {what}; its last lines:\n{}",
            self.name,
            run::last_lines(log)?
        ))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // An error on the way out must not leave a machine behind; it may have ended already.
        self.qemu.kill().ok();
        self.qemu.wait().ok();
    }
}

/// Lines of the kernel's log that no test is allowed to cause.
pub fn splats(console: &str) -> Vec<&str> {
    let signs = [
        "BUG:",
        "WARNING:",
        "Oops:",
        "general protection fault",
        "INFO: task",
        "rcu: INFO",
        "KASAN:",
        "UBSAN:",
        "Call Trace:",
    ];
    console
        .lines()
        .filter(|line| signs.iter().any(|sign| line.contains(sign)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splats_are_seen() {
        let log = "[ 1.0] vfio-pci: resetting\n[ 2.0] WARNING: CPU: 0 PID: 1 at mm/x.c:3\n[ 2.1] Call Trace:\n";
        assert_eq!(splats(log).len(), 2);
        assert!(splats("[ 1.0] all well\n").is_empty());
    }
}
