//! A running QEMU, followed through the files that its serial ports write.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Error, Result};
use fs_err::File;

use super::Finished;
use crate::host::{Ctx, run};

/// The errors that a test can ask for by a line that begins with `# inject`, as QEMU calls them.
const ERRORS: &[(&str, &str)] = &[
    ("correctable", "BAD_TLP"),
    ("nonfatal", "COMP_ABORT"),
    ("fatal", "MALF_TLP"),
];

pub enum Ready {
    Yes,
    Ended(ExitStatus),
    Late,
}

pub struct Running {
    name: String,
    qemu: Child,
    /// Where QEMU takes the commands of its machine protocol.
    monitor: ChildStdin,
    /// How many errors it has been told to inject.
    injected: usize,
    console: PathBuf,
    results: PathBuf,
    /// What QEMU prints, and its answers.
    messages: PathBuf,
}

impl Running {
    pub fn start(ctx: &Ctx, name: &str, mut cmd: Command) -> Result<Running> {
        let log = |what: &str| ctx.cache.log(&format!("vm-{name}-{what}"));
        let (console, results, messages) = (log("console"), log("results"), log("qemu"));
        for file in [&console, &results] {
            File::create(file)?;
        }
        // QEMU speaks of every DMA fault that a test provokes.
        let printed = File::create(&messages)?.into_file();
        cmd.args(["-display", "none", "-qmp", "stdio"])
            .args(["-serial", &format!("file:{}", console.display())])
            .args(["-serial", &format!("file:{}", results.display())])
            .stdin(Stdio::piped())
            .stdout(printed.try_clone()?)
            .stderr(printed);
        let mut qemu = run::spawn(&mut cmd)?;
        let monitor = qemu.stdin.take().expect("stdin is piped");
        let mut machine = Running {
            name: name.to_owned(),
            qemu,
            monitor,
            injected: 0,
            console,
            results,
            messages,
        };
        machine.command(r#""qmp_capabilities""#);
        Ok(machine)
    }

    /// Gives QEMU a command.
    fn command(&mut self, what: &str) {
        // A QEMU that has ended is noticed by who waits for it, and has said why.
        writeln!(self.monitor, r#"{{"execute":{what}}}"#).ok();
    }

    /// Does what the tests have asked for meanwhile: `# inject KIND ADDRESS`.
    fn inject(&mut self, results: &str) {
        let kinds = results.lines().filter_map(|line| {
            let kind = line.strip_prefix("# inject ")?.split(' ').next()?;
            ERRORS.iter().find(|(name, _)| *name == kind)
        });
        for (_, error) in kinds.skip(self.injected) {
            self.injected += 1;
            self.command(&format!(
                r#""human-monitor-command","arguments":{{"command-line":"pcie_aer_inject_error rng {error}"}}"#
            ));
        }
    }

    /// Waits for a line of the results, or for the end of QEMU.
    pub fn wait(&mut self, limit: Duration, wanted: &dyn Fn(&str) -> bool) -> Result<Ready> {
        let start = Instant::now();
        loop {
            let status = self.qemu.try_wait()?;
            let results = run::read(&self.results)?;
            if results.lines().any(wanted) {
                return Ok(Ready::Yes);
            }
            self.inject(&results);
            if let Some(status) = status {
                return Ok(Ready::Ended(status));
            }
            if start.elapsed() > limit {
                return Ok(Ready::Late);
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Waits for the guest's first program.
    pub fn ready(&mut self, limit: Duration) -> Result<Ready> {
        self.wait(limit, &|line| line.starts_with("xtask: ready"))
    }

    /// What there is of it, after an end of any kind.
    pub fn finished(&self, ended: Result<()>) -> Result<Finished> {
        Ok(Finished {
            results: run::read(&self.results)?,
            console: run::read(&self.console)?,
            ended,
        })
    }

    pub fn failure(&self, what: &str) -> Result<Error> {
        // Where the console is empty, QEMU itself had something to say.
        let text = run::read(&self.console)?;
        let (log, text) = match text.is_empty() {
            true => (&self.messages, run::read(&self.messages)?),
            false => (&self.console, text),
        };
        let what = format!("the virtual machine {} {what}; its last lines", self.name);
        Ok(run::with_log(log, &what, &run::last(&text)))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // An error on the way out must not leave a machine behind; it may have ended already.
        self.qemu.kill().ok();
        self.qemu.wait().ok();
    }
}
