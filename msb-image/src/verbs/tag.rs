//! `msb image tag`: adds a name for an image.

use anyhow::{Context, Result};
use libmsb::cli::output;
use libmsb::reference::Reference;
use libmsb::state::Home;
use libmsb::state::image_name::ImageName;

use crate::args::Tag;
use crate::store::open::open_for_adding;
use crate::store::put::{check_pins, put_reference};

pub(crate) fn run(home: &Home, args: Tag) -> Result<()> {
    let source: ImageName = args.source.parse()?;
    let name: Reference = args.name.parse()?;
    if home.images().named(&source)?.is_empty() {
        return Err(source.not_found().into());
    }
    let (store, _lock) = open_for_adding(home)?;
    // Another process may have removed it since.
    let record = store.named(&source)?.into_iter().next().ok_or_else(|| source.not_found())?;
    check_pins(std::slice::from_ref(&name), &record.manifest_digest)
        .with_context(|| format!("cannot tag '{}'", source.familiar()))?;
    put_reference(&store, &name, &record.manifest_digest)?;
    if !args.quiet {
        output::print(&name)?;
    }
    Ok(())
}
