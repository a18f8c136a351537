//! Devices.

use clap::{Args, Subcommand};
use serde_json::json;

use super::isolation::{Day, day};
use super::openvpn_profile::OpenVpnProfile;
use super::sample::Samples;
use super::{Context, command, confirm, link_test};
use crate::argument::{Label, Limit, SELECTOR_HELP};
use crate::client::{Answer, DeviceFilter};
use crate::failure::Failure;
use crate::model;
use crate::output::{Cell, Here, Table, Tone};
use crate::resolve;

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only devices whose labels are as this says, as in 'site=north,role in (a,b),!retired'
    #[arg(short = 'l', long, value_name = "SELECTOR", long_help = SELECTOR_HELP)]
    selector: Option<String>,
    /// Only devices with this label, as in site=north (repeatable: with all of them)
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<Label>,
    /// Only devices with a live link
    #[arg(long)]
    linked: bool,
    /// Only devices in quarantine
    #[arg(long)]
    quarantined: bool,
    #[command(flatten)]
    limit: Limit,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Device {
    /// Show everything about a device
    Show {
        /// Name or id
        device: String,
    },
    /// Rename or label a device
    Set(Set),
    /// Refuse a device and its certificates from now on, and cut its link; it would have to enroll again
    Revoke {
        /// Name or id
        device: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Show what a device tried and may not, by day and reason
    Drops(Drops),
    /// Show when a device booted, and which boots were ordered
    Boots {
        /// Name or id
        device: String,
    },
    /// Show what a device measured over time
    Samples(Samples),
    /// List tests of how fast the way to a device is, newest first
    LinkTests(link_test::List),
    /// Leave a device its link, and let nothing else of it through; its open ports are closed
    Quarantine {
        /// Name or id
        device: String,
        /// Why, for the record
        #[arg(long)]
        reason: String,
    },
    /// End a device's quarantine; what was open before stays closed
    Release {
        /// Name or id
        device: String,
    },
    /// Write the profile with which a stock OpenVPN client on a device reaches its server
    #[command(name = "openvpn-profile")]
    OpenVpnProfile(OpenVpnProfile),
}

#[derive(Debug, Args)]
pub(crate) struct Drops {
    /// Name or id
    device: String,
    /// The first day (UTC), as in 2026-11-21; without it, 29 days before the last one
    #[arg(long, value_name = "DAY", value_parser = day)]
    from: Option<Day>,
    /// The last day; without it, today
    #[arg(long, value_name = "DAY", value_parser = day)]
    until: Option<Day>,
}

#[derive(Debug, Args)]
#[group(id = "change", required = true, multiple = true)]
pub(crate) struct Set {
    /// Name or id
    device: String,
    /// The new name
    #[arg(long, group = "change")]
    name: Option<String>,
    /// A label to set, as in site=north (repeatable)
    #[arg(long = "label", value_name = "KEY=VALUE", group = "change")]
    labels: Vec<Label>,
    /// The key of a label to remove (repeatable)
    #[arg(long = "remove-label", value_name = "KEY", group = "change")]
    removed: Vec<String>,
}

impl List {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        let filter = DeviceFilter {
            labels: self.labels.iter().map(|label| format!("{}:{}", label.key, label.value)).collect(),
            selector: self.selector.clone(),
            linked: self.linked,
            quarantined: self.quarantined,
            name: None,
        };
        let list = context.client()?.devices(self.limit.items(), &filter).await?;
        context.list(&list, || table(&list.items, &context.output.here()))
    }
}

pub(super) fn table(devices: &[Answer<model::Device>], here: &Here) -> Table {
    let mut table = Table::new(&["NAME", "LINK", "PROVEN", "LABELS", "ID"]).whole(4);
    for Answer { value, .. } in devices {
        table.row(vec![
            value.name.clone().into(),
            link_state(value),
            Cell::or_none(last_heard(value).map(|at| here.relative(at))),
            labels(&value.labels).into(),
            value.id.to_string().into(),
        ]);
    }
    table
}

impl Device {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        match self {
            Self::OpenVpnProfile(profile) => profile.run(context).await,
            Self::Show { device } => {
                let device = resolve::device(&client, device).await?;
                context.show(&device, || record(&device.value, &context.output.here()))
            }
            Self::Set(set) => {
                let device = resolve::device(&client, &set.device).await?;
                let device = client.device_patch(&device, set.body(&device.value)).await?;
                context.show(&device, || record(&device.value, &context.output.here()))
            }
            Self::Drops(drops) => drops.run(context).await,
            Self::Samples(samples) => samples.run(context).await,
            Self::LinkTests(list) => list.run(context).await,
            Self::Boots { device } => {
                let device = resolve::device(&client, device).await?;
                let boots = client.device_boots(device.value.id).await?;
                let here = context.output.here();
                context.show(&boots, || boots_table(&boots.value, &here))?;
                match &boots.value.missing {
                    Some(missing) if !context.output.json => context.output.line(&not_back(missing, &here)),
                    Some(_) | None => Ok(()),
                }
            }
            Self::Quarantine { device, reason } => {
                let device = resolve::device(&client, device).await?;
                let device = client.device_quarantine(device.value.id, reason).await?;
                let name = &device.value.name;
                if context.output.json {
                    return context.output.json(&device.json);
                }
                context.output.line(&format!(
                    "Device {name} ({}) is in quarantine: it has its link and nothing else",
                    device.value.id
                ))
            }
            Self::Release { device } => {
                let device = resolve::device(&client, device).await?;
                let device = client.device_release(device.value.id).await?;
                let name = &device.value.name;
                if context.output.json {
                    return context.output.json(&device.json);
                }
                context.output.line(&format!("Device {name} ({}) is not in quarantine any more", device.value.id))
            }
            Self::Revoke { device, yes } => {
                let device = resolve::device(&client, device).await?;
                let name = &device.value.name;
                confirm(
                    &format!("Revoke the device {name} ({})? It will have to enroll again.", device.value.id),
                    *yes,
                )?;
                let answer = client.device_revoke(device.value.id).await?;
                if context.output.json {
                    return context.output.json(&answer.json);
                }
                context.output.line(&format!("Device {name} ({}) is revoked", device.value.id))
            }
        }
    }
}

impl Drops {
    async fn run(&self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        let device = resolve::device(&client, &self.device).await?;
        let now = context.output.here().now;
        let [from, until] = [self.from, self.until].map(|day| day.map(|day| day.date(now)));
        let drops = client.device_drops(device.value.id, from, until).await?;
        context.show(&drops, || drops_table(&drops.value, &context.output.here()))
    }
}

fn drops_table(drops: &model::DeviceDrops, here: &Here) -> Table {
    let mut table = Table::new(&["DAY (UTC)", "REASON", "PACKETS", "FIRST", "LAST", "WHAT IT TRIED"]);
    for drop in &drops.items {
        table.row(vec![
            drop.day.clone().into(),
            drop.reason.clone().into(),
            drop.packets.to_string().into(),
            here.local(drop.first_at).into(),
            here.local(drop.last_at).into(),
            Cell::new(in_words(&drop.reason)),
        ]);
    }
    table
}

fn boots_table(boots: &model::DeviceBoots, here: &Here) -> Table {
    let mut table = Table::new(&["FIRST SEEN", "CAUSE", "COMMAND", "BOOT ID"]);
    for boot in &boots.boots {
        let tone = if boot.cause == "ordered" { Tone::Plain } else { Tone::Warn };
        table.row(vec![
            here.short(boot.seen_at).into(),
            Cell::toned(boot.cause.clone(), tone),
            Cell::or_none(boot.command_id.map(|id| id.to_string())),
            boot.boot_id.clone().into(),
        ]);
    }
    table
}

fn not_back(missing: &model::MissingBoot, here: &Here) -> String {
    let ordered = here.full(missing.ordered_at);
    format!("It was ordered to reboot at {ordered} and has not come back (command {})", missing.command_id)
}

/// Why packets were not let through.
fn in_words(reason: &str) -> &'static str {
    match reason {
        "source" => "to speak for another address",
        "destination" => "to reach somebody else than its node",
        "multicast" => "to reach a multicast group",
        "broadcast" => "to reach everybody",
        "malformed" => "to send what is no whole packet",
        "fragment" => "to send pieces of packets",
        "options" => "to send IP options, as source routes are",
        "protocol" => "to speak something else than TCP or ping",
        "port" => "to reach a port of its node that is not the link's",
        "quarantine" => "to do in quarantine what it may do otherwise",
        _ => "",
    }
}

impl Set {
    fn body(&self, device: &model::Device) -> serde_json::Value {
        let mut body = json!({});
        if let Some(name) = &self.name {
            body["name"] = name.as_str().into();
        }
        if !self.labels.is_empty() || !self.removed.is_empty() {
            let mut labels = device.labels.clone();
            for key in &self.removed {
                labels.remove(key);
            }
            labels.extend(self.labels.iter().map(|label| (label.key.clone(), label.value.clone())));
            body["labels"] = json!(labels);
        }
        body
    }
}

fn record(device: &model::Device, here: &Here) -> Table {
    let mut table = Table::record();
    table.field("name", device.name.clone());
    table.field("id", device.id.to_string());
    table.field("tenant", device.tenant_id.to_string());
    table.field("labels", labels(&device.labels));
    table.field("enrolled", here.full(device.enrolled_at));
    if let Some(at) = device.revoked_at {
        table.field("revoked", Cell::toned(here.full(at), Tone::Bad));
    } else if device.state != "active" {
        table.field("state", Cell::toned(device.state.clone(), Tone::Warn));
    }
    if let Some(busy) = &device.busy_lock {
        table.field("busy", Cell::toned(format!("until {}", here.full(busy.until)), Tone::Warn));
        table.field("  because", busy.reason.clone());
    }
    if let Some(standing) = &device.configuration {
        let versions = format!("{} of {}", standing.applied_version, standing.desired_version);
        table.field("configuration", format!("{}, version {versions}", standing.state));
    }
    if let Some(quarantine) = &device.quarantine {
        let by = quarantine.by.map_or_else(|| "the server".to_owned(), |by| by.to_string());
        table.field("quarantine", Cell::toned(format!("since {}", here.full(quarantine.since)), Tone::Bad));
        table.field("  by", by);
        table.field("  because", quarantine.reason.clone());
    }
    if let Some(certificate) = &device.certificate {
        table.field("certificate", format!("{}, valid until {}", certificate.serial, here.full(certificate.not_after)));
    }
    table.field("link", link_state(device));
    if let Some(link) = &device.link {
        link_fields(&mut table, link, here);
    }
    if let Some(tunnel) = &device.tunnel {
        tunnel_fields(&mut table, tunnel, here);
    }
    if let Some(poll) = &device.poll {
        poll_fields(&mut table, poll, here);
    }
    for (index, failure) in device.transport_failures.iter().enumerate() {
        let times = if failure.count == 1 { "once".to_owned() } else { format!("{} times", failure.count) };
        let told = format!(
            "{}: {} at {}, {times}, last {}",
            failure.transport,
            failure.code,
            failure.stage,
            here.relative(failure.last_at)
        );
        table.field(if index == 0 { "failures" } else { "" }, Cell::toned(told, Tone::Warn));
    }
    table
}

/// By a link, or by a poll.
fn last_heard(device: &model::Device) -> Option<jiff::Timestamp> {
    let (link, poll) = (device.link.as_ref(), device.poll.as_ref());
    link.map(|link| link.proven_at).max(poll.map(|poll| poll.last_poll_at))
}

fn poll_fields(table: &mut Table, poll: &model::Poll, here: &Here) {
    table.field("last poll", here.full(poll.last_poll_at));
    let Some(next_by) = poll.next_poll_by else { return };
    let every = crate::output::rough(jiff::SignedDuration::from_secs(poll.interval_seconds));
    table.field("  next by", format!("{}, every {every}", here.full(next_by)));
    table.field("  from", poll.remote_address.clone());
    table.field("  host", format!("{}, {}", poll.hostname, poll.os));
    table.field("  agent", poll.agent.clone());
    table.field("  boot id", poll.boot_id.clone());
    table.field("  clock", clock(poll.clock_offset_ms));
    if !poll.running.is_empty() {
        let running: Vec<_> = poll.running.iter().map(|of| format!("{} {}", of.name, of.state)).collect();
        table.field("  runs", running.join(", "));
    }
}

fn link_fields(table: &mut Table, link: &model::Link, here: &Here) {
    table.field("  connected", here.full(link.connected_at));
    table.field("  last proven", here.full(link.proven_at));
    if let Some(at) = link.closed_at {
        table.field("  closed", here.full(at));
    }
    if let Some(reason) = &link.close_reason {
        table.field("  because", reason.clone());
    }
    table.field("  from", link.remote_address.clone());
    table.field("  to node", format!("{}, epoch {}", link.node, link.epoch));
    if !link.has_agent {
        if link.is_live() {
            table.field("  agent", Cell::toned("none answers on this tunnel: it takes no commands", Tone::Warn));
        }
        // It is the agent that tells the rest.
        return;
    }
    table.field("  host", format!("{}, {}", link.hostname, link.os));
    table.field("  agent", link.agent.clone());
    table.field("  can do", link.capabilities.join(", "));
    table.field("  boot id", link.boot_id.clone());
    table.field("  clock", clock(link.clock_offset_ms));
}

fn tunnel_fields(table: &mut Table, tunnel: &model::Tunnel, here: &Here) {
    table.field("tunnel", format!("{}, {}", tunnel.ipv4, tunnel.ipv6));
    table.field("  opened", here.full(tunnel.opened_at));
    let or_unknown = |claim: &str| if claim.is_empty() { "(unknown)".to_owned() } else { claim.to_owned() };
    let (client, platform) = (or_unknown(&tunnel.client), or_unknown(&tunnel.platform));
    table.field("  client", format!("OpenVPN {client} on {platform}, {}", tunnel.cipher));
    table.field("  from it", traffic(tunnel.bytes_in, tunnel.packets_in));
    table.field("  to it", traffic(tunnel.bytes_out, tunnel.packets_out));
    table.field("  dropped", count(tunnel.dropped));
}

fn traffic(bytes: u64, packets: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
    let bytes = command::bytes(bytes as f64);
    format!("{bytes} in {}", count(packets))
}

fn count(packets: u64) -> String {
    format!("{packets} {}", if packets == 1 { "packet" } else { "packets" })
}

/// How far a device's clock was off when it linked.
fn clock(offset_ms: i64) -> Cell {
    const TOLERATED_MS: u64 = 2000;
    let off = offset_ms.unsigned_abs();
    if off < TOLERATED_MS {
        return format!("right (off by {offset_ms} ms)").into();
    }
    let span = crate::output::rough(jiff::SignedDuration::from_millis(offset_ms));
    Cell::toned(format!("{span} {}", if offset_ms < 0 { "behind" } else { "ahead" }), Tone::Warn)
}

fn link_state(device: &model::Device) -> Cell {
    if device.revoked_at.is_some() {
        return Cell::toned("revoked", Tone::Bad);
    }
    match &device.link {
        Some(link) if link.is_live() && device.quarantine.is_some() => {
            Cell::toned(format!("live, {}, quarantine", link.transport), Tone::Bad)
        }
        Some(link) if link.is_live() && link.has_agent => Cell::toned(format!("live, {}", link.transport), Tone::Good),
        Some(link) if link.is_live() => Cell::toned(format!("live, {}, no agent", link.transport), Tone::Warn),
        _ if device.next_poll_by().is_some() => Cell::toned("polling", Tone::Warn),
        Some(_) => Cell::toned("closed", Tone::Warn),
        None => Cell::toned("never linked", Tone::Dim),
    }
}

/// `floor=2, site=north`
#[must_use]
pub(crate) fn labels(labels: &model::Labels) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(", ")
}

/// What a selector says: in its grammar, or as labels by a server of before there was one.
#[must_use]
pub(crate) fn selected(labels: &model::Labels, text: Option<&String>) -> String {
    format!("all with {}", text.map_or_else(|| self::labels(labels), Clone::clone))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> model::Device {
        serde_json::from_value(json!({
            "id": "018f0000-0000-7000-8000-000000000001", "tenant_id": "018f0000-0000-7000-8000-000000000002",
            "name": "gw-1", "labels": {"site": "north", "floor": "2"}, "state": "active", "version": 1,
            "enrolled_at": "2026-11-21T14:00:00Z", "revoked_at": null, "certificate": null, "link": null,
        }))
        .unwrap()
    }

    #[test]
    fn what_was_tried_is_shown_in_words_and_a_reason_of_tomorrow_without() {
        let drop = |reason: &str, packets: u64| {
            json!({"day": "2026-11-21", "reason": reason, "packets": packets,
                   "first_at": "2026-11-21T14:00:00Z", "last_at": "2026-11-21T15:00:00Z"})
        };
        let drops = serde_json::from_value(json!({"items": [drop("port", 1200), drop("gravity", 1)]})).unwrap();
        let here = Here { now: "2026-11-21T16:00:00Z".parse().unwrap(), zone: jiff::tz::TimeZone::UTC };
        let text = drops_table(&drops, &here).render(false, None);
        assert!(text.lines().next().unwrap().starts_with("DAY (UTC)   REASON   PACKETS"), "{text}");
        assert!(text.contains("port     1200"), "{text}");
        assert!(text.contains("to reach a port of its node that is not the link's"), "{text}");
        assert!(text.contains("gravity  1"), "{text}");
    }

    #[test]
    fn boots_are_shown_with_what_ordered_them_and_a_device_that_is_missing() {
        let id = "018f0000-0000-7000-8000-000000000001";
        let boots: model::DeviceBoots = serde_json::from_value(json!({
            "device_id": id,
            "boots": [{"boot_id": "b-2", "seen_at": "2026-11-21T14:00:00Z", "cause": "ordered", "command_id": id},
                      {"boot_id": "b-1", "seen_at": "2026-11-20T14:00:00Z", "cause": "watchdog", "command_id": null}],
            "missing": {"command_id": id, "ordered_at": "2026-11-21T15:00:00Z"},
        }))
        .unwrap();
        let here = Here { now: "2026-11-21T16:00:00Z".parse().unwrap(), zone: jiff::tz::TimeZone::UTC };
        let text = boots_table(&boots, &here).render(false, None);
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[1].contains("ordered") && lines[1].contains(id) && lines[1].contains("b-2"), "{text}");
        assert!(lines[2].contains("watchdog") && lines[2].contains("b-1"), "{text}");
        let missing = not_back(boots.missing.as_ref().unwrap(), &here);
        assert!(missing.contains("1 h ago") && missing.contains(id), "{missing}");
    }

    #[test]
    fn a_quarantine_is_seen_in_lists_and_explained_in_the_record() {
        let mut device = device();
        device.quarantine = serde_json::from_value(
            json!({"since": "2026-11-21T14:00:00Z", "by": null, "reason": "20 packets within 60 s"}),
        )
        .unwrap();
        let text = shown(&device);
        for line in ["quarantine", "the server", "20 packets within 60 s"] {
            assert!(text.contains(line), "{text}");
        }
    }

    #[test]
    fn labels_that_are_not_named_stay_and_a_new_name_changes_none() {
        let mut set = Set {
            device: "gw-1".to_owned(),
            name: None,
            labels: vec!["site=south".parse().unwrap(), "rack=4".parse().unwrap()],
            removed: vec!["floor".to_owned()],
        };
        assert_eq!(set.body(&device()), json!({"labels": {"site": "south", "rack": "4"}}));
        set = Set { name: Some("gw-2".to_owned()), labels: Vec::new(), removed: Vec::new(), ..set };
        assert_eq!(set.body(&device()), json!({"name": "gw-2"}));
    }

    fn device_in_tunnel(has_agent: bool) -> model::Device {
        let of_agent = |text: &str| if has_agent { text.to_owned() } else { String::new() };
        let link = json!({
            "transport": "openvpn", "state": "live", "node": "node-1", "epoch": 3, "remote_address": "192.0.2.7",
            "boot_id": of_agent("b-1"), "agent": of_agent("agent/1"), "os": of_agent("Debian"),
            "hostname": of_agent("gw"), "clock_offset_ms": 0, "capabilities": [], "connected_at": "2026-11-21T14:00:00Z",
            "proven_at": "2026-11-21T14:00:05Z", "closed_at": null, "close_reason": null, "has_agent": has_agent,
        });
        let tunnel = json!({
            "ipv4": "100.64.0.2", "ipv6": "fd00:1:2::2", "client": "2.6.14", "platform": "linux", "cipher": "AES-256-GCM",
            "opened_at": "2026-11-21T14:00:00Z", "packets_in": 1, "packets_out": 1200, "bytes_in": 84,
            "bytes_out": 1_610_612_736_u64, "dropped": 2,
        });
        let (link, tunnel) = (serde_json::from_value(link).unwrap(), serde_json::from_value(tunnel).unwrap());
        model::Device { link: Some(link), tunnel: Some(tunnel), ..device() }
    }

    fn shown(device: &model::Device) -> String {
        let zone = jiff::tz::TimeZone::UTC;
        record(device, &Here { now: "2026-11-21T14:00:09Z".parse().unwrap(), zone }).render(false, None)
    }

    #[test]
    fn a_tunnel_without_an_agent_is_shown_with_its_addresses_and_traffic() {
        insta::assert_snapshot!(shown(&device_in_tunnel(false)), @r"
        name           gw-1
        id             018f0000-0000-7000-8000-000000000001
        tenant         018f0000-0000-7000-8000-000000000002
        labels         floor=2, site=north
        enrolled       2026-11-21 14:00:00 UTC (9 s ago)
        link           live, openvpn, no agent
          connected    2026-11-21 14:00:00 UTC (9 s ago)
          last proven  2026-11-21 14:00:05 UTC (4 s ago)
          from         192.0.2.7
          to node      node-1, epoch 3
          agent        none answers on this tunnel: it takes no commands
        tunnel         100.64.0.2, fd00:1:2::2
          opened       2026-11-21 14:00:00 UTC (9 s ago)
          client       OpenVPN 2.6.14 on linux, AES-256-GCM
          from it      84 B in 1 packet
          to it        1.5 GiB in 1200 packets
          dropped      2 packets
        ");
    }

    #[test]
    fn a_tunnel_with_an_agent_shows_both() {
        let shown = shown(&device_in_tunnel(true));
        for part in ["live, openvpn\n", "agent/1", "b-1", "100.64.0.2, fd00:1:2::2"] {
            assert!(shown.contains(part), "{part:?} is not in {shown}");
        }
        assert!(!shown.contains("no agent"), "{shown}");
    }

    #[test]
    fn a_device_that_polls_is_seen_in_lists_and_explained_in_the_record() {
        let poll = json!({
            "last_poll_at": "2026-11-21T13:55:09Z", "next_poll_by": "2026-11-21T14:12:09Z", "interval_seconds": 900,
            "node": "node-1", "remote_address": "192.0.2.7", "boot_id": "b-1", "agent": "agent/1", "os": "Debian",
            "hostname": "gw", "clock_offset_ms": 0, "capabilities": [],
            "running": [{"name": "nginx", "state": "active", "kind": "service"}],
        });
        let polls = model::Device { poll: Some(serde_json::from_value(poll).unwrap()), ..device() };
        insta::assert_snapshot!(shown(&polls), @r"
        name       gw-1
        id         018f0000-0000-7000-8000-000000000001
        tenant     018f0000-0000-7000-8000-000000000002
        labels     floor=2, site=north
        enrolled   2026-11-21 14:00:00 UTC (9 s ago)
        link       polling
        last poll  2026-11-21 13:55:09 UTC (5 min ago)
          next by  2026-11-21 14:12:09 UTC (in 12 min), every 15 min
          from     192.0.2.7
          host     gw, Debian
          agent    agent/1
          boot id  b-1
          clock    right (off by 0 ms)
          runs     nginx active
        ");
        assert!(last_heard(&polls).is_some() && last_heard(&device()).is_none());
        let mut silent = polls;
        silent.poll.as_mut().unwrap().next_poll_by = None;
        assert!(shown(&silent).contains("never linked"), "{}", shown(&silent));
    }

    #[test]
    fn a_server_of_before_tunnels_is_understood() {
        let link = json!({
            "transport": "websocket", "state": "live", "node": "n", "epoch": 1, "remote_address": "192.0.2.7",
            "boot_id": "b", "agent": "a", "os": "o", "hostname": "h", "clock_offset_ms": 0, "capabilities": [],
            "connected_at": "2026-11-21T14:00:00Z", "proven_at": "2026-11-21T14:00:05Z", "closed_at": null,
            "close_reason": null,
        });
        let device = model::Device { link: Some(serde_json::from_value(link).unwrap()), ..device() };
        assert!(device.has_agent() && device.tunnel.is_none());
    }

    #[test]
    fn what_did_not_work_on_the_way_is_shown() {
        let failure = |transport: &str, code: &str, count: u64| {
            let failure = json!({"transport": transport, "stage": "tls", "code": code, "count": count,
                                 "last_at": "2026-11-21T14:00:00Z"});
            serde_json::from_value(failure).unwrap()
        };
        let failures = vec![failure("websocket", "connection_reset", 12), failure("openvpn", "timed_out", 1)];
        let text = shown(&model::Device { transport_failures: failures, ..device() });
        for part in [
            "failures  websocket: connection_reset at tls, 12 times, last 9 s ago\n",
            "          openvpn: timed_out at tls, once, last 9 s ago",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }

    #[test]
    fn a_clock_that_is_off_is_said_so() {
        let text = |offset_ms| {
            let mut table = Table::record();
            table.field("clock", clock(offset_ms));
            table.render(false, None)
        };
        assert_eq!(text(-3), "clock  right (off by -3 ms)");
        assert_eq!(text(-7_200_000), "clock  2 h behind");
        assert_eq!(text(90_000), "clock  2 min ahead");
        assert_eq!(text(i64::MIN).split_whitespace().last(), Some("behind"), "whatever a device claims");
    }
}
