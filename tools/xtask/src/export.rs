//! The export: what `git format-patch` writes, the checks on each patch, and the proof that
//! `git am` of those files gives the assembled tree.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use miette::{IntoDiagnostic, Result, WrapErr, miette};

use crate::assemble::Made;
use crate::base::Base;
use crate::git::{Identity, Repo};
use crate::series::Series;
use crate::{Ctx, cache, run};

/// The branch of our repository that holds the series.
pub const BRANCH: &str = "vfio-get-unmapped-area";

/// The names of the exported files, for the next export to remove.
const EXPORTED: &str = ".exported";

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

/// Writes the patches and the cover letter to `out` and returns the files, the cover letter first.
pub fn export(
    ctx: &Ctx,
    base: &Base,
    series: &Series,
    made: &[Made],
    identity: &Identity,
    out: &Path,
) -> Result<Vec<PathBuf>> {
    let tip = &made
        .last()
        .ok_or_else(|| miette!("the series is empty"))?
        .id;
    base.repo
        .git(["update-ref", &format!("refs/heads/{BRANCH}"), tip])?;
    let fresh = cache::fresh(&ctx.cache.path("export"))?;
    let mut cmd = base.repo.command();
    // The description of the branch is where format-patch finds the text of the cover letter.
    cmd.env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", format!("branch.{BRANCH}.description"))
        .env(
            "GIT_CONFIG_VALUE_0",
            format!("{}\n\n{}", series.cover.subject, series.cover.body),
        )
        .env("GIT_COMMITTER_NAME", &identity.name)
        .env("GIT_COMMITTER_EMAIL", &identity.email)
        .args([
            "format-patch",
            "--quiet",
            "--cover-letter",
            "--cover-from-description=subject",
        ])
        .args([
            "--thread=shallow",
            "--stat=72",
            "--base",
            &base.commit,
            "-o",
        ])
        .arg(&fresh)
        .arg(format!("{}..{BRANCH}", base.commit));
    run::output(&mut cmd)?;
    let names = patches_in(&fresh)?;
    if names.len() != made.len() + 1 {
        return Err(miette!(
            "git format-patch wrote {} files for {} commits",
            names.len(),
            made.len()
        ));
    }

    fs::create_dir_all(out)
        .into_diagnostic()
        .wrap_err_with(|| format!("cannot create {}", out.display()))?;
    // Only what an earlier export left there goes away, by its own list.
    let list = out.join(EXPORTED);
    let earlier = fs::read_to_string(&list).unwrap_or_default();
    let foreign = patches_in(out)?
        .into_iter()
        .find(|name| !earlier.lines().any(|line| line == name));
    if let Some(foreign) = foreign {
        return Err(miette!(
            help = "give an empty directory with --out",
            "{} is not of this series",
            out.join(foreign).display()
        ));
    }
    // Both exports are on the list while the one replaces the other.
    fs::write(&list, format!("{}\n{earlier}", names.join("\n"))).into_diagnostic()?;
    for name in patches_in(out)? {
        fs::remove_file(out.join(name)).into_diagnostic()?;
    }
    for name in &names {
        fs::copy(fresh.join(name), out.join(name)).into_diagnostic()?;
    }
    fs::write(&list, format!("{}\n", names.join("\n"))).into_diagnostic()?;
    Ok(names.iter().map(|name| out.join(name)).collect())
}

/// The names of the patches in a directory, in order.
fn patches_in(dir: &Path) -> Result<Vec<String>> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .into_diagnostic()?
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .filter(|name| name.ends_with(".patch"))
        .collect();
    names.sort();
    Ok(names)
}

/// A worktree of the base that holds only `paths` on disk: enough for a real `git am`, in no time.
fn sparse(ctx: &Ctx, base: &Base, name: &str, paths: &[String]) -> Result<Repo> {
    let dir = ctx.cache.path(name);
    if dir.exists() {
        fs::remove_dir_all(&dir).into_diagnostic()?;
    }
    base.repo.git(["worktree", "prune"])?;
    let text = dir.to_string_lossy().into_owned();
    base.repo.git([
        "worktree",
        "add",
        "--quiet",
        "--detach",
        "--no-checkout",
        &text,
        &base.commit,
    ])?;
    let tree = Repo::new(dir);
    let mut cmd = tree.command();
    cmd.args(["sparse-checkout", "set", "--no-cone", "--stdin"]);
    let patterns: String = paths.iter().map(|path| format!("/{path}\n")).collect();
    run::output_with(&mut cmd, patterns.as_bytes())?;
    tree.git(["checkout", "--quiet", "--detach", &base.commit])?;
    Ok(tree)
}

/// Applies exactly the exported files to a fresh worktree of the base, and compares the trees.
pub fn prove(ctx: &Ctx, base: &Base, tip: &str, patches: &[PathBuf]) -> Result<()> {
    let paths = base.repo.changed(&base.commit, tip)?;
    let tree = sparse(ctx, base, "proof", &paths)?;
    let mut cmd = tree.command();
    for role in ["AUTHOR", "COMMITTER"] {
        cmd.env(format!("GIT_{role}_NAME"), "git am")
            .env(format!("GIT_{role}_EMAIL"), "nobody@localhost");
    }
    // The cover letter has no patch: dropping it spares the user a glob that leaves it out.
    cmd.args(["am", "--quiet", "--empty=drop"])
        .args(absolute(patches)?);
    run::output(&mut cmd).wrap_err("git am refuses the exported series")?;
    let (got, want) = (tree.tree("HEAD")?, base.repo.tree(tip)?);
    base.repo
        .git(["worktree", "remove", "--force", &tree.dir.to_string_lossy()])?;
    if got != want {
        return Err(miette!(
            "git am of the exported series gives tree {got}, not {want}"
        ));
    }
    Ok(())
}

fn absolute(files: &[PathBuf]) -> Result<Vec<PathBuf>> {
    files
        .iter()
        .map(|file| std::path::absolute(file).into_diagnostic())
        .collect()
}

/// rustfmt and checkpatch on every patch; `tree` is a worktree of the series.
pub fn check(
    tree: &Repo,
    made: &[Made],
    identity: &Identity,
    patches: &[PathBuf],
) -> Result<Vec<Patch>> {
    made.iter()
        .zip(patches)
        .map(|(commit, file)| {
            let paths = tree.changed(&commit.parent, &commit.id)?;
            let mut complaints = rustfmt(tree, commit, &paths)?;
            complaints.extend(checkpatch(tree, identity, file)?);
            let (mut added, mut removed) = (0, 0);
            for line in tree
                .git([
                    "diff",
                    "--numstat",
                    "--no-renames",
                    &commit.parent,
                    &commit.id,
                ])?
                .lines()
            {
                let mut numbers = line.split('\t').map(|number| number.parse().unwrap_or(0));
                added += numbers.next().unwrap_or(0);
                removed += numbers.next().unwrap_or(0);
            }
            Ok(Patch {
                file: file.clone(),
                files: paths.len(),
                added,
                removed,
                complaints,
            })
        })
        .collect()
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
            .wrap_err_with(|| format!("rustfmt cannot read {path} of series/{}", commit.name))?;
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
        "--show-types",
        "--color=never",
    ])
    .current_dir(&tree.dir);
    if run::exists("codespell") {
        cmd.arg("--codespell");
    }
    if !identity.signs {
        // Nobody signed, and the export says so.
        cmd.args(["--ignore", "MISSING_SIGN_OFF,BAD_SIGN_OFF"]);
    }
    let out = cmd
        .arg(std::path::absolute(patch).into_diagnostic()?)
        .output()
        .into_diagnostic()
        .wrap_err("cannot run perl, which checkpatch needs")?;
    // checkpatch ends with 1 when it has something to say, and with anything else when it broke.
    match out.status.code() {
        Some(0 | 1) => {}
        _ => {
            return Err(miette!(
                "checkpatch.pl broke:\n{}",
                String::from_utf8_lossy(&out.stderr)
            ));
        }
    }
    let name = patch.to_string_lossy();
    Ok(String::from_utf8_lossy(&out.stdout)
        .lines()
        .filter(|line| {
            ["ERROR:", "WARNING:", "CHECK:"]
                .iter()
                .any(|kind| line.contains(kind))
        })
        .map(|line| {
            line.trim_start_matches(&*name)
                .trim_start_matches(':')
                .to_owned()
        })
        .collect())
}

/// Whether a complaint stands in the way of a posting; the rest is for a person to judge.
pub fn is_error(complaint: &str) -> bool {
    complaint.contains("ERROR:") || complaint.starts_with("RUSTFMT:")
}

/// The table that `series` ends with.
pub fn table(patches: &[Patch]) -> String {
    let name = |patch: &Patch| {
        patch
            .file
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    let width = patches
        .iter()
        .map(|patch| name(patch).len())
        .max()
        .unwrap_or(0)
        .max(5);
    let mut out = format!("{:width$}  files       +       -  checkpatch\n", "patch");
    for patch in patches {
        let verdict = match patch.complaints.len() {
            0 => "clean".to_owned(),
            n => format!("{n} to look at"),
        };
        out.push_str(&format!(
            "{:width$}  {:>5}  {:>6}  {:>6}  {verdict}\n",
            name(patch),
            patch.files,
            patch.added,
            patch.removed
        ));
    }
    for patch in patches {
        for complaint in &patch.complaints {
            out.push_str(&format!("{}: {complaint}\n", name(patch)));
        }
    }
    out
}
