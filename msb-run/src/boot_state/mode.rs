//! The choice between cold boot and start from memory: command line, then environment, then
//! configuration.

use clap::{Args, ValueEnum};
use libmsb::cli::error::Failure;
use libmsb::cli::escape::escape;
use libmsb::state::config::UserConfig;
use libmsb::state::spec::{BootMode, Spec};

/// Environment variable with the mode when the command line names none.
const VARIABLE: &str = "MSB_BOOT";

/// Options about the start of a guest.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct BootArgs {
    /// Boot the guest kernel; do not start from memory
    ///
    /// See **Start from memory** in msb-run(1).
    #[arg(long, conflicts_with = "from_memory", help_heading = "Resources")]
    cold: bool,
    /// Start from memory even with --security restricted
    #[arg(long, help_heading = "Resources")]
    from_memory: bool,
}

impl BootArgs {
    /// Returns whether an option was given.
    pub(crate) fn is_given(&self) -> bool {
        self.cold || self.from_memory
    }

    /// Returns whether a boot was requested on the command line.
    pub(crate) fn is_cold(&self) -> bool {
        self.cold
    }

    /// Returns the choice from the command line, else the `written` one of a sandbox file, else from
    /// [`VARIABLE`], else from the configuration.
    pub(crate) fn choice(
        &self,
        config: &UserConfig,
        written: Option<BootMode>,
    ) -> anyhow::Result<Option<BootMode>> {
        if self.is_given() {
            return Ok(Some(if self.cold { BootMode::Cold } else { BootMode::Memory }));
        }
        if written.is_some() {
            return Ok(written);
        }
        if let Some(word) = std::env::var_os(VARIABLE).filter(|value| !value.is_empty()) {
            let word = word.to_string_lossy();
            if word == "auto" {
                return Ok(None);
            }
            return BootMode::from_str(&word, false).map(Some).map_err(|_| {
                Failure::usage(format!("invalid value of {VARIABLE}: '{}'", escape(word.as_ref())))
                    .hint("values are auto, cold and memory")
                    .into()
            });
        }
        Ok(config.boot)
    }
}

/// Returns whether a sandbox may start from memory and may record its state. Guests that start from
/// one state share the layout of their kernel and everything derived from random numbers before the
/// state was taken. A restricted guest therefore starts from memory only on request.
pub(crate) fn may_start_from_memory(spec: &Spec) -> bool {
    match spec.boot {
        Some(BootMode::Cold) => false,
        Some(BootMode::Memory) => true,
        None => !spec.guest.security.is_restricted(),
    }
}
