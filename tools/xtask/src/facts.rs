//! facts.toml, which says what there is to know of this series and its tests.

use std::sync::LazyLock;

use serde::Deserialize;

pub static FACTS: LazyLock<Facts> = LazyLock::new(|| {
    toml::from_str(include_str!("../facts.toml"))
        .unwrap_or_else(|error| panic!("facts.toml: {error}"))
});

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    pub drivers: Vec<String>,
    pub size: Size,
    pub extracts: Extracts,
    pub bench: Bench,
    pub configs: Vec<Config>,
    pub legs: Vec<Leg>,
    pub devices: Vec<Device>,
    pub programs: Vec<Program>,
    pub variants: Vec<Variant>,
}

impl Facts {
    pub fn config(&self, name: &str) -> &Config {
        let found = self.configs.iter().find(|config| config.name == name);
        found.unwrap_or_else(|| panic!("facts.toml has no configuration {name}"))
    }

    /// What the virtual machine boots.
    pub fn vm(&self) -> &Config {
        self.config("vm")
    }

    /// What only has to compile.
    pub fn compiled(&self) -> impl Iterator<Item = &Config> {
        self.configs.iter().filter(|config| config.compile)
    }

    /// The driver that the others are measured by.
    pub fn driver(&self) -> &str {
        &self.drivers[0]
    }

    /// The machine that runs everything.
    pub fn plain(&self) -> &Variant {
        &self.variants[0]
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Size {
    pub rust: String,
    pub c: String,
    pub percent: u64,
}

/// File and function.
pub type Function = (String, String);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extracts {
    pub before: Vec<Function>,
    pub after: Vec<Function>,
    pub stated: Vec<Function>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bench {
    pub program: String,
    pub devices: Vec<String>,
    pub cases: Vec<String>,
    pub chance: String,
    pub programs: String,
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub name: String,
    pub on: Option<String>,
    pub compile: bool,
    pub arch: String,
    pub base: String,
    pub targets: Vec<String>,
    pub parts: Vec<String>,
    pub lines: u64,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            name: String::new(),
            on: None,
            compile: false,
            arch: "x86_64".to_owned(),
            base: "tinyconfig".to_owned(),
            targets: Vec::new(),
            parts: Vec::new(),
            lines: 0,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Leg {
    pub name: String,
    pub arch: String,
    pub args: Option<Vec<String>>,
    #[serde(default)]
    pub lines: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    pub name: String,
    pub id: String,
    pub args: Vec<String>,
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Program {
    pub name: String,
    pub devices: Vec<String>,
    pub limit: u64,
    pub group: String,
    pub once: bool,
    pub guest: bool,
}

impl Default for Program {
    fn default() -> Program {
        Program {
            name: String::new(),
            devices: vec!["igb".to_owned()],
            // The plenty that a program gets on an emulated processor, next to another machine.
            limit: 300,
            group: "devices".to_owned(),
            once: false,
            guest: false,
        }
    }
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Variant {
    /// In front of the names of its tests.
    pub name: String,
    pub config: String,
    /// What QEMU's processor lacks or has on top.
    pub cpu: String,
    /// On the kernel's command line.
    pub options: String,
    /// How many times longer everything may take.
    pub slow: u32,
    /// What it runs, and on which device.
    pub programs: Vec<(String, String)>,
}

impl Default for Variant {
    fn default() -> Variant {
        Variant {
            name: String::new(),
            config: "vm".to_owned(),
            cpu: String::new(),
            options: String::new(),
            slow: 1,
            programs: Vec::new(),
        }
    }
}

impl PartialEq for Variant {
    fn eq(&self, other: &Variant) -> bool {
        self.name == other.name
    }
}
