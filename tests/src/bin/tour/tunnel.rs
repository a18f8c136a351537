//! The second half: a gateway that runs the stock OpenVPN client, in a network namespace of its own.

use std::sync::Arc;

use cloudlink_tests::fleet::LINK_LIMIT;
use cloudlink_tests::machine::{Machine, SERVICE};
use cloudlink_tests::netns::Site;
use cloudlink_tests::openvpn::{Client, Pings, Profile};
use cloudlink_tests::poll::wait_for;
use cloudlink_tests::server::SERVER_NAME;

use crate::stage::{Expect, Person, Stage, chapter, shown, type_line};

const ROUTER: &str = "demo-router";

pub(crate) async fn run(stage: &Stage) -> anyhow::Result<()> {
    chapter(
        "A gateway with the stock OpenVPN client",
        "It stands in a network of its own, and reaches nothing but the server's port. It enrolls like the other one, and the
         server writes the profile. The private key stays where it is.",
    );
    let site = Arc::new(Site::join()?);
    let machine = Machine::new(&stage.path(ROUTER), stage.server.device, &stage.server.ca_file())?.at(&site);
    stage.enroll_machine(ROUTER, "router", &machine).await?;
    let (file, key) = (stage.path("demo-router.ovpn"), shown(&machine.state_dir().join("current.pem"))?);
    let output = shown(&file)?;
    let profile = ["device", "openvpn-profile", ROUTER, "--key-path", &key, "--output", &output];
    stage.cloudlink(Person::Customer, &profile, Expect::Success).await?;
    let mut client = start_client(stage, &site, &std::fs::read_to_string(&file)?)?;
    let tunnel = client.is_up(1).await?;
    type_line("router", &["ping", "-c", "3", "-I", &tunnel.interface, &tunnel.gateway_ipv4.to_string()], None);
    Pings::default().come_back(&client, &tunnel).await?;
    println!("  3 packets came back over IPv4, and 3 from {} over IPv6", tunnel.gateway_ipv6);

    chapter(
        "And nowhere else",
        "A device reaches the link's port in its tunnel and nothing else, and is reached by nobody. The server holds the kernel to
         that: what is in force is compared with what must be, down to the last rule.",
    );
    stage.cloudlinkd(&["isolation", "verify"]).await?;

    chapter(
        "Linked, and deaf",
        "A tunnel is a link: the customer sees it, with its addresses. Without an agent nobody is there to do anything, and the
         operator is told so at once.",
    );
    wait_for_agent(stage, false).await?;
    stage.cloudlink(Person::Customer, &["devices"], Expect::Success).await?;
    let grant = ["grant", "create", "--device", ROUTER, "--operator", Person::Operator.profile(), "--for", "15m"];
    let scopes = ["--scope", "metrics:read", "--scope", "service:restart", "--scope", "device:reboot"];
    let reason = ["--reason", "find out why it is slow, too"];
    stage.cloudlink(Person::Customer, &[&grant[..], &scopes, &reason].concat(), Expect::Success).await?;
    let metrics = ["metrics", ROUTER, "--reason", "the customer reports it as slow"];
    stage.cloudlink(Person::Operator, &metrics, Expect::Refusal).await?;

    chapter(
        "The agent, inside the tunnel",
        "The agent dials the gateway address in the tunnel, and from there on everything is the same.",
    );
    let mut machine = machine.through_tunnel(&format!("interface = \"{}\"", tunnel.interface))?;
    type_line("router", &["cloudlink-agent", "run", "--config", &shown(&machine.config_file())?], None);
    machine.power_on()?;
    wait_for_agent(stage, true).await?;
    stage.cloudlink(Person::Operator, &["devices"], Expect::Success).await?;
    stage.cloudlink(Person::Operator, &metrics, Expect::Success).await?;
    let restart = ["restart", ROUTER, SERVICE, "--reason", "it leaks memory"];
    stage.cloudlink(Person::Operator, &restart, Expect::Success).await?;
    let reboot = ["reboot", ROUTER, "--reason", "a new kernel is installed"];
    stage.cloudlink(Person::Operator, &reboot, Expect::Success).await?;
    anyhow::ensure!((machine.restarts(), machine.reboots()) == (1, 1), "not once each");

    machine.stop()?;
    client.program().stop()?;
    Ok(())
}

/// Starts the client of the machine at a site, with the profile that the server wrote.
fn start_client(stage: &Stage, site: &Arc<Site>, profile: &str) -> anyhow::Result<Client> {
    // There is no name server at the site: the name means the site itself.
    let (name, address) = (format!("remote {SERVER_NAME} "), format!("remote {} ", stage.server.device.ip()));
    type_line("router", &["sed", "-i", &format!("s/^{name}/{address}/"), "demo-router.ovpn"], None);
    type_line("router", &["openvpn", "--config", "demo-router.ovpn"], None);
    let profile = Profile::from_text(&profile.replace(&name, &address));
    Client::start(site, &stage.path(""), ROUTER, &profile)
}

/// Until the customer sees the device as live, and an agent on it or none.
async fn wait_for_agent(stage: &Stage, has_agent: bool) -> anyhow::Result<()> {
    wait_for("the router's link", LINK_LIMIT, async || {
        let shown = stage.ask(Person::Customer, &["device", "show", ROUTER]).await?;
        let link = &shown["link"];
        anyhow::ensure!(link["state"] == "live" && link["has_agent"] == has_agent, "{shown}");
        Ok(())
    })
    .await
}
