//! What the person at the terminal sees: steps, bars, and nothing else on stderr.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often a bar without a terminal reports itself as a plain line.
const PLAIN_INTERVAL: Duration = Duration::from_secs(20);

pub struct Ui {
    pub verbose: bool,
    terminal: bool,
}

impl Ui {
    pub fn new(verbose: bool) -> Self {
        use std::io::IsTerminal;
        Ui {
            verbose,
            terminal: std::io::stderr().is_terminal(),
        }
    }

    /// Names a step before it is done.
    pub fn step(&self, text: impl AsRef<str>) {
        eprintln!("==> {}", text.as_ref());
    }

    /// A bar of `total` units; 0 when the total is unknown.
    pub fn bar(&self, label: &str, total: u64) -> Bar {
        // With --verbose the command's own output is the progress.
        let drawn = self.terminal && !self.verbose;
        let bar = ProgressBar::with_draw_target(
            Some(total),
            if drawn {
                ProgressDrawTarget::stderr()
            } else {
                ProgressDrawTarget::hidden()
            },
        );
        let template = if total > 0 {
            "    {msg} {wide_bar} {percent:>3}% {elapsed_precise} (left: {eta})"
        } else {
            "    {msg} {spinner} {elapsed_precise}"
        };
        bar.set_style(ProgressStyle::with_template(template).expect("the template is a constant"));
        bar.set_message(label.to_owned());
        if drawn {
            bar.enable_steady_tick(Duration::from_millis(250));
        }
        Bar {
            bar,
            label: label.to_owned(),
            plain: !drawn && !self.verbose,
            start: Instant::now(),
            last: Instant::now(),
        }
    }
}

pub struct Bar {
    bar: ProgressBar,
    label: String,
    plain: bool,
    start: Instant,
    last: Instant,
}

impl Bar {
    pub fn inc(&mut self, n: u64) {
        self.bar.inc(n);
        self.plain_report();
    }

    pub fn set(&mut self, position: u64) {
        self.bar.set_position(position);
        self.plain_report();
    }

    fn plain_report(&mut self) {
        if !self.plain || self.last.elapsed() < PLAIN_INTERVAL {
            return;
        }
        self.last = Instant::now();
        let elapsed = self.start.elapsed().as_secs();
        match self.bar.length() {
            Some(total) if total > 0 => {
                let percent = (self.bar.position() * 100 / total).min(99);
                eprintln!("    {}: {percent} % after {elapsed} s", self.label);
            }
            _ => eprintln!("    {}: {elapsed} s", self.label),
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
