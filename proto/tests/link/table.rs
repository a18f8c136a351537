//! The complete tables: what each event and each message does in each state.

use std::fmt::Write;

use cloudlink_proto::link::{Event, State, Violation};

use crate::example::{
    UNKNOWN_KIND, device_in, device_kinds, device_message, server_in, server_kinds, server_message, start,
};

#[test]
fn transitions() {
    let mut table = String::new();
    for state in State::ALL {
        for event in Event::ALL {
            let next = state.next(event).map_or("-".to_owned(), |next| format!("{next:?}"));
            writeln!(table, "{:<14}{:<16}{next}", format!("{state:?}"), format!("{event:?}")).unwrap();
        }
    }
    insta::assert_snapshot!(table);
}

#[test]
fn messages_to_a_server_by_state() {
    let mut table = String::new();
    let mut kinds: Vec<_> = device_kinds().into_iter().map(|(name, kind)| (name, device_message(kind))).collect();
    kinds.push(("(unknown)", UNKNOWN_KIND.into()));
    for state in State::ALL {
        for (name, message) in &kinds {
            let mut server = server_in(state);
            let outcome = server.handle_message(start(), message).map(|incoming| incoming.map(|it| variant(&it)));
            row(&mut table, state, name, outcome, server.state(), server.poll_transmit().is_some());
        }
    }
    insta::assert_snapshot!(table);
}

#[test]
fn messages_to_a_device_by_state() {
    let mut table = String::new();
    let mut kinds: Vec<_> = server_kinds().into_iter().map(|(name, kind)| (name, server_message(kind))).collect();
    kinds.push(("(unknown)", UNKNOWN_KIND.into()));
    for state in State::ALL {
        for (name, message) in &kinds {
            let Some(mut device) = device_in(state) else { continue };
            let outcome = device.handle_message(start(), message).map(|incoming| incoming.map(|it| variant(&it)));
            row(&mut table, state, name, outcome, device.state(), device.poll_transmit().is_some());
        }
    }
    insta::assert_snapshot!(table);
}

fn row(
    table: &mut String,
    state: State,
    message: &str,
    outcome: Result<Option<String>, Violation>,
    next: State,
    answers: bool,
) {
    let outcome = match outcome {
        Ok(Some(incoming)) => format!("gives {incoming}"),
        Ok(None) => "gives nothing".to_owned(),
        Err(violation) => format!("{} {violation}", violation.close_code()),
    };
    let next = if next == state { String::new() } else { format!(" -> {next:?}") };
    let answers = if answers { ", answers" } else { "" };
    writeln!(table, "{:<14}{message:<25}{outcome}{answers}{next}", format!("{state:?}")).unwrap();
}

fn variant(incoming: &impl std::fmt::Debug) -> String {
    let debug = format!("{incoming:?}");
    debug.split([' ', '(']).next().unwrap_or_default().to_owned()
}
