//! systemd and systemd-logind over D-Bus.

use std::time::Duration;

use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::time::timeout;
use zbus::proxy::CacheProperties;
use zbus::{Connection, OwnedObjectPath, Proxy};

use super::Failure;
use crate::config::ServiceName;

/// Where systemd listens.
#[derive(Clone, Debug)]
pub enum Bus {
    /// The system's bus.
    System,
    /// A bus at this address.
    At(String),
}

/// What logind can be asked for.
#[derive(Clone, Copy, Debug)]
pub(super) enum PowerAction {
    Reboot,
    PowerOff,
}

impl Bus {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens, or it refuses.
    pub async fn connect(&self) -> zbus::Result<Connection> {
        match self {
            Self::System => Connection::system().await,
            Self::At(address) => zbus::connection::Builder::address(address.as_str()).build().await,
        }
    }
}

/// Restarts a unit and waits for the end of the job. Data: `unit`, `job_result`.
pub(super) async fn restart(bus: &Bus, service: &ServiceName, within: Duration) -> Result<Value, Failure> {
    let unit = unit_name(service);
    let result = match timeout(within, restart_unit(bus, &unit)).await {
        Ok(Ok(result)) => result,
        Ok(Err(error)) => return Err(refused(&error)),
        Err(_) => {
            let message = format!("systemd did not finish the restart of {unit} within {} s", within.as_secs());
            return Err(Failure::new("timeout", message).with_data(json!({ "unit": unit })));
        }
    };
    let data = json!({ "unit": unit, "job_result": result });
    if result == "done" {
        return Ok(data);
    }
    Err(Failure::new("job_failed", format!("the restart of {unit} ended with {result:?}")).with_data(data))
}

/// Asks for a reboot or shutdown; answered before it happens.
pub(super) async fn power(bus: &Bus, action: PowerAction, within: Duration) -> Result<(), Failure> {
    match timeout(within, ask_logind(bus, action)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(refused(&error)),
        Err(_) => Err(Failure::new("timeout", format!("logind did not answer within {} s", within.as_secs()))),
    }
}

async fn restart_unit(bus: &Bus, unit: &str) -> zbus::Result<String> {
    let connection = bus.connect().await?;
    let manager: Proxy<'_> = zbus::proxy::Builder::new(&connection)
        .destination("org.freedesktop.systemd1")
        .path("/org/freedesktop/systemd1")
        .interface("org.freedesktop.systemd1.Manager")
        .cache_properties(CacheProperties::No)
        .build()
        .await?;
    // Listen first: the job may be over before its name is known.
    let mut removed = manager.receive_signal("JobRemoved").await?;
    manager.call_method("Subscribe", &()).await?;
    let job: OwnedObjectPath = manager.call("RestartUnit", &(unit, "replace")).await?;
    while let Some(signal) = removed.next().await {
        let body = signal.body();
        let (_, ended, _, result): (u32, OwnedObjectPath, &str, &str) = body.deserialize()?;
        if ended == job {
            return Ok(result.to_owned());
        }
    }
    Err(zbus::Error::Failure("the bus went away before the job ended".to_owned()))
}

async fn ask_logind(bus: &Bus, action: PowerAction) -> zbus::Result<()> {
    let connection = bus.connect().await?;
    let manager: Proxy<'_> = zbus::proxy::Builder::new(&connection)
        .destination("org.freedesktop.login1")
        .path("/org/freedesktop/login1")
        .interface("org.freedesktop.login1.Manager")
        .cache_properties(CacheProperties::No)
        .build()
        .await?;
    let method = match action {
        PowerAction::Reboot => "Reboot",
        PowerAction::PowerOff => "PowerOff",
    };
    let interactive = false;
    manager.call_method(method, &(interactive,)).await.map(|_| ())
}

/// As systemctl does: what has no suffix is a service.
fn unit_name(service: &ServiceName) -> String {
    let name = service.as_str();
    if name.ends_with(".service") { name.to_owned() } else { format!("{name}.service") }
}

fn refused(error: &zbus::Error) -> Failure {
    if let zbus::Error::MethodError(name, text, _) = error {
        let message = format!("{}: {}", name.as_str(), text.as_deref().unwrap_or("no reason given"));
        return Failure::new("dbus_error", message).with_data(json!({ "dbus_error": name.as_str() }));
    }
    Failure::new("dbus_error", format!("cannot talk to systemd over D-Bus: {error}"))
}
