//! What commands do to the device. Each executor is real; which one is used is up to the configuration.

mod argv;
mod container;
mod lines;
mod systemd;
mod update;

use std::sync::Arc;
use std::time::Duration;

use cloudlink_proto::ids::CommandId;
use cloudlink_proto::poll::RUNNING_MAX;
use cloudlink_proto::poll::message::Running;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::time::Instant;

use self::container::ContainerUpdater;
pub use self::container::states as container_states;
use self::lines::Lines;
pub use self::lines::Steps;
pub use self::systemd::{Bus, is_system_stopping};
use self::update::Updater;
use crate::busy::Busy;
use crate::command::{Instruction, Kind};
use crate::config::{Argv, Config, Power, Service, ServiceName};
use crate::dial::{DialError, Route};
use crate::ledger::{FinalState, Report};
use crate::local::{NotRestarted, Restarts};
use crate::metrics::{self, SAMPLED_WITHIN, Sampler};
use crate::speed;

/// How long the restart of a service may take. The server gives up after 180 s.
const RESTART_WITHIN: Duration = Duration::from_secs(150);
/// How long systemd and the container engine may take to say what runs.
const STATES_WITHIN: Duration = Duration::from_secs(5);
/// How long a program that begins a reboot or a shutdown may run.
const POWER_ASKED_WITHIN: Duration = Duration::from_secs(60);
/// How long a device may still be up after a reboot was begun. The server gives up after 900 s.
const REBOOT_WITHIN: Duration = Duration::from_secs(600);
/// How long a device may still be up after a shutdown was begun. The server gives up after 180 s.
const SHUTDOWN_WITHIN: Duration = Duration::from_secs(150);

/// Carries commands out.
#[derive(Debug)]
pub struct Executor {
    service: Service,
    power: Power,
    bus: Bus,
    sampler: Arc<Mutex<Sampler>>,
    restarts: Arc<Restarts>,
    lines: Arc<Lines>,
    updater: Updater,
    containers: ContainerUpdater,
}

/// Why a command that was begun did not work.
#[derive(Debug)]
pub struct Failure {
    /// Stable, snake_case.
    pub code: &'static str,
    /// For people.
    pub message: String,
    pub data: Option<Value>,
}

impl Executor {
    /// With what tells how far commands are.
    #[must_use]
    pub fn new(config: &Config, bus: Bus, sampler: Arc<Mutex<Sampler>>, busy: Arc<Busy>) -> (Self, Steps) {
        let restarts = Arc::new(Restarts::new(&config.service.by_application));
        let (lines, steps) = Lines::new(busy);
        let updater = Updater::new(config, Arc::clone(&lines));
        let containers = ContainerUpdater::new(config, Arc::clone(&lines));
        let (service, power) = (config.service.clone(), config.power.clone());
        (Self { service, power, bus, sampler, restarts, lines, updater, containers }, steps)
    }

    /// What applications restart by themselves.
    #[must_use]
    pub fn restarts(&self) -> Arc<Restarts> {
        Arc::clone(&self.restarts)
    }

    /// Why the configuration does not let this be done.
    #[must_use]
    pub fn refusal(&self, instruction: &Instruction) -> Option<Failure> {
        match instruction {
            Instruction::RestartService(service) => (!self.service.allow.contains(service)).then(|| {
                let message = "the service is not on the allow-list of the device's configuration";
                Failure::new("not_allowed", message.to_owned())
            }),
            Instruction::UpdateOs(update) | Instruction::UpdateAgent(update) => {
                self.updater.refusal(instruction.kind(), update)
            }
            Instruction::UpdateContainer(update) => self.containers.refusal(update),
            Instruction::CollectMetrics | Instruction::Reboot | Instruction::Shutdown | Instruction::TestLink(_) => {
                None
            }
        }
    }

    /// The server has answered what it was asked then, which an update ends with.
    pub fn answered(&self, asked_at: Instant) {
        self.lines.answered(asked_at);
    }

    /// The link to the server is lost.
    pub fn lost(&self) {
        self.lines.lost();
    }

    /// Whether an update waits for the server to be heard of.
    #[must_use]
    pub fn wants_contact(&self) -> bool {
        self.lines.wants_contact()
    }

    /// Waits until the server is to be heard of soon, for an update to end.
    pub async fn contact_wanted(&self) {
        self.lines.contact_wanted().await;
    }

    /// What an earlier agent has begun and this one goes on with.
    #[must_use]
    pub fn unfinished(&self, id: CommandId, kind: Kind) -> Option<Instruction> {
        Some(match kind {
            Kind::UpdateOs => Instruction::UpdateOs(self.updater.unfinished(id, kind)?),
            Kind::UpdateAgent => Instruction::UpdateAgent(self.updater.unfinished(id, kind)?),
            Kind::UpdateContainer => Instruction::UpdateContainer(self.containers.unfinished(id)?),
            Kind::CollectMetrics | Kind::RestartService | Kind::Reboot | Kind::Shutdown | Kind::TestLink => {
                return None;
            }
        })
    }

    /// Removes what an earlier agent has left that nothing goes on with.
    pub fn tidy(&self, kind: Kind) {
        if kind == Kind::UpdateContainer {
            self.containers.put_back_soon();
        } else {
            self.updater.tidy(kind);
        }
    }

    /// Puts back what an update has left half done that nothing goes on with. Does not end.
    pub async fn keep_whole(&self) {
        self.containers.keep_whole().await;
    }

    /// Does it. A reboot or shutdown that works does not return.
    pub async fn execute(
        &self,
        id: CommandId,
        instruction: &Instruction,
        override_busy: bool,
        route: Option<Result<Route, DialError>>,
    ) -> Report {
        let done = match instruction {
            Instruction::CollectMetrics => self.collect_metrics().await,
            Instruction::RestartService(service) => self.restart(service).await,
            Instruction::Reboot => self.reboot().await,
            Instruction::Shutdown => self.shut_down().await,
            Instruction::UpdateOs(update) | Instruction::UpdateAgent(update) => {
                Box::pin(self.updater.run(id, instruction.kind(), update, override_busy)).await
            }
            Instruction::UpdateContainer(update) => Box::pin(self.containers.run(id, update, override_busy)).await,
            Instruction::TestLink(test) => {
                Box::pin(speed::run(*test, id, route, |percent| self.lines.tell(id, percent))).await
            }
        };
        if instruction.kind().is_update() {
            self.lines.end_contact();
        }
        match done {
            Ok(data) => Report { data: Some(data), ..Report::without_data(FinalState::Succeeded, "", "") },
            Err(failure) => failure.into_report(),
        }
    }

    /// The services that may be restarted and the containers that may be updated, as far as they are known to who runs them.
    pub async fn running(&self) -> Vec<Running> {
        let (mut services, containers) = tokio::join!(self.running_services(), self.containers.running(STATES_WITHIN));
        services.extend(containers);
        services.truncate(RUNNING_MAX);
        services
    }

    async fn running_services(&self) -> Vec<Running> {
        if self.service.allow.is_empty() || self.service.restart_argv.is_some() {
            return Vec::new();
        }
        let services = &self.service.allow[..self.service.allow.len().min(RUNNING_MAX)];
        match systemd::states(&self.bus, services, STATES_WITHIN).await {
            Ok(states) => states,
            Err(failure) => {
                tracing::debug!(reason = failure.message, "systemd does not say what runs");
                Vec::new()
            }
        }
    }

    async fn collect_metrics(&self) -> Result<Value, Failure> {
        match metrics::sample(&self.sampler).await {
            Some(report) => Ok(metrics::to_json(&report)),
            None => {
                let what = format!("the measurement took longer than {} s, or broke off", SAMPLED_WITHIN.as_secs());
                Err(Failure::new("timeout", what))
            }
        }
    }

    async fn restart(&self, service: &ServiceName) -> Result<Value, Failure> {
        if self.restarts.has(service.as_str()) {
            return self.restart_by_application(service).await;
        }
        match &self.service.restart_argv {
            Some(argv) => argv::run(&argv.for_service(service), RESTART_WITHIN).await,
            None => systemd::restart(&self.bus, service, RESTART_WITHIN).await,
        }
    }

    async fn restart_by_application(&self, service: &ServiceName) -> Result<Value, Failure> {
        let asked_at = Instant::now();
        let asked = self.restarts.ask(service.as_str(), RESTART_WITHIN).await;
        let waited_ms = u64::try_from(asked_at.elapsed().as_millis()).unwrap_or(u64::MAX);
        let data = json!({ "by_application": true, "duration_ms": waited_ms });
        let (code, message) = match asked {
            Ok(()) => return Ok(data),
            Err(NotRestarted::Refused(reason)) => {
                ("application_refused", format!("the application did not restart: {reason}"))
            }
            Err(NotRestarted::Unheard) => {
                ("no_application", "no application asked the agent whether to restart".to_owned())
            }
            Err(NotRestarted::Unconfirmed) => {
                ("timeout", "the application was told to restart, and did not say in time that it has".to_owned())
            }
        };
        Err(Failure::new(code, message).with_data(data))
    }

    async fn reboot(&self) -> Result<Value, Failure> {
        self.ask_for_power(self.power.reboot_argv.as_ref(), systemd::PowerAction::Reboot).await?;
        tokio::time::sleep(REBOOT_WITHIN).await;
        Err(still_up(Kind::Reboot, REBOOT_WITHIN))
    }

    async fn shut_down(&self) -> Result<Value, Failure> {
        self.ask_for_power(self.power.shutdown_argv.as_ref(), systemd::PowerAction::PowerOff).await?;
        tokio::time::sleep(SHUTDOWN_WITHIN).await;
        Err(still_up(Kind::Shutdown, SHUTDOWN_WITHIN))
    }

    async fn ask_for_power(&self, argv: Option<&Argv>, action: systemd::PowerAction) -> Result<(), Failure> {
        match argv {
            Some(argv) => argv::run(argv, POWER_ASKED_WITHIN).await.map(|_| ()),
            None => systemd::power(&self.bus, action, POWER_ASKED_WITHIN).await,
        }
    }
}

/// What a reboot or a shutdown comes to that left the device up.
#[must_use]
pub fn not_done_code(kind: Kind) -> &'static str {
    match kind {
        Kind::Reboot => "not_rebooted",
        Kind::Shutdown => "not_shut_down",
        Kind::CollectMetrics
        | Kind::RestartService
        | Kind::UpdateOs
        | Kind::UpdateAgent
        | Kind::UpdateContainer
        | Kind::TestLink => "interrupted",
    }
}

fn still_up(kind: Kind, within: Duration) -> Failure {
    Failure::new(
        not_done_code(kind),
        format!("the system took the order, but the device was still up after {} s", within.as_secs()),
    )
    .with_data(json!({ "waited_seconds": within.as_secs() }))
}

impl Failure {
    pub(crate) fn new(code: &'static str, message: String) -> Self {
        Self { code, message, data: None }
    }

    fn with_data(self, data: Value) -> Self {
        Self { data: Some(data), ..self }
    }

    fn into_report(self) -> Report {
        Report { data: self.data, ..Report::without_data(FinalState::Failed, self.code, &self.message) }
    }
}
