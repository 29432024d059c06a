//! What a pull tells while it is going on: a line for each layer to people at a terminal, events to programs, nothing to
//! others.

use std::io::{self, IsTerminal, Write};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use libmsb::cli::error::message;
use libmsb::cli::{output, style};
use libmsb::digest::Digest;
use libmsb::jsonl;
use serde::Serialize;

use super::download::Watch;
use crate::arguments::{Format, Output};

/// Time between two looks.
const TICK: Duration = Duration::from_millis(100);
/// Lines of a terminal of unknown size.
const ROWS: usize = 24;

/// Who is told, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Audience {
    Terminal,
    Program,
    Nobody,
}

/// Where a layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Stage {
    Waiting,
    Downloading,
    Unpacking,
    Done,
    /// It was in the store.
    Present,
}

/// One layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename = "layer_progress")]
struct Layer {
    digest: Digest,
    state: Stage,
    done_bytes: u64,
    size_bytes: u64,
}

/// The state of all layers.
pub(crate) struct Progress {
    audience: Audience,
    layers: Mutex<Layers>,
    finished: Condvar,
}

#[derive(Default)]
struct Layers {
    all: Vec<Layer>,
    /// What was told last.
    told: Vec<Layer>,
    lines_drawn: usize,
    finished: bool,
}

impl Progress {
    pub(crate) fn new(
        options: Output,
        layers: impl IntoIterator<Item = (Digest, u64)>,
    ) -> Progress {
        let audience = if options.format == Some(Format::Json) {
            Audience::Program
        } else if !options.quiet && io::stderr().is_terminal() {
            Audience::Terminal
        } else {
            Audience::Nobody
        };
        let layer = |(digest, size_bytes)| Layer {
            digest,
            state: Stage::Waiting,
            done_bytes: 0,
            size_bytes,
        };
        Progress {
            audience,
            layers: Mutex::new(Layers {
                all: layers.into_iter().map(layer).collect(),
                ..Layers::default()
            }),
            finished: Condvar::new(),
        }
    }

    /// Tells what changes until [`Progress::finish`].
    pub(crate) fn run(&self) {
        let mut layers = self.layers();
        while !layers.finished {
            self.tell(&mut layers);
            let waited = self.finished.wait_timeout(layers, TICK);
            layers = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        self.tell(&mut layers);
        if self.audience == Audience::Terminal {
            write_err(&erase(layers.lines_drawn));
        }
    }

    pub(crate) fn finish(&self) {
        self.layers().finished = true;
        self.finished.notify_all();
    }

    /// The part of one layer.
    pub(crate) fn of(&self, digest: Digest) -> LayerProgress<'_> {
        LayerProgress {
            progress: self,
            digest,
        }
    }

    fn layers(&self) -> MutexGuard<'_, Layers> {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, layers: &mut Layers) {
        if layers.told == layers.all {
            return;
        }
        match self.audience {
            Audience::Nobody => {}
            Audience::Program => tell_program(layers),
            Audience::Terminal => draw(layers),
        }
        layers.told = layers.all.clone();
    }
}

/// One layer's part in the progress.
pub(crate) struct LayerProgress<'a> {
    progress: &'a Progress,
    digest: Digest,
}

impl LayerProgress<'_> {
    pub(crate) fn is(&self, state: Stage) {
        self.change(|layer| layer.state = state);
    }

    fn change(&self, change: impl FnOnce(&mut Layer)) {
        let mut layers = self.progress.layers();
        if let Some(layer) = layers
            .all
            .iter_mut()
            .find(|layer| layer.digest == self.digest)
        {
            change(layer);
        }
    }
}

impl Watch for LayerProgress<'_> {
    fn is_at(&self, bytes: u64) {
        self.change(|layer| {
            layer.done_bytes = bytes;
            if bytes == layer.size_bytes && layer.state == Stage::Downloading {
                layer.state = Stage::Unpacking;
            }
        });
    }

    fn tries_again(&self, error: &anyhow::Error) {
        let text = message(error);
        match self.progress.audience {
            Audience::Nobody => {}
            Audience::Program => print_event(&Retried {
                digest: self.digest,
                message: &text,
            }),
            Audience::Terminal => {
                let mut layers = self.progress.layers();
                let shown = libmsb::cli::escape::escape(&text).into_owned();
                let line = format!(
                    "{}{}: {shown}; trying again\n",
                    erase(layers.lines_drawn),
                    self.digest.short()
                );
                write_err(&line);
                layers.lines_drawn = 0;
                layers.told.clear();
            }
        }
    }
}

#[derive(Serialize)]
#[serde(tag = "type", rename = "layer_retried")]
struct Retried<'a> {
    digest: Digest,
    message: &'a str,
}

/// An event on standard output. When nobody reads it any more, the last one will say so.
fn print_event<T: Serialize>(event: &T) {
    if let Ok(line) = jsonl::to_string(event) {
        drop(output::print(&line));
    }
}

fn tell_program(layers: &Layers) {
    for (place, layer) in layers.all.iter().enumerate() {
        if layers.told.get(place) != Some(layer) {
            print_event(layer);
        }
    }
}

/// Draws over what was drawn last.
fn draw(layers: &mut Layers) {
    let rows =
        rustix::termios::tcgetwinsize(io::stderr()).map_or(ROWS, |size| usize::from(size.ws_row));
    let room = rows.saturating_sub(1).max(1);
    let mut lines: Vec<&Layer> = layers.all.iter().collect();
    if lines.len() > room {
        // Those that are done make room for the others.
        lines.retain(|layer| !matches!(layer.state, Stage::Done | Stage::Present));
        lines.truncate(room);
    }
    let mut text = erase(layers.lines_drawn);
    for layer in &lines {
        text.push_str(&line(layer));
        text.push('\n');
    }
    layers.lines_drawn = lines.len();
    write_err(&text);
}

fn line(layer: &Layer) -> String {
    let state = match layer.state {
        Stage::Waiting => "waiting".to_owned(),
        Stage::Downloading => format!(
            "{:>3} %  {} of {}",
            (layer.done_bytes * 100)
                .checked_div(layer.size_bytes)
                .unwrap_or(100),
            style::bytes(layer.done_bytes),
            style::bytes(layer.size_bytes)
        ),
        Stage::Unpacking => "unpacking".to_owned(),
        Stage::Done => "done".to_owned(),
        Stage::Present => "already there".to_owned(),
    };
    format!("{}  {state}", layer.digest.short())
}

/// Goes up to the first line that was drawn and clears all below.
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
        let layer = Layer {
            digest: Digest::of_bytes([0xab; 32]),
            state: Stage::Downloading,
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
