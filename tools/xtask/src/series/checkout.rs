//! The series as a worktree to edit: laid out by `checkout`, brought back by `refresh`.
//!
//! Each delivery is a branch on top of the one before, and one that b4 knows: the cover letter and
//! the recipients are the branch's description, b4's own tracking data says where it starts.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use miette::{IntoDiagnostic, Result, WrapErr, miette};

use crate::host::Ctx;
use crate::host::git::{self, Identity, Repo};
use crate::host::run;
use crate::series::Assembled;
use crate::series::assembly::{self, Kind};
use crate::series::base::{self, Base};
use crate::series::modlines;
use crate::series::overlay::{self, Commit, Cover, Delivery, Headers};

/// What `checkout` laid out, a reference for each delivery, to tell the user's edits from it.
const LAID: &str = "refs/xtask/laid/";
/// b4's settings are part of this repository, not of the series.
const B4_CONFIG: &str = ".b4-config";

/// The branch of a delivery; b4 names its branches so.
pub fn branch(delivery: &str) -> String {
    format!("b4/{delivery}")
}

fn config(delivery: &str, key: &str) -> String {
    format!("branch.{}.{key}", branch(delivery))
}

/// Lays the series out below `base.dir`, in a worktree of `base.repo`.
pub fn checkout(ctx: &Ctx, base: &Base, all: &Assembled) -> Result<PathBuf> {
    let Base { repo, dir, .. } = base;
    let path = dir.join("checkout");
    let tree = Repo::new(&path);
    if path.join(".git").exists() {
        let laid = laid(repo, &path)?;
        if edited(repo, &tree, &laid, all)? {
            return Err(miette!(
                help = "bring them back with `cargo xtask refresh`, or remove that directory to give them up",
                "the checkout {} has edits that this repository has not",
                path.display()
            ));
        }
        if !same_messages(repo, &laid, all)? {
            tree.git(["checkout", "--quiet", "--detach", all.tip()])?;
            for gone in laid.keys() {
                for name in [
                    format!("{LAID}{gone}"),
                    format!("refs/heads/{}", branch(gone)),
                ] {
                    repo.git(["update-ref", "-d", &name])?;
                }
            }
            lay(repo, &tree, all)?;
        }
    } else {
        if path.exists() {
            return Err(miette!(
                "{} is in the way of the checkout: remove it",
                path.display()
            ));
        }
        repo.git(["worktree", "prune"])?;
        let bar = ctx.ui.bar("worktree", 0);
        let place = path.to_string_lossy();
        repo.git(["worktree", "add", "--quiet", "--detach", &place, all.tip()])?;
        drop(bar);
        lay(repo, &tree, all)?;
    }
    describe(repo, all)?;
    place_b4_config(ctx, repo, &path)?;
    Ok(path)
}

/// Points the branches at the deliveries, and leaves the worktree on the last one.
fn lay(repo: &Repo, tree: &Repo, all: &Assembled) -> Result<()> {
    let mut last = String::new();
    for delivery in &all.series.deliveries {
        let (name, tip) = (&delivery.name, all.tip_of(delivery));
        last = branch(name);
        repo.git(["update-ref", &format!("refs/heads/{last}"), tip])?;
        repo.git(["update-ref", &format!("{LAID}{name}"), tip])?;
    }
    tree.git(["checkout", "--quiet", &last]).map(|_| ())
}

/// The deliveries that were laid out, and the last commit of each.
fn laid(repo: &Repo, path: &Path) -> Result<BTreeMap<String, String>> {
    let list = repo.git(["for-each-ref", "--format=%(refname) %(objectname)", LAID])?;
    let pairs = list.lines().filter_map(|line| {
        let (name, id) = line.strip_prefix(LAID)?.split_once(' ')?;
        Some((name.to_owned(), id.to_owned()))
    });
    let laid: BTreeMap<_, _> = pairs.collect();
    if laid.is_empty() {
        return Err(miette!(
            help =
                "save what you edited there, remove that directory and run `cargo xtask checkout`",
            "the checkout {} was not completed, or is one of an earlier version of this program",
            path.display()
        ));
    }
    Ok(laid)
}

/// Whether the checkout is not what was laid out.
fn edited(
    repo: &Repo,
    tree: &Repo,
    laid: &BTreeMap<String, String>,
    all: &Assembled,
) -> Result<bool> {
    if !tree.git(["status", "--porcelain"])?.is_empty() || !on_a_branch(tree, laid) {
        return Ok(true);
    }
    for (name, id) in laid {
        let now = description(repo, name);
        let delivery = all
            .series
            .deliveries
            .iter()
            .find(|other| &other.name == name);
        let ours = delivery.map(|delivery| text(all, delivery));
        let laid = setting(repo, name, "xtask-laid");
        if &tip(repo, name)? != id || now != laid && Some(now) != ours {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a delivery's branch is checked out: in the middle of a rebase, none is.
fn on_a_branch(tree: &Repo, laid: &BTreeMap<String, String>) -> bool {
    let head = tree.git(["symbolic-ref", "--quiet", "--short", "HEAD"]);
    head.is_ok_and(|head| laid.keys().any(|name| branch(name) == head))
}

fn tip(repo: &Repo, delivery: &str) -> Result<String> {
    let name = format!("refs/heads/{}", branch(delivery));
    repo.git(["rev-parse", "--verify", "--quiet", &name])
        .map_err(|_| miette!("the branch {} of the checkout is gone", branch(delivery)))
}

/// Whether the deliveries that were laid out are those of this repository.
fn same_messages(repo: &Repo, laid: &BTreeMap<String, String>, all: &Assembled) -> Result<bool> {
    let base = &all.base.commit;
    let log = |tip: &str| {
        repo.git([
            "log",
            "--format=%T%n%an%n%ae%n%B",
            &format!("{base}..{tip}"),
        ])
    };
    let deliveries = &all.series.deliveries;
    if !laid
        .keys()
        .eq(deliveries.iter().map(|delivery| &delivery.name))
    {
        return Ok(false);
    }
    for (id, delivery) in laid.values().zip(deliveries) {
        if log(id)? != log(all.tip_of(delivery))? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What b4 finds in the branch's description: the cover letter, and the recipients below it.
fn text(all: &Assembled, delivery: &Delivery) -> String {
    let cover = match &delivery.cover {
        Some(cover) => cover.text(),
        // b4 sends a single patch without, but takes the recipients from here.
        None => format!("{}\n", all.made_of(delivery)[0].subject),
    };
    let Headers { to, cc, .. } = &delivery.headers;
    let to = to.iter().map(|who| format!("\nTo: {who}"));
    let cc = cc.iter().map(|who| format!("\nCc: {who}"));
    let recipients: String = to.chain(cc).collect();
    format!("{}\n{recipients}", cover.trim_end())
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

fn setting(repo: &Repo, delivery: &str, key: &str) -> String {
    // A checkout that was killed before it described itself has nothing to lose.
    repo.git(["config", "--get", &config(delivery, key)])
        .unwrap_or_default()
}

fn description(repo: &Repo, delivery: &str) -> String {
    setting(repo, delivery, "description")
}

fn describe(repo: &Repo, all: &Assembled) -> Result<()> {
    let set = |key: &str, value: &str| repo.git(["config", key, value]).map(|_| ());
    let mut below = base::BRANCH.to_owned();
    for delivery in &all.series.deliveries {
        let name = &delivery.name;
        let text = text(all, delivery);
        set(&config(name, "description"), &text)?;
        set(&config(name, "xtask-laid"), &text)?;
        set(
            &config(name, "b4-prep-cover-strategy"),
            "branch-description",
        )?;
        // What b4 keeps after a posting stays.
        let sent = setting(repo, name, "b4-tracking");
        if sent.is_empty() || sent.contains(r#""revision": 1,"#) {
            let tracking = tracking(repo, all, delivery, &below)?;
            set(&config(name, "b4-tracking"), &tracking)?;
        }
        below = branch(name);
    }
    // A commit that is edited takes the branches of the deliveries above it along.
    set("rebase.updateRefs", "true")?;
    // Without a mail transport b4 falls back to a web endpoint, which refuses unsigned mail even
    // when it only writes files; git's own fallback is the local host.
    let transport = ["sendemail.smtpserver", "sendemail.sendmailcmd"];
    if !transport
        .iter()
        .any(|key| git::setting(&repo.dir, key).is_some())
    {
        set("sendemail.smtpserver", "localhost")?;
    }
    if all.identity.signs {
        set("user.name", &all.identity.name)?;
        set("user.email", &all.identity.email)?;
    }
    Ok(())
}

/// What b4 has to know of a delivery. The branch below is its start, which nobody else has: others
/// start from the base and what it needs.
fn tracking(repo: &Repo, all: &Assembled, delivery: &Delivery, below: &str) -> Result<String> {
    let mut prerequisites = vec![format!(r#""base-commit: {}""#, all.base.commit)];
    for needed in all.series.needed_by(delivery) {
        for made in all.made_of(needed) {
            let diff = run::bytes(repo.command().args(["diff-tree", "-p", &made.id]))?;
            let id = run::output_with(repo.command().args(["patch-id", "--stable"]), &diff)?;
            let id = id.split(' ').next().unwrap_or_default();
            prerequisites.push(format!(r#""patch-id: {id}""#));
        }
    }
    let prefix = delivery.headers.prefix.iter();
    let prefix: Vec<String> = prefix.map(|prefix| format!(r#""{prefix}""#)).collect();
    Ok(format!(
        r#"{{"series": {{"revision": 1, "change-id": "{}", "prefixes": [{}], "presubject": "", "base-branch": "{below}", "prerequisites": [{}]}}}}"#,
        delivery.headers.change_id,
        prefix.join(", "),
        prerequisites.join(", ")
    ))
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
    let Base { repo, dir, .. } = &all.base;
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
    let laid = laid(repo, &tree.dir)?;
    if !on_a_branch(&tree, &laid) {
        return Err(miette!(
            help = "end the rebase that is going on, or check out the last delivery's branch",
            "no delivery's branch is checked out in {}",
            tree.dir.display()
        ));
    }
    if !same_messages(repo, &laid, all)? {
        return Err(miette!(
            help = "undo the changes made here since the checkout, or carry the checkout's edits over by hand",
            "this repository changed after the checkout was made: refreshing would lose one of the two"
        ));
    }
    let edited = read_back(repo, &tree, all)?;
    let written = write_back(ctx, &edited, all)?;
    for name in laid.keys() {
        repo.git(["update-ref", &format!("{LAID}{name}"), &tip(repo, name)?])?;
        repo.git([
            "config",
            &config(name, "xtask-laid"),
            &description(repo, name),
        ])?;
    }
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
    files: BTreeMap<String, (Vec<u8>, bool)>,
}

fn read_back(repo: &Repo, tree: &Repo, all: &Assembled) -> Result<Edited> {
    let mut below = all.base.commit.clone();
    let last = all
        .series
        .deliveries
        .last()
        .map(|last| tip(repo, &last.name));
    let mut reader = Reader {
        tree,
        all,
        tip: last.unwrap_or_else(|| Ok(below.clone()))?,
        patches: BTreeMap::new(),
        edited: Edited::default(),
    };
    for delivery in &all.series.deliveries {
        let tip = tip(repo, &delivery.name)?;
        reader.delivery(delivery, &below, &tip)?;
        reader.describe(delivery, &description(repo, &delivery.name))?;
        below = tip;
    }
    verify(all, &reader.edited, tree)?;
    Ok(reader.edited)
}

/// Reads commits of the checkout.
struct Reader<'a> {
    tree: &'a Repo,
    all: &'a Assembled,
    /// The last commit of the last delivery.
    tip: String,
    /// How many patches each kernel file has so far.
    patches: BTreeMap<String, u32>,
    edited: Edited,
}

impl Reader<'_> {
    fn delivery(&mut self, delivery: &Delivery, below: &str, tip: &str) -> Result<()> {
        let (tree, name) = (self.tree, &delivery.name);
        if tree
            .git(["merge-base", "--is-ancestor", below, tip])
            .is_err()
        {
            return Err(miette!(
                help = "rebase it (git rebase --update-refs on the last delivery's branch keeps them in a row)",
                "the branch {} is not on top of the delivery before it",
                branch(name)
            ));
        }
        let range = format!("{below}..{tip}");
        if !tree.git(["rev-list", "--merges", &range])?.is_empty() {
            return Err(miette!(
                "{} has merges, which a series has not: rebase it",
                branch(name)
            ));
        }
        let list = tree.git(["rev-list", "--reverse", &range])?;
        let ids: Vec<&str> = list.lines().collect();
        if ids.len() < delivery.commits.len() {
            return Err(miette!(
                help = "remove the commit's file in series/ and its overlay files here, then make a new checkout",
                "{} has {} commits where series/{name} has {}",
                branch(name),
                ids.len(),
                delivery.commits.len()
            ));
        }
        let mut parent = below;
        for (index, id) in ids.iter().enumerate() {
            let old = self.all.series.commits[delivery.commits.clone()].get(index);
            self.commit(old, &format!("{name}/{:02}-", index + 1), parent, id)?;
            parent = id;
        }
        Ok(())
    }

    /// Reads the commit that was `old`, or one that is new and gets a name after its subject.
    fn commit(&mut self, old: Option<&Commit>, prefix: &str, parent: &str, id: &str) -> Result<()> {
        let message = self.tree.git(["log", "-1", "--format=%B", id])?;
        let message = unsigned(&message, &self.all.identity);
        let subject = message.lines().next().unwrap_or_default();
        let name = match old {
            Some(old) => old.name.clone(),
            None => format!("{prefix}{}", slug(subject)),
        };
        let mut brought = Vec::new();
        for path in self.tree.changed(parent, id)? {
            let overlay = self
                .bring(parent, id, &path)
                .wrap_err_with(|| format!("the checkout's `{subject}`"))?;
            brought.extend(overlay);
        }
        // What was listed before keeps its place in the list.
        let listed = old.map(|old| old.paths.as_slice()).unwrap_or_default();
        let mut paths: Vec<String> = listed.to_vec();
        paths.retain(|path| brought.contains(path));
        brought.retain(|path| !paths.contains(path));
        paths.extend(brought);
        self.edited.commits.push(Commit {
            name,
            message,
            paths,
        });
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
            let cover: Cover = overlay::parse_cover(cover)?;
            add(overlay::COVER, format!("{}\n", cover.text()));
        }
        Ok(())
    }

    fn has(&self, commit: &str, path: &str) -> bool {
        let name = format!("{commit}:{path}");
        self.tree.git(["cat-file", "-e", &name]).is_ok()
    }

    /// Makes the overlay file for one changed path; None when an earlier commit's file covers it.
    fn bring(&mut self, parent: &str, id: &str, path: &str) -> Result<Option<String>> {
        if assembly::kind(path) == Kind::Maintainers {
            let entries = assembly::read(&self.all.series.root, path)
                .wrap_err("entries of MAINTAINERS are edited in this repository's MAINTAINERS")?;
            self.edited.files.insert(path.to_owned(), entries);
            return Ok(Some(path.to_owned()));
        }
        if !self.has(&self.all.base.commit, path) {
            match self.edited.files.get(path) {
                None => return self.whole(id, path).map(Some),
                Some((content, _)) if self.lands(content, id, path)? => return Ok(None),
                Some(_) => {}
            }
        }
        let nth = self.patches.entry(path.to_owned()).or_default();
        *nth += 1;
        let overlay = assembly::patch_path(path, *nth);
        let content = match self.unchanged(&overlay, parent, id, path) {
            true => assembly::read(&self.all.series.root, &overlay)?.0,
            false => self.diff(parent, id, path)?,
        };
        self.edited.files.insert(overlay.clone(), (content, false));
        Ok(Some(overlay))
    }

    /// A new file: as it ends when nothing but its modules lands later, else as this commit has it.
    fn whole(&mut self, id: &str, path: &str) -> Result<String> {
        let last = self
            .tree
            .blob(&self.tip, path)
            .wrap_err_with(|| format!("{path} is added and then removed"))?;
        let mode = self.tree.git(["ls-tree", &self.tip, "--", path])?;
        let content = match self.lands(&last, id, path)? {
            true => last,
            false => self.tree.blob(id, path)?,
        };
        let file = (content, mode.starts_with("100755"));
        self.edited.files.insert(path.to_owned(), file);
        Ok(path.to_owned())
    }

    /// Whether commit `id` has the file as the assembly makes it of `content`, without the modules
    /// that land later.
    fn lands(&self, content: &[u8], id: &str, path: &str) -> Result<bool> {
        let now = self.tree.blob(id, path)?;
        let Some(text) = str::from_utf8(content)
            .ok()
            .filter(|_| path.ends_with(".rs"))
        else {
            return Ok(now == content);
        };
        let present = |module: &str| {
            let files = modlines::candidates(path, module);
            let files = files
                .iter()
                .filter(|file| !self.has(&self.all.base.commit, file));
            let files: Vec<&String> = files.collect();
            let at = |commit: &str| files.iter().any(|file| self.has(commit, file));
            at(id) || !at(&self.tip)
        };
        Ok(modlines::without_absent(text, &present).as_bytes() == now)
    }

    /// Whether a patch of the overlay still says the same, and so keeps its text.
    fn unchanged(&self, overlay: &String, parent: &str, id: &str, path: &str) -> bool {
        let blob = |commit: &str| self.tree.git(["rev-parse", &format!("{commit}:{path}")]);
        let same = |one: &str, other: &str| {
            blob(one)
                .ok()
                .is_some_and(|one| Some(one) == blob(other).ok())
        };
        let commits = self.all.series.commits.iter().zip(&self.all.made);
        commits
            .filter(|(commit, _)| commit.paths.contains(overlay))
            .any(|(_, made)| same(&made.parent, parent) && same(&made.id, id))
    }

    fn diff(&self, parent: &str, id: &str, path: &str) -> Result<Vec<u8>> {
        let mut cmd = self.tree.command();
        cmd.args(["diff", "--no-renames", "--no-color", parent, id, "--", path]);
        let text = String::from_utf8(run::bytes(&mut cmd)?)
            .into_diagnostic()
            .wrap_err_with(|| format!("{path} is not UTF-8"))?;
        let start = text
            .find("--- a/")
            .ok_or_else(|| miette!("{path} changes in something else than text"))?;
        if !text[start..].contains(&format!("\n+++ b/{path}\n")) {
            return Err(miette!("{path} is removed, which no overlay file can say"));
        }
        Ok(text.as_bytes()[start..].to_vec())
    }
}

/// Assembles what would be written and compares every commit with the checkout's.
fn verify(all: &Assembled, edited: &Edited, tree: &Repo) -> Result<()> {
    let read = |path: &str| {
        edited
            .files
            .get(path)
            .cloned()
            .ok_or_else(|| miette!("{path} is in no commit of the checkout"))
    };
    let made = assembly::commits(&all.base, &edited.commits, &read, &all.identity)?;
    for (made, id) in made.iter().zip(&edited.ids) {
        if all.base.repo.tree(&made.id)? != tree.tree(id)? {
            let differs = tree.changed(&made.id, id)?;
            return Err(miette!(
                help = "change a new file in the commit that adds it, or after the modules that it declares",
                "`{}` changes {} in a way that no overlay file can say",
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
    for (name, text) in &edited.texts {
        target.insert(
            format!("series/{name}"),
            Some((text.clone().into_bytes(), false)),
        );
    }
    // Only what differs is written.
    target.retain(|path, file| match file {
        Some(file) => assembly::read(&ctx.root, path).ok().as_ref() != Some(file),
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
