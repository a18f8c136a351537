//! An [`Op`] with names instead of small numbers: what is done to the server, and what the model predicts.

use cloudlink_proto::ids::DeviceId;
use uuid::Uuid;

use super::clock::{DAY, SECOND, START};
use super::op::{Answer, Jump, Kind, LinkKind, Mask, Op, Pick, Report, Way};
use super::rows::{Ids, Rows, Scopes};

/// Scopes that are asked for.
pub(super) const SCOPES: [&str; 4] = ["metrics:read", "service:restart", "shell:open", "tcp:open"];
/// How the people and devices of [`Cast`] are called where something fails.
const PEOPLE: [&str; 7] = ["olga", "oskar", "root", "tina", "theo", "robot", "tom"];
const DEVICES: [&str; 3] = ["lobby", "cellar", "ward"];
/// The clock goes no further than this from where it began, to either side.
const CLOCK_RANGE: i64 = 3 * DAY;

#[derive(Clone, Debug)]
pub(super) enum Act {
    Ask { who: Uuid, devices: Ids, scopes: Scopes, seconds: i64, answer_seconds: i64 },
    Approve { who: Uuid, request: Uuid, scopes: Option<Scopes>, devices: Option<Ids>, until: Option<i64>, way: Way },
    Deny { who: Uuid, request: Uuid, way: Way },
    Withdraw { who: Uuid, request: Uuid },
    Grant { who: Uuid, tenant: Uuid, grant: NewGrant, way: Way },
    Extend { who: Uuid, grant: Uuid, end: i64 },
    Revoke { who: Uuid, grant: Uuid },
    MakePolicy { who: Uuid, scopes: Scopes, max_seconds: i64, minutes: (i64, i64) },
    ApprovePolicy { who: Uuid, policy: Uuid },
    RevokePolicy { who: Uuid, policy: Uuid, with_grants: bool },
    Need { who: Uuid, tenant: Uuid, approvals: usize },
    Activate { who: Uuid, whom: Uuid, active: bool },
    RevokeDevice { who: Uuid, device: Uuid },
    Quarantine { who: Uuid, device: Uuid, begins: bool },
    Link { device: Uuid, kind: LinkKind },
    Unlink { device: Uuid },
    Command { who: Uuid, device: Uuid, kind: Kind, under: Option<Uuid>, queue_seconds: Option<i64> },
    Cancel { who: Uuid, command: Uuid },
    Claim,
    Report { command: Uuid, state: Report },
    OpenSession { who: Uuid, device: Uuid, is_terminal: bool, under: Option<Uuid> },
    CloseSession { who: Uuid, session: Uuid },
    OpenPort { who: Uuid, device: Uuid, seconds: i64, under: Option<Uuid> },
    ClosePort { who: Uuid, opening: Uuid },
    Watch,
    Sweep,
    Crash { seconds: i64 },
    Clock { to: i64 },
}

#[derive(Clone, Debug)]
pub(super) struct NewGrant {
    pub(super) operators: Option<Ids>,
    /// `None`: those in the north.
    pub(super) devices: Option<Ids>,
    pub(super) scopes: Scopes,
    pub(super) start: Option<i64>,
    pub(super) seconds: i64,
}

/// Those who act, and what they act on: the same in each sequence.
#[derive(Clone, Debug)]
pub(super) struct Cast {
    /// Two operators, an administrator, two people and a service account of a tenant, somebody of another one.
    pub(super) people: [Uuid; 7],
    /// Two of the tenant, one of the other one.
    pub(super) devices: [DeviceId; 3],
    pub(super) tenant: Uuid,
}

impl Cast {
    /// `None` where the operation is about something that is not there.
    pub(super) fn act(&self, op: Op, rows: &Rows, now: i64) -> Option<Act> {
        let person = |who: usize| self.people[who % self.people.len()];
        let device = |pick: usize| self.devices[pick % self.devices.len()].as_uuid();
        let grant = |pick: Option<Pick>| pick.and_then(|pick| picked(rows.grants.keys(), pick));
        Some(match op {
            Op::Ask { who, devices, scopes, for_minutes, answer_minutes } => Act::Ask {
                who: person(who),
                devices: self.devices(devices)?,
                scopes: self::scopes(scopes),
                seconds: i64::from(for_minutes) * 60,
                answer_seconds: i64::from(answer_minutes) * 60,
            },
            Op::Answer { who, request, answer, way } => {
                let (who, request) = (person(who), picked(rows.requests.keys(), request)?);
                match answer {
                    Answer::Deny => Act::Deny { who, request, way },
                    Answer::Approve { scopes, devices, minutes_less } => Act::Approve {
                        who,
                        request,
                        scopes: scopes.map(self::scopes),
                        devices: devices.and_then(|mask| self.devices(mask)),
                        until: minutes_less
                            .map(|minutes| rows.requests[&request].until - i64::from(minutes) * 60 * SECOND),
                        way,
                    },
                }
            }
            Op::Withdraw { who, request } => {
                Act::Withdraw { who: person(who), request: picked(rows.requests.keys(), request)? }
            }
            Op::Grant { who, operator, devices, scopes, in_minutes, for_minutes, way } => Act::Grant {
                who: person(who),
                tenant: rows.people[&person(who)].tenant.filter(|_| way == Way::Api).unwrap_or(self.tenant),
                grant: NewGrant {
                    operators: operator.map(|operator| Ids::from([person(operator)])),
                    devices: self.devices(devices),
                    scopes: self::scopes(scopes),
                    start: (in_minutes > 0).then(|| now + i64::from(in_minutes) * 60 * SECOND),
                    seconds: i64::from(for_minutes) * 60,
                },
                way,
            },
            Op::Extend { who, grant, minutes } => {
                let grant = picked(rows.grants.keys(), grant)?;
                Act::Extend { who: person(who), grant, end: rows.grants[&grant].end + i64::from(minutes) * 60 * SECOND }
            }
            Op::Revoke { who, grant } => Act::Revoke { who: person(who), grant: picked(rows.grants.keys(), grant)? },
            Op::MakePolicy { who, scopes, max_minutes, by_day } => Act::MakePolicy {
                who: person(who),
                scopes: self::scopes(scopes),
                max_seconds: i64::from(max_minutes) * 60,
                minutes: if by_day { (8 * 60, 18 * 60) } else { (0, 24 * 60) },
            },
            Op::ApprovePolicy { who, policy } => {
                Act::ApprovePolicy { who: person(who), policy: picked(rows.policies.keys(), policy)? }
            }
            Op::RevokePolicy { who, policy, with_grants } => {
                Act::RevokePolicy { who: person(who), policy: picked(rows.policies.keys(), policy)?, with_grants }
            }
            Op::Need { who, approvals } => Act::Need {
                who: person(who),
                tenant: rows.people[&person(who)].tenant.unwrap_or(self.tenant),
                approvals,
            },
            Op::Activate { who, whom, active } => Act::Activate { who: person(who), whom: person(whom), active },
            Op::RevokeDevice { who, device: pick } => Act::RevokeDevice { who: person(who), device: device(pick) },
            Op::Quarantine { who, device: pick, begins } => {
                Act::Quarantine { who: person(who), device: device(pick), begins }
            }
            Op::Link { device: pick, kind } => Act::Link { device: device(pick), kind },
            Op::Unlink { device: pick } => Act::Unlink { device: device(pick) },
            Op::Command { who, device: pick, kind, under, queue_minutes } => Act::Command {
                who: person(who),
                device: device(pick),
                kind,
                under: grant(under),
                queue_seconds: queue_minutes.map(|minutes| i64::from(minutes) * 60),
            },
            Op::Cancel { who, command } => {
                Act::Cancel { who: person(who), command: picked(rows.commands.keys(), command)? }
            }
            Op::Claim => Act::Claim,
            Op::Report { command, state } => Act::Report { command: picked(rows.commands.keys(), command)?, state },
            Op::OpenSession { who, device: pick, is_terminal, under } => {
                Act::OpenSession { who: person(who), device: device(pick), is_terminal, under: grant(under) }
            }
            Op::CloseSession { who, session } => {
                Act::CloseSession { who: person(who), session: picked(rows.sessions.keys(), session)? }
            }
            Op::OpenPort { who, device: pick, minutes, under } => Act::OpenPort {
                who: person(who),
                device: device(pick),
                seconds: i64::from(minutes) * 60,
                under: grant(under),
            },
            Op::ClosePort { who, opening } => {
                Act::ClosePort { who: person(who), opening: picked(rows.openings.keys(), opening)? }
            }
            Op::Watch => Act::Watch,
            Op::Sweep => Act::Sweep,
            Op::Crash { seconds } => Act::Crash { seconds: i64::from(seconds) },
            Op::Clock(jump) => Act::Clock { to: clamp(moment(jump, rows, now)?) },
        })
    }

    /// The text with names instead of ids; what was made on the way is numbered.
    pub(super) fn in_names(&self, text: &str) -> String {
        let people = self.people.iter().copied().zip(PEOPLE);
        let devices = self.devices.iter().map(|id| id.as_uuid()).zip(DEVICES);
        let mut names: Vec<(Uuid, String)> = people.chain(devices).map(|(id, name)| (id, name.to_owned())).collect();
        names.push((self.tenant, "hotel".to_owned()));
        let mut named = String::new();
        let mut rest = text;
        while let Some(begin) = rest.find(|character: char| character.is_ascii_hexdigit()) {
            let (before, from) = rest.split_at(begin);
            named += before;
            let end =
                from.find(|character: char| !character.is_ascii_hexdigit() && character != '-').unwrap_or(from.len());
            let (word, after) = from.split_at(end);
            match word.parse::<Uuid>() {
                Ok(id) => {
                    let known = names.iter().find(|(known, _)| *known == id).map(|(_, name)| name.clone());
                    named += &known.unwrap_or_else(|| {
                        let name = format!("#{}", names.len());
                        names.push((id, name.clone()));
                        name
                    });
                }
                Err(_) => named += word,
            }
            rest = after;
        }
        named + rest
    }

    fn devices(&self, mask: Mask) -> Option<Ids> {
        let chosen: Ids = chosen(mask, self.devices.iter().map(|id| id.as_uuid())).collect();
        (!chosen.is_empty()).then_some(chosen)
    }
}

fn scopes(mask: Mask) -> Scopes {
    chosen(mask, SCOPES.iter()).map(|scope| (*scope).to_owned()).collect()
}

fn chosen<T>(mask: Mask, all: impl Iterator<Item = T>) -> impl Iterator<Item = T> {
    all.enumerate().filter(move |(bit, _)| mask & (1 << bit) != 0).map(|(_, one)| one)
}

/// Ids grow with time, so the last one is the newest.
fn picked<'a>(ids: impl DoubleEndedIterator<Item = &'a Uuid> + ExactSizeIterator, pick: Pick) -> Option<Uuid> {
    let count = ids.len();
    (count > 0).then(|| ids.rev().nth(pick % count).copied())?
}

fn moment(jump: Jump, rows: &Rows, now: i64) -> Option<i64> {
    match jump {
        Jump::By { seconds } => Some(now + i64::from(seconds) * SECOND),
        Jump::To { moment, micros } => {
            let mut moments: Vec<i64> = rows.grants.values().flat_map(|grant| [grant.end, grant.start]).collect();
            moments.extend(rows.requests.values().flat_map(|request| [request.answer_by, request.until]));
            moments.extend(rows.commands.values().filter_map(|command| command.deadline));
            moments.extend(rows.openings.values().map(|opening| opening.expires));
            moments.extend(rows.tenants.values().filter_map(|tenant| tenant.fewer_until));
            // The next ones first.
            moments.sort_unstable_by_key(|at| (*at < now, at.abs_diff(now)));
            moments.dedup();
            let count = moments.len();
            (count > 0).then(|| moments[moment % count] + i64::from(micros))
        }
    }
}

pub(super) fn clamp(at: i64) -> i64 {
    at.clamp(START - CLOCK_RANGE, START + CLOCK_RANGE)
}
