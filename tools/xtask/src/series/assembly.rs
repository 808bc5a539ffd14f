//! From the overlay to commits on the base.
//!
//! The commits are made in the object database with an index of their own: no worktree is needed,
//! and the result depends on nothing but the base, the overlay and the identity.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Error, Result, anyhow, bail};
use fs_err as fs;

use super::base::Base;
use super::overlay::{Commit, Series};
use crate::host::git::Identity;
use crate::host::run;

const MAINTAINERS: &str = "MAINTAINERS";

/// A commit of the series as it was made.
#[derive(Debug, Clone)]
pub struct Made {
    pub id: String,
    pub parent: String,
    pub name: String,
    pub subject: String,
}

/// The kernel file that a path of the overlay is the n-th patch of; None if it is a new file.
pub fn patched(path: &str) -> Option<(&str, u32)> {
    let target = path.strip_suffix(".patch")?;
    let numbered = target
        .rsplit_once('.')
        .and_then(|(target, nth)| Some((target, nth.parse().ok()?)));
    Some(numbered.unwrap_or((target, 1)))
}

/// The overlay path of the n-th patch of a file.
pub fn patch_path(target: &str, nth: u32) -> String {
    match nth {
        1 => format!("{target}.patch"),
        _ => format!("{target}.{nth}.patch"),
    }
}

/// A file of the overlay and its executable bit.
pub type File = (Vec<u8>, bool);
/// Gives a file of the overlay.
pub type Read<'a> = &'a dyn Fn(&str) -> Result<File>;

pub fn read(root: &Path, path: &str) -> Result<File> {
    let file = root.join(path);
    let meta = fs::symlink_metadata(&file)?;
    if !meta.is_file() {
        bail!("{path} is not a regular file: the overlay holds nothing else");
    }
    Ok((fs::read(&file)?, meta.permissions().mode() & 0o100 != 0))
}

/// A file of the series comes before its patches, which are numbered without a gap, one a commit.
fn in_order(commits: &[Commit]) -> Result<()> {
    // How many patches each file has so far, and the commit that had it last.
    let mut files: BTreeMap<&str, (u32, usize)> = BTreeMap::new();
    for (at, commit) in commits.iter().enumerate() {
        for path in &commit.paths {
            let (target, nth) = patched(path).unwrap_or((path, 0));
            let before = files.insert(target, (nth, at));
            let follows = match before {
                Some((last, when)) => nth == last + 1 && when < at,
                None => nth <= 1,
            };
            if !follows {
                bail!(
                    "series/{} brings {path} too early or too late\nhelp: a file's patches are numbered in the order of their commits, without a gap, and come after the file",
                    commit.name
                );
            }
        }
    }
    Ok(())
}

/// Makes the commits of the series on the base.
pub fn assemble(base: &Base, series: &Series, identity: &Identity) -> Result<Vec<Made>> {
    let read = |path: &str| read(&series.root, path);
    commits(base, &series.commits, &read, identity)
}

/// The same from any source of overlay files.
pub fn commits(
    base: &Base,
    commits: &[Commit],
    read: Read<'_>,
    identity: &Identity,
) -> Result<Vec<Made>> {
    in_order(commits)?;
    let mut assembly = Assembly::new(base, identity)?;
    for commit in commits {
        for path in &commit.paths {
            let applied = read(path).and_then(|file| assembly.bring(path, &file));
            applied.with_context(|| format!("commit series/{} cannot be made", commit.name))?;
        }
        assembly.commit(&commit.name, &commit.message)?;
    }
    Ok(assembly.made)
}

/// Makes `commits` again, the first of them on the base and each on the one before.
pub fn alone(base: &Base, commits: &[&Made], identity: &Identity) -> Result<Vec<Made>> {
    let mut assembly = Assembly::new(base, identity)?;
    for made in commits {
        let mut diff = base.repo.command();
        diff.args([
            "diff-tree",
            "-p",
            "--binary",
            "--full-index",
            &made.parent,
            &made.id,
        ]);
        assembly.apply(&run::bytes(&mut diff)?)?;
        let message = base.repo.git(["log", "-1", "--format=%B", &made.id])?;
        assembly.commit(&made.name, &message)?;
    }
    Ok(assembly.made)
}

/// Commits in the making.
struct Assembly<'a> {
    base: &'a Base,
    identity: &'a Identity,
    index: PathBuf,
    parent: String,
    made: Vec<Made>,
}

impl Assembly<'_> {
    fn new<'a>(base: &'a Base, identity: &'a Identity) -> Result<Assembly<'a>> {
        let assembly = Assembly {
            base,
            identity,
            index: base.dir.join("assembly.index"),
            parent: base.commit.clone(),
            made: Vec::new(),
        };
        assembly.git(&["read-tree", &base.commit])?;
        Ok(assembly)
    }

    fn command(&self) -> Command {
        let mut cmd = self.base.repo.command();
        cmd.env("GIT_INDEX_FILE", &self.index);
        cmd
    }

    fn git(&self, args: &[&str]) -> Result<String> {
        let out = run::output(self.command().args(args))?;
        Ok(out.trim_end().to_owned())
    }

    /// Does to the index what one path of the overlay says.
    fn bring(&self, path: &str, (content, executable): &File) -> Result<()> {
        match patched(path) {
            Some((MAINTAINERS, _)) if self.identity.signs => {
                let text = maintained(&String::from_utf8_lossy(content), self.identity);
                self.patch(MAINTAINERS, path, text.as_bytes())
            }
            Some((target, _)) => self.patch(target, path, content),
            None if self.base.repo.has(&self.base.commit, path) => bail!(
                "the base already has {path}\nhelp: a change to a file of the kernel is written as {path}.patch"
            ),
            None => self.stage(path, content, *executable),
        }
    }

    fn stage(&self, path: &str, content: &[u8], executable: bool) -> Result<()> {
        let mut hash = self.command();
        hash.args(["hash-object", "-w", "--stdin"]);
        let blob = run::output_with(&mut hash, content)?;
        let mode = if executable { "100755" } else { "100644" };
        let info = format!("{mode},{},{path}", blob.trim());
        self.git(&["update-index", "--add", "--cacheinfo", &info])
            .map(drop)
    }

    fn patch(&self, target: &str, overlay: &str, content: &[u8]) -> Result<()> {
        if self.git(&["ls-files", "--", target])?.is_empty() {
            bail!(
                "{overlay} changes {target}, which the base has not\nhelp: give the base that the series was made for"
            );
        }
        let text = String::from_utf8_lossy(content);
        let mut files = text.lines().filter_map(|line| line.strip_prefix("+++ "));
        let first = files.next().and_then(|name| name.split('\t').next());
        if first != Some(&format!("b/{target}")) || files.next().is_some() {
            bail!("{overlay} must change b/{target} and nothing else");
        }
        self.apply(content)
            .map_err(|error| does_not_apply(target, overlay, &text, &error.to_string()))
    }

    fn apply(&self, patch: &[u8]) -> Result<()> {
        let mut cmd = self.command();
        // A maintainer may be one line more than a hunk says.
        cmd.args(["apply", "--cached", "--recount", "--whitespace=nowarn", "-"]);
        run::output_with(&mut cmd, patch).map(drop)
    }

    /// Commits what is in the index.
    fn commit(&mut self, name: &str, message: &str) -> Result<()> {
        let tree = self.git(&["write-tree"])?;
        if tree == self.base.repo.tree(&self.parent)? {
            bail!("series/{name} changes nothing");
        }
        let mut cmd = self.base.repo.command();
        self.identity.commits(&mut cmd);
        cmd.args(["commit-tree", &tree, "-p", &self.parent, "-F", "-"]);
        let id = run::output_with(&mut cmd, self.signed(message)?.as_bytes())?;
        let id = id.trim().to_owned();
        self.made.push(Made {
            parent: std::mem::replace(&mut self.parent, id.clone()),
            id,
            name: name.to_owned(),
            subject: message.lines().next().unwrap_or_default().to_owned(),
        });
        Ok(())
    }

    fn signed(&self, message: &str) -> Result<String> {
        let message = format!("{}\n", message.trim_end());
        if !self.identity.signs {
            return Ok(message);
        }
        let trailer = format!("Signed-off-by: {}", self.identity.address());
        let mut cmd = self.base.repo.command();
        cmd.args([
            "interpret-trailers",
            "--no-divider",
            "--if-exists",
            "addIfDifferent",
        ])
        .args(["--trailer", &trailer]);
        run::output_with(&mut cmd, message.as_bytes())
    }
}

/// A patch of MAINTAINERS whose new entries are maintained by whoever signs the series, unless they
/// name somebody.
fn maintained(patch: &str, identity: &Identity) -> String {
    let mut lines: Vec<String> = patch.lines().map(str::to_owned).collect();
    let is_field = |line: &str| line.get(2..4) == Some(":\t");
    for at in (1..lines.len()).rev() {
        let (title, field) = (&lines[at - 1], &lines[at]);
        let is_title = title.starts_with('+') && title.len() > 1 && !is_field(title);
        if is_title && is_field(field) && !field.starts_with("+M:") {
            lines.insert(at, format!("+M:\t{}", identity.address()));
        }
    }
    lines.join("\n") + "\n"
}

/// Says which hunk git refused.
fn does_not_apply(target: &str, overlay: &str, patch: &str, error: &str) -> Error {
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
        Some(at) => anyhow!(
            "{overlay} does not apply to {target}: hunk {} of {} ({})\nhelp: bring the patch up to date with the base: `cargo xtask checkout`, edit, `cargo xtask refresh`, or give the base it was made for",
            at + 1,
            hunks.len(),
            hunks[at]
        ),
        None => anyhow!("{overlay} does not apply to {target}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(list: &[&[&str]]) -> Result<()> {
        let commits = list.iter().map(|paths| Commit {
            name: "1-x/01-x".to_owned(),
            message: "m".to_owned(),
            paths: paths.iter().map(|path| path.to_string()).collect(),
        });
        in_order(&commits.collect::<Vec<_>>())
    }

    #[test]
    fn names_of_patches() {
        assert_eq!(patched("a/b.c"), None);
        assert_eq!(patched("a/b.c.patch"), Some(("a/b.c", 1)));
        assert_eq!(patched("a/b.c.2.patch"), Some(("a/b.c", 2)));
        assert_eq!(patch_path("a/b.c", 1), "a/b.c.patch");
        assert_eq!(patch_path("a/b.c", 3), "a/b.c.3.patch");
    }

    #[test]
    fn patches_of_a_file_are_numbered_in_commit_order() {
        assert!(order(&[&["a.c.patch"], &["a.c.2.patch"]]).is_ok());
        assert!(order(&[&["a.c"], &["a.c.patch"]]).is_ok());
        for wrong in [
            [&["a.c.2.patch"][..], &["a.c.patch"]],
            [&["a.c.patch"], &["a.c.3.patch"]],
            [&["a.c.patch"], &["a.c"]],
            [&["a.c", "a.c.patch"], &[]],
        ] {
            assert!(order(&wrong).is_err(), "{wrong:?}");
        }
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
