//! `msb image tag`: one more name for an image.

use anyhow::{Context, Result};
use libmsb::reference::Reference;
use libmsb::state::Home;

use crate::arguments::Tag;
use crate::load::{check_pins, note, put_reference};
use crate::remove::no_such_image;
use crate::store;

pub(crate) fn run(home: &Home, args: Tag) -> Result<()> {
    let source: Reference = args.source.parse()?;
    let name: Reference = args.name.parse()?;
    if home.images().record(&source)?.is_none() {
        return Err(no_such_image(&source));
    }
    let (store, _lock) = store::open_for_adding(home)?;
    // It may have gone since.
    let record = store
        .record(&source)?
        .ok_or_else(|| no_such_image(&source))?;
    check_pins(std::slice::from_ref(&name), &record.manifest_digest)
        .with_context(|| format!("cannot tag '{}'", source.familiar()))?;
    put_reference(&store, &name, &record.manifest_digest)?;
    if !args.quiet {
        note(&format!("Tagged {name}"));
    }
    Ok(())
}
