//! Whether the selftests find a difference between the driver in C and another one.

use std::collections::BTreeMap;

use super::report::{Outcome, Report};
use crate::facts::FACTS;
use crate::machine::plan::Item;

/// The outcomes of each test by driver, each by case.
#[derive(Default)]
pub struct Parity(BTreeMap<String, BTreeMap<&'static str, Cases>>);

type Cases = BTreeMap<String, Outcome>;

impl Parity {
    /// What is going to be run.
    pub fn expect(&mut self, item: &Item) -> Option<&mut Cases> {
        let plain = item.variant == FACTS.plain();
        plain.then(|| {
            self.0
                .entry(item.test())
                .or_default()
                .entry(item.driver)
                .or_default()
        })
    }

    pub fn add(&mut self, item: &Item, case: &str, outcome: &Outcome) {
        if let Some(cases) = self.expect(item) {
            cases.insert(case.to_owned(), outcome.clone());
        }
    }

    /// A table, and for each test the cases that end otherwise than with the first driver.
    pub fn report(&self, report: &mut Report) {
        let mut table = String::new();
        for (test, drivers) in &self.0 {
            let Some(first) = drivers.get(FACTS.driver()) else {
                continue;
            };
            for (driver, cases) in drivers
                .iter()
                .filter(|(driver, _)| **driver != FACTS.driver())
            {
                let label = format!("{driver}/{test}");
                let different = differences(first, cases);
                let verdict = if different.is_empty() {
                    let name = format!("the same outcome in {} cases", first.len());
                    report.add("parity", &label, &name, Outcome::Passed);
                    "equal"
                } else if first.is_empty() || cases.is_empty() {
                    "missing"
                } else {
                    "different"
                };
                table += &row([&label, &counts(first), &counts(cases), verdict]);
                for (case, why) in different {
                    report.add("parity", &label, &case, Outcome::Failed(why));
                }
            }
        }
        if !table.is_empty() {
            let with = format!("with {}", FACTS.driver());
            let head = row(["passed/failed/skipped", &with, "otherwise", "outcomes"]);
            report.table(head + &table);
        }
    }
}

fn row([test, first, other, verdict]: [&str; 4]) -> String {
    format!("{test:56}  {first:>14}  {other:>10}  {verdict}\n")
}

/// The cases that do not end alike, and how.
fn differences(first: &Cases, other: &Cases) -> Vec<(String, String)> {
    let with = FACTS.driver();
    if first.is_empty() && other.is_empty() {
        return vec![(
            "(the program)".to_owned(),
            "not run with either driver".to_owned(),
        )];
    }
    let mut found = Vec::new();
    for (name, outcome) in first {
        let was = word(outcome);
        if let Some(is) = other.get(name).map(word).filter(|is| *is != was) {
            found.push((name.clone(), format!("{is}, but {was} with {with}")));
        }
    }
    for (has, lacks, why) in [
        (other, first, format!("run, but not with {with}")),
        (first, other, format!("not run, but with {with}")),
    ] {
        // A program that ends early has one reason for all that it leaves out.
        let names: Vec<&String> = has
            .keys()
            .filter(|name| !lacks.contains_key(*name))
            .collect();
        let all = match names[..] {
            [] => continue,
            [one] => one.clone(),
            [one, ..] => format!("{one} and {} more", names.len() - 1),
        };
        found.push((all, why));
    }
    found
}

fn word(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Passed => "passed",
        Outcome::Failed(_) => "failed",
        Outcome::Skipped(_) => "skipped",
    }
}

/// How many cases passed, failed and were skipped.
fn counts(cases: &Cases) -> String {
    let count = |wanted: &str| cases.values().filter(|case| word(case) == wanted).count();
    ["passed", "failed", "skipped"]
        .map(|wanted| count(wanted).to_string())
        .join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cases(list: &[(&str, Outcome)]) -> Cases {
        let own = |(name, outcome): &(&str, Outcome)| (name.to_string(), outcome.clone());
        list.iter().map(own).collect()
    }

    fn failed(why: &str) -> Outcome {
        Outcome::Failed(why.to_owned())
    }

    #[test]
    fn every_difference_is_found() {
        let first = cases(&[
            ("a", Outcome::Passed),
            ("b", Outcome::Passed),
            ("c", failed("x")),
            ("d", Outcome::Passed),
            ("f", Outcome::Passed),
        ]);
        let other = cases(&[
            ("a", Outcome::Passed),
            ("b", Outcome::Skipped("why".to_owned())),
            ("c", failed("y")),
            ("e", Outcome::Passed),
        ]);
        let found = differences(&first, &other);
        let found: Vec<(&str, &str)> = found.iter().map(|(a, b)| (&**a, &**b)).collect();
        assert_eq!(
            found,
            [
                ("b", "skipped, but passed with vfio-pci"),
                ("e", "run, but not with vfio-pci"),
                ("d and 1 more", "not run, but with vfio-pci"),
            ]
        );
        assert!(differences(&first, &first).is_empty());
        assert_eq!(counts(&first), "4/1/0");
    }

    #[test]
    fn a_difference_is_a_failure() {
        let item = |driver| Item::new(FACTS.plain(), driver, "igb", "a");
        let mut parity = Parity::default();
        parity.add(&item(FACTS.driver()), "x", &Outcome::Passed);
        let mut report = Report::default();
        parity.report(&mut report);
        assert_eq!(
            (report.failed(), report.render().contains("equal")),
            (0, false)
        );
        parity.add(&item("other"), "x", &Outcome::Passed);
        parity.report(&mut report);
        assert_eq!(
            (report.failed(), report.render().contains("equal")),
            (0, true)
        );
        parity.add(&item("other"), "x", &failed("why"));
        parity.report(&mut report);
        assert_eq!(report.failed(), 1);
    }

    #[test]
    fn a_row_that_is_missing_is_a_failure() {
        let item = |driver| Item::new(FACTS.plain(), driver, "igb", "a");
        let mut parity = Parity::default();
        parity.add(&item(FACTS.driver()), "x", &Outcome::Passed);
        parity.expect(&item("other"));
        let mut report = Report::default();
        parity.report(&mut report);
        let text = report.render();
        assert!(text.contains("missing\n"), "{text}");
        assert!(
            text.contains("FAILED: parity other/igb/a x: not run, but with vfio-pci\n"),
            "{text}"
        );
    }
}
