//! Whether a guest may start from memory: what was typed, else the environment, else the configuration.

use clap::{Args, ValueEnum};
use libmsb::cli::error::Failure;
use libmsb::cli::escape::escape;
use libmsb::state::spec::{BootMode, Spec};
use libmsb::state::{Home, write};
use serde::Deserialize;

/// The mode for those who do not say one on the command line.
const VARIABLE: &str = "MSB_BOOT";

/// Longest configuration, in bytes.
const CONFIG_BYTES_MAX: u64 = 1024 * 1024;

/// What is typed about the start of a guest.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct BootArgs {
    /// Boot the guest's kernel, never start from memory
    #[arg(long, conflicts_with = "from_memory")]
    cold: bool,
    /// Start from memory with --security restricted too
    #[arg(long)]
    from_memory: bool,
}

/// The part of the user's configuration that is about the start.
#[derive(Debug, Default, Deserialize)]
struct Config {
    boot: Option<BootMode>,
}

impl BootArgs {
    /// Returns whether something was said.
    pub(crate) fn is_given(&self) -> bool {
        self.cold || self.from_memory
    }

    /// Returns what the user wants: on the command line, else in [`VARIABLE`], else in the configuration.
    pub(crate) fn choice(&self, home: &Home) -> anyhow::Result<Option<BootMode>> {
        if self.is_given() {
            return Ok(Some(if self.cold {
                BootMode::Cold
            } else {
                BootMode::Memory
            }));
        }
        if let Some(word) = std::env::var_os(VARIABLE).filter(|value| !value.is_empty()) {
            let word = word.to_string_lossy();
            if word == "auto" {
                return Ok(None);
            }
            return BootMode::from_str(&word, false).map(Some).map_err(|_| {
                Failure::usage(format!(
                    "{VARIABLE} names no way to start: '{}'",
                    escape(word.as_ref())
                ))
                .hint("ways to start are auto, cold and memory")
                .into()
            });
        }
        let config: Option<Config> = write::read_json(&home.config(), CONFIG_BYTES_MAX)?;
        Ok(config.unwrap_or_default().boot)
    }
}

/// Returns whether a sandbox may start from memory, and leave its state. Guests of one state have the layout of their kernel
/// and what was made of random numbers before it in common: a restricted guest does so only if it is asked for.
pub(crate) fn may_start_from_memory(spec: &Spec) -> bool {
    match spec.boot {
        Some(BootMode::Cold) => false,
        Some(BootMode::Memory) => true,
        None => !spec.guest.security.is_restricted(),
    }
}
