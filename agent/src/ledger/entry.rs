//! What the ledger knows, in memory.

use std::collections::BTreeMap;

use cloudlink_proto::ids::CommandId;

use super::record::{FinalState, Record, Report, WrittenKind};

/// What is known of one command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// `None` for what was refused, or has been receipted.
    pub intent: Option<EntryIntent>,
    pub progress: Progress,
    /// Server time when it came.
    at_unix_ms: u64,
    sequence: u64,
}

/// What was promised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryIntent {
    pub kind: WrittenKind,
    /// The boot in which it was accepted.
    pub boot_id: String,
}

/// How far a command is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The intent is on the disk.
    Accepted,
    /// Begun.
    Running,
    /// Final; the server has not yet said that it stored the report.
    Reported(Report),
    /// Final and stored by the server: what was found out is forgotten, the id and the state are not.
    Receipted { state: FinalState, code: String },
}

/// All commands by id.
#[derive(Clone, Debug, Default)]
pub(super) struct Entries {
    by_id: BTreeMap<CommandId, Entry>,
    next_sequence: u64,
}

impl Entries {
    /// Takes in what happened. What cannot happen after what is known changes nothing.
    pub(super) fn apply(&mut self, record: Record) {
        match record {
            Record::Accepted { id, kind, boot_id, at_unix_ms } => {
                self.insert(id, at_unix_ms, Some(EntryIntent { kind, boot_id }), Progress::Accepted);
            }
            Record::Refused { id, at_unix_ms, report } => {
                self.insert(id, at_unix_ms, None, Progress::Reported(report));
            }
            Record::Known { id, at_unix_ms, state, code } => {
                self.insert(id, at_unix_ms, None, Progress::Receipted { state, code });
            }
            Record::Running { id } => self.advance(id, |progress| match progress {
                Progress::Accepted => Progress::Running,
                Progress::Running | Progress::Reported(_) | Progress::Receipted { .. } => progress,
            }),
            Record::Final { id, report } => self.advance(id, |progress| match progress {
                Progress::Accepted | Progress::Running => Progress::Reported(report),
                Progress::Reported(_) | Progress::Receipted { .. } => progress,
            }),
            Record::Receipted { id } => self.advance(id, |progress| match progress {
                Progress::Reported(report) => Progress::Receipted { state: report.state, code: report.code },
                Progress::Accepted | Progress::Running | Progress::Receipted { .. } => progress,
            }),
        }
    }

    fn insert(&mut self, id: CommandId, at_unix_ms: u64, intent: Option<EntryIntent>, progress: Progress) {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.by_id.entry(id).or_insert(Entry { intent, progress, at_unix_ms, sequence });
    }

    fn advance(&mut self, id: CommandId, next: impl FnOnce(Progress) -> Progress) {
        if let Some(entry) = self.by_id.get_mut(&id) {
            entry.progress = next(std::mem::replace(&mut entry.progress, Progress::Accepted));
            if matches!(entry.progress, Progress::Receipted { .. }) {
                entry.intent = None;
            }
        }
    }

    pub(super) fn forget_receipted_before(&mut self, unix_ms: u64) {
        self.by_id
            .retain(|_, entry| !(matches!(entry.progress, Progress::Receipted { .. }) && entry.at_unix_ms < unix_ms));
    }

    /// The shortest account of all that is known.
    pub(super) fn records(&self) -> Vec<Record> {
        self.in_order(|_| true).into_iter().flat_map(|id| records_of(id, &self.by_id[&id])).collect()
    }

    pub(super) fn entry(&self, id: CommandId) -> Option<&Entry> {
        self.by_id.get(&id)
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(super) fn unfinished(&self) -> Vec<CommandId> {
        self.in_order(|progress| matches!(progress, Progress::Accepted | Progress::Running))
    }

    pub(super) fn unreceipted(&self) -> Vec<CommandId> {
        self.in_order(|progress| matches!(progress, Progress::Reported(_)))
    }

    fn in_order(&self, wanted: impl Fn(&Progress) -> bool) -> Vec<CommandId> {
        let wanted = self.by_id.iter().filter(|(_, entry)| wanted(&entry.progress));
        let mut found: Vec<_> = wanted.map(|(id, entry)| (entry.sequence, *id)).collect();
        found.sort_unstable();
        found.into_iter().map(|(_, id)| id).collect()
    }
}

fn records_of(id: CommandId, entry: &Entry) -> Vec<Record> {
    let at_unix_ms = entry.at_unix_ms;
    let Some(EntryIntent { kind, boot_id }) = entry.intent.clone() else {
        return match entry.progress.clone() {
            Progress::Reported(report) => vec![Record::Refused { id, at_unix_ms, report }],
            Progress::Receipted { state, code } => vec![Record::Known { id, at_unix_ms, state, code }],
            Progress::Accepted | Progress::Running => Vec::new(),
        };
    };
    let mut records = vec![Record::Accepted { id, kind, boot_id, at_unix_ms }];
    match entry.progress.clone() {
        Progress::Accepted => {}
        Progress::Running => records.push(Record::Running { id }),
        Progress::Reported(report) => records.push(Record::Final { id, report }),
        Progress::Receipted { .. } => {}
    }
    records
}
