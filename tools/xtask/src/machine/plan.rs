//! What runs where: the programs, devices and drivers of each virtual machine.

use std::time::Duration;

use crate::facts::{FACTS, Program, Variant};

/// The program that reports the memory that was lost by those before it. A machine that has it
/// keeps track, which takes time.
pub const KMEMLEAK: &str = "kmemleak";

/// One program on one device.
#[derive(Clone)]
pub struct Item {
    pub variant: &'static Variant,
    /// What all devices of the machine are bound to.
    pub driver: &'static str,
    pub device: &'static str,
    /// With its arguments, if any.
    pub program: String,
    pub limit: Duration,
    /// What it shares a machine with.
    group: &'static str,
}

impl Item {
    pub fn new(
        variant: &'static Variant,
        driver: &'static str,
        device: &'static str,
        program: &str,
    ) -> Item {
        let facts = facts(program.split(' ').next().unwrap_or_default());
        Item {
            variant,
            driver,
            device,
            program: program.to_owned(),
            limit: Duration::from_secs(facts.limit) * variant.slow,
            group: &facts.group,
        }
    }

    /// What the program does on the device, whatever the driver.
    pub fn test(&self) -> String {
        format!("{}/{}", self.device, self.program)
    }

    pub fn label(&self) -> String {
        let variant = Some(self.variant.name.as_str()).filter(|name| !name.is_empty());
        let driver = Some(self.driver).filter(|driver| *driver != FACTS.driver());
        let parts = variant.into_iter().chain(driver);
        let parts: String = parts.map(|part| format!("{part}/")).collect();
        // One word, with the arguments
        (parts + &self.test()).replace(' ', "+")
    }
}

/// A virtual machine, and what it runs.
pub struct Machine {
    pub name: String,
    pub variant: &'static Variant,
    /// What its devices are bound to.
    pub driver: &'static str,
    pub items: Vec<Item>,
}

/// What is known of a program; the tree's own selftests are all alike.
fn facts(program: &str) -> &'static Program {
    static OTHER: std::sync::LazyLock<Program> = std::sync::LazyLock::new(Program::default);
    let found = FACTS.programs.iter().find(|facts| facts.name == program);
    found.unwrap_or(&OTHER)
}

/// What runs where, of the selftests that there are.
pub fn items(selftests: &[String]) -> Vec<Item> {
    let guest = FACTS.programs.iter().filter(|program| program.guest);
    let programs: Vec<&str> = selftests
        .iter()
        .chain(guest.map(|program| &program.name))
        .map(String::as_str)
        .collect();
    let mut plan = Vec::new();
    for driver in &FACTS.drivers {
        for program in &programs {
            let facts = facts(program);
            if facts.once && driver != FACTS.driver() {
                continue;
            }
            let item = |device| Item::new(FACTS.plain(), driver, device, program);
            plan.extend(facts.devices.iter().map(|device| item(device)));
        }
    }
    for variant in &FACTS.variants {
        let there = variant
            .programs
            .iter()
            .filter(|(program, _)| programs.contains(&program.as_str()));
        plan.extend(
            there.map(|(program, device)| Item::new(variant, FACTS.driver(), device, program)),
        );
    }
    plan
}

/// Deals the items out to machines, one for each variant, driver and group.
pub fn deal(items: Vec<Item>) -> Vec<Machine> {
    let mut machines: Vec<Machine> = Vec::new();
    for item in items {
        let plain = item.variant == FACTS.plain();
        let name = match (plain, item.driver == FACTS.driver()) {
            (true, true) => item.group.to_owned(),
            (true, false) => format!("{}-{}", item.driver, item.group),
            (false, _) => item.variant.name.clone(),
        };
        match machines.iter_mut().find(|machine| machine.name == name) {
            Some(machine) => machine.items.push(item),
            None => machines.push(Machine {
                name,
                variant: item.variant,
                driver: item.driver,
                items: vec![item],
            }),
        }
    }
    // The one that takes longest first, and what sleeps for minutes next to the others.
    let group = |machine: &Machine| {
        FACTS
            .programs
            .iter()
            .position(|one| one.group == machine.items[0].group)
    };
    machines.sort_by_key(|machine| {
        let slow = std::cmp::Reverse(machine.variant.slow);
        (
            slow,
            machine.variant != FACTS.plain(),
            group(machine)
                .filter(|_| machine.items[0].group != "devices")
                .unwrap_or(usize::MAX),
        )
    });
    machines
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACEMENT: &str = "vfio_pci_mmap_placement_test";
    const DRIVER: &str = "vfio_pci_driver_test";
    const SPLIT: &str = "vfio_pci_leaf_split_test";

    #[test]
    fn placement_runs_on_every_device() {
        let plan = items(&[PLACEMENT, DRIVER].map(str::to_owned));
        let labels: Vec<String> = plan.iter().map(Item::label).collect();
        // Three devices have BARs to place, the driver's test is for one, and kmemleak's results and
        // KUnit's are of the kernel.
        let tests = 3 + 1 + 1;
        let plain = plan.iter().filter(|item| item.variant == FACTS.plain());
        assert_eq!(plain.count(), FACTS.drivers.len() * tests + 1);
        for label in [
            "kernel/kunit".to_owned(),
            "debug/kernel/kunit".to_owned(),
            format!("nogbpages/testdev/{PLACEMENT}"),
            format!("ivshmem/{PLACEMENT}"),
            format!("igb/{DRIVER}"),
        ] {
            assert!(labels.contains(&label), "{label}");
        }
        assert!(!labels.iter().any(|label| label.contains(SPLIT)));
    }

    #[test]
    fn every_item_is_dealt_to_one_machine() {
        let plan = items(&[PLACEMENT, DRIVER, SPLIT, "vfio_pci_bind_test"].map(str::to_owned));
        let machines = deal(plan.clone());
        let dealt: usize = machines.iter().map(|machine| machine.items.len()).sum();
        assert_eq!(dealt, plan.len());
        let names: Vec<&str> = machines
            .iter()
            .map(|machine| machine.name.as_str())
            .collect();
        assert_eq!(names[..3], ["debug", "driver", "rust_vfio_pci-driver"]);
        for machine in &machines {
            let alike =
                |item: &Item| item.driver == machine.driver && item.variant == machine.variant;
            assert!(machine.items.iter().all(alike));
        }
    }

    #[test]
    fn labels_name_the_driver_that_is_measured() {
        let label = |driver| Item::new(FACTS.plain(), driver, "igb", "a -t b").label();
        assert_eq!(label(FACTS.driver()), "igb/a+-t+b");
        assert_eq!(label("other"), "other/igb/a+-t+b");
    }

    #[test]
    fn facts_agree_with_each_other() {
        for variant in &FACTS.variants {
            FACTS.config(&variant.config);
            for (program, device) in &variant.programs {
                assert!(
                    FACTS.programs.iter().any(|one| one.name == *program),
                    "{program}"
                );
                let known =
                    device == "kernel" || FACTS.devices.iter().any(|one| one.name == *device);
                assert!(known, "{device}");
            }
        }
        for leg in FACTS.legs.iter().filter(|leg| leg.args.is_none()) {
            assert_eq!(FACTS.config(&leg.name).arch, leg.arch);
        }
    }
}
