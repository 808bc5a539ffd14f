//! The series as a worktree to edit; what is edited there is brought back by `refresh`.
//!
//! Each delivery is a branch on top of the one before, and one that b4 knows: the cover letter and
//! the recipients are the branch's description, b4's own tracking data says where it starts.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Result, anyhow, bail};
use fs_err as fs;
use serde_json::json;

use super::Assembled;
use super::base::{self, Base};
use super::overlay::{Delivery, Headers};
use crate::host::Ctx;
use crate::host::git::Repo;
use crate::host::run;

/// What `checkout` laid out, a reference for each delivery, to tell the user's edits from it.
const LAID: &str = "refs/xtask/laid/";
/// b4's settings are part of this repository, not of the series.
const B4_CONFIG: &str = ".b4-config";

/// The branch of a delivery; b4 names its branches so.
pub fn branch(delivery: &str) -> String {
    format!("b4/{delivery}")
}

/// The worktree of the user's, in `repo` of the base.
pub struct Checkout<'a> {
    all: &'a Assembled,
    repo: &'a Repo,
    pub tree: Repo,
}

/// Lays the series out below `base.dir`, in a worktree of `base.repo`.
pub fn checkout(ctx: &Ctx, base: &Base, all: &Assembled) -> Result<PathBuf> {
    let out = Checkout::new(base, all);
    let path = &out.tree.dir;
    if !path.join(".git").exists() {
        if path.exists() {
            bail!(
                "{} is in the way of the checkout: remove it",
                path.display()
            );
        }
        let bar = ctx.ui.bar("worktree", 0);
        out.repo.add_worktree(path, &[all.tip()])?;
        drop(bar);
        out.lay()?;
    } else {
        let laid = out.laid()?;
        if out.edited(&laid)? {
            bail!(
                "the checkout {} has edits that this repository has not\nhelp: bring them back with `cargo xtask refresh`, or remove that directory to give them up",
                path.display()
            );
        }
        if !out.same_commits(&laid)? {
            out.tree
                .git(["checkout", "--quiet", "--detach", all.tip()])?;
            for gone in laid.keys() {
                for name in [
                    format!("{LAID}{gone}"),
                    format!("refs/heads/{}", branch(gone)),
                ] {
                    out.repo.git(["update-ref", "-d", &name])?;
                }
            }
            out.lay()?;
        }
    }
    out.describe()?;
    fs::copy(ctx.root.join(B4_CONFIG), path.join(B4_CONFIG))?;
    fs::create_dir_all(base.repo.dir.join("info"))?;
    fs::write(
        base.repo.dir.join("info/exclude"),
        format!("/{B4_CONFIG}\n"),
    )?;
    Ok(path.clone())
}

impl<'a> Checkout<'a> {
    pub fn new(base: &'a Base, all: &'a Assembled) -> Checkout<'a> {
        Checkout {
            all,
            repo: &base.repo,
            tree: Repo::new(base.dir.join(base::CHECKOUT)),
        }
    }

    /// Points the branches at the deliveries, and leaves the worktree on the last one.
    fn lay(&self) -> Result<()> {
        let mut last = String::new();
        for delivery in &self.all.series.deliveries {
            let (name, tip) = (&delivery.name, self.all.tip_of(delivery));
            last = branch(name);
            self.repo
                .git(["update-ref", &format!("refs/heads/{last}"), tip])?;
            self.repo
                .git(["update-ref", &format!("{LAID}{name}"), tip])?;
        }
        self.tree.git(["checkout", "--quiet", &last]).map(drop)
    }

    /// The deliveries that were laid out, and the last commit of each.
    pub fn laid(&self) -> Result<BTreeMap<String, String>> {
        let format = "--format=%(refname) %(objectname)";
        let list = self.repo.git(["for-each-ref", format, LAID])?;
        let pairs = list.lines().filter_map(|line| {
            let (name, id) = line.strip_prefix(LAID)?.split_once(' ')?;
            Some((name.to_owned(), id.to_owned()))
        });
        let laid: BTreeMap<_, _> = pairs.collect();
        if laid.is_empty() {
            bail!(
                "the checkout {} was not completed, or is one of an earlier version of this program\nhelp: save what you edited there, remove that directory and run `cargo xtask checkout`",
                self.tree.dir.display()
            );
        }
        Ok(laid)
    }

    /// Takes what the checkout has now for what was laid out.
    pub fn settle(&self, laid: &BTreeMap<String, String>) -> Result<()> {
        for name in laid.keys() {
            let (mark, tip) = (format!("{LAID}{name}"), self.tip(name)?);
            self.repo.git(["update-ref", &mark, &tip])?;
            self.set(name, "xtask-laid", &self.description(name))?;
        }
        Ok(())
    }

    /// Whether the checkout is not what was laid out.
    fn edited(&self, laid: &BTreeMap<String, String>) -> Result<bool> {
        if !self.tree.git(["status", "--porcelain"])?.is_empty() || !self.on_a_branch(laid) {
            return Ok(true);
        }
        for (name, id) in laid {
            let now = self.description(name);
            let mut deliveries = self.all.series.deliveries.iter();
            let delivery = deliveries.find(|other| &other.name == name);
            let ours = delivery.map(|delivery| self.text(delivery));
            let described = now == self.setting(name, "xtask-laid") || Some(now) == ours;
            if &self.tip(name)? != id || !described {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether a delivery's branch is checked out: in the middle of a rebase, none is.
    pub fn on_a_branch(&self, laid: &BTreeMap<String, String>) -> bool {
        let head = self
            .tree
            .git(["symbolic-ref", "--quiet", "--short", "HEAD"]);
        head.is_ok_and(|head| laid.keys().any(|name| branch(name) == head))
    }

    pub fn tip(&self, delivery: &str) -> Result<String> {
        let branch = branch(delivery);
        let name = format!("refs/heads/{branch}");
        let tip = self.repo.git(["rev-parse", "--verify", "--quiet", &name]);
        tip.map_err(|_| anyhow!("the branch {branch} of the checkout is gone"))
    }

    /// Whether the deliveries that were laid out are those of this repository.
    pub fn same_commits(&self, laid: &BTreeMap<String, String>) -> Result<bool> {
        let base = &self.all.base.commit;
        let log = |tip: &str| {
            let range = format!("{base}..{tip}");
            self.repo.git(["log", "--format=%T%n%B", &range])
        };
        let deliveries = &self.all.series.deliveries;
        if !laid
            .keys()
            .eq(deliveries.iter().map(|delivery| &delivery.name))
        {
            return Ok(false);
        }
        for (id, delivery) in laid.values().zip(deliveries) {
            if log(id)? != log(self.all.tip_of(delivery))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What b4 finds in the branch's description: the cover letter, and the recipients below it.
    fn text(&self, delivery: &Delivery) -> String {
        let cover = match &delivery.cover {
            Some(cover) => cover.text(),
            // b4 sends a single patch without, but takes the recipients from here.
            None => self.all.made_of(delivery)[0].subject.clone(),
        };
        let Headers { to, cc, .. } = &delivery.headers;
        let to = to.iter().map(|who| format!("\nTo: {who}"));
        let cc = cc.iter().map(|who| format!("\nCc: {who}"));
        let recipients: String = to.chain(cc).collect();
        format!("{}\n{recipients}", cover.trim_end())
    }

    fn setting(&self, delivery: &str, key: &str) -> String {
        let key = format!("branch.{}.{key}", branch(delivery));
        // A checkout that was killed before it described itself has nothing to lose.
        self.repo.git(["config", "--get", &key]).unwrap_or_default()
    }

    fn set(&self, delivery: &str, key: &str, value: &str) -> Result<()> {
        let key = format!("branch.{}.{key}", branch(delivery));
        self.repo.git(["config", &key, value]).map(drop)
    }

    pub fn description(&self, delivery: &str) -> String {
        self.setting(delivery, "description")
    }

    fn describe(&self) -> Result<()> {
        let mut below = base::BRANCH.to_owned();
        for delivery in &self.all.series.deliveries {
            let name = &delivery.name;
            let text = self.text(delivery);
            self.set(name, "description", &text)?;
            self.set(name, "xtask-laid", &text)?;
            self.set(name, "b4-prep-cover-strategy", "branch-description")?;
            // What b4 keeps after a posting stays.
            let sent = self.setting(name, "b4-tracking");
            if sent.is_empty()
                || sent.contains(r#""revision":1,"#)
                || sent.contains(r#""revision": 1,"#)
            {
                self.set(name, "b4-tracking", &self.tracking(delivery, &below)?)?;
            }
            below = branch(name);
        }
        // A commit that is edited takes the branches of the deliveries above it along.
        self.repo
            .git(["config", "rebase.updateRefs", "true"])
            .map(drop)
    }

    /// What b4 has to know of a delivery. The branch below is its start, which nobody else has:
    /// others start from the base and what it needs.
    fn tracking(&self, delivery: &Delivery, below: &str) -> Result<String> {
        let mut prerequisites = vec![format!("base-commit: {}", self.all.base.commit)];
        for needed in self.all.series.needed_by(delivery) {
            for made in self.all.made_of(needed) {
                let diff = run::bytes(self.repo.command().args(["diff-tree", "-p", &made.id]))?;
                let mut id = self.repo.command();
                let id = run::output_with(id.args(["patch-id", "--stable"]), &diff)?;
                let id = id.split(' ').next().unwrap_or_default();
                prerequisites.push(format!("patch-id: {id}"));
            }
        }
        let tracking = json!({"series": {
            "revision": 1,
            "change-id": delivery.headers.change_id,
            "prefixes": delivery.headers.prefix.as_slice(),
            "presubject": "",
            "base-branch": below,
            "prerequisites": prerequisites,
        }});
        Ok(tracking.to_string())
    }
}
