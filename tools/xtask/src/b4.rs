//! b4 from PyPI: what the checkout and the export must be good for.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use miette::{IntoDiagnostic, Result, miette};

use crate::base::{self, Base};
use crate::git::{self, Repo};
use crate::toolchain::{self, Purpose};
use crate::{Assembled, Ctx, cache, checkout, run};

const VERSION: &str = "0.16.0";

pub struct B4 {
    program: PathBuf,
    dir: PathBuf,
}

impl B4 {
    /// b4 in a virtual environment of its own.
    pub fn open(ctx: &Ctx) -> Result<B4> {
        let environment = ctx.cache.path(format!("b4-{VERSION}"));
        // An environment names its own place and so cannot be renamed: a stamp says it is complete.
        let stamp = environment.join("complete");
        if !stamp.exists() {
            if !ctx.install {
                return Err(miette!(
                    "missing on this machine, and --no-install was given: b4 {VERSION} from PyPI"
                ));
            }
            toolchain::packages(ctx, &[Purpose::B4])?;
            ctx.ui
                .step(format!("installing b4 {VERSION} from PyPI into the cache"));
            cache::fresh(&environment)?;
            run::output(
                Command::new("python3")
                    .args(["-m", "venv"])
                    .arg(&environment),
            )?;
            let mut pip = Command::new(environment.join("bin/pip"));
            pip.args(["install", "--no-input", &format!("b4=={VERSION}")]);
            run::logged(ctx, "b4", "b4", 60, pip)?;
            fs::write(&stamp, "").into_diagnostic()?;
        }
        let dir = cache::fresh(&ctx.cache.path("b4-proof"))?;
        Ok(B4 {
            program: environment.join("bin/b4"),
            dir,
        })
    }

    fn command(&self, tree: &Path) -> Command {
        let mut cmd = Command::new(&self.program);
        // b4 keeps its caches where these say.
        git::clean(&mut cmd)
            .current_dir(tree)
            .env("XDG_CACHE_HOME", self.dir.join("cache"))
            .env("XDG_DATA_HOME", self.dir.join("data"));
        cmd
    }

    /// A checkout as `cargo xtask checkout` makes it, in a repository that is not the user's.
    pub fn checkout(&self, ctx: &Ctx, all: &Assembled) -> Result<PathBuf> {
        let repo = Repo::new(self.dir.join("repo.git"));
        all.base.repo.git([
            "clone",
            "--quiet",
            "--bare",
            "--shared",
            ".",
            &repo.dir.to_string_lossy(),
        ])?;
        let base = Base {
            repo,
            commit: all.base.commit.clone(),
            dir: self.dir.clone(),
        };
        checkout::checkout(ctx, &base, all)
    }

    pub fn show_info(&self, tree: &Path, all: &Assembled) -> Result<()> {
        let info = run::output(self.command(tree).args(["prep", "--show-info"]))?;
        for expected in [
            format!("cover-subject: {}", all.series.cover.subject),
            format!("base-branch: {}", base::BRANCH),
            format!("series-range: {}..{}", all.base.commit, all.tip()),
        ] {
            if !info.lines().any(|line| line == expected) {
                return Err(miette!(
                    "b4 prep --show-info does not say `{expected}`:\n{info}"
                ));
            }
        }
        Ok(())
    }

    /// The mails that b4 would send, written to files.
    pub fn send(&self, tree: &Path, all: &Assembled) -> Result<()> {
        let out = self.dir.join("mails");
        run::output(
            self.command(tree)
                .args(["send", "--no-sign", "-o"])
                .arg(&out),
        )?;
        let mails = fs::read_dir(&out).into_diagnostic()?.count();
        if mails != all.made.len() + 1 {
            return Err(miette!(
                "b4 send wrote {mails} mails for {} commits",
                all.made.len()
            ));
        }
        Ok(())
    }

    /// What `b4 am` makes of the exported files, applied: the same tree.
    pub fn am(&self, tree: &Path, all: &Assembled, files: &[PathBuf]) -> Result<()> {
        let mailbox = self.dir.join("export.mbox");
        let mut text = Vec::new();
        for file in files {
            text.extend(fs::read(file).into_diagnostic()?);
        }
        fs::write(&mailbox, text).into_diagnostic()?;
        let out = self.dir.join("am");
        let mut cmd = self.command(tree);
        cmd.args(["am", "--no-cover", "-n", "series", "-m"])
            .arg(&mailbox)
            .arg("-o")
            .arg(&out);
        run::output(&mut cmd)?;
        let repo = Repo::new(tree);
        repo.git(["checkout", "--quiet", "--detach", &all.base.commit])?;
        let mut am = repo.command();
        am.env("GIT_COMMITTER_NAME", "b4 am")
            .env("GIT_COMMITTER_EMAIL", "nobody@localhost");
        am.args(["am", "--quiet"]).arg(out.join("series.mbx"));
        run::output(&mut am)?;
        let (got, want) = (repo.tree("HEAD")?, all.base.repo.tree(all.tip())?);
        if got != want {
            return Err(miette!(
                "what b4 am makes of the export gives tree {got}, not {want}"
            ));
        }
        Ok(())
    }
}
