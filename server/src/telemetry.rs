//! The log. Spans are named `area.noun.verb`; what peers say is logged escaped and cut, secrets never.

use std::io::IsTerminal;

use tracing_subscriber::fmt;
use tracing_subscriber::prelude::*;

use crate::config::{Format, Log};

/// Sends everything from here on to standard error.
pub fn start(config: &Log) {
    let terminal = std::io::stderr().is_terminal();
    let human = match config.format {
        Format::Human => true,
        Format::Json => false,
        Format::Auto => terminal,
    };
    let colours = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let registry = tracing_subscriber::registry().with(config.filter.directives());
    // A second start (in tests) keeps the first.
    let _ = if human {
        registry.with(fmt::layer().with_writer(std::io::stderr).with_ansi(colours)).try_init()
    } else {
        let json = fmt::layer().json().flatten_event(true).with_current_span(true).with_span_list(false);
        registry.with(json.with_writer(std::io::stderr)).try_init()
    };
}
