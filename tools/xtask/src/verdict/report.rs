//! What the tests found, counted and shown.

use anyhow::Result;

/// How a case ended, and why when it did not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    Failed(String),
    Skipped(String),
}

struct Case {
    stage: &'static str,
    group: String,
    name: String,
    outcome: Outcome,
}

#[derive(Default)]
pub struct Report {
    cases: Vec<Case>,
    notes: Vec<String>,
    tables: Vec<String>,
}

impl Report {
    pub fn add(&mut self, stage: &'static str, group: &str, name: &str, outcome: Outcome) {
        self.cases.push(Case {
            stage,
            group: group.to_owned(),
            name: name.to_owned(),
            outcome,
        });
    }

    /// A case that is one action: its error is the reason of the failure.
    pub fn check<T>(&mut self, stage: &'static str, name: &str, result: Result<T>) -> Option<T> {
        self.case(stage, name, name, result)
    }

    /// The same in a group of cases.
    pub fn case<T>(
        &mut self,
        stage: &'static str,
        group: &str,
        name: &str,
        result: Result<T>,
    ) -> Option<T> {
        let outcome = match &result {
            Ok(_) => Outcome::Passed,
            Err(error) => Outcome::Failed(format!("{error:#}").replace("\nhelp: ", "; ")),
        };
        self.add(stage, group, name, outcome);
        result.ok()
    }

    /// Forgets what is neither of a stage or group of that name nor a failure.
    pub fn keep(&mut self, name: &str) {
        self.cases.retain(|case| {
            let failed = matches!(case.outcome, Outcome::Failed(_));
            failed || [case.stage, &case.group].contains(&name)
        });
    }

    /// Something to know that is no verdict: a measured figure, a warning.
    pub fn note(&mut self, text: String) {
        self.notes.push(text);
    }

    /// A comparison, shown below the counts.
    pub fn table(&mut self, text: String) {
        self.tables.push(text);
    }

    pub fn failed(&self) -> usize {
        self.count(None).1
    }

    pub fn passed(&self) -> usize {
        self.count(None).0
    }

    /// The name of the first case that failed.
    pub fn first_failed(&self) -> Option<&str> {
        let failed = |case: &&Case| matches!(case.outcome, Outcome::Failed(_));
        self.cases
            .iter()
            .find(failed)
            .map(|case| case.name.as_str())
    }

    /// Passed, failed and skipped cases of a group, or of all.
    fn count(&self, of: Option<(&str, &str)>) -> (usize, usize, usize) {
        let mut counts = (0, 0, 0);
        let ours = |case: &&Case| of.is_none_or(|of| of == (case.stage, case.group.as_str()));
        for case in self.cases.iter().filter(ours) {
            match case.outcome {
                Outcome::Passed => counts.0 += 1,
                Outcome::Failed(_) => counts.1 += 1,
                Outcome::Skipped(_) => counts.2 += 1,
            }
        }
        counts
    }

    /// The table, the notes, the reasons, and the count as the last line.
    pub fn render(&self) -> String {
        let mut groups: Vec<(&str, &str)> = Vec::new();
        for case in &self.cases {
            if !groups.contains(&(case.stage, &case.group)) {
                groups.push((case.stage, &case.group));
            }
        }
        let width = groups.iter().map(|(_, group)| group.len()).max();
        let width = width.unwrap_or(0).max(4);
        let mut out = format!(
            "{:12}  {:width$}  passed  failed  skipped\n",
            "stage", "test"
        );
        for (stage, group) in groups {
            let (passed, failed, skipped) = self.count(Some((stage, group)));
            out += &format!("{stage:12}  {group:width$}  {passed:>6}  {failed:>6}  {skipped:>7}\n");
        }
        for table in &self.tables {
            out += &format!("\n{table}\n");
        }
        for note in &self.notes {
            out += &format!("note: {note}\n");
        }
        for Case {
            stage,
            group,
            name,
            outcome,
        } in &self.cases
        {
            let (word, why) = match outcome {
                Outcome::Passed => continue,
                Outcome::Failed(why) => ("FAILED", why),
                Outcome::Skipped(why) => ("skipped", why),
            };
            let name = match name == group {
                true => String::new(),
                false => format!(" {name}"),
            };
            out += &format!("{word}: {stage} {group}{name}: {why}\n");
        }
        let (passed, failed, skipped) = self.count(None);
        let skipped = match skipped {
            0 => String::new(),
            n => format!(", {n} skipped"),
        };
        out + &format!("{passed} passed, {failed} failed{skipped}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_line_is_the_count() {
        let mut report = Report::default();
        report.add("vm", "igb/x", "a", Outcome::Passed);
        report.add("vm", "igb/x", "b", Outcome::Failed("why".to_owned()));
        assert!(report.render().ends_with("\n1 passed, 1 failed\n"));
        assert!(report.render().contains("FAILED: vm igb/x b: why\n"));
        report.add("vm", "igb/x", "c", Outcome::Skipped("no".to_owned()));
        assert!(
            report
                .render()
                .ends_with("\n1 passed, 1 failed, 1 skipped\n")
        );
        assert_eq!(report.failed(), 1);
    }
}
