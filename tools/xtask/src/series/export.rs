//! The export: what `git format-patch` writes of each delivery, the checks on each patch, and the
//! proof that `git am` of those files gives the assembled trees.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use fs_err as fs;

use super::Assembled;
use super::assembly::{self, Made};
use super::base::Base;
use super::overlay::{Delivery, HEADERS};
use crate::host::git::{Identity, Repo};
use crate::host::{Ctx, cache, run};

/// The names of the exported files, for the next export to remove.
const EXPORTED: &str = ".exported";

/// A delivery's mails as files.
pub struct Exported<'a> {
    pub delivery: &'a Delivery,
    /// The cover letter, if there is one, and the patches.
    pub files: Vec<PathBuf>,
    /// Its last commit, on the base and what it needs of the earlier deliveries.
    tip: String,
}

impl Exported<'_> {
    pub fn patches(&self) -> &[PathBuf] {
        &self.files[usize::from(self.delivery.cover.is_some())..]
    }
}

/// A patch of the export and what the checks said about it.
#[derive(Debug)]
pub struct Patch {
    pub file: PathBuf,
    pub files: usize,
    pub added: usize,
    pub removed: usize,
    /// Errors, warnings and checks of checkpatch, in its words; empty when clean.
    pub complaints: Vec<String>,
}

impl Patch {
    /// Delivery and file, such as `2-b/0001-x.patch`.
    pub fn name(&self) -> String {
        let parts: Vec<_> = self.file.iter().rev().take(2).collect();
        let parts = parts.iter().rev().map(|part| part.to_string_lossy());
        parts.collect::<Vec<_>>().join("/")
    }
}

/// Writes a directory below `out` for each delivery: its patches and its cover letter.
pub fn export<'a>(ctx: &Ctx, all: &'a Assembled, out: &Path) -> Result<Vec<Exported<'a>>> {
    let fresh = cache::fresh(&ctx.cache.path("export"))?;
    let mut exported = Vec::new();
    for delivery in &all.series.deliveries {
        let (start, tip) = chain(all, delivery)?;
        let dir = fresh.join(&delivery.name);
        format_patch(all, delivery, &start, &tip, &dir)?;
        let files = patches_in(&dir)?;
        let expected = delivery.commits.len() + usize::from(delivery.cover.is_some());
        if files.len() != expected {
            bail!(
                "git format-patch wrote {} files for {}, not {expected}",
                files.len(),
                delivery.name
            );
        }
        let place = out.join(&delivery.name);
        exported.push(Exported {
            delivery,
            files: files.iter().map(|file| place.join(file)).collect(),
            tip,
        });
    }
    replace(&fresh, out)?;
    Ok(exported)
}

/// Where the commits of a delivery start and end, on the base and what it needs and nothing else.
fn chain(all: &Assembled, delivery: &Delivery) -> Result<(String, String)> {
    let ours = all.made_of(delivery);
    let mut commits: Vec<&Made> = Vec::new();
    for needed in all.series.needed_by(delivery) {
        commits.extend(all.made_of(needed));
    }
    let stacked = commits.len() == delivery.commits.start;
    commits.extend(ours);
    if stacked {
        return Ok((ours[0].parent.clone(), all.tip_of(delivery).to_owned()));
    }
    let made = assembly::alone(&all.base, &commits, &all.identity).with_context(|| {
        let name = &delivery.name;
        format!("series/{name}/{HEADERS} lacks a Needs: it does not apply without another delivery")
    })?;
    let first = &made[made.len() - ours.len()];
    Ok((first.parent.clone(), made[made.len() - 1].id.clone()))
}

fn format_patch(
    all: &Assembled,
    delivery: &Delivery,
    start: &str,
    tip: &str,
    dir: &Path,
) -> Result<()> {
    let repo = &all.base.repo;
    let branch = format!("series/{}", delivery.name);
    repo.git(["update-ref", &format!("refs/heads/{branch}"), tip])?;
    let mut cmd = repo.command();
    cmd.env("GIT_COMMITTER_NAME", &all.identity.name)
        .env("GIT_COMMITTER_EMAIL", &all.identity.email);
    if let Some(cover) = &delivery.cover {
        // The branch's description is where format-patch finds the text of the cover letter.
        cmd.env("GIT_CONFIG_COUNT", "1")
            .env("GIT_CONFIG_KEY_0", format!("branch.{branch}.description"))
            .env("GIT_CONFIG_VALUE_0", cover.text());
    }
    cmd.args(["format-patch", "--quiet", "--thread=shallow", "--stat=72"]);
    if delivery.cover.is_some() {
        cmd.args(["--cover-letter", "--cover-from-description=subject"]);
    }
    let headers = &delivery.headers;
    if let Some(prefix) = &headers.prefix {
        cmd.arg(format!("--subject-prefix={prefix} PATCH"));
    }
    cmd.args(headers.to.iter().map(|who| format!("--to={who}")))
        .args(headers.cc.iter().map(|who| format!("--cc={who}")))
        .args(["--base", &all.base.commit, "-o"])
        .arg(dir)
        .arg(format!("{start}..{branch}"));
    run::output(&mut cmd).map(|_| ())
}

/// Puts the fresh export in the place of the one that an earlier run left in `out`.
fn replace(fresh: &Path, out: &Path) -> Result<()> {
    fs::create_dir_all(out)?;
    let (names, there) = (patches_in(fresh)?, patches_in(out)?);
    // Only what an earlier export left there goes away, by its own list.
    let list = out.join(EXPORTED);
    let earlier = fs::read_to_string(&list).unwrap_or_default();
    let foreign = there
        .iter()
        .find(|name| !earlier.lines().any(|line| line == *name));
    if let Some(foreign) = foreign {
        bail!(
            "{} is not of this series\nhelp: give an empty directory with --out",
            out.join(foreign).display()
        );
    }
    // Both exports are on the list while the one replaces the other.
    fs::write(&list, format!("{}\n{earlier}", names.join("\n")))?;
    for name in &there {
        let file = out.join(name);
        fs::remove_file(&file)?;
        // The directory of a delivery that is gone goes with its last file.
        if let Some(dir) = file.parent().filter(|dir| *dir != out) {
            fs::remove_dir(dir).ok();
        }
    }
    for name in &names {
        let file = out.join(name);
        fs::create_dir_all(file.parent().unwrap_or(out))?;
        fs::copy(fresh.join(name), file)?;
    }
    Ok(fs::write(&list, format!("{}\n", names.join("\n")))?)
}

/// The names of the patches in a directory and those right below it, in order.
fn patches_in(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".patch") {
            names.push(name);
        } else if entry.path().is_dir() {
            let below = patches_in(&entry.path())?;
            names.extend(below.iter().map(|file| format!("{name}/{file}")));
        }
    }
    names.sort();
    Ok(names)
}

/// A worktree of the base that holds only `paths` on disk: enough for a real `git am`, in no time.
fn sparse(ctx: &Ctx, base: &Base, name: &str, paths: &[String]) -> Result<Repo> {
    let dir = ctx.cache.path(name);
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    let tree = base
        .repo
        .add_worktree(&dir, &["--no-checkout", &base.commit])?;
    let mut cmd = tree.command();
    cmd.args(["sparse-checkout", "set", "--no-cone", "--stdin"]);
    let patterns: String = paths.iter().map(|path| format!("/{path}\n")).collect();
    run::output_with(&mut cmd, patterns.as_bytes())?;
    tree.git(["checkout", "--quiet", "--detach", &base.commit])?;
    Ok(tree)
}

/// Applies exactly the exported files to a fresh worktree of the base, and compares the trees: all
/// deliveries in their order, and each with what it needs and nothing else.
pub fn prove(ctx: &Ctx, all: &Assembled, exported: &[Exported<'_>]) -> Result<()> {
    let base = &all.base;
    let paths = base.repo.changed(&base.commit, all.tip())?;
    let tree = sparse(ctx, base, "proof", &paths)?;
    let same = |what: &str, tip: &str| -> Result<()> {
        let (got, want) = (tree.tree("HEAD")?, base.repo.tree(tip)?);
        if got != want {
            bail!("git am of {what} gives tree {got}, not {want}");
        }
        Ok(())
    };
    for each in exported {
        am(&tree, each)?;
        same(&each.delivery.name, all.tip_of(each.delivery))?;
    }
    for each in exported {
        let needed = all.series.needed_by(each.delivery);
        let is_needed =
            |other: &&Exported| needed.iter().any(|one| one.name == other.delivery.name);
        tree.git(["reset", "--quiet", "--hard", &base.commit])?;
        for other in exported.iter().filter(is_needed) {
            am(&tree, other)?;
        }
        am(&tree, each)?;
        same(&format!("{} alone", each.delivery.name), &each.tip)?;
    }
    let place = tree.dir.to_string_lossy();
    base.repo
        .git(["worktree", "remove", "--force", &place])
        .map(drop)
}

fn am(tree: &Repo, exported: &Exported<'_>) -> Result<()> {
    let mut cmd = tree.command();
    cmd.env("GIT_COMMITTER_NAME", "git am")
        .env("GIT_COMMITTER_EMAIL", "nobody@localhost")
        // The cover letter has no patch: dropping it spares the user a glob that leaves it out.
        .args(["am", "--quiet", "--empty=drop"]);
    for file in &exported.files {
        cmd.arg(std::path::absolute(file)?);
    }
    run::output(&mut cmd)
        .map(drop)
        .with_context(|| format!("git am refuses {}", exported.delivery.name))
}

/// rustfmt and checkpatch on every patch.
pub fn check(all: &Assembled, exported: &[Exported<'_>]) -> Result<Vec<Patch>> {
    let files = exported.iter().flat_map(|each| each.patches());
    let check = |(commit, file): (&Made, &PathBuf)| {
        let paths = all.tree.changed(&commit.parent, &commit.id)?;
        let mut complaints = rustfmt(&all.tree, commit, &paths)?;
        complaints.extend(checkpatch(&all.tree, &all.identity, file)?);
        let (added, removed) = lines(&all.tree, commit)?;
        Ok(Patch {
            file: file.clone(),
            files: paths.len(),
            added,
            removed,
            complaints,
        })
    };
    all.made.iter().zip(files).map(check).collect()
}

/// How many lines a commit adds and removes.
fn lines(tree: &Repo, commit: &Made) -> Result<(usize, usize)> {
    let range = [commit.parent.as_str(), commit.id.as_str()];
    let stat = tree.git(["diff", "--numstat", "--no-renames"].iter().chain(&range))?;
    let (mut added, mut removed) = (0, 0);
    for line in stat.lines() {
        let mut numbers = line.split('\t').map(|number| number.parse().unwrap_or(0));
        added += numbers.next().unwrap_or(0);
        removed += numbers.next().unwrap_or(0);
    }
    Ok((added, removed))
}

fn rustfmt(tree: &Repo, commit: &Made, paths: &[String]) -> Result<Vec<String>> {
    let mut complaints = Vec::new();
    for path in paths.iter().filter(|path| path.ends_with(".rs")) {
        let source = tree.blob(&commit.id, path)?;
        let mut cmd = Command::new("rustfmt");
        // On standard input rustfmt does not follow `mod` lines to files of another commit.
        cmd.args(["--edition", "2021", "--config-path"])
            .arg(tree.dir.join(".rustfmt.toml"));
        let formatted = run::output_with(&mut cmd, &source)
            .with_context(|| format!("rustfmt cannot read {path} of series/{}", commit.name))?;
        if formatted.as_bytes() != source {
            complaints.push(format!(
                "RUSTFMT: {path} is not formatted: run rustfmt on it"
            ));
        }
    }
    Ok(complaints)
}

fn checkpatch(tree: &Repo, identity: &Identity, patch: &Path) -> Result<Vec<String>> {
    let mut cmd = Command::new("perl");
    cmd.args([
        "scripts/checkpatch.pl",
        "--strict",
        "--terse",
        "--no-summary",
    ])
    .args(["--show-types", "--color=never"])
    .current_dir(&tree.dir);
    if run::exists("codespell") {
        cmd.arg("--codespell");
    }
    if !identity.signs {
        // Nobody signed, and the export says so.
        cmd.args(["--ignore", "MISSING_SIGN_OFF,BAD_SIGN_OFF"]);
    }
    let out = run::finish(cmd.arg(std::path::absolute(patch)?), b"")?;
    // checkpatch ends with 1 when it has something to say, and with anything else when it broke.
    if !matches!(out.status.code(), Some(0 | 1)) {
        bail!(
            "checkpatch.pl broke:\n{}",
            String::from_utf8_lossy(&out.stderr)
        );
    }
    let name = format!("{}:", patch.display());
    let said = String::from_utf8_lossy(&out.stdout);
    let kinds = ["ERROR:", "WARNING:", "CHECK:"];
    let lines = said
        .lines()
        .filter(|line| kinds.iter().any(|kind| line.contains(kind)));
    Ok(lines
        .map(|line| line.trim_start_matches(&name).to_owned())
        .collect())
}

/// Whether a complaint stands in the way of a posting; the rest is for a person to judge.
pub fn is_error(complaint: &str) -> bool {
    complaint.contains("ERROR:") || complaint.starts_with("RUSTFMT:")
}

/// The table that `series` ends with.
pub fn table(patches: &[Patch]) -> String {
    let width = patches.iter().map(|patch| patch.name().len()).max();
    let width = width.unwrap_or(0).max(5);
    let mut out = format!("{:width$}  files       +       -  checkpatch\n", "patch");
    for patch in patches {
        let verdict = match patch.complaints.len() {
            0 => "clean".to_owned(),
            n => format!("{n} to look at"),
        };
        let Patch {
            files,
            added,
            removed,
            ..
        } = patch;
        out += &format!(
            "{:width$}  {files:>5}  {added:>6}  {removed:>6}  {verdict}\n",
            patch.name()
        );
    }
    for patch in patches {
        for complaint in &patch.complaints {
            out += &format!("{}: {complaint}\n", patch.name());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_export_replaces_the_one_before_and_nothing_else() {
        let dir = std::env::temp_dir().join(format!("xtask-export-{}", std::process::id()));
        let write = |name: &str| {
            let file = dir.join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "").unwrap();
        };
        let (fresh, out) = (dir.join("fresh"), dir.join("out"));
        for name in [
            "fresh/1-a/0001-x.patch",
            "fresh/2-b/0000-cover-letter.patch",
        ] {
            write(name);
        }
        replace(&fresh, &out).unwrap();
        assert_eq!(
            patches_in(&out).unwrap(),
            ["1-a/0001-x.patch", "2-b/0000-cover-letter.patch"]
        );
        fs::remove_dir_all(fresh.join("1-a")).unwrap();
        replace(&fresh, &out).unwrap();
        assert_eq!(patches_in(&out).unwrap(), ["2-b/0000-cover-letter.patch"]);
        assert!(!out.join("1-a").exists());
        write("out/0001-mine.patch");
        assert!(replace(&fresh, &out).is_err());
        fs::remove_dir_all(&dir).unwrap();
    }
}
