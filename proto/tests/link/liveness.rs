//! Keeping a link up, noticing that it is gone, and ending it.

use std::time::Duration;

use cloudlink_proto::link::message::goodbye::Code;
use cloudlink_proto::link::message::{
    Command, CommandReceipt, CommandStatus, Ping, Pong, Reboot, command, command_status, device_message, server_message,
};
use cloudlink_proto::link::{
    CLOSE_WITHIN, Device, FromDevice, FromServer, OUTGOING_MAX, Party, SendError, Server, Session, State, Timing,
    WELCOME_WAIT_MAX, WELCOME_WITHIN,
};

use crate::example::{
    command as example_command, device_in, device_message, report, server_in, server_message, start, status, uuid,
};
use crate::pair::Pair;

const INTERVAL: Duration = Duration::from_secs(25);

fn timing() -> Timing {
    Timing { ping_interval: INTERVAL, max_missed_pings: 3, ..Timing::default() }
}

#[test]
fn idle_link_stays_up_with_one_ping_an_interval() {
    let mut pair = Pair::live(timing());
    let before = (pair.to_server.messages, pair.to_device.messages);
    pair.run_for(INTERVAL * 100);
    assert_eq!((pair.server.state(), pair.device.state()), (State::Live, State::Live));
    let (up, down) = (pair.to_server.messages - before.0, pair.to_device.messages - before.1);
    assert!((99..=101).contains(&up) && (99..=101).contains(&down), "{up} messages up, {down} down");
}

#[test]
fn both_ends_hear_of_each_other_in_each_interval() {
    let mut pair = Pair::live(timing());
    for _ in 0..200 {
        pair.run_for(INTERVAL / 3);
        let slack = Duration::from_millis(200);
        assert!(pair.now - pair.server.last_proven() <= INTERVAL + slack);
        assert!(pair.now - pair.device.last_proven() <= INTERVAL + slack);
    }
}

#[test]
fn device_that_is_never_told_anything_is_sure_of_its_server() {
    // The device always has something to say, so it never pings; the server's own pings prove it.
    let mut pair = Pair::live(timing());
    for _ in 0..100 {
        pair.device.send(pair.now, report()).unwrap();
        pair.run_for(INTERVAL / 2);
        assert!(pair.now - pair.device.last_proven() <= INTERVAL + Duration::from_millis(200));
    }
}

#[test]
fn an_answer_proves_what_was_under_way_does_not() {
    let mut pair = Pair::live(timing());
    let second = Duration::from_secs(1);
    (pair.to_server.latency, pair.to_device.latency) = (second, second);
    pair.server.ping(pair.now);
    pair.run_for(second / 2);
    let (ping, proven) = (pair.device.ping(pair.now), pair.device.last_proven());
    pair.run_for(second);
    assert!(pair.device.last_proven() > proven, "the server's own ping has come");
    assert!(!pair.device.has_answered(ping));
    pair.run_for(2 * second);
    assert!(pair.device.has_answered(ping) && !pair.device.has_answered(ping + 1));
    pair.run_for(INTERVAL * 2);
    assert!(pair.device.has_answered(ping), "later ones do not take it back");
}

#[test]
fn an_answer_that_nobody_asked_for_is_none() {
    let mut device = device_in(State::Live).unwrap();
    let pong = server_message(server_message::Kind::Pong(Pong { token: 7 }));
    assert_eq!(device.handle_message(start(), &pong), Ok(None));
    let ping = device.ping(start());
    assert!(!device.has_answered(ping) && !device.has_answered(7) && !device.has_answered(0));
}

#[test]
fn latency_below_the_limit_does_no_harm() {
    let mut pair = Pair::live(timing());
    pair.to_server.latency = INTERVAL;
    pair.to_device.latency = INTERVAL - Duration::from_secs(1);
    pair.run_for(INTERVAL * 50);
    assert_eq!((pair.server.state(), pair.device.state()), (State::Live, State::Live));
}

#[test]
fn both_ends_give_up_after_the_missed_pings_when_the_wire_is_cut() {
    let mut pair = Pair::live(timing());
    let proven = (pair.server.last_proven(), pair.device.last_proven());
    (pair.to_server.is_cut, pair.to_device.is_cut) = (true, true);
    pair.run_for(INTERVAL * 3 - Duration::from_secs(1));
    assert_eq!((pair.server.state(), pair.device.state()), (State::Live, State::Live));
    pair.run_for(Duration::from_secs(2));
    for close in [pair.server.close(), pair.device.close()] {
        let close = close.expect("given up");
        assert_eq!((close.by, close.code, close.close_code()), (Party::Us, Code::TimedOut, 4005));
    }
    assert_eq!((pair.server.last_proven(), pair.device.last_proven()), proven);
    pair.run_for(CLOSE_WITHIN);
    assert_eq!((pair.server.state(), pair.device.state()), (State::Closed, State::Closed));
    assert_eq!((pair.server.poll_timeout(), pair.device.poll_timeout()), (None, None));
}

#[test]
fn end_that_still_hears_is_told_why_the_other_gave_up() {
    let mut pair = Pair::live(timing());
    pair.to_server.is_cut = true;
    pair.run_for(INTERVAL * 4);
    assert_eq!(pair.from_server.last(), Some(&FromServer::Goodbye));
    let close = pair.device.close().expect("told");
    assert_eq!((close.by, close.code), (Party::Peer, Code::TimedOut));
}

#[test]
fn server_decides_the_intervals() {
    let timing = Timing { ping_interval: Duration::from_millis(200), max_missed_pings: 2, ..Timing::default() };
    let mut pair = Pair::live(timing);
    pair.to_device.is_cut = true;
    pair.run_for(Duration::from_millis(500));
    assert_eq!(pair.device.close().map(|close| close.code), Some(Code::TimedOut));
}

#[test]
fn absurd_timing_is_brought_back_into_the_protocol() {
    let timing = Timing { ping_interval: Duration::ZERO, max_missed_pings: 0, ..Timing::default() };
    let mut pair = Pair::new(timing);
    pair.run_for(Duration::from_millis(90));
    assert_eq!(pair.device.state(), State::Live);
}

#[test]
fn device_that_says_nothing_is_cut_off() {
    let mut server = Session::server(start(), &Timing::default());
    let deadline = server.poll_timeout().unwrap();
    assert_eq!(deadline - start(), Duration::from_secs(10));
    server.handle_timeout(deadline - Duration::from_millis(1));
    assert_eq!(server.state(), State::AwaitHello);
    server.handle_timeout(deadline);
    assert_eq!(server.close().map(|close| close.close_code()), Some(4005));
}

#[test]
fn welcome_that_does_not_come_ends_both_ends() {
    let mut server = server_in(State::AwaitWelcome);
    server.handle_timeout(start() + WELCOME_WITHIN);
    assert_eq!(server.close().map(|close| close.code), Some(Code::Overloaded));
    let mut device = device_in(State::AwaitWelcome).unwrap();
    device.handle_timeout(start() + WELCOME_WAIT_MAX);
    assert_eq!(device.close().map(|close| close.code), Some(Code::TimedOut));
}

#[test]
fn messages_arrive_in_order_and_goodbye_comes_last() {
    let mut pair = Pair::live(timing());
    for state in [command_status::State::Accepted, command_status::State::Running, command_status::State::Succeeded] {
        pair.device.send(pair.now, status(state)).unwrap();
    }
    pair.device.goodbye(pair.now, Code::ShuttingDown, "going down", Duration::from_secs(60));
    pair.run_for(Duration::from_secs(1));
    let states: Vec<_> = pair
        .from_device
        .iter()
        .filter_map(|incoming| if let FromDevice::CommandStatus { state, .. } = incoming { Some(*state) } else { None })
        .collect();
    assert_eq!(
        states,
        [command_status::State::Accepted, command_status::State::Running, command_status::State::Succeeded]
    );
    assert_eq!(pair.from_device.last(), Some(&FromDevice::Goodbye));
    let close = pair.server.close().expect("said goodbye");
    assert_eq!(
        (close.by, close.message.as_str(), close.retry_after),
        (Party::Peer, "going down", Duration::from_secs(60))
    );
}

#[test]
fn duplicates_of_statuses_reach_the_caller_who_knows_the_command() {
    let mut pair = Pair::live(timing());
    pair.to_server.is_doubling = true;
    pair.device.send(pair.now, status(command_status::State::Succeeded)).unwrap();
    pair.run_for(Duration::from_secs(1));
    let statuses = pair.from_device.iter().filter(|it| matches!(it, FromDevice::CommandStatus { .. })).count();
    assert_eq!((statuses, pair.server.state()), (2, State::Live));
}

#[test]
fn goodbye_that_both_say_at_once_keeps_the_own_reason() {
    let mut pair = Pair::live(timing());
    pair.server.goodbye(pair.now, Code::Replaced, "a newer link is live", Duration::ZERO);
    pair.device.goodbye(pair.now, Code::ShuttingDown, "", Duration::ZERO);
    pair.run_for(CLOSE_WITHIN);
    assert_eq!(pair.server.close().map(|close| close.code), Some(Code::Replaced));
    assert_eq!(pair.device.close().map(|close| close.code), Some(Code::ShuttingDown));
}

#[test]
fn lost_socket_closes_at_once_and_its_close_code_is_read() {
    let mut device = device_in(State::Live).unwrap();
    device.transport_lost(Some(4003));
    let close = device.close().unwrap();
    assert_eq!((close.by, close.code), (Party::Peer, Code::Revoked));
    for close_code in [Some(1000), Some(1006), Some(3999), Some(4999), Some(u16::MAX)] {
        let mut device = device_in(State::Live).unwrap();
        device.transport_lost(close_code);
        assert_eq!(device.close().map(|close| close.code), Some(Code::Unspecified), "{close_code:?}");
    }
    let mut device = device_in(State::Live).unwrap();
    device.send(start(), report()).unwrap();
    device.transport_lost(None);
    assert_eq!(device.close().map(|close| close.by), Some(Party::Transport));
    assert_eq!(device.poll_transmit(), None);
    assert_eq!(device.send(start(), report()), Err(SendError::State(State::Closed)));
}

#[test]
fn flood_of_pings_is_answered_with_one_pong() {
    let mut server = server_in(State::Live);
    for token in 0..10_000 {
        server.handle_message(start(), &device_message(device_message::Kind::Ping(Ping { token }))).unwrap();
    }
    let pong = server.poll_transmit().expect("the newest is answered");
    assert_eq!(server.poll_transmit(), None);
    let mut device = device_in(State::Live).unwrap();
    assert_eq!(device.handle_message(start(), &pong), Ok(None));
}

#[test]
fn full_queue_refuses_and_keeps_what_it_has() {
    let mut server = server_in(State::Live);
    let receipt = CommandReceipt { id: example_command(None).id };
    for _ in 0..OUTGOING_MAX {
        server.send(start(), receipt.clone()).unwrap();
    }
    assert_eq!(server.send(start(), receipt), Err(SendError::QueueFull));
    assert_eq!(std::iter::from_fn(|| server.poll_transmit()).count(), OUTGOING_MAX);
}

#[test]
fn own_messages_keep_the_limits_too() {
    let mut device = device_in(State::Live).unwrap();
    let long = CommandStatus { code: "x".repeat(257), ..status(command_status::State::Failed) };
    let error = device.send(start(), long).unwrap_err();
    assert_eq!(error.to_string(), "the message breaks a limit: CommandStatus.code is longer than 256 bytes");
    assert_eq!(device.poll_transmit(), None);
}

#[test]
fn close_frame_text_is_cut_between_characters() {
    let mut server = server_in(State::Live);
    server.goodbye(start(), Code::Overloaded, &"é".repeat(300), Duration::ZERO);
    let close = server.close().unwrap();
    assert_eq!(close.close_text(), "é".repeat(61));
    let goodbye = server.poll_transmit().unwrap();
    let mut device = device_in(State::Live).unwrap();
    assert_eq!(device.handle_message(start(), &goodbye), Ok(Some(FromServer::Goodbye)));
    assert_eq!(device.close().map(|close| close.message.len()), Some(256));
}

#[test]
fn link_of_a_server_is_small() {
    assert!(size_of::<Session<Server>>() <= 152, "{} bytes", size_of::<Session<Server>>());
    assert_eq!(size_of::<Session<Server>>(), size_of::<Session<Device>>());
}

#[test]
fn ids_come_out_typed() {
    let mut server = server_in(State::Live);
    let message = device_message(device_message::Kind::CommandStatus(status(command_status::State::Accepted)));
    let Ok(Some(FromDevice::CommandStatus { id, .. })) = server.handle_message(start(), &message) else {
        panic!("a status is legal");
    };
    assert_eq!(id.as_uuid(), uuid(3));
}

#[test]
fn what_a_command_lost_on_its_way_is_taken_off_its_time() {
    let mut pair = Pair::live(timing());
    for (delay_ms, left_ms) in [(0, 29_900..=30_000), (20_000, 9_900..=10_000), (40_000, 0..=0)] {
        let sent_after_ms = pair.server.sent_after_ms(pair.now);
        let kind = Some(command::Kind::Reboot(Reboot {}));
        pair.server.send(pair.now, Command { sent_after_ms, ..example_command(kind) }).unwrap();
        let sent = pair.server.poll_transmit().unwrap();
        let received = pair.device.handle_message(pair.now + Duration::from_millis(delay_ms), &sent).unwrap();
        let Some(FromServer::Command { command, .. }) = received else { panic!("{received:?}") };
        assert!(left_ms.contains(&command.start_within_ms), "{delay_ms}: {}", command.start_within_ms);
    }
}
