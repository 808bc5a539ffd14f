//! The series as a worktree to edit: laid out by `checkout`, brought back by `refresh`.
//!
//! The branch is one that b4 knows: the cover letter is the branch's description, and b4's own
//! tracking data says where the series starts.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use miette::{IntoDiagnostic, Result, WrapErr, miette};

use crate::assemble::{self, Kind};
use crate::base::{self, Base};
use crate::git::{self, Identity, Repo};
use crate::series::{self, Commit, Cover};
use crate::{Assembled, Ctx, run};

/// The branch of the checkout; b4 names its branches so.
const BRANCH: &str = "b4/vfio-get-unmapped-area";
/// What binds the revisions of the series together on the mailing lists; never to be changed.
const CHANGE_ID: &str = "20261123-vfio-get-unmapped-area-5f3a1c86d2e4";
/// What `checkout` laid out, to tell the user's edits from it.
const LAID: &str = "refs/xtask/checkout";
/// b4's settings are part of this repository, not of the series.
const B4_CONFIG: &str = ".b4-config";

fn config(key: &str) -> String {
    format!("branch.{BRANCH}.{key}")
}

/// Lays the series out below `base.dir`, in a worktree of `base.repo`.
pub fn checkout(ctx: &Ctx, base: &Base, all: &Assembled) -> Result<PathBuf> {
    let Base { repo, dir, .. } = base;
    let path = dir.join("checkout");
    if path.join(".git").exists() {
        let tree = Repo::new(&path);
        let laid = repo
            .git(["rev-parse", "--verify", "--quiet", LAID])
            .unwrap_or_default();
        let head = tree.git(["rev-parse", "HEAD"])?;
        let edited = !tree.git(["status", "--porcelain"])?.is_empty()
            || head != laid
            || description(repo)? != text(&all.series.cover) && cover_edited(repo)?;
        if edited {
            return Err(miette!(
                help = "bring them back with `cargo xtask refresh`, or remove that directory to give them up",
                "the checkout {} has edits that this repository has not",
                path.display()
            ));
        }
        if same_messages(repo, &base.commit, &laid, all.tip())? {
            describe(repo, &all.series.cover, &all.identity)?;
            place_b4_config(ctx, repo, &path)?;
            return Ok(path);
        }
        tree.git(["reset", "--quiet", "--hard", all.tip()])?;
    } else {
        if path.exists() {
            return Err(miette!(
                "{} is in the way of the checkout: remove it",
                path.display()
            ));
        }
        repo.git(["worktree", "prune"])?;
        let bar = ctx.ui.bar("worktree", 0);
        repo.git([
            "worktree",
            "add",
            "--quiet",
            "-B",
            BRANCH,
            &path.to_string_lossy(),
            all.tip(),
        ])?;
        drop(bar);
    }
    repo.git(["update-ref", LAID, all.tip()])?;
    describe(repo, &all.series.cover, &all.identity)?;
    place_b4_config(ctx, repo, &path)?;
    Ok(path)
}

fn same_messages(repo: &Repo, base: &str, one: &str, other: &str) -> Result<bool> {
    let log = |tip: &str| {
        repo.git([
            "log",
            "--format=%T%n%an%n%ae%n%B",
            &format!("{base}..{tip}"),
        ])
    };
    Ok(log(one)? == log(other)?)
}

fn text(cover: &Cover) -> String {
    format!("{}\n\n{}", cover.subject, cover.body)
}

fn description(repo: &Repo) -> Result<String> {
    // A checkout that was killed before it described itself has nothing to lose.
    Ok(repo
        .git(["config", "--get", &config("description")])
        .unwrap_or_default())
}

/// Whether the description is not what was laid out.
fn cover_edited(repo: &Repo) -> Result<bool> {
    let laid = repo
        .git(["config", "--get", &config("xtask-laid")])
        .unwrap_or_default();
    Ok(description(repo)? != laid)
}

fn describe(repo: &Repo, cover: &Cover, identity: &Identity) -> Result<()> {
    let tracking = format!(
        r#"{{"series": {{"revision": 1, "change-id": "{CHANGE_ID}", "prefixes": [], "presubject": "", "base-branch": "{}"}}}}"#,
        base::BRANCH
    );
    let set = |key: &str, value: &str| repo.git(["config", key, value]).map(|_| ());
    set(&config("description"), &text(cover))?;
    set(&config("xtask-laid"), &text(cover))?;
    set(&config("b4-prep-cover-strategy"), "branch-description")?;
    // A revision that b4 counted up after a posting stays.
    if repo
        .git(["config", "--get", &config("b4-tracking")])
        .is_err()
    {
        set(&config("b4-tracking"), &tracking)?;
    }
    // Without a mail transport b4 falls back to a web endpoint, which refuses unsigned mail even
    // when it only writes files; git's own fallback is the local host.
    let transport = ["sendemail.smtpserver", "sendemail.sendmailcmd"];
    if !transport
        .iter()
        .any(|key| git::setting(&repo.dir, key).is_some())
    {
        set("sendemail.smtpserver", "localhost")?;
    }
    if identity.signs {
        set("user.name", &identity.name)?;
        set("user.email", &identity.email)?;
    }
    Ok(())
}

fn place_b4_config(ctx: &Ctx, repo: &Repo, path: &Path) -> Result<()> {
    fs::copy(ctx.root.join(B4_CONFIG), path.join(B4_CONFIG))
        .into_diagnostic()
        .wrap_err_with(|| format!("cannot place {B4_CONFIG} in the checkout"))?;
    let info = repo.dir.join("info");
    fs::create_dir_all(&info).into_diagnostic()?;
    fs::write(info.join("exclude"), format!("/{B4_CONFIG}\n")).into_diagnostic()
}

/// Brings the commits of the checkout back into the repository, and returns the files it wrote or
/// removed.
pub fn refresh(ctx: &Ctx, all: &Assembled) -> Result<Vec<String>> {
    let Base {
        repo,
        dir,
        commit: base,
    } = &all.base;
    let tree = Repo::new(dir.join("checkout"));
    if !tree.dir.join(".git").exists() {
        return Err(miette!(
            "there is no checkout to bring back: make one with `cargo xtask checkout`"
        ));
    }
    if let Some(first) = tree.git(["status", "--porcelain"])?.lines().next() {
        return Err(miette!(
            help = "commit them to the commit they belong to (git commit --amend, or --fixup and rebase --autosquash)",
            "the checkout {} has uncommitted changes ({})",
            tree.dir.display(),
            first.trim()
        ));
    }
    let laid = repo.git(["rev-parse", "--verify", LAID])?;
    if !same_messages(repo, base, &laid, all.tip())? {
        return Err(miette!(
            help = "undo the changes made here since the checkout, or carry the checkout's edits over by hand",
            "this repository changed after the checkout was made: refreshing would lose one of the two"
        ));
    }
    let edited = read_back(repo, &tree, all)?;
    let written = write_back(ctx, &edited, all)?;
    let tip = tree.git(["rev-parse", "HEAD"])?;
    repo.git(["update-ref", LAID, &tip])?;
    repo.git(["config", &config("xtask-laid"), &description(repo)?])?;
    Ok(written)
}

/// The repository as the checkout says it should be: the series, and every overlay file.
struct Edited {
    cover: Cover,
    commits: Vec<Commit>,
    files: BTreeMap<String, (Vec<u8>, bool)>,
}

fn read_back(repo: &Repo, tree: &Repo, all: &Assembled) -> Result<Edited> {
    let base = &all.base.commit;
    let range = format!("{base}..HEAD");
    if !tree.git(["rev-list", "--merges", &range])?.is_empty() {
        return Err(miette!(
            "the checkout has merges, which a series has not: rebase it on {base}"
        ));
    }
    let ids: Vec<String> = tree
        .git(["rev-list", "--reverse", &range])?
        .lines()
        .map(str::to_owned)
        .collect();
    if ids.len() < all.made.len() {
        return Err(miette!(
            help = "remove the commit's file in series/ and its overlay files here, then make a new checkout",
            "the checkout has {} commits where series/ has {}",
            ids.len(),
            all.made.len()
        ));
    }
    let mut edited = Edited {
        cover: series::parse_cover(&description(repo)?)?,
        commits: Vec::new(),
        files: BTreeMap::new(),
    };
    let mut patches: BTreeMap<String, u32> = BTreeMap::new();
    let mut parent = base.clone();
    for (index, id) in ids.iter().enumerate() {
        let old = all.series.commits.get(index);
        let message = unsigned(&tree.git(["log", "-1", "--format=%B", id])?, &all.identity);
        let name = match old {
            Some(old) => old.name.clone(),
            None => format!(
                "{:02}-{}",
                index + 1,
                slug(message.lines().next().unwrap_or_default())
            ),
        };
        let mut brought = Vec::new();
        for path in tree.changed(&parent, id)? {
            if let Some(overlay) = bring(
                tree,
                all,
                &parent,
                id,
                &path,
                &mut patches,
                &mut edited.files,
            )
            .wrap_err_with(|| format!("commit {} of the checkout", index + 1))?
            {
                brought.push(overlay);
            }
        }
        // What was listed before keeps its place in the list.
        let mut paths: Vec<String> = old
            .map(|old| {
                old.paths
                    .iter()
                    .filter(|path| brought.contains(path))
                    .cloned()
                    .collect()
            })
            .unwrap_or_default();
        let new: Vec<String> = brought
            .into_iter()
            .filter(|path| !paths.contains(path))
            .collect();
        paths.extend(new);
        edited.commits.push(Commit {
            name,
            message,
            paths,
        });
        parent = id.clone();
    }
    verify(all, &edited, tree, &ids)?;
    Ok(edited)
}

/// Makes the overlay file for one changed path; None when an earlier commit's file covers it.
fn bring(
    tree: &Repo,
    all: &Assembled,
    parent: &str,
    id: &str,
    path: &str,
    patches: &mut BTreeMap<String, u32>,
    files: &mut BTreeMap<String, (Vec<u8>, bool)>,
) -> Result<Option<String>> {
    let in_base = tree
        .git(["cat-file", "-e", &format!("{}:{path}", all.base.commit)])
        .is_ok();
    if assemble::kind(path) == Kind::Maintainers {
        let entries = assemble::read(&all.series.root, path)
            .wrap_err("entries of MAINTAINERS are edited in this repository's MAINTAINERS")?;
        files.insert(path.to_owned(), entries);
        return Ok(Some(path.to_owned()));
    }
    if !in_base {
        // The tip's state; the `mod` lines that land later are left out by the assembly.
        if files.contains_key(path) {
            return Ok(None);
        }
        let content = tree
            .blob("HEAD", path)
            .wrap_err_with(|| format!("{path} is added and then removed"))?;
        let mode = tree.git(["ls-tree", "HEAD", "--", path])?;
        files.insert(path.to_owned(), (content, mode.starts_with("100755")));
        return Ok(Some(path.to_owned()));
    }
    let nth = patches
        .entry(path.to_owned())
        .and_modify(|nth| *nth += 1)
        .or_insert(1);
    let overlay = assemble::patch_path(path, *nth);
    let blob = |commit: &str| tree.git(["rev-parse", &format!("{commit}:{path}")]);
    // A patch that still says the same keeps its text.
    let unchanged = all.made.iter().find(|made| {
        let same = |one: &str, other: &str| {
            blob(one)
                .ok()
                .is_some_and(|one| Some(one) == blob(other).ok())
        };
        all.series
            .commits
            .iter()
            .any(|commit| commit.name == made.name && commit.paths.contains(&overlay))
            && same(&made.parent, parent)
            && same(&made.id, id)
    });
    let content = match unchanged {
        Some(_) => assemble::read(&all.series.root, &overlay)?.0,
        None => {
            let diff = run::bytes(tree.command().args([
                "diff",
                "--no-renames",
                "--no-color",
                parent,
                id,
                "--",
                path,
            ]))?;
            let text = String::from_utf8(diff)
                .into_diagnostic()
                .wrap_err_with(|| format!("{path} is not UTF-8"))?;
            let start = text
                .find("--- a/")
                .ok_or_else(|| miette!("{path} changes in something else than text"))?;
            if !text[start..].contains(&format!("\n+++ b/{path}\n")) {
                return Err(miette!(
                    "{path} is a file of the kernel and is removed, which no overlay file can say"
                ));
            }
            text.as_bytes()[start..].to_vec()
        }
    };
    files.insert(overlay.clone(), (content, false));
    Ok(Some(overlay))
}

/// Assembles what would be written and compares every commit with the checkout's.
fn verify(all: &Assembled, edited: &Edited, tree: &Repo, ids: &[String]) -> Result<()> {
    let read = |path: &str| {
        edited
            .files
            .get(path)
            .cloned()
            .ok_or_else(|| miette!("{path} is in no commit of the checkout"))
    };
    let made = assemble::commits(&all.base, &edited.commits, &read, &all.identity)?;
    for (made, id) in made.iter().zip(ids) {
        if all.base.repo.tree(&made.id)? != tree.tree(id)? {
            let differs = tree.changed(&made.id, id)?;
            return Err(miette!(
                help = "a new file is written whole: change it in the commit that adds it",
                "`{}` changes {}, a file that the series adds in another commit",
                made.subject,
                differs.join(", ")
            ));
        }
    }
    Ok(())
}

fn write_back(ctx: &Ctx, edited: &Edited, all: &Assembled) -> Result<Vec<String>> {
    let mut target: BTreeMap<String, Option<(Vec<u8>, bool)>> = BTreeMap::new();
    for path in &all.series.overlay {
        target.insert(path.clone(), None);
    }
    for (path, file) in &edited.files {
        target.insert(path.clone(), Some(file.clone()));
    }
    for commit in &edited.commits {
        target.insert(
            format!("series/{}", commit.name),
            Some((commit.text().into_bytes(), false)),
        );
    }
    let cover = format!("{}\n", text(&edited.cover));
    target.insert(
        format!("series/{}", series::COVER),
        Some((cover.into_bytes(), false)),
    );
    // Only what differs is written.
    target.retain(|path, file| match file {
        Some(file) => assemble::read(&ctx.root, path).ok().as_ref() != Some(file),
        None => true,
    });
    let own = Repo::users(&ctx.root);
    let touched: BTreeSet<&String> = target.keys().collect();
    if !touched.is_empty() {
        let mut args = vec!["status", "--porcelain", "--untracked-files=all", "--"];
        args.extend(touched.iter().map(|path| path.as_str()));
        if let Some(first) = own.git(args)?.lines().next() {
            return Err(miette!(
                help = "commit it here first, so that refreshing cannot lose it",
                "{} has uncommitted changes in this repository",
                first[3..].trim()
            ));
        }
    }
    for (path, file) in &target {
        let full = ctx.root.join(path);
        match file {
            None => fs::remove_file(&full).into_diagnostic()?,
            Some((content, executable)) => {
                use std::os::unix::fs::PermissionsExt;
                fs::create_dir_all(full.parent().unwrap_or(&ctx.root)).into_diagnostic()?;
                fs::write(&full, content).into_diagnostic()?;
                let mode = if *executable { 0o755 } else { 0o644 };
                fs::set_permissions(&full, fs::Permissions::from_mode(mode)).into_diagnostic()?;
            }
        }
    }
    Ok(target.into_keys().collect())
}

/// A commit message without the sign-off that the assembly adds.
fn unsigned(message: &str, identity: &Identity) -> String {
    let own = format!("Signed-off-by: {}", identity.address());
    let message = message.trim_end();
    match message.strip_suffix(&own) {
        Some(rest) if identity.signs => rest.trim_end().to_owned(),
        _ => message.to_owned(),
    }
}

/// A name for a new file in series/.
fn slug(subject: &str) -> String {
    let words: String = subject
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '-'
            }
        })
        .collect();
    words
        .split('-')
        .filter(|word| !word.is_empty())
        .take(6)
        .collect::<Vec<_>>()
        .join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_sign_off_is_taken_away_and_no_other() {
        let me = Identity {
            name: "N".to_owned(),
            email: "n@n".to_owned(),
            signs: true,
        };
        assert_eq!(
            unsigned("s\n\nb\n\nSigned-off-by: N <n@n>\n", &me),
            "s\n\nb"
        );
        assert_eq!(
            unsigned("s\n\nLink: x\nSigned-off-by: N <n@n>\n", &me),
            "s\n\nLink: x"
        );
        assert_eq!(
            unsigned("s\n\nSigned-off-by: O <o@o>\n", &me),
            "s\n\nSigned-off-by: O <o@o>"
        );
    }

    #[test]
    fn slug_of_a_subject() {
        assert_eq!(
            slug("vfio/pci: Place BARs (again)"),
            "vfio-pci-place-bars-again"
        );
    }
}
