//! Looks at what support may do on the device, and whether it could.

use super::Finding;
use crate::config::{Config, File, Forward, Terminal};
use crate::stream::terminal;

pub(super) fn examine(config: &Config) -> Vec<Finding> {
    let mut findings = vec![terminal(&config.terminal), forward(&config.forward)];
    findings.extend(files(&config.file));
    findings
}

fn terminal(settings: &Terminal) -> Finding {
    let about = "terminal";
    if !settings.enabled {
        return Finding::good(about, "off: nobody gets a shell (terminal.enabled)");
    }
    match terminal::probe(settings) {
        Ok(shell) => Finding::good(about, format!("on: {shell}")),
        Err(error) => Finding::bad(
            about,
            format!("on, and cannot be opened: {error}"),
            "correct terminal.argv, or the login shell of the agent's user; /dev/ptmx and /dev/pts must be there",
        ),
    }
}

fn forward(settings: &Forward) -> Finding {
    let about = "forward";
    match settings.allow.len() {
        0 => Finding::good(about, "off: no target is allowed (forward.allow)"),
        count => Finding::good(about, format!("on: {count} target(s) allowed")),
    }
}

fn files(settings: &File) -> Vec<Finding> {
    let about = "files";
    if settings.roots.is_empty() {
        return vec![Finding::good(about, "off: no directory is allowed (file.roots)")];
    }
    let found = settings.roots.iter().map(|root| {
        let shown = root.display();
        match root.canonicalize() {
            Ok(real) if real.parent().is_none() => Finding::warning(
                about,
                format!("on: {shown}, at most {} bytes", settings.bytes_max),
                "that is every file of the device but the agent's own: name the directories that support needs",
            ),
            Ok(real) if real.is_dir() => {
                Finding::good(about, format!("on: {shown}, at most {} bytes", settings.bytes_max))
            }
            Ok(_) => Finding::warning(about, format!("{shown} is no directory"), "correct file.roots"),
            Err(error) => Finding::warning(about, format!("{shown}: {error}"), "make it, or correct file.roots"),
        }
    });
    found.collect()
}
