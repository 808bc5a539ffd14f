//! Kernel builds: one object tree per configuration, kept between runs.

pub mod extracts;
pub mod size;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use fs_err as fs;

use crate::facts::{Config, FACTS};
use crate::host::git::Repo;
use crate::host::toolchain::{self, Toolchain};
use crate::host::{Ctx, cache, run};
use crate::series::Assembled;

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

    pub fn make(&self, config: &Config) -> Command {
        self.toolchain
            .make(self.tree, &self.out(config), &config.arch)
    }

    /// Writes `.config` and makes sure that every symbol of the fragment took. kbuild compares the
    /// configuration symbol by symbol, so writing an equal one rebuilds nothing.
    pub fn configure(&self, config: &Config) -> Result<()> {
        let mut wanted = String::new();
        for name in config.on.iter().chain([&config.name]) {
            let fragment = self
                .ctx
                .root
                .join(format!("tools/xtask/configs/{name}.config"));
            wanted += &fs::read_to_string(fragment)?;
        }
        let out = self.out(config);
        fs::create_dir_all(&out)?;
        run::output(self.make(config).arg(&config.base))
            .with_context(|| format!("make {} of {}", config.base, config.name))?;
        let plain = fs::read_to_string(out.join(".config"))?;
        // Later lines win; kconfig warns of the repetition, which is meant.
        fs::write(out.join(".config"), format!("{plain}\n{wanted}"))?;
        run::output(self.make(config).arg("olddefconfig"))?;
        let got = fs::read_to_string(out.join(".config"))?;
        let mut refused = refused(&wanted, &got);
        if !self.whole {
            refused.retain(|setting| self.defines(setting));
        }
        if !refused.is_empty() {
            bail!(
                "the configuration {} does not take {}: what they depend on is missing",
                config.name,
                refused.join(", ")
            );
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
    pub fn build(&self, config: &Config, targets: &[impl AsRef<str>]) -> Result<()> {
        let targets: Vec<&str> = targets.iter().map(AsRef::as_ref).collect();
        let mut cmd = self.make(config);
        cmd.args(&targets);
        let log = format!("build-{}", config.name);
        let label = format!("build {} ({})", config.name, targets.join(" "));
        run::logged(self.ctx, &log, &label, config.lines, cmd)
    }

    /// A kernel that a virtual machine boots, and its modules.
    pub fn bootable(&self, config: &Config) -> Result<()> {
        self.configure(config)?;
        self.build(config, &config.targets)?;
        let root = cache::fresh(&self.installed(config))?;
        let mut install = self.make(config);
        install
            .args(["modules_install", "INSTALL_MOD_STRIP=1"])
            .arg(format!("INSTALL_MOD_PATH={}", root.display()));
        run::logged(self.ctx, "modules", "modules", 0, install)
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
        let mut headers = self.make(FACTS.vm());
        headers.arg("headers_install");
        run::logged(self.ctx, "headers", "headers", 0, headers)?;
        let include = self.out(FACTS.vm()).join("usr/include");
        // Their makefiles know nothing of headers that changed, and they take seconds.
        let dir = cache::fresh(&self.objects.join("selftests"))?;
        let mut cmd = Command::new("make");
        cmd.arg("-C")
            .arg(self.tree.dir.join("tools/testing/selftests"))
            .arg(format!("-j{}", self.toolchain.jobs))
            .args(["TARGETS=vfio", "EXTRA_CFLAGS=-static -O2", "all"])
            .arg(format!("CC={}", self.toolchain.clang()))
            .arg(format!("O={}", dir.display()))
            .arg(format!("KHDR_INCLUDES=-isystem {}", include.display()));
        toolchain::callers(&mut cmd);
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
    let differs = |(symbol, value): &(&str, &str)| got.get(symbol).unwrap_or(&"n") != value;
    wanted
        .into_iter()
        .filter(differs)
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
