//! `msb image list`.

use anyhow::Result;
use libmsb::cli::{error as cli_error, output, style};
use libmsb::reference::Reference;
use libmsb::state::Home;

use crate::args::{List, OutputFormat};
use crate::image_row::{ImageRow, size};
use crate::report::print_note;
use crate::store::find::ImageDocuments;

pub(crate) fn run(home: &Home, args: List) -> Result<()> {
    let store = home.images();
    let records = store.records()?;
    if args.quiet {
        let names: Vec<&str> = records.iter().map(|record| record.reference.as_str()).collect();
        return if names.is_empty() { Ok(()) } else { Ok(output::print(&names.join("\n"))?) };
    }
    let mut rows = Vec::new();
    for record in &records {
        let documents = ImageDocuments::read(&store, &record.manifest_digest);
        if let Err(error) = &documents {
            let message =
                format!("image '{}' is broken: {}", record.reference, cli_error::message(error));
            cli_error::warn(&message);
        }
        rows.push(ImageRow::new(&store, record, documents.ok().as_ref()));
    }
    if args.format == Some(OutputFormat::Json) {
        return Ok(output::print_json(&rows)?);
    }
    if rows.is_empty() {
        print_note(
            "No images. Add one with `msb image pull`, `msb image load` or `msb image import`.",
        );
        return Ok(());
    }
    print_table(&rows, args.absolute)
}

fn print_table(rows: &[ImageRow], absolute: bool) -> Result<()> {
    let mut table =
        style::Table::new(&["IMAGE", "DIGEST", "PLATFORM", ">LAYERS", ">SIZE", "CREATED"]);
    for row in rows {
        let name = row
            .reference
            .parse::<Reference>()
            .map_or(row.reference.clone(), |reference| reference.familiar());
        let dash = || "-".to_owned();
        let platform = row
            .os
            .as_ref()
            .zip(row.architecture.as_ref())
            .map(|(os, machine)| format!("{os}/{machine}"));
        table.row([
            name,
            row.digest.short(),
            platform.unwrap_or_else(|| "broken".to_owned()),
            row.layer_count.map_or_else(dash, |count| count.to_string()),
            row.size_bytes.map_or_else(dash, size),
            style::when(row.created_at, absolute),
        ]);
    }
    Ok(table.print()?)
}
