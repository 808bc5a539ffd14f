//! What the tests found, counted and shown.

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
    pub fn check<T>(
        &mut self,
        stage: &'static str,
        name: &str,
        result: miette::Result<T>,
    ) -> Option<T> {
        match result {
            Ok(value) => {
                self.add(stage, name, name, Outcome::Passed);
                Some(value)
            }
            Err(report) => {
                let why = report
                    .chain()
                    .map(|error| error.to_string())
                    .collect::<Vec<_>>()
                    .join(": ");
                let help = report
                    .help()
                    .map(|help| format!(" ({help})"))
                    .unwrap_or_default();
                self.add(stage, name, name, Outcome::Failed(format!("{why}{help}")));
                None
            }
        }
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
        for case in self
            .cases
            .iter()
            .filter(|case| of.is_none_or(|of| of == (case.stage, case.group.as_str())))
        {
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
        let width = groups
            .iter()
            .map(|(_, group)| group.len())
            .max()
            .unwrap_or(0)
            .max(4);
        let mut out = format!(
            "{:12}  {:width$}  passed  failed  skipped\n",
            "stage", "test"
        );
        for group in groups {
            let (passed, failed, skipped) = self.count(Some(group));
            out.push_str(&format!(
                "{:12}  {:width$}  {passed:>6}  {failed:>6}  {skipped:>7}\n",
                group.0, group.1
            ));
        }
        for table in &self.tables {
            out.push_str(&format!("\n{table}\n"));
        }
        for note in &self.notes {
            out.push_str(&format!("note: {note}\n"));
        }
        for case in &self.cases {
            let (word, why) = match &case.outcome {
                Outcome::Passed => continue,
                Outcome::Failed(why) => ("FAILED", why),
                Outcome::Skipped(why) => ("skipped", why),
            };
            let name = if case.name == case.group {
                String::new()
            } else {
                format!(" {}", case.name)
            };
            out.push_str(&format!(
                "{word}: {} {}{name}: {why}\n",
                case.stage, case.group
            ));
        }
        let (passed, failed, skipped) = self.count(None);
        out.push_str(&format!("{passed} passed, {failed} failed"));
        if skipped > 0 {
            out.push_str(&format!(", {skipped} skipped"));
        }
        out.push('\n');
        out
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
