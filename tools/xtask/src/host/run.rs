//! Running other programs: quietly for their answer, or at length with a log and a bar.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use miette::{IntoDiagnostic, Result, WrapErr, miette};

use crate::host::Ctx;

/// How much of a failed program's output an error shows.
const TAIL: usize = 15;

/// The command line as a person would type it.
pub fn shown(cmd: &Command) -> String {
    std::iter::once(cmd.get_program())
        .chain(cmd.get_args())
        .map(|part| part.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

pub fn exists(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

/// Runs a command and returns what it printed; anything but success is an error.
pub fn output(cmd: &mut Command) -> Result<String> {
    String::from_utf8(bytes(cmd)?)
        .into_diagnostic()
        .wrap_err_with(|| format!("`{}` printed something that is not UTF-8", shown(cmd)))
}

pub fn bytes(cmd: &mut Command) -> Result<Vec<u8>> {
    let out = cmd
        .stdin(Stdio::null())
        .output()
        .into_diagnostic()
        .wrap_err_with(|| format!("cannot run `{}`", shown(cmd)))?;
    if !out.status.success() {
        return Err(failure(cmd, &out.stderr));
    }
    Ok(out.stdout)
}

/// Like [`output`], with `input` on the program's standard input.
pub fn output_with(cmd: &mut Command, input: &[u8]) -> Result<String> {
    let mut child = cmd
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .into_diagnostic()
        .wrap_err_with(|| format!("cannot run `{}`", shown(cmd)))?;
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let out = std::thread::scope(|scope| {
        // A program that refuses its input early is reported by its status.
        scope.spawn(move || stdin.write_all(input).ok());
        child.wait_with_output()
    })
    .into_diagnostic()?;
    if !out.status.success() {
        return Err(failure(cmd, &out.stderr));
    }
    String::from_utf8(out.stdout).into_diagnostic()
}

fn failure(cmd: &Command, stderr: &[u8]) -> miette::Report {
    let text = String::from_utf8_lossy(stderr);
    let tail: Vec<_> = text.lines().rev().take(TAIL).collect();
    let tail: Vec<_> = tail.into_iter().rev().collect();
    miette!("`{}` failed:\n{}", shown(cmd), tail.join("\n"))
}

/// Runs a long command: everything it prints goes to a log of that name, a bar counts its lines
/// against the last run (or `estimate`; 0 if they are no measure), and a failure names the log and
/// shows its end.
pub fn logged(ctx: &Ctx, log: &str, label: &str, estimate: u64, mut cmd: Command) -> Result<()> {
    let path = ctx.cache.log(log);
    let mut file = File::create(&path).into_diagnostic()?;
    writeln!(file, "$ {}", shown(&cmd)).into_diagnostic()?;
    let (reader, writer) = std::io::pipe().into_diagnostic()?;
    cmd.stdin(Stdio::null())
        .stdout(writer.try_clone().into_diagnostic()?)
        .stderr(writer);
    let mut child = cmd
        .spawn()
        .into_diagnostic()
        .wrap_err_with(|| format!("cannot run `{}`", shown(&cmd)))?;
    // The command holds the writing end of the pipe; without this the reader never sees the end.
    drop(cmd);

    let expected = match estimate {
        0 => 0,
        _ => ctx.cache.lines(log).unwrap_or(estimate),
    };
    let mut bar = ctx.ui.bar(label, expected);
    let mut lines = 0;
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).into_diagnostic()? > 0 {
        file.write_all(&line).into_diagnostic()?;
        if ctx.ui.verbose {
            std::io::stderr().write_all(&line).into_diagnostic()?;
        }
        lines += 1;
        bar.inc(1);
        line.clear();
    }
    drop(bar);
    let status = child.wait().into_diagnostic()?;
    if !status.success() {
        return Err(miette!(
            help = format!("the whole log is {}", path.display()),
            "{label} failed:\n{}",
            tail_of(&path)?
        ));
    }
    // An incremental run prints little; only a longer one is a better estimate of a full one.
    if lines > ctx.cache.lines(log).unwrap_or(0) {
        ctx.cache.set_lines(log, lines)?;
    }
    Ok(())
}

/// The end of a log, or from the first line that names an error, whichever says more.
pub fn tail_of(path: &std::path::Path) -> Result<String> {
    let text = std::fs::read(path).into_diagnostic()?;
    let text = String::from_utf8_lossy(&text);
    // The first line is the command, which the reader did not type.
    let lines: Vec<_> = text
        .lines()
        .skip_while(|line| line.starts_with("$ "))
        .collect();
    let error = lines
        .iter()
        .position(|line| {
            line.contains("error:") || line.contains("error[") || line.starts_with("E: ")
        })
        .unwrap_or(lines.len());
    let from = error.min(lines.len().saturating_sub(TAIL));
    Ok(lines[from..]
        .iter()
        .take(TAIL)
        .copied()
        .collect::<Vec<_>>()
        .join("\n"))
}

/// The last lines of a file.
pub fn last_lines(path: &std::path::Path) -> Result<String> {
    let text = std::fs::read(path).into_diagnostic()?;
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(TAIL)..].join("\n"))
}
