//! The kernel that the series is based on: Debian's newest by default, or what `--base` names.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};
use fs_err as fs;

use crate::host::apt::Apt;
use crate::host::git::{self, Repo};
use crate::host::toolchain::SUITE;
use crate::host::{Ctx, run};

/// Debian's package, which the suite has for every supported release.
const PACKAGE: &str = "linux-source-7.3";
/// The branch of our repository that holds the base.
pub const BRANCH: &str = "base";
/// Where the series is laid out, below a base's directory.
pub const CHECKOUT: &str = "checkout";
/// Files and directories in a kernel source package of this size; only the bar depends on it.
const FILES: u64 = 100_000;

pub struct Base {
    /// Bare repository of ours that has the base commit.
    pub repo: Repo,
    pub commit: String,
    /// Directory of everything that belongs to this base and no other.
    pub dir: PathBuf,
}

impl Base {
    pub fn open(ctx: &Ctx, given: Option<&Path>) -> Result<Base> {
        let dir = match given {
            None => debian(ctx)?,
            Some(path) if path.is_dir() => Tree::open(path)?.borrowed(ctx)?,
            Some(path) if path.is_file() => from_tarball(ctx, path)?,
            Some(path) => bail!(
                "--base {} does not exist\nhelp: give a kernel git tree or a kernel tarball",
                path.display()
            ),
        };
        Base::at(dir)
    }

    /// The base whose checkout is to be brought back: a tree may have moved on since it was made.
    pub fn of_checkout(ctx: &Ctx, given: Option<&Path>) -> Result<Base> {
        if let Some(path) = given.filter(|path| path.is_dir()) {
            let tree = Tree::open(path)?;
            let now = ctx.cache.path(tree.place(&tree.commit)?);
            if !now.join(CHECKOUT).exists() {
                let prefix = tree.place("")?;
                let siblings = fs::read_dir(ctx.cache.path("base"))
                    .into_iter()
                    .flatten()
                    .filter_map(|entry| Some(entry.ok()?.path()));
                let earlier = siblings
                    .filter(|dir| dir.to_string_lossy().contains(&prefix))
                    .filter(|dir| dir.join(CHECKOUT).exists())
                    .max_by_key(|dir| {
                        fs::metadata(dir.join(CHECKOUT))
                            .and_then(|m| m.modified())
                            .ok()
                    });
                if let Some(dir) = earlier {
                    return Base::at(dir);
                }
            }
        }
        Base::open(ctx, given)
    }

    fn at(dir: PathBuf) -> Result<Base> {
        let repo = Repo::new(dir.join("repo.git"));
        repo.remove_locks(&["work", "each", "base", "proof"])?;
        fs::remove_file(dir.join("assembly.index.lock")).ok();
        let commit = repo
            .git(["rev-parse", "--verify", BRANCH])
            .and_then(|commit| repo.tree(&commit).map(|_| commit))
            .with_context(|| {
                format!(
                    "the base in {} is unusable: save what you edited there, remove that directory and run again",
                    dir.display()
                )
            })?;
        Ok(Base { repo, commit, dir })
    }
}

fn debian(ctx: &Ctx) -> Result<PathBuf> {
    ctx.cache.once(format!("base/{PACKAGE}"), |dir| {
        ctx.ui.step(format!(
            "fetching the base: Debian's {PACKAGE} from {SUITE}, verified by apt"
        ));
        let (deb, version) = Apt::suite(ctx, SUITE)?.download(ctx, PACKAGE, "")?;
        let package = dir.join("package");
        run::output(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&package))?;
        let tarball = package.join(format!("usr/src/{PACKAGE}.tar.xz"));
        import(ctx, dir, &tarball, &format!("{PACKAGE} {version}"))?;
        fs::remove_dir_all(&package)?;
        Ok(fs::remove_file(&deb)?)
    })
}

fn from_tarball(ctx: &Ctx, file: &Path) -> Result<PathBuf> {
    let hash = ["hash-object", "--no-filters", "--"];
    let id = run::output(Command::new("git").args(hash).arg(file))?;
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    ctx.cache.once(format!("base/tar-{}", id.trim()), |dir| {
        import(ctx, dir, file, &name)
    })
}

/// Puts a kernel tarball into a repository with one commit, whose id depends on nothing but the
/// tarball's files and `name`.
fn import(ctx: &Ctx, dir: &Path, tarball: &Path, name: &str) -> Result<()> {
    ctx.ui.step(format!("importing {name} into git"));
    let (repo, tree) = (created(dir)?, dir.join("tree"));
    fs::create_dir_all(&tree)?;
    let mut tar = Command::new("tar");
    // Everything in a source tarball is below one directory.
    tar.args(["-xv", "--strip-components=1", "-C"])
        .arg(&tree)
        .arg("-f")
        .arg(tarball);
    run::logged(ctx, "import", "unpacking", FILES, tar).with_context(|| {
        format!("{name} cannot be unpacked: is it the tarball of a kernel, and whole?")
    })?;
    must_be_kernel(name, &|path| tree.join(path).exists())?;
    let ignored = tree.join(".gitignore");
    if let Ok(text) = fs::read_to_string(&ignored) {
        fs::write(&ignored, without_packaging(&text))?;
    }
    let bar = ctx.ui.bar("git add", 0);
    let mut add = repo.command();
    // Above the threshold files go to one pack, which is quicker than a file for each.
    add.args([
        "-c",
        "core.bigFileThreshold=1",
        "-c",
        "core.bare=false",
        "--work-tree",
    ])
    .arg(&tree)
    .args(["add", "--all", "--force", "."])
    .current_dir(&tree);
    run::output(&mut add)?;
    drop(bar);
    let id = repo.git(["write-tree"])?;
    let mut commit = repo.command();
    for role in ["AUTHOR", "COMMITTER"] {
        commit
            .env(format!("GIT_{role}_NAME"), "VFIO placement series")
            .env(format!("GIT_{role}_EMAIL"), "nobody@localhost")
            .env(format!("GIT_{role}_DATE"), "@0 +0000");
    }
    commit.args(["commit-tree", &id, "-m", name]);
    let id = run::output(&mut commit)?;
    repo.git(["update-ref", &format!("refs/heads/{BRANCH}"), id.trim()])?;
    fs::remove_file(repo.dir.join("index"))?;
    Ok(fs::remove_dir_all(&tree)?)
}

/// An empty repository for a base.
fn created(dir: &Path) -> Result<Repo> {
    let repo = Repo::new(dir.join("repo.git"));
    fs::create_dir_all(&repo.dir)?;
    repo.git(["init", "--quiet", "--bare", "--initial-branch", BRANCH])?;
    Ok(repo)
}

/// Debian ends the kernel's .gitignore with a block that ignores everything: as upstream, without.
fn without_packaging(gitignore: &str) -> String {
    match gitignore.find("#\n# Debian packaging") {
        Some(at) => format!("{}\n", gitignore[..at].trim_end()),
        None => gitignore.to_owned(),
    }
}

fn must_be_kernel(name: &str, has: &dyn Fn(&str) -> bool) -> Result<()> {
    for path in ["MAINTAINERS", "Kbuild", "scripts/checkpatch.pl"] {
        if !has(path) {
            bail!(
                "{name} is not a kernel tree: it has no {path}\nhelp: give the top of a kernel git tree, or a kernel tarball"
            );
        }
    }
    Ok(())
}

/// A git tree of the user's, in which nothing is ever written.
struct Tree {
    dir: PathBuf,
    commit: String,
}

impl Tree {
    fn open(dir: &Path) -> Result<Tree> {
        let mut tree = Tree {
            dir: fs::canonicalize(dir)?,
            commit: String::new(),
        };
        let name = tree.name();
        tree.commit = tree.ask(&["rev-parse", "--verify", "HEAD^{commit}"]).map_err(|error| {
            match error.to_string().contains("dubious ownership") {
                true => anyhow!(
                    "{name} belongs to another user, and git does not trust it\nhelp: git config --global --add safe.directory {}",
                    tree.dir.display()
                ),
                false => anyhow!(
                    "{name} is not a git repository with a commit\nhelp: give a kernel git tree, or a kernel tarball"
                ),
            }
        })?;
        let has = |path: &str| {
            let name = format!("{}:{path}", tree.commit);
            tree.ask(&["cat-file", "-e", &name]).is_ok()
        };
        must_be_kernel(&name, &has)?;
        // A bare repository has nothing uncommitted.
        if tree.ask(&["rev-parse", "--is-bare-repository"])? != "true"
            && let Some(first) = tree
                .ask(&["status", "--porcelain", "--untracked-files=no"])?
                .lines()
                .next()
        {
            bail!(
                "{name} has uncommitted changes ({})\nhelp: commit or stash them: the series is based on what is committed",
                first.trim()
            );
        }
        Ok(tree)
    }

    fn name(&self) -> String {
        format!("--base {}", self.dir.display())
    }

    fn ask(&self, args: &[&str]) -> Result<String> {
        let mut cmd = Command::new("git");
        // Without optional locks, even `git status` leaves the tree's index alone.
        git::clean(&mut cmd)
            .arg("--no-optional-locks")
            .arg("-C")
            .arg(&self.dir)
            .args(args);
        Ok(run::output(&mut cmd)?.trim().to_owned())
    }

    /// The directory of the cache for one of its commits.
    fn place(&self, commit: &str) -> Result<String> {
        let mut hash = Command::new("git");
        hash.args(["hash-object", "--stdin"]);
        let hash = run::output_with(&mut hash, self.name().as_bytes())?;
        Ok(format!("base/tree-{}-{commit}", &hash[..12]))
    }

    /// A repository of ours with the tree's objects.
    fn borrowed(&self, ctx: &Ctx) -> Result<PathBuf> {
        ctx.cache.once(self.place(&self.commit)?, |dir| {
            let repo = created(dir)?;
            let common = self.ask(&["rev-parse", "--path-format=absolute", "--git-common-dir"])?;
            let (common, ours) = (PathBuf::from(common), repo.dir.join("objects"));
            // Linked, they stay when the tree is rebased and its garbage collected; what is on
            // another disk, or somebody else's, is referred to.
            let mut link = Command::new("cp");
            link.arg("-al").arg(common.join("objects/.")).arg(&ours);
            if run::output(&mut link).is_err() {
                let text = format!("{}\n", common.join("objects").display());
                fs::create_dir_all(ours.join("info"))?;
                fs::write(ours.join("info/alternates"), text)?;
            }
            // A shallow clone's history ends where this file says.
            if common.join("shallow").exists() {
                fs::copy(common.join("shallow"), repo.dir.join("shallow"))?;
            }
            self.promised(&repo)?;
            repo.git(["update-ref", &format!("refs/heads/{BRANCH}"), &self.commit])
                .map(drop)
        })
    }

    /// Where a partial clone gets the objects from that it lacks.
    fn promised(&self, repo: &Repo) -> Result<()> {
        // git ends with an error where nothing matches.
        let keys = r"^(extensions\.partialclone|remote\..*\.(url|promisor|partialclonefilter))$";
        let settings = self
            .ask(&["config", "--get-regexp", keys])
            .unwrap_or_default();
        if settings.contains("promisor") {
            repo.git(["config", "core.repositoryFormatVersion", "1"])?;
            for (key, value) in settings.lines().filter_map(|line| line.split_once(' ')) {
                repo.git(["config", key, value])?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packaging_block_is_stripped() {
        let debian = "*.o\n\n#\n# Debian packaging: ignore everything\n#\n/*\n!/debian/\n";
        assert_eq!(without_packaging(debian), "*.o\n");
        assert_eq!(without_packaging("*.o\n"), "*.o\n");
    }
}
