//! The virtual machines: what the programs in them found.

use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;

use super::parity::Parity;
use super::report::{Outcome, Report};
use super::{Selection, ktap};
use crate::machine::plan::{self, Machine};
use crate::machine::{self, Finished, Vm};

/// One test in the virtual machine, as the summary names it.
pub fn one(vm: &Vm<'_>, label: &str, report: &mut Report) -> Result<()> {
    run(vm, &Selection::new(Some(label)), report)
}

pub fn run(vm: &Vm<'_>, select: &Selection<'_>, report: &mut Report) -> Result<()> {
    let programs = machine::programs(&vm.tests, "_test")?;
    let machines = plan::deal(select.items(&programs));
    for machine in &machines {
        vm.ctx.ui.step(format!(
            "virtual machine `{}`: {} selftests, the devices bound to {}",
            machine.name,
            machine.items.len(),
            machine.driver
        ));
    }
    // Two at a time, each of which keeps a processor busy at most.
    let next = AtomicUsize::new(0);
    let mut ended: Vec<(usize, Result<Finished>)> = std::thread::scope(|scope| {
        let run = || -> Vec<_> {
            std::iter::from_fn(|| {
                let index = next.fetch_add(1, Ordering::Relaxed);
                Some((index, vm.run(machines.get(index)?, "")))
            })
            .collect()
        };
        let running = [scope.spawn(run), scope.spawn(run)];
        let join = |thread: std::thread::ScopedJoinHandle<'_, Vec<_>>| {
            thread.join().expect("a machine's thread does not panic")
        };
        running.into_iter().flat_map(join).collect()
    });
    ended.sort_by_key(|(index, _)| *index);
    let mut parity = Parity::default();
    for (machine, (_, finished)) in machines.iter().zip(ended) {
        read(machine, finished, &mut parity, report);
    }
    parity.report(report);
    Ok(())
}

/// Reports what the programs of a machine printed, whether or not it came to its end.
fn read(machine: &Machine, finished: Result<Finished>, parity: &mut Parity, report: &mut Report) {
    let name = format!("machine `{}`", machine.name);
    let finished = finished.unwrap_or_else(|error| Finished {
        results: String::new(),
        console: String::new(),
        ended: Err(error),
    });
    let clean = machine::splat(&finished.console).map(str::to_owned);
    let runs = ktap::runs(&finished.results);
    report.check("vm", &name, finished.ended);
    for item in &machine.items {
        parity.expect(item);
        let label = item.label();
        let Some(run) = runs.iter().find(|run| run.label == label) else {
            let why = format!("it was not run, see {name}");
            report.add("vm", &label, "(the program)", Outcome::Failed(why));
            continue;
        };
        for (case, outcome) in ktap::cases(run) {
            parity.add(item, &case, &outcome);
            report.add("vm", &label, &case, outcome);
        }
        // Those of a kernel that checks itself say nothing.
        let figures = ktap::figures(run);
        for figure in figures.iter().filter(|_| machine.variant.slow == 1) {
            report.note(format!("{label}: {figure}"));
        }
    }
    let clean = clean.map_or(Outcome::Passed, Outcome::Failed);
    report.add("vm", &name, "no warning in the kernel's log", clean);
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    /// A machine that dies keeps what was found before, and names what was not.
    #[test]
    fn a_crash_keeps_the_results() {
        let programs = ["vfio_a_test", "vfio_b_test", "vfio_c_test"].map(str::to_owned);
        let select = Selection::new(Some("igb"));
        let machine = plan::deal(select.items(&programs)).remove(0);
        let results = "xtask: ready\nxtask: begin igb/vfio_a_test\n1..1\nok 1 x\n\
            xtask: end igb/vfio_a_test 0\nxtask: begin igb/vfio_b_test\n1..2\nok 1 y\n# last words\n";
        let finished = Finished {
            results: results.to_owned(),
            console: "[ 1.0] all well\n".to_owned(),
            ended: Err(anyhow!("QEMU is gone")),
        };
        let mut report = Report::default();
        read(&machine, Ok(finished), &mut Parity::default(), &mut report);
        let text = report.render();
        for line in [
            "FAILED: vm machine `devices`: QEMU is gone\n",
            "FAILED: vm igb/vfio_b_test (the program): it did not end: last words\n",
            "FAILED: vm igb/vfio_c_test (the program): it was not run, see machine `devices`\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
        // x, y, and that there was no warning
        assert!(text.ends_with("\n3 passed, 3 failed\n"), "{text}");
        let mut report = Report::default();
        read(
            &machine,
            Err(anyhow!("no boot")),
            &mut Parity::default(),
            &mut report,
        );
        assert_eq!(report.failed(), 1 + machine.items.len());
    }
}
