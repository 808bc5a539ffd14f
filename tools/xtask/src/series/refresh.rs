//! What was edited in the checkout, brought back into the repository.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result, anyhow, bail};
use fs_err as fs;

use super::Assembled;
use super::assembly::{self, File};
use super::checkout::{Checkout, branch};
use super::overlay::{self, Commit, Delivery, Headers};
use crate::host::Ctx;
use crate::host::git::{Identity, Repo};
use crate::host::run;

/// Brings the commits of the checkout back, and returns the files that were written or removed.
pub fn refresh(ctx: &Ctx, all: &Assembled) -> Result<Vec<String>> {
    let out = Checkout::new(&all.base, all);
    let tree = &out.tree;
    let place = tree.dir.display();
    if !tree.dir.join(".git").exists() {
        bail!("there is no checkout to bring back: make one with `cargo xtask checkout`");
    }
    if let Some(first) = tree.git(["status", "--porcelain"])?.lines().next() {
        bail!(
            "the checkout {place} has uncommitted changes ({})\nhelp: commit them to the commit they belong to (git commit --amend, or --fixup and rebase --autosquash)",
            first.trim()
        );
    }
    let laid = out.laid()?;
    if !out.on_a_branch(&laid) {
        bail!(
            "no delivery's branch is checked out in {place}\nhelp: end the rebase that is going on, or check out the last delivery's branch"
        );
    }
    if !out.same_commits(&laid)? {
        bail!(
            "this repository changed after the checkout was made: refreshing would lose one of the two\nhelp: undo the changes made here since the checkout (or give --signoff as it was given then), or carry the checkout's edits over by hand"
        );
    }
    let edited = read_back(&out, all)?;
    let written = write_back(ctx, &edited, all)?;
    out.settle(&laid)?;
    Ok(written)
}

/// The repository as the checkout says it should be: the series, and every overlay file.
#[derive(Default)]
struct Edited {
    /// Cover letters and headers, by their names below series/.
    texts: BTreeMap<String, String>,
    commits: Vec<Commit>,
    /// The commits of the checkout that these are.
    ids: Vec<String>,
    files: BTreeMap<String, File>,
}

fn read_back(out: &Checkout<'_>, all: &Assembled) -> Result<Edited> {
    let mut below = all.base.commit.clone();
    let mut reader = Reader {
        tree: &out.tree,
        all,
        patches: BTreeMap::new(),
        edited: Edited::default(),
    };
    for delivery in &all.series.deliveries {
        let tip = out.tip(&delivery.name)?;
        reader.delivery(delivery, &below, &tip)?;
        reader.describe(delivery, &out.description(&delivery.name))?;
        below = tip;
    }
    verify(all, &reader.edited, &out.tree)?;
    Ok(reader.edited)
}

/// Reads commits of the checkout.
struct Reader<'a> {
    tree: &'a Repo,
    all: &'a Assembled,
    /// How many patches each kernel file has so far.
    patches: BTreeMap<String, u32>,
    edited: Edited,
}

impl Reader<'_> {
    fn delivery(&mut self, delivery: &Delivery, below: &str, tip: &str) -> Result<()> {
        let tree = self.tree;
        let branch = branch(&delivery.name);
        if tree
            .git(["merge-base", "--is-ancestor", below, tip])
            .is_err()
        {
            bail!(
                "the branch {branch} is not on top of the delivery before it\nhelp: rebase it (git rebase --update-refs on the last delivery's branch keeps them in a row)"
            );
        }
        let range = format!("{below}..{tip}");
        if !tree.git(["rev-list", "--merges", &range])?.is_empty() {
            bail!("{branch} has merges, which a series has not: rebase it");
        }
        let list = tree.git(["rev-list", "--reverse", &range])?;
        let ids: Vec<&str> = list.lines().collect();
        if ids.is_empty() {
            bail!(
                "{branch} has no commit left\nhelp: to drop the delivery, remove its directory in series/ and its overlay files here, then make a new checkout"
            );
        }
        let messages = ids.iter().map(|id| {
            let message = tree.git(["log", "-1", "--format=%B", id])?;
            Ok(unsigned(&message, &self.all.identity))
        });
        let messages: Vec<String> = messages.collect::<Result<_>>()?;
        let names = names(
            delivery,
            &self.all.series.commits[delivery.commits.clone()],
            &messages,
        );
        let mut parent = below;
        for ((id, message), (name, old)) in ids.into_iter().zip(messages).zip(names) {
            self.commit(
                parent,
                id,
                Commit {
                    name,
                    message,
                    paths: old,
                },
            )?;
            parent = id;
        }
        Ok(())
    }

    /// Reads a commit, whose list of paths is that of the one it was made from so far.
    fn commit(&mut self, parent: &str, id: &str, mut commit: Commit) -> Result<()> {
        let mut brought = Vec::new();
        for path in self.tree.changed(parent, id)? {
            let overlay = self.bring(parent, id, &path);
            let overlay = overlay.with_context(|| format!("the checkout's `{}`", commit.subject()));
            brought.push(overlay?);
        }
        // What was listed before keeps its place in the list.
        commit.paths.retain(|path| brought.contains(path));
        brought.retain(|path| !commit.paths.contains(path));
        commit.paths.extend(brought);
        self.edited.commits.push(commit);
        self.edited.ids.push(id.to_owned());
        Ok(())
    }

    /// The cover letter and the recipients.
    fn describe(&mut self, delivery: &Delivery, text: &str) -> Result<()> {
        let (cover, to, cc) = parted(text);
        let headers = Headers {
            to,
            cc,
            ..delivery.headers.clone()
        };
        let mut add = |file: &str, text: String| {
            let name = format!("{}/{file}", delivery.name);
            self.edited.texts.insert(name, text);
        };
        add(overlay::HEADERS, headers.text());
        if delivery.cover.is_some() {
            let cover = overlay::parse_cover(cover)?;
            add(overlay::COVER, format!("{}\n", cover.text()));
        }
        Ok(())
    }

    /// Makes the overlay file for one changed path: a new file, or a patch of one.
    fn bring(&mut self, parent: &str, id: &str, path: &str) -> Result<String> {
        if !self.tree.has(parent, path) {
            let content = self.tree.blob(id, path)?;
            let mode = self.tree.git(["ls-tree", id, "--", path])?;
            let file = (content, mode.starts_with("100755"));
            self.edited.files.insert(path.to_owned(), file);
            return Ok(path.to_owned());
        }
        let nth = self.patches.entry(path.to_owned()).or_default();
        *nth += 1;
        let overlay = assembly::patch_path(path, *nth);
        let content = match self.unchanged(&overlay, parent, id, path) {
            true => assembly::read(&self.all.series.root, &overlay)?.0,
            false => self.diff(parent, id, path)?,
        };
        self.edited.files.insert(overlay.clone(), (content, false));
        Ok(overlay)
    }

    /// Whether a patch of the overlay still says the same, and so keeps its text.
    fn unchanged(&self, overlay: &String, parent: &str, id: &str, path: &str) -> bool {
        let blob = |commit: &str| {
            self.tree
                .git(["rev-parse", &format!("{commit}:{path}")])
                .ok()
        };
        let same = |one: &str, other: &str| blob(one).is_some_and(|one| Some(one) == blob(other));
        let commits = self.all.series.commits.iter().zip(&self.all.made);
        commits
            .filter(|(commit, _)| commit.paths.contains(overlay))
            .any(|(_, made)| same(&made.parent, parent) && same(&made.id, id))
    }

    fn diff(&self, parent: &str, id: &str, path: &str) -> Result<Vec<u8>> {
        let mut cmd = self.tree.command();
        cmd.args(["diff", "--no-renames", "--no-color", parent, id, "--", path]);
        let text = run::output(&mut cmd)?;
        let start = text.find("--- a/");
        let start = start.ok_or_else(|| anyhow!("{path} changes in something else than text"))?;
        if !text[start..].contains(&format!("\n+++ b/{path}\n")) {
            bail!("{path} is removed, which no overlay file can say");
        }
        Ok(text.as_bytes()[start..].to_vec())
    }
}

/// The names and paths that a delivery's commits had, by subject; one that has another subject now
/// is the one in its place if that is gone, and else new.
fn names(delivery: &Delivery, old: &[Commit], messages: &[String]) -> Vec<(String, Vec<String>)> {
    let subject = |message: &String| message.lines().next().unwrap_or_default().to_owned();
    let subjects: Vec<String> = messages.iter().map(subject).collect();
    let gone = |commit: &&Commit| !subjects.iter().any(|subject| subject == commit.subject());
    let name = |(index, subject): (usize, &String)| {
        let by_subject = old.iter().find(|commit| commit.subject() == subject);
        let in_place = || {
            old.get(index)
                .filter(gone)
                .filter(|_| old.len() == subjects.len())
        };
        let from = by_subject.or_else(in_place);
        let kept = from.and_then(|commit| commit.name.rsplit('/').next()?.get(3..));
        let slug = kept.map_or_else(|| slug(subject), str::to_owned);
        let paths = from.map(|commit| commit.paths.clone());
        let name = format!("{}/{:02}-{slug}", delivery.name, index + 1);
        (name, paths.unwrap_or_default())
    };
    subjects.iter().enumerate().map(name).collect()
}

/// The cover letter and the recipients of a description, To: and Cc: apart.
fn parted(text: &str) -> (&str, Vec<String>, Vec<String>) {
    let (cover, last) = text.trim_end().rsplit_once("\n\n").unwrap_or((text, ""));
    let who = |key: &str| -> Vec<String> {
        let values = last.lines().filter_map(|line| line.strip_prefix(key));
        values.map(|value| value.trim().to_owned()).collect()
    };
    let (to, cc) = (who("To:"), who("Cc:"));
    match to.len() + cc.len() == last.lines().count() {
        true => (cover, to, cc),
        false => (text, Vec::new(), Vec::new()),
    }
}

/// Assembles what would be written and compares every commit with the checkout's.
fn verify(all: &Assembled, edited: &Edited, tree: &Repo) -> Result<()> {
    let read = |path: &str| {
        let file = edited.files.get(path).cloned();
        file.ok_or_else(|| anyhow!("{path} is in no commit of the checkout"))
    };
    let made = assembly::commits(&all.base, &edited.commits, &read, &all.identity)?;
    for (made, id) in made.iter().zip(&edited.ids) {
        if all.base.repo.tree(&made.id)? != tree.tree(id)? {
            bail!(
                "`{}` changes {} in a way that no overlay file can say",
                made.subject,
                tree.changed(&made.id, id)?.join(", ")
            );
        }
    }
    Ok(())
}

fn write_back(ctx: &Ctx, edited: &Edited, all: &Assembled) -> Result<Vec<String>> {
    let mut target: BTreeMap<String, Option<File>> = BTreeMap::new();
    let commits = all.series.commits.iter();
    target.extend(commits.map(|commit| (format!("series/{}", commit.name), None)));
    target.extend(all.series.overlay.iter().map(|path| (path.clone(), None)));
    let files = edited.files.iter();
    target.extend(files.map(|(path, file)| (path.clone(), Some(file.clone()))));
    let texts = edited.texts.iter().map(|(name, text)| (name, text.clone()));
    let commits = edited
        .commits
        .iter()
        .map(|commit| (&commit.name, commit.text()));
    let texts = texts.chain(commits);
    target.extend(
        texts.map(|(name, text)| (format!("series/{name}"), Some((text.into_bytes(), false)))),
    );
    // Only what differs is written.
    target.retain(|path, file| assembly::read(&ctx.root, path).ok() != *file);
    let touched: BTreeSet<&str> = target.keys().map(String::as_str).collect();
    if !touched.is_empty() {
        let mut args = vec!["status", "--porcelain", "--untracked-files=all", "--"];
        args.extend(touched);
        if let Some(first) = Repo::users(&ctx.root).git(args)?.lines().next() {
            bail!(
                "{} has uncommitted changes in this repository\nhelp: commit it here first, so that refreshing cannot lose it",
                first[3..].trim()
            );
        }
    }
    for (path, file) in &target {
        let full = ctx.root.join(path);
        let Some((content, executable)) = file else {
            fs::remove_file(&full)?;
            continue;
        };
        fs::create_dir_all(full.parent().unwrap_or(&ctx.root))?;
        fs::write(&full, content)?;
        let mode = if *executable { 0o755 } else { 0o644 };
        fs::set_permissions(&full, std::fs::Permissions::from_mode(mode))?;
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
    let lower = subject.to_ascii_lowercase();
    let words = lower.split(|c: char| !c.is_ascii_alphanumeric());
    let words: Vec<&str> = words.filter(|word| !word.is_empty()).take(6).collect();
    words.join("-")
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
        for (message, without) in [
            ("s\n\nb\n\nSigned-off-by: N <n@n>\n", "s\n\nb"),
            ("s\n\nLink: x\nSigned-off-by: N <n@n>\n", "s\n\nLink: x"),
            (
                "s\n\nSigned-off-by: O <o@o>\n",
                "s\n\nSigned-off-by: O <o@o>",
            ),
        ] {
            assert_eq!(unsigned(message, &me), without);
        }
    }

    #[test]
    fn recipients_are_parted_from_the_cover() {
        let (cover, to, cc) = parted("s\n\nb\n\nTo: A <a@a>\nCc: b@b\nCc: c@c\n");
        assert_eq!((cover, to.len(), cc.len()), ("s\n\nb", 1, 2));
        let (cover, to, cc) = parted("s\n\nSay it\nTo: all\n");
        assert_eq!(
            (cover, to.len(), cc.len()),
            ("s\n\nSay it\nTo: all\n", 0, 0)
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
