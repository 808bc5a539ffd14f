//! `cargo xtask bench`: the unpatched base next to the series, in figures that the placement
//! selftest prints. Nothing here is a verdict.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, anyhow};

use super::ktap;
use crate::facts::{Bench, FACTS};
use crate::host::Ctx;
use crate::host::toolchain::{Purpose, Toolchain};
use crate::kernel::Kernel;
use crate::machine::Vm;
use crate::machine::plan::{Item, Machine};
use crate::series::Assembled;

/// How many times each of the two kernels boots; every other boot measures the devices the other
/// way round.
const BOOTS: usize = 5;

/// What was measured under a name, by kernel.
type Figures = BTreeMap<String, [Vec<f64>; 2]>;

pub fn bench(ctx: &Ctx, base: Option<&Path>) -> Result<()> {
    let all = Assembled::on(ctx, base)?;
    let toolchain = Toolchain::open(ctx, &all.tree, &[Purpose::Build, Purpose::Vm])?;
    let (repo, dir) = (&all.base.repo, &all.base.dir);
    let tree = repo.worktree(&dir.join("base"), &all.base.commit)?;
    let series = Kernel::new(ctx, &toolchain, &all);
    let unpatched = Kernel {
        ctx,
        toolchain: &toolchain,
        tree: &tree,
        objects: dir.join("obj-base"),
        whole: false,
    };
    ctx.ui
        .step("building the kernel of the base, and with the series");
    series.bootable(FACTS.vm())?;
    unpatched.bootable(FACTS.vm())?;
    let tests = series.selftests()?;
    let kernels = [
        ("base", Vm::new(&unpatched, tests.clone())),
        ("series", Vm::new(&series, tests)),
    ];
    let Bench {
        cases,
        chance,
        programs,
        ..
    } = &FACTS.bench;
    let mut figures = Figures::new();
    for boot in 0..BOOTS {
        for (column, (name, vm)) in kernels.iter().enumerate() {
            ctx.ui.step(format!("{name}: boot {} of {BOOTS}", boot + 1));
            for (item, run) in measure(vm, name, boot, cases, "")? {
                for (what, value) in ktap::figures(&run).iter().flat_map(|text| values(text)) {
                    let place = place(boot, item.device, &what);
                    let name = format!("{}, {what}{place}", item.device);
                    figures.entry(name).or_default()[column].push(value);
                }
            }
        }
    }
    print!("{}", table(&figures));
    for (name, vm) in &kernels {
        ctx.ui.step(format!("{name}: chance"));
        let chance = std::slice::from_ref(chance);
        for (item, run) in measure(vm, name, 0, chance, programs)? {
            for text in ktap::said(&run) {
                println!("{name}, {}: {text}", item.device);
            }
        }
    }
    Ok(())
}

/// Boots a kernel and runs cases of the selftest on each device.
fn measure(
    vm: &Vm<'_>,
    name: &str,
    boot: usize,
    cases: &[String],
    options: &str,
) -> Result<Vec<(Item, ktap::Run)>> {
    let Bench {
        program, devices, ..
    } = &FACTS.bench;
    let mut items = Vec::new();
    for at in 0..devices.len() {
        let device = &devices[(at + boot) % devices.len()];
        for case in cases {
            let program = format!("{program} -t {case}");
            items.push(Item::new(FACTS.plain(), FACTS.driver(), device, &program));
        }
    }
    let machine = Machine {
        name: format!("bench-{name}"),
        variant: FACTS.plain(),
        driver: FACTS.driver(),
        items,
    };
    let finished = vm.run(&machine, options)?;
    finished.ended?;
    let mut runs = ktap::runs(&finished.results);
    let mut found = Vec::new();
    for item in machine.items {
        let label = item.label();
        let at = runs.iter().position(|run| run.label == label);
        let at = at.ok_or_else(|| anyhow!("{label} was not run on the {name} kernel"))?;
        found.push((item, runs.swap_remove(at)));
    }
    Ok(found)
}

/// Whether a device is the boot's first can matter where the first use makes something for all.
fn place(boot: usize, device: &str, what: &str) -> &'static str {
    let devices = &FACTS.bench.devices;
    match what.contains("MAP_DMA") {
        true if devices[boot % devices.len()] == device => ", first device of the boot",
        true => ", second device of the boot",
        false => "",
    }
}

/// The figures of a line, by name: `BAR2, 4096 bytes, single pages: 2 faults in 3.1 ms, ..`.
fn values(line: &str) -> Vec<(String, f64)> {
    let (subject, rest) = line.rsplit_once(": ").unwrap_or(("", line));
    let subject = subject
        .rsplit_once("bytes")
        .map_or(subject, |(_, name)| name);
    let subject = subject.trim_matches([',', ' ']);
    let mut found = Vec::new();
    let mut of = String::new();
    for piece in rest.split(", ") {
        let mut words: Vec<&str> = Vec::new();
        let mut pending = None;
        for word in piece.split(' ') {
            let unit = ["ms", "us", "ns"].contains(&word);
            match (word.parse::<f64>(), pending.take()) {
                (Ok(number), _) => pending = Some(number),
                (Err(_), Some(number)) => {
                    let name = match unit {
                        true => format!("{} {word}", words.join(" ")),
                        false => word.to_owned(),
                    };
                    // `again` is the one before again.
                    let again = name.starts_with("again");
                    let of = if again {
                        format!("{of} ")
                    } else {
                        String::new()
                    };
                    found.push((format!("{subject}: {of}{name}"), number));
                    words.push(word);
                }
                (Err(_), None) => words.push(word),
            }
        }
        of = words.first().unwrap_or(&"").to_string();
    }
    found
}

/// Median and extremes of each figure with both kernels, and how they relate.
fn table(figures: &Figures) -> String {
    let width = figures.keys().map(String::len).max().unwrap_or(0);
    let head = "median (least..most)";
    let mut out = format!(
        "{:width$}  {:>36}  {:>36}  {:>9}\n",
        "",
        format!("base: {head}"),
        format!("series: {head}"),
        "ratio"
    );
    for (name, both) in figures {
        let [base, series] = both.each_ref().map(|values| spread(values));
        let cell = |spread: &Option<[f64; 3]>| match spread {
            Some([least, median, most]) => format!(
                "{} ({}..{})",
                digits(*median),
                digits(*least),
                digits(*most)
            ),
            None => "-".to_owned(),
        };
        let ratio = match (base, series) {
            (Some([_, base, _]), Some([_, series, _])) if series > 0.0 => digits(base / series),
            _ => "-".to_owned(),
        };
        out += &format!(
            "{name:width$}  {:>36}  {:>36}  {ratio:>9}\n",
            cell(&base),
            cell(&series)
        );
    }
    out
}

/// The least, the median and the most.
fn spread(values: &[f64]) -> Option<[f64; 3]> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let median = (sorted.get(sorted.len() / 2)? + sorted[(sorted.len() - 1) / 2]) / 2.0;
    Some([sorted[0], median, sorted[sorted.len() - 1]])
}

/// Counts as they are, and three digits of what is small.
fn digits(value: f64) -> String {
    match value {
        _ if value.fract() == 0.0 || value >= 100.0 => format!("{value:.0}"),
        _ if value >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_a_line() {
        let line = "BAR2, 4096 bytes, single pages: MAP_DMA in 2.5 ms, again in 0.25 ms";
        assert_eq!(
            values(line),
            [
                ("single pages: MAP_DMA in ms".to_owned(), 2.5),
                ("single pages: MAP_DMA again in ms".to_owned(), 0.25),
            ]
        );
        let line = "BAR2, 4096 bytes, placed by the kernel: 2 faults in 3 ms";
        assert_eq!(
            values(line),
            [
                ("placed by the kernel: faults".to_owned(), 2.0),
                ("placed by the kernel: faults in ms".to_owned(), 3.0),
            ]
        );
        let line = "BAR2, 4096 bytes, no hint: mmap() and munmap() in 18 ns";
        assert_eq!(
            values(line),
            [("no hint: mmap() and munmap() in ns".to_owned(), 18.0)]
        );
    }

    #[test]
    fn median_and_extremes() {
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Some([1.0, 2.0, 3.0]));
        assert_eq!(spread(&[1.0, 2.0]), Some([1.0, 1.5, 2.0]));
        assert_eq!(spread(&[]), None);
    }

    #[test]
    fn both_orders_are_told_apart() {
        let what = "x: MAP_DMA in ms";
        assert_ne!(place(0, "testdev", what), place(1, "testdev", what));
        assert_eq!(place(0, "testdev", "x: faults"), "");
    }
}
