//! `msb metrics`: a table for people, JSON for programs; once, or again and again.

use std::io::Write;
use std::time::Duration;

use clap::ValueEnum;
use libmsb::cli::args::SandboxName;
use libmsb::cli::error::{Code, Failure};
use libmsb::cli::output;
use libmsb::cli::style::{Table, bytes as size, is_colored};
use libmsb::state::Home;

use crate::args::{CollectArgs, Format, ShowArgs};
use crate::collect::{Choice, Collector};
use crate::lines;
use crate::sample::{Collection, Figures, Sample};
use crate::ticks::Ticks;
use crate::watch::Watch;

/// Puts the cursor to the top, and clears what is below it.
const HOME: &str = "\x1b[H\x1b[J";

/// What a table can be ordered by. Figures: the largest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Column {
    /// Name
    Name,
    /// CPU
    Cpu,
    /// Memory in use
    Memory,
    /// Bytes moved to and from disks
    Disk,
    /// Bytes moved over the network
    Net,
    /// Processes
    Processes,
    /// Time since the start
    Uptime,
}

/// Shows what is there.
pub(crate) fn run(home: &Home, args: ShowArgs) -> anyhow::Result<()> {
    for name in &args.names {
        check(home, name)?;
    }
    let choice = Choice {
        selectors: args.label.clone(),
        ..Choice::default()
    };
    let watch = args.watch.then(|| Watch::at(args.interval)).flatten();
    let mut collector = Collector::of(home.clone(), choice, watch);
    if args.watch {
        return watch_them(&mut collector, &args);
    }
    let collection = chosen(collector.collect(), &args);
    // Whoever named one wants that one, or to know why not.
    if let [name] = &args.names[..]
        && collection.samples.is_empty()
    {
        return Err(nothing_of(home, name));
    }
    match args.format {
        Some(Format::Json) => Ok(print_json(&collection, &args)?),
        None if collection.samples.is_empty() => {
            eprintln!("no running sandboxes");
            Ok(())
        }
        None => Ok(table(&collection.samples, None).print()?),
    }
}

/// A line a sandbox, for people.
pub(crate) fn run_stdout(args: CollectArgs) -> anyhow::Result<()> {
    let mut collector = Collector::new(&args)?;
    let mut ticks = Ticks::every(args.collect_interval)?;
    while ticks.wait()? {
        let collection = collector.collect();
        if collection.samples.is_empty() {
            output::print("no active sandboxes")?;
        }
        for sample in &collection.samples {
            let cells = cells(sample, None).join("  ");
            output::print(&format!("{}  {cells}", sample.timestamp))?;
        }
    }
    Ok(())
}

/// A sandbox that is not there, does not run, or has no samples, by name.
fn check(home: &Home, name: &SandboxName) -> anyhow::Result<()> {
    let sandbox = home.sandboxes().find(name)?;
    if !sandbox.is_alive()? {
        return Err(not_running(name).into());
    }
    // One that cannot be read is left out of a table, with a warning; here it is what was asked for.
    let read = libmsb::samples::read(&home.samples(name));
    if sandbox.is_alive()? {
        read?;
    }
    if sandbox.spec()?.metrics.is_off() {
        return Err(Failure::wrong_state(format!(
            "no samples are taken of the sandbox '{name}'"
        ))
        .code(Code::MetricsDisabled)
        .hint(format!(
            "turn them on for its next start: msb modify {name} --metrics-sample-interval 10s"
        ))
        .into());
    }
    Ok(())
}

/// Why there are no figures of one that was there a moment ago.
fn nothing_of(home: &Home, name: &SandboxName) -> anyhow::Error {
    let read = libmsb::samples::read(&home.samples(name));
    match (home.sandboxes().named(name).is_alive(), read) {
        (Ok(false), _) => not_running(name).into(),
        (Err(error), _) | (_, Err(error)) => error,
        (Ok(true), Ok(Some(_))) => {
            Failure::wrong_state(format!("the sandbox '{name}' does not have these labels")).into()
        }
        (Ok(true), Ok(None)) => {
            Failure::wrong_state(format!("there are no samples of the sandbox '{name}' yet")).into()
        }
    }
}

fn not_running(name: &SandboxName) -> Failure {
    Failure::wrong_state(format!("the sandbox '{name}' is not running"))
        .code(Code::SandboxNotRunning)
        .hint(format!("start it: msb start {name}"))
}

fn watch_them(collector: &mut Collector, args: &ShowArgs) -> anyhow::Result<()> {
    let mut ticks = Ticks::every(args.interval)?;
    let mut before: Option<Collection> = None;
    let screen = args.format.is_none() && output::is_terminal();
    while ticks.wait()? {
        let collection = chosen(collector.collect(), args);
        let mut stdout = output::stdout();
        if args.format == Some(Format::Json) {
            lines::write(&mut stdout, &collection)?;
        } else {
            let rates = before.as_ref();
            let text = table(&collection.samples, rates).render(is_colored());
            let clear = if screen { HOME } else { "" };
            write!(stdout, "{clear}{text}")?;
            if !screen {
                writeln!(stdout)?;
            }
            stdout.flush()?;
        }
        before = Some(collection);
    }
    Ok(())
}

/// Those that were named, in order.
fn chosen(mut collection: Collection, args: &ShowArgs) -> Collection {
    if !args.names.is_empty() {
        let named = |name: &str| args.names.iter().any(|of| of.as_str() == name);
        collection
            .samples
            .retain(|sample| named(&sample.identity.name));
        collection.exits.retain(|exit| named(&exit.name));
    }
    let key = |sample: &Sample| key(args.sort, &sample.figures).unwrap_or(-1.0);
    // It is in order of names, and stays so among equals.
    if args.sort != Column::Name {
        collection
            .samples
            .sort_by(|one, other| key(other).total_cmp(&key(one)));
    }
    collection
}

fn key(column: Column, figures: &Figures) -> Option<f64> {
    let sum = |one: Option<u64>, other: Option<u64>| Some(one? as f64 + other? as f64);
    match column {
        Column::Name => None,
        Column::Cpu => figures.cpu_percent,
        Column::Memory => figures.memory_bytes.map(|bytes| bytes as f64),
        Column::Disk => sum(figures.disk_read_bytes, figures.disk_write_bytes),
        Column::Net => sum(figures.net_rx_bytes, figures.net_tx_bytes),
        Column::Processes => figures.processes.map(|count| count as f64),
        Column::Uptime => figures.uptime_secs,
    }
}

fn print_json(collection: &Collection, args: &ShowArgs) -> std::io::Result<()> {
    match (&args.names[..], &collection.samples[..]) {
        ([_], [sample]) => output::print_json(sample),
        (_, samples) => output::print_json(samples),
    }
}

/// With a collection before it: bytes are by second.
fn table(samples: &[Sample], before: Option<&Collection>) -> Table {
    let [read, written, received, sent] = match before {
        Some(_) => [">READ/S", ">WRITTEN/S", ">RECEIVED/S", ">SENT/S"],
        None => [">READ", ">WRITTEN", ">RECEIVED", ">SENT"],
    };
    let mut table = Table::new(&[
        "NAME",
        ">CPU",
        ">MEMORY",
        ">LIMIT",
        read,
        written,
        received,
        sent,
        ">PROCESSES",
        ">UPTIME",
    ]);
    for sample in samples {
        let earlier = before.and_then(|before| earlier(before, sample));
        // Without an earlier one there is no rate.
        let rates = before.map(|_| earlier);
        table.row(cells(sample, rates));
    }
    table
}

/// The same life of the same sandbox, a while ago.
fn earlier<'a>(before: &'a Collection, sample: &Sample) -> Option<&'a Sample> {
    before.samples.iter().find(|of| {
        (&of.identity.name, of.identity.run_id) == (&sample.identity.name, sample.identity.run_id)
    })
}

/// `rates`: the sample of a while ago, if there is one; none at all for sums.
fn cells(sample: &Sample, rates: Option<Option<&Sample>>) -> [String; 10] {
    let figures = &sample.figures;
    let bytes = |get: fn(&Figures) -> Option<u64>| {
        let now = get(figures);
        match rates {
            None => now.map(size),
            Some(earlier) => earlier.and_then(|earlier| {
                let more = now?.checked_sub(get(&earlier.figures)?)?;
                let elapsed: Duration = sample
                    .timestamp
                    .duration_since(earlier.timestamp)
                    .try_into()
                    .ok()?;
                let rate = more as f64 / elapsed.as_secs_f64().max(0.001);
                Some(size(rate as u64))
            }),
        }
        .unwrap_or_else(missing)
    };
    [
        sample.identity.name.clone(),
        figures
            .cpu_percent
            .map_or_else(missing, |percent| format!("{percent:.1}%")),
        figures.memory_bytes.map_or_else(missing, size),
        figures.memory_limit_bytes.map_or_else(missing, size),
        bytes(|figures| figures.disk_read_bytes),
        bytes(|figures| figures.disk_write_bytes),
        bytes(|figures| figures.net_rx_bytes),
        bytes(|figures| figures.net_tx_bytes),
        figures
            .processes
            .map_or_else(missing, |count| count.to_string()),
        figures.uptime_secs.map_or_else(missing, uptime),
    ]
}

fn missing() -> String {
    "-".to_owned()
}

fn uptime(seconds: f64) -> String {
    let seconds = seconds as u64;
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m{}s", seconds % 60),
        3600..86_400 => format!("{hours}h{minutes}m"),
        _ => format!("{days}d{hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Identity;
    use jiff::Timestamp;
    use std::sync::Arc;

    fn sample(run_id: u64, second: i64, read: u64) -> Sample {
        Sample {
            timestamp: Timestamp::from_second(second).unwrap(),
            figures: Figures {
                disk_read_bytes: Some(read),
                ..Figures::default()
            },
            identity: Arc::new(Identity {
                name: "web".into(),
                run_id,
                ..Identity::default()
            }),
        }
    }

    #[test]
    fn a_rate_is_of_one_life_and_what_is_missing_is_a_dash() {
        let now = sample(1, 12, 5 << 20);
        let before = sample(1, 10, 1 << 20);
        let rate = |earlier: Option<&Sample>| cells(&now, Some(earlier))[4].clone();
        assert_eq!(rate(Some(&before)), size(2 << 20));
        assert_eq!(rate(None), "-");
        // A counter that fell is of another life, whatever it says.
        assert_eq!(rate(Some(&sample(1, 10, 9 << 20))), "-");
        let others = Collection {
            at: Timestamp::UNIX_EPOCH,
            samples: vec![sample(2, 10, 0)],
            exits: Vec::new(),
        };
        assert!(earlier(&others, &now).is_none());
        assert_eq!(cells(&now, None)[1], "-");
    }

    #[test]
    fn figures_are_sorted_from_the_largest_and_what_is_missing_comes_last() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            show: ShowArgs,
        }
        let of = |name: &str, figures: Figures| Sample {
            timestamp: Timestamp::UNIX_EPOCH,
            figures,
            identity: Arc::new(Identity {
                name: name.into(),
                ..Identity::default()
            }),
        };
        // Each is the first in two columns; `d` has no figures.
        let a = Figures {
            cpu_percent: Some(9.5),
            memory_bytes: Some(1),
            disk_read_bytes: Some(5),
            disk_write_bytes: Some(5),
            net_rx_bytes: Some(3),
            net_tx_bytes: Some(1),
            processes: Some(10),
            uptime_secs: Some(2.0),
            ..Figures::default()
        };
        let b = Figures {
            cpu_percent: Some(10.5),
            memory_bytes: Some(3),
            disk_read_bytes: Some(9),
            disk_write_bytes: Some(0),
            net_rx_bytes: Some(2),
            net_tx_bytes: Some(0),
            processes: Some(9),
            uptime_secs: Some(3.0),
            ..Figures::default()
        };
        let c = Figures {
            cpu_percent: Some(0.0),
            memory_bytes: Some(2),
            disk_read_bytes: Some(0),
            disk_write_bytes: Some(11),
            net_rx_bytes: Some(0),
            net_tx_bytes: Some(9),
            processes: Some(2),
            uptime_secs: Some(1.0),
            ..Figures::default()
        };
        let samples = vec![
            of("a", a),
            of("b", b),
            of("c", c),
            of("d", Figures::default()),
        ];
        let sorted = |column: &str| -> String {
            let collection = Collection {
                at: Timestamp::UNIX_EPOCH,
                samples: samples.clone(),
                exits: Vec::new(),
            };
            let line: Line = clap::Parser::parse_from(["x", "--sort", column]);
            let names = chosen(collection, &line.show).samples;
            names.iter().map(|of| of.identity.name.as_str()).collect()
        };
        let columns = [
            "name",
            "cpu",
            "memory",
            "disk",
            "net",
            "processes",
            "uptime",
        ];
        let found = columns.map(sorted);
        assert_eq!(
            found,
            ["abcd", "bacd", "bcad", "cabd", "cabd", "abcd", "bacd"]
        );
    }

    #[test]
    fn times_are_as_coarse_as_they_are_long() {
        let all = [5.9, 65.0, 3700.0, 90_000.0].map(uptime);
        assert_eq!(all, ["5s", "1m5s", "1h1m", "1d1h"]);
    }
}
