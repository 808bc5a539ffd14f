//! What building and booting a kernel needs on this machine, found or installed.
//!
//! What is there and good enough is used as it is; `make rustavailable` has the last word.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use miette::{IntoDiagnostic, Result, WrapErr, miette};

use crate::host::Ctx;
use crate::host::apt::Apt;
use crate::host::git::Repo;
use crate::host::run;
use crate::series::base;

/// The LLVM of Debian's that is new enough and known to work.
const LLVM: u32 = 19;
/// The oldest LLVM that the kernel's Rust support accepts.
const LLVM_OLDEST: u32 = 17;
const LLVM_NEWEST: u32 = 25;
/// Known to work; the kernel wants 0.71.1 at least.
const BINDGEN: &str = "0.73.2";
/// The emulated igb came with QEMU 8; the release before trixie has it in its backports only.
const QEMU: &str = "qemu-system-x86_64";
/// What emulates other architectures, and its packages.
const FOREIGN: [(&str, &str); 2] = [
    ("qemu-system-aarch64", "qemu-system-arm"),
    ("qemu-system-riscv64", "qemu-system-riscv"),
];
const OLD_RELEASE: &str = "bookworm";

/// A part of the toolchain: how to tell that it is there, and the packages that bring it.
struct Need {
    what: &'static str,
    there: fn() -> bool,
    packages: &'static [&'static str],
}

const SERIES: &[Need] = &[
    Need {
        what: "perl",
        there: || run::exists("perl"),
        packages: &["perl"],
    },
    Need {
        what: "xz",
        there: || run::exists("xz"),
        packages: &["xz-utils"],
    },
];

const BUILD: &[Need] = &[
    Need {
        what: "make",
        there: || run::exists("make"),
        packages: &["make"],
    },
    Need {
        what: "a host C compiler",
        there: || run::exists("gcc"),
        packages: &["gcc", "libc6-dev"],
    },
    Need {
        what: "flex",
        there: || run::exists("flex"),
        packages: &["flex"],
    },
    Need {
        what: "bison",
        there: || run::exists("bison"),
        packages: &["bison"],
    },
    Need {
        what: "bc",
        there: || run::exists("bc"),
        packages: &["bc"],
    },
    Need {
        what: "rsync",
        there: || run::exists("rsync"),
        packages: &["rsync"],
    },
    Need {
        what: "libelf's headers",
        there: || header("libelf.h"),
        packages: &["libelf-dev"],
    },
    Need {
        what: "LLVM, clang and lld",
        there: || llvm_suffix().is_some(),
        packages: &["clang-19", "lld-19", "llvm-19", "libclang-19-dev"],
    },
];

const VM: &[Need] = &[
    Need {
        what: "libuuid's headers",
        there: || header("uuid/uuid.h"),
        packages: &["uuid-dev"],
    },
    Need {
        what: "a static busybox",
        there: || static_busybox().is_some(),
        packages: &["busybox-static"],
    },
    Need {
        what: "depmod",
        // Where the kernel's makefiles look for it, whatever PATH says.
        there: || run::exists("depmod") || Path::new("/sbin/depmod").exists(),
        packages: &["kmod"],
    },
];

const KUNIT: &[Need] = &[Need {
    what: "Python",
    there: || run::exists("python3"),
    packages: &["python3"],
}];

const B4: &[Need] = &[Need {
    what: "Python's venv",
    there: || run::output(Command::new("python3").args(["-c", "import venv, ensurepip"])).is_ok(),
    packages: &["python3-venv"],
}];

const CROSS: &[Need] = &[Need {
    what: "a cross compiler for sh",
    there: || run::exists("sh4-linux-gnu-gcc"),
    packages: &["gcc-sh4-linux-gnu"],
}];

/// What a command is about to do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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

/// How to call make on a kernel tree.
pub struct Toolchain {
    llvm: String,
    bindgen: PathBuf,
    rust_lib_src: PathBuf,
    pub jobs: usize,
}

/// Installs the packages that `purposes` need and that are not there.
pub fn packages(ctx: &Ctx, purposes: &[Purpose]) -> Result<()> {
    let (needs, qemu) = missing(purposes);
    announce(ctx, &needs, &qemu, false, false)?;
    install_packages(ctx, &needs, &qemu)
}

/// What is not there, and the packages of QEMU among it.
fn missing(purposes: &[Purpose]) -> (Vec<&'static Need>, Vec<&'static str>) {
    let needs = purposes.iter().flat_map(|purpose| match purpose {
        Purpose::Series => SERIES,
        Purpose::B4 => B4,
        Purpose::Build => BUILD,
        Purpose::Vm => VM,
        Purpose::Kunit | Purpose::Foreign => KUNIT,
        Purpose::Cross => CROSS,
    });
    let boots = |purpose| matches!(purpose, &Purpose::Vm | &Purpose::Kunit);
    let mut qemu = Vec::new();
    if purposes.iter().any(boots) && !qemu_has_igb() {
        qemu.push("qemu-system-x86");
    }
    if purposes.contains(&Purpose::Foreign) {
        let missing = FOREIGN.iter().filter(|(program, _)| !run::exists(program));
        qemu.extend(missing.map(|(_, package)| package));
    }
    (needs.filter(|need| !(need.there)()).collect(), qemu)
}

fn install_packages(ctx: &Ctx, needs: &[&Need], qemu: &[&str]) -> Result<()> {
    if needs.is_empty() && qemu.is_empty() {
        return Ok(());
    }
    let backports =
        |release: &str| (release == OLD_RELEASE).then(|| format!("{OLD_RELEASE}-backports"));
    let apt = Apt::own(ctx, &backports)?;
    let packages: Vec<&str> = needs
        .iter()
        .flat_map(|need| need.packages)
        .copied()
        .collect();
    if !packages.is_empty() {
        ctx.ui.step(format!("installing {}", packages.join(" ")));
        apt.install(ctx, &packages, None)?;
    }
    if let Some(need) = needs.iter().find(|need| !(need.there)()) {
        return Err(miette!(
            "{} is still not there after installing {}",
            need.what,
            need.packages.join(" ")
        ));
    }
    if !qemu.is_empty() {
        ctx.ui.step(format!("installing {}", qemu.join(" ")));
        apt.install(ctx, qemu, backports(&codename()).as_deref())?;
        if !qemu_has_igb() {
            return Err(miette!(
                "the QEMU of this system's packages has no igb device: install QEMU 8 or newer"
            ));
        }
    }
    Ok(())
}

impl Toolchain {
    /// Finds or installs what `purposes` need; `tree` is a kernel tree that can judge it.
    pub fn open(ctx: &Ctx, tree: &Repo, purposes: &[Purpose]) -> Result<Toolchain> {
        let (needs, qemu) = missing(purposes);
        let bindgen = bindgen(ctx);
        let rust_lib_src = rust_lib_src(ctx)?;
        announce(
            ctx,
            &needs,
            &qemu,
            bindgen.is_none(),
            rust_lib_src.is_none(),
        )?;
        install_packages(ctx, &needs, &qemu)?;
        let bindgen = match bindgen {
            Some(path) => path,
            None => install_bindgen(ctx)?,
        };
        let rust_lib_src = match rust_lib_src {
            Some(path) => path,
            None => install_rust_src(ctx)?,
        };
        let llvm = llvm_suffix().ok_or_else(|| {
            miette!("LLVM {LLVM_OLDEST} or newer is still not there after installing it")
        })?;
        let jobs = std::thread::available_parallelism()
            .into_diagnostic()?
            .get();
        let toolchain = Toolchain {
            llvm,
            bindgen,
            rust_lib_src,
            jobs,
        };
        let mut check = toolchain.make(tree, Path::new(""), "x86_64");
        check.arg("rustavailable");
        run::output(&mut check)
            .wrap_err("the toolchain does not satisfy this kernel (make rustavailable)")?;
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
            .env("KBUILD_BUILD_HOST", "xtask")
            .env_remove("CROSS_COMPILE")
            .env_remove("KBUILD_OUTPUT")
            .env_remove("MAKEFLAGS")
            .env_remove("MAKELEVEL");
    }

    pub fn clang(&self) -> String {
        format!("clang{}", self.llvm)
    }

    pub fn size(&self) -> String {
        format!("llvm-size{}", self.llvm)
    }
}

/// Names what will be installed, or stops there when nothing may be.
fn announce(
    ctx: &Ctx,
    missing: &[&Need],
    qemu: &[&str],
    bindgen: bool,
    rust_src: bool,
) -> Result<()> {
    let mut list: Vec<String> = missing
        .iter()
        .map(|need| format!("{} (packages {})", need.what, need.packages.join(" ")))
        .collect();
    if !qemu.is_empty() {
        list.push(format!("QEMU 8 or newer (packages {})", qemu.join(" ")));
    }
    if bindgen {
        list.push(format!("bindgen (cargo install bindgen-cli {BINDGEN})"));
    }
    if rust_src {
        list.push(
            "the source of Rust's library (rustup component add rust-src, or Debian's rust-src)"
                .to_owned(),
        );
    }
    if list.is_empty() {
        return Ok(());
    }
    let list = list.join(", ");
    if !ctx.install {
        return Err(miette!(
            "missing on this machine, and --no-install was given: {list}"
        ));
    }
    ctx.ui
        .step(format!("missing on this machine, to be installed: {list}"));
    Ok(())
}

fn header(name: &str) -> bool {
    let multiarch = Path::new("/usr/include").join(format!("{}-linux-gnu", std::env::consts::ARCH));
    Path::new("/usr/include").join(name).exists() || multiarch.join(name).exists()
}

/// The suffix of a complete LLVM: what is unversioned if it is new enough, else `-19` first.
fn llvm_suffix() -> Option<String> {
    let complete = |suffix: &str| {
        [
            "clang",
            "ld.lld",
            "llvm-ar",
            "llvm-nm",
            "llvm-objcopy",
            "llvm-objdump",
            "llvm-readelf",
            "llvm-strip",
        ]
        .iter()
        .all(|tool| run::exists(&format!("{tool}{suffix}")))
    };
    let unversioned = complete("")
        && run::output(Command::new("clang").arg("-dumpversion"))
            .ok()
            .and_then(|version| version.split('.').next()?.trim().parse::<u32>().ok())
            .is_some_and(|major| major >= LLVM_OLDEST);
    if unversioned {
        return Some(String::new());
    }
    std::iter::once(LLVM)
        .chain((LLVM_OLDEST..=LLVM_NEWEST).rev())
        .map(|major| format!("-{major}"))
        .find(|suffix| complete(suffix))
}

/// A busybox that runs in an initramfs without libraries.
pub fn static_busybox() -> Option<PathBuf> {
    ["/bin/busybox", "/usr/bin/busybox"]
        .iter()
        .map(PathBuf::from)
        .find(|path| {
            // A dynamically linked program names its interpreter.
            run::output(Command::new("readelf").args(["-l"]).arg(path))
                .is_ok_and(|headers| !headers.contains("INTERP"))
        })
}

fn qemu_has_igb() -> bool {
    run::exists(QEMU)
        && run::output(Command::new(QEMU).args(["-device", "help"]))
            .is_ok_and(|list| list.contains("\"igb\""))
}

fn codename() -> String {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="));
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
    let mut numbers = version
        .trim()
        .trim_start_matches("bindgen ")
        .split('.')
        .map(|number| number.parse::<u32>().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    (next(), next(), next()) >= (0, 71, 1)
}

fn install_bindgen(ctx: &Ctx) -> Result<PathBuf> {
    ctx.ui
        .step(format!("installing bindgen {BINDGEN} into the cache"));
    let dir = ctx.cache.once(format!("bindgen-{BINDGEN}"), |dir| {
        let mut cmd = Command::new("cargo");
        cmd.args([
            "install",
            "--locked",
            "bindgen-cli",
            "--version",
            BINDGEN,
            "--root",
        ])
        .arg(dir);
        // `once` renames the directory; cargo only writes its own list of binaries there.
        run::logged(ctx, "bindgen", "bindgen", 110, cmd)
    })?;
    Ok(dir.join("bin/bindgen"))
}

fn rustc(args: &[&str]) -> Result<String> {
    Ok(run::output(Command::new("rustc").args(args))?
        .trim()
        .to_owned())
}

/// Where the library's source is: as the user says, with the toolchain, or from an earlier run.
fn rust_lib_src(ctx: &Ctx) -> Result<Option<PathBuf>> {
    let said = std::env::var_os("RUST_LIB_SRC").map(PathBuf::from);
    let candidates = [
        said,
        Some(PathBuf::from(rustc(&["--print", "sysroot"])?).join("lib/rustlib/src/rust/library")),
        Some(unpacked(ctx)?),
    ];
    Ok(candidates
        .into_iter()
        .flatten()
        .find(|path| path.join("core/src/lib.rs").is_file()))
}

fn rust_version() -> Result<String> {
    let version = rustc(&["--version"])?;
    let version = version
        .split(' ')
        .nth(1)
        .ok_or_else(|| miette!("rustc does not say its version"))?;
    Ok(version.to_owned())
}

fn unpacked(ctx: &Ctx) -> Result<PathBuf> {
    let version = rust_version()?;
    Ok(ctx.cache.path(format!(
        "rust-src-{version}/usr/src/rustc-{version}/library"
    )))
}

fn install_rust_src(ctx: &Ctx) -> Result<PathBuf> {
    if run::exists("rustup") {
        ctx.ui.step("rustup component add rust-src");
        if run::output(Command::new("rustup").args(["component", "add", "rust-src"])).is_ok()
            && let Some(path) = rust_lib_src(ctx)?
        {
            return Ok(path);
        }
    }
    let version = rust_version()?;
    ctx.ui.step(format!(
        "rustup cannot bring it: Debian's rust-src {version} from {}",
        base::SUITE
    ));
    ctx.cache.once(format!("rust-src-{version}"), |dir| {
        let apt = Apt::suite(ctx, base::SUITE)?;
        let (deb, _) = apt.download(ctx, "rust-src", &version)?;
        run::output(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(dir))?;
        fs::remove_file(&deb).into_diagnostic()
    })?;
    rust_lib_src(ctx)?
        .ok_or_else(|| miette!("Debian's rust-src has no library source where it is expected"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bindgen_versions() {
        assert!(new_enough("bindgen 0.71.1\n"));
        assert!(new_enough("bindgen 0.73.2\n"));
        assert!(new_enough("bindgen 1.0.0\n"));
        assert!(!new_enough("bindgen 0.71.0\n"));
        assert!(!new_enough("bindgen 0.66.1\n"));
        assert!(!new_enough("nonsense"));
    }
}
