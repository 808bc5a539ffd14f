//! The machine this runs on: its packages and tools, git, the cache, and the person at the
//! terminal. Nothing here knows of the series.

pub mod apt;
pub mod cache;
pub mod git;
pub mod run;
pub mod toolchain;
pub mod ui;

use std::path::PathBuf;

use self::cache::Cache;
use self::ui::Ui;

/// What every part of the program needs.
pub struct Ctx {
    pub root: PathBuf,
    pub cache: Cache,
    pub ui: Ui,
    pub install: bool,
    /// Whether the user puts their name under the series.
    pub signoff: bool,
}
