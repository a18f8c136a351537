//! docs/CONFIG.md, made from the sections.

use std::fmt::Write as _;

use super::section::{Field, Section};
use super::{
    admission, certificate, cluster, database, device, isolation, link, link_test, log, node, notice, operations,
    people, poll, postgres, shutdown, sign_in, support, telemetry, trace, tunnel,
};

const HEAD: &str = "\
# Configuration of cloudlinkd

<!-- Made by `cloudlinkd config reference`; a test compares. -->

One TOML file (`--config`, else `/etc/cloudlink/cloudlinkd.toml` if it exists), over it the environment, over that flags:
`listen` of `[device]` is `CLOUDLINK_DEVICE_LISTEN` in the environment and `--set device.listen=…` as a flag; keys at the top
of the file are `CLOUDLINK_DATA_DIR` and `--set data_dir=…`. Lists are separated by commas there. Every key has a default.

Unknown keys are errors; in the environment, unknown names within a section are. `cloudlinkd config check` tells everything
that is wrong, with lines and hints, and exits with 64; `cloudlinkd run` does the same before it binds a port.
`cloudlinkd config show` prints what is in force and where it came from, secrets redacted. The configuration is read at start
only: restart the node to change it.
";

/// The text of docs/CONFIG.md.
#[must_use]
pub fn reference() -> String {
    let mut text = HEAD.to_owned();
    for section in sections() {
        describe(&mut text, &section);
    }
    text
}

fn sections() -> [Section; 21] {
    [
        node::Node::describe(),
        device::Device::describe(),
        admission::Admission::describe(),
        people::People::describe(),
        operations::Operations::describe(),
        cluster::Cluster::describe(),
        link::Link::describe(),
        poll::Poll::describe(),
        tunnel::Tunnel::describe(),
        isolation::Isolation::describe(),
        support::Support::describe(),
        telemetry::Telemetry::describe(),
        link_test::LinkTest::describe(),
        sign_in::SignIn::describe(),
        notice::Notice::describe(),
        certificate::Certificate::describe(),
        database::Database::describe(),
        postgres::Postgres::describe(),
        log::Log::describe(),
        trace::Trace::describe(),
        shutdown::Shutdown::describe(),
    ]
}

fn describe(text: &mut String, section: &Section) {
    let title = if section.table.is_empty() { "Top of the file".to_owned() } else { format!("`[{}]`", section.table) };
    let _ = write!(text, "\n## {title}\n\n{}\n\n", prose(section.about));
    text.push_str("| key | default | range | what it is |\n|---|---|---|---|\n");
    for Field { key, about, expected, default, range } in &section.fields {
        let default = default.as_ref().map_or_else(|| "not set".to_owned(), |default| format!("`{default}`"));
        let range = range
            .as_ref()
            .map_or_else(|| (*expected).to_owned(), |range| format!("{} to {}", range.start(), range.end()));
        let _ = writeln!(text, "| `{key}` | {default} | {range} | {} |", prose(about));
    }
}

fn prose(lines: &[&str]) -> String {
    lines.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
}
