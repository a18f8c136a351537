use proptest::prelude::*;
use rstest::rstest;
use serde_json::json;

use super::*;

const TENANT: Uuid = Uuid::from_u128(7);

/// An export of a chain with these actions.
fn export(actions: &[String]) -> Vec<Value> {
    let mut hash = Hash::START;
    let entries = actions.iter().zip(1_u64..).map(|(action, seq)| {
        let entry = json!({
            "version": 1, "tenant": TENANT, "seq": seq, "at": format!("2026-11-21T14:00:{:02}.000001Z", seq % 60),
            "actor": {"kind": "server"}, "action": action, "subject": {}, "details": {},
        })
        .to_string();
        hash = hash.then(&entry);
        json!({ "tenant_id": TENANT, "seq": seq, "entry": entry, "hash": hash.to_string() })
    });
    entries.collect()
}

fn sample(entries: usize) -> Vec<Value> {
    export(&(0..entries).map(|n| format!("thing.done.{n}")).collect::<Vec<_>>())
}

fn verify_with(lines: &[Value], after: Option<Hash>, noted: Option<Hash>) -> Result<Verified, ChainError> {
    let mut chain = Chain::new(after, noted);
    for line in lines {
        chain.check_line(line.to_string().as_bytes())?;
    }
    chain.finish()
}

fn verify(lines: &[Value]) -> Result<Verified, ChainError> {
    verify_with(lines, None, None)
}

fn hash_of(line: &Value) -> Hash {
    line["hash"].as_str().unwrap().parse().unwrap()
}

#[test]
fn the_first_hash_is_that_of_zeros_and_the_entry() {
    // By another program: (head -c 32 /dev/zero; printf abc) | sha256sum
    assert_eq!(Hash::START.then("abc").to_string(), "365aa7d8f7f9402c4b9434502b4cc89ddb09fe50d7cd95b493b834c62d5a5370");
}

#[test]
fn says_what_it_checked() {
    let lines = sample(5);
    let verified = verify(&lines).unwrap();
    assert_eq!((verified.tenant, verified.entries, verified.first.seq, verified.last.seq), (TENANT, 5, 1, 5));
    assert_eq!(verified.head, hash_of(&lines[4]));
    assert_eq!(verified.last.at, Some("2026-11-21T14:00:05.000001Z".parse().unwrap()));
}

#[test]
fn a_missing_beginning_is_found() {
    assert!(matches!(verify(&sample(5)[2..]), Err(ChainError::Beginning { found: 3 })));
}

#[test]
fn a_later_part_verifies_after_the_hash_before_it_and_no_other() {
    let lines = sample(5);
    let verified = verify_with(&lines[2..], Some(hash_of(&lines[1])), None).unwrap();
    assert_eq!((verified.entries, verified.first.seq), (3, 3));
    let wrong = verify_with(&lines[2..], Some(hash_of(&lines[0])), None);
    assert!(matches!(wrong, Err(ChainError::Hash { line: 1, seq: 3 })));
}

#[test]
fn a_missing_end_is_found_by_a_noted_head() {
    let lines = sample(5);
    let head = hash_of(&lines[4]);
    assert!(verify(&lines[..4]).is_ok(), "nothing inside the file can show this");
    assert!(matches!(verify_with(&lines[..4], None, Some(head)), Err(ChainError::Head(missing)) if missing == head));
    assert!(matches!(verify_with(&[], None, Some(head)), Err(ChainError::Head(_))));
}

#[test]
fn a_chain_that_has_grown_since_still_has_the_noted_head() {
    let lines = sample(5);
    assert_eq!(verify_with(&lines, None, Some(hash_of(&lines[2]))).unwrap().noted_at, Some(3));
}

#[test]
fn an_edited_entry_is_found_where_it_is() {
    let mut lines = sample(5);
    let text = lines[2]["entry"].as_str().unwrap().replace("done.2", "done.9");
    lines[2]["entry"] = text.into();
    assert!(matches!(verify(&lines), Err(ChainError::Hash { line: 3, seq: 3 })));
}

#[test]
fn an_edited_entry_with_a_matching_hash_is_found_at_the_next() {
    let mut lines = sample(5);
    let text = lines[2]["entry"].as_str().unwrap().replace("done.2", "done.9");
    lines[2]["hash"] = hash_of(&lines[1]).then(&text).to_string().into();
    lines[2]["entry"] = text.into();
    assert!(matches!(verify(&lines), Err(ChainError::Hash { line: 4, seq: 4 })));
}

#[test]
fn a_rewritten_history_is_found_by_a_noted_head() {
    let noted = hash_of(&sample(5)[4]);
    let rewritten = export(&["a", "b", "c", "d", "e"].map(str::to_owned));
    assert!(matches!(verify_with(&rewritten, None, Some(noted)), Err(ChainError::Head(_))));
}

#[test]
fn a_number_or_tenant_that_is_not_the_hashed_one_is_found() {
    let mut lines = sample(3);
    lines.remove(1);
    lines[1]["seq"] = 2.into();
    lines[1]["hash"] = hash_of(&lines[0]).then(lines[1]["entry"].as_str().unwrap()).to_string().into();
    assert!(matches!(verify(&lines), Err(ChainError::Inside { seq: 2, .. })));

    let mut lines = sample(1);
    lines[0]["tenant_id"] = Uuid::from_u128(8).to_string().into();
    assert!(matches!(verify(&lines), Err(ChainError::Inside { seq: 1, .. })));
}

#[test]
fn entries_of_two_tenants_are_no_chain() {
    let mut lines = sample(2);
    lines[1]["tenant_id"] = Uuid::from_u128(8).to_string().into();
    assert!(matches!(verify(&lines), Err(ChainError::Tenant { line: 2, .. })));
}

#[rstest]
#[case("")]
#[case("{}")]
#[case("[]")]
#[case("{\"tenant_id\": \"x\", \"seq\": 1, \"entry\": \"{}\", \"hash\": \"00\"}")]
#[case("{\"tenant_id\": \"00000000-0000-0000-0000-000000000007\", \"seq\": -1, \"entry\": \"{}\", \"hash\": \"00\"}")]
fn what_is_no_export_is_refused(#[case] line: &str) {
    assert!(matches!(Chain::new(None, None).check_line(line.as_bytes()), Err(ChainError::Malformed { line: 1, .. })));
}

#[test]
fn nothing_is_no_chain() {
    assert!(matches!(verify(&[]), Err(ChainError::Empty)));
}

/// What somebody may do to an export.
#[derive(Clone, Debug)]
enum Tampering {
    Remove(usize),
    Swap(usize, usize),
    Repeat(usize),
    EditText(usize, String),
    EditHash(usize, usize),
    CutBeginning(usize),
    CutEnd(usize),
}

fn tampering() -> impl Strategy<Value = Tampering> {
    let at = 0..64_usize;
    prop_oneof![
        at.clone().prop_map(Tampering::Remove),
        (at.clone(), at.clone()).prop_map(|(a, b)| Tampering::Swap(a, b)),
        at.clone().prop_map(Tampering::Repeat),
        (at.clone(), any::<String>()).prop_map(|(n, text)| Tampering::EditText(n, text)),
        (at.clone(), 0..64_usize).prop_map(|(n, digit)| Tampering::EditHash(n, digit)),
        at.clone().prop_map(Tampering::CutBeginning),
        at.prop_map(Tampering::CutEnd),
    ]
}

fn tamper(lines: &mut Vec<Value>, how: &Tampering) {
    let count = lines.len();
    match how {
        Tampering::Remove(n) => {
            lines.remove(n % count);
        }
        Tampering::Swap(a, b) => lines.swap(a % count, b % count),
        Tampering::Repeat(n) => lines.insert(n % count, lines[n % count].clone()),
        Tampering::EditText(n, text) => lines[n % count]["entry"] = text.clone().into(),
        Tampering::EditHash(n, digit) => {
            let mut hash = lines[n % count]["hash"].as_str().unwrap().to_owned();
            let changed = if hash.as_bytes()[*digit] == b'0' { "1" } else { "0" };
            hash.replace_range(digit..&(digit + 1), changed);
            lines[n % count]["hash"] = hash.into();
        }
        Tampering::CutBeginning(n) => {
            lines.drain(..n % count);
        }
        Tampering::CutEnd(n) => lines.truncate(n % count),
    }
}

proptest! {
    #[test]
    fn whole_chains_verify(actions in proptest::collection::vec(any::<String>(), 1..20)) {
        let lines = export(&actions);
        let verified = verify_with(&lines, None, Some(hash_of(&lines[lines.len() - 1]))).unwrap();
        prop_assert_eq!(verified.entries, actions.len() as u64);
    }

    #[test]
    fn whatever_was_changed_is_found(count in 1_usize..12, how in proptest::collection::vec(tampering(), 1..4)) {
        let whole = sample(count);
        let mut lines = whole.clone();
        for how in &how {
            if !lines.is_empty() {
                tamper(&mut lines, how);
            }
        }
        let result = verify_with(&lines, None, Some(hash_of(&whole[count - 1])));
        prop_assert_eq!(result.is_ok(), lines == whole, "{:?}", result);
    }
}
