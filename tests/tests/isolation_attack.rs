//! What a compromised device can try to get out of its tunnel, and that none of it gets anywhere.
//!
//! The same attempts are made four times: at a stock OpenVPN server that is open, which is what this product replaces; at the
//! kernel of its own host with nothing in force; at that kernel with the rules in force, behind the server's back; and at the
//! product. What the first two do not show to be possible would prove nothing of the others.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use cloudlink_tests::attack::{self, Attacker, Case, Forger, OpenServer, Opened, Product, Scan, Seen, Watchers, World};
use cloudlink_tests::fleet::directory;
use cloudlink_tests::netns;
use cloudlink_tests::openvpn::{Client, Pings, Tunnel, UP};
use cloudlink_tests::poll::wait_for;
use cloudlink_tests::traffic::{Capture, metric, proxy};
use nix::sys::signal::Signal;
use serde_json::json;
use sqlx::Connection as _;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// For a server to see that a device has gone, or that its rules have.
const NOTICE_LIMIT: Duration = Duration::from_secs(20);
const PORTS: usize = 65_535;
const LINK_PORT: u16 = 80;
/// The port of a device that is opened.
const OPEN_PORT: u16 = 22;
/// Not more than there are addresses.
const HEIRS_MAX: usize = 4;
const SECRET: &[u8] = b"what-nobody-but-the-one-device-may-read";
/// For what must not come.
const PATIENCE: Duration = Duration::from_millis(1_500);

/// Runs a test in a network of its own, or says why not.
fn test(name: &str, body: impl AsyncFnOnce() -> anyhow::Result<()> + Send) -> anyhow::Result<()> {
    match attack::lacking() {
        None => netns::test(name, body),
        Some(what) => {
            writeln!(std::io::stderr(), "skipped: {name}: {what}")?;
            Ok(())
        }
    }
}

#[test]
fn what_an_open_server_lets_through_the_product_does_not() -> anyhow::Result<()> {
    test("what_an_open_server_lets_through_the_product_does_not", async || {
        let began = Instant::now();
        // In a network of its own, for the addresses are the same.
        let open = netns::run(at_an_open_server)?;
        let (cases, columns) = at_the_product(open).await?;
        columns.show(&cases, began.elapsed())?;
        columns.check(&cases)
    })
}

#[test]
fn who_gets_the_address_of_another_device_gets_nothing_that_is_for_it() -> anyhow::Result<()> {
    test("who_gets_the_address_of_another_device_gets_nothing_that_is_for_it", async || {
        let directory = directory()?;
        // Five addresses, for the node's own devices as well.
        let mut it = Product::start(directory.path(), &["tunnel.slice_prefix=29"]).await?;
        let address = it.other.ipv4;
        it.fleet.open_port(&it.victim_id, OPEN_PORT).await?;
        let mut stream = TcpStream::connect((address, OPEN_PORT)).await?;
        stream.write_all(b"before").await?;
        let mut answer = [0; 256];
        ensure!(stream.read(&mut answer).await? > 0, "the open port does not answer");

        it.victim.kill()?;
        let (heir_id, heir, tunnel) = heir(&it, address).await?;
        let inner = Capture::start_at(&heir.site, &tunnel.interface, &it.fleet.path("heir.pcap")).await?;
        Pings::default().come_back(&heir, &tunnel).await?;
        // Neither what goes on, unless the server has broken it off, nor what begins.
        let _ = stream.write_all(SECRET).await;
        let begun = timeout(PATIENCE, TcpStream::connect((address, OPEN_PORT))).await;
        ensure!(!matches!(begun, Ok(Ok(_))), "a port of the heir is open");
        let datagrams = UdpSocket::bind((tunnel.gateway_ipv4, 0)).await?;
        let _ = datagrams.send_to(SECRET, (address, 53)).await;
        let heard = timeout(PATIENCE, stream.read(&mut answer)).await;
        ensure!(!matches!(heard, Ok(Ok(bytes)) if bytes > 0), "the heir answers for the other");
        let inner = inner.stop()?;
        ensure!(inner.shows(&tunnel.ipv4.octets()), "not even its own pings were seen");
        ensure!(!inner.shows(SECRET), "the heir got what was for the other");
        let toward_port =
            |(_, _, to, port): &(IpAddr, u16, IpAddr, u16)| *to == IpAddr::from(address) && *port == OPEN_PORT;
        ensure!(!inner.streams.keys().any(toward_port), "{:?}", inner.streams.keys());

        // It would be seen: its own port, when that is opened.
        let inner = Capture::start_at(&heir.site, &tunnel.interface, &it.fleet.path("open.pcap")).await?;
        it.fleet.open_port(&heir_id, OPEN_PORT).await?;
        let mut stream = TcpStream::connect((address, OPEN_PORT)).await?;
        stream.write_all(SECRET).await?;
        ensure!(stream.read(&mut answer).await? > 0, "the heir's open port does not answer");
        let inner = inner.stop()?;
        ensure!(inner.shows(SECRET) && inner.streams.keys().any(toward_port), "{:?}", inner.streams.keys());
        Ok(())
    })
}

/// Lets devices come until only this address is left, and one of them gets it, at the site of who had it, where everything listens
/// as before.
async fn heir(it: &Product, address: Ipv4Addr) -> anyhow::Result<(String, Client, Tunnel)> {
    const IN_USE: &str = "all tunnel addresses of this node are in use";
    let mut others = Vec::new();
    for number in 0..HEIRS_MAX {
        let (device, mut client) = it.fleet.client(&it.world.victim, &format!("heir-{number}")).await?;
        let is_refused = wait_for("an answer to the heir", NOTICE_LIMIT, async || {
            let log = client.log_text()?;
            ensure!(log.contains(IN_USE) || log.contains(UP), "{log}");
            Ok(log.contains(IN_USE))
        })
        .await?;
        if is_refused {
            // It is kept for who had it, and for connections to that one to end.
            let_time_pass(it, &it.victim_id).await?;
            client.start_again()?;
        }
        let tunnel = client.is_up(1).await?;
        if tunnel.ipv4 == address {
            ensure!(is_refused, "the heir got it at once");
            return Ok((device.id, client, tunnel));
        }
        // They keep theirs.
        others.push(client);
    }
    anyhow::bail!("nobody got {address}")
}

/// Lets the device have been away for an hour.
async fn let_time_pass(it: &Product, device: &str) -> anyhow::Result<()> {
    let socket = it.fleet.server.data_dir().join("postgres/run");
    let options = PgConnectOptions::new_without_pgpass().socket(socket).username("postgres").database("cloudlink");
    let mut database = PgConnection::connect_with(&options).await?;
    for statement in [
        "update tunnel_addresses set used_at = used_at - interval '1 hour' where device_id = $1::uuid",
        "update links set proven_at = proven_at - interval '1 hour' where device_id = $1::uuid",
    ] {
        sqlx::query(statement).bind(device).execute(&mut database).await?;
    }
    Ok(())
}

/// Cases that are nothing special beside the tunnels, where hosts look for each other.
const OF_ANY_NETWORK: [&str; 3] =
    ["source/unspecified/to-broadcast/ipv4", "multicast/mld-query/ipv6", "neighbour/address-in-use/ipv6"];

#[test]
fn who_is_in_no_tunnel_is_not_taken_for_a_device() -> anyhow::Result<()> {
    test("who_is_in_no_tunnel_is_not_taken_for_a_device", async || {
        let directory = directory()?;
        // On a host that forwards, and is not only ours.
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")?;
        let mut it = Product::start(directory.path(), &["isolation.scope=interface"]).await?;
        let cases = it.device().cases().await?;
        // With addresses of tunnels, and to them, but through the cable: what is allowed to devices, too.
        let past = it.outside()?;
        it.device().send(&past, &[]).await?;
        let closed = it.seen().await?;
        it.fleet.server.program().signal(Signal::SIGSTOP)?;
        let opened = Opened::at(Product::INTERFACE)?;
        it.device().send(&past, &[]).await?;
        let mut open = Seen::default();
        it.watchers.leak(&mut open, &chosen(&cases, |case| case.passes)).await?;
        drop(opened);
        it.fleet.server.program().signal(Signal::SIGCONT)?;

        let is_expected = |case: &Case| !OF_ANY_NETWORK.contains(&case.name.as_str());
        let seen = |seen: &Seen| {
            let numbers = (0..cases.len()).filter(|number| !seen.places(*number, &[]).is_empty());
            numbers.filter(|number| is_expected(&cases[*number])).map(|number| &cases[number].name).collect::<Vec<_>>()
        };
        let (closed, open) = (seen(&closed), seen(&open));
        let line =
            format!("from outside: {} attempts, {} seen without rules, {} with", cases.len(), open.len(), closed.len());
        writeln!(std::io::stderr(), "{line}")?;
        ensure!(closed.is_empty(), "{closed:#?}");
        ensure!(open.len() * 10 > cases.len() * 9, "{line}");
        Ok(())
    })
}

#[test]
fn a_port_of_a_device_that_is_open_leads_out_of_nothing() -> anyhow::Result<()> {
    test("a_port_of_a_device_that_is_open_leads_out_of_nothing", async || {
        let directory = directory()?;
        let mut it = Product::start(directory.path(), &[]).await?;
        let cases = it.device().cases().await?;
        let through = it.own.interface.clone();
        it.fleet.open_port(&it.attacker_id, OPEN_PORT).await?;
        it.attack_from(OPEN_PORT)?;
        it.device().send(&through, &[]).await?;
        for scan in &Scan::FROM_OPEN_PORT {
            it.device().scan(&through, scan).await?;
        }
        let seen = it.seen().await?;
        for (number, case) in cases.iter().enumerate() {
            let places = seen.places(number, &[Product::UNJUDGED]);
            ensure!(places.is_empty() != case.passes, "{}: {places:?}", case.name);
        }
        let link_port = BTreeSet::from([LINK_PORT]);
        for scan in &Scan::FROM_OPEN_PORT {
            // The driver lets through what may belong to a connection. Which there are, the kernel knows.
            let [driver, node] = [Product::UNJUDGED, "node"].map(|place| seen.ports(place, scan.kind));
            let answers = seen.ports("answer", &format!("{} closed", scan.kind));
            ensure!(driver.len() == PORTS, "{}: {} ports", scan.name, driver.len());
            ensure!(node == link_port && answers == link_port, "{}: {node:?} {answers:?}", scan.name);
        }

        // They would be seen.
        it.fleet.server.program().signal(Signal::SIGSTOP)?;
        let opened = Opened::at(Product::INTERFACE)?;
        let [scan, _] = &Scan::FROM_OPEN_PORT;
        it.inside().scan(Product::QUEUE, scan).await?;
        let seen = it.watchers.quiet().await?;
        drop(opened);
        it.fleet.server.program().signal(Signal::SIGCONT)?;
        let reached = [seen.ports("node", scan.kind), seen.ports("answer", &format!("{} closed", scan.kind))];
        ensure!(reached.iter().all(|ports| ports.len() == PORTS), "{:?}", reached.map(|ports| ports.len()));
        Ok(())
    })
}

/// What was seen of all attempts.
struct Columns {
    /// At an open OpenVPN server.
    open: Seen,
    /// In an open kernel, behind the server.
    kernel: Seen,
    /// Through the kernel's rules alone, behind the server.
    rules: Seen,
    /// At the product; [`Product::UNJUDGED`] is what the server has let through, before the kernel judged it.
    product: Seen,
}

async fn at_an_open_server() -> anyhow::Result<Seen> {
    let directory = directory()?;
    let world = World::join(directory.path()).await?;
    let server = OpenServer::start(&world).await?;
    let proxies = world.directory().join("link-port");
    std::fs::create_dir(&proxies)?;
    let _in_place_of_the_link_port = proxy((Ipv4Addr::UNSPECIFIED, LINK_PORT).into(), &proxies).await?;
    let (mut attacker, mut victim) = (server.attacker(&world.attacker)?, server.victim(&world.victim)?);
    let (own, other) = (attacker.is_up(1).await?, victim.is_up(1).await?);
    let ports = json!({ "link_port": LINK_PORT, "device_port": 443, "people": 8443, "operations": 9090 });
    world.tunnels(&own, &other, &ports)?;
    let mut watchers = Watchers::default();
    watchers.add(world.watch_outside().await?);
    watchers.add([
        world.watch_node(OpenServer::INTERFACE, &[]).await?,
        world.watch_attacker(&own).await?,
        world.watch_victim(&other).await?,
    ]);
    world.settles().await?;

    let by = Attacker::at(&world.attacker, &world);
    let cases = by.cases().await?;
    let of = |frees: &str| chosen(&cases, |case| case.frees == frees && case.refused.open.is_none());
    let mut seen = Seen::default();
    by.send(&own.interface, &["any"]).await?;
    watchers.leak(&mut seen, &of("any")).await?;
    let said = by.talk().await?;
    watchers.leak(&mut seen, &[Attacker::TALK]).await?;
    ensure!(!seen.places(Attacker::TALK, &[]).is_empty(), "no proxy was seen to lead out: {said:?}");
    for scan in &Scan::ALL {
        by.scan(&own.interface, scan).await?;
    }
    Pings::default().come_back(&attacker, &own).await?;
    seen.merge(watchers.quiet().await?);

    // Who looks like somebody else to the server: one after the other, for each changes where answers go.
    let mut forge = async |forger: Forger, networks: &[&str]| {
        let mut client = server.forger(&world.attacker, forger, networks)?;
        let tunnel = client.is_up(1).await?;
        by.send(&tunnel.interface, &[forger.kind()]).await?;
        watchers.leak(&mut seen, &of(forger.kind())).await
    };
    forge(Forger::Outside, &OUTSIDE).await?;
    forge(Forger::Gateway, &["100.64.0.1/32", "fd00:64::1/128"]).await?;
    victim.program().stop()?;
    let (ipv4, ipv6) = (format!("{}/32", other.ipv4), format!("{}/128", other.ipv6));
    forge(Forger::Gone, &[&ipv4, &ipv6]).await?;
    Ok(seen)
}

/// What the sources of the cases of this kind are in.
const OUTSIDE: [&str; 14] = [
    "198.51.100.1/32",
    "203.0.113.80/32",
    "100.65.0.7/32",
    "100.64.255.254/32",
    "127.0.0.0/8",
    "169.254.0.2/32",
    "2001:db8::1/128",
    "2001:db8:80::80/128",
    "fd00:64:0:1::7/128",
    "fd00:64::fff1/128",
    "::1/128",
    "::/128",
    "ff02::1/128",
    "fe80::/10",
];

/// The numbers of these cases.
fn chosen(cases: &[Case], is_chosen: impl Fn(&Case) -> bool) -> Vec<usize> {
    (0..cases.len()).filter(|number| is_chosen(&cases[*number])).collect()
}

async fn at_the_product(open: Seen) -> anyhow::Result<(Vec<Case>, Columns)> {
    let directory = directory()?;
    let mut it = Product::start(directory.path(), &[]).await?;
    let cases = it.device().cases().await?;
    let through = it.own.interface.clone();

    it.device().send(&through, &["any", "outside", "gateway"]).await?;
    let mut product = it.seen().await?;
    let said = it.device().talk().await?;
    ensure!(said.iter().all(|said| !said.said.contains(" 200")), "somebody is a proxy: {said:?}");
    for scan in &Scan::ALL {
        it.device().scan(&through, scan).await?;
    }
    product.merge(it.seen().await?);

    it.inside().send(Product::QUEUE, &[]).await?;
    for scan in &Scan::ALL {
        it.inside().scan(Product::QUEUE, scan).await?;
    }
    let rules = it.seen().await?;
    let kernel = at_an_open_kernel(&mut it, &cases).await?;

    // The address of a device that has gone.
    let closed = async |it: &Product| {
        let metrics = it.fleet.server.operations("/metrics").await?.1;
        metric(&metrics, "cloudlink_tunnels_closed_total", "")
    };
    let before = closed(&it).await?;
    it.victim.program().stop()?;
    wait_for("a tunnel less", NOTICE_LIMIT, async || {
        ensure!(closed(&it).await? > before);
        Ok(())
    })
    .await?;
    it.device().send(&through, &["gone"]).await?;
    product.merge(it.seen().await?);
    Ok((cases, Columns { open, kernel, rules, product }))
}

/// Takes the rules away while the server stands still, and can neither see nor mend it.
async fn at_an_open_kernel(it: &mut Product, cases: &[Case]) -> anyhow::Result<Seen> {
    let mut seen = Seen::default();
    let rules = attack::rules()?;
    it.fleet.server.program().signal(Signal::SIGSTOP)?;
    let opened = Opened::at(Product::INTERFACE)?;
    it.inside().send(Product::QUEUE, &[]).await?;
    it.watchers.leak(&mut seen, &chosen(cases, |case| case.refused.kernel.is_none())).await?;
    for scan in &Scan::OF_KERNEL {
        it.inside().scan(Product::QUEUE, scan).await?;
    }
    seen.merge(it.watchers.quiet().await?);
    drop(opened);
    it.fleet.server.program().signal(Signal::SIGCONT)?;
    wait_for("the rules", NOTICE_LIMIT, async || {
        ensure!(attack::rules()? == rules, "they are not as before");
        Ok(())
    })
    .await?;
    it.fleet.server.ready().await?;
    // What the open kernel answered has waited for the server.
    seen.merge(it.seen().await?);
    Ok(seen)
}

/// How many attempts there were, and of how many something was seen.
#[derive(Clone, Copy, Default)]
struct Counts {
    attempts: usize,
    open: usize,
    /// Unless it was not tried there.
    kernel: Option<usize>,
    rules: usize,
    driver: usize,
    product: usize,
}

impl Columns {
    fn count<'a>(&self, cases: impl Iterator<Item = &'a (usize, &'a Case)>) -> Counts {
        let mut counts = Counts { kernel: Some(0), ..Counts::default() };
        for (number, _) in cases {
            let is_seen = |seen: &Seen| usize::from(!seen.places(*number, &[Product::UNJUDGED]).is_empty());
            counts.attempts += 1;
            counts.open += is_seen(&self.open);
            counts.kernel = counts.kernel.map(|kernel| kernel + is_seen(&self.kernel));
            counts.rules += is_seen(&self.rules);
            counts.driver += usize::from(self.product.places(*number, &[]).contains(&Product::UNJUDGED));
            counts.product += is_seen(&self.product);
        }
        counts
    }

    /// How many ports a scan reached.
    fn count_ports(&self, scan: &Scan) -> Counts {
        let reached = |seen: &Seen| seen.ports("node", scan.kind).len();
        Counts {
            attempts: PORTS,
            open: reached(&self.open),
            kernel: Scan::OF_KERNEL.contains(scan).then(|| reached(&self.kernel)),
            rules: reached(&self.rules),
            driver: self.product.ports(Product::UNJUDGED, scan.kind).len(),
            product: reached(&self.product),
        }
    }

    /// Prints how much was seen, also while tests are silent.
    fn show(&self, cases: &[Case], took: Duration) -> anyhow::Result<()> {
        let mut groups = BTreeMap::<&str, Vec<(usize, &Case)>>::new();
        for (number, case) in cases.iter().enumerate() {
            let group = case.name.split_once('/').map_or(case.name.as_str(), |(group, _)| group);
            groups.entry(group).or_default().push((number, case));
        }
        let forbidden = groups.iter().filter(|(name, _)| **name != "allowed");
        let all: Vec<_> = forbidden.flat_map(|(_, group)| group).copied().collect();
        let mut out = std::io::stderr().lock();
        writeln!(out, "\nattempts, and how many of them were seen to get somewhere ({:.0} s):", took.as_secs_f32())?;
        writeln!(
            out,
            "{:24}{:>10}{:>13}{:>13}{:>13}{:>13}{:>10}",
            "", "attempts", "open server", "open kernel", "rules alone", "driver alone", "product"
        )?;
        let mut line = |name: &str, counts: Counts| {
            let Counts { attempts, open, kernel, rules, driver, product } = counts;
            let kernel = kernel.map_or_else(|| "-".to_owned(), |kernel| kernel.to_string());
            writeln!(out, "{name:24}{attempts:>10}{open:>13}{kernel:>13}{rules:>13}{driver:>13}{product:>10}")
        };
        for (name, group) in &groups {
            line(name, self.count(group.iter()))?;
        }
        line("all but allowed", self.count(all.iter()))?;
        for scan in &Scan::ALL {
            line(scan.name, self.count_ports(scan))?;
        }
        let mut reasons = BTreeMap::<(&str, &str), usize>::new();
        for (_, case) in all {
            for (control, why) in [("open server", &case.refused.open), ("open kernel", &case.refused.kernel)] {
                if let Some(why) = why {
                    *reasons.entry((control, why)).or_default() += 1;
                }
            }
        }
        for ((control, why), count) in reasons {
            writeln!(out, "not seen at the {control}: {count}: {why}")?;
        }
        writeln!(out, "seen through the rules alone: addresses of other devices, which only the driver can tell\n")?;
        Ok(())
    }

    fn check(&self, cases: &[Case]) -> anyhow::Result<()> {
        let mut wrong = Vec::new();
        for (number, case) in cases.iter().enumerate() {
            let behind = |seen: &'_ Seen| seen.places(number, &[Product::UNJUDGED]).join(", ");
            let [open, kernel, rules] = [&self.open, &self.kernel, &self.rules].map(behind);
            let product = self.product.places(number, &[]).join(", ");
            let is_right = if case.passes {
                [&open, &kernel, &rules, &product].into_iter().all(|places| places.contains("answer"))
            } else {
                open.is_empty() == case.refused.open.is_some()
                    && kernel.is_empty() == case.refused.kernel.is_some()
                    && !(open.is_empty() && kernel.is_empty())
                    && rules.is_empty() != case.needs_driver
                    && product.is_empty()
            };
            if !is_right {
                wrong.push(format!("{}: open [{open}] [{kernel}], closed [{rules}] [{product}]", case.name));
            }
        }
        ensure!(wrong.is_empty(), "{} cases are not as they must be:\n{}", wrong.len(), wrong.join("\n"));
        let talk = self.product.places(Attacker::TALK, &["node", Product::UNJUDGED]);
        ensure!(talk.is_empty(), "somebody fetched something for a device: {talk:?}");
        Scan::ALL.iter().try_for_each(|scan| self.check_scan(scan).with_context(|| scan.name))
    }

    /// Where it is open each port is reached, and answers over TCP; where not, the link port alone.
    fn check_scan(&self, scan: &Scan) -> anyhow::Result<()> {
        let answers = |seen: &Seen| {
            let [open, closed] = ["open", "closed"].map(|what| seen.ports("answer", &format!("{} {what}", scan.kind)));
            (open, closed)
        };
        let kernel = Scan::OF_KERNEL.contains(scan).then_some(("kernel", &self.kernel));
        for (name, seen) in [("server", &self.open)].into_iter().chain(kernel) {
            let reached = seen.ports("node", scan.kind).len();
            ensure!(reached == PORTS, "open {name}: {reached} ports were reached");
            let (open, closed) = answers(seen);
            // Connections that are there already are told nothing new.
            let is_told = scan.protocol == "udp" || (open.contains(&22) && open.len() + closed.len() >= PORTS - 2);
            ensure!(is_told, "open {name}: {open:?} and {} closed ports answered", closed.len());
        }
        let has_port = scan.protocol == "tcp" && scan.place == "gateway";
        let expected: BTreeSet<u16> = has_port.then_some(LINK_PORT).into_iter().collect();
        for (name, seen) in [("rules", &self.rules), ("product", &self.product)] {
            let reached = seen.ports("node", scan.kind);
            ensure!(reached == expected, "{name}: {reached:?} were reached");
            let (open, closed) = answers(seen);
            ensure!(open == expected && closed.is_empty(), "{name}: {open:?} and {closed:?} answered");
        }
        let driver = self.product.ports(Product::UNJUDGED, scan.kind);
        ensure!(driver == expected, "driver: {driver:?} were let through");
        Ok(())
    }
}
