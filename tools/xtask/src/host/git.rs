//! git, deaf to the user's configuration so that the same input gives the same result everywhere.

use std::path::{Path, PathBuf};
use std::process::Command;

use miette::{Result, miette};

use crate::host::run;

/// Who signs the series.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub name: String,
    pub email: String,
    /// Whether this is somebody, who may therefore sign off.
    pub signs: bool,
}

impl Identity {
    /// The git identity of whoever runs this, in their own configuration.
    pub fn of(root: &Path) -> Identity {
        match (setting(root, "user.name"), setting(root, "user.email")) {
            (Some(name), Some(email)) => Identity {
                name,
                email,
                signs: true,
            },
            _ => Identity {
                name: "VFIO placement series".to_owned(),
                email: "nobody@localhost".to_owned(),
                signs: false,
            },
        }
    }

    pub fn address(&self) -> String {
        format!("{} <{}>", self.name, self.email)
    }
}

/// A setting of the user's, as git in `dir` sees it.
pub fn setting(dir: &Path, key: &str) -> Option<String> {
    // git ends with an error for a key that is not set.
    run::output(clean(Command::new("git").arg("-C").arg(dir)).args(["config", key]))
        .ok()
        .map(|value| value.trim().to_owned())
        .filter(|value| !value.is_empty())
}

/// A repository or worktree.
#[derive(Clone)]
pub struct Repo {
    pub dir: PathBuf,
    /// Whether the user's configuration applies: it may say whose repositories git trusts.
    users: bool,
}

/// Removes what a surrounding git (a hook, a rebase) would impose on a command.
pub fn clean(cmd: &mut Command) -> &mut Command {
    for name in [
        "GIT_DIR",
        "GIT_WORK_TREE",
        "GIT_INDEX_FILE",
        "GIT_OBJECT_DIRECTORY",
    ] {
        cmd.env_remove(name);
    }
    cmd
}

impl Repo {
    pub fn new(dir: impl Into<PathBuf>) -> Repo {
        Repo {
            dir: dir.into(),
            users: false,
        }
    }

    /// The repository that this program belongs to.
    pub fn users(dir: impl Into<PathBuf>) -> Repo {
        Repo {
            dir: dir.into(),
            users: true,
        }
    }

    pub fn command(&self) -> Command {
        let mut cmd = Command::new("git");
        clean(&mut cmd).arg("-C").arg(&self.dir).env("LC_ALL", "C");
        if self.users {
            // What somebody ignores everywhere may be a part of the series here.
            cmd.args(["-c", "core.excludesFile=/dev/null"]);
        } else {
            cmd.env("GIT_CONFIG_GLOBAL", "/dev/null")
                .env("GIT_CONFIG_NOSYSTEM", "1");
        }
        cmd
    }

    /// Runs git and returns its output without the last newline.
    pub fn git<I: AsRef<std::ffi::OsStr>>(
        &self,
        args: impl IntoIterator<Item = I>,
    ) -> Result<String> {
        Ok(run::output(self.command().args(args))?
            .trim_end_matches('\n')
            .to_owned())
    }

    pub fn blob(&self, commit: &str, path: &str) -> Result<Vec<u8>> {
        run::bytes(
            self.command()
                .args(["cat-file", "blob", &format!("{commit}:{path}")]),
        )
    }

    pub fn tree(&self, commit: &str) -> Result<String> {
        self.git(["rev-parse", "--verify", &format!("{commit}^{{tree}}")])
    }

    /// Paths that differ between two commits.
    pub fn changed(&self, from: &str, to: &str) -> Result<Vec<String>> {
        let out = self.git(["diff", "--name-only", "-z", "--no-renames", from, to])?;
        Ok(out
            .split('\0')
            .filter(|path| !path.is_empty())
            .map(str::to_owned)
            .collect())
    }

    /// Brings a worktree of this repository to `commit`, touching only the files that differ, so
    /// that a kernel build in it stays incremental.
    pub fn worktree(&self, name: &str, dir: &Path, commit: &str) -> Result<Repo> {
        let tree = Repo::new(dir);
        if !dir.join(".git").exists() {
            self.git(["worktree", "prune"])?;
            if dir.exists() {
                return Err(miette!(
                    "{} is in the way of the {name} worktree: remove it",
                    dir.display()
                ));
            }
            self.git([
                "worktree",
                "add",
                "--quiet",
                "--detach",
                &dir.to_string_lossy(),
                commit,
            ])?;
            return Ok(tree);
        }
        // We hold the cache's lock, so an index lock here is what a killed run left behind.
        let lock = PathBuf::from(tree.git(["rev-parse", "--absolute-git-dir"])?).join("index.lock");
        if lock.exists() {
            std::fs::remove_file(&lock)
                .map_err(|e| miette!("cannot remove {}: {e}", lock.display()))?;
        }
        tree.git(["reset", "--quiet", "--hard", commit])?;
        tree.git(["clean", "-fdxq"])?;
        Ok(tree)
    }
}
