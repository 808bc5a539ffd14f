//! b4 from PyPI: what the checkout and the export must be good for.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};
use fs_err as fs;

use super::base::Base;
use super::export::Exported;
use super::{Assembled, checkout};
use crate::host::git::{self, Repo};
use crate::host::toolchain::{self, Purpose};
use crate::host::{Ctx, cache, run};

const VERSION: &str = "0.16.0";

pub struct B4 {
    program: PathBuf,
    dir: PathBuf,
}

impl B4 {
    /// b4 in a virtual environment of its own.
    pub fn open(ctx: &Ctx) -> Result<B4> {
        let environment = ctx.cache.path(format!("b4-{VERSION}"));
        // An environment names its own place and so cannot be renamed: a stamp says it is complete.
        let stamp = environment.join("complete");
        if !stamp.exists() {
            if !ctx.install {
                bail!(
                    "missing on this machine, and --no-install was given: b4 {VERSION} from PyPI"
                );
            }
            toolchain::install(ctx, &[Purpose::B4])?;
            ctx.ui
                .step(format!("installing b4 {VERSION} from PyPI into the cache"));
            cache::fresh(&environment)?;
            run::output(
                Command::new("python3")
                    .args(["-m", "venv"])
                    .arg(&environment),
            )?;
            let mut pip = Command::new(environment.join("bin/pip"));
            pip.args(["install", "--no-input", &format!("b4=={VERSION}")]);
            run::logged(ctx, "b4", "b4", 60, pip)?;
            fs::write(&stamp, "")?;
        }
        let dir = cache::fresh(&ctx.cache.path("b4-proof"))?;
        Ok(B4 {
            program: environment.join("bin/b4"),
            dir,
        })
    }

    /// What b4 makes of each delivery, in the checkout and of the export: by the check's name.
    pub fn check(
        &self,
        ctx: &Ctx,
        all: &Assembled,
        exported: &[Exported<'_>],
    ) -> Result<Vec<(String, Result<()>)>> {
        let tree = self.checkout(ctx, all)?;
        let mut results = Vec::new();
        for each in exported {
            let name = &each.delivery.name;
            Repo::new(&tree).git(["checkout", "--quiet", &checkout::branch(name)])?;
            results.extend([
                (
                    format!("prep --show-info: {name}"),
                    self.show_info(&tree, all, each),
                ),
                (format!("send --no-sign -o: {name}"), self.send(&tree, each)),
                (
                    format!("am of the export: {name}"),
                    self.am(&tree, all, each),
                ),
            ]);
        }
        Ok(results)
    }

    fn command(&self, tree: &Path) -> Command {
        let mut cmd = Command::new(&self.program);
        // b4 keeps its caches where these say.
        git::clean(&mut cmd)
            .current_dir(tree)
            .env("XDG_CACHE_HOME", self.dir.join("cache"))
            .env("XDG_DATA_HOME", self.dir.join("data"));
        cmd
    }

    /// A checkout as `cargo xtask checkout` makes it, in a repository that is not the user's.
    fn checkout(&self, ctx: &Ctx, all: &Assembled) -> Result<PathBuf> {
        let repo = Repo::new(self.dir.join("repo.git"));
        let place = repo.dir.to_string_lossy();
        let clone = ["clone", "--quiet", "--bare", "--shared", "."];
        all.base.repo.git(clone.iter().chain([&&*place]))?;
        for (key, value) in [
            ("user.name", all.identity.name.as_str()),
            ("user.email", &all.identity.email),
            // Without a mail transport b4 falls back to a web endpoint, which refuses unsigned mail
            // even when it only writes files. Nothing is sent from here.
            ("sendemail.smtpserver", "localhost"),
        ] {
            repo.git(["config", key, value])?;
        }
        let base = Base {
            repo,
            commit: all.base.commit.clone(),
            dir: self.dir.clone(),
        };
        checkout::checkout(ctx, &base, all)
    }

    fn show_info(&self, tree: &Path, all: &Assembled, each: &Exported<'_>) -> Result<()> {
        let info = run::output(self.command(tree).args(["prep", "--show-info"]))?;
        let made = all.made_of(each.delivery);
        let subject = match &each.delivery.cover {
            Some(cover) => &cover.subject,
            None => &made[0].subject,
        };
        let tip = all.tip_of(each.delivery);
        for expected in [
            format!("cover-subject: {subject}"),
            format!("change-id: {}", each.delivery.headers.change_id),
            format!("series-range: {}..{tip}", made[0].parent),
        ] {
            if !info.lines().any(|line| line == expected) {
                bail!("b4 prep --show-info does not say `{expected}`:\n{info}");
            }
        }
        Ok(())
    }

    /// The mails that b4 would send, written to files: how many, and to whom.
    fn send(&self, tree: &Path, each: &Exported<'_>) -> Result<()> {
        let out = self.dir.join("mails").join(&each.delivery.name);
        let send = ["send", "--no-sign", "-o"];
        run::output(self.command(tree).args(send).arg(&out))?;
        let mut mails = Vec::new();
        for entry in fs::read_dir(&out)? {
            mails.push(fs::read_to_string(entry?.path())?);
        }
        if mails.len() != each.files.len() {
            bail!(
                "b4 send wrote {} mails, not {}",
                mails.len(),
                each.files.len()
            );
        }
        let headers = &each.delivery.headers;
        for who in headers.to.iter().chain(&headers.cc) {
            let address = who.rsplit('<').next().unwrap_or(who).trim_end_matches('>');
            if let Some(mail) = mails
                .iter()
                .find(|mail| !recipients(mail).contains(address))
            {
                bail!("b4 does not send this to {address}:\n{mail}");
            }
        }
        Ok(())
    }

    /// What `b4 am` makes of the exported files, applied: the same tree.
    fn am(&self, tree: &Path, all: &Assembled, each: &Exported<'_>) -> Result<()> {
        let name = &each.delivery.name;
        let mailbox = self.dir.join(format!("{name}.mbox"));
        let mut text = Vec::new();
        for file in &each.files {
            text.extend(fs::read(file)?);
        }
        fs::write(&mailbox, text)?;
        let mut cmd = self.command(tree);
        cmd.args(["am", "--no-cover", "-n", name, "-m"])
            .arg(&mailbox)
            .arg("-o")
            .arg(self.dir.join("am"));
        run::output(&mut cmd)?;
        let repo = Repo::new(tree);
        let below = &all.made_of(each.delivery)[0].parent;
        repo.git(["checkout", "--quiet", "--detach", below])?;
        let mut am = repo.command();
        am.env("GIT_COMMITTER_NAME", "b4 am")
            .env("GIT_COMMITTER_EMAIL", "nobody@localhost");
        am.args(["am", "--quiet"])
            .arg(self.dir.join(format!("am/{name}.mbx")));
        run::output(&mut am)?;
        let (got, want) = (
            repo.tree("HEAD")?,
            all.base.repo.tree(all.tip_of(each.delivery))?,
        );
        if got != want {
            bail!("what b4 am makes of the export gives tree {got}, not {want}");
        }
        Ok(())
    }
}

/// The To: and Cc: headers of a mail.
fn recipients(mail: &str) -> String {
    let headers = mail.split("\n\n").next().unwrap_or_default();
    let unfolded = headers.replace("\n ", " ");
    let lines = unfolded
        .lines()
        .filter(|line| line.starts_with("To: ") || line.starts_with("Cc: "));
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recipients_are_in_folded_headers() {
        let mail = "Subject: x\nTo: A <a@a>,\n b@b\nX: y\nCc: c@c\n\nTo: d@d\n";
        assert_eq!(recipients(mail), "To: A <a@a>, b@b\nCc: c@c");
    }
}
