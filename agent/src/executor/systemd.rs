//! systemd and systemd-logind over D-Bus.

use std::time::Duration;

use cloudlink_proto::poll::RUNNING_STATE_BYTES_MAX;
use cloudlink_proto::poll::message::{Running, running};
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

/// In which states the services are. One that systemd does not know has none.
pub(super) async fn states(bus: &Bus, services: &[ServiceName], within: Duration) -> Result<Vec<Running>, Failure> {
    let listed = match timeout(within, list_units(bus, services)).await {
        Ok(listed) => listed.map_err(|error| refused(&error))?,
        Err(_) => return Err(Failure::new("timeout", format!("systemd did not answer within {} s", within.as_secs()))),
    };
    let state_of = |service: &ServiceName| {
        let unit = unit_name(service);
        let (.., active, _, _, _, _, _, _) = listed.iter().find(|(name, ..)| *name == unit)?;
        let mut state = active.clone();
        state.truncate(state.floor_char_boundary(RUNNING_STATE_BYTES_MAX));
        Some(Running { name: service.as_str().to_owned(), state, kind: running::Kind::Service.into() })
    };
    Ok(services.iter().filter_map(state_of).collect())
}

/// Name, description, load state, active state, sub state, whom it follows, path, and job: number, type, path.
type Unit = (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);

/// Whether the system goes down. Where nobody says so, it does not.
pub async fn is_system_stopping(bus: &Bus, within: Duration) -> bool {
    let state = async { manager(&bus.connect().await?).await?.get_property::<String>("SystemState").await };
    matches!(timeout(within, state).await, Ok(Ok(state)) if state == "stopping")
}

async fn list_units(bus: &Bus, services: &[ServiceName]) -> zbus::Result<Vec<Unit>> {
    let connection = bus.connect().await?;
    let manager = manager(&connection).await?;
    let names: Vec<String> = services.iter().map(unit_name).collect();
    let listed: Vec<Unit> = manager.call("ListUnitsByNames", &(names,)).await?;
    Ok(listed.into_iter().filter(|(_, _, load, ..)| load != "not-found").collect())
}

async fn manager(connection: &Connection) -> zbus::Result<Proxy<'_>> {
    zbus::proxy::Builder::new(connection)
        .destination("org.freedesktop.systemd1")
        .path("/org/freedesktop/systemd1")
        .interface("org.freedesktop.systemd1.Manager")
        .cache_properties(CacheProperties::No)
        .build()
        .await
}

async fn restart_unit(bus: &Bus, unit: &str) -> zbus::Result<String> {
    let connection = bus.connect().await?;
    let manager = manager(&connection).await?;
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

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};
    use std::sync::{Arc, Mutex};

    use zbus::object_server::SignalEmitter;
    use zbus::{ObjectPath, interface};

    use super::*;

    const SOON: Duration = Duration::from_secs(30);

    /// A bus of this test alone.
    struct PrivateBus {
        daemon: Child,
        address: String,
        _dir: tempfile::TempDir,
    }

    impl PrivateBus {
        /// `None`, with a word on it, where there is no daemon.
        fn start() -> Option<Self> {
            let dir = tempfile::tempdir().unwrap();
            let address = format!("unix:path={}/bus", dir.path().display());
            let daemon = Command::new("dbus-daemon")
                .args(["--session", "--nofork", "--nopidfile", "--print-address", "--address", &address])
                .stdout(Stdio::piped())
                .spawn();
            let Ok(mut daemon) = daemon else {
                println!("skipped: there is no dbus-daemon");
                return None;
            };
            let mut address = String::new();
            BufReader::new(daemon.stdout.take().unwrap()).read_line(&mut address).unwrap();
            Some(Self { daemon, address: address.trim().to_owned(), _dir: dir })
        }

        fn bus(&self) -> Bus {
            Bus::At(self.address.clone())
        }

        fn builder(&self) -> zbus::connection::Builder<'_> {
            zbus::connection::Builder::address(self.address.as_str())
        }
    }

    impl Drop for PrivateBus {
        fn drop(&mut self) {
            let _ = self.daemon.kill();
            let _ = self.daemon.wait();
        }
    }

    type Calls = Arc<Mutex<Vec<String>>>;

    /// systemd, as far as it is asked.
    struct Systemd {
        calls: Calls,
        state: &'static str,
    }

    #[interface(name = "org.freedesktop.systemd1.Manager")]
    impl Systemd {
        #[zbus(property)]
        fn system_state(&self) -> &str {
            self.state
        }

        fn subscribe(&self) {
            self.calls.lock().unwrap().push("Subscribe".to_owned());
        }

        async fn restart_unit(
            &self,
            name: String,
            mode: String,
            #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
        ) -> zbus::fdo::Result<OwnedObjectPath> {
            self.calls.lock().unwrap().push(format!("RestartUnit {name} {mode}"));
            let result = match name.as_str() {
                "web.service" => "done",
                "broken.service" => "failed",
                "slow.service" => return Ok(job(3)),
                _ => return Err(zbus::fdo::Error::Failed(format!("Unit {name} not found."))),
            };
            // Another job, and then this one: over before its name is known to the caller.
            Self::job_removed(&emitter, 1, job(1).as_ref(), "other.service", "failed").await?;
            Self::job_removed(&emitter, 2, job(2).as_ref(), &name, result).await?;
            Ok(job(2))
        }

        fn list_units_by_names(&self, names: Vec<String>) -> Vec<Unit> {
            let unit = |name: String| {
                let (load, active) = match name.as_str() {
                    "web.service" => ("loaded", "active"),
                    "broken.service" => ("loaded", "failed"),
                    _ => ("not-found", "inactive"),
                };
                let texts = |text: &str| text.to_owned();
                (name, texts("d"), texts(load), texts(active), texts("s"), texts(""), job(1), 0, texts(""), job(1))
            };
            names.into_iter().map(unit).collect()
        }

        #[zbus(signal)]
        async fn job_removed(
            emitter: &SignalEmitter<'_>,
            id: u32,
            job: ObjectPath<'_>,
            unit: &str,
            result: &str,
        ) -> zbus::Result<()>;
    }

    fn job(number: u32) -> OwnedObjectPath {
        OwnedObjectPath::try_from(format!("/org/freedesktop/systemd1/job/{number}")).unwrap()
    }

    /// logind, as far as it is asked.
    struct Logind {
        calls: Calls,
    }

    #[interface(name = "org.freedesktop.login1.Manager")]
    impl Logind {
        fn reboot(&self, interactive: bool) {
            self.calls.lock().unwrap().push(format!("Reboot {interactive}"));
        }

        fn power_off(&self, interactive: bool) -> zbus::fdo::Result<()> {
            self.calls.lock().unwrap().push(format!("PowerOff {interactive}"));
            Err(zbus::fdo::Error::AccessDenied("an inhibitor is in the way".to_owned()))
        }
    }

    async fn restart_named(bus: &Bus, name: &str, within: Duration) -> Result<Value, Failure> {
        restart(bus, &ServiceName::parse(name).unwrap(), within).await
    }

    #[tokio::test]
    async fn systemd_says_whether_the_system_goes_down() {
        for (state, is_stopping) in [("running", false), ("degraded", false), ("stopping", true)] {
            let Some(private) = PrivateBus::start() else { return };
            assert!(!is_system_stopping(&private.bus(), SOON).await, "nobody says so yet");
            let systemd = Systemd { calls: Calls::default(), state };
            let path = "/org/freedesktop/systemd1";
            let served = private.builder().name("org.freedesktop.systemd1").serve_at(path, systemd).build();
            let served = served.await.unwrap();
            assert_eq!(is_system_stopping(&private.bus(), SOON).await, is_stopping, "{state}");
            drop(served);
        }
    }

    #[tokio::test]
    async fn a_service_is_restarted_and_the_jobs_result_is_waited_for() {
        let Some(private) = PrivateBus::start() else { return };
        let calls = Calls::default();
        let systemd = Systemd { calls: Arc::clone(&calls), state: "running" };
        let path = "/org/freedesktop/systemd1";
        let served = private.builder().name("org.freedesktop.systemd1").serve_at(path, systemd).build().await.unwrap();
        let bus = private.bus();

        let done = restart_named(&bus, "web", SOON).await.unwrap();
        assert_eq!(done, json!({"unit": "web.service", "job_result": "done"}));
        assert_eq!(*calls.lock().unwrap(), ["Subscribe", "RestartUnit web.service replace"]);

        let broken = restart_named(&bus, "broken.service", SOON).await.unwrap_err();
        assert_eq!((broken.code, &broken.data.unwrap()["job_result"]), ("job_failed", &json!("failed")));

        let absent = restart_named(&bus, "absent", SOON).await.unwrap_err();
        assert_eq!(absent.code, "dbus_error");
        assert!(absent.message.contains("Unit absent.service not found."), "{}", absent.message);

        let slow = restart_named(&bus, "slow", Duration::from_millis(300)).await.unwrap_err();
        assert_eq!(slow.code, "timeout");
        drop(served);
    }

    #[tokio::test]
    async fn systemd_says_what_runs_of_what_it_knows() {
        let Some(private) = PrivateBus::start() else { return };
        let (path, systemd) = ("/org/freedesktop/systemd1", Systemd { calls: Calls::default(), state: "running" });
        let served = private.builder().name("org.freedesktop.systemd1").serve_at(path, systemd).build().await.unwrap();
        let services = ["web", "broken.service", "absent"].map(|name| ServiceName::parse(name).unwrap());
        let states = states(&private.bus(), &services, SOON).await.unwrap();
        let shown: Vec<_> = states.iter().map(|running| (running.name.as_str(), running.state.as_str())).collect();
        assert_eq!(shown, [("web", "active"), ("broken.service", "failed")]);
        drop(served);
    }

    #[tokio::test]
    async fn logind_is_asked_for_power_and_may_refuse() {
        let Some(private) = PrivateBus::start() else { return };
        let calls = Calls::default();
        let logind = Logind { calls: Arc::clone(&calls) };
        let path = "/org/freedesktop/login1";
        let served = private.builder().name("org.freedesktop.login1").serve_at(path, logind).build().await.unwrap();
        power(&private.bus(), PowerAction::Reboot, SOON).await.unwrap();
        let refused = power(&private.bus(), PowerAction::PowerOff, SOON).await.unwrap_err();
        assert_eq!(refused.code, "dbus_error");
        assert!(refused.message.contains("an inhibitor is in the way"), "{}", refused.message);
        assert_eq!(*calls.lock().unwrap(), ["Reboot false", "PowerOff false"]);
        drop(served);
    }

    #[tokio::test]
    async fn a_bus_that_is_not_there_is_a_failed_command() {
        let bus = Bus::At("unix:path=/nowhere/at/all".to_owned());
        assert_eq!(restart_named(&bus, "web", SOON).await.unwrap_err().code, "dbus_error");
        assert_eq!(power(&bus, PowerAction::Reboot, SOON).await.unwrap_err().code, "dbus_error");
    }
}
