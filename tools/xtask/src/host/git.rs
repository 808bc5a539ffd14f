//! git, deaf to the user's configuration so that the same input gives the same result everywhere.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, anyhow};
use fs_err as fs;

use super::run;

/// Who makes the series.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub name: String,
    pub email: String,
    /// Whether this is somebody who has said so, and therefore signs off and maintains.
    pub signs: bool,
}

impl Identity {
    /// Whoever runs this, as git knows them in `root`, if they want to sign; else nobody.
    pub fn of(root: &Path, signs: bool) -> Result<Identity> {
        let own = |key| {
            setting(root, key).ok_or_else(|| {
                anyhow!("--signoff needs a name to sign with\nhelp: set `git config {key}`")
            })
        };
        Ok(match signs {
            true => Identity {
                name: own("user.name")?,
                email: own("user.email")?,
                signs,
            },
            false => Identity {
                name: "VFIO placement series".to_owned(),
                email: "nobody@localhost".to_owned(),
                signs,
            },
        })
    }

    pub fn address(&self) -> String {
        format!("{} <{}>", self.name, self.email)
    }

    /// Has git commit in this name.
    pub fn commits<'a>(&self, cmd: &'a mut Command) -> &'a mut Command {
        for role in ["AUTHOR", "COMMITTER"] {
            cmd.env(format!("GIT_{role}_NAME"), &self.name)
                .env(format!("GIT_{role}_EMAIL"), &self.email);
        }
        cmd
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

    pub fn has(&self, commit: &str, path: &str) -> bool {
        self.git(["cat-file", "-e", &format!("{commit}:{path}")])
            .is_ok()
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

    /// Removes the locks that a run that was killed left behind, but for those of worktrees other
    /// than `ours`, where the user's own git may be at work. Whoever calls this holds the cache's.
    pub fn remove_locks(&self, ours: &[&str]) -> Result<()> {
        let mut dirs = vec![self.dir.clone()];
        while let Some(dir) = dirs.pop() {
            let worktrees = dir.ends_with("worktrees");
            for entry in fs::read_dir(&dir)? {
                let path = entry?.path();
                let foreign = worktrees && !ours.iter().any(|name| path.ends_with(name));
                if path.is_dir() && !path.ends_with("objects") && !foreign {
                    dirs.push(path);
                } else if path.is_file() && path.extension().is_some_and(|end| end == "lock") {
                    fs::remove_file(&path)?;
                }
            }
        }
        Ok(())
    }

    /// Brings a worktree of this repository to `commit`, touching only the files that differ, so
    /// that a kernel build in it stays incremental.
    pub fn worktree(&self, dir: &Path, commit: &str) -> Result<Repo> {
        let tree = Repo::new(dir);
        let whole = dir.join(".git").exists() && tree.git(["rev-parse", "HEAD"]).is_ok();
        if whole {
            tree.git(["reset", "--quiet", "--hard", commit])?;
            tree.git(["clean", "-fdxq"])?;
            return Ok(tree);
        }
        // What is there is left of a run that was killed.
        if dir.exists() {
            fs::remove_dir_all(dir)?;
        }
        self.add_worktree(dir, &[commit])
    }

    /// Makes a worktree where there is none.
    pub fn add_worktree(&self, dir: &Path, args: &[&str]) -> Result<Repo> {
        let place = dir.to_string_lossy();
        self.git(["worktree", "prune"])?;
        let mut add = vec!["worktree", "add", "-ff", "--quiet", "--detach", &place];
        add.extend(args);
        self.git(add)?;
        Ok(Repo::new(dir))
    }
}
