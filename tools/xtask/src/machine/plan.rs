//! What runs where: the programs, devices and drivers of each virtual machine.
//!
//! The names that this series gives to tests and drivers are here.

use std::time::Duration;

use crate::kernel::{Config, DEBUG, VM};
use crate::machine;

/// The drivers that the devices are bound to, the one that others are measured by first.
pub const DRIVERS: &[&str] = &["vfio-pci", "rust_vfio_pci"];

/// The module of the driver in Rust, and that of the one in C which does the same.
pub const MODULES: [&str; 2] = [
    "samples/rust/rust_vfio_pci.ko",
    "drivers/vfio/pci/vfio-pci.ko",
];

/// The one selftest that drives a device, and is written for this one.
const DRIVER_TEST: &str = "vfio_pci_driver_test";
/// The one that takes devices from their driver and gives them back.
const BIND_TEST: &str = "vfio_pci_bind_test";
/// What runs on every device; the tree's own tests need what only a real function has.
pub const PLACEMENT_TEST: &str = "vfio_pci_mmap_placement_test";
/// What does things to parts of a large BAR's mapping. A kernel that does them wrong goes down.
const SPLIT_TEST: &str = "vfio_pci_leaf_split_test";
/// What needs a device that reports errors.
const AER_TEST: &str = "vfio_pci_aer_test";
/// What exports BARs, to which igb does DMA.
const DMABUF_TEST: &str = "vfio_pci_dmabuf_test";
/// What loads a driver of its own, and so needs no device.
const RUST_TEST: &str = "vfio_rust_mem_test";
/// What binds pci-testdev to drivers itself.
const TESTDEV_TEST: &str = "vfio_rust_pci_testdev_test";
const COST_TEST: &str = "vfio_pci_cost_test";
const NO_DEVICE: &str = "kernel";

/// The plenty that a program gets on an emulated processor, next to another machine.
const LIMIT: Duration = Duration::from_secs(300);
/// For those that reset or bind the device hundreds of times, half a second or more each.
const LONG_LIMIT: Duration = Duration::from_secs(900);

/// A kind of virtual machine.
pub struct Variant {
    /// In front of the names of its tests; empty for the one that runs everything.
    pub name: &'static str,
    pub config: &'static Config,
    /// What QEMU's processor lacks or has on top.
    pub cpu: &'static str,
    /// On the kernel's command line.
    pub options: &'static str,
    /// How many times longer everything may take.
    pub slow: u32,
    /// What it runs, and on which devices.
    programs: &'static [(&'static str, &'static [&'static str])],
}

impl PartialEq for Variant {
    fn eq(&self, other: &Variant) -> bool {
        self.name == other.name
    }
}

const EVERYTHING: Variant = Variant {
    name: "",
    config: &VM,
    cpu: "",
    options: "",
    slow: 1,
    programs: &[],
};

pub static PLAIN: Variant = EVERYTHING;

/// What is no different with another driver.
static OTHERS: &[Variant] = &[
    // The kernel checks itself, which finds what no program can see.
    Variant {
        name: "debug",
        config: &DEBUG,
        // 7.3.4's vfio-pci-core removes virtual functions without pci_rescan_remove_lock when it
        // loses the device, of which lockdep warns.
        options: "vfio_pci.enable_sriov=0",
        slow: 4,
        programs: &[
            (machine::KUNIT, &[NO_DEVICE]),
            (RUST_TEST, &[NO_DEVICE]),
            (PLACEMENT_TEST, &["testdev"]),
            (BIND_TEST, &["igb"]),
            (DMABUF_TEST, &["igb"]),
            (SPLIT_TEST, &["testdev"]),
        ],
        ..EVERYTHING
    },
    // Without 1 GiB pages, by the processor and by the user's will
    Variant {
        name: "no-pdpe1gb",
        cpu: ",-pdpe1gb",
        programs: &[(PLACEMENT_TEST, &["testdev"])],
        ..EVERYTHING
    },
    Variant {
        name: "nogbpages",
        options: "nogbpages",
        programs: &[(PLACEMENT_TEST, &["testdev"])],
        ..EVERYTHING
    },
];

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
}

impl Item {
    /// What the program does on the device, whatever the driver.
    pub fn test(&self) -> String {
        format!("{}/{}", self.device, self.program)
    }

    pub fn label(&self) -> String {
        let variant = Some(self.variant.name).filter(|name| !name.is_empty());
        let driver = Some(self.driver).filter(|driver| *driver != DRIVERS[0]);
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

/// The devices that a selftest runs on, or the one that stands for none.
fn devices(program: &str) -> Vec<&'static str> {
    let all = || machine::DEVICES.iter().map(|device| device.name);
    match program {
        RUST_TEST => vec![NO_DEVICE],
        PLACEMENT_TEST => all().filter(|device| *device != "rng").collect(),
        SPLIT_TEST => vec!["testdev", "ivshmem"],
        AER_TEST => vec!["rng"],
        DMABUF_TEST => vec!["igb", "ivshmem"],
        TESTDEV_TEST | COST_TEST => vec!["testdev"],
        _ => all().filter(|device| *device == "igb").collect(),
    }
}

fn limit(program: &str) -> Duration {
    match program {
        DRIVER_TEST | BIND_TEST | SPLIT_TEST | PLACEMENT_TEST => LONG_LIMIT,
        _ => LIMIT,
    }
}

/// What runs where, of the selftests that there are.
pub fn items(programs: &[String]) -> Vec<Item> {
    let mut plan = Vec::new();
    let mut add = |variant: &'static Variant, driver, device, program: &str| {
        plan.push(Item {
            variant,
            driver,
            device,
            program: program.to_owned(),
            limit: limit(program) * variant.slow,
        });
    };
    for &driver in DRIVERS {
        for program in programs {
            // Some do not ask for the driver that the device is bound to.
            let any = [RUST_TEST, TESTDEV_TEST, COST_TEST].contains(&program.as_str());
            if any && driver != DRIVERS[0] {
                continue;
            }
            for device in devices(program) {
                add(&PLAIN, driver, device, program);
            }
        }
        add(&PLAIN, driver, NO_DEVICE, machine::KMEMLEAK);
    }
    add(&PLAIN, DRIVERS[0], NO_DEVICE, machine::KUNIT);
    for variant in OTHERS {
        for (program, devices) in variant.programs {
            let there =
                |name: &str| name == machine::KUNIT || programs.iter().any(|one| one == name);
            for device in devices.iter().filter(|_| there(program)) {
                add(variant, DRIVERS[0], device, program);
            }
        }
    }
    plan
}

/// Deals the items out to machines: the driver's test is alone, since it takes minutes that it
/// sleeps through, and so are those that take the device away, with kmemleak to watch them, and
/// those that may take the kernel down.
pub fn deal(items: Vec<Item>) -> Vec<Machine> {
    let (mut items, others): (Vec<Item>, Vec<Item>) =
        items.into_iter().partition(|item| *item.variant == PLAIN);
    let mut machines = Vec::new();
    for group in ["driver", "removal", "split", "devices"] {
        for &driver in DRIVERS {
            let (ours, rest) = items.into_iter().partition(|item: &Item| {
                item.driver == driver
                    && match group {
                        "driver" => item.program == DRIVER_TEST,
                        "removal" => {
                            [BIND_TEST, machine::KMEMLEAK].contains(&item.program.as_str())
                        }
                        "split" => item.program == SPLIT_TEST,
                        _ => true,
                    }
            });
            items = rest;
            let name = match driver {
                first if first == DRIVERS[0] => group.to_owned(),
                _ => format!("{driver}-{group}"),
            };
            machines.push(Machine {
                name,
                variant: &PLAIN,
                driver,
                items: ours,
            });
        }
    }
    machines.extend(OTHERS.iter().map(|variant| {
        Machine {
            name: variant.name.to_owned(),
            variant,
            driver: DRIVERS[0],
            items: others
                .iter()
                .filter(|item| item.variant == variant)
                .cloned()
                .collect(),
        }
    }));
    machines.retain(|machine| !machine.items.is_empty());
    // The one that takes longest first
    machines.sort_by_key(|machine| std::cmp::Reverse(machine.variant.slow));
    machines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placement_runs_on_every_device() {
        let programs = [PLACEMENT_TEST.to_owned(), DRIVER_TEST.to_owned()];
        let plan = items(&programs);
        let labels: Vec<String> = plan.iter().map(Item::label).collect();
        // Three devices have BARs to place, the driver's test is for one, and kmemleak's results and
        // KUnit's are of the kernel.
        let tests = 3 + 1 + 1;
        let plain = plan.iter().filter(|item| *item.variant == PLAIN).count();
        assert_eq!(plain, DRIVERS.len() * tests + 1);
        assert!(labels.contains(&"kernel/kunit".to_owned()));
        assert!(labels.contains(&"debug/kernel/kunit".to_owned()));
        assert!(labels.contains(&format!("nogbpages/testdev/{PLACEMENT_TEST}")));
        assert!(labels.contains(&format!("ivshmem/{PLACEMENT_TEST}")));
        assert!(labels.contains(&format!("igb/{DRIVER_TEST}")));
        assert!(!labels.iter().any(|label| label.contains(SPLIT_TEST)));
    }

    #[test]
    fn every_item_is_dealt_to_one_machine() {
        let programs = [
            PLACEMENT_TEST,
            DRIVER_TEST,
            BIND_TEST,
            SPLIT_TEST,
            RUST_TEST,
        ];
        let plan = items(&programs.map(str::to_owned));
        let machines = deal(plan.clone());
        let dealt: usize = machines.iter().map(|machine| machine.items.len()).sum();
        assert_eq!(dealt, plan.len());
        assert_eq!(machines[0].name, "debug");
        for machine in &machines {
            let alike =
                |item: &Item| item.driver == machine.driver && item.variant == machine.variant;
            assert!(machine.items.iter().all(alike));
        }
    }

    #[test]
    fn labels_name_the_driver_that_is_measured() {
        let item = |driver| Item {
            variant: &PLAIN,
            driver,
            device: "igb",
            program: "a".to_owned(),
            limit: Duration::ZERO,
        };
        assert_eq!(item(DRIVERS[0]).label(), "igb/a");
        assert_eq!(item("other").label(), "other/igb/a");
    }
}
