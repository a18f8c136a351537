//! The audit log: each entry follows from the one before, and the last is the one that the database says is the last.

use std::collections::HashMap;

use aws_lc_rs::digest::{Context, SHA256};
use uuid::Uuid;

use super::evidence::{AuditRow, Evidence};
use super::{Fault, Figures};

pub(super) fn check(evidence: &Evidence, faults: &mut Vec<Fault>, figures: &mut Figures) {
    figures.audit_entries = evidence.audit.len();
    let mut ends = HashMap::<Uuid, (i64, Vec<u8>)>::new();
    for row in &evidence.audit {
        let (seq, hash) = ends.remove(&row.tenant).unwrap_or_else(|| (0, vec![0; 32]));
        if row.seq != seq + 1 || row.hash != next(&hash, row) {
            faults.push(Fault::AuditBroken { tenant: row.tenant, seq: row.seq });
        }
        ends.insert(row.tenant, (row.seq, row.hash.clone()));
    }
    for chain in &evidence.chains {
        let (seq, hash) = ends.remove(&chain.tenant).unwrap_or_else(|| (0, vec![0; 32]));
        if (seq, &hash) != (chain.seq, &chain.hash) {
            faults.push(Fault::AuditCut(chain.tenant));
        }
    }
    let mut left: Vec<_> = ends.into_keys().collect();
    left.sort_unstable();
    faults.extend(left.into_iter().map(Fault::AuditCut));
}

/// What must be in the row.
fn next(before: &[u8], row: &AuditRow) -> Vec<u8> {
    let mut context = Context::new(&SHA256);
    context.update(before);
    context.update(row.entry.as_bytes());
    context.finish().as_ref().to_vec()
}
