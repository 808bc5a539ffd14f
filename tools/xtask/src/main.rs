//! `cargo xtask`: turns this repository into a kernel patch series, builds it and tests it.

mod facts;
mod host;
mod kernel;
mod machine;
mod series;
mod verdict;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Error, Result, bail};
use clap::{Args, Parser, Subcommand};

use crate::facts::FACTS;
use crate::host::Ctx;
use crate::host::cache::{self, Cache};
use crate::host::toolchain::{Purpose, Toolchain};
use crate::host::ui::Ui;
use crate::kernel::Kernel;
use crate::machine::Vm;
use crate::series::{Assembled, checkout, export, refresh};
use crate::verdict::{bench, each, mutate};

#[derive(Parser)]
#[command(name = "cargo xtask", about, version)]
struct Cli {
    #[command(subcommand)]
    command: Cmd,
    /// Say what is missing on this machine instead of installing it
    #[arg(long, global = true)]
    no_install: bool,
    /// Put your name on the series: author, sign-off and maintainer of what is new
    #[arg(long, global = true)]
    signoff: bool,
    /// Show everything that the programs run here print
    #[arg(long, global = true)]
    verbose: bool,
}

#[derive(Args)]
struct BaseArg {
    /// A kernel git tree or tarball to base the series on [default: Debian's linux-source-7.3]
    #[arg(long, value_name = "DIR|FILE")]
    base: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Cmd {
    /// Export the patch series, checked, and proven with `git am`
    Series {
        #[command(flatten)]
        base: BaseArg,
        /// Where the patches go [default: out/series in this repository]
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// Build the kernel of the virtual machine with the series
    Build {
        #[command(flatten)]
        base: BaseArg,
    },
    /// Build, boot and test the series, and count what passed
    Test {
        #[command(flatten)]
        base: BaseArg,
        /// Run one stage, or one test as the summary names it
        #[arg(long, value_name = "NAME", conflicts_with = "each")]
        only: Option<String>,
        /// Build what each commit touches instead, one commit after the other
        #[arg(long)]
        each: bool,
        /// Plant bugs instead, one after the other, that the tests have to notice; all of them, or
        /// those that --only has in their name, file or suite
        #[arg(long, conflicts_with = "each")]
        mutate: bool,
    },
    /// Measure the base and the series side by side in the virtual machine
    Bench {
        #[command(flatten)]
        base: BaseArg,
    },
    /// Open a shell in the virtual machine, with the devices bound to vfio-pci
    Boot {
        #[command(flatten)]
        base: BaseArg,
    },
    /// Lay the series out as commits in a kernel worktree, to browse and edit
    Checkout {
        #[command(flatten)]
        base: BaseArg,
    },
    /// Bring what was edited in the checkout back into this repository
    Refresh {
        #[command(flatten)]
        base: BaseArg,
    },
}

fn main() -> ExitCode {
    match dispatch(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            explain(&error);
            ExitCode::FAILURE
        }
    }
}

/// An error as sentences: what, why, and what next.
fn explain(error: &Error) {
    let text = format!("{error:#}");
    eprintln!("error: {text}");
    let full = ["No space left on device", "os error 28"];
    if full.iter().any(|sign| text.contains(sign)) {
        eprintln!(
            "help: the disk is full: make room, or set {} to a directory elsewhere",
            cache::VARIABLE
        );
    }
}

fn dispatch(cli: Cli) -> Result<()> {
    let ui = Ui::new(cli.verbose);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .context("this program belongs to a checkout that is gone: run it with cargo xtask")?;
    cache::usable(&root)?;
    let cache = Cache::open(&ui)?;
    let ctx = &Ctx {
        root,
        cache,
        ui,
        install: !cli.no_install,
        signoff: cli.signoff,
    };
    match cli.command {
        Cmd::Series { base, out } => {
            let out = out.unwrap_or_else(|| ctx.root.join("out/series"));
            export_series(ctx, base.base.as_deref(), &out)
        }
        Cmd::Build { base } => build(ctx, base.base.as_deref(), false),
        Cmd::Boot { base } => build(ctx, base.base.as_deref(), true),
        Cmd::Test {
            base,
            only,
            each,
            mutate,
        } => {
            let (base, only) = (base.base.as_deref(), only.as_deref());
            match (each, mutate) {
                (true, _) => each::each(ctx, base),
                (_, true) => mutate::mutate(ctx, base, only),
                _ => verdict::test(ctx, base, only),
            }
        }
        Cmd::Bench { base } => bench::bench(ctx, base.base.as_deref()),
        Cmd::Checkout { base } => {
            let all = Assembled::on(ctx, base.base.as_deref())?;
            println!("{}", checkout::checkout(ctx, &all.base, &all)?.display());
            Ok(())
        }
        Cmd::Refresh { base } => {
            let all = Assembled::of_checkout(ctx, base.base.as_deref())?;
            let written = refresh::refresh(ctx, &all)?;
            for path in &written {
                println!("{path}");
            }
            println!("{} files refreshed", written.len());
            Ok(())
        }
    }
}

/// Builds the virtual machine's kernel, and opens a shell in it or says where it is.
fn build(ctx: &Ctx, base: Option<&Path>, boot: bool) -> Result<()> {
    let all = Assembled::on(ctx, base)?;
    let purposes: &[Purpose] = match boot {
        true => &[Purpose::Build, Purpose::Vm],
        false => &[Purpose::Build],
    };
    let toolchain = Toolchain::open(ctx, &all.tree, purposes)?;
    let kernel = Kernel::new(ctx, &toolchain, &all);
    kernel.bootable(FACTS.vm())?;
    if boot {
        return Vm::new(&kernel, kernel.selftests()?).shell();
    }
    println!("{}", kernel.image(FACTS.vm()).display());
    Ok(())
}

fn export_series(ctx: &Ctx, base: Option<&Path>, out: &Path) -> Result<()> {
    let all = Assembled::on(ctx, base)?;
    let exported = export::export(ctx, &all, out)?;
    ctx.ui
        .step("checking each patch: rustfmt and checkpatch --strict");
    let patches = export::check(&all, &exported)?;
    ctx.ui
        .step("proving the export: git am on a fresh worktree of the base");
    export::prove(ctx, &all, &exported)?;
    print!("{}", export::table(&patches));
    println!(
        "{} holds {} deliveries, {} patches in all, for {}",
        out.display(),
        exported.len(),
        patches.len(),
        all.base.commit
    );
    match all.identity.signs {
        true => println!("signed off by {}", all.identity.address()),
        false => println!("not signed off: --signoff puts your name on them, as git knows it"),
    }
    println!(
        "to apply them: git am --empty=drop {}/*/*.patch",
        out.display()
    );
    let complaints = patches.iter().flat_map(|patch| &patch.complaints);
    match complaints.filter(|line| export::is_error(line)).count() {
        0 => Ok(()),
        n => bail!("{n} errors in the exported patches, listed above"),
    }
}
