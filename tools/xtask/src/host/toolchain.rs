//! What building and booting a kernel needs on this machine, found or installed.
//!
//! What is there and good enough is used as it is; `make rustavailable` has the last word.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};
use fs_err as fs;

use super::apt::Apt;
use super::git::Repo;
use super::{Ctx, run};

/// The LLVM of Debian's that is new enough and known to work, and what the kernel accepts.
const LLVM: u32 = 19;
const LLVM_OLDEST: u32 = 17;
const LLVM_NEWEST: u32 = 25;
/// Known to work; the kernel wants 0.71.1 at least.
const BINDGEN: &str = "0.73.2";
/// The release whose own QEMU is too old, and the suite that has a newer one and Rust's library.
const OLD_RELEASE: &str = "bookworm";
const OLD_BACKPORTS: &str = "bookworm-backports";
pub const SUITE: &str = "trixie-backports";

/// What a command is about to do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    Series,
    B4,
    Build,
    Vm,
    Kunit,
    /// KUnit on other architectures
    Foreign,
    Cross,
}

/// A part of the toolchain: what for, how to tell that it is there, and the packages that bring it.
struct Need(&'static [Purpose], &'static str, fn() -> bool, &'static str);

use Purpose::{B4, Build, Cross, Foreign, Kunit, Series, Vm};

#[rustfmt::skip]
const NEEDS: &[Need] = &[
    Need(&[Series], "perl", || run::exists("perl"), "perl"),
    Need(&[Series], "xz", || run::exists("xz"), "xz-utils"),
    Need(&[Build], "make", || run::exists("make"), "make"),
    Need(&[Build], "a host C compiler", || run::exists("gcc"), "gcc libc6-dev"),
    Need(&[Build], "flex", || run::exists("flex"), "flex"),
    Need(&[Build], "bison", || run::exists("bison"), "bison"),
    Need(&[Build], "bc", || run::exists("bc"), "bc"),
    Need(&[Build], "rsync", || run::exists("rsync"), "rsync"),
    Need(&[Build], "libelf's headers", || header("libelf.h"), "libelf-dev"),
    Need(&[Build], "LLVM", || llvm_suffix().is_some(), "clang-19 lld-19 llvm-19 libclang-19-dev"),
    Need(&[Vm], "libuuid's headers", || header("uuid/uuid.h"), "uuid-dev"),
    Need(&[Vm], "a static busybox", || static_busybox().is_some(), "busybox-static"),
    Need(&[Vm], "depmod", has_depmod, "kmod"),
    Need(&[Kunit, Foreign, B4], "Python", || run::exists("python3"), "python3"),
    Need(&[B4], "Python's venv", has_venv, "python3-venv"),
    Need(&[Cross], "gcc for sh", || run::exists("sh4-linux-gnu-gcc"), "gcc-sh4-linux-gnu"),
    Need(&[Vm, Kunit], "QEMU 8 or newer, with igb", qemu_has_igb, "qemu-system-x86"),
    Need(&[Foreign], "QEMU for arm64", || run::exists("qemu-system-aarch64"), "qemu-system-arm"),
    Need(&[Foreign], "QEMU for RISC-V", || run::exists("qemu-system-riscv64"), "qemu-system-riscv"),
];

impl Need {
    /// QEMU is taken from the backports of the release whose own is too old.
    fn backported(&self) -> bool {
        self.3.starts_with("qemu")
    }
}

/// How to call make on a kernel tree.
pub struct Toolchain {
    llvm: String,
    bindgen: PathBuf,
    rust_lib_src: PathBuf,
    pub jobs: usize,
}

/// Installs what `purposes` need and is not there, or lists it and stops when nothing may be.
pub fn install(ctx: &Ctx, purposes: &[Purpose]) -> Result<()> {
    let wanted = |need: &&Need| need.0.iter().any(|one| purposes.contains(one)) && !(need.2)();
    let needs: Vec<&Need> = NEEDS.iter().filter(wanted).collect();
    let builds = purposes.contains(&Build);
    let bindgen_missing = builds && bindgen(ctx).is_none();
    let rust_src_missing = builds && rust_lib_src(ctx)?.is_none();
    let mut list: Vec<String> = needs
        .iter()
        .map(|Need(_, what, _, packages)| format!("{what} (packages {packages})"))
        .collect();
    if bindgen_missing {
        list.push(format!("bindgen (cargo install bindgen-cli {BINDGEN})"));
    }
    if rust_src_missing {
        list.push(
            "Rust's library (rustup component add rust-src, or Debian's rust-src)".to_owned(),
        );
    }
    if list.is_empty() {
        return Ok(());
    }
    let list = list.join(", ");
    if !ctx.install {
        bail!("missing on this machine, and --no-install was given: {list}");
    }
    ctx.ui
        .step(format!("missing on this machine, to be installed: {list}"));
    install_packages(ctx, &needs)?;
    if bindgen_missing {
        install_bindgen(ctx)?;
    }
    if rust_src_missing {
        install_rust_src(ctx)?;
    }
    Ok(())
}

fn install_packages(ctx: &Ctx, needs: &[&Need]) -> Result<()> {
    if needs.is_empty() {
        return Ok(());
    }
    let backports = (codename() == OLD_RELEASE).then_some(OLD_BACKPORTS);
    let apt = Apt::own(ctx, backports)?;
    for backported in [false, true] {
        let ours = needs.iter().filter(|need| need.backported() == backported);
        let packages: Vec<&str> = ours.flat_map(|need| need.3.split(' ')).collect();
        if !packages.is_empty() {
            apt.install(ctx, &packages, backports.filter(|_| backported))?;
        }
    }
    match needs.iter().find(|need| !(need.2)()) {
        Some(Need(_, what, _, packages)) => {
            bail!("{what} is still not there after installing {packages}")
        }
        None => Ok(()),
    }
}

impl Toolchain {
    /// Finds or installs what `purposes` need; `tree` is a kernel tree that can judge it.
    pub fn open(ctx: &Ctx, tree: &Repo, purposes: &[Purpose]) -> Result<Toolchain> {
        if std::env::consts::ARCH != "x86_64" {
            bail!(
                "the kernels built here run on x86-64, in QEMU and as a program: use such a machine"
            );
        }
        install(ctx, purposes)?;
        let there = |what: &str| anyhow!("{what} is still not there after installing it");
        let toolchain = Toolchain {
            llvm: llvm_suffix().ok_or_else(|| there("LLVM"))?,
            bindgen: bindgen(ctx).ok_or_else(|| there("bindgen"))?,
            rust_lib_src: rust_lib_src(ctx)?
                .ok_or_else(|| there("the source of Rust's library"))?,
            jobs: std::thread::available_parallelism()?.get(),
        };
        let mut check = toolchain.make(tree, Path::new(""), "x86_64");
        run::output(check.arg("rustavailable"))
            .context("the toolchain does not satisfy this kernel (make rustavailable)")?;
        Ok(toolchain)
    }

    /// `make` in the kernel tree `tree`, with its output in `out` unless that is empty.
    pub fn make(&self, tree: &Repo, out: &Path, arch: &str) -> Command {
        let mut cmd = Command::new("make");
        cmd.arg("-C")
            .arg(&tree.dir)
            .arg(format!("-j{}", self.jobs))
            .arg(format!("ARCH={arch}"))
            .args(self.settings(arch));
        if !out.as_os_str().is_empty() {
            cmd.arg(format!("O={}", out.display()));
        }
        self.environment(&mut cmd);
        cmd
    }

    /// A command of kunit.py in the kernel tree `tree`, with its output in `out`.
    pub fn kunit(&self, tree: &Repo, out: &Path, command: &str) -> Command {
        let mut cmd = Command::new("python3");
        cmd.arg(tree.dir.join("tools/testing/kunit/kunit.py"))
            .arg(command)
            .arg(format!("--build_dir={}", out.display()));
        for setting in self.settings("") {
            cmd.arg(format!("--make_options={setting}"));
        }
        // The tree stays as git has it.
        cmd.env("PYTHONDONTWRITEBYTECODE", "1");
        self.environment(&mut cmd);
        cmd
    }

    /// What make is told of the programs to use.
    fn settings(&self, arch: &str) -> [String; 2] {
        let compiler = match (arch, self.llvm.as_str()) {
            ("sh", _) => "CROSS_COMPILE=sh4-linux-gnu-".to_owned(),
            (_, "") => "LLVM=1".to_owned(),
            (_, suffix) => format!("LLVM={suffix}"),
        };
        [format!("BINDGEN={}", self.bindgen.display()), compiler]
    }

    fn environment(&self, cmd: &mut Command) {
        cmd.env("RUST_LIB_SRC", &self.rust_lib_src)
            .env("LC_ALL", "C")
            // The same input gives the same kernel, and an unchanged tree stays unchanged.
            .env("KBUILD_BUILD_TIMESTAMP", "1970-01-01")
            .env("KBUILD_BUILD_USER", "xtask")
            .env("KBUILD_BUILD_HOST", "xtask");
        callers(cmd);
    }

    pub fn clang(&self) -> String {
        format!("clang{}", self.llvm)
    }

    pub fn size(&self) -> String {
        format!("llvm-size{}", self.llvm)
    }
}

/// Removes what the caller's environment would have kbuild do otherwise.
pub fn callers(cmd: &mut Command) {
    let names = "ARCH CC CROSS_COMPILE HOSTCC KAFLAGS KBUILD_OUTPUT KCFLAGS KCONFIG_ALLCONFIG \
        KCONFIG_CONFIG KCPPFLAGS KRUSTFLAGS LD LLVM LLVM_IAS MAKEFLAGS MAKELEVEL O";
    for name in names.split(' ') {
        cmd.env_remove(name);
    }
}

fn header(name: &str) -> bool {
    let multiarch = format!("/usr/include/{}-linux-gnu", std::env::consts::ARCH);
    let mut dirs = ["/usr/include", &multiarch].into_iter();
    dirs.any(|dir| Path::new(dir).join(name).exists())
}

/// The suffix of a complete LLVM: what is unversioned if it is new enough, else `-19` first.
fn llvm_suffix() -> Option<String> {
    let tools = "clang ld.lld llvm-ar llvm-nm llvm-objcopy llvm-objdump llvm-readelf llvm-strip";
    let complete = |suffix: &str| {
        let mut tools = tools.split(' ');
        tools.all(|tool| run::exists(&format!("{tool}{suffix}")))
    };
    let major = || {
        let version = run::output(Command::new("clang").arg("-dumpversion")).ok()?;
        version.split('.').next()?.trim().parse::<u32>().ok()
    };
    if complete("") && major().is_some_and(|major| major >= LLVM_OLDEST) {
        return Some(String::new());
    }
    std::iter::once(LLVM)
        .chain((LLVM_OLDEST..=LLVM_NEWEST).rev())
        .map(|major| format!("-{major}"))
        .find(|suffix| complete(suffix))
}

/// A busybox that runs in an initramfs without libraries.
pub fn static_busybox() -> Option<PathBuf> {
    // A dynamically linked program names its interpreter.
    let is_static = |path: &PathBuf| {
        run::output(Command::new("readelf").arg("-l").arg(path))
            .is_ok_and(|headers| !headers.contains("INTERP"))
    };
    let places = ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from);
    places.into_iter().find(is_static)
}

/// The emulated igb came with QEMU 8.
fn qemu_has_igb() -> bool {
    run::output(Command::new("qemu-system-x86_64").args(["-device", "help"]))
        .is_ok_and(|list| list.contains("\"igb\""))
}

/// Where the kernel's makefiles look for it, whatever PATH says.
fn has_depmod() -> bool {
    run::exists("depmod") || Path::new("/sbin/depmod").exists()
}

fn has_venv() -> bool {
    run::output(Command::new("python3").args(["-c", "import venv, ensurepip"])).is_ok()
}

fn codename() -> String {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let mut lines = release.lines();
    let name = lines.find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    name.unwrap_or_default().trim_matches('"').to_owned()
}

/// A bindgen that is new enough: on the machine, or installed by an earlier run.
fn bindgen(ctx: &Ctx) -> Option<PathBuf> {
    let own = ctx.cache.path(format!("bindgen-{BINDGEN}/bin/bindgen"));
    [PathBuf::from("bindgen"), own].into_iter().find(|path| {
        run::output(Command::new(path).arg("--version")).is_ok_and(|version| new_enough(&version))
    })
}

fn new_enough(version: &str) -> bool {
    let numbers = version.trim().trim_start_matches("bindgen ").split('.');
    let mut numbers = numbers.map(|number| number.parse::<u32>().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    (next(), next(), next()) >= (0, 71, 1)
}

fn install_bindgen(ctx: &Ctx) -> Result<()> {
    ctx.ui
        .step(format!("installing bindgen {BINDGEN} into the cache"));
    let fill = |dir: &Path| {
        let mut cmd = Command::new("cargo");
        cmd.args(["install", "--locked", "bindgen-cli", "--version", BINDGEN])
            .arg("--root")
            .arg(dir);
        run::logged(ctx, "bindgen", "bindgen", 110, cmd)
    };
    // cargo only writes its own list of binaries there, so that the directory can be renamed.
    ctx.cache.once(format!("bindgen-{BINDGEN}"), fill).map(drop)
}

fn rustc(args: &[&str]) -> Result<String> {
    let out = run::output(Command::new("rustc").args(args))?;
    Ok(out.trim().to_owned())
}

/// Where the library's source is: as the user says, with the toolchain, or from an earlier run.
fn rust_lib_src(ctx: &Ctx) -> Result<Option<PathBuf>> {
    let sysroot = PathBuf::from(rustc(&["--print", "sysroot"])?);
    let version = rust_version()?;
    let unpacked = format!("rust-src-{version}/usr/src/rustc-{version}/library");
    let mut places = [
        std::env::var_os("RUST_LIB_SRC").map(PathBuf::from),
        Some(sysroot.join("lib/rustlib/src/rust/library")),
        Some(ctx.cache.path(unpacked)),
    ]
    .into_iter()
    .flatten();
    Ok(places.find(|path| path.join("core/src/lib.rs").is_file()))
}

fn rust_version() -> Result<String> {
    let version = rustc(&["--version"])?;
    let version = version.split(' ').nth(1);
    Ok(version
        .context("rustc does not say its version")?
        .to_owned())
}

fn install_rust_src(ctx: &Ctx) -> Result<()> {
    if run::exists("rustup") {
        ctx.ui.step("rustup component add rust-src");
        run::output(Command::new("rustup").args(["component", "add", "rust-src"])).ok();
        if rust_lib_src(ctx)?.is_some() {
            return Ok(());
        }
    }
    let version = rust_version()?;
    ctx.ui.step(format!(
        "rustup cannot bring it: Debian's rust-src {version} from {SUITE}"
    ));
    let fill = |dir: &Path| {
        let (deb, _) = Apt::suite(ctx, SUITE)?.download(ctx, "rust-src", &version)?;
        run::output(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(dir)).map(drop)
    };
    ctx.cache
        .once(format!("rust-src-{version}"), fill)
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bindgen_versions() {
        for (version, verdict) in [
            ("bindgen 0.71.1\n", true),
            ("bindgen 1.0.0\n", true),
            ("bindgen 0.71.0\n", false),
            ("bindgen 0.66.1\n", false),
            ("nonsense", false),
        ] {
            assert_eq!(new_enough(version), verdict, "{version}");
        }
    }
}
