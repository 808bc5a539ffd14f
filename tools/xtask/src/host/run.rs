//! Running other programs: quietly for their answer, or at length with a log and a bar.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Error, Result, anyhow, bail};
use fs_err::{self as fs, File};

use super::Ctx;

/// How much of a failed program's output an error shows.
const TAIL: usize = 15;

/// The command line as a person would type it.
fn shown(cmd: &Command) -> String {
    let words = std::iter::once(cmd.get_program()).chain(cmd.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

pub fn exists(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

/// Starts a program that does not outlive this one, however this one ends. The thread that starts
/// it must live as long as it does.
pub fn spawn(cmd: &mut Command) -> Result<Child> {
    let parent = std::process::id();
    let tie = move || {
        // SAFETY: `PR_SET_PDEATHSIG` takes a signal and touches no memory.
        if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // The signal is for an end that comes later.
        match std::os::unix::process::parent_id() == parent {
            true => Ok(()),
            false => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        }
    };
    // SAFETY: The closure only makes system calls, allocates nothing and takes no lock, so it can
    // run between fork() and exec().
    unsafe { cmd.pre_exec(tie) };
    cmd.spawn()
        .with_context(|| format!("cannot run `{}`", shown(cmd)))
}

/// Runs a command and returns what it printed; anything but success is an error.
pub fn output(cmd: &mut Command) -> Result<String> {
    output_with(cmd, b"")
}

pub fn bytes(cmd: &mut Command) -> Result<Vec<u8>> {
    bytes_with(cmd, b"")
}

/// Like [`output`], with `input` on the program's standard input.
pub fn output_with(cmd: &mut Command, input: &[u8]) -> Result<String> {
    String::from_utf8(bytes_with(cmd, input)?)
        .with_context(|| format!("`{}` printed something that is not UTF-8", shown(cmd)))
}

fn bytes_with(cmd: &mut Command, input: &[u8]) -> Result<Vec<u8>> {
    let out = finish(cmd, input)?;
    if !out.status.success() {
        let text = String::from_utf8_lossy(&out.stderr);
        bail!("`{}` failed:\n{}", shown(cmd), last(&text));
    }
    Ok(out.stdout)
}

/// Runs a command to its end, however it ends.
pub fn finish(cmd: &mut Command, input: &[u8]) -> Result<std::process::Output> {
    let stdin = match input {
        b"" => Stdio::null(),
        _ => Stdio::piped(),
    };
    let mut child = spawn(
        cmd.stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped()),
    )?;
    let stdin = child.stdin.take();
    Ok(std::thread::scope(|scope| {
        // A program that refuses its input early is reported by its status.
        scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(input).ok()));
        child.wait_with_output()
    })?)
}

/// Runs a long command: everything it prints goes to a log of that name, a bar counts its lines
/// against the last run (or `estimate`; 0 if they are no measure), and a failure names the log and
/// shows its end.
pub fn logged(ctx: &Ctx, log: &str, label: &str, estimate: u64, mut cmd: Command) -> Result<()> {
    let path = ctx.cache.log(log);
    let mut file = File::create(&path)?;
    writeln!(file, "$ {}", shown(&cmd))?;
    let (reader, writer) = io::pipe()?;
    cmd.stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer);
    let mut child = spawn(&mut cmd)?;
    // The command holds the writing end of the pipe; without this the reader never sees the end.
    drop(cmd);

    let known = ctx.cache.lines(log);
    let expected = match estimate {
        0 => 0,
        _ => known.unwrap_or(estimate),
    };
    let mut bar = ctx.ui.bar(label, expected);
    let mut lines = 0;
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        file.write_all(&line)?;
        if ctx.ui.verbose {
            io::stderr().write_all(&line)?;
        }
        lines += 1;
        bar.inc(1);
        line.clear();
    }
    drop(bar);
    if !child.wait()?.success() {
        return Err(with_log(
            &path,
            &format!("{label} failed"),
            &tail_of(&path)?,
        ));
    }
    // An incremental run prints little; only a longer one is a better estimate of a full one.
    if lines > known.unwrap_or(0) {
        ctx.cache.set_lines(log, lines)?;
    }
    Ok(())
}

/// An error that shows the part of a log that matters, and says where the rest is.
pub fn with_log(log: &Path, what: &str, part: &str) -> Error {
    anyhow!("{what}:\n{part}\nhelp: the whole log is {}", log.display())
}

/// The end of a log, or from the first line that names an error, whichever says more.
pub fn tail_of(path: &Path) -> Result<String> {
    let text = read(path)?;
    // The first line is the command, which the reader did not type.
    let lines: Vec<_> = text
        .lines()
        .skip_while(|line| line.starts_with("$ "))
        .collect();
    let names_error =
        |line: &&str| line.contains("error:") || line.contains("error[") || line.starts_with("E: ");
    let error = lines.iter().position(names_error).unwrap_or(lines.len());
    let from = error.min(lines.len().saturating_sub(TAIL));
    let shown: Vec<_> = lines[from..].iter().take(TAIL).copied().collect();
    Ok(shown.join("\n"))
}

/// A file of which nobody knows that it is UTF-8.
pub fn read(path: &Path) -> Result<String> {
    Ok(String::from_utf8_lossy(&fs::read(path)?).into_owned())
}

/// The last lines of a text.
pub fn last(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "run by the test below, as a process of its own"]
    fn parent() {
        let mut child = spawn(Command::new("sleep").arg("1000")).unwrap();
        eprintln!("child {}", child.id());
        child.wait().unwrap();
    }

    #[test]
    fn children_die_with_the_program() {
        let mut parent = Command::new(std::env::current_exe().unwrap());
        parent
            .args([
                "--exact",
                "host::run::tests::parent",
                "--ignored",
                "--nocapture",
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut parent = spawn(&mut parent).unwrap();
        let said = BufReader::new(parent.stderr.take().unwrap());
        let child = said
            .lines()
            .find_map(|line| line.unwrap().strip_prefix("child ").map(str::to_owned));
        let child = format!("/proc/{}/stat", child.unwrap());
        parent.kill().unwrap();
        parent.wait().unwrap();
        // A zombie has ended, whoever is to bury it.
        while fs::read_to_string(&child).is_ok_and(|stat| !stat.contains(") Z ")) {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    #[test]
    fn a_failure_says_what_the_program_said() {
        let error = output(Command::new("sh").args(["-c", "echo no >&2; exit 3"])).unwrap_err();
        assert!(error.to_string().ends_with("failed:\nno"), "{error}");
        assert_eq!(output_with(&mut Command::new("cat"), b"x").unwrap(), "x");
    }
}
