//! The virtual machine: an initramfs of busybox, the kernel's modules and the selftests, and QEMU
//! with an IOMMU and devices bound to a VFIO driver.

pub mod plan;
mod running;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use fs_err as fs;

use self::plan::{Item, KMEMLEAK, Machine};
use self::running::{Ready, Running};
use crate::facts::{FACTS, Variant};
use crate::host::toolchain::static_busybox;
use crate::host::{Ctx, cache, run};
use crate::kernel::Kernel;

/// The 1 GiB page is for vfio_dma_mapping_test.
const COMMAND_LINE: &str =
    "console=ttyS0 intel_iommu=on iommu=pt hugepagesz=1G hugepages=1 panic=-1";

/// From start to the guest's first program: three seconds where nothing else runs, but now and then
/// an emulated boot stalls with both processors idle, long before any of our code.
const BOOT_LIMIT: Duration = Duration::from_secs(90);
/// Where a KVM guest is not there by then, KVM does not work here.
const KVM_LIMIT: Duration = Duration::from_secs(15);
/// On top of a program's own limit, which the guest keeps.
const GRACE: Duration = Duration::from_secs(60);

/// What has to be built before it boots: the kernels that the machines need, and the selftests.
pub struct Vm<'a> {
    kernel: &'a Kernel<'a>,
    pub ctx: &'a Ctx,
    /// Directory of the selftests.
    pub tests: PathBuf,
    /// Whether KVM runs a machine here, once that has been tried.
    kvm: OnceLock<bool>,
}

/// What a machine left behind, however it ended.
pub struct Finished {
    /// The second serial port: what the programs printed.
    pub results: String,
    /// The first: the kernel's log.
    pub console: String,
    /// Whether it ran all of its programs and shut down.
    pub ended: Result<()>,
}

impl<'a> Vm<'a> {
    pub fn new(kernel: &'a Kernel<'a>, tests: PathBuf) -> Vm<'a> {
        Vm {
            kernel,
            ctx: kernel.ctx,
            tests,
            kvm: OnceLock::new(),
        }
    }

    /// Writes the list of what is in the initramfs, and what of it is made here.
    fn spec(&self, dir: &Path, modules: &Path, driver: &str, plan: Option<&[Item]>) -> Result<()> {
        let busybox = static_busybox().ok_or_else(|| anyhow!("there is no static busybox"))?;
        let guest = self.ctx.root.join("tools/xtask/guest");
        let mut spec = String::from("nod /dev/console 0600 0 0 c 5 1\n");
        let mut add = |to: &str, from: &Path, mode: &str| {
            spec.push_str(&format!("file {to} {} {mode} 0 0\n", from.display()));
        };
        add("/bin/busybox", &busybox, "0755");
        add("/init", &guest.join("init"), "0755");
        let device = |name: &str, id: &str| format!("{name} {id} {driver}\n");
        let devices = FACTS.devices.iter();
        let devices: String = devices.map(|one| device(&one.name, &one.id)).collect();
        fs::write(dir.join("devices"), devices)?;
        add("/devices", &dir.join("devices"), "0644");
        // Those that the tests run have names without a suffix, too.
        let programs = programs(&self.tests, "")?.into_iter();
        for program in programs.filter(|program| !program.contains('.')) {
            add(
                &format!("/tests/{program}"),
                &self.tests.join(&program),
                "0755",
            );
        }
        for program in FACTS.programs.iter().filter(|program| program.guest) {
            let name = &program.name;
            add(&format!("/tests/{name}"), &guest.join(name), "0755");
        }
        for file in files(modules)? {
            let name = file.strip_prefix(modules)?;
            add(&format!("/lib/modules/{}", name.display()), &file, "0644");
        }
        if let Some(plan) = plan {
            let line = |item: &Item| {
                let (label, limit) = (item.label(), item.limit.as_secs());
                format!("{label} {} {limit} {}\n", item.device, item.program)
            };
            fs::write(dir.join("plan"), plan.iter().map(line).collect::<String>())?;
            add("/plan", &dir.join("plan"), "0644");
        }
        Ok(fs::write(dir.join("spec"), with_parents(&spec))?)
    }

    /// Makes the initramfs of a machine, in a directory of its name.
    fn initramfs(
        &self,
        name: &str,
        variant: &Variant,
        driver: &str,
        plan: Option<&[Item]>,
    ) -> Result<PathBuf> {
        let dir = cache::fresh(&self.ctx.cache.path("vm").join(name))?;
        let modules = self.kernel.modules(FACTS.config(&variant.config));
        self.spec(&dir, &modules, driver, plan)?;
        let image = dir.join("initramfs");
        // The kernel's own tool, as its build left it.
        let tool = self.kernel.out(FACTS.vm()).join("usr/gen_init_cpio");
        let archive = run::bytes(Command::new(tool).arg(dir.join("spec")))?;
        fs::write(&image, archive)?;
        Ok(image)
    }

    fn qemu(&self, variant: &Variant, initramfs: &Path, options: &str, kvm: bool) -> Command {
        let mut cmd = Command::new("qemu-system-x86_64");
        let cpu = if kvm { "host" } else { "max" };
        cmd.args(["-machine", "q35,kernel-irqchip=split", "-cpu"])
            .arg(format!("{cpu}{}", variant.cpu))
            // With a thread for each processor, TCG loses one's timer once in a thousand sleeps or so:
            // the boot stalls, or a device reset never ends. In turns is as fast for these tests.
            .args(["-accel", if kvm { "kvm" } else { "tcg,thread=single" }])
            .args(["-smp", "2", "-m", "4G", "-nodefaults", "-no-reboot"])
            .args(["-device", "intel-iommu,intremap=on,aw-bits=48"])
            .arg("-kernel")
            .arg(self.kernel.image(FACTS.config(&variant.config)))
            .arg("-initrd")
            .arg(initramfs)
            .arg("-append")
            .arg(format!(
                "{COMMAND_LINE} {} {} {options}",
                drivers(),
                variant.options
            ))
            .args(FACTS.devices.iter().flat_map(|device| &device.args));
        cmd
    }

    /// Boots a machine and runs its plan. `options` come on the kernel's command line, and those
    /// that it does not know in the programs' environment.
    pub fn run(&self, machine: &Machine, options: &str) -> Result<Finished> {
        let Machine {
            name,
            variant,
            driver,
            items,
        } = machine;
        let initramfs = self.initramfs(name, variant, driver, Some(items))?;
        let kmemleak = match items.iter().any(|item| item.program == KMEMLEAK) {
            true => " kmemleak=on",
            false => "",
        };
        let kvm = self.kvm();
        let qemu = || self.qemu(variant, &initramfs, &format!("{options}{kmemleak}"), kvm);
        let mut running = self.boot(name, BOOT_LIMIT * variant.slow, &qemu)?;
        let ended = self.follow(&mut running, machine);
        running.finished(ended)
    }

    /// Waits for one program after the other, and for the end.
    fn follow(&self, running: &mut Running, machine: &Machine) -> Result<()> {
        let mut bar = self.ctx.ui.bar(&machine.name, machine.items.len() as u64);
        for item in &machine.items {
            let label = item.label();
            let (end, limit) = (format!("xtask: end {label} "), item.limit + GRACE);
            match running.wait(limit, &|line| line.starts_with(&end))? {
                Ready::Yes => bar.inc(1),
                Ready::Ended(status) => {
                    return Err(running.failure(&format!("ended during {label} ({status})"))?);
                }
                Ready::Late => {
                    let seconds = limit.as_secs();
                    let what = format!("does not answer: {label} took more than {seconds} s");
                    return Err(running.failure(&what)?);
                }
            }
        }
        // No line says so: only the end of QEMU ends this wait.
        match running.wait(GRACE, &|_| false)? {
            Ready::Late => Err(running.failure("did not shut down")?),
            _ => Ok(()),
        }
    }

    /// Whether KVM runs a machine here: there may be a /dev/kvm that does not.
    fn kvm(&self) -> bool {
        *self.kvm.get_or_init(|| {
            if !Path::new("/dev/kvm").exists() {
                return false;
            }
            let works = self.try_kvm();
            if let Err(error) = &works {
                let step =
                    format!("KVM cannot run a machine here, so that they are emulated: {error:#}");
                self.ctx.ui.step(step);
            }
            works.is_ok()
        })
    }

    fn try_kvm(&self) -> Result<()> {
        let initramfs = self.initramfs("kvm", FACTS.plain(), FACTS.driver(), Some(&[]))?;
        let cmd = self.qemu(FACTS.plain(), &initramfs, "", true);
        let mut running = Running::start(self.ctx, "kvm", cmd)?;
        match running.ready(KVM_LIMIT)? {
            Ready::Yes => Ok(()),
            Ready::Ended(status) => Err(running.failure(&format!("ended at once ({status})"))?),
            Ready::Late => Err(running.failure("does not boot")?),
        }
    }

    /// Starts the machine and waits for its first program, twice if need be: next to another
    /// machine, an emulated timer can be too slow for the kernel, which then panics at once.
    fn boot(&self, name: &str, limit: Duration, qemu: &dyn Fn() -> Command) -> Result<Running> {
        let mut again = false;
        loop {
            let mut running = Running::start(self.ctx, name, qemu())?;
            let what = match running.ready(limit)? {
                Ready::Yes => return Ok(running),
                Ready::Ended(status) => format!("ended at once ({status})"),
                Ready::Late => format!("did not boot in {} s", limit.as_secs()),
            };
            if again {
                return Err(running.failure(&what)?);
            }
            self.ctx.ui.step(format!("{name} {what}: trying once more"));
            again = true;
        }
    }

    /// A shell in the machine, on this terminal.
    pub fn shell(&self) -> Result<()> {
        let initramfs = self.initramfs("shell", FACTS.plain(), FACTS.driver(), None)?;
        let mut cmd = self.qemu(FACTS.plain(), &initramfs, "", self.kvm());
        cmd.args(["-nographic", "-serial", "mon:stdio"])
            .stdin(Stdio::inherit());
        self.ctx
            .ui
            .step("booting; Ctrl-A X ends the machine at once");
        self.ctx.cache.unlock()?;
        let status = run::spawn(&mut cmd)?.wait()?;
        if !status.success() {
            bail!("QEMU ended with {status}");
        }
        Ok(())
    }
}

/// The drivers make virtual functions only when told so (else writing sriov_numvfs gives ENOENT, and
/// vfio_pci_sriov_uapi_test stops there). What has no dot ends in the environment of the programs:
/// what the test of the costs compares with.
fn drivers() -> String {
    // busybox's modprobe knows a module by the one of its two spellings only.
    let sriov = |driver: &String| format!("{}.enable_sriov=1 ", driver.replace('-', "_"));
    let sriov: String = FACTS.drivers.iter().map(sriov).collect();
    format!("{sriov}VFIO_SELFTESTS_OTHER_DRIVER={}", FACTS.drivers[1])
}

/// All files below a directory. The links that modules_install leaves there lead out of it.
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            found.extend(files(&entry.path())?);
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// The list for gen_init_cpio, with the directories that its files are in.
fn with_parents(spec: &str) -> String {
    let mut dirs = BTreeSet::new();
    for path in spec.lines().filter_map(|line| line.split(' ').nth(1)) {
        let parents = Path::new(path).ancestors().skip(1);
        dirs.extend(parents.filter(|parent| parent.parent().is_some()));
    }
    // A directory sorts before what is in it.
    let dirs = dirs
        .iter()
        .map(|dir| format!("dir {} 0755 0 0\n", dir.display()));
    dirs.chain([spec.to_owned()]).collect()
}

/// The selftests in a directory, by name: the programs, or their sources.
pub fn programs(dir: &Path, ending: &str) -> Result<Vec<String>> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .with_context(|| format!("there are no selftests in {}", dir.display()))?
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .filter(|name| name.starts_with("vfio_") && name.ends_with(ending))
        .map(|name| name.trim_end_matches(".c").to_owned())
        .collect();
    names.sort();
    Ok(names)
}

/// The first line of a kernel's log that no test is allowed to cause.
pub fn splat(log: &str) -> Option<&str> {
    let signs = "BUG:|WARNING:|Oops:|general protection fault|INFO: task|rcu: INFO|KASAN:|UBSAN:|\
        INFO: trying to register non-static key|Call Trace:";
    let mut lines = log.lines().map(str::trim);
    lines.find(|line| signs.split('|').any(|sign| line.contains(sign)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_come_before_what_is_in_them() {
        let spec = "file /bin/busybox /x 0755 0 0\nfile /lib/modules/1/a.ko /y 0644 0 0\nfile /init /z 0755 0 0\n";
        let dirs = "dir /bin 0755 0 0\ndir /lib 0755 0 0\ndir /lib/modules 0755 0 0\ndir /lib/modules/1 0755 0 0\n";
        assert_eq!(with_parents(spec), format!("{dirs}{spec}"));
    }

    #[test]
    fn splats_are_seen() {
        let log = "[ 1.0] vfio-pci: resetting\n[ 2.0] WARNING: CPU: 0 PID: 1 at mm/x.c:3\n";
        assert_eq!(
            splat(log),
            Some("[ 2.0] WARNING: CPU: 0 PID: 1 at mm/x.c:3")
        );
        assert_eq!(splat("[ 1.0] all well\n"), None);
    }
}
