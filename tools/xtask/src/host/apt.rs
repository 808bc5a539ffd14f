//! Debian packages of suites that this machine is not configured for.
//!
//! The mirror and the key are those of the machine's own Debian source; only the suite is another.
//! Sources, package lists and downloads live in the cache, so the machine's configuration stays as
//! it is, and apt does all the verifying.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use miette::{IntoDiagnostic, Result, WrapErr, miette};

use crate::host::Ctx;
use crate::host::run;

pub struct Apt {
    dir: PathBuf,
}

/// The machine's own Debian archive.
#[derive(Debug, PartialEq, Eq)]
struct Archive {
    uri: String,
    /// What the sources call the suite, such as bookworm or bookworm-security.
    release: String,
    /// File that the source is configured in.
    file: PathBuf,
}

impl Archive {
    /// A source of this archive for `suite`.
    fn stanza(&self, suite: &str) -> String {
        let mut text = format!(
            "Types: deb\nURIs: {}\nSuites: {suite}\nComponents: main\n",
            self.uri
        );
        let configured = fs::read_to_string(&self.file).unwrap_or_default();
        // Without a key in the sources, apt has a default of its own.
        if let Some(key) = signed_by(&configured, &self.uri) {
            text.push_str(&format!("Signed-By: {key}\n"));
        }
        text
    }
}

/// The archive of the release itself.
fn release(archives: &[Archive]) -> Result<&Archive> {
    archives
        .iter()
        .find(|archive| !archive.release.contains('-'))
        .ok_or_else(|| {
            miette!(
                help = "give a kernel with --base DIR, or add a Debian source for main",
                "apt on this machine knows no Debian archive"
            )
        })
}

impl Apt {
    /// An apt that knows nothing but one suite of the machine's archive.
    pub fn suite(ctx: &Ctx, suite: &str) -> Result<Apt> {
        let archives = machine()?;
        let main = release(&archives)?;
        Apt::open(ctx, suite, &[(main, suite)])
    }

    /// An apt that knows the machine's own Debian sources, and backports where `backports` says
    /// that a release needs them.
    pub fn own(ctx: &Ctx, backports: &dyn Fn(&str) -> Option<String>) -> Result<Apt> {
        let archives = machine()?;
        let main = release(&archives)?;
        let extra = backports(&main.release);
        let mut suites: Vec<(&Archive, &str)> = archives
            .iter()
            .map(|archive| (archive, archive.release.as_str()))
            .collect();
        suites.extend(extra.as_deref().map(|suite| (main, suite)));
        Apt::open(ctx, "own", &suites)
    }

    fn open(ctx: &Ctx, name: &str, suites: &[(&Archive, &str)]) -> Result<Apt> {
        let dir = ctx.cache.path("apt").join(name);
        let sources = dir.join("sources");
        for part in ["sources", "lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(part)).into_diagnostic()?;
        }
        let stanzas: Vec<String> = suites
            .iter()
            .map(|(archive, suite)| archive.stanza(suite))
            .collect();
        fs::write(sources.join("debian.sources"), stanzas.join("\n")).into_diagnostic()?;
        let apt = Apt { dir };
        let mut update = apt.command("apt-get");
        update.args(["update", "--error-on=any"]);
        run::logged(
            ctx,
            &format!("apt-update-{name}"),
            "package lists",
            0,
            update,
        )
        .wrap_err_with(|| {
            miette!(
                "cannot read the package lists: check the network, or give a kernel with --base DIR"
            )
        })?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut cmd = Command::new(program);
        cmd.env("LC_ALL", "C")
            .env("DEBIAN_FRONTEND", "noninteractive");
        let set = |name: &str, value: &Path| format!("{name}={}", value.display());
        for option in [
            "Dir::Etc::sourcelist=/dev/null".to_owned(),
            set("Dir::Etc::sourceparts", &self.dir.join("sources")),
            set("Dir::State::lists", &self.dir.join("lists")),
            set("Dir::Cache", &self.dir.join("cache")),
            // The cache may be where the sandbox user cannot go.
            "APT::Sandbox::User=root".to_owned(),
        ] {
            cmd.args(["-o", &option]);
        }
        cmd
    }

    /// Downloads one package and returns its file and its version.
    pub fn download(&self, ctx: &Ctx, package: &str, version: &str) -> Result<(PathBuf, String)> {
        let found = run::output(self.command("apt-cache").args(["madison", package]))?;
        let version = found
            .lines()
            .filter_map(|line| line.split('|').nth(1))
            .map(str::trim)
            .find(|candidate| candidate.starts_with(version))
            .ok_or_else(|| {
                miette!(
                    help = "give a kernel with --base DIR, or set RUST_LIB_SRC for rust-src",
                    "Debian's archive as seen from here has no {package} {version}"
                )
            })?
            .to_owned();
        let spec = format!("{package}={version}");
        let target = self.dir.join("cache/archives/partial");
        let uris = run::output(
            self.command("apt-get")
                .args(["download", "--print-uris", &spec]),
        )?;
        // 'URI' file size hash
        let mut words = uris.split_whitespace().skip(1);
        let (file, size) = (
            words.next(),
            words.next().and_then(|size| size.parse().ok()),
        );
        let file = target.join(file.ok_or_else(|| miette!("apt did not say where {spec} is"))?);
        let mut cmd = self.command("apt-get");
        cmd.args(["download", &spec]).current_dir(&target);
        watch(ctx, package, size.unwrap_or(0), &target, cmd)?;
        // apt replaces the colon of an epoch by %3a in one of the two names.
        if file.exists() {
            return Ok((file, version));
        }
        let prefix = format!("{package}_");
        let found = fs::read_dir(&target)
            .into_diagnostic()?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| {
                path.file_name()
                    .is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
            });
        Ok((
            found.ok_or_else(|| miette!("apt left no file for {spec}"))?,
            version,
        ))
    }

    /// Installs packages on this machine; `release` is where they are taken from when it matters.
    pub fn install(&self, ctx: &Ctx, packages: &[&str], release: Option<&str>) -> Result<()> {
        let base = self.command("apt-get");
        let root = run::output(Command::new("id").arg("-u"))?.trim() == "0";
        let mut cmd = if root {
            base
        } else {
            let mut sudo = Command::new("sudo");
            sudo.args([
                "env",
                "LC_ALL=C",
                "DEBIAN_FRONTEND=noninteractive",
                "apt-get",
            ])
            .args(base.get_args());
            sudo
        };
        cmd.args(["install", "--yes", "--no-install-recommends"]);
        if let Some(release) = release {
            cmd.args(["-t", release]);
        }
        cmd.args(packages);
        run::logged(
            ctx,
            "apt-install",
            &format!("installing {}", packages.join(" ")),
            0,
            cmd,
        )
    }
}

/// Runs a download with a bar fed by the growth of the files in `dir`.
fn watch(ctx: &Ctx, label: &str, size: u64, dir: &Path, mut cmd: Command) -> Result<()> {
    let mut bar = ctx.ui.bar(label, size);
    let log = ctx.cache.log(&format!("download-{label}"));
    let file = fs::File::create(&log).into_diagnostic()?;
    cmd.stdout(file.try_clone().into_diagnostic()?).stderr(file);
    let mut child = cmd.spawn().into_diagnostic()?;
    let status = loop {
        if let Some(status) = child.try_wait().into_diagnostic()? {
            break status;
        }
        let grown = fs::read_dir(dir)
            .into_diagnostic()?
            .filter_map(|entry| entry.ok())
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(label))
            .filter_map(|entry| Some(entry.metadata().ok()?.len()))
            .max();
        bar.set(grown.unwrap_or(0));
        std::thread::sleep(std::time::Duration::from_millis(200));
    };
    if !status.success() {
        return Err(miette!(
            help = format!(
                "check the network and the free space; the log is {}",
                log.display()
            ),
            "cannot download {label}:\n{}",
            run::tail_of(&log)?
        ));
    }
    Ok(())
}

/// The Debian archives in the machine's own sources.
fn machine() -> Result<Vec<Archive>> {
    if !run::exists("apt-get") {
        return Err(miette!(
            help = "give a kernel with --base, and install the tools with this system's package manager",
            "there is no apt-get here, so Debian's packages cannot be had"
        ));
    }
    let format = "$(ORIGIN)|$(COMPONENT)|$(REPO_URI)|$(RELEASE)|$(SOURCESENTRY)";
    let out = run::output(Command::new("apt-get").env("LC_ALL", "C").args([
        "indextargets",
        "--format",
        format,
        "Created-By: Packages",
    ]))?;
    Ok(archives(&out))
}

fn archives(listing: &str) -> Vec<Archive> {
    let mut found: Vec<Archive> = Vec::new();
    for line in listing.lines() {
        let [origin, component, uri, release, entry] = line.split('|').collect::<Vec<_>>()[..]
        else {
            continue;
        };
        // Before the first `apt-get update` there is no origin to go by, only the address.
        let address = uri.trim_end_matches('/');
        let debian = origin == "Debian"
            || ["/debian", "/debian-security"]
                .iter()
                .any(|end| address.ends_with(end));
        if !debian || component != "main" || release.contains('/') {
            continue;
        }
        let file = entry.rsplit_once(':').map_or(entry, |(file, _)| file);
        found.push(Archive {
            uri: uri.to_owned(),
            release: release.to_owned(),
            file: PathBuf::from(file),
        });
    }
    found
}

/// The keyring that a sources file names for an archive; None leaves apt its default.
fn signed_by(sources: &str, uri: &str) -> Option<String> {
    let uri = uri.trim_end_matches('/');
    for stanza in sources.split("\n\n") {
        for line in stanza
            .lines()
            .filter(|line| !line.trim_start().starts_with('#'))
        {
            if line.starts_with("deb ") && line.contains(uri) {
                let (_, rest) = line.split_once("signed-by=")?;
                return Some(rest.split([' ', ']']).next()?.to_owned());
            }
        }
        let field = |name: &str| {
            stanza.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name)
                    .then(|| value.trim().to_owned())
            })
        };
        let named = field("URIs").is_some_and(|uris| {
            uris.split_whitespace()
                .any(|one| one.trim_end_matches('/') == uri)
        });
        if named {
            return field("Signed-By").filter(|value| !value.is_empty());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debian_archive_is_found_among_others() {
        let listing = "Debian|main|http://mirror/debian/|bookworm|/etc/apt/sources.list.d/debian.sources:1\n\
            Debian|main|http://mirror/debian/|bookworm-updates|/etc/apt/sources.list.d/debian.sources:1\n\
            Debian|contrib|http://mirror/debian/|bookworm|/etc/apt/sources.list.d/debian.sources:1\n\
            Other|main|http://other/apt/|stable|/etc/apt/sources.list:3\n";
        let found = archives(listing);
        assert_eq!(found.len(), 2);
        assert_eq!(release(&found).unwrap().release, "bookworm");
        assert_eq!(
            found[0].file,
            Path::new("/etc/apt/sources.list.d/debian.sources")
        );
    }

    #[test]
    fn archive_is_found_before_the_first_update() {
        let listing = "$(ORIGIN)|main|http://mirror/debian/|trixie|/etc/apt/sources.list:1\n\
            $(ORIGIN)|main|http://mirror/debian-security/|trixie-security|/etc/apt/sources.list:2\n";
        let found = archives(listing);
        assert_eq!(found.len(), 2);
        assert_eq!(release(&found).unwrap().release, "trixie");
    }

    #[test]
    fn keyring_is_read_from_both_formats() {
        let deb822 = "Types: deb\n# URIs: http://old/debian\nURIs: http://mirror/debian\nSigned-By: /a.gpg\n\n\
            Types: deb\nURIs: http://mirror/debian-security\nSigned-By: /b.gpg\n";
        assert_eq!(
            signed_by(deb822, "http://mirror/debian/").as_deref(),
            Some("/a.gpg")
        );
        let line = "deb [arch=amd64 signed-by=/c.gpg] http://mirror/debian trixie main\n";
        assert_eq!(
            signed_by(line, "http://mirror/debian/").as_deref(),
            Some("/c.gpg")
        );
        assert_eq!(
            signed_by(
                "deb http://mirror/debian trixie main\n",
                "http://mirror/debian/"
            ),
            None
        );
    }
}
