//! What devices try and may not, and quarantine. Their packets come as far as the driver's wall, and no further.

use super::*;

const UDP: u8 = 17;
const ESP: u8 = 50;

/// A packet to the node that may not pass.
fn bad(pushed: &Pushed, protocol: u8) -> Vec<u8> {
    let gateway = Ipv4Addr::from_bits(address(pushed).to_bits() & 0xffff_0000 | 1);
    let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0x40, 0, 64, protocol, 0, 0];
    packet.extend(address(pushed).octets());
    packet.extend(gateway.octets());
    packet.extend([0, 7, 0, 7, 0, 8, 0, 0]);
    packet
}

fn drops_of(device: &Gateway) -> String {
    format!(
        "select string_agg(reason || ' ' || packets, ', ' order by reason) from device_drops where device_id = '{}'",
        device.id
    )
}

fn audited(device: &Gateway, action: &str) -> String {
    format!(
        "select count(*)::text from audit where action = '{action}' and entry::jsonb -> 'subject' ->> 'id' = '{}'",
        device.id
    )
}

fn quarantined_hosts(port: &Port) -> usize {
    port.links.0.tunnels.as_ref().unwrap().plane.quarantined_hosts().len()
}

async fn until_quarantined(port: &Port, expected: usize) {
    let deadline = Instant::now() + CUT_WITHIN;
    while quarantined_hosts(port) != expected {
        assert!(Instant::now() < deadline, "{} are in quarantine instead of {expected}", quarantined_hosts(port));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until the node has looked how many are in quarantine.
async fn until_known(port: &Port, expected: u64) {
    port.until_metric("cloudlink_devices_quarantined", expected).await;
}

async fn set_quarantine(port: &Port, device: &Gateway, value: &str) {
    let sql = format!("update devices set (quarantined_at, quarantine_reason) = {value} where id = '{}'", device.id);
    port.run(&sql).await;
}

const BEGIN: &str = "(clock_timestamp(), 'test')";
const END: &str = "(null, null)";

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn what_a_device_tries_is_written_down_for_it(_: PgPoolOptions, database: PgConnectOptions) {
    let port = start(database).await;
    let fleet = Fleet::new(&port).await;
    let (device, other) = (fleet.device(&port).await, fleet.device(&port).await);
    let (mut client, pushed) = Client::live(&port, &device.credentials).await;
    let (_quiet, _) = Client::live(&port, &other.credentials).await;
    let mut forged = bad(&pushed, UDP);
    forged[12] = 9;
    client.send(&[bad(&pushed, UDP), bad(&pushed, ESP), forged]).await;
    port.until(&drops_of(&device), "protocol 2, source 1").await;
    assert_eq!(port.ask(&audited(&device, "device.drops")).await.as_deref(), Some("2"));
    // What it did last is there, too, though it went at once; and many packets are no more events.
    client.send(&vec![bad(&pushed, UDP); 100]).await;
    drop(client);
    port.until(&drops_of(&device), "protocol 102, source 1").await;
    assert_eq!(port.ask(&audited(&device, "device.drops")).await.as_deref(), Some("2"));
    assert_eq!(port.ask(&drops_of(&other)).await, None);
    // Nobody asked for more.
    assert_eq!(port.ask(&audited(&device, "device.quarantined")).await.as_deref(), Some("0"));
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn what_a_device_tries_waits_for_a_database_that_is_away(_: PgPoolOptions, database: PgConnectOptions) {
    let port = start(database).await;
    let fleet = Fleet::new(&port).await;
    let device = fleet.device(&port).await;
    let (mut client, pushed) = Client::live(&port, &device.credentials).await;
    port.run("revoke insert on device_drops from cloudlink_app").await;
    client.send(&vec![bad(&pushed, UDP); 5]).await;
    port.until_metric("cloudlink_task_failures_total{task=\"drop\"}", 1).await;
    client.send(&vec![bad(&pushed, UDP); 5]).await;
    port.run("grant insert on device_drops to cloudlink_app").await;
    port.until(&drops_of(&device), "protocol 10").await;
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn the_last_figures_of_a_node_that_stops_are_written(_: PgPoolOptions, database: PgConnectOptions) {
    let port = start(database).await;
    let fleet = Fleet::new(&port).await;
    let device = fleet.device(&port).await;
    let (mut client, pushed) = Client::live(&port, &device.credentials).await;
    client.send(&vec![bad(&pushed, UDP); 3]).await;
    port.until_metric("cloudlink_tunnel_dropped_total{reason=\"protocol\"}", 3).await;
    port.shutdown.soft.cancel();
    port.shutdown.hard.cancel();
    port.until(&drops_of(&device), "protocol 3").await;
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn who_tries_too_much_is_in_quarantine_over_every_tunnel_until_it_is_released(
    _: PgPoolOptions,
    database: PgConnectOptions,
) {
    let port = start_with(database, |settings| settings.quarantine_after_packets = 20).await;
    let fleet = Fleet::new(&port).await;
    let (device, other) = (fleet.device(&port).await, fleet.device(&port).await);
    let (mut client, pushed) = Client::live(&port, &device.credentials).await;
    let (mut below, below_pushed) = Client::live(&port, &other.credentials).await;
    client.send(&vec![bad(&pushed, UDP); 15]).await;
    below.send(&vec![bad(&below_pushed, UDP); 19]).await;
    port.until(&drops_of(&device), "protocol 15").await;
    assert_eq!(quarantined_hosts(&port), 0);
    client.send(&vec![bad(&pushed, ESP); 5]).await;
    let reason = format!("select quarantine_reason from devices where id = '{}'", device.id);
    port.until(&reason, "20 packets within 60 s that it may not send: protocol 20").await;
    until_quarantined(&port, 1).await;
    assert_eq!(port.metric("cloudlink_devices_quarantined"), 1);
    assert_eq!(port.ask(&audited(&device, "device.quarantined")).await.as_deref(), Some("1"));
    let actor = "select entry::jsonb -> 'actor' ->> 'kind' from audit where action = 'device.quarantined'";
    assert_eq!(port.ask(actor).await.as_deref(), Some("server"));

    // It comes again at once, and is in it before anything passes; its link works as ever.
    drop(client);
    let (mut again, pushed) = Client::live(&port, &device.credentials).await;
    assert_eq!(quarantined_hosts(&port), 1);
    again.send(&vec![bad(&pushed, UDP); 15]).await;
    port.until(&drops_of(&device), "protocol 35").await;
    let inside = dial_inside(&port, address(&pushed), "boot-1").await.unwrap();
    port.until(&link_of(&device, "has_agent"), "true").await;
    drop((inside, again));
    until_quarantined(&port, 0).await;

    set_quarantine(&port, &device, END).await;
    until_known(&port, 0).await;
    let (mut free, pushed) = Client::live(&port, &device.credentials).await;
    until_quarantined(&port, 0).await;
    // What it did in quarantine is not held against it.
    free.send(&vec![bad(&pushed, UDP); 19]).await;
    port.until(&drops_of(&device), "protocol 54").await;
    assert_eq!(quarantined_hosts(&port), 0);
    assert_eq!(port.ask(&audited(&device, "device.quarantined")).await.as_deref(), Some("1"));
    assert_eq!(port.ask(&audited(&other, "device.quarantined")).await.as_deref(), Some("0"));
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn quarantine_is_in_force_at_once_on_a_hint_and_within_a_second_without(
    _: PgPoolOptions,
    database: PgConnectOptions,
) {
    let port = start(database).await;
    let fleet = Fleet::new(&port).await;
    let (device, other) = (fleet.device(&port).await, fleet.device(&port).await);
    let (_client, _) = Client::live(&port, &device.credentials).await;
    let (_bystander, _) = Client::live(&port, &other.credentials).await;
    for hint in [true, false] {
        for (value, expected) in [(BEGIN, 1), (END, 0)] {
            set_quarantine(&port, &device, value).await;
            if hint {
                port.bus.send(Hint::DeviceChanged(device.device_id()));
            }
            until_quarantined(&port, expected).await;
        }
    }
    // Of a device without a tunnel, or without IP, it is known when it comes with one.
    let late = fleet.device(&port).await;
    set_quarantine(&port, &late, BEGIN).await;
    let (_late, _) = Client::live(&port, &late.credentials).await;
    assert_eq!(quarantined_hosts(&port), 1);
}
