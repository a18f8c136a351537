//! Terminals: a real shell in a real pseudo-terminal.

use std::time::Duration;

use cloudlink_proto::stream::{Control, Signal};
use nix::unistd::Pid;
use tokio::time::Instant;

use crate::server::{ServerStream, eventually};
use crate::stream::{Said, Scene, TERMINAL, is_alive, terminal};

fn exited(status: u8) -> Control {
    Control::Exit { status: Some(status), signal: None }
}

/// What the shell says to a command, and the number that it puts behind.
async fn answer(stream: &mut ServerStream, command: &str) -> String {
    stream.pass(format!("{command}; echo \"-e\"nd-\n")).await;
    stream.until("-end-").await
}

async fn process_id(stream: &mut ServerStream, command: &str) -> i32 {
    let said = answer(stream, &format!("{command} & echo \"=\"$!=")).await;
    said.rsplit_once('=').unwrap().0.rsplit_once('=').unwrap().1.parse().unwrap()
}

#[tokio::test]
async fn the_terminal_has_the_size_of_the_clients_window() {
    let mut scene = Scene::new(TERMINAL).await;
    let mut stream = scene.terminal().await;
    assert!(answer(&mut stream, "stty size").await.contains("24 80"));
    stream.say(&Control::Resize { columns: 132, rows: 43 }).await;
    assert!(answer(&mut stream, "stty size").await.contains("43 132"));
    scene.stop().await;
}

#[tokio::test]
async fn a_shell_ends_with_its_status_or_its_signal() {
    let mut scene = Scene::new(TERMINAL).await;
    let mut stream = scene.terminal().await;
    stream.pass("printf 'last'; echo ' words'; exit 7\n").await;
    let (before, end) = stream.word().await;
    assert_eq!(end, exited(7));
    assert!(String::from_utf8(before).unwrap().contains("last words"), "all of it comes before the end");
    assert_eq!(stream.said().await, Said::Gone);

    let mut stream = scene.terminal().await;
    stream.pass("kill -KILL $$\n").await;
    let killed = Control::Exit { status: None, signal: Some("SIGKILL".to_owned()) };
    assert_eq!(stream.word().await.1, killed);
    scene.stop().await;
}

#[tokio::test]
async fn bytes_go_through_as_they_are() {
    let mut scene = Scene::new(TERMINAL).await;
    let mut stream = scene.terminal().await;
    stream.pass("stty -echo; echo go\"-on\"\n").await;
    stream.until("go-on").await;
    let text = "grüße, 日本語, 🦀 e\u{301}";
    stream.pass(format!("printf '%s' '<{text}>'\n")).await;
    assert!(stream.until(">").await.contains(&format!("<{text}>")));
    // Split in the middle of a character, and no character at all.
    let crab = "🦀".as_bytes();
    stream.pass([b"printf %s '<", &crab[..2]].concat()).await;
    stream.pass([&crab[2..], b">' | od -An -tx1\n"].concat()).await;
    stream.until("3c f0 9f a6 80 3e").await;
    stream.pass("printf '\\377\\000\\200.'\n").await;
    let mut raw = Vec::new();
    while !raw.ends_with(b".") && !raw.windows(2).any(|pair| pair == b"\x80.") {
        let Said::Bytes(bytes) = stream.said().await else { panic!("the end") };
        raw.extend_from_slice(&bytes);
    }
    assert!(raw.windows(4).any(|four| four == b"\xff\x00\x80."), "{raw:?}");
    scene.stop().await;
}

#[tokio::test]
async fn signals_and_ctrl_c_reach_what_runs_in_the_foreground() {
    let mut scene = Scene::new(TERMINAL).await;
    let mut stream = scene.terminal().await;
    // The shell puts it into the foreground a moment after it has said so, and is itself there until then.
    let slept = |scene: &Scene| scene.children().iter().any(|shell| is_sleeping_in(*shell));
    for (signal, status) in
        [(Signal::Int, 130), (Signal::Quit, 131), (Signal::Term, 143), (Signal::Kill, 137), (Signal::Hup, 129)]
    {
        stream.pass("echo re\"\"ady; sleep 600\n").await;
        stream.until("ready").await;
        eventually("it sleeps", || slept(&scene)).await;
        stream.say(&Control::Signal { signal }).await;
        let said = answer(&mut stream, "echo \"st\"atus $?").await;
        assert!(said.contains(&format!("status {status}")), "{signal:?}: {said}");
    }
    stream.pass("echo re\"\"ady; sleep 600\n").await;
    stream.until("ready").await;
    eventually("it sleeps", || slept(&scene)).await;
    stream.pass("\x03").await;
    let said = answer(&mut stream, "echo \"st\"atus $?").await;
    assert!(said.contains("status 130"), "{said}");
    scene.stop().await;
}

/// Whether `sleep` is in the foreground of the terminal of this shell.
fn is_sleeping_in(shell: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{shell}/stat")).unwrap_or_default();
    let foreground = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(5)?.parse::<i32>().ok());
    let name = foreground.and_then(|group| std::fs::read_to_string(format!("/proc/{group}/comm")).ok());
    name.as_deref() == Some("sleep\n")
}

#[tokio::test]
async fn the_end_of_input_ends_what_reads_one_after_the_other() {
    let mut scene = Scene::new(TERMINAL).await;
    let mut stream = scene.terminal().await;
    stream.pass("cat\nhello").await;
    stream.say(&Control::Eof).await;
    let (said, end) = stream.word().await;
    assert_eq!(end, exited(0));
    assert!(String::from_utf8(said).unwrap().matches("hello").count() >= 2, "typed, and said by cat");
    scene.stop().await;
}

#[tokio::test]
async fn the_shell_starts_as_a_login_shell_in_a_clean_environment() {
    let mut scene = Scene::new("[terminal]\nenabled = true\n").await;
    let mut stream = scene.terminal().await;
    let said = answer(&mut stream, "echo \"0=\"$0; env; pwd; ps -o tty= -p $$").await;
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).unwrap().unwrap();
    let name = user.shell.file_name().unwrap().to_str().unwrap().to_owned();
    for expected in [
        format!("0=-{name}"),
        "TERM=xterm-256color".to_owned(),
        format!("USER={}", user.name),
        format!("HOME={}", user.dir.display()),
        "CLOUDLINK_SESSION=00000000-0000-0000-0000-0000000001f4".to_owned(),
        "pts/".to_owned(),
    ] {
        assert!(said.contains(&expected), "{said} lacks {expected}");
    }
    assert!(!said.contains("SECRET_OF_THE_AGENT") && !said.contains("do-not-pass-on"), "{said}");
    let open = answer(&mut stream, "ls -l /proc/$$/fd | grep -v pts | grep -c -e socket: -e ptmx -e ledger").await;
    assert!(open.contains("0\r\n-end-"), "nothing of the agent's is open in the shell: {open}");
    scene.stop().await;
}

#[tokio::test]
async fn ten_operators_work_at_once_and_one_too_many_is_refused() {
    let mut scene = Scene::new(TERMINAL).await;
    let before = scene.descriptors();
    let mut streams = Vec::new();
    for _ in 0..cloudlink_agent::stream::TERMINALS_MAX {
        streams.push(scene.terminal().await);
    }
    assert!(streams.len() >= 10);
    for (number, stream) in streams.iter_mut().enumerate() {
        stream.pass(format!("echo I-am-$(({number} + 1000))\n")).await;
    }
    for (number, stream) in streams.iter_mut().enumerate() {
        stream.until(&format!("I-am-{}", number + 1000)).await;
    }
    let request = scene.request(terminal());
    assert_eq!(scene.refused(request).await.code, "busy");
    for mut stream in streams.drain(..) {
        stream.pass("exit\n").await;
        assert_eq!(stream.word().await.1, exited(0));
        stream.gone().await;
    }
    eventually("no child is left, no zombie either", || scene.children().is_empty()).await;
    eventually("no descriptor is left", || scene.descriptors() <= before).await;
    scene.terminal().await;
    scene.stop().await;
}

#[tokio::test]
async fn a_cut_takes_along_what_runs_in_the_terminal_whatever_it_thinks_of_it() {
    let mut scene = Scene::new(TERMINAL).await;
    let before = scene.descriptors();
    let mut stream = scene.terminal().await;
    let shell = scene.children()[0];
    let background = process_id(&mut stream, "sleep 600").await;
    let deaf = process_id(&mut stream, "(trap '' HUP TERM INT; while :; do sleep 600; done)").await;
    let orphan = process_id(&mut stream, "nohup sleep 600 > /dev/null 2>&1").await;
    let cut = Instant::now();
    drop(stream);
    for (what, pid) in [("shell", shell), ("background", background), ("deaf", deaf), ("orphan", orphan)] {
        eventually(what, || !is_alive(pid)).await;
    }
    assert!(cut.elapsed() < Duration::from_secs(10), "{:?}", cut.elapsed());
    eventually("no zombie is left", || scene.children().is_empty()).await;
    eventually("no descriptor is left", || scene.descriptors() <= before).await;
    scene.stop().await;
}

#[tokio::test]
async fn what_a_shell_leaves_in_the_background_ends_with_it() {
    let mut scene = Scene::new(TERMINAL).await;
    let mut stream = scene.terminal().await;
    let orphan = process_id(&mut stream, "nohup sleep 600 > /dev/null 2>&1").await;
    let noisy = process_id(&mut stream, "(trap '' HUP; while :; do echo noise; done)").await;
    stream.pass("exit 3\n").await;
    assert_eq!(stream.word().await.1, exited(3));
    eventually("the orphan", || !is_alive(orphan)).await;
    eventually("the noise", || !is_alive(noisy)).await;
    scene.stop().await;
}

/// A client that does not read, and a program that does not read: neither keeps a cut from being seen.
#[tokio::test]
async fn a_cut_is_seen_while_nothing_moves() {
    let mut scene = Scene::new(TERMINAL).await;
    let mut stream = scene.terminal().await;
    stream.pass("yes & sleep 600\n").await;
    stream.until("y\r\ny").await;
    let fill = vec![b'x'; 65_536];
    for _ in 0..400 {
        let sent = tokio::time::timeout(Duration::from_millis(200), stream.pass(fill.clone())).await;
        if sent.is_err() {
            break;
        }
    }
    let shell = scene.children()[0];
    assert!(is_alive(shell));
    // As the server cuts.
    stream.reset();
    eventually("the shell is gone", || !is_alive(shell)).await;
    eventually("no zombie is left", || scene.children().is_empty()).await;
    scene.stop().await;
}

#[tokio::test]
async fn much_output_comes_whole_to_a_client_that_reads_slowly() {
    let mut scene = Scene::new(TERMINAL).await;
    let mut stream = scene.terminal().await;
    stream.pass("stty -opost; echo; seq 1 300000; exit\n").await;
    let mut text = Vec::new();
    let end = loop {
        match stream.said().await {
            Said::Bytes(bytes) => text.extend_from_slice(&bytes),
            Said::Control(end) => break end,
            Said::Gone => panic!("gone"),
        }
        if text.len() < 65_536 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert_eq!(end, exited(0));
    let text = String::from_utf8(text).unwrap();
    let numbers: Vec<u32> = text.lines().filter_map(|line| line.trim().parse().ok()).collect();
    assert!(numbers.iter().copied().eq(1..=300_000), "{} numbers", numbers.len());
    scene.stop().await;
}

#[tokio::test]
async fn a_killed_agent_leaves_no_shell_behind() {
    let mut scene = Scene::new(TERMINAL).await;
    let _stream = scene.terminal().await;
    let shell = scene.children()[0];
    nix::sys::signal::kill(Pid::from_raw(scene.pid()), nix::sys::signal::Signal::SIGKILL).unwrap();
    eventually("the system hangs it up", || !is_alive(shell)).await;
}

#[tokio::test]
async fn a_program_that_is_not_there_is_told_on_the_stream() {
    let mut scene = Scene::new("[terminal]\nenabled = true\nargv = [\"/nowhere/sh\"]\n").await;
    let mut stream = scene.open(terminal()).await;
    let Said::Control(Control::Failed { code, message }) = stream.said().await else { panic!("expected a failure") };
    assert_eq!(code, "spawn_failed");
    assert!(message.contains("/nowhere/sh"), "{message}");
    assert_eq!(stream.said().await, Said::Gone);
    scene.stop().await;
}
