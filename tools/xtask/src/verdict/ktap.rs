//! Reading KTAP: what the test programs in the virtual machine print.

use super::report::Outcome;

/// The kselftest harness's exit code for a program that skips itself.
const SKIP: i32 = 4;

/// What one program of the plan printed, and how it ended; None when it never did.
#[derive(Debug, PartialEq, Eq)]
pub struct Run {
    pub label: String,
    pub lines: Vec<String>,
    pub code: Option<i32>,
}

/// Splits the second serial port's output at the marks that the guest's init makes.
pub fn runs(results: &str) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut open = false;
    for line in results.lines().map(|line| line.trim_end_matches('\r')) {
        if let Some(label) = line.strip_prefix("xtask: begin ") {
            runs.push(Run {
                label: label.to_owned(),
                lines: Vec::new(),
                code: None,
            });
            open = true;
        } else if let Some(end) = line.strip_prefix("xtask: end ") {
            if let Some(run) = runs.last_mut() {
                run.code = end.rsplit(' ').next().and_then(|code| code.parse().ok());
            }
            open = false;
        } else if let Some(run) = runs.last_mut().filter(|_| open) {
            run.lines.push(line.to_owned());
        }
    }
    runs
}

/// The cases of one program: one for each result line, and one for each thing that went wrong
/// around them.
pub fn cases(run: &Run) -> Vec<(String, Outcome)> {
    let mut cases: Vec<(String, Outcome)> = Vec::new();
    let mut planned = None;
    let mut skipped = "";
    let mut diagnostics: Vec<&str> = Vec::new();
    for line in &run.lines {
        if let Some(count) = line.strip_prefix("1..") {
            let (count, why) = count.split_once(" # SKIP ").unwrap_or((count, ""));
            planned = count.parse::<usize>().ok();
            skipped = why;
        } else if let Some(result) = result(line, &diagnostics) {
            cases.push(result);
            diagnostics.clear();
        } else {
            diagnostics.push(line);
        }
    }
    let failed = cases
        .iter()
        .any(|(_, outcome)| matches!(outcome, Outcome::Failed(_)));
    let whole = |outcome| (String::from("(the program)"), outcome);
    let end = last(&diagnostics);
    match (run.code, planned) {
        (None, _) => cases.push(whole(Outcome::Failed(format!("it did not end: {end}")))),
        (Some(137), _) => cases.push(whole(Outcome::Failed(format!(
            "killed at its time limit: {end}"
        )))),
        (Some(SKIP), None) => cases.push(whole(Outcome::Skipped(end))),
        (Some(SKIP), Some(0)) => cases.push(whole(Outcome::Skipped(skipped.to_owned()))),
        (Some(code), None) => cases.push(whole(Outcome::Failed(format!(
            "exit code {code} and no plan: {end}"
        )))),
        (Some(_), Some(planned)) if planned != cases.len() => {
            let text = format!("it planned {planned} cases and reported {}", cases.len());
            cases.push(whole(Outcome::Failed(text)));
        }
        (Some(code), _) if code != 0 && code != SKIP && !failed => {
            cases.push(whole(Outcome::Failed(format!(
                "exit code {code} though no case failed"
            ))));
        }
        _ => {}
    }
    cases
}

fn last(diagnostics: &[&str]) -> String {
    let text = diagnostics
        .iter()
        .rev()
        .find(|line| !line.trim().is_empty());
    text.map_or("it printed nothing".to_owned(), |line| {
        line.trim_start_matches("# ").trim().to_owned()
    })
}

/// `ok 3 name # SKIP why`, `not ok 4 name`; a failure's reason is the last thing said before it.
fn result(line: &str, diagnostics: &[&str]) -> Option<(String, Outcome)> {
    let (passed, rest) = match line.strip_prefix("not ok ") {
        Some(rest) => (false, rest),
        None => (true, line.strip_prefix("ok ")?),
    };
    let (number, rest) = rest.split_once(' ').unwrap_or((rest, ""));
    number.parse::<u32>().ok()?;
    let (name, directive) = rest
        .split_once(" # ")
        .map_or((rest, ""), |(name, directive)| (name, directive));
    let name = name.trim_start_matches("- ").trim().to_owned();
    let outcome = match directive.strip_prefix("SKIP") {
        // KUnit does so with Rust tests that a #[cfg] leaves out.
        Some(why) if why.trim().is_empty() => {
            Outcome::Skipped("this configuration leaves it out".to_owned())
        }
        Some(why) => Outcome::Skipped(why.trim().to_owned()),
        None if passed => Outcome::Passed,
        None => Outcome::Failed(
            diagnostics
                .iter()
                .rev()
                .find(|line| {
                    let noise = [" FAIL ", ": Test ", ".speed: ", ": pass:"];
                    line.starts_with("# ") && !noise.iter().any(|noise| line.contains(noise))
                })
                .map_or(String::new(), |line| {
                    line.trim_start_matches("# ").trim().to_owned()
                }),
        ),
    };
    Some((name, outcome))
}

/// What a program logs of itself.
pub fn said(run: &Run) -> Vec<String> {
    // TH_LOG puts file:line:test: in front.
    let text = |line: &str| Some(line.strip_prefix("# ")?.splitn(4, ':').nth(3)?.to_owned());
    run.lines.iter().filter_map(|line| text(line)).collect()
}

/// Of that, what states a measured time.
pub fn figures(run: &Run) -> Vec<String> {
    let mut lines = said(run);
    lines.retain(|line| [" ms", " ns"].iter().any(|unit| line.contains(unit)));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(lines: &[&str], code: Option<i32>) -> Run {
        Run {
            label: "l".to_owned(),
            lines: lines.iter().map(|line| line.to_string()).collect(),
            code,
        }
    }

    fn failed(why: &str) -> Outcome {
        Outcome::Failed(why.to_owned())
    }

    #[test]
    fn output_is_split_at_the_marks() {
        let text = "xtask: ready\r\nxtask: begin a/b\r\nx\r\nxtask: end a/b 0\r\nnoise\r\nxtask: begin c\r\ny\r\n";
        let runs = runs(text);
        assert_eq!(runs.len(), 2);
        assert_eq!((runs[0].label.as_str(), runs[0].code), ("a/b", Some(0)));
        assert_eq!(runs[0].lines, ["x"]);
        assert_eq!((runs[1].label.as_str(), runs[1].code), ("c", None));
    }

    #[test]
    fn results_are_counted_one_by_one() {
        let lines = [
            "TAP version 13",
            "1..3",
            "#  RUN           t.a ...",
            "ok 1 t.a",
            "# x.c:10:b:Expected 1 (1) == 2 (2)",
            "# b: Test terminated by assertion",
            "#          FAIL  t.b",
            "not ok 2 t.b",
            "ok 3 t.c # SKIP no device",
        ];
        assert_eq!(
            cases(&run(&lines, Some(1))),
            [
                ("t.a".to_owned(), Outcome::Passed),
                ("t.b".to_owned(), failed("x.c:10:b:Expected 1 (1) == 2 (2)")),
                ("t.c".to_owned(), Outcome::Skipped("no device".to_owned())),
            ]
        );
    }

    #[test]
    fn what_is_missing_fails() {
        let whole = |lines: &[&str], code| cases(&run(lines, code)).pop().unwrap().1;
        assert_eq!(
            whole(&["1..2", "ok 1 a"], Some(0)),
            failed("it planned 2 cases and reported 1")
        );
        assert_eq!(
            whole(&["1..1", "ok 1 a"], Some(1)),
            failed("exit code 1 though no case failed")
        );
        assert_eq!(
            whole(&["1..1", "# busy"], Some(137)),
            failed("killed at its time limit: busy")
        );
        assert_eq!(
            whole(&["1..1", "ok 1 a"], None),
            failed("it did not end: it printed nothing")
        );
        assert_eq!(
            whole(&["No driver"], Some(SKIP)),
            Outcome::Skipped("No driver".to_owned())
        );
        assert_eq!(
            whole(&["1..0 # SKIP no module"], Some(SKIP)),
            Outcome::Skipped("no module".to_owned())
        );
        assert_eq!(
            whole(&["Assertion"], Some(255)),
            failed("exit code 255 and no plan: Assertion")
        );
    }

    #[test]
    fn measured_times_are_figures() {
        let lines = [
            "# t.c:70:faults:BAR2, 4096 bytes: 1 faults in 0.01 ms",
            "# t.c:71:x:Seed 3",
            "# t.c:72:same:read: 7 ns with a",
        ];
        assert_eq!(
            figures(&run(&lines, Some(0))),
            ["BAR2, 4096 bytes: 1 faults in 0.01 ms", "read: 7 ns with a"]
        );
    }
}
