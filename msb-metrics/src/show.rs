//! `msb metrics`: a table, or JSON for programs; once or repeatedly.

use std::io::Write;
use std::time::Duration;

use libmsb::cli::args::SandboxName;
use libmsb::cli::error::{Code, Failure, print_remark};
use libmsb::cli::output;
use libmsb::cli::style::{Table, bytes as size, is_colored};
use libmsb::state::Home;

use crate::args::{CollectArgs, ShowArgs, ShowFormat, SortColumn};
use crate::collect::{Collector, SampleFilter};
use crate::interval::IntervalTimer;
use crate::lines;
use crate::log::TOOL;
use crate::sample::{Collection, Sample, SampleValues};
use crate::subscriptions::SampleSubscriber;

/// Escape sequence: moves the cursor to the top and clears the screen.
const CLEAR_SCREEN: &str = "\x1b[H\x1b[J";

/// Shows the metrics of running sandboxes.
pub(crate) fn run(home: &Home, args: ShowArgs) -> anyhow::Result<()> {
    for name in &args.names {
        check(home, name)?;
    }
    let filter = SampleFilter { selectors: args.label.clone(), ..SampleFilter::default() };
    let watch = args.watch.then(|| SampleSubscriber::at(args.interval)).flatten();
    let mut collector = Collector::of(home.clone(), filter, watch);
    if args.watch {
        return watch_sandboxes(&mut collector, &args);
    }
    let collection = select(collector.collect(), &args);
    // A single named sandbox without a sample is an error, with its reason.
    if let [name] = &args.names[..]
        && collection.samples.is_empty()
    {
        return Err(no_sample_error(home, name));
    }
    match args.format {
        Some(ShowFormat::Json) => Ok(print_json(&collection, &args)?),
        None if collection.samples.is_empty() => {
            print_remark(TOOL, "no running sandboxes");
            Ok(())
        }
        None => Ok(table(&collection.samples, None).print()?),
    }
}

/// Prints a line for each sandbox.
pub(crate) fn run_stdout(args: CollectArgs) -> anyhow::Result<()> {
    let mut collector = Collector::new(&args)?;
    let mut timer = IntervalTimer::new(args.collect_interval)?;
    while timer.wait()? {
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

/// Checks that a named sandbox exists, is running and has samples.
fn check(home: &Home, name: &SandboxName) -> anyhow::Result<()> {
    let sandbox = home.sandboxes().find(name)?;
    if !sandbox.is_alive()? {
        return Err(not_running(name).into());
    }
    // A table omits an unreadable sample file with a warning; for a named sandbox it is an error.
    let read = libmsb::samples::read(&home.samples(name));
    if sandbox.is_alive()? {
        read?;
    }
    if sandbox.spec()?.metrics.is_off() {
        return Err(Failure::wrong_state(format!("metrics are off for the sandbox '{name}'"))
            .code(Code::MetricsDisabled)
            .hint(format!(
                "enable them from the next start: msb modify {name} --metrics-sample-interval 10s"
            ))
            .into());
    }
    Ok(())
}

/// Returns the reason why a sandbox that was running a moment ago has no sample.
fn no_sample_error(home: &Home, name: &SandboxName) -> anyhow::Error {
    let read = libmsb::samples::read(&home.samples(name));
    match (home.sandboxes().named(name).is_alive(), read) {
        (Ok(false), _) => not_running(name).into(),
        (Err(error), _) | (_, Err(error)) => error,
        (Ok(true), Ok(Some(_))) => {
            Failure::wrong_state(format!("the sandbox '{name}' does not have these labels")).into()
        }
        (Ok(true), Ok(None)) => {
            Failure::wrong_state(format!("the sandbox '{name}' has no samples yet")).into()
        }
    }
}

fn not_running(name: &SandboxName) -> Failure {
    Failure::wrong_state(format!("the sandbox '{name}' is not running"))
        .code(Code::SandboxNotRunning)
        .hint(format!("start it: msb start {name}"))
}

fn watch_sandboxes(collector: &mut Collector, args: &ShowArgs) -> anyhow::Result<()> {
    let mut timer = IntervalTimer::new(args.interval)?;
    let mut before: Option<Collection> = None;
    let screen = args.format.is_none() && output::is_terminal();
    while timer.wait()? {
        let collection = select(collector.collect(), args);
        let mut stdout = output::stdout();
        if args.format == Some(ShowFormat::Json) {
            lines::write(&mut stdout, &collection)?;
        } else {
            let rates = before.as_ref();
            let text = table(&collection.samples, rates).render(is_colored());
            let clear = if screen { CLEAR_SCREEN } else { "" };
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

/// Selects the named sandboxes and sorts them.
fn select(mut collection: Collection, args: &ShowArgs) -> Collection {
    if !args.names.is_empty() {
        let named = |name: &str| args.names.iter().any(|of| of.as_str() == name);
        collection.samples.retain(|sample| named(&sample.identity.name));
        collection.exits.retain(|exit| named(&exit.name));
    }
    let key = |sample: &Sample| key(args.sort, &sample.values).unwrap_or(-1.0);
    // The collection is ordered by name, and the sort is stable.
    if args.sort != SortColumn::Name {
        collection.samples.sort_by(|one, other| key(other).total_cmp(&key(one)));
    }
    collection
}

fn key(column: SortColumn, values: &SampleValues) -> Option<f64> {
    let sum = |one: Option<u64>, other: Option<u64>| Some(one? as f64 + other? as f64);
    match column {
        SortColumn::Name => None,
        SortColumn::Cpu => values.cpu_percent,
        SortColumn::Memory => values.memory_bytes.map(|bytes| bytes as f64),
        SortColumn::Disk => sum(values.disk_read_bytes, values.disk_write_bytes),
        SortColumn::Net => sum(values.net_rx_bytes, values.net_tx_bytes),
        SortColumn::Processes => values.processes.map(|count| count as f64),
        SortColumn::Uptime => values.uptime_secs,
    }
}

fn print_json(collection: &Collection, args: &ShowArgs) -> std::io::Result<()> {
    match (&args.names[..], &collection.samples[..]) {
        ([_], [sample]) => output::print_json(sample),
        (_, samples) => output::print_json(samples),
    }
}

/// Builds the table. With a previous collection, byte counters are shown as rates.
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
        // Without a previous sample there is no rate.
        let rates = before.map(|_| earlier);
        table.row(cells(sample, rates));
    }
    table
}

/// Returns the previous sample of the same run.
fn earlier<'a>(before: &'a Collection, sample: &Sample) -> Option<&'a Sample> {
    before.samples.iter().find(|of| {
        (&of.identity.name, of.identity.run_id) == (&sample.identity.name, sample.identity.run_id)
    })
}

/// Returns the cells of a row. `rates` is `None` for totals, else the previous sample if there is
/// one.
fn cells(sample: &Sample, rates: Option<Option<&Sample>>) -> [String; 10] {
    let values = &sample.values;
    let bytes = |get: fn(&SampleValues) -> Option<u64>| {
        let now = get(values);
        match rates {
            None => now.map(size),
            Some(earlier) => earlier.and_then(|earlier| {
                let more = now?.checked_sub(get(&earlier.values)?)?;
                let elapsed: Duration =
                    sample.timestamp.duration_since(earlier.timestamp).try_into().ok()?;
                let rate = more as f64 / elapsed.as_secs_f64().max(0.001);
                Some(size(rate as u64))
            }),
        }
        .unwrap_or_else(missing)
    };
    [
        sample.identity.name.clone(),
        values.cpu_percent.map_or_else(missing, |percent| format!("{percent:.1}%")),
        values.memory_bytes.map_or_else(missing, size),
        values.memory_limit_bytes.map_or_else(missing, size),
        bytes(|values| values.disk_read_bytes),
        bytes(|values| values.disk_write_bytes),
        bytes(|values| values.net_rx_bytes),
        bytes(|values| values.net_tx_bytes),
        values.processes.map_or_else(missing, |count| count.to_string()),
        values.uptime_secs.map_or_else(missing, uptime),
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
    use crate::sample::SandboxIdentity;
    use jiff::Timestamp;
    use std::sync::Arc;

    fn sample(run_id: u64, second: i64, read: u64) -> Sample {
        Sample {
            timestamp: Timestamp::from_second(second).unwrap(),
            values: SampleValues { disk_read_bytes: Some(read), ..SampleValues::default() },
            identity: Arc::new(SandboxIdentity {
                name: "web".into(),
                run_id,
                ..SandboxIdentity::default()
            }),
        }
    }

    #[test]
    fn a_rate_belongs_to_one_run_and_a_missing_value_is_a_dash() {
        let now = sample(1, 12, 5 << 20);
        let before = sample(1, 10, 1 << 20);
        let rate = |earlier: Option<&Sample>| cells(&now, Some(earlier))[4].clone();
        assert_eq!(rate(Some(&before)), size(2 << 20));
        assert_eq!(rate(None), "-");
        // A smaller counter belongs to another run, so there is no rate.
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
    fn values_are_sorted_in_descending_order_and_missing_ones_last() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            show: ShowArgs,
        }
        let of = |name: &str, values: SampleValues| Sample {
            timestamp: Timestamp::UNIX_EPOCH,
            values,
            identity: Arc::new(SandboxIdentity { name: name.into(), ..SandboxIdentity::default() }),
        };
        // Each sandbox is first in two columns; `d` has no values.
        let a = SampleValues {
            cpu_percent: Some(9.5),
            memory_bytes: Some(1),
            disk_read_bytes: Some(5),
            disk_write_bytes: Some(5),
            net_rx_bytes: Some(3),
            net_tx_bytes: Some(1),
            processes: Some(10),
            uptime_secs: Some(2.0),
            ..SampleValues::default()
        };
        let b = SampleValues {
            cpu_percent: Some(10.5),
            memory_bytes: Some(3),
            disk_read_bytes: Some(9),
            disk_write_bytes: Some(0),
            net_rx_bytes: Some(2),
            net_tx_bytes: Some(0),
            processes: Some(9),
            uptime_secs: Some(3.0),
            ..SampleValues::default()
        };
        let c = SampleValues {
            cpu_percent: Some(0.0),
            memory_bytes: Some(2),
            disk_read_bytes: Some(0),
            disk_write_bytes: Some(11),
            net_rx_bytes: Some(0),
            net_tx_bytes: Some(9),
            processes: Some(2),
            uptime_secs: Some(1.0),
            ..SampleValues::default()
        };
        let samples = vec![of("a", a), of("b", b), of("c", c), of("d", SampleValues::default())];
        let sorted = |column: &str| -> String {
            let collection = Collection {
                at: Timestamp::UNIX_EPOCH,
                samples: samples.clone(),
                exits: Vec::new(),
            };
            let line: Line = clap::Parser::parse_from(["x", "--sort", column]);
            let names = select(collection, &line.show).samples;
            names.iter().map(|of| of.identity.name.as_str()).collect()
        };
        let columns = ["name", "cpu", "memory", "disk", "net", "processes", "uptime"];
        let found = columns.map(sorted);
        assert_eq!(found, ["abcd", "bacd", "bcad", "cabd", "cabd", "abcd", "bacd"]);
    }

    #[test]
    fn uptimes_show_two_units_at_most() {
        let all = [5.9, 65.0, 3700.0, 90_000.0].map(uptime);
        assert_eq!(all, ["5s", "1m5s", "1h1m", "1d1h"]);
    }
}
