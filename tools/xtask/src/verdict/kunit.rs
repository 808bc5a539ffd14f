//! KUnit as the kernel's own tool runs it: `kunit.py run --kunitconfig=drivers/vfio`, in steps.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use fs_err as fs;
use serde::Deserialize;

use super::report::{Outcome, Report};
use crate::facts::{FACTS, Leg};
use crate::host::run;
use crate::kernel::Kernel;
use crate::machine;

/// What kunit.py says of a suite, or of what has suites or cases below it.
#[derive(Deserialize)]
struct Group {
    name: String,
    sub_groups: Vec<Group>,
    test_cases: Vec<Case>,
    misc: Counts,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    status: String,
}

#[derive(Deserialize)]
struct Counts {
    passed: u64,
    failed: u64,
    crashed: u64,
    errors: u64,
}

/// Builds and runs the suites, or the one of that name, and reports case by case.
pub fn run(kernel: &Kernel<'_>, leg: &Leg, suite: Option<&str>, report: &mut Report) -> Result<()> {
    match report.check("kunit", &leg.name, build(kernel, leg)) {
        Some(()) => exec(kernel, leg, suite, report),
        None => Ok(()),
    }
}

/// Runs what is built, or the suites of it whose names match.
pub fn exec(
    kernel: &Kernel<'_>,
    leg: &Leg,
    suites: Option<&str>,
    report: &mut Report,
) -> Result<()> {
    let name = &leg.name;
    // The kernel's log, as kunit.py leaves it there, and its own result.
    let (log, json) = (
        out(kernel, leg).join("test.log"),
        out(kernel, leg).join("test.json"),
    );
    for old in [&log, &json] {
        fs::remove_file(old).ok();
    }
    let mut exec = kunit_py(kernel, leg, "exec");
    exec.arg(format!("--json={}", json.display())).args(suites);
    // kunit.py has QEMU use KVM wherever there is a /dev/kvm; the QEMU in there does not.
    let mut path = kernel.ctx.root.join("tools/xtask/host").into_os_string();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    exec.env("PATH", path);
    let ran = run::logged(kernel.ctx, name, name, 0, exec);
    let Ok(text) = fs::read_to_string(&json) else {
        // No kernel was run, and kunit.py has said why.
        report.check("kunit", &format!("{name} run"), ran);
        return Ok(());
    };
    let root: Group = serde_json::from_str(&text).context("kunit.py --json changed its format")?;
    let log = run::read(&log)?;
    for (group, case, outcome) in cases(&root, &log) {
        report.add("kunit", &format!("{name}/{group}"), &case, outcome);
    }
    let whole = match root.misc.errors {
        0 => Outcome::Passed,
        n => Outcome::Failed(format!(
            "kunit.py finds {n} errors in what the kernel printed"
        )),
    };
    report.add("kunit", name, "all suites", whole);
    let clean = machine::splat(&log).map(str::to_owned);
    let clean = clean.map_or(Outcome::Passed, Outcome::Failed);
    report.add("kunit", name, "no warning in the kernel's log", clean);
    // Behind the cases, since it fails if any of them does.
    report.check("kunit", &format!("{name} run"), ran);
    Ok(())
}

/// Suite, case and outcome of all cases; the parameters of a case are one.
fn cases(root: &Group, log: &str) -> Vec<(String, String, Outcome)> {
    let outcome = |name: &str, status: &str| match status {
        "PASS" => Outcome::Passed,
        "SKIP" => {
            let skipped = format!(" {name} # SKIP");
            let why = log
                .lines()
                .find_map(|line| Some(line.split_once(&skipped)?.1.trim()));
            // KUnit does so with Rust tests that a #[cfg] leaves out.
            let why = why.filter(|why| !why.is_empty());
            Outcome::Skipped(why.unwrap_or("this configuration leaves it out").to_owned())
        }
        status => {
            // What KUnit says of a failure begins with the name of the case.
            let said = |line: &&str| line.contains(&format!("# {name}: "));
            let line = log.lines().rfind(said);
            Outcome::Failed(line.map_or(status.to_owned(), |line| line.trim().to_owned()))
        }
    };
    let mut found = Vec::new();
    for case in &root.test_cases {
        // A suite without a case: it crashed, or has none.
        let outcome = outcome(&case.name, &case.status);
        found.push((case.name.clone(), "(the suite)".to_owned(), outcome));
    }
    for suite in &root.sub_groups {
        let own = suite
            .test_cases
            .iter()
            .map(|case| (&case.name, case.status.as_str()));
        let below = suite
            .sub_groups
            .iter()
            .map(|group| (&group.name, group.status()));
        for (name, status) in own.chain(below) {
            found.push((suite.name.clone(), name.clone(), outcome(name, status)));
        }
    }
    found
}

impl Group {
    fn status(&self) -> &'static str {
        let Counts {
            passed,
            failed,
            crashed,
            errors,
        } = self.misc;
        match (failed + crashed + errors, passed) {
            (0, 0) => "SKIP",
            (0, _) => "PASS",
            _ => "FAIL",
        }
    }
}

/// `kunit.py build`, whose build tells nobody how far it is, by hand.
pub fn build(kernel: &Kernel<'_>, leg: &Leg) -> Result<()> {
    if leg.args.is_some() {
        // kunit.py makes the last directory only.
        fs::create_dir_all(out(kernel, leg))?;
        let config = kunit_py(kernel, leg, "config");
        run::logged(kernel.ctx, &leg.name, &leg.name, 0, config)?;
    } else {
        kernel.configure(FACTS.config(&leg.name))?;
    }
    make(kernel, leg)
}

/// Builds what is configured.
pub fn make(kernel: &Kernel<'_>, leg: &Leg) -> Result<()> {
    let mut make = kernel
        .toolchain
        .make(kernel.tree, &out(kernel, leg), &leg.arch);
    make.arg("all");
    let label = format!("build {}", leg.name);
    run::logged(
        kernel.ctx,
        &format!("build-{}", leg.name),
        &label,
        leg.lines,
        make,
    )
}

fn out(kernel: &Kernel<'_>, leg: &Leg) -> PathBuf {
    kernel.objects.join(format!("obj-{}", leg.name))
}

fn kunit_py(kernel: &Kernel<'_>, leg: &Leg, command: &str) -> Command {
    let mut cmd = kernel
        .toolchain
        .kunit(kernel.tree, &out(kernel, leg), command);
    cmd.arg(format!("--arch={}", leg.arch));
    if let Some(args) = &leg.args {
        cmd.arg("--kunitconfig=drivers/vfio").args(args);
    }
    cmd
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_those_of_kunit_py() {
        let counts = |passed, failed| {
            format!(
                r#""misc":{{"passed":{passed},"failed":{failed},"crashed":0,"skipped":0,"errors":0,"tests":0}}"#
            )
        };
        let text = format!(
            r#"{{"name":"all","arch":"um","test_cases":[{{"name":"c","status":"ERROR"}}],{none},"sub_groups":[
                {{"name":"a","test_cases":[{{"name":"x","status":"PASS"}},{{"name":"y","status":"FAIL"}},{{"name":"z","status":"SKIP"}}],{none},"sub_groups":[
                    {{"name":"p","test_cases":[{{"name":"one","status":"PASS"}}],{one},"sub_groups":[]}}]}}]}}"#,
            none = counts(0, 0),
            one = counts(1, 0)
        );
        let root: Group = serde_json::from_str(&text).unwrap();
        let log = "[ 1.0]     # x: fine\n[ 1.0]     # y: EXPECTATION FAILED at f.c:3\n\
            [ 1.0]     ok 3 z # SKIP no device\n";
        let found = cases(&root, log);
        let found: Vec<_> = found
            .iter()
            .map(|(a, b, outcome)| (&**a, &**b, outcome))
            .collect();
        let why = "[ 1.0]     # y: EXPECTATION FAILED at f.c:3".to_owned();
        assert_eq!(
            found,
            [
                ("c", "(the suite)", &Outcome::Failed("ERROR".to_owned())),
                ("a", "x", &Outcome::Passed),
                ("a", "y", &Outcome::Failed(why)),
                ("a", "z", &Outcome::Skipped("no device".to_owned())),
                ("a", "p", &Outcome::Passed),
            ]
        );
    }
}
