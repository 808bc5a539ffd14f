//! What the types of the Rust code promise to refuse: the programs in its documentation that are
//! marked `compile_fail`, each compiled as a module of the virtual machine's kernel.
//!
//! Each follows, in the same comment, a program that is right. That one has to compile, or it
//! would not be known what the other is refused for.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};
use fs_err as fs;

use super::report::{Outcome, Report};
use crate::facts::FACTS;
use crate::host::{cache, run};
use crate::kernel::Kernel;
use crate::series::overlay::Series;

const STAGE: &str = "compile-fail";
pub const SAMPLES: &str = "the samples write no unsafe and no bindings";
/// The one error of the borrow checker that has no number.
const LIFETIME: &str = "lifetime may not live long enough";
/// What a program in the documentation sees without naming it.
const PRELUDE: &str = "#![allow(dead_code, unused)]\n//! A program.\nuse kernel::prelude::*;\n";

/// What is to become of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Compiles,
    /// With errors of this number, or message if they have none.
    Refused(String),
}

/// A code block of a doc comment.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Program {
    file: String,
    line: usize,
    verdict: Verdict,
    text: String,
}

impl Program {
    fn label(&self) -> String {
        format!("{}:{}", self.file, self.line)
    }

    /// The name of its module.
    fn module(&self) -> String {
        let file = self.file.trim_end_matches(".rs").replace(['/', '-'], "_");
        format!("{file}_{}", self.line)
    }
}

/// A program that is right, and one after it that is to be refused.
type Pair = (Program, Program);

/// Compiles what is there, and reports one case for each program that is to be refused.
pub fn run(kernel: &Kernel<'_>, series: &Series, report: &mut Report) -> Result<()> {
    let sources = series
        .overlay
        .iter()
        .filter(|path| path.ends_with(".rs"))
        .map(|path| {
            let text = fs::read_to_string(kernel.tree.dir.join(path))?;
            Ok((path.as_str(), text))
        });
    let sources: BTreeMap<&str, String> = sources.collect::<Result<_>>()?;
    let samples = sources
        .iter()
        .filter(|(path, _)| path.starts_with("samples/"))
        .try_for_each(|(path, text)| safe(path, text));
    report.check(STAGE, SAMPLES, samples);

    let mut pairs = Vec::new();
    for (path, text) in &sources {
        match programs(path, text) {
            Ok(found) => pairs.extend(found),
            Err(error) => {
                report.check::<()>(STAGE, path, Err(error));
            }
        }
    }
    if pairs.is_empty() {
        let none = anyhow!("the documentation has none");
        report.check::<()>(STAGE, "programs that do not compile", Err(none));
        return Ok(());
    }
    let (dir, log) = compile(kernel, &pairs, report)?;
    for (right, wrong) in &pairs {
        let name = match &wrong.verdict {
            Verdict::Refused(error) => error.as_str(),
            Verdict::Compiles => unreachable!("the second of a pair is to be refused"),
        };
        let judged = [right, wrong].map(|program| {
            let built = dir.join(format!("{}.o", program.module())).exists();
            judge(program, built, &errors(&log, &program.module()))
        });
        let mut failed = judged
            .into_iter()
            .filter(|outcome| *outcome != Outcome::Passed);
        report.add(
            STAGE,
            &wrong.label(),
            name,
            failed.next().unwrap_or(Outcome::Passed),
        );
    }
    Ok(())
}

/// Compiles the programs as modules; returns their directory, and what the compiler said.
fn compile(kernel: &Kernel<'_>, pairs: &[Pair], report: &mut Report) -> Result<(PathBuf, String)> {
    let dir = cache::fresh(&kernel.objects.join(STAGE))?;
    let all: BTreeSet<(String, &str)> = pairs
        .iter()
        .flat_map(|(right, wrong)| [right, wrong])
        .map(|program| (program.module(), program.text.as_str()))
        .collect();
    for (module, text) in &all {
        fs::write(dir.join(format!("{module}.rs")), format!("{PRELUDE}{text}"))?;
    }
    let objects: Vec<String> = all.iter().map(|(name, _)| format!("{name}.o")).collect();
    fs::write(
        dir.join("Kbuild"),
        format!("obj-m := {}\n", objects.join(" ")),
    )?;
    let mut make = kernel.make(FACTS.vm());
    make.arg(format!("M={}", dir.display()))
        // One line for each error, with the file in front.
        .arg("KRUSTFLAGS=--error-format=short")
        .args(["--keep-going", "--output-sync=target"])
        .args(&objects);
    // That make fails is what is expected of it.
    if run::logged(kernel.ctx, STAGE, STAGE, 0, make).is_ok() {
        let why = anyhow!("make had nothing to complain of");
        report.check::<()>(STAGE, "make", Err(why));
    }
    Ok((dir, run::read(&kernel.ctx.cache.log(STAGE))?))
}

/// Whether a sample keeps to what drivers are given.
fn safe(path: &str, text: &str) -> Result<()> {
    for (index, line) in text.lines().enumerate() {
        let mut words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
        if let Some(word) = words.find(|word| ["unsafe", "bindings"].contains(word)) {
            bail!("{path}:{}: {word}", index + 1);
        }
    }
    Ok(())
}

/// The programs of a file that are to be refused, each with the one before it that is right.
fn programs(file: &str, text: &str) -> Result<Vec<Pair>> {
    let mut pairs = Vec::new();
    let mut right: Option<Program> = None;
    // The block that is open, and the program in it, if it is one.
    let mut open: Option<Option<Program>> = None;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim_start();
        let Some(line) = line.strip_prefix("///").or(line.strip_prefix("//!")) else {
            // Another comment has programs of its own.
            (right, open) = (None, None);
            continue;
        };
        let line = line.strip_prefix(' ').unwrap_or(line);
        let Some(info) = line.trim_start().strip_prefix("```") else {
            if let Some(Some(program)) = &mut open {
                // What rustdoc hides from the reader.
                let line = match line.trim_start() {
                    "#" => "",
                    hidden => hidden.strip_prefix("# ").unwrap_or(line),
                };
                program.text += &format!("{line}\n");
            }
            continue;
        };
        match open.take() {
            None => {
                open = Some(verdict(info).map(|verdict| Program {
                    file: file.to_owned(),
                    line: index + 1,
                    verdict,
                    text: String::new(),
                }));
            }
            Some(Some(program)) if program.verdict == Verdict::Compiles => right = Some(program),
            Some(Some(wrong)) => match right.clone() {
                Some(right) => pairs.push((right, wrong)),
                None => bail!(
                    "{}: there is no program before it that is right",
                    wrong.label()
                ),
            },
            Some(None) => {}
        }
    }
    Ok(pairs)
}

/// What is to become of a block with this behind its ```; None for what is not Rust.
fn verdict(info: &str) -> Option<Verdict> {
    let words: Vec<&str> = info.split(',').map(str::trim).collect();
    if words.contains(&"compile_fail") {
        let number = words.iter().find(|word| word.starts_with("E0"));
        return Some(Verdict::Refused(number.unwrap_or(&LIFETIME).to_string()));
    }
    let rust = ["", "ignore", "no_run", "rust"];
    words
        .iter()
        .all(|word| rust.contains(word))
        .then_some(Verdict::Compiles)
}

/// The errors in a module's source: their numbers, or the messages of those that have none.
fn errors(log: &str, module: &str) -> Vec<String> {
    let source = format!("{module}.rs:");
    log.lines()
        .filter_map(|line| {
            // path:line:column: error[E0599]: message
            let (place, error) = line.split_once(": error")?;
            let file = Path::new(place).file_name()?.to_str()?;
            if !file.starts_with(&source) {
                return None;
            }
            let number = error
                .strip_prefix('[')
                .and_then(|rest| rest.split_once(']'));
            Some(match number {
                Some((number, _)) => number.to_owned(),
                // What the short form adds to the message is about the program.
                None => error.trim_start_matches(": ").split(':').next()?.to_owned(),
            })
        })
        .collect()
}

fn judge(program: &Program, built: bool, errors: &[String]) -> Outcome {
    let said = || match errors {
        [] => "no error of its own".to_owned(),
        errors => errors.join(", "),
    };
    match &program.verdict {
        Verdict::Compiles if built && errors.is_empty() => Outcome::Passed,
        Verdict::Compiles => Outcome::Failed(format!(
            "{}, which is right, does not compile: {}",
            program.label(),
            said()
        )),
        Verdict::Refused(_) if built => Outcome::Failed("it compiles".to_owned()),
        Verdict::Refused(wanted) => {
            if !errors.is_empty() && errors.iter().all(|error| error == wanted) {
                Outcome::Passed
            } else {
                Outcome::Failed(format!("it is refused with {}", said()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOC: &str = "\
//! ```text
//! no program
//! ```

/// ```
/// # use a::b;
/// #[vtable]
/// right();
/// ```
///
/// ```ignore,compile_fail,E0599
/// wrong();
/// ```
///
///     ```ignore,compile_fail
/// too
/// ```
fn f() {}
";

    #[test]
    fn programs_are_found_in_comments() {
        let pairs = programs("a/b.rs", DOC).unwrap();
        assert_eq!(pairs.len(), 2);
        let (right, wrong) = &pairs[0];
        assert_eq!(right.text, "use a::b;\n#[vtable]\nright();\n");
        assert_eq!(right.verdict, Verdict::Compiles);
        assert_eq!(wrong.label(), "a/b.rs:11");
        assert_eq!(wrong.module(), "a_b_11");
        assert_eq!(wrong.text, "wrong();\n");
        assert_eq!(wrong.verdict, Verdict::Refused("E0599".to_owned()));
        assert_eq!(pairs[1].1.verdict, Verdict::Refused(LIFETIME.to_owned()));
        assert_eq!(&pairs[1].0, right);
    }

    #[test]
    fn what_is_right_comes_first_and_in_the_same_comment() {
        let doc = "/// ```\n/// right();\n/// ```\nfn f() {}\n/// ```compile_fail\n/// ```\n";
        let error = programs("a.rs", doc).unwrap_err();
        assert!(error.to_string().starts_with("a.rs:5: "));
    }

    #[test]
    fn errors_are_those_of_the_module() {
        let log = "\
/dir/a_1.rs:3:9: error[E0599]: no method named `x`: error
/dir/a_1.rs:4:9: error: lifetime may not live long enough: assignment requires that `'1`
/dir/a_11.rs:4:9: error[E0308]: mismatched types
error: aborting due to 2 previous errors
make: *** [a_1.o] Error 1
";
        assert_eq!(errors(log, "a_1"), ["E0599", LIFETIME]);
        assert_eq!(errors(log, "a_11"), ["E0308"]);
        assert!(errors(log, "a_2").is_empty());
    }

    #[test]
    fn no_other_error_will_do() {
        let pairs = programs("a.rs", DOC).unwrap();
        let (right, wrong) = &pairs[0];
        let is = |list: &[&str]| -> Vec<String> { list.iter().map(|s| s.to_string()).collect() };
        let passes =
            |program, built, errors: &[&str]| judge(program, built, &is(errors)) == Outcome::Passed;
        assert!(passes(right, true, &[]));
        assert!(!passes(right, false, &[]));
        assert!(!passes(right, false, &["E0599"]));
        assert!(passes(wrong, false, &["E0599", "E0599"]));
        assert!(!passes(wrong, true, &[]));
        assert!(!passes(wrong, false, &[]));
        assert!(!passes(wrong, false, &["E0433"]));
        assert!(!passes(wrong, false, &["E0599", "E0433"]));
    }

    #[test]
    fn samples_are_searched_for_words() {
        assert!(safe("a.rs", "let unsafely = 1; // my_bindings\n").is_ok());
        let error = safe("a.rs", "x\nlet a = kernel::bindings::X;\n").unwrap_err();
        assert_eq!(error.to_string(), "a.rs:2: bindings");
        assert!(safe("a.rs", "unsafe {}").is_err());
    }
}
