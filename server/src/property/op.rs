//! What somebody, a device, a node or the clock does next, in small numbers that shrink well: a [`Pick`] names one of what is there
//! by then.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

/// One of those that are there, counted from the newest.
pub(super) type Pick = usize;

/// Somebody, by its place in [`super::act::Cast`].
pub(super) type Who = usize;

/// One bit a scope of [`super::act::SCOPES`].
pub(super) type Mask = usize;

#[derive(Clone, Copy, Debug)]
pub(super) enum Op {
    Ask {
        who: Who,
        devices: Mask,
        scopes: Mask,
        for_minutes: u32,
        answer_minutes: u32,
    },
    Answer {
        who: Who,
        request: Pick,
        answer: Answer,
        way: Way,
    },
    Withdraw {
        who: Who,
        request: Pick,
    },
    Grant {
        who: Who,
        operator: Option<Who>,
        devices: Mask,
        scopes: Mask,
        in_minutes: u32,
        for_minutes: u32,
        way: Way,
    },
    Extend {
        who: Who,
        grant: Pick,
        minutes: u32,
    },
    Revoke {
        who: Who,
        grant: Pick,
    },
    MakePolicy {
        who: Who,
        scopes: Mask,
        max_minutes: u32,
        by_day: bool,
    },
    ApprovePolicy {
        who: Who,
        policy: Pick,
    },
    RevokePolicy {
        who: Who,
        policy: Pick,
        with_grants: bool,
    },
    Need {
        who: Who,
        approvals: usize,
    },
    Activate {
        who: Who,
        whom: Who,
        active: bool,
    },
    RevokeDevice {
        who: Who,
        device: Pick,
    },
    Quarantine {
        who: Who,
        device: Pick,
        begins: bool,
    },
    Link {
        device: Pick,
        kind: LinkKind,
    },
    Unlink {
        device: Pick,
    },
    Command {
        who: Who,
        device: Pick,
        kind: Kind,
        under: Option<Pick>,
        queue_minutes: Option<u32>,
    },
    Cancel {
        who: Who,
        command: Pick,
    },
    /// The node sends what is due.
    Claim,
    Report {
        command: Pick,
        state: Report,
    },
    OpenSession {
        who: Who,
        device: Pick,
        is_terminal: bool,
        under: Option<Pick>,
    },
    CloseSession {
        who: Who,
        session: Pick,
    },
    OpenPort {
        who: Who,
        device: Pick,
        minutes: u32,
        under: Option<Pick>,
    },
    ClosePort {
        who: Who,
        opening: Pick,
    },
    /// The node looks how its sessions stand, and ends those that are over.
    Watch,
    /// Whatever else the server does by itself every second.
    Sweep,
    /// The server dies, and is back after a while.
    Crash {
        seconds: u32,
    },
    Clock(Jump),
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Answer {
    Approve { scopes: Option<Mask>, devices: Option<Mask>, minutes_less: Option<i32> },
    Deny,
}

/// Whether the API stands before the database, or has been got around: the database must hold by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Api,
    Database,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LinkKind {
    Websocket,
    Tunnel,
    AgentInTunnel,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Metrics,
    Restart,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Report {
    Accepted,
    Running,
    Succeeded,
    Failed,
    Refused,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Jump {
    By {
        seconds: i32,
    },
    /// To an end or a beginning of something that is there, or just beside.
    To {
        moment: Pick,
        micros: i32,
    },
}

fn operator() -> impl Strategy<Value = Who> {
    prop_oneof![12 => 0..2usize, 1 => 0..7usize]
}

fn customer() -> impl Strategy<Value = Who> {
    prop_oneof![12 => 3..5usize, 2 => 0..7usize]
}

fn pick() -> impl Strategy<Value = Pick> {
    prop_oneof![6 => 0..2usize, 1 => 0..6usize]
}

fn device() -> impl Strategy<Value = Pick> {
    prop_oneof![6 => Just(0usize), 2 => 0..3usize]
}

fn devices() -> impl Strategy<Value = Mask> {
    prop_oneof![6 => Just(1usize), 3 => 1..4usize, 1 => 1..8usize]
}

/// Zero: those with a label, where that is possible.
fn devices_or_label() -> impl Strategy<Value = Mask> {
    prop_oneof![3 => devices(), 1 => Just(0usize)]
}

fn scopes() -> impl Strategy<Value = Mask> {
    prop_oneof![3 => Just(15usize), 2 => 1..16usize]
}

fn minutes() -> impl Strategy<Value = u32> {
    prop_oneof![4 => 1..60u32, 1 => 60..300u32]
}

fn under() -> impl Strategy<Value = Option<Pick>> {
    option::weighted(0.3, pick())
}

fn way() -> impl Strategy<Value = Way> {
    prop_oneof![4 => Just(Way::Api), 1 => Just(Way::Database)]
}

fn answer() -> impl Strategy<Value = Answer> {
    let less = (option::weighted(0.3, scopes()), option::weighted(0.2, devices()), option::weighted(0.3, -20..40i32));
    let approve = less.prop_map(|(scopes, devices, minutes_less)| Answer::Approve { scopes, devices, minutes_less });
    prop_oneof![6 => approve, 1 => Just(Answer::Deny)]
}

pub(super) fn jump() -> impl Strategy<Value = Jump> {
    prop_oneof![
        2 => (-7200..7200i32).prop_map(|seconds| Jump::By { seconds }),
        2 => (1..60i32).prop_map(|seconds| Jump::By { seconds }),
        6 => (0..12usize, prop_oneof![Just(0), Just(-1), Just(1), -1_000_000..1_000_000i32])
            .prop_map(|(moment, micros)| Jump::To { moment, micros }),
    ]
}

/// What lets somebody in, or makes that possible.
fn asking() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (operator(), devices(), scopes(), minutes(), minutes()).prop_map(|(who, devices, scopes, for_minutes, answer_minutes)| {
            Op::Ask { who, devices, scopes, for_minutes, answer_minutes }
        }),
        6 => (customer(), pick(), answer(), way()).prop_map(|(who, request, answer, way)| Op::Answer { who, request, answer, way }),
        1 => (0..7usize, pick()).prop_map(|(who, request)| Op::Withdraw { who, request }),
        4 => (customer(), option::weighted(0.5, 0..2usize), devices_or_label(), scopes(), prop_oneof![3 => Just(0), 1 => 1..30u32],
              minutes(), way())
            .prop_map(|(who, operator, devices, scopes, in_minutes, for_minutes, way)| {
                Op::Grant { who, operator, devices, scopes, in_minutes, for_minutes, way }
            }),
        3 => (customer(), pick(), minutes()).prop_map(|(who, grant, minutes)| Op::Extend { who, grant, minutes }),
        2 => (customer(), pick()).prop_map(|(who, grant)| Op::Revoke { who, grant }),
        1 => (customer(), scopes(), minutes(), any::<bool>())
            .prop_map(|(who, scopes, max_minutes, by_day)| Op::MakePolicy { who, scopes, max_minutes, by_day }),
        1 => (customer(), pick()).prop_map(|(who, policy)| Op::ApprovePolicy { who, policy }),
        1 => (customer(), pick(), any::<bool>()).prop_map(|(who, policy, with_grants)| Op::RevokePolicy { who, policy, with_grants }),
        2 => (customer(), 1..3usize).prop_map(|(who, approvals)| Op::Need { who, approvals }),
    ]
}

/// What somebody does who was let in, and what becomes of it.
fn using() -> impl Strategy<Value = Op> {
    let kind = prop_oneof![Just(Kind::Metrics), Just(Kind::Restart)];
    let report = prop_oneof![
        Just(Report::Accepted),
        Just(Report::Running),
        Just(Report::Succeeded),
        Just(Report::Failed),
        Just(Report::Refused)
    ];
    prop_oneof![
        6 => (operator(), device(), kind, under(), option::weighted(0.6, 1..90u32))
            .prop_map(|(who, device, kind, under, queue_minutes)| Op::Command { who, device, kind, under, queue_minutes }),
        1 => (0..7usize, pick()).prop_map(|(who, command)| Op::Cancel { who, command }),
        5 => Just(Op::Claim),
        3 => (pick(), report).prop_map(|(command, state)| Op::Report { command, state }),
        5 => (operator(), device(), any::<bool>(), under())
            .prop_map(|(who, device, is_terminal, under)| Op::OpenSession { who, device, is_terminal, under }),
        1 => (0..7usize, pick()).prop_map(|(who, session)| Op::CloseSession { who, session }),
        3 => (operator(), device(), 1..60u32, under())
            .prop_map(|(who, device, minutes, under)| Op::OpenPort { who, device, minutes, under }),
        1 => (0..7usize, pick()).prop_map(|(who, opening)| Op::ClosePort { who, opening }),
    ]
}

/// What happens to them all.
fn happening() -> impl Strategy<Value = Op> {
    let link =
        prop_oneof![3 => Just(LinkKind::AgentInTunnel), 1 => Just(LinkKind::Websocket), 1 => Just(LinkKind::Tunnel)];
    prop_oneof![
        4 => (device(), link).prop_map(|(device, kind)| Op::Link { device, kind }),
        1 => device().prop_map(|device| Op::Unlink { device }),
        1 => (0..7usize, 0..7usize, any::<bool>()).prop_map(|(who, whom, active)| Op::Activate { who, whom, active }),
        2 => (Just(2usize), 0..6usize, prop::bool::weighted(0.7)).prop_map(|(who, whom, active)| Op::Activate { who, whom, active }),
        1 => (0..7usize, 0..3usize).prop_map(|(who, device)| Op::RevokeDevice { who, device }),
        2 => (0..7usize, device(), any::<bool>()).prop_map(|(who, device, begins)| Op::Quarantine { who, device, begins }),
        4 => Just(Op::Watch),
        4 => Just(Op::Sweep),
        1 => (0..600u32).prop_map(|seconds| Op::Crash { seconds }),
        8 => jump().prop_map(Op::Clock),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![10 => asking(), 12 => using(), 10 => happening()]
}

/// Which operations there are at all.
pub(super) type Theme = fn(&Op) -> bool;

pub(super) const ANYTHING: Theme = |_| true;

/// At most so many operations of this theme.
pub(super) fn of(theme: Theme, count: usize) -> impl Strategy<Value = Vec<Op>> {
    // What is left out is made, too: that costs next to nothing.
    vec(op(), 0..count * 8).prop_map(move |ops| ops.into_iter().filter(theme).take(count).collect())
}

/// Sequences in which some kinds of operations are left out come to places where those with all of them seldom do.
fn swarm(count: usize) -> impl Strategy<Value = Vec<Op>> {
    let is_in = prop_oneof![1 => Just(u32::MAX), 2 => any::<u32>()];
    (is_in, vec(op(), 1..count * 4)).prop_map(move |(is_in, ops)| {
        ops.into_iter().filter(|op| is_in & (1 << (op.kind() % 32)) != 0).take(count).collect()
    })
}

/// The device is linked and somebody was let in already, most of the time: from there on, anything.
pub(super) fn ops(count: usize) -> impl Strategy<Value = Vec<Op>> {
    begun(swarm(count))
}

pub(super) fn begun(ops: impl Strategy<Value = Vec<Op>>) -> impl Strategy<Value = Vec<Op>> {
    let linked = Op::Link { device: 0, kind: LinkKind::AgentInTunnel };
    let granted =
        Op::Grant { who: 3, operator: None, devices: 1, scopes: 15, in_minutes: 0, for_minutes: 30, way: Way::Api };
    let begun = prop_oneof![3 => Just(vec![linked, granted]), 1 => Just(vec![linked]), 1 => Just(vec![])];
    (begun, ops).prop_map(|(mut begun, ops)| {
        begun.extend(ops);
        begun
    })
}

impl Op {
    /// A number of its kind.
    const fn kind(&self) -> u32 {
        match self {
            Self::Ask { .. } => 0,
            Self::Answer { .. } => 1,
            Self::Withdraw { .. } => 2,
            Self::Grant { .. } => 3,
            Self::Extend { .. } => 4,
            Self::Revoke { .. } => 5,
            Self::MakePolicy { .. } => 6,
            Self::ApprovePolicy { .. } => 7,
            Self::RevokePolicy { .. } => 8,
            Self::Need { .. } => 9,
            Self::Activate { .. } => 10,
            Self::RevokeDevice { .. } => 11,
            Self::Quarantine { .. } => 12,
            Self::Link { .. } => 13,
            Self::Unlink { .. } => 14,
            Self::Command { .. } => 15,
            Self::Cancel { .. } => 16,
            Self::Claim => 17,
            Self::Report { .. } => 18,
            Self::OpenSession { .. } => 19,
            Self::CloseSession { .. } => 20,
            Self::OpenPort { .. } => 21,
            Self::ClosePort { .. } => 22,
            Self::Watch => 23,
            Self::Sweep => 24,
            Self::Crash { .. } => 25,
            Self::Clock(_) => 26,
        }
    }
}
