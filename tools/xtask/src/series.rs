//! The overlay and its description: which files of this repository are kernel, and which commit
//! brings each.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use miette::{IntoDiagnostic, Result, WrapErr, miette};

use crate::git::Repo;

pub const COVER: &str = "cover-letter";
const NOT_KERNEL: &str = "not-kernel";

#[derive(Debug, PartialEq, Eq)]
pub struct Cover {
    pub subject: String,
    pub body: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// Name of the file in series/, such as `01-mm`.
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
            miette!("series/{name} has no line `---` between the message and the paths")
        })?;
        let message = message.trim().to_owned();
        if message.is_empty() {
            return Err(miette!("series/{name} has no commit message"));
        }
        let paths = listed(paths);
        if paths.is_empty() {
            return Err(miette!("series/{name} brings no path"));
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

#[derive(Debug)]
pub struct Series {
    pub root: PathBuf,
    pub cover: Cover,
    pub commits: Vec<Commit>,
    /// The overlay: every kernel path of this repository.
    pub overlay: BTreeSet<String>,
}

impl Series {
    pub fn read(root: &Path) -> Result<Series> {
        let dir = root.join("series");
        let mut names: Vec<String> = Vec::new();
        let entries = fs::read_dir(&dir)
            .into_diagnostic()
            .wrap_err_with(|| format!("cannot read {}: is this the repository?", dir.display()))?;
        for entry in entries {
            let name = entry
                .into_diagnostic()?
                .file_name()
                .to_string_lossy()
                .into_owned();
            if name != COVER && name != NOT_KERNEL {
                names.push(name);
            }
        }
        names.sort();
        in_order(&names)?;
        let read = |name: &str| {
            fs::read_to_string(dir.join(name))
                .into_diagnostic()
                .wrap_err_with(|| format!("cannot read series/{name}"))
        };
        let commits = names
            .iter()
            .map(|name| Commit::parse(name, &read(name)?))
            .collect::<Result<Vec<_>>>()?;
        let cover = parse_cover(&read(COVER)?)?;
        let files = Repo::users(root)
            .git([
                "ls-files",
                "-z",
                "--cached",
                "--others",
                "--exclude-standard",
            ])
            .wrap_err("the series is what git sees in this repository")?;
        // A tracked file that was deleted is still listed.
        let present = files
            .split('\0')
            .filter(|path| !path.is_empty() && root.join(path).symlink_metadata().is_ok())
            .map(str::to_owned);
        let overlay = kernel_part(present, &listed(&read(NOT_KERNEL)?))?;
        complete(&commits, &overlay)?;
        Ok(Series {
            root: root.to_owned(),
            cover,
            commits,
            overlay,
        })
    }
}

/// Names must be 01-slug, 02-slug, .. without a gap: their order is the order of the commits.
fn in_order(names: &[String]) -> Result<()> {
    for (index, name) in names.iter().enumerate() {
        let expected = format!("{:02}-", index + 1);
        if !name.starts_with(&expected) || name.len() == expected.len() {
            return Err(miette!(
                "series/{name} should be named {expected}<slug>: it is commit {}",
                index + 1
            ));
        }
    }
    if names.is_empty() {
        return Err(miette!("series/ holds no commit"));
    }
    Ok(())
}

pub fn parse_cover(text: &str) -> Result<Cover> {
    let (subject, body) = text
        .split_once("\n\n")
        .ok_or_else(|| miette!("series/{COVER} needs a subject, an empty line and a body"))?;
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
        Some(entry) => Err(miette!(
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
                return Err(miette!(
                    "series/{} brings {path}, which is not in this repository",
                    commit.name
                ));
            }
            if let Some(other) = brought.insert(path, &commit.name) {
                return Err(miette!(
                    "{path} is brought twice, by series/{other} and by series/{}",
                    commit.name
                ));
            }
        }
    }
    match overlay
        .iter()
        .find(|path| !brought.contains_key(path.as_str()))
    {
        Some(path) => Err(miette!(
            help = format!(
                "name it in one file of series/, or in series/{NOT_KERNEL} when it is no part of the kernel"
            ),
            "{path} is in no commit"
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
        assert!(in_order(&names(&["01-a", "02-b"])).is_ok());
        assert!(in_order(&names(&["01-a", "03-b"])).is_err());
        assert!(in_order(&names(&["01-a", "notes"])).is_err());
        assert!(in_order(&[]).is_err());
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
