//! Progress of a pull: a line for each layer on a terminal, events for programs, otherwise nothing.

use std::io::{self, IsTerminal, Write};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use libmsb::cli::error::message;
use libmsb::cli::{output, style};
use libmsb::digest::Digest;
use libmsb::jsonl;
use serde::Serialize;

use super::download::DownloadObserver;
use crate::args::{OutputFormat, ReportArgs};

/// Interval between updates.
const TICK: Duration = Duration::from_millis(100);
/// Lines of a terminal with unknown size.
const ROWS: usize = 24;

/// Destination of progress output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ProgressOutput {
    Terminal,
    Events,
    Silent,
}

/// Stage of a layer in a pull.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LayerStage {
    Waiting,
    Downloading,
    Unpacking,
    Done,
    /// The store had it.
    Present,
}

/// Progress of one layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename = "layer_progress")]
struct LayerStatus {
    digest: Digest,
    state: LayerStage,
    done_bytes: u64,
    size_bytes: u64,
}

/// Progress of all layers.
pub(crate) struct PullProgress {
    output: ProgressOutput,
    layers: Mutex<LayerTable>,
    finished: Condvar,
}

#[derive(Default)]
struct LayerTable {
    all: Vec<LayerStatus>,
    /// State at the last report.
    reported: Vec<LayerStatus>,
    lines_drawn: usize,
    finished: bool,
}

impl PullProgress {
    pub(crate) fn new(
        options: ReportArgs,
        layers: impl IntoIterator<Item = (Digest, u64)>,
    ) -> PullProgress {
        let output = if options.format == Some(OutputFormat::Json) {
            ProgressOutput::Events
        } else if !options.quiet && io::stderr().is_terminal() {
            ProgressOutput::Terminal
        } else {
            ProgressOutput::Silent
        };
        let layer = |(digest, size_bytes)| LayerStatus {
            digest,
            state: LayerStage::Waiting,
            done_bytes: 0,
            size_bytes,
        };
        PullProgress {
            output,
            layers: Mutex::new(LayerTable {
                all: layers.into_iter().map(layer).collect(),
                ..LayerTable::default()
            }),
            finished: Condvar::new(),
        }
    }

    /// Reports changes until [`PullProgress::finish`].
    pub(crate) fn run(&self) {
        let mut layers = self.layers();
        while !layers.finished {
            self.report(&mut layers);
            let waited = self.finished.wait_timeout(layers, TICK);
            layers = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        self.report(&mut layers);
        if self.output == ProgressOutput::Terminal {
            write_err(&erase(layers.lines_drawn));
        }
    }

    pub(crate) fn finish(&self) {
        self.layers().finished = true;
        self.finished.notify_all();
    }

    /// Returns the observer of one layer.
    pub(crate) fn of(&self, digest: Digest) -> LayerProgress<'_> {
        LayerProgress { progress: self, digest }
    }

    fn layers(&self) -> MutexGuard<'_, LayerTable> {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self, layers: &mut LayerTable) {
        if layers.reported == layers.all {
            return;
        }
        match self.output {
            ProgressOutput::Silent => {}
            ProgressOutput::Events => print_events(layers),
            ProgressOutput::Terminal => draw(layers),
        }
        layers.reported = layers.all.clone();
    }
}

/// Observer of one layer.
pub(crate) struct LayerProgress<'a> {
    progress: &'a PullProgress,
    digest: Digest,
}

impl LayerProgress<'_> {
    pub(crate) fn set_stage(&self, state: LayerStage) {
        self.change(|layer| layer.state = state);
    }

    fn change(&self, change: impl FnOnce(&mut LayerStatus)) {
        let mut layers = self.progress.layers();
        if let Some(layer) = layers.all.iter_mut().find(|layer| layer.digest == self.digest) {
            change(layer);
        }
    }
}

impl DownloadObserver for LayerProgress<'_> {
    fn set_bytes(&self, bytes: u64) {
        self.change(|layer| {
            layer.done_bytes = bytes;
            if bytes == layer.size_bytes && layer.state == LayerStage::Downloading {
                layer.state = LayerStage::Unpacking;
            }
        });
    }

    fn retrying(&self, error: &anyhow::Error) {
        let text = message(error);
        match self.progress.output {
            ProgressOutput::Silent => {}
            ProgressOutput::Events => {
                print_event(&RetryEvent { digest: self.digest, message: &text })
            }
            ProgressOutput::Terminal => {
                let mut layers = self.progress.layers();
                let shown = libmsb::cli::escape::escape(&text).into_owned();
                let line = format!(
                    "{}{}: {shown}; retrying\n",
                    erase(layers.lines_drawn),
                    self.digest.short()
                );
                write_err(&line);
                layers.lines_drawn = 0;
                layers.reported.clear();
            }
        }
    }
}

#[derive(Serialize)]
#[serde(tag = "type", rename = "layer_retried")]
struct RetryEvent<'a> {
    digest: Digest,
    message: &'a str,
}

/// Prints an event on standard output. A write error is ignored here; the last event reports it.
fn print_event<T: Serialize>(event: &T) {
    if let Ok(line) = jsonl::to_string(event) {
        drop(output::print(&line));
    }
}

fn print_events(layers: &LayerTable) {
    for (place, layer) in layers.all.iter().enumerate() {
        if layers.reported.get(place) != Some(layer) {
            print_event(layer);
        }
    }
}

/// Draws the lines over those drawn before.
fn draw(layers: &mut LayerTable) {
    let rows =
        rustix::termios::tcgetwinsize(io::stderr()).map_or(ROWS, |size| usize::from(size.ws_row));
    let visible = rows.saturating_sub(1).max(1);
    let mut lines: Vec<&LayerStatus> = layers.all.iter().collect();
    if lines.len() > visible {
        // Finished layers make room for the others.
        lines.retain(|layer| !matches!(layer.state, LayerStage::Done | LayerStage::Present));
        lines.truncate(visible);
    }
    let mut text = erase(layers.lines_drawn);
    for layer in &lines {
        text.push_str(&line(layer));
        text.push('\n');
    }
    layers.lines_drawn = lines.len();
    write_err(&text);
}

fn line(layer: &LayerStatus) -> String {
    let state = match layer.state {
        LayerStage::Waiting => "waiting".to_owned(),
        LayerStage::Downloading => format!(
            "{:>3} %  {} of {}",
            (layer.done_bytes * 100).checked_div(layer.size_bytes).unwrap_or(100),
            style::bytes(layer.done_bytes),
            style::bytes(layer.size_bytes)
        ),
        LayerStage::Unpacking => "unpacking".to_owned(),
        LayerStage::Done => "done".to_owned(),
        LayerStage::Present => "already there".to_owned(),
    };
    format!("{}  {state}", layer.digest.short())
}

/// Moves to the first line drawn before and clears everything below it.
fn erase(lines: usize) -> String {
    match lines {
        0 => String::new(),
        lines => format!("\x1b[{lines}A\r\x1b[J"),
    }
}

fn write_err(text: &str) {
    drop(io::stderr().write_all(text.as_bytes()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_has_one_line_and_one_event() {
        let layer = LayerStatus {
            digest: Digest::of_bytes([0xab; 32]),
            state: LayerStage::Downloading,
            done_bytes: 512,
            size_bytes: 2048,
        };
        assert_eq!(line(&layer), "abababababab   25 %  512 B of 2.0 KiB");
        let event = serde_json::to_string(&layer).unwrap();
        let digest = layer.digest;
        assert_eq!(
            event,
            format!(
                r#"{{"type":"layer_progress","digest":"{digest}","state":"downloading","done_bytes":512,"size_bytes":2048}}"#
            )
        );
    }
}
