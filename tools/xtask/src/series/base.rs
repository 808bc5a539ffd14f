//! The kernel that the series is based on: Debian's newest by default, or what `--base` names.

use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use miette::{IntoDiagnostic, Result, WrapErr, miette};

use crate::host::Ctx;
use crate::host::apt::Apt;
use crate::host::git;
use crate::host::git::Repo;
use crate::host::run;
use crate::host::ui::Bar;

/// Debian's package and the suite that has it for every supported release.
const PACKAGE: &str = "linux-source-7.3";
pub const SUITE: &str = "trixie-backports";

/// The branch of our repository that holds the base.
pub const BRANCH: &str = "base";

/// Files in a kernel source package of this size; only the bar depends on it.
const FILES: u64 = 94_000;

pub struct Base {
    /// Bare repository of ours that has the base commit.
    pub repo: Repo,
    pub commit: String,
    /// Directory of everything that belongs to this base and no other.
    pub dir: PathBuf,
}

impl Base {
    pub fn open(ctx: &Ctx, given: Option<&Path>) -> Result<Base> {
        let dir = match given {
            None => debian(ctx)?,
            Some(path) if path.is_dir() => from_tree(ctx, path)?,
            Some(path) if path.is_file() => from_tarball(ctx, path)?,
            Some(path) => {
                return Err(miette!(
                    help = "give a kernel git tree or a kernel tarball",
                    "--base {} does not exist",
                    path.display()
                ));
            }
        };
        let repo = Repo::new(dir.join("repo.git"));
        let commit = repo
            .git(["rev-parse", "--verify", BRANCH])
            .wrap_err_with(|| {
                miette!(
                    "the base in {} is unusable: remove that directory and run again",
                    dir.display()
                )
            })?;
        Ok(Base { repo, commit, dir })
    }
}

fn debian(ctx: &Ctx) -> Result<PathBuf> {
    ctx.cache.once(format!("base/{PACKAGE}"), |dir| {
        ctx.ui.step(format!(
            "fetching the base: Debian's {PACKAGE} from {SUITE}, verified by apt"
        ));
        let apt = Apt::suite(ctx, SUITE)?;
        let (deb, version) = apt.download(ctx, PACKAGE, "")?;
        ctx.ui
            .step(format!("importing {PACKAGE} {version} into git"));
        let mut unpack = Command::new("dpkg-deb")
            .arg("--fsys-tarfile")
            .arg(&deb)
            .stdout(Stdio::piped())
            .spawn()
            .into_diagnostic()
            .wrap_err("cannot run dpkg-deb")?;
        let mut package = tar::Archive::new(unpack.stdout.take().expect("stdout is piped"));
        let mut imported = false;
        for entry in package.entries().into_diagnostic()? {
            let mut entry = entry.into_diagnostic()?;
            if entry
                .path()
                .into_diagnostic()?
                .extension()
                .is_some_and(|ext| ext == "xz")
            {
                let mut xz = decompressor("xz")?;
                let mut stdin = xz.stdin.take().expect("stdin is piped");
                std::thread::scope(|scope| {
                    let tarball = xz.stdout.take().expect("stdout is piped");
                    let import = scope
                        .spawn(move || import(ctx, dir, tarball, &format!("{PACKAGE} {version}")));
                    let copied = std::io::copy(&mut entry, &mut stdin);
                    drop(stdin);
                    // An import that failed ends the copy as well; its error says more.
                    import.join().expect("the import does not panic")?;
                    copied.into_diagnostic()
                })?;
                finished("xz", &mut xz)?;
                imported = true;
                break;
            }
        }
        if !imported {
            return Err(miette!("{} holds no kernel source", deb.display()));
        }
        // dpkg-deb may be stopped early by our not reading the rest: nothing is wanted of it.
        unpack.kill().into_diagnostic()?;
        unpack.wait().into_diagnostic()?;
        fs::remove_file(&deb).into_diagnostic()
    })
}

fn from_tarball(ctx: &Ctx, file: &Path) -> Result<PathBuf> {
    let id = run::output(
        Command::new("git")
            .args(["hash-object", "--no-filters", "--"])
            .arg(file),
    )?;
    let name = file
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    ctx.cache.once(format!("base/tar-{}", id.trim()), |dir| {
        ctx.ui
            .step(format!("importing {} into git", file.display()));
        let program = compression(file)?;
        let mut child = decompressor_of(program, File::open(file).into_diagnostic()?)?;
        let tarball = child.stdout.take().expect("stdout is piped");
        import(ctx, dir, tarball, &name)?;
        finished(program, &mut child)
    })
}

fn compression(file: &Path) -> Result<&'static str> {
    let mut magic = [0; 6];
    File::open(file)
        .and_then(|mut file| file.read_exact(&mut magic))
        .into_diagnostic()?;
    Ok(match magic {
        [0xfd, b'7', b'z', b'X', b'Z', 0] => "xz",
        [0x1f, 0x8b, ..] => "gzip",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        [b'B', b'Z', b'h', ..] => "bzip2",
        _ => {
            return Err(miette!(
                help = "give a .tar.xz, .tar.gz, .tar.zst or .tar.bz2 of a kernel, or a kernel git tree",
                "--base {} is not a compressed tarball",
                file.display()
            ));
        }
    })
}

fn decompressor(program: &str) -> Result<Child> {
    decompressor_of(program, Stdio::piped())
}

fn decompressor_of(program: &str, input: impl Into<Stdio>) -> Result<Child> {
    Command::new(program)
        .arg("-dc")
        .stdin(input)
        .stdout(Stdio::piped())
        .spawn()
        .into_diagnostic()
        .wrap_err_with(|| format!("cannot run {program}, which unpacks the kernel: install it"))
}

fn finished(program: &str, child: &mut Child) -> Result<()> {
    let status = child.wait().into_diagnostic()?;
    if !status.success() {
        return Err(miette!(
            "{program} cannot unpack the kernel ({status}): the file is damaged"
        ));
    }
    Ok(())
}

/// Streams a kernel tarball into a repository with one commit, whose id depends on nothing but the
/// tarball's files and `name`.
fn import(ctx: &Ctx, dir: &Path, tarball: ChildStdout, name: &str) -> Result<()> {
    let repo = Repo::new(dir.join("repo.git"));
    fs::create_dir_all(&repo.dir).into_diagnostic()?;
    repo.git(["init", "--quiet", "--bare", "--initial-branch", BRANCH])?;
    let log = ctx.cache.log("import");
    let mut child = repo
        .command()
        .args(["fast-import", "--quiet", "--done", "--depth=0"])
        .stdin(Stdio::piped())
        .stderr(File::create(&log).into_diagnostic()?)
        .spawn()
        .into_diagnostic()
        .wrap_err("cannot run git fast-import")?;
    let stdin = child.stdin.take().expect("stdin is piped");
    let bar = ctx.ui.bar("import", FILES);
    let written = write_import(BufWriter::new(stdin), tarball, name, bar);
    let status = child.wait().into_diagnostic()?;
    let files = match written {
        // When git gave up, the pipe to it broke: git knows why.
        Err(error) if !error.to_string().contains("Broken pipe") => return Err(error),
        Ok(files) if status.success() => files,
        _ => {
            let why = run::tail_of(&log)?;
            return Err(miette!("git cannot import {name}:\n{why}"));
        }
    };
    if files == 0 {
        return Err(miette!("{name} holds no files"));
    }
    must_be_kernel(name, &|path| {
        repo.git(["cat-file", "-e", &format!("{BRANCH}:{path}")])
    })
}

fn write_import(mut out: impl Write, tarball: impl Read, name: &str, mut bar: Bar) -> Result<u64> {
    let who = "VFIO placement series <nobody@localhost> 0 +0000";
    let message = format!("{name}\n");
    write!(
        out,
        "commit refs/heads/{BRANCH}\nauthor {who}\ncommitter {who}\ndata {}\n{message}",
        message.len()
    )
    .into_diagnostic()?;
    let mut files = 0;
    let mut archive = tar::Archive::new(tarball);
    for entry in archive.entries().into_diagnostic()? {
        let mut entry = entry.into_diagnostic().wrap_err("the tarball is damaged")?;
        // Everything in a source tarball is below one directory.
        let path: PathBuf = entry
            .path()
            .into_diagnostic()?
            .components()
            .skip(1)
            .collect();
        let path = path
            .to_str()
            .ok_or_else(|| miette!("{} is not UTF-8", path.display()))?
            .to_owned();
        let kind = entry.header().entry_type();
        let (mode, mut content) = if kind.is_symlink() {
            let target = entry.link_name().into_diagnostic()?.unwrap_or_default();
            ("120000", target.to_string_lossy().into_owned().into_bytes())
        } else if kind.is_file() {
            let executable = entry.header().mode().into_diagnostic()? & 0o100 != 0;
            let mut content = Vec::with_capacity(entry.size() as usize);
            entry.read_to_end(&mut content).into_diagnostic()?;
            (if executable { "100755" } else { "100644" }, content)
        } else {
            continue;
        };
        if path == ".gitignore" {
            content = without_packaging(&String::from_utf8_lossy(&content)).into_bytes();
        }
        writeln!(out, "M {mode} inline {path}\ndata {}", content.len()).into_diagnostic()?;
        out.write_all(&content)
            .and_then(|()| out.write_all(b"\n"))
            .into_diagnostic()?;
        files += 1;
        bar.inc(1);
    }
    out.write_all(b"done\n")
        .and_then(|()| out.flush())
        .into_diagnostic()?;
    Ok(files)
}

/// Debian ends the kernel's .gitignore with a block that ignores everything: as upstream, without.
fn without_packaging(gitignore: &str) -> String {
    match gitignore.find("#\n# Debian packaging") {
        Some(at) => format!("{}\n", gitignore[..at].trim_end()),
        None => gitignore.to_owned(),
    }
}

/// `find` succeeds for a path that the tree has.
fn must_be_kernel(name: &str, find: &dyn Fn(&str) -> Result<String>) -> Result<()> {
    for path in ["MAINTAINERS", "Kbuild", "scripts/checkpatch.pl"] {
        find(path).map_err(|_| {
            miette!(
                help = "give the top of a kernel git tree, or a kernel tarball",
                "{name} is not a kernel tree: it has no {path}"
            )
        })?;
    }
    Ok(())
}

/// Borrows the objects of the user's tree; nothing is ever written there.
fn from_tree(ctx: &Ctx, tree: &Path) -> Result<PathBuf> {
    let tree = fs::canonicalize(tree).into_diagnostic()?;
    let name = format!("--base {}", tree.display());
    let ask = |args: &[&str]| -> Result<String> {
        let mut cmd = Command::new("git");
        // Without optional locks, even `git status` leaves the tree's index alone.
        git::clean(&mut cmd)
            .arg("--no-optional-locks")
            .arg("-C")
            .arg(&tree)
            .args(args);
        Ok(run::output(&mut cmd)?.trim().to_owned())
    };
    let commit = ask(&["rev-parse", "--verify", "HEAD^{commit}"]).map_err(|_| {
        miette!(
            help = "give a kernel git tree with at least one commit, or a kernel tarball",
            "{name} is not a git repository"
        )
    })?;
    must_be_kernel(&name, &|path| {
        ask(&["cat-file", "-e", &format!("{commit}:{path}")])
    })?;
    // A bare repository has nothing uncommitted.
    let bare = ask(&["rev-parse", "--is-bare-repository"])? == "true";
    let dirty = if bare {
        String::new()
    } else {
        ask(&["status", "--porcelain", "--untracked-files=no"])?
    };
    if let Some(first) = dirty.lines().next() {
        return Err(miette!(
            help = "commit or stash them: the series is based on what is committed",
            "{name} has uncommitted changes ({})",
            first.trim()
        ));
    }
    let id = run::output_with(
        Command::new("git").args(["hash-object", "--stdin"]),
        name.as_bytes(),
    )?;
    ctx.cache
        .once(format!("base/tree-{}-{commit}", &id[..12]), |dir| {
            let repo = Repo::new(dir.join("repo.git"));
            fs::create_dir_all(&repo.dir).into_diagnostic()?;
            repo.git(["init", "--quiet", "--bare", "--initial-branch", BRANCH])?;
            let common = PathBuf::from(ask(&[
                "rev-parse",
                "--path-format=absolute",
                "--git-common-dir",
            ])?);
            let alternates = repo.dir.join("objects/info/alternates");
            fs::write(
                alternates,
                format!("{}\n", common.join("objects").display()),
            )
            .into_diagnostic()?;
            // A shallow clone's history ends where this file says.
            if common.join("shallow").exists() {
                fs::copy(common.join("shallow"), repo.dir.join("shallow")).into_diagnostic()?;
            }
            repo.git(["update-ref", &format!("refs/heads/{BRANCH}"), &commit])
                .map(|_| ())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packaging_block_is_stripped() {
        let debian = "*.o\n\n#\n# Debian packaging: ignore everything\n#\n/*\n!/debian/\n";
        assert_eq!(without_packaging(debian), "*.o\n");
        assert_eq!(without_packaging("*.o\n"), "*.o\n");
    }

    #[test]
    fn import_stream_keeps_modes_and_links() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        header.set_size(2);
        header.set_cksum();
        builder
            .append_data(&mut header, "linux/scripts/x", &b"#!"[..])
            .unwrap();
        let mut link = tar::Header::new_gnu();
        link.set_entry_type(tar::EntryType::Symlink);
        link.set_size(0);
        builder
            .append_link(&mut link, "linux/l", "scripts/x")
            .unwrap();
        let tarball = builder.into_inner().unwrap();
        let mut out = Vec::new();
        let bar = crate::host::ui::Ui::new(false).bar("", 0);
        assert_eq!(write_import(&mut out, &tarball[..], "n", bar).unwrap(), 2);
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("M 100755 inline scripts/x\ndata 2\n#!\n"));
        assert!(text.contains("M 120000 inline l\ndata 9\nscripts/x\n"));
        assert!(text.ends_with("done\n"));
    }
}
