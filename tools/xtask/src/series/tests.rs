//! The series on a toy kernel of a few files: there and back again, killed, and twice at once.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use fs_err as fs;

use super::base::CHECKOUT;
use super::{Assembled, checkout, refresh};
use crate::host::cache::Cache;
use crate::host::git::Repo;
use crate::host::ui::Ui;
use crate::host::{Ctx, run};

/// Tells the test that is a program of its own where the toy is.
const PLACE: &str = "XTASK_TOY";

const MAINTAINERS: &str = "--- a/MAINTAINERS\n+++ b/MAINTAINERS\n@@ -1,5 +1,8 @@\n List\n \n+ALONE\n\
    +F:\tlib/alone.c\n+\n THE REST\n M:\tA <a@a>\n F:\t*\n";

struct Toy(PathBuf);

impl Drop for Toy {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

impl Toy {
    fn new() -> Toy {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("xtask-toy-{}-{number}", std::process::id());
        let toy = Toy(std::env::temp_dir().join(name));
        let lines: String = (1..40).map(|line| format!("line {line}\n")).collect();
        for (path, text) in [
            ("MAINTAINERS", "List\n\nTHE REST\nM:\tA <a@a>\nF:\t*\n"),
            ("Kbuild", ""),
            ("scripts/checkpatch.pl", ""),
            ("mm/a.c", &lines),
        ] {
            toy.write(&format!("kernel/{path}"), text);
        }
        toy.commit("kernel", "base");
        let patch = |at: u32| {
            let (before, after) = (at - 1, at + 1);
            format!(
                "--- a/mm/a.c\n+++ b/mm/a.c\n@@ -{before},3 +{before},3 @@\n line {before}\n-line {at}\n+LINE {at}\n line {after}\n"
            )
        };
        for (path, text) in [
            ("series/not-kernel", "series/\n.b4-config\n"),
            (".b4-config", "[b4]\n"),
            ("series/1-one/cover-letter", "One\n\nBecause.\n"),
            ("series/1-one/headers", "Change-Id: c1\nTo: A <a@a>\n"),
            (
                "series/1-one/01-first",
                "mm: first\n\nWhy.\n---\nmm/a.c.patch\nmm/new.c\n",
            ),
            (
                "series/1-one/02-second",
                "mm: second\n---\nmm/a.c.2.patch\n",
            ),
            (
                "series/1-one/03-third",
                "mm: third\n---\nmm/new.c.patch\nmm/other.c\n",
            ),
            (
                "series/2-two/headers",
                "Change-Id: c2\nNeeds: 1-one\nTo: B <b@b>\nCc: c@c\n",
            ),
            (
                "series/2-two/01-alone",
                "lib: alone\n---\nMAINTAINERS.patch\nlib/alone.c\n",
            ),
            ("mm/a.c.patch", &patch(5)),
            ("mm/a.c.2.patch", &patch(30)),
            ("mm/new.c", "new\n"),
            (
                "mm/new.c.patch",
                "--- a/mm/new.c\n+++ b/mm/new.c\n@@ -1 +1,2 @@\n new\n+newer\n",
            ),
            ("mm/other.c", "other\n"),
            ("MAINTAINERS.patch", MAINTAINERS),
            ("lib/alone.c", "alone\n"),
        ] {
            toy.write(&format!("overlay/{path}"), text);
        }
        toy.commit("overlay", "overlay");
        toy
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A shell script in a directory, as a user would run it.
    fn sh(&self, dir: &Path, script: &str) -> String {
        let mut sh = Command::new("sh");
        for role in ["AUTHOR", "COMMITTER"] {
            sh.env(format!("GIT_{role}_NAME"), "U")
                .env(format!("GIT_{role}_EMAIL"), "u@u");
        }
        sh.env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_EDITOR", "true")
            .args(["-e", "-c", script])
            .current_dir(dir);
        run::output(&mut sh).unwrap()
    }

    fn commit(&self, dir: &str, message: &str) {
        let script = format!("git init -q -b main . && git add -A && git commit -q -m {message}");
        self.sh(&self.path(dir), &script);
    }

    fn ctx(&self) -> Ctx {
        let ui = Ui::new(false);
        Ctx {
            root: self.path("overlay"),
            cache: Cache::at(self.path("cache"), &ui).unwrap(),
            ui,
            install: false,
            signoff: false,
        }
    }

    fn assembled(&self) -> Assembled {
        Assembled::on(&self.ctx(), Some(&self.path("kernel"))).unwrap()
    }

    fn checkout(&self) -> PathBuf {
        let all = self.assembled();
        checkout::checkout(&self.ctx(), &all.base, &all).unwrap()
    }

    fn refresh(&self) -> anyhow::Result<Vec<String>> {
        let ctx = self.ctx();
        let all = Assembled::of_checkout(&ctx, Some(&self.path("kernel")))?;
        refresh::refresh(&ctx, &all)
    }

    /// A run of its own, as a process that can be killed.
    fn process(&self) -> Command {
        let mut cmd = Command::new(std::env::current_exe().unwrap());
        cmd.args(["--exact", "series::tests::process", "--ignored"])
            .env(PLACE, &self.0)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        cmd
    }
}

#[test]
#[ignore = "run by other tests, as a process of its own"]
fn process() {
    let toy = std::mem::ManuallyDrop::new(Toy(std::env::var_os(PLACE).unwrap().into()));
    toy.checkout();
}

/// The trees of the commits of the series as they are in the checkout.
fn trees(dir: &Path) -> Vec<String> {
    let repo = Repo::new(dir);
    let log = repo.git(["log", "--reverse", "--format=%T", "base..b4/2-two"]);
    log.unwrap().lines().map(str::to_owned).collect()
}

/// Edits the checkout with a script, brings it back, and assembles the same trees of it.
fn there_and_back(script: &str) -> Toy {
    let toy = Toy::new();
    let dir = toy.checkout();
    assert!(toy.refresh().unwrap().is_empty(), "nothing was edited");
    toy.sh(&dir, script);
    assert!(!toy.refresh().unwrap().is_empty());
    assert!(toy.refresh().unwrap().is_empty(), "everything was written");
    toy.commit("overlay", "refreshed");
    let all = toy.assembled();
    let made = all
        .made
        .iter()
        .map(|made| all.base.repo.tree(&made.id).unwrap());
    assert_eq!(made.collect::<Vec<_>>(), trees(&dir));
    drop(all);
    toy.checkout();
    assert!(toy.refresh().unwrap().is_empty(), "everything is here");
    toy
}

fn commits(toy: &Toy) -> String {
    toy.sh(&toy.path("overlay"), "ls series/1-one | grep ^0 | xargs")
}

#[test]
fn an_edit_comes_back() {
    let edit = "git checkout -q b4/1-one~1 && sed -i 's/LINE 30/LINE thirty/' mm/a.c && \
        git commit -q -a --amend --no-edit && new=$(git rev-parse HEAD) && \
        git checkout -q b4/2-two && git rebase -q --update-refs --onto $new b4/1-one~1";
    let toy = there_and_back(edit);
    let patch = fs::read_to_string(toy.path("overlay/mm/a.c.2.patch")).unwrap();
    assert!(patch.contains("+LINE thirty\n"), "{patch}");
    assert_eq!(commits(&toy), "01-first 02-second 03-third\n");
}

fn rebase(todo: &str) -> String {
    format!("GIT_SEQUENCE_EDITOR=\"sed -i -e '{todo}'\" git rebase -q -i --update-refs base")
}

#[test]
fn a_squash_comes_back() {
    let toy = there_and_back(&rebase("2s/^pick/fixup/"));
    assert_eq!(commits(&toy), "01-first 02-third\n");
    assert!(!toy.path("overlay/mm/a.c.2.patch").exists());
}

#[test]
fn a_drop_comes_back() {
    let toy = there_and_back(&rebase("2d"));
    assert_eq!(commits(&toy), "01-first 02-third\n");
}

#[test]
fn another_order_comes_back() {
    let toy = there_and_back(&rebase("2{h;d};3G"));
    assert_eq!(commits(&toy), "01-first 02-third 03-second\n");
}

#[test]
fn a_split_comes_back() {
    let split = "git checkout -q b4/1-one && git reset -q HEAD~1 && git add mm/other.c && \
        git commit -q -m 'mm: add other' && git commit -q -a -m 'mm: third' && \
        new=$(git rev-parse HEAD) && git checkout -q b4/2-two && \
        git rebase -q --onto $new b4/1-one && git branch -q -f b4/1-one $new";
    let toy = there_and_back(split);
    assert_eq!(
        commits(&toy),
        "01-first 02-second 03-mm-add-other 04-third\n"
    );
}

#[test]
fn a_kill_at_any_step_does_not_stop_the_next_run() {
    let toy = Toy::new();
    for delay in (0..20).map(|step| Duration::from_millis(step * 15)) {
        let mut child = run::spawn(&mut toy.process()).unwrap();
        std::thread::sleep(delay);
        child.kill().unwrap();
        child.wait().unwrap();
    }
    // A checkout that was begun may hold edits, and is left to the user.
    let half = toy.ctx().cache.path("base");
    for base in fs::read_dir(half).into_iter().flatten().flatten() {
        fs::remove_dir_all(base.path().join(CHECKOUT)).ok();
    }
    let dir = toy.checkout();
    assert_eq!(trees(&dir).len(), 4);
    assert!(toy.refresh().unwrap().is_empty());
}

#[test]
fn locks_of_a_killed_git_go_and_those_of_the_user_stay() {
    let toy = Toy::new();
    let dir = toy.checkout();
    let all = toy.assembled();
    let repo = all.base.repo.dir.clone();
    let ours = [
        "config.lock",
        "packed-refs.lock",
        "refs/heads/base.lock",
        "worktrees/work/index.lock",
    ];
    let users = repo.join("worktrees/checkout/index.lock");
    for lock in ours.map(|lock| repo.join(lock)).iter().chain([&users]) {
        fs::write(lock, "").unwrap();
    }
    fs::write(all.base.dir.join("assembly.index.lock"), "").unwrap();
    toy.assembled();
    assert!(users.exists());
    fs::remove_file(&users).unwrap();
    assert_eq!(toy.checkout(), dir);
}

#[test]
fn two_runs_at_once_wait_for_each_other() {
    let toy = Toy::new();
    let mut children = [0, 1].map(|_| run::spawn(&mut toy.process()).unwrap());
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    assert!(toy.refresh().unwrap().is_empty());
}

#[test]
fn a_partial_clone_is_a_base() {
    let toy = Toy::new();
    let script = "git -C kernel config uploadpack.allowFilter true && \
        git clone -q --no-checkout --filter=blob:none \"file://$PWD/kernel\" partial && \
        git -C partial sparse-checkout set --no-cone /mm/ && \
        git -C partial checkout -q main";
    toy.sh(&toy.0, script);
    let all = Assembled::on(&toy.ctx(), Some(&toy.path("partial"))).unwrap();
    assert!(all.tree.dir.join("Kbuild").exists());
}

#[test]
fn a_base_outlives_the_users_rebase() {
    let toy = Toy::new();
    let dir = toy.checkout();
    toy.sh(&dir, "git commit -q --amend -m 'lib: on its own'");
    let rebase = "git commit -q --amend -m rebased --date=@1 && \
        git reflog expire --expire=now --all && git gc -q --prune=now";
    toy.sh(&toy.path("kernel"), rebase);
    let written = toy.refresh().unwrap();
    assert_eq!(written, ["series/2-two/01-alone"]);
}

#[test]
fn nobody_signs_unless_they_say_so() {
    let toy = Toy::new();
    let overlay = toy.path("overlay");
    toy.sh(
        &overlay,
        "git config user.name Me && git config user.email me@me",
    );
    let config = || fs::read(overlay.join(".git/config")).unwrap();
    let before = config();
    let (mut ctx, kernel) = (toy.ctx(), toy.path("kernel"));
    let mut said = |signoff| {
        ctx.signoff = signoff;
        let all = Assembled::on(&ctx, Some(&kernel)).unwrap();
        all.base
            .repo
            .git(["log", "-1", "-p", "--format=%an %B", all.tip()])
            .unwrap()
    };
    let neutral = said(false);
    assert!(
        !neutral.contains("Me") && !neutral.contains("\n+M:"),
        "{neutral}"
    );
    let signed = said(true);
    for part in [
        "Me lib: alone",
        "Signed-off-by: Me <me@me>",
        "+M:\tMe <me@me>",
    ] {
        assert!(signed.contains(part), "{signed}");
    }
    drop(ctx);
    // The checkout has no setting that changes how the user's mail is sent.
    let dir = toy.checkout();
    let settings = Repo::new(dir).git(["config", "--list", "--local"]).unwrap();
    assert!(
        !settings.contains("sendemail") && !settings.contains("user."),
        "{settings}"
    );
    assert!(before == config());
}
