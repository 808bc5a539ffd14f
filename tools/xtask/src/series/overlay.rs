//! The overlay and its description: which files of this repository are kernel, and which commit
//! brings each.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use fs_err as fs;

use crate::host::git::Repo;

pub const COVER: &str = "cover-letter";
pub const HEADERS: &str = "headers";
const NOT_KERNEL: &str = "not-kernel";

#[derive(Debug, PartialEq, Eq)]
pub struct Cover {
    pub subject: String,
    pub body: String,
}

impl Cover {
    /// As a branch's description says it, for git format-patch and for b4.
    pub fn text(&self) -> String {
        format!("{}\n\n{}", self.subject, self.body)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// Name of the file below series/, such as `3-placement/01-mm`.
    pub name: String,
    pub message: String,
    /// Overlay paths, such as `mm/mmap.c.patch`.
    pub paths: Vec<String>,
}

impl Commit {
    pub fn subject(&self) -> &str {
        self.message.lines().next().unwrap_or_default()
    }

    fn parse(name: &str, text: &str) -> Result<Commit> {
        let (message, paths) = text.split_once("\n---\n").ok_or_else(|| {
            anyhow!("series/{name} has no line `---` between the message and the paths")
        })?;
        let message = message.trim().to_owned();
        if message.is_empty() {
            bail!("series/{name} has no commit message");
        }
        let paths = listed(paths);
        if paths.is_empty() {
            bail!("series/{name} brings no path");
        }
        Ok(Commit {
            name: name.to_owned(),
            message,
            paths,
        })
    }

    /// The file in series/ that says this.
    pub fn text(&self) -> String {
        format!("{}\n---\n{}\n", self.message, self.paths.join("\n"))
    }
}

/// A part of the series that is posted on its own: a directory of series/.
#[derive(Debug)]
pub struct Delivery {
    /// Name of the directory, such as `3-placement`.
    pub name: String,
    pub headers: Headers,
    /// What introduces it; a single patch speaks for itself.
    pub cover: Option<Cover>,
    /// Which commits of the series it has.
    pub commits: Range<usize>,
}

/// What a delivery's mails say of it, in its file `headers`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers {
    /// What binds the revisions together on the mailing lists; never to be changed.
    pub change_id: String,
    /// Earlier deliveries that it does not apply without.
    pub needs: Vec<String>,
    /// What stands before PATCH in the subjects.
    pub prefix: Option<String>,
    pub to: Vec<String>,
    pub cc: Vec<String>,
}

impl Headers {
    fn parse(delivery: &str, text: &str) -> Result<Headers> {
        let mut headers = Headers::default();
        for line in text.lines() {
            let (key, value) = line.split_once(": ").unwrap_or((line, ""));
            let value = value.trim().to_owned();
            match key {
                _ if value.is_empty() => {
                    bail!("series/{delivery}/{HEADERS}: `{line}` is no header");
                }
                "Change-Id" => headers.change_id = value,
                "Needs" => headers.needs.push(value),
                "Prefix" => headers.prefix = Some(value),
                "To" => headers.to.push(value),
                "Cc" => headers.cc.push(value),
                _ => {
                    bail!(
                        "series/{delivery}/{HEADERS}: `{key}` is not known\nhelp: the headers are Change-Id, Needs, Prefix, To and Cc"
                    );
                }
            }
        }
        if headers.change_id.is_empty() || headers.to.is_empty() {
            bail!("series/{delivery}/{HEADERS} needs a Change-Id and a To");
        }
        Ok(headers)
    }

    /// The file that says this.
    pub fn text(&self) -> String {
        let mut text = format!("Change-Id: {}\n", self.change_id);
        let mut lines = |key: &str, values: &[String]| {
            for value in values {
                text += &format!("{key}: {value}\n");
            }
        };
        lines("Needs", &self.needs);
        lines("Prefix", self.prefix.as_slice());
        lines("To", &self.to);
        lines("Cc", &self.cc);
        text
    }
}

#[derive(Debug)]
pub struct Series {
    pub root: PathBuf,
    /// In order of application.
    pub deliveries: Vec<Delivery>,
    /// Those of all deliveries.
    pub commits: Vec<Commit>,
    /// The overlay: every kernel path of this repository.
    pub overlay: BTreeSet<String>,
}

impl Series {
    pub fn read(root: &Path) -> Result<Series> {
        let mut series = Series {
            root: root.to_owned(),
            deliveries: Vec::new(),
            commits: Vec::new(),
            overlay: BTreeSet::new(),
        };
        for name in names_in(&root.join("series"))? {
            if name != NOT_KERNEL {
                series.read_delivery(name)?;
            }
        }
        if series.commits.is_empty() {
            bail!("series/ holds no commit");
        }
        series.needs_known()?;
        let files = Repo::users(root)
            .git([
                "ls-files",
                "-z",
                "--cached",
                "--others",
                "--exclude-standard",
            ])
            .context("the series is what git sees in this repository")?;
        // A tracked file that was deleted is still listed.
        let present = files
            .split('\0')
            .filter(|path| !path.is_empty() && root.join(path).symlink_metadata().is_ok())
            .map(str::to_owned);
        series.overlay = kernel_part(present, &listed(&series.file(NOT_KERNEL)?))?;
        complete(&series.commits, &series.overlay)?;
        Ok(series)
    }

    fn file(&self, name: &str) -> Result<String> {
        fs::read_to_string(self.root.join("series").join(name))
            .with_context(|| format!("cannot read series/{name}"))
    }

    fn read_delivery(&mut self, name: String) -> Result<()> {
        let number = name.split_once('-').map(|(number, _)| number);
        if number.is_none_or(|number| number.len() != 1 || number.parse::<u8>().is_err()) {
            bail!(
                "series/{name} should be a directory named <digit>-<slug>: the digits order the deliveries"
            );
        }
        let (others, commits): (Vec<String>, Vec<String>) =
            names_in(&self.root.join("series").join(&name))?
                .into_iter()
                .partition(|file| file == COVER || file == HEADERS);
        in_order(&name, &commits)?;
        let first = self.commits.len();
        for commit in &commits {
            let commit = format!("{name}/{commit}");
            self.commits
                .push(Commit::parse(&commit, &self.file(&commit)?)?);
        }
        let has_cover = others.iter().any(|file| file == COVER);
        if !has_cover && commits.len() > 1 {
            bail!("series/{name} has no {COVER}, which only a single patch can do without");
        }
        let cover = match has_cover {
            true => Some(parse_cover(&self.file(&format!("{name}/{COVER}"))?)?),
            false => None,
        };
        self.deliveries.push(Delivery {
            headers: Headers::parse(&name, &self.file(&format!("{name}/{HEADERS}"))?)?,
            cover,
            commits: first..self.commits.len(),
            name,
        });
        Ok(())
    }

    fn needs_known(&self) -> Result<()> {
        for (index, delivery) in self.deliveries.iter().enumerate() {
            let earlier = &self.deliveries[..index];
            let unknown = |need: &&String| !earlier.iter().any(|other| &other.name == *need);
            if let Some(need) = delivery.headers.needs.iter().find(unknown) {
                bail!(
                    "series/{} needs {need}, which is no earlier delivery",
                    delivery.name
                );
            }
        }
        Ok(())
    }

    /// The deliveries that have to be applied before `delivery`, in their order.
    pub fn needed_by(&self, delivery: &Delivery) -> Vec<&Delivery> {
        let mut names: BTreeSet<&String> = delivery.headers.needs.iter().collect();
        let mut needed = Vec::new();
        for other in self.deliveries.iter().rev() {
            if names.contains(&other.name) {
                names.extend(&other.headers.needs);
                needed.insert(0, other);
            }
        }
        needed
    }
}

/// What a directory holds, sorted.
fn names_in(dir: &Path) -> Result<Vec<String>> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .and_then(|entries| {
            entries
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect()
        })
        .with_context(|| format!("cannot read {}: is this the repository?", dir.display()))?;
    names.sort();
    Ok(names)
}

/// Names must be 01-slug, 02-slug, .. without a gap: their order is the order of the commits.
fn in_order(delivery: &str, names: &[String]) -> Result<()> {
    for (index, name) in names.iter().enumerate() {
        let expected = format!("{:02}-", index + 1);
        if !name.starts_with(&expected) || name.len() == expected.len() {
            bail!(
                "series/{delivery}/{name} should be named {expected}<slug>: it is commit {}",
                index + 1
            );
        }
    }
    if names.is_empty() {
        bail!("series/{delivery} holds no commit");
    }
    Ok(())
}

pub fn parse_cover(text: &str) -> Result<Cover> {
    let (subject, body) = text
        .split_once("\n\n")
        .ok_or_else(|| anyhow!("a {COVER} needs a subject, an empty line and a body"))?;
    Ok(Cover {
        subject: subject.trim().to_owned(),
        body: body.trim_end().to_owned(),
    })
}

fn listed(text: &str) -> Vec<String> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(str::to_owned)
        .collect()
}

/// What is left of the repository without the paths and directories (`dir/`) that are not kernel.
fn kernel_part(
    files: impl Iterator<Item = String>,
    not_kernel: &[String],
) -> Result<BTreeSet<String>> {
    let mut unused: BTreeSet<&String> = not_kernel.iter().collect();
    let mut kernel = BTreeSet::new();
    for file in files {
        let matching = not_kernel.iter().find(|entry| {
            *entry == &file || (entry.ends_with('/') && file.starts_with(entry.as_str()))
        });
        match matching {
            Some(entry) => {
                unused.remove(entry);
            }
            None => {
                kernel.insert(file);
            }
        }
    }
    match unused.first() {
        Some(entry) => Err(anyhow!(
            "series/{NOT_KERNEL} names {entry}, which is not there"
        )),
        None => Ok(kernel),
    }
}

/// Every path of the overlay belongs to exactly one commit.
fn complete(commits: &[Commit], overlay: &BTreeSet<String>) -> Result<()> {
    let mut brought: BTreeMap<&str, &str> = BTreeMap::new();
    for commit in commits {
        for path in &commit.paths {
            if !overlay.contains(path) {
                bail!(
                    "series/{} brings {path}, which is not in this repository",
                    commit.name
                );
            }
            if let Some(other) = brought.insert(path, &commit.name) {
                bail!(
                    "{path} is brought twice, by series/{other} and by series/{}",
                    commit.name
                );
            }
        }
    }
    match overlay
        .iter()
        .find(|path| !brought.contains_key(path.as_str()))
    {
        Some(path) => Err(anyhow!(
            "{path} is in no commit\nhelp: name it in one file of series/, or in series/{NOT_KERNEL} when it is no part of the kernel"
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(name: &str, paths: &[&str]) -> Commit {
        Commit {
            name: name.to_owned(),
            message: "m".to_owned(),
            paths: paths.iter().map(|path| path.to_string()).collect(),
        }
    }

    fn set(paths: &[&str]) -> BTreeSet<String> {
        paths.iter().map(|path| path.to_string()).collect()
    }

    #[test]
    fn commit_file_round_trips() {
        let text = "mm: add x\n\nBecause.\n---\nmm/a.c\nmm/b.c.patch\n";
        let parsed = Commit::parse("01-mm", text).unwrap();
        assert_eq!(parsed.subject(), "mm: add x");
        assert_eq!(parsed.paths, ["mm/a.c", "mm/b.c.patch"]);
        assert_eq!(parsed.text(), text);
        assert!(Commit::parse("01-mm", "mm: add x\n").is_err());
        assert!(Commit::parse("01-mm", "mm: add x\n---\n\n").is_err());
    }

    #[test]
    fn names_are_numbered_without_a_gap() {
        let names = |list: &[&str]| list.iter().map(|name| name.to_string()).collect::<Vec<_>>();
        assert!(in_order("1-x", &names(&["01-a", "02-b"])).is_ok());
        assert!(in_order("1-x", &names(&["01-a", "03-b"])).is_err());
        assert!(in_order("1-x", &names(&["01-a", "notes"])).is_err());
        assert!(in_order("1-x", &[]).is_err());
    }

    #[test]
    fn headers_round_trip() {
        let text = "Change-Id: c\nNeeds: 1-a\nPrefix: RFC\nTo: A <a@a>\nCc: b@b\nCc: c@c\n";
        let headers = Headers::parse("2-b", text).unwrap();
        assert_eq!(headers.cc, ["b@b", "c@c"]);
        assert_eq!(headers.text(), text);
        assert!(Headers::parse("2-b", "Change-Id: c\n").is_err());
        assert!(Headers::parse("2-b", "Change-Id: c\nTo: a@a\nBcc: b@b\n").is_err());
        assert!(Headers::parse("2-b", "Change-Id: c\nTo:\n").is_err());
    }

    #[test]
    fn needs_are_followed_and_known() {
        let delivery = |name: &str, needs: &[&str]| Delivery {
            name: name.to_owned(),
            headers: Headers {
                needs: needs.iter().map(|need| need.to_string()).collect(),
                ..Headers::default()
            },
            cover: None,
            commits: 0..0,
        };
        let mut series = Series {
            root: PathBuf::new(),
            deliveries: vec![
                delivery("1-a", &[]),
                delivery("2-b", &[]),
                delivery("3-c", &["1-a"]),
                delivery("4-d", &["3-c"]),
            ],
            commits: Vec::new(),
            overlay: BTreeSet::new(),
        };
        assert!(series.needs_known().is_ok());
        let needed = series.needed_by(&series.deliveries[3]);
        let names: Vec<&str> = needed.iter().map(|other| other.name.as_str()).collect();
        assert_eq!(names, ["1-a", "3-c"]);
        series.deliveries[0].headers.needs.push("4-d".to_owned());
        assert!(series.needs_known().is_err());
    }

    #[test]
    fn every_path_in_exactly_one_commit() {
        let overlay = set(&["a", "b"]);
        assert!(complete(&[commit("01-x", &["a"]), commit("02-y", &["b"])], &overlay).is_ok());
        let error = |commits: &[Commit]| complete(commits, &overlay).unwrap_err().to_string();
        assert!(error(&[commit("01-x", &["a"])]).starts_with("b is in no commit"));
        assert!(
            error(&[commit("01-x", &["a", "b"]), commit("02-y", &["b"])])
                .contains("b is brought twice")
        );
        assert!(error(&[commit("01-x", &["a", "b", "c"])]).contains("brings c"));
    }

    #[test]
    fn what_is_not_kernel_is_listed_once() {
        let files = ["series/01-a", "mm/mmap.c.patch", "README.md"].map(str::to_owned);
        let rest = |list: &[&str]| {
            let list: Vec<_> = list.iter().map(|entry| entry.to_string()).collect();
            kernel_part(files.iter().cloned(), &list)
        };
        assert_eq!(
            rest(&["series/", "README.md"]).unwrap(),
            set(&["mm/mmap.c.patch"])
        );
        assert!(
            rest(&["series/", "README.md", "gone"])
                .unwrap_err()
                .to_string()
                .contains("gone")
        );
    }
}
