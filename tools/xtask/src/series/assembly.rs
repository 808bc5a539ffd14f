//! From the overlay to commits on the base.
//!
//! The commits are made in the object database with an index of their own: no worktree is needed,
//! and the result depends on nothing but the base, the overlay and the identity.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use miette::{IntoDiagnostic, Result, WrapErr, miette};

use crate::host::git::{Identity, Repo};
use crate::host::run;
use crate::series::base::Base;
use crate::series::maintainers;
use crate::series::modlines;
use crate::series::overlay::{Commit, Series};

const MAINTAINERS: &str = "MAINTAINERS";

/// One thing that a commit does to the tree.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// A new file, or the next state of one whose `mod` lines land later.
    Whole {
        path: String,
        content: Vec<u8>,
        executable: bool,
    },
    /// A unified diff in the overlay.
    Patch { target: String, overlay: String },
    /// Entries for MAINTAINERS.
    Maintainers,
}

/// A commit of the series as it was made.
#[derive(Debug, Clone)]
pub struct Made {
    pub id: String,
    pub parent: String,
    pub name: String,
    pub subject: String,
}

/// What a path of the overlay is.
#[derive(Debug, PartialEq, Eq)]
pub enum Kind<'a> {
    Whole,
    Maintainers,
    /// The n-th patch of a kernel file.
    Patch {
        target: &'a str,
        nth: u32,
    },
}

pub fn kind(path: &str) -> Kind<'_> {
    if path == MAINTAINERS {
        return Kind::Maintainers;
    }
    let Some(target) = path.strip_suffix(".patch") else {
        return Kind::Whole;
    };
    if let Some((target, nth)) = target.rsplit_once('.')
        && let Ok(nth) = nth.parse()
    {
        return Kind::Patch { target, nth };
    }
    Kind::Patch { target, nth: 1 }
}

/// The overlay path of the n-th patch of a file.
pub fn patch_path(target: &str, nth: u32) -> String {
    if nth == 1 {
        format!("{target}.patch")
    } else {
        format!("{target}.{nth}.patch")
    }
}

/// Gives a file of the overlay and its executable bit.
pub type Read<'a> = &'a dyn Fn(&str) -> Result<(Vec<u8>, bool)>;

/// What each commit does, in order.
pub fn plan(commits: &[Commit], read: Read<'_>) -> Result<Vec<Vec<Change>>> {
    let mut place: BTreeMap<&str, usize> = BTreeMap::new();
    for (index, commit) in commits.iter().enumerate() {
        place.extend(commit.paths.iter().map(|path| (path.as_str(), index)));
    }
    patches_in_order(&place)?;
    let mut plan: Vec<Vec<Change>> = commits.iter().map(|_| Vec::new()).collect();
    for (&path, &index) in &place {
        match kind(path) {
            Kind::Maintainers => plan[index].push(Change::Maintainers),
            Kind::Patch { target, .. } => plan[index].push(Change::Patch {
                target: target.to_owned(),
                overlay: path.to_owned(),
            }),
            Kind::Whole => {
                let (content, executable) = read(path)?;
                let states = states(path, content, index, &place)?;
                patched_later(path, states.keys().last(), &place)?;
                for (at, content) in states {
                    plan[at].push(Change::Whole {
                        path: path.to_owned(),
                        content,
                        executable,
                    });
                }
            }
        }
    }
    Ok(plan)
}

/// The contents of a new file, by the commit from which each holds.
fn states(
    path: &str,
    content: Vec<u8>,
    index: usize,
    place: &BTreeMap<&str, usize>,
) -> Result<BTreeMap<usize, Vec<u8>>> {
    if !path.ends_with(".rs") {
        return Ok(BTreeMap::from([(index, content)]));
    }
    let text = String::from_utf8(content)
        .into_diagnostic()
        .wrap_err_with(|| format!("{path} is not UTF-8"))?;
    let lands = |module: &str| {
        modlines::candidates(path, module)
            .iter()
            .find_map(|file| place.get(file.as_str()).copied())
    };
    let mut steps: BTreeSet<usize> = modlines::declared(&text)
        .into_iter()
        .filter_map(lands)
        .filter(|at| *at > index)
        .collect();
    steps.insert(index);
    Ok(steps
        .into_iter()
        .map(|at| {
            let present = |module: &str| lands(module).is_none_or(|landed| landed <= at);
            (at, modlines::without_absent(&text, &present).into_bytes())
        })
        .collect())
}

/// A new file may be patched once it has reached its last state.
fn patched_later(path: &str, last: Option<&usize>, place: &BTreeMap<&str, usize>) -> Result<()> {
    let patch = patch_path(path, 1);
    match place.get(patch.as_str()) {
        Some(index) if Some(index) <= last => Err(miette!(
            "{patch} must be in a later commit than {path}, and than the modules that it declares"
        )),
        _ => Ok(()),
    }
}

/// `x.patch`, `x.2.patch`, ..: without a gap, and in the order of the commits.
fn patches_in_order(place: &BTreeMap<&str, usize>) -> Result<()> {
    let mut by_target: BTreeMap<&str, BTreeMap<u32, usize>> = BTreeMap::new();
    for (path, index) in place {
        if let Kind::Patch { target, nth } = kind(path) {
            by_target.entry(target).or_default().insert(nth, *index);
        }
    }
    for (target, patches) in by_target {
        let mut last = None;
        for (expected, (nth, index)) in (1..).zip(&patches) {
            if *nth != expected {
                return Err(miette!(
                    "{} is missing: patches of a file are numbered without a gap",
                    patch_path(target, expected)
                ));
            }
            if last.is_some_and(|last| last >= *index) {
                return Err(miette!(
                    "{} must be in a later commit than the patch before it",
                    patch_path(target, *nth)
                ));
            }
            last = Some(*index);
        }
    }
    Ok(())
}

/// Makes the commits of the series on the base.
pub fn assemble(base: &Base, series: &Series, identity: &Identity) -> Result<Vec<Made>> {
    commits(
        base,
        &series.commits,
        &|path| read(&series.root, path),
        identity,
    )
}

/// The same from any source of overlay files.
pub fn commits(
    base: &Base,
    commits: &[Commit],
    read: Read<'_>,
    identity: &Identity,
) -> Result<Vec<Made>> {
    let plan = plan(commits, read)?;
    let index = base.dir.join("assembly.index");
    let assembly = Assembly {
        repo: &base.repo,
        index: &index,
        read,
        identity,
    };
    let mut parent = base.commit.clone();
    assembly.git(&["read-tree", &parent])?;
    let mut made = Vec::new();
    for (commit, changes) in commits.iter().zip(&plan) {
        for change in changes {
            assembly
                .apply(change, &base.commit, &parent)
                .wrap_err_with(|| miette!("commit series/{} cannot be made", commit.name))?;
        }
        let tree = assembly.git(&["write-tree"])?;
        if tree == base.repo.tree(&parent)? {
            return Err(miette!("series/{} changes nothing", commit.name));
        }
        let id = assembly.commit(&tree, &parent, &commit.message)?;
        made.push(Made {
            id: id.clone(),
            parent: std::mem::replace(&mut parent, id),
            name: commit.name.clone(),
            subject: commit.subject().to_owned(),
        });
    }
    Ok(made)
}

/// Makes `commits` again, the first of them on the base and each on the one before.
pub fn alone(base: &Base, commits: &[&Made], identity: &Identity) -> Result<Vec<Made>> {
    let assembly = Assembly {
        repo: &base.repo,
        index: &base.dir.join("assembly.index"),
        read: &|path| Err(miette!("{path} is not wanted")),
        identity,
    };
    let mut parent = base.commit.clone();
    assembly.git(&["read-tree", &parent])?;
    let mut made = Vec::new();
    for commit in commits {
        let (from, to) = (commit.parent.as_str(), commit.id.as_str());
        let mut diff = base.repo.command();
        diff.args(["diff-tree", "-p", "--binary", "--full-index", from, to]);
        let mut apply = assembly.command();
        apply.args(["apply", "--cached", "--whitespace=nowarn", "-"]);
        run::output_with(&mut apply, &run::bytes(&mut diff)?)?;
        let tree = assembly.git(&["write-tree"])?;
        let message = base.repo.git(["log", "-1", "--format=%B", to])?;
        let id = assembly.commit(&tree, &parent, &message)?;
        made.push(Made {
            id: id.clone(),
            parent: std::mem::replace(&mut parent, id),
            name: commit.name.clone(),
            subject: commit.subject.clone(),
        });
    }
    Ok(made)
}

pub fn read(root: &Path, path: &str) -> Result<(Vec<u8>, bool)> {
    let file = root.join(path);
    let meta = file.symlink_metadata().into_diagnostic()?;
    if !meta.is_file() {
        return Err(miette!(
            "{path} is not a regular file: the overlay holds nothing else"
        ));
    }
    Ok((
        fs::read(&file).into_diagnostic()?,
        meta.permissions().mode() & 0o100 != 0,
    ))
}

struct Assembly<'a> {
    repo: &'a Repo,
    index: &'a Path,
    read: Read<'a>,
    identity: &'a Identity,
}

impl Assembly<'_> {
    fn command(&self) -> Command {
        let mut cmd = self.repo.command();
        cmd.env("GIT_INDEX_FILE", self.index);
        cmd
    }

    fn git(&self, args: &[&str]) -> Result<String> {
        Ok(run::output(self.command().args(args))?
            .trim_end()
            .to_owned())
    }

    fn apply(&self, change: &Change, base: &str, parent: &str) -> Result<()> {
        match change {
            Change::Whole {
                path,
                content,
                executable,
            } => {
                if self
                    .repo
                    .git(["cat-file", "-e", &format!("{base}:{path}")])
                    .is_ok()
                {
                    return Err(miette!(
                        help =
                            format!("a change to a file of the kernel is written as {path}.patch"),
                        "the base already has {path}"
                    ));
                }
                self.stage(path, content, *executable)
            }
            Change::Patch { target, overlay } => self.patch(target, overlay),
            Change::Maintainers => {
                let text = |bytes: Vec<u8>| String::from_utf8(bytes).into_diagnostic();
                let kernel = text(self.repo.blob(parent, MAINTAINERS)?)?;
                let (entries, _) = (self.read)(MAINTAINERS)?;
                let out = maintainers::insert(&kernel, &text(entries)?, self.identity)?;
                self.stage(MAINTAINERS, out.as_bytes(), false)
            }
        }
    }

    fn stage(&self, path: &str, content: &[u8], executable: bool) -> Result<()> {
        let blob = run::output_with(
            self.command().args(["hash-object", "-w", "--stdin"]),
            content,
        )?;
        let mode = if executable { "100755" } else { "100644" };
        let info = format!("{mode},{},{path}", blob.trim());
        self.git(&["update-index", "--add", "--cacheinfo", &info])
            .map(|_| ())
    }

    fn patch(&self, target: &str, overlay: &str) -> Result<()> {
        if self.git(&["ls-files", "--", target])?.is_empty() {
            return Err(miette!(
                help = "give the base that the series was made for",
                "{overlay} changes {target}, which the base has not"
            ));
        }
        let (content, _) = (self.read)(overlay)?;
        let text = String::from_utf8_lossy(&content);
        let headers: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("+++ "))
            .collect();
        if headers.len() != 1 || headers[0].split('\t').next() != Some(&format!("+++ b/{target}")) {
            return Err(miette!("{overlay} must change b/{target} and nothing else"));
        }
        let mut cmd = self.command();
        cmd.args(["apply", "--cached", "--whitespace=nowarn", "-"]);
        run::output_with(&mut cmd, &content)
            .map(|_| ())
            .map_err(|error| does_not_apply(target, overlay, &text, &error.to_string()))
    }
}

/// Says which hunk git refused.
fn does_not_apply(target: &str, overlay: &str, patch: &str, error: &str) -> miette::Report {
    let line = error
        .lines()
        .find_map(|line| line.strip_prefix(&format!("error: patch failed: {target}:")));
    let hunks: Vec<&str> = patch
        .lines()
        .filter(|line| line.starts_with("@@ -"))
        .collect();
    let hunk = line.and_then(|line| {
        hunks
            .iter()
            .position(|hunk| hunk[4..].split([',', ' ']).next() == Some(line))
    });
    match hunk {
        Some(at) => miette!(
            help = "bring the patch up to date with the base: `cargo xtask checkout`, edit, `cargo xtask refresh`, or give the base it was made for",
            "{overlay} does not apply to {target}: hunk {} of {} ({})",
            at + 1,
            hunks.len(),
            hunks[at]
        ),
        None => miette!("{overlay} does not apply to {target}: {error}"),
    }
}

impl Assembly<'_> {
    fn commit(&self, tree: &str, parent: &str, message: &str) -> Result<String> {
        let message = self.signed(message)?;
        let mut cmd = self.repo.command();
        for role in ["AUTHOR", "COMMITTER"] {
            cmd.env(format!("GIT_{role}_NAME"), &self.identity.name)
                .env(format!("GIT_{role}_EMAIL"), &self.identity.email);
        }
        cmd.args(["commit-tree", tree, "-p", parent, "-F", "-"]);
        Ok(run::output_with(&mut cmd, message.as_bytes())?
            .trim()
            .to_owned())
    }

    fn signed(&self, message: &str) -> Result<String> {
        if !self.identity.signs {
            return Ok(format!("{message}\n"));
        }
        let trailer = format!("Signed-off-by: {}", self.identity.address());
        let mut cmd = self.repo.command();
        cmd.args([
            "interpret-trailers",
            "--no-divider",
            "--if-exists",
            "addIfDifferent",
            "--trailer",
            &trailer,
        ]);
        run::output_with(&mut cmd, format!("{message}\n").as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commits(list: &[&[&str]]) -> Vec<Commit> {
        list.iter()
            .enumerate()
            .map(|(index, paths)| Commit {
                name: format!("{:02}-x", index + 1),
                message: "m".to_owned(),
                paths: paths.iter().map(|path| path.to_string()).collect(),
            })
            .collect()
    }

    #[test]
    fn kinds_of_paths() {
        assert_eq!(kind("MAINTAINERS"), Kind::Maintainers);
        assert_eq!(kind("a/b.c"), Kind::Whole);
        assert_eq!(
            kind("a/b.c.patch"),
            Kind::Patch {
                target: "a/b.c",
                nth: 1
            }
        );
        assert_eq!(
            kind("a/b.c.2.patch"),
            Kind::Patch {
                target: "a/b.c",
                nth: 2
            }
        );
        assert_eq!(patch_path("a/b.c", 1), "a/b.c.patch");
        assert_eq!(patch_path("a/b.c", 3), "a/b.c.3.patch");
    }

    #[test]
    fn mod_line_lands_with_its_file() {
        let read = |path: &str| {
            let text = if path == "k/v.rs" {
                "mod a;\nmod b;\n"
            } else {
                ""
            };
            Ok((text.as_bytes().to_vec(), false))
        };
        let plan = plan(
            &commits(&[&["k/v.rs", "k/v/a.rs"], &["x.c"], &["k/v/b.rs"]]),
            &read,
        )
        .unwrap();
        let state = |content: &str| Change::Whole {
            path: "k/v.rs".to_owned(),
            content: content.as_bytes().to_vec(),
            executable: false,
        };
        assert!(plan[0].contains(&state("mod a;\n")));
        assert_eq!(plan[1].len(), 1);
        assert!(plan[2].contains(&state("mod a;\nmod b;\n")));
    }

    #[test]
    fn patches_of_a_file_are_numbered_in_commit_order() {
        let read = |_: &str| Ok((Vec::new(), false));
        assert!(plan(&commits(&[&["a.c.patch"], &["a.c.2.patch"]]), &read).is_ok());
        assert!(plan(&commits(&[&["a.c.2.patch"], &["a.c.patch"]]), &read).is_err());
        assert!(plan(&commits(&[&["a.c.patch"], &["a.c.3.patch"]]), &read).is_err());
        assert!(plan(&commits(&[&["a.c"], &["a.c.patch"]]), &read).is_ok());
        assert!(plan(&commits(&[&["a.c.patch"], &["a.c"]]), &read).is_err());
        assert!(plan(&commits(&[&["a.c", "a.c.patch"]]), &read).is_err());
    }

    #[test]
    fn a_patch_does_not_get_between_a_file_and_its_modules() {
        let read = |_: &str| Ok((b"mod a;\n".to_vec(), false));
        let files = ["k/v.rs", "k/v/a.rs", "k/v.rs.patch"];
        assert!(plan(&commits(&[&files[..1], &files[1..2], &files[2..]]), &read).is_ok());
        assert!(plan(&commits(&[&files[..1], &files[2..], &files[1..2]]), &read).is_err());
    }

    #[test]
    fn refused_hunk_is_named() {
        let patch = "--- a/f\n+++ b/f\n@@ -1,2 +1,3 @@ one\n x\n@@ -40,6 +41,7 @@ two\n y\n";
        let report = does_not_apply(
            "f",
            "f.patch",
            patch,
            "error: patch failed: f:40\nerror: f: patch does not apply",
        );
        assert!(
            report
                .to_string()
                .contains("hunk 2 of 2 (@@ -40,6 +41,7 @@ two)"),
            "{report}"
        );
    }
}
