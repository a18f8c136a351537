//! Good evidence, and the same with one thing wrong with it: the checker must say exactly that.

use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use uuid::Uuid;

use super::{AuditRow, ChainRow, CommandRow, Evidence, Fault, GrantRow, Limits};
use crate::history::{Asked, Entry, Harm, Sample, Shown, What};

const LIMITS: Limits = Limits { presence: Duration::from_secs(20), revocation: Duration::from_secs(1) };
const TENANT: Uuid = Uuid::from_u128(1);
const OPERATOR: Uuid = Uuid::from_u128(2);
const GRANT: Uuid = Uuid::from_u128(3);
const ONE: Uuid = Uuid::from_u128(11);
const OTHER: Uuid = Uuid::from_u128(12);
/// Runs to its end, on the first device.
const DONE: Uuid = Uuid::from_u128(21);
/// Waits for its device in vain.
const EXPIRED: Uuid = Uuid::from_u128(22);
const S: i64 = 1_000_000;

fn at(seconds: i64, device: Uuid, what: What) -> Entry {
    Entry { at_us: seconds * S, device, what }
}

fn up(seconds: i64, device: Uuid, link: u64, epoch: u64) -> Entry {
    at(seconds, device, What::Up { link, epoch: Some(epoch) })
}

fn down(seconds: i64, device: Uuid, link: u64) -> Entry {
    at(seconds, device, What::Down { link, why: "cut".to_owned() })
}

fn shown(device: Uuid, epoch: u64, is_live: bool) -> Shown {
    Shown { device, epoch, is_live }
}

fn begun(seconds: i64, device: Uuid, command: Uuid) -> Entry {
    at(seconds, device, What::Begun { command, grant: GRANT, epoch: 1 })
}

/// Of 100 seconds: the first device is up all the time, and changes its link at 50; the other one goes at 30. Something is looked
/// at each second.
fn good() -> Evidence {
    let entries = vec![
        up(0, ONE, 1, 1),
        up(0, OTHER, 1, 7),
        at(10, ONE, What::Delivered { command: DONE, epoch: 1 }),
        begun(10, ONE, DONE),
        at(11, ONE, What::Ended { command: DONE, state: "succeeded".to_owned() }),
        at(11, ONE, What::Receipted { command: DONE, epoch: 1 }),
        down(30, OTHER, 1),
        up(50, ONE, 2, 2),
        down(51, ONE, 1),
    ];
    let samples = (1..100).map(|second| {
        let changed = match second {
            1 => vec![shown(ONE, 1, true), shown(OTHER, 7, true)],
            // As late as may be.
            49 => vec![shown(OTHER, 7, false)],
            50 => vec![shown(ONE, 2, true)],
            _ => Vec::new(),
        };
        Sample { from_us: second * S, to_us: second * S + S / 10, changed }
    });
    let command = |id, device, state: &str| CommandRow {
        id,
        tenant: TENANT,
        device,
        grant: GRANT,
        requested_by: OPERATOR,
        kind: "metrics.collect".to_owned(),
        state: state.to_owned(),
        sent_us: Some(9 * S),
        expires_us: 40 * S,
        finished_us: Some(41 * S),
    };
    let grant = GrantRow {
        id: GRANT,
        tenant: TENANT,
        scopes: vec!["metrics:read".to_owned()],
        operators: Some(vec![OPERATOR]),
        devices: Some(vec![ONE, OTHER]),
        starts_us: 5 * S,
        ends_us: 60 * S,
        revoked_us: None,
    };
    let mut evidence = Evidence {
        entries,
        asked: [DONE, EXPIRED].map(|command| Asked { at_us: 8 * S, command, device: ONE }).into(),
        samples: samples.collect(),
        commands: vec![command(DONE, ONE, "succeeded"), command(EXPIRED, OTHER, "expired")],
        grants: vec![grant],
        ..Evidence::default()
    };
    for id in [DONE, EXPIRED] {
        audit(&mut evidence, "command.finished", id);
    }
    evidence
}

fn audit(evidence: &mut Evidence, action: &str, command: Uuid) {
    let entry = serde_json::json!({ "action": action, "subject": { "kind": "command", "id": command } }).to_string();
    let before = evidence.audit.last().map_or_else(|| vec![0; 32], |row| row.hash.clone());
    let hash = digest(&SHA256, &[before, entry.as_bytes().to_vec()].concat()).as_ref().to_vec();
    let seq = evidence.audit.len() as i64 + 1;
    evidence.audit.push(AuditRow { tenant: TENANT, seq, entry, hash: hash.clone() });
    evidence.chains = vec![ChainRow { tenant: TENANT, seq, hash }];
}

/// What the checker says of the good evidence after this was done to it.
fn faults(break_it: impl FnOnce(&mut Evidence)) -> Vec<Fault> {
    let mut evidence = good();
    break_it(&mut evidence);
    evidence.faults(&LIMITS).0
}

fn insert(evidence: &mut Evidence, entry: Entry) {
    let place = evidence.entries.partition_point(|other| other.at_us <= entry.at_us);
    evidence.entries.insert(place, entry);
}

#[test]
fn nothing_is_wrong_with_good_evidence_and_it_is_counted() {
    let (faults, figures) = good().faults(&LIMITS);
    assert_eq!(faults, []);
    let counted = (figures.commands, figures.succeeded, figures.begun, figures.devices, figures.links);
    assert_eq!(counted, (2, 1, 1, 2, 3));
    assert_eq!((figures.looks, figures.audit_entries, figures.wrong_ms), (2 * 99, 2, 17_900));
}

#[test]
fn a_command_that_is_gone_is_found() {
    assert_eq!(faults(|it| it.commands.truncate(1)), [Fault::Lost(EXPIRED)]);
    let without_row = faults(|it| drop(it.commands.remove(0)));
    assert_eq!(without_row, [Fault::Lost(DONE), Fault::Unknown(DONE)]);
}

#[test]
fn a_command_without_an_end_or_with_two_is_found() {
    for state in ["queued", "sent", "accepted", "running"] {
        let said = faults(|it| it.commands[1].state = state.to_owned());
        assert_eq!(said, [Fault::NotFinal(EXPIRED, state.to_owned())]);
    }
    let unfinished = faults(|it| it.commands[1].finished_us = None);
    assert_eq!(unfinished, [Fault::NotFinal(EXPIRED, "expired".to_owned())]);
    let twice = faults(|it| audit(it, "command.finished", DONE));
    assert_eq!(twice, [Fault::NotOneEnd { command: DONE, finals: 2 }]);
    let never = faults(|it| {
        it.audit.clear();
        audit(it, "command.finished", EXPIRED);
    });
    assert_eq!(never, [Fault::NotOneEnd { command: DONE, finals: 0 }]);
}

#[test]
fn a_command_that_is_begun_twice_is_found() {
    assert_eq!(faults(|it| insert(it, begun(12, ONE, DONE))), [Fault::BegunTwice(DONE)]);
    let elsewhere = faults(|it| insert(it, begun(12, OTHER, DONE)));
    assert_eq!(elsewhere, [Fault::BegunTwice(DONE), Fault::Foreign(DONE)]);
}

#[test]
fn a_state_that_does_not_fit_what_the_device_did_is_found() {
    let all_the_same = faults(|it| insert(it, begun(20, OTHER, EXPIRED)));
    assert_eq!(all_the_same, [Fault::BegunAllTheSame(EXPIRED, "expired".to_owned())]);
    for state in ["cancelled", "refused"] {
        let said = faults(|it| {
            it.commands[0].state = state.to_owned();
            audit(it, "command.late_result", DONE);
        });
        assert_eq!(said, [Fault::BegunAllTheSame(DONE, state.to_owned())]);
    }
    for state in ["succeeded", "failed"] {
        let said = faults(|it| it.commands[1].state = state.to_owned());
        assert_eq!(said, [Fault::NeverBegun(EXPIRED, state.to_owned())]);
    }
}

#[test]
fn a_result_that_is_lost_after_its_receipt_is_found() {
    let (command, told, stored) = (DONE, "succeeded".to_owned(), "unconfirmed".to_owned());
    let lost = Fault::ResultLost { command, told, stored };
    assert_eq!(faults(|it| it.commands[0].state = "unconfirmed".to_owned()), [lost]);
    // It came too late, and that is written down.
    let late = faults(|it| {
        it.commands[0].state = "unconfirmed".to_owned();
        audit(it, "command.late_result", DONE);
    });
    assert_eq!(late, []);
}

#[test]
fn a_result_that_is_never_receipted_is_found() {
    assert_eq!(faults(|it| drop(it.entries.remove(5))), [Fault::NotReceipted(DONE)]);
    // It may still come.
    let late = faults(|it| {
        let Entry { at_us, .. } = &mut it.entries[4];
        *at_us = 90 * S;
        it.entries.remove(5);
    });
    assert_eq!(late, []);
}

#[test]
fn a_command_that_is_sent_after_its_end_is_found() {
    let again = |epoch| faults(|it| it.entries.push(at(60, ONE, What::Delivered { command: DONE, epoch })));
    assert_eq!(again(2), [Fault::SentAfterReceipt(DONE)]);
    // Over the same link the two may have met.
    assert_eq!(again(1), []);
}

#[test]
fn what_is_begun_outside_of_its_grant_is_found() {
    let early = faults(|it| it.grants[0].starts_us = 12 * S);
    assert_eq!(early, [Fault::BeforeGrant { command: DONE, early_ms: 2_000 }]);
    let late = faults(|it| it.grants[0].ends_us = 9 * S);
    assert_eq!(late, [Fault::AfterGrant { command: DONE, late_ms: 1_000 }]);
    let expired = faults(|it| it.commands[0].expires_us = 8 * S);
    assert_eq!(expired, [Fault::AfterExpiry { command: DONE, late_ms: 2_000 }]);
}

#[test]
fn what_is_begun_after_its_grant_was_taken_back_is_found() {
    let sent = |sent_us| {
        faults(|it| {
            it.grants[0].revoked_us = Some(9 * S - S / 2);
            it.commands.iter_mut().for_each(|command| command.sent_us = None);
            it.commands[0].sent_us = Some(sent_us);
        })
    };
    let late = Fault::AfterRevocation { command: DONE, late_ms: 1_500 };
    assert_eq!(sent(8 * S), std::slice::from_ref(&late));
    assert_eq!(sent(9 * S), [Fault::SentAfterRevocation(DONE), late]);
    // On its way when that happened.
    let at_once = faults(|it| {
        it.grants[0].revoked_us = Some(9 * S + S / 2);
        it.commands[0].sent_us = Some(9 * S);
    });
    assert_eq!(at_once, []);
}

#[test]
fn what_no_grant_gives_is_found() {
    let breaks: [fn(&mut Evidence); 6] = [
        |it| it.grants[0].scopes = vec!["service:restart".to_owned()],
        |it| it.grants[0].operators = Some(vec![ONE]),
        |it| it.grants[0].tenant = OTHER,
        |it| it.commands[0].kind = "device.melt".to_owned(),
        |it| it.grants.clear(),
        |it| it.entries[3].what = What::Begun { command: DONE, grant: OTHER, epoch: 1 },
    ];
    for break_it in breaks {
        let said = faults(break_it);
        assert_eq!(said.first(), Some(&Fault::NotGranted(DONE)), "{said:?}");
        assert!(said.iter().all(|fault| matches!(fault, Fault::NotGranted(_))), "{said:?}");
    }
    assert_eq!(faults(|it| it.grants[0].devices = Some(vec![ONE])), [Fault::NotGranted(EXPIRED)]);
}

#[test]
fn an_epoch_that_does_not_grow_is_found() {
    for next in [1, 0] {
        let said = faults(|it| {
            it.entries[7] = up(50, ONE, 2, next);
            it.samples.truncate(40);
        });
        assert_eq!(said, [Fault::EpochNotGrowing { device: ONE, before: 1, next }]);
    }
}

/// Who is told to be shown wrongly, and until when in seconds at the first time.
fn wrong(break_it: impl FnOnce(&mut Evidence)) -> Vec<(Uuid, i64)> {
    let wrong = faults(break_it).into_iter().map(|fault| {
        let Fault::PresenceWrong { device, until_us, .. } = fault else { panic!("{fault:?}") };
        (device, until_us / S)
    });
    wrong.collect()
}

#[test]
fn a_link_that_is_shown_wrongly_for_too_long_is_found() {
    // Shown as live long after it went, and for ever.
    assert_eq!(wrong(|it| it.samples[48].changed.clear()), [(OTHER, 51)]);
    // Not shown, though it is there.
    assert_eq!(wrong(|it| it.samples[0].changed = vec![shown(OTHER, 7, true)]), [(ONE, 22)]);
    assert_eq!(wrong(|it| it.samples[4].changed = vec![shown(ONE, 1, false)]), [(ONE, 26)]);
    // With the epoch of the link before.
    assert_eq!(wrong(|it| it.samples[49].changed.clear()), [(ONE, 71)]);
    // Each time that it happens, and once each time.
    let twice = wrong(|it| {
        it.samples[51].changed = vec![shown(ONE, 2, false)];
        it.samples[73].changed = vec![shown(ONE, 2, true)];
        it.samples[74].changed = vec![shown(ONE, 2, false)];
    });
    assert_eq!(twice, [(ONE, 73), (ONE, 96)]);
}

#[test]
fn a_tunnel_is_compared_without_an_epoch() {
    let tunnel = |it: &mut Evidence| {
        it.entries[1] = at(0, OTHER, What::Up { link: 1, epoch: None });
    };
    assert_eq!(wrong(tunnel), []);
    let stays = wrong(|it| {
        tunnel(it);
        it.samples[48].changed.clear();
    });
    assert_eq!(stays, [(OTHER, 51)]);
}

#[test]
fn time_without_a_database_is_not_counted_and_time_after_it_is() {
    let harmed = |stops_database, from, to| {
        wrong(|it| {
            it.samples[48].changed.clear();
            let what = "a harm".to_owned();
            it.harms = vec![Harm { from_us: from * S, to_us: to * S, what, stops_database }];
        })
    };
    assert_eq!(harmed(true, 35, 45), [(OTHER, 67)]);
    assert_eq!(harmed(false, 35, 45), [(OTHER, 51)]);
    // Long over when it went.
    assert_eq!(harmed(true, 5, 10), [(OTHER, 51)]);
}

#[test]
fn an_audit_log_that_was_changed_is_found() {
    let broken = |seq| Fault::AuditBroken { tenant: TENANT, seq };
    let changed = faults(|it| it.audit[0].entry.push(' '));
    assert_eq!(changed, [Fault::NotOneEnd { command: DONE, finals: 1 }, broken(1)][1..]);
    let forged = faults(|it| {
        it.audit[0].entry.push(' ');
        it.audit[0].hash = digest(&SHA256, &[&[0; 32], it.audit[0].entry.as_bytes()].concat()).as_ref().to_vec();
    });
    assert_eq!(forged, [broken(2)]);
    let without_the_first = faults(|it| drop(it.audit.remove(0)));
    assert_eq!(without_the_first, [Fault::NotOneEnd { command: DONE, finals: 0 }, broken(2)]);
    let without_the_last = faults(|it| drop(it.audit.pop()));
    assert_eq!(without_the_last, [Fault::NotOneEnd { command: EXPIRED, finals: 0 }, Fault::AuditCut(TENANT)]);
    assert_eq!(faults(|it| it.chains.clear()), [Fault::AuditCut(TENANT)]);
    assert_eq!(faults(|it| it.chains[0].seq += 1), [Fault::AuditCut(TENANT)]);
}
