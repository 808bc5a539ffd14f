//! Kernel builds: one object tree per configuration, kept between runs.

pub mod extracts;
pub mod size;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use miette::{IntoDiagnostic, Result, WrapErr, miette};

use crate::host::Ctx;
use crate::host::git::Repo;
use crate::host::run;
use crate::host::toolchain::Toolchain;
use crate::series::Assembled;

/// A configuration: files in tools/xtask/configs on top of `base`.
pub struct Config {
    pub name: &'static str,
    /// The configuration whose file comes before its own.
    on: Option<&'static str>,
    pub arch: &'static str,
    pub base: &'static str,
    /// What is built of it.
    pub targets: &'static [&'static str],
    /// The directories of it that the series has code in.
    pub parts: &'static [&'static str],
    /// About how many lines a build of everything prints, for the first bar.
    lines: u64,
}

impl Config {
    /// As little as there can be of an architecture, with the symbols of `on` and its own.
    pub const fn tiny(name: &'static str, arch: &'static str, on: &'static str) -> Config {
        Config {
            name,
            on: Some(on),
            arch,
            base: "tinyconfig",
            targets: &["all"],
            parts: &[],
            lines: 0,
        }
    }
}

/// What the virtual machine boots.
pub const VM: Config = Config {
    name: "vm",
    on: None,
    arch: "x86_64",
    base: "tinyconfig",
    targets: &["bzImage", "modules"],
    parts: &["mm/", "drivers/vfio/", "rust/", "samples/rust/"],
    lines: 2000,
};

/// What the same machine boots to have the kernel check itself.
pub const DEBUG: Config = Config {
    name: "debug",
    on: Some(VM.name),
    lines: 2500,
    ..VM
};

/// Where the series has code in C.
const PARTS: &[&str] = &["mm/", "drivers/vfio/"];
/// Where it has code that only some architectures have.
const VFIO: &[&str] = &["drivers/vfio/"];

/// What only has to compile; each file says what it is there for.
pub const COMPILE: &[Config] = &[
    Config {
        name: "sh-nommu",
        on: None,
        arch: "sh",
        base: "allnoconfig",
        targets: PARTS,
        parts: PARTS,
        lines: 130,
    },
    Config {
        name: "i386",
        on: None,
        arch: "i386",
        base: "tinyconfig",
        targets: PARTS,
        parts: PARTS,
        lines: 140,
    },
    Config {
        name: "x86-64-no-thp",
        on: None,
        arch: "x86_64",
        base: "tinyconfig",
        targets: PARTS,
        parts: PARTS,
        lines: 180,
    },
    Config {
        name: "x86-64-variants",
        on: None,
        arch: "x86_64",
        base: "tinyconfig",
        targets: VFIO,
        parts: VFIO,
        lines: 130,
    },
    Config {
        name: "s390",
        on: None,
        arch: "s390",
        base: "tinyconfig",
        targets: VFIO,
        parts: VFIO,
        lines: 90,
    },
];

pub struct Kernel<'a> {
    pub ctx: &'a Ctx,
    pub toolchain: &'a Toolchain,
    pub tree: &'a Repo,
    /// Where the object trees of this base are.
    pub objects: PathBuf,
    /// Whether the tree has all of the series: a prefix lacks symbols that a later commit adds.
    pub whole: bool,
}

impl<'a> Kernel<'a> {
    pub fn new(ctx: &'a Ctx, toolchain: &'a Toolchain, all: &'a Assembled) -> Kernel<'a> {
        Kernel {
            ctx,
            toolchain,
            tree: &all.tree,
            objects: all.base.dir.clone(),
            whole: true,
        }
    }

    pub fn out(&self, config: &Config) -> PathBuf {
        self.objects.join(format!("obj-{}", config.name))
    }

    pub fn make(&self, config: &Config) -> std::process::Command {
        self.toolchain
            .make(self.tree, &self.out(config), config.arch)
    }

    /// Writes `.config` and makes sure that every symbol of the fragment took. kbuild compares the
    /// configuration symbol by symbol, so writing an equal one rebuilds nothing.
    pub fn configure(&self, config: &Config) -> Result<()> {
        let mut wanted = String::new();
        for name in config.on.iter().chain([&config.name]) {
            let fragment = format!("tools/xtask/configs/{name}.config");
            wanted += &fs::read_to_string(self.ctx.root.join(&fragment))
                .into_diagnostic()
                .wrap_err_with(|| format!("cannot read {fragment}"))?;
        }
        let out = self.out(config);
        fs::create_dir_all(&out).into_diagnostic()?;
        let mut base = self.make(config);
        base.arg(config.base);
        run::output(&mut base)
            .wrap_err_with(|| format!("make {} of {}", config.base, config.name))?;
        let plain = fs::read_to_string(out.join(".config")).into_diagnostic()?;
        // Later lines win; kconfig warns of the repetition, which is meant.
        fs::write(out.join(".config"), format!("{plain}\n{wanted}")).into_diagnostic()?;
        let mut resolve = self.make(config);
        resolve.arg("olddefconfig");
        run::output(&mut resolve)?;
        let got = fs::read_to_string(out.join(".config")).into_diagnostic()?;
        let mut refused = refused(&wanted, &got);
        if !self.whole {
            refused.retain(|setting| self.defines(setting));
        }
        if !refused.is_empty() {
            return Err(miette!(
                "the configuration {} does not take {}: what they depend on is missing",
                config.name,
                refused.join(", ")
            ));
        }
        Ok(())
    }

    /// Whether the tree has the symbol of a line of `.config`.
    fn defines(&self, setting: &str) -> bool {
        let symbol = setting.trim_start_matches("CONFIG_");
        let symbol = symbol.split('=').next().unwrap_or(symbol);
        let pattern = format!("^(menu)?config {symbol}$");
        self.tree
            .git(["grep", "-qE", &pattern, "--", "*Kconfig*"])
            .is_ok()
    }

    /// Builds `targets` in the configuration.
    pub fn build(&self, config: &Config, targets: &[&str]) -> Result<()> {
        let mut cmd = self.make(config);
        cmd.args(targets);
        let log = format!("build-{}", config.name);
        let label = format!("build {} ({})", config.name, targets.join(" "));
        run::logged(self.ctx, &log, &label, config.lines, cmd)
    }

    /// The virtual machine's kernel, and its modules; returns the image.
    pub fn vm(&self) -> Result<PathBuf> {
        self.bootable(&VM)
    }

    /// The same in any configuration.
    pub fn bootable(&self, config: &Config) -> Result<PathBuf> {
        self.configure(config)?;
        self.build(config, config.targets)?;
        let root = crate::host::cache::fresh(&self.installed(config))?;
        let mut install = self.make(config);
        install
            .args(["modules_install", "INSTALL_MOD_STRIP=1"])
            .arg(format!("INSTALL_MOD_PATH={}", root.display()));
        run::logged(self.ctx, "modules", "modules", 0, install)?;
        Ok(self.image(config))
    }

    fn installed(&self, config: &Config) -> PathBuf {
        self.objects.join(format!("modules-{}", config.name))
    }

    /// Where `bootable` leaves the image.
    pub fn image(&self, config: &Config) -> PathBuf {
        self.out(config).join("arch/x86/boot/bzImage")
    }

    /// Where it leaves the modules.
    pub fn modules(&self, config: &Config) -> PathBuf {
        self.installed(config).join("lib/modules")
    }

    /// The tree's VFIO selftests, linked statically for the initramfs; returns their directory.
    pub fn selftests(&self) -> Result<PathBuf> {
        let out = self.out(&VM);
        let mut headers = self.make(&VM);
        headers.arg("headers_install");
        run::logged(self.ctx, "headers", "headers", 0, headers)?;
        let dir = self.objects.join("selftests");
        // Their makefiles know nothing of headers that changed, and they take seconds.
        crate::host::cache::fresh(&dir)?;
        let mut cmd = std::process::Command::new("make");
        cmd.arg("-C")
            .arg(self.tree.dir.join("tools/testing/selftests"))
            .arg(format!("-j{}", self.toolchain.jobs))
            .args(["TARGETS=vfio", "EXTRA_CFLAGS=-static -O2", "all"])
            .arg(format!("CC={}", self.toolchain.clang()))
            .arg(format!("O={}", dir.display()))
            .arg(format!(
                "KHDR_INCLUDES=-isystem {}",
                out.join("usr/include").display()
            ))
            .env_remove("MAKEFLAGS")
            .env_remove("MAKELEVEL");
        run::logged(self.ctx, "selftests", "selftests", 60, cmd)?;
        Ok(dir.join("kselftest/vfio"))
    }
}

/// Symbols of fragments, of which the last has the last word, that the final configuration has
/// otherwise.
fn refused(fragment: &str, config: &str) -> Vec<String> {
    let got: BTreeMap<&str, &str> = config
        .lines()
        .filter_map(|line| line.split_once('='))
        .collect();
    let wanted: BTreeMap<&str, &str> = fragment
        .lines()
        .filter_map(|line| match line.strip_prefix("# ") {
            Some(unset) => unset
                .strip_suffix(" is not set")
                .map(|symbol| (symbol, "n")),
            None => line.split_once('='),
        })
        .collect();
    wanted
        .into_iter()
        .filter(|(symbol, value)| got.get(symbol).copied().unwrap_or("n") != *value)
        .map(|(symbol, value)| format!("{symbol}={value}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbols_that_did_not_take() {
        let fragment =
            "# Why.\nCONFIG_A=y\nCONFIG_B=m\n# CONFIG_C is not set\n# CONFIG_D is not set\n";
        let config = "CONFIG_A=y\nCONFIG_B=y\n# CONFIG_C is not set\nCONFIG_D=y\n";
        assert_eq!(refused(fragment, config), ["CONFIG_B=m", "CONFIG_D=n"]);
        assert!(refused("CONFIG_D=m\nCONFIG_D=y\n", config).is_empty());
    }
}
