//! How far staging is: bars on a terminal, plain lines elsewhere.

use crate::layer::ingest::{self, LayerState};
use crate::stage::{Phase, Progress};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often bars are drawn.
const BARS_EVERY: Duration = Duration::from_millis(100);
/// How often a line is written where there are no bars; work that is done before
/// is worth no line.
const LINES_EVERY: Duration = Duration::from_secs(5);
/// A layer whose blob has a size, and one whose size the source does not say.
const SIZED: &str = "  layer {prefix:>3}  {bar:30}  {bytes} of {total_bytes}, {bytes_per_sec}";
const UNSIZED: &str = "  layer {prefix:>3}  {bytes}, {bytes_per_sec}";

/// Shows progress on standard error.
#[derive(Debug, Default)]
pub(super) struct Shown {
    ticker: Mutex<Option<Ticker>>,
}

/// The thread that looks at the counters.
#[derive(Debug)]
struct Ticker {
    /// Dropped to end it.
    running: Sender<()>,
    thread: JoinHandle<()>,
}

impl Shown {
    pub(super) fn start() -> Self {
        Shown::default()
    }

    /// Takes the bars away, so that nothing is between them and what follows.
    pub(super) fn end(&self) {
        let Some(Ticker { running, thread }) = self.lock().take() else {
            return;
        };
        drop(running);
        if thread.join().is_err() {
            tracing::warn!("the progress display failed");
        }
    }

    /// The state is whole after every statement, whoever panicked.
    fn lock(&self) -> MutexGuard<'_, Option<Ticker>> {
        self.ticker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.end();
    }
}

impl Progress for Shown {
    fn layers(&self, counters: &Arc<ingest::Progress>) {
        self.end();
        let counters = Arc::clone(counters);
        let (running, stopped) = mpsc::channel();
        let show = move || {
            let has_bars = std::io::stderr().is_terminal();
            let mut bars = Bars::default();
            let every = if has_bars { BARS_EVERY } else { LINES_EVERY };
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(every) {
                if has_bars {
                    bars.draw(&counters);
                } else {
                    line(&format!("staging: {}", counters.summary()));
                }
            }
            bars.clear();
        };
        // Without the thread there is only nothing to see.
        match std::thread::Builder::new()
            .name("progress".to_owned())
            .spawn(show)
        {
            Ok(thread) => *self.lock() = Some(Ticker { running, thread }),
            Err(error) => tracing::debug!(%error, "cannot show progress"),
        }
    }

    fn phase(&self, phase: Phase) {
        if phase > Phase::Layers {
            self.end();
        }
    }
}

/// A bar for each layer that is being read.
#[derive(Debug, Default)]
struct Bars {
    all: Option<MultiProgress>,
    /// By layer; none before it begins.
    layers: Vec<Option<ProgressBar>>,
}

impl Bars {
    fn draw(&mut self, counters: &ingest::Progress) {
        let all = self
            .all
            .get_or_insert_with(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()));
        self.layers.resize(counters.layers().len(), None);
        for (number, (layer, bar)) in counters.layers().iter().zip(&mut self.layers).enumerate() {
            match layer.state() {
                LayerState::Waiting => {}
                LayerState::Reading | LayerState::Finishing => bar
                    .get_or_insert_with(|| all.add(new_bar(number, layer.total())))
                    .set_position(layer.read()),
                LayerState::Done | LayerState::Failed => {
                    if let Some(bar) = bar {
                        bar.finish_and_clear();
                    }
                }
            }
        }
    }

    fn clear(&self) {
        if let Some(all) = &self.all
            && let Err(error) = all.clear()
        {
            tracing::debug!(%error, "cannot clear progress bars");
        }
    }
}

fn new_bar(number: usize, size: Option<u64>) -> ProgressBar {
    let template = if size.is_some() { SIZED } else { UNSIZED };
    let bar = ProgressBar::new(size.unwrap_or(0));
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.set_style(style.progress_chars("=> ")),
        Err(error) => tracing::debug!(%error, "cannot read the style of progress bars"),
    }
    bar.set_prefix((number + 1).to_string());
    bar
}

fn line(text: &str) {
    // Whoever closed standard error does not want to know.
    let _ = writeln!(std::io::stderr(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_styles_of_bars_are_readable() {
        for template in [SIZED, UNSIZED] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }

    #[test]
    fn showing_ends_at_once_and_can_begin_again() {
        let shown = Shown::start();
        let began = std::time::Instant::now();
        for _ in 0..3 {
            shown.layers(&Arc::new(ingest::Progress::new([Some(5), None])));
        }
        shown.phase(Phase::Layers);
        assert!(shown.lock().is_some());
        shown.phase(Phase::Sealing);
        assert!(shown.lock().is_none());
        shown.end();
        assert!(began.elapsed() < LINES_EVERY, "nobody waits for a line");
    }
}
