//! What the person at the terminal sees: steps, bars, and nothing else on stderr.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often a bar without a terminal reports itself as a plain line.
const PLAIN_INTERVAL: Duration = Duration::from_secs(20);

pub struct Ui {
    pub verbose: bool,
    drawn: bool,
    bars: MultiProgress,
}

impl Ui {
    pub fn new(verbose: bool) -> Self {
        // With --verbose the commands' own output is the progress.
        let drawn = std::io::stderr().is_terminal() && !verbose;
        let target = match drawn {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        Ui {
            verbose,
            drawn,
            bars: MultiProgress::with_draw_target(target),
        }
    }

    /// Names a step before it is done.
    pub fn step(&self, text: impl AsRef<str>) {
        self.bars.suspend(|| eprintln!("==> {}", text.as_ref()));
    }

    /// A bar of `total` units; 0 when the total is unknown.
    pub fn bar(&self, label: &str, total: u64) -> Bar {
        let bar = self.bars.add(ProgressBar::new(total));
        let template = match total {
            0 => "    {msg} {spinner} {elapsed_precise}",
            _ => "    {msg} {wide_bar} {percent:>3}% {elapsed_precise} (left: {eta})",
        };
        bar.set_style(ProgressStyle::with_template(template).expect("the template is a constant"));
        bar.set_message(label.to_owned());
        if self.drawn {
            bar.enable_steady_tick(Duration::from_millis(250));
        }
        Bar {
            bar,
            plain: !self.drawn && !self.verbose,
            last: Instant::now(),
        }
    }
}

pub struct Bar {
    bar: ProgressBar,
    plain: bool,
    last: Instant,
}

impl Bar {
    pub fn inc(&mut self, n: u64) {
        self.bar.inc(n);
        if !self.plain || self.last.elapsed() < PLAIN_INTERVAL {
            return;
        }
        self.last = Instant::now();
        let (label, elapsed) = (self.bar.message(), self.bar.elapsed().as_secs());
        match self.bar.length() {
            Some(total) if total > 0 => {
                let percent = (self.bar.position() * 100 / total).min(99);
                eprintln!("    {label}: {percent} % after {elapsed} s");
            }
            _ => eprintln!("    {label}: {elapsed} s"),
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
