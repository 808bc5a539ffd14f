//! The virtual machine: an initramfs of busybox, the kernel's modules and the selftests, and QEMU
//! with an IOMMU and devices bound to a VFIO driver.

pub mod plan;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use miette::{IntoDiagnostic, Result, WrapErr, miette};

use crate::host::Ctx;
use crate::host::cache;
use crate::host::run;
use crate::host::toolchain;
use crate::kernel::{DEBUG, Kernel, VM};
use crate::machine::plan::{DRIVERS, Item, Machine, PLAIN, Variant};
use crate::verdict::report::Outcome;

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
    // A BAR of 4 GiB that is memory. Behind a bridge, which is what can reset it.
    Device {
        name: "ivshmem",
        id: "0x1af4:0x1110",
        args: &[
            "-object",
            "memory-backend-memfd,id=shared,size=4G,share=on",
            "-device",
            "pci-bridge,id=bridge,chassis_nr=3,shpc=off",
            "-device",
            "ivshmem-plain,memdev=shared,bus=bridge,addr=1",
        ],
    },
    // Reports errors, which igb does not: QEMU leaves the bits read-only that would let it. Without
    // the speed of the port the kernel waits in vain for the link after a fatal one.
    Device {
        name: "rng",
        id: "0x1af4:0x1044",
        args: &[
            "-device",
            "pcie-root-port,id=rp1,chassis=2,port=1,x-speed=5",
            "-device",
            "virtio-rng-pci,id=rng,bus=rp1,aer=on,disable-legacy=on",
        ],
    },
];

/// The errors that a test can ask for by a line that begins with `# inject`, as QEMU calls them.
const ERRORS: &[(&str, &str)] = &[
    ("correctable", "BAD_TLP"),
    ("nonfatal", "COMP_ABORT"),
    ("fatal", "MALF_TLP"),
];

/// The 1 GiB page is for vfio_dma_mapping_test.
const COMMAND_LINE: &str =
    "console=ttyS0 intel_iommu=on iommu=pt hugepagesz=1G hugepages=1 panic=-1";

/// The drivers make virtual functions only when told so (else writing sriov_numvfs gives ENOENT, and
/// vfio_pci_sriov_uapi_test stops there). What has no dot ends in the environment of the programs:
/// what the test of the costs compares with.
fn drivers() -> String {
    // busybox's modprobe knows a module by the one of its two spellings only.
    let sriov = DRIVERS
        .iter()
        .map(|driver| format!("{}.enable_sriov=1 ", driver.replace('-', "_")));
    let sriov: String = sriov.collect();
    format!("{sriov}VFIO_SELFTESTS_OTHER_DRIVER={}", DRIVERS[1])
}

/// From start to the guest's first program: three seconds where nothing else runs, but now and then
/// an emulated boot stalls with both processors idle, long before any of our code.
const BOOT_LIMIT: Duration = Duration::from_secs(90);
/// Where a KVM guest is not there by then, KVM does not work here.
const KVM_LIMIT: Duration = Duration::from_secs(15);
/// The program that reports what KUnit found, on no device.
pub const KUNIT: &str = "kunit";
/// The one that reports the memory that was lost by those before it. A machine that has it keeps
/// track, which takes time.
pub const KMEMLEAK: &str = "kmemleak";
/// On top of a program's own limit, which the guest keeps.
const GRACE: Duration = Duration::from_secs(60);

/// A kernel to boot.
struct Bootable {
    config: &'static str,
    image: PathBuf,
    /// What belongs into the guest's /lib/modules.
    modules: PathBuf,
}

pub struct Vm<'a> {
    pub ctx: &'a Ctx,
    kernels: Vec<Bootable>,
    /// Directory of the selftests.
    pub tests: PathBuf,
    /// The kernel's own tool, as its build left it.
    gen_init_cpio: PathBuf,
}

/// What a machine that ended left behind.
pub struct Finished {
    /// The second serial port: what the programs printed.
    pub results: String,
    /// The first: the kernel's log.
    pub console: String,
}

impl<'a> Vm<'a> {
    /// A machine of what `kernel` has built: the image and the selftests that are given here, and
    /// what lies beside them.
    pub fn new(kernel: &Kernel<'a>, image: PathBuf, tests: PathBuf) -> Vm<'a> {
        Vm {
            ctx: kernel.ctx,
            kernels: vec![
                Bootable {
                    config: VM.name,
                    image,
                    modules: kernel.modules(&VM),
                },
                Bootable {
                    config: DEBUG.name,
                    image: kernel.image(&DEBUG),
                    modules: kernel.modules(&DEBUG),
                },
            ],
            tests,
            gen_init_cpio: kernel.out(&VM).join("usr/gen_init_cpio"),
        }
    }

    fn bootable(&self, variant: &Variant) -> &Bootable {
        let ours = |kernel: &&Bootable| kernel.config == variant.config.name;
        self.kernels.iter().find(ours).unwrap_or(&self.kernels[0])
    }

    /// Writes the list of what is in the initramfs, and what of it is made here.
    fn spec(&self, dir: &Path, modules: &Path, driver: &str, plan: Option<&[Item]>) -> Result<()> {
        let busybox =
            toolchain::static_busybox().ok_or_else(|| miette!("there is no static busybox"))?;
        let init = self.ctx.root.join("tools/xtask/guest/init");
        let mut spec = String::from("nod /dev/console 0600 0 0 c 5 1\n");
        let mut add = |to: &str, from: &Path, mode: &str| {
            spec.push_str(&format!("file {to} {} {mode} 0 0\n", from.display()));
        };
        add("/bin/busybox", &busybox, "0755");
        add("/init", &init, "0755");
        let devices: String = DEVICES
            .iter()
            .map(|device| format!("{} {} {driver}\n", device.name, device.id))
            .collect();
        fs::write(dir.join("devices"), devices).into_diagnostic()?;
        add("/devices", &dir.join("devices"), "0644");
        // Those that the tests run have names without a suffix, too.
        for program in programs(&self.tests, "")? {
            if !program.contains('.') {
                let file = self.tests.join(&program);
                add(&format!("/tests/{program}"), &file, "0755");
            }
        }
        for program in [KUNIT, KMEMLEAK] {
            let script = self.ctx.root.join("tools/xtask/guest").join(program);
            add(&format!("/tests/{program}"), &script, "0755");
        }
        for file in files(modules)? {
            let name = file.strip_prefix(modules).into_diagnostic()?;
            add(&format!("/lib/modules/{}", name.display()), &file, "0644");
        }
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
        fs::write(dir.join("spec"), with_parents(&spec)).into_diagnostic()
    }

    fn initramfs(
        &self,
        dir: &Path,
        variant: &Variant,
        driver: &str,
        plan: Option<&[Item]>,
    ) -> Result<PathBuf> {
        self.spec(dir, &self.bootable(variant).modules, driver, plan)?;
        let image = dir.join("initramfs");
        let out = File::create(&image).into_diagnostic()?;
        let mut cmd = Command::new(&self.gen_init_cpio);
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
            .arg(&self.bootable(variant).image)
            .arg("-initrd")
            .arg(initramfs)
            .arg("-append")
            .arg(format!(
                "{COMMAND_LINE} {} {} {options}",
                drivers(),
                variant.options
            ));
        for device in DEVICES {
            cmd.args(device.args);
        }
        cmd
    }

    /// Boots a machine, runs its plan to the end and returns what was printed. `options` come on
    /// the kernel's command line, and those that it does not know in the programs' environment.
    pub fn run(&self, machine: &Machine, options: &str) -> Result<Finished> {
        let Machine {
            name,
            variant,
            driver,
            items,
        } = machine;
        let dir = cache::fresh(&self.ctx.cache.path("vm").join(name))?;
        let initramfs = self.initramfs(&dir, variant, driver, Some(items))?;
        let kmemleak = match items.iter().any(|item| item.program == KMEMLEAK) {
            true => " kmemleak=on",
            false => "",
        };
        let qemu = |kvm| self.qemu(variant, &initramfs, &format!("{options}{kmemleak}"), kvm);
        let mut machine = self.boot(name, &dir, BOOT_LIMIT * variant.slow, &qemu)?;
        let mut bar = self.ctx.ui.bar(name, items.len() as u64);
        for (index, item) in items.iter().enumerate() {
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
    fn boot(
        &self,
        name: &str,
        dir: &Path,
        limit: Duration,
        qemu: &dyn Fn(bool) -> Command,
    ) -> Result<Running> {
        if Path::new("/dev/kvm").exists() {
            let mut machine = Running::start(self.ctx, name, qemu(true), dir)?;
            match machine.ready(KVM_LIMIT)? {
                Ready::Yes => return Ok(machine),
                _ => self.ctx.ui.step(format!(
                    "{name}: KVM cannot run this machine here: emulating it"
                )),
            }
        }
        // Next to another machine, an emulated timer can be too slow for the kernel, too, which then
        // panics at once.
        let mut again = false;
        loop {
            let mut machine = Running::start(self.ctx, name, qemu(false), dir)?;
            let seconds = limit.as_secs();
            match machine.ready(limit)? {
                Ready::Yes => return Ok(machine),
                Ready::Ended(status) if again => {
                    return Err(machine.failure(&format!("ended at once ({status})"))?);
                }
                Ready::Late if again => {
                    return Err(machine.failure(&format!("did not boot in {seconds} s"))?);
                }
                Ready::Ended(_) | Ready::Late => {
                    self.ctx.ui.step(format!(
                        "{name}: the boot ended at once or stalled for {seconds} s: trying once more"
                    ));
                    again = true;
                }
            }
        }
    }

    /// A shell in the machine, on this terminal.
    pub fn shell(&self) -> Result<()> {
        let dir = cache::fresh(&self.ctx.cache.path("vm/shell"))?;
        let initramfs = self.initramfs(&dir, &PLAIN, DRIVERS[0], None)?;
        let mut cmd = self.qemu(&PLAIN, &initramfs, "", false);
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

/// All files below a directory. The links that modules_install leaves there lead out of it.
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_diagnostic()? {
        let entry = entry.into_diagnostic()?;
        let kind = entry.file_type().into_diagnostic()?;
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
struct Running {
    name: String,
    qemu: Child,
    /// Where QEMU takes the commands of its machine protocol.
    monitor: ChildStdin,
    /// How many errors it has been told to inject.
    injected: usize,
    console: PathBuf,
    results: PathBuf,
    /// What QEMU prints, and its answers.
    messages: PathBuf,
}

impl Running {
    fn start(ctx: &Ctx, name: &str, mut cmd: Command, dir: &Path) -> Result<Running> {
        let console = ctx.cache.log(&format!("vm-{name}-console"));
        let results = dir.join("results");
        for file in [&console, &results] {
            File::create(file).into_diagnostic()?;
        }
        // QEMU speaks of every DMA fault that a test provokes.
        let messages = ctx.cache.log(&format!("vm-{name}-qemu"));
        let printed = File::create(&messages).into_diagnostic()?;
        cmd.args(["-display", "none", "-qmp", "stdio", "-serial"])
            .arg(format!("file:{}", console.display()))
            .arg("-serial")
            .arg(format!("file:{}", results.display()))
            .stdin(Stdio::piped())
            .stdout(printed.try_clone().into_diagnostic()?)
            .stderr(printed);
        let mut qemu = cmd
            .spawn()
            .into_diagnostic()
            .wrap_err("cannot run qemu-system-x86_64")?;
        let monitor = qemu.stdin.take().expect("stdin is piped");
        let mut machine = Running {
            name: name.to_owned(),
            qemu,
            monitor,
            injected: 0,
            console,
            results,
            messages,
        };
        machine.command(r#""qmp_capabilities""#);
        Ok(machine)
    }

    /// Gives QEMU a command.
    fn command(&mut self, what: &str) {
        // A QEMU that has ended is noticed by who waits for it, and has said why.
        writeln!(self.monitor, r#"{{"execute":{what}}}"#).ok();
    }

    /// Does what the tests have asked for meanwhile: `# inject KIND ADDRESS`.
    fn inject(&mut self, results: &str) {
        let kinds = results.lines().filter_map(|line| {
            let kind = line.strip_prefix("# inject ")?.split(' ').next()?;
            ERRORS.iter().find(|(name, _)| *name == kind)
        });
        for (_, error) in kinds.skip(self.injected) {
            self.injected += 1;
            self.command(&format!(
                r#""human-monitor-command","arguments":{{"command-line":"pcie_aer_inject_error rng {error}"}}"#
            ));
        }
    }

    /// Waits for a line of the results, or for the end of QEMU.
    fn wait(&mut self, limit: Duration, wanted: &dyn Fn(&str) -> bool) -> Result<Ready> {
        let start = Instant::now();
        loop {
            let status = self.qemu.try_wait().into_diagnostic()?;
            let results = fs::read(&self.results).into_diagnostic()?;
            let results = String::from_utf8_lossy(&results);
            if results.lines().any(wanted) {
                return Ok(Ready::Yes);
            }
            self.inject(&results);
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

impl Drop for Running {
    fn drop(&mut self) {
        // An error on the way out must not leave a machine behind; it may have ended already.
        self.qemu.kill().ok();
        self.qemu.wait().ok();
    }
}

/// Whether a kernel's log is as it should be.
pub fn clean(log: &str) -> Outcome {
    match splats(log).first() {
        None => Outcome::Passed,
        Some(line) => Outcome::Failed(line.trim().to_owned()),
    }
}

/// Lines of the kernel's log that no test is allowed to cause.
fn splats(console: &str) -> Vec<&str> {
    let signs = [
        "BUG:",
        "WARNING:",
        "Oops:",
        "general protection fault",
        "INFO: task",
        "INFO: trying to register non-static key",
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
    fn directories_come_before_what_is_in_them() {
        let spec = "file /bin/busybox /x 0755 0 0\nfile /lib/modules/1/a.ko /y 0644 0 0\nfile /init /z 0755 0 0\n";
        let dirs = "dir /bin 0755 0 0\ndir /lib 0755 0 0\ndir /lib/modules 0755 0 0\ndir /lib/modules/1 0755 0 0\n";
        assert_eq!(with_parents(spec), format!("{dirs}{spec}"));
    }

    #[test]
    fn splats_are_seen() {
        let log = "[ 1.0] vfio-pci: resetting\n[ 2.0] WARNING: CPU: 0 PID: 1 at mm/x.c:3\n[ 2.1] Call Trace:\n";
        assert_eq!(splats(log).len(), 2);
        assert!(splats("[ 1.0] all well\n").is_empty());
    }
}
