//! The cache: one directory outside the checkout, locked while in use.
//!
//! Nothing in it is trusted because it exists: a directory is built under a temporary name and
//! renamed when it is complete, a stamp is written last.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use fs_err::{self as fs, File};

use super::ui::Ui;

/// Moves the cache elsewhere.
pub const VARIABLE: &str = "VFIO_SERIES_CACHE";

pub struct Cache {
    root: PathBuf,
    lock: File,
}

impl Cache {
    pub fn open(ui: &Ui) -> Result<Cache> {
        Cache::at(location()?, ui)
    }

    pub fn at(root: PathBuf, ui: &Ui) -> Result<Cache> {
        usable(&root)?;
        fs::create_dir_all(root.join("logs"))?;
        fs::create_dir_all(root.join("lines"))?;
        let lock = File::create(root.join("lock"))?;
        if lock.try_lock().is_err() {
            ui.step(format!(
                "waiting for another run that uses {}",
                root.display()
            ));
            lock.lock()?;
        }
        Ok(Cache { root, lock })
    }

    /// Lets other runs in while this one only holds a shell open.
    pub fn unlock(&self) -> Result<()> {
        Ok(self.lock.unlock()?)
    }

    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.root.join(relative)
    }

    pub fn log(&self, name: &str) -> PathBuf {
        self.root.join("logs").join(format!("{name}.log"))
    }

    /// Builds the directory `relative` with `fill`, unless it is already there.
    pub fn once(
        &self,
        relative: impl AsRef<Path>,
        fill: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let target = self.root.join(relative);
        if target.exists() {
            return Ok(target);
        }
        let temporary = fresh(&target.with_extension("partial"))?;
        fill(&temporary)?;
        fs::rename(&temporary, &target)?;
        Ok(target)
    }

    /// How many lines the longest run with this log printed.
    pub fn lines(&self, log: &str) -> Option<u64> {
        let text = fs::read_to_string(self.root.join("lines").join(log)).ok()?;
        text.trim().parse().ok()
    }

    pub fn set_lines(&self, log: &str, lines: u64) -> Result<()> {
        Ok(fs::write(
            self.root.join("lines").join(log),
            lines.to_string(),
        )?)
    }
}

/// An empty directory at `path`, whatever was there before.
pub fn fresh(path: &Path) -> Result<PathBuf> {
    if path.exists() {
        fs::remove_dir_all(path)?;
    }
    fs::create_dir_all(path)?;
    Ok(path.to_owned())
}

/// Refuses a path that make, QEMU or a list of paths would take apart.
pub fn usable(path: &Path) -> Result<()> {
    let text = path.to_str().unwrap_or(" ");
    if text.contains(|c: char| c.is_whitespace() || ":,#$'\"\\".contains(c)) {
        bail!(
            "{} cannot be used: make and QEMU take such a path apart\nhelp: choose one without blanks, colons, commas and quotes",
            path.display()
        );
    }
    Ok(())
}

fn location() -> Result<PathBuf> {
    let set = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let path = set(VARIABLE)
        .or_else(|| set("XDG_CACHE_HOME").map(|dir| dir.join("vfio-series")))
        .or_else(|| set("HOME").map(|dir| dir.join(".cache/vfio-series")))
        .ok_or_else(|| {
            anyhow!("no HOME, so no place for a cache: set {VARIABLE} to a directory")
        })?;
    std::path::absolute(path).context("the cache has no place")
}
