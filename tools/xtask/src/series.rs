//! The series: the overlay as commits on a base, what is exported of it, and what comes back.

pub mod assembly;
pub mod b4;
pub mod base;
pub mod checkout;
pub mod export;
pub mod overlay;
pub mod refresh;
#[cfg(test)]
mod tests;

use std::path::Path;

use anyhow::Result;

use self::assembly::Made;
use self::base::Base;
use self::overlay::{Delivery, Series};
use crate::host::Ctx;
use crate::host::git::{Identity, Repo};
use crate::host::toolchain::{self, Purpose};

/// The series as commits on a base, and a worktree of them.
pub struct Assembled {
    pub base: Base,
    pub series: Series,
    pub identity: Identity,
    pub made: Vec<Made>,
    pub tree: Repo,
}

impl Assembled {
    pub fn on(ctx: &Ctx, base: Option<&Path>) -> Result<Assembled> {
        Assembled::open(ctx, || Base::open(ctx, base))
    }

    /// On the base that there is a checkout of.
    pub fn of_checkout(ctx: &Ctx, base: Option<&Path>) -> Result<Assembled> {
        Assembled::open(ctx, || Base::of_checkout(ctx, base))
    }

    fn open(ctx: &Ctx, base: impl FnOnce() -> Result<Base>) -> Result<Assembled> {
        // Read first: a mistake in series/ should not wait for a download.
        let series = Series::read(&ctx.root)?;
        let identity = Identity::of(&ctx.root, ctx.signoff)?;
        toolchain::install(ctx, &[Purpose::Series])?;
        let base = base()?;
        ctx.ui
            .step(format!("assembling {} commits", series.commits.len()));
        let made = assembly::assemble(&base, &series, &identity)?;
        let tip = made.last().map_or(&base.commit, |last| &last.id);
        let bar = ctx.ui.bar("worktree", 0);
        let tree = base.repo.worktree(&base.dir.join("work"), tip)?;
        drop(bar);
        Ok(Assembled {
            base,
            series,
            identity,
            made,
            tree,
        })
    }

    pub fn made_of(&self, delivery: &Delivery) -> &[Made] {
        &self.made[delivery.commits.clone()]
    }

    /// The last commit of a delivery, on top of all the earlier ones.
    pub fn tip_of(&self, delivery: &Delivery) -> &str {
        &self.made[delivery.commits.end - 1].id
    }

    pub fn tip(&self) -> &str {
        let last = self.made.last();
        &last.expect("a series has at least one commit").id
    }
}
