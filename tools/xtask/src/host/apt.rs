//! Debian packages of suites that this machine is not configured for.
//!
//! The mirror is that of the machine's own Debian source, the key is Debian's; only the suite is
//! another. Sources, package lists and downloads live in the cache, so the machine's configuration
//! stays as it is, and apt does all the verifying.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use fs_err as fs;

use super::{Ctx, cache, run};

/// Where Debian's package of that name leaves its keys.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

pub struct Apt {
    dir: PathBuf,
}

/// A suite of the machine's own Debian archive.
#[derive(Debug, PartialEq, Eq)]
struct Archive {
    uri: String,
    /// What the sources call the suite, such as bookworm or bookworm-security.
    suite: String,
}

impl Archive {
    fn stanza(&self) -> String {
        let Archive { uri, suite } = self;
        let mut text = format!("Types: deb\nURIs: {uri}\nSuites: {suite}\nComponents: main\n");
        // Without a key in the sources, apt has a default of its own.
        if Path::new(KEYRING).exists() {
            text += &format!("Signed-By: {KEYRING}\n");
        }
        text
    }
}

impl Apt {
    /// An apt that knows nothing but one suite of the machine's archive.
    pub fn suite(ctx: &Ctx, suite: &str) -> Result<Apt> {
        let main = suite_of(&machine()?, suite)?;
        Apt::open(ctx, suite, &[main])
    }

    /// An apt that knows the machine's own Debian sources, and one more suite of the archive.
    pub fn own(ctx: &Ctx, more: Option<&str>) -> Result<Apt> {
        let mut archives = machine()?;
        if let Some(more) = more {
            archives.push(suite_of(&archives, more)?);
        }
        Apt::open(ctx, "own", &archives)
    }

    fn open(ctx: &Ctx, name: &str, archives: &[Archive]) -> Result<Apt> {
        let dir = ctx.cache.path("apt").join(name);
        for part in ["sources", "lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(part))?;
        }
        let stanzas: Vec<String> = archives.iter().map(Archive::stanza).collect();
        fs::write(dir.join("sources/debian.sources"), stanzas.join("\n"))?;
        let apt = Apt { dir };
        let mut update = apt.command("apt-get");
        update.args(["update", "--error-on=any"]);
        let log = format!("apt-update-{name}");
        run::logged(ctx, &log, "package lists", 0, update).context(
            "cannot read the package lists: check the network, or give a kernel with --base DIR",
        )?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut cmd = Command::new(program);
        cmd.env("LC_ALL", "C")
            .env("DEBIAN_FRONTEND", "noninteractive");
        let set = |name: &str, below: &str| format!("{name}={}", self.dir.join(below).display());
        for option in [
            "Dir::Etc::sourcelist=/dev/null".to_owned(),
            set("Dir::Etc::sourceparts", "sources"),
            set("Dir::State::lists", "lists"),
            set("Dir::Cache", "cache"),
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
        let mut versions = found.lines().filter_map(|line| line.split('|').nth(1));
        let version = versions
            .find_map(|known| Some(known.trim()).filter(|known| known.starts_with(version)))
            .ok_or_else(|| {
                anyhow!(
                    "Debian's archive as seen from here has no {package} {version}\nhelp: give a kernel with --base DIR, or set RUST_LIB_SRC for rust-src"
                )
            })?;
        let target = cache::fresh(&self.dir.join("download"))?;
        let mut cmd = self.command("apt-get");
        cmd.args(["download", &format!("{package}={version}")])
            .current_dir(&target);
        let log = format!("download-{package}");
        run::logged(ctx, &log, &format!("downloading {package}"), 0, cmd)?;
        let file = fs::read_dir(&target)?.next();
        let file = file.ok_or_else(|| anyhow!("apt left no file for {package} {version}"))?;
        Ok((file?.path(), version.to_owned()))
    }

    /// Installs packages on this machine; `suite` is where they are taken from when it matters.
    pub fn install(&self, ctx: &Ctx, packages: &[&str], suite: Option<&str>) -> Result<()> {
        let mut cmd = self.command("apt-get");
        if run::output(Command::new("id").arg("-u"))?.trim() != "0" {
            // It asks here, where no bar is in the way.
            let mut ask = Command::new("sudo");
            ask.arg("-v").stdin(Stdio::inherit());
            if !run::spawn(&mut ask)?.wait()?.success() {
                bail!(
                    "sudo refuses, and these packages are missing: {}",
                    packages.join(" ")
                );
            }
            let mut sudo = Command::new("sudo");
            sudo.args(["env", "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive"])
                .arg("apt-get")
                .args(cmd.get_args());
            cmd = sudo;
        }
        cmd.args(["install", "--yes", "--no-install-recommends"]);
        if let Some(suite) = suite {
            cmd.args(["-t", suite]);
        }
        cmd.args(packages);
        let label = format!("installing {}", packages.join(" "));
        ctx.ui.step(&label);
        run::logged(ctx, "apt-install", &label, 0, cmd)
    }
}

/// A suite of the archive that the release itself comes from.
fn suite_of(archives: &[Archive], suite: &str) -> Result<Archive> {
    let main = archives.iter().find(|archive| !archive.suite.contains('-'));
    let main = main.ok_or_else(|| {
        anyhow!(
            "apt on this machine knows no Debian archive\nhelp: give a kernel with --base DIR, or add a Debian source for main"
        )
    })?;
    Ok(Archive {
        uri: main.uri.clone(),
        suite: suite.to_owned(),
    })
}

/// The Debian archives in the machine's own sources.
fn machine() -> Result<Vec<Archive>> {
    if !run::exists("apt-get") {
        bail!(
            "there is no apt-get here, so Debian's packages cannot be had\nhelp: give a kernel with --base, and install the tools with this system's package manager"
        );
    }
    let format = "$(ORIGIN)|$(COMPONENT)|$(REPO_URI)|$(RELEASE)";
    let mut cmd = Command::new("apt-get");
    cmd.args(["indextargets", "--format", format, "Created-By: Packages"]);
    Ok(archives(&run::output(cmd.env("LC_ALL", "C"))?))
}

fn archives(listing: &str) -> Vec<Archive> {
    let parse = |line: &str| {
        let [origin, component, uri, suite] = line.split('|').collect::<Vec<_>>()[..] else {
            return None;
        };
        // Before the first `apt-get update` there is no origin to go by, only the address.
        let address = uri.trim_end_matches('/');
        let ends = ["/debian", "/debian-security"];
        let debian = origin == "Debian" || ends.iter().any(|end| address.ends_with(end));
        (debian && component == "main" && !suite.contains('/')).then(|| Archive {
            uri: uri.to_owned(),
            suite: suite.to_owned(),
        })
    };
    listing.lines().filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debian_archive_is_found_among_others() {
        let listing = "Debian|main|http://mirror/debian/|bookworm-updates\n\
            Debian|main|http://mirror/debian/|bookworm\n\
            Debian|contrib|http://mirror/debian/|bookworm\n\
            Other|main|http://other/apt/|stable\n";
        let found = archives(listing);
        assert_eq!(found.len(), 2);
        let other = suite_of(&found, "sid").unwrap();
        assert!(
            other
                .stanza()
                .contains("URIs: http://mirror/debian/\nSuites: sid\n")
        );
    }

    #[test]
    fn archive_is_found_before_the_first_update() {
        let listing = "$(ORIGIN)|main|http://mirror/debian/|trixie\n\
            $(ORIGIN)|main|http://mirror/debian-security/|trixie-security\n";
        let found = archives(listing);
        assert_eq!((found.len(), found[0].suite.as_str()), (2, "trixie"));
        assert!(suite_of(&found[1..], "sid").is_err());
    }
}
