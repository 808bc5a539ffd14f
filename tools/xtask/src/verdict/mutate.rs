//! `cargo xtask test --mutate`: would the tests notice? Plants one bug after the other in the
//! worktree of the series and demands that the suite named for it fails.
//!
//! The bugs are in tools/xtask/mutations, a block for each:
//!
//! ```text
//! what is wrong, a name of its own
//! path/in/the/kernel
//! suite and its argument
//!  a line that is there, for the place
//! -a line that goes
//! +a line that comes
//! ```
//!
//! as in a hunk of a patch. An empty line ends a block, `#` in the first column begins a comment.
//! The lines that are there must be in the file exactly once, or the entry is stale. The suites are
//! a leg of the stage kunit with the suites to run of it, the stages `thp`, `regions` and
//! `compile-fail`, and `vm` with a test as the summary names it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result, anyhow, bail};
use fs_err as fs;

use super::report::{Outcome, Report};
use super::{compile_fail, kunit, machines};
use crate::facts::{FACTS, Leg};
use crate::host::Ctx;
use crate::host::toolchain::{Purpose, Toolchain};
use crate::kernel::{Kernel, extracts};
use crate::machine::Vm;
use crate::series::Assembled;

const STAGE: &str = "mutate";
const LISTS: &str = "tools/xtask/mutations";

/// What has to notice a bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Suite {
    Thp,
    Regions,
    Kunit(&'static str),
    CompileFail,
    Vm,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Mutation {
    name: String,
    file: String,
    suite: Suite,
    /// What to run of the suite.
    part: String,
    old: String,
    new: String,
}

impl Mutation {
    /// The file with the bug in it.
    fn apply(&self, text: &str) -> Result<String> {
        match text.matches(&self.old).count() {
            1 => Ok(text.replacen(&self.old, &self.new, 1)),
            n => Err(anyhow!(
                "stale: what it replaces is in {} {n} times",
                self.file
            )),
        }
    }

    /// The suite and the part of it, which is what has to pass without the bug.
    fn target(&self) -> (Suite, &str) {
        (self.suite, &self.part)
    }

    fn shown(&self) -> String {
        let suite = match self.suite {
            Suite::Thp => "thp",
            Suite::Regions => "regions",
            Suite::Kunit(leg) => leg,
            Suite::CompileFail => "compile-fail",
            Suite::Vm => "vm",
        };
        format!("{suite} {}", self.part).trim_end().to_owned()
    }
}

/// What became of the tests, with a bug or without one.
enum Verdict {
    /// All passed: how many.
    Passed(usize),
    /// What failed first.
    Failed(String),
    /// Nothing was tested.
    Unbuilt(String),
}

/// A bug that was planted, until this goes out of scope.
struct Planted {
    path: PathBuf,
    was: String,
}

impl Planted {
    fn new(tree: &Path, mutation: &Mutation) -> Result<Planted> {
        let path = tree.join(&mutation.file);
        let was = fs::read_to_string(&path)
            .with_context(|| format!("stale: there is no {}", mutation.file))?;
        fs::write(&path, mutation.apply(&was)?)?;
        Ok(Planted { path, was })
    }
}

impl Drop for Planted {
    fn drop(&mut self) {
        // The next run resets the worktree, should this one not be able to.
        if let Err(error) = fs::write(&self.path, &self.was) {
            eprintln!("cannot restore {}: {error}", self.path.display());
        }
    }
}

/// Plants the bugs whose name, file or suite contains `only`.
pub fn mutate(ctx: &Ctx, base: Option<&Path>, only: Option<&str>) -> Result<()> {
    let mut mutations = read(&ctx.root.join(LISTS))?;
    if let Some(only) = only {
        mutations.retain(|mutation| {
            let fields = [&mutation.name, &mutation.file, &mutation.shown()];
            fields.iter().any(|field| field.contains(only))
        });
    }
    if mutations.is_empty() {
        bail!("--only {} selects no bug", only.unwrap_or(""));
    }
    // Bugs of one suite in one file follow each other, so that little is built for each.
    mutations.sort_by(|a, b| (a.target(), &a.file).cmp(&(b.target(), &b.file)));

    let all = Assembled::on(ctx, base)?;
    let purposes = [Purpose::Build, Purpose::Kunit, Purpose::Vm];
    let toolchain = Toolchain::open(ctx, &all.tree, &purposes)?;
    let kernel = Kernel::new(ctx, &toolchain, &all);

    let mut report = Report::default();
    let mut table = vec![row("suite", "bug", "noticed by")];
    let mut sound: Option<((Suite, &str), bool)> = None;
    for (index, mutation) in mutations.iter().enumerate() {
        let target = mutation.target();
        let passes = match sound {
            Some((same, passes)) if same == target => passes,
            _ => sane(&kernel, &all, mutation, &mut report),
        };
        sound = Some((target, passes));
        let Mutation { name, file, .. } = mutation;
        if !passes {
            let why = "the suite fails without it".to_owned();
            report.add(STAGE, file, name, Outcome::Skipped(why));
            continue;
        }
        let (number, of) = (index + 1, mutations.len());
        ctx.ui.step(format!("{number}/{of}: {file}: {name}"));
        let planted = Planted::new(&all.tree.dir, mutation);
        let verdict = planted.and_then(|_planted| run(&kernel, &all, mutation));
        let (outcome, noticed) = judge(verdict);
        table.push(row(&mutation.shown(), name, &noticed));
        report.add(STAGE, file, name, outcome);
    }
    report.table(table.join("\n"));
    print!("{}", report.render());
    match report.failed() {
        0 => Ok(()),
        n => bail!("{n} of the bugs were not noticed, or the list is wrong"),
    }
}

/// Whether what is to notice a bug passes without one.
fn sane(kernel: &Kernel<'_>, all: &Assembled, mutation: &Mutation, report: &mut Report) -> bool {
    let shown = mutation.shown();
    kernel.ctx.ui.step(format!("{shown} without a bug"));
    let ran = configured(kernel, mutation).and_then(|()| run(kernel, all, mutation));
    let passes = match ran {
        Ok(Verdict::Passed(0)) => Err(anyhow!("it runs no case")),
        Ok(Verdict::Passed(_)) => Ok(()),
        Ok(Verdict::Failed(why) | Verdict::Unbuilt(why)) => Err(anyhow!("{why}")),
        Err(error) => Err(error),
    };
    let name = format!("{shown} passes without a bug");
    report.check(STAGE, &name, passes).is_some()
}

fn row(suite: &str, name: &str, noticed: &str) -> String {
    format!("{suite:32}  {name:56}  {noticed}")
}

/// What a bug's run says of the tests, and the last column of the table.
fn judge(verdict: Result<Verdict>) -> (Outcome, String) {
    let (failed, noticed) = match verdict {
        Ok(Verdict::Failed(by)) => (None, by),
        Ok(Verdict::Passed(cases)) => {
            let why = format!("{cases} cases passed");
            (
                Some(format!("not noticed: {why}")),
                format!("NOTHING: {why}"),
            )
        }
        Ok(Verdict::Unbuilt(why)) => {
            let why = format!("it does not compile: {why}");
            (Some(why.clone()), format!("ERROR: {why}"))
        }
        Err(error) => (Some(format!("{error:#}")), format!("ERROR: {error:#}")),
    };
    let line = noticed.lines().next().unwrap_or_default().to_owned();
    (failed.map_or(Outcome::Passed, Outcome::Failed), line)
}

/// Configures what the suite of a bug needs, once for all bugs.
fn configured(kernel: &Kernel<'_>, mutation: &Mutation) -> Result<()> {
    match mutation.suite {
        Suite::Thp | Suite::Regions | Suite::Vm => Ok(()),
        Suite::Kunit(name) => kunit::build(kernel, leg(name)?),
        Suite::CompileFail => kernel.configure(FACTS.vm()),
    }
}

/// Builds what the suite of a bug needs, and runs the part that is to notice it.
fn run(kernel: &Kernel<'_>, all: &Assembled, mutation: &Mutation) -> Result<Verdict> {
    let mut report = Report::default();
    match mutation.suite {
        Suite::Thp => return Ok(said(extracts::equivalence(kernel.ctx, all))),
        Suite::Regions => return Ok(said(extracts::regions(kernel.ctx, all))),
        Suite::Kunit(name) => {
            let leg = leg(name)?;
            if let Err(error) = kunit::make(kernel, leg) {
                return Ok(Verdict::Unbuilt(last_error(&error)));
            }
            let suites = format!("{}*", mutation.part);
            kunit::exec(kernel, leg, Some(&suites), &mut report)?;
        }
        Suite::CompileFail => {
            if let Err(error) = kernel.build(FACTS.vm(), &["rust/"]) {
                return Ok(Verdict::Unbuilt(last_error(&error)));
            }
            compile_fail::run(kernel, &all.series, &mut report)?;
        }
        Suite::Vm => {
            let built = kernel.bootable(FACTS.vm());
            match built.and_then(|()| kernel.selftests()) {
                Err(error) => return Ok(Verdict::Unbuilt(last_error(&error))),
                Ok(tests) => machines::one(&Vm::new(kernel, tests), &mutation.part, &mut report)?,
            }
        }
    }
    Ok(match report.first_failed() {
        Some(case) => Verdict::Failed(case.to_owned()),
        None => Verdict::Passed(report.passed()),
    })
}

/// What a program of code that was cut out says.
fn said(said: Result<extracts::Said>) -> Verdict {
    match said {
        Ok(Ok(_)) => Verdict::Passed(1),
        Ok(Err(wrong)) => Verdict::Failed(wrong),
        Err(error) => Verdict::Unbuilt(last_error(&error)),
    }
}

/// The line of a failed build that names the error.
fn last_error(error: &Error) -> String {
    let text = error.to_string();
    let line = text.lines().find(|line| line.contains("error"));
    line.unwrap_or(&text).trim().to_owned()
}

fn leg(name: &str) -> Result<&'static Leg> {
    let found = FACTS.legs.iter().find(|leg| leg.name == name);
    found.ok_or_else(|| anyhow!("there is no leg {name}"))
}

/// All lists of the directory, in the order of their names.
fn read(dir: &Path) -> Result<Vec<Mutation>> {
    let lists = fs::read_dir(dir)?.map(|entry| Ok(entry?.path()));
    let mut lists: Vec<PathBuf> = lists.collect::<Result<_>>()?;
    lists.sort();
    let mut mutations: Vec<Mutation> = Vec::new();
    for list in lists {
        let text = fs::read_to_string(&list)?;
        let found = parse(&text).with_context(|| format!("{}", list.display()))?;
        for mutation in found {
            if mutations.iter().any(|other| other.name == mutation.name) {
                bail!("there are two bugs `{}`", mutation.name);
            }
            mutations.push(mutation);
        }
    }
    Ok(mutations)
}

fn parse(text: &str) -> Result<Vec<Mutation>> {
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    lines
        .split(|line| line.is_empty())
        .filter(|block| !block.is_empty())
        .map(mutation)
        .collect()
}

fn mutation(block: &[&str]) -> Result<Mutation> {
    let [name, file, suite, hunk @ ..] = block else {
        bail!("{}: too few lines", block[0]);
    };
    let (suite, part) = suite.split_once(' ').unwrap_or((suite, ""));
    let suite = match suite {
        "thp" => Suite::Thp,
        "regions" => Suite::Regions,
        "compile-fail" => Suite::CompileFail,
        "vm" => Suite::Vm,
        name => Suite::Kunit(&leg(name)?.name),
    };
    let (mut old, mut new) = (String::new(), String::new());
    for line in hunk {
        let (to_old, to_new) = match line.chars().next() {
            Some(' ') => (true, true),
            Some('-') => (true, false),
            Some('+') => (false, true),
            _ => bail!("{name}: a line begins with neither blank, - nor +"),
        };
        for (text, wanted) in [(&mut old, to_old), (&mut new, to_new)] {
            if wanted {
                text.push_str(&line[1..]);
                text.push('\n');
            }
        }
    }
    if old.is_empty() || old == new {
        bail!("{name}: it changes nothing");
    }
    Ok(Mutation {
        name: (*name).to_owned(),
        file: (*file).to_owned(),
        suite,
        part: part.to_owned(),
        old,
        new,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "\
# A comment.

off by one
mm/a.c
kunit-um a
 \tint x;
-\tx = 1;
+\tx = 2;

gone
mm/a.c
thp
-\tx = 1;
";

    #[test]
    fn blocks_are_hunks() {
        let list = parse(LIST).unwrap();
        assert_eq!(list.len(), 2);
        assert_eq!(list[0].old, "\tint x;\n\tx = 1;\n");
        assert_eq!(list[0].new, "\tint x;\n\tx = 2;\n");
        assert_eq!(list[0].target(), (Suite::Kunit("kunit-um"), "a"));
        assert_eq!((list[1].suite, list[1].new.as_str()), (Suite::Thp, ""));
    }

    #[test]
    fn what_is_not_there_once_is_stale() {
        let list = parse(LIST).unwrap();
        let text = "\tint x;\n\tx = 1;\n\tx = 1;\n";
        assert_eq!(
            list[0].apply(text).unwrap(),
            "\tint x;\n\tx = 2;\n\tx = 1;\n"
        );
        assert!(list[1].apply(text).is_err());
        assert!(list[1].apply("").is_err());
    }

    #[test]
    fn mistakes_in_the_list_are_named() {
        for wrong in [
            "a\nb\n",
            "a\nb\nnone\n-x\n",
            "a\nb\nthp\nx\n",
            "a\nb\nthp\n x\n",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_lists_of_this_repository_are_sound() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("mutations");
        assert!(read(&dir).unwrap().len() >= 40);
    }

    #[test]
    fn only_what_fails_is_noticed() {
        let noticed = |verdict| judge(verdict).0 == Outcome::Passed;
        assert!(noticed(Ok(Verdict::Failed("a".to_owned()))));
        assert!(!noticed(Ok(Verdict::Passed(1))));
        assert!(!noticed(Ok(Verdict::Unbuilt("a".to_owned()))));
        assert!(!noticed(Err(anyhow!("stale"))));
    }
}
