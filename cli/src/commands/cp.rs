//! One file, to a device or from it: whole or not at all.

mod local;
mod place;

use std::path::Path;
use std::time::Duration;

use aws_lc_rs::digest::{self, SHA256};
use bytes::Bytes;
use clap::Args;
use cloudlink_proto::stream::{CHUNK_BYTES, Control};
use data_encoding::HEXLOWER;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::shell::killed;
use super::{Context, support};
use crate::client::Client;
use crate::failure::Failure;
use crate::output::Output;
use crate::stream::{self, Heard, Receiver, Sender};
use local::{Sink, Source};
use place::{Place, Way};

/// What is done sooner than that needs no bar.
const BAR_AFTER: Duration = Duration::from_secs(1);
/// Exit code of a program that a signal ended, less the signal's number.
const SIGNALLED: u8 = 128;

#[derive(Debug, Args)]
pub(crate) struct Cp {
    /// A file here, `-` for standard input, or DEVICE:PATH with an absolute path
    from: Place,
    /// A file or directory here, `-` for standard output, or DEVICE:PATH with an absolute path
    to: Place,
    #[command(flatten)]
    why: support::Why,
}

/// What was copied.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Copied {
    size: u64,
    sha256: String,
}

impl Cp {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        let way = place::way(&self.from, &self.to)?;
        let client = context.client()?;
        let copy = async {
            match &way {
                Way::ToDevice { local, device, path } => self.put(context, &client, local, device, path).await,
                Way::FromDevice { device, path, local } => self.get(context, &client, device, path, local).await,
            }
        };
        // What is half there goes with what is dropped.
        let copied = tokio::select! {
            copied = Box::pin(copy) => copied?,
            number = killed() => return Err(Failure::Status(SIGNALLED + number)),
        };
        if context.output.json {
            return context.output.json(&json!({ "size": copied.size, "sha256": copied.sha256 }));
        }
        context.output.note(&format!("{} bytes, SHA-256 {}", copied.size, copied.sha256));
        Ok(())
    }

    async fn put(
        &self,
        context: &Context,
        client: &Client,
        local: &Path,
        device: &str,
        path: &str,
    ) -> Result<Copied, Failure> {
        let mut source = Source::open(local).await?;
        let target = json!({
            "path": path, "direction": "to_device", "size": source.size, "mode": source.mode,
        });
        let stream = self.stream(context, client, device, target).await?;
        let bar = Bar::new(&context.output);
        send(stream, &mut source, &bar).await
    }

    async fn get(
        &self,
        context: &Context,
        client: &Client,
        device: &str,
        path: &str,
        local: &Path,
    ) -> Result<Copied, Failure> {
        let sink = local::target(local, path)?;
        let target = json!({ "path": path, "direction": "from_device" });
        let stream = self.stream(context, client, device, target).await?;
        let bar = Bar::new(&context.output);
        receive(stream, &sink, &bar).await
    }

    async fn stream(
        &self,
        context: &Context,
        client: &Client,
        device: &str,
        target: Value,
    ) -> Result<(Sender, Receiver), Failure> {
        let session = self.why.open(context, client, device, "file", target).await?;
        stream::open(client, session.value.id, &[]).await
    }
}

/// Sends a file, and waits until the device says that it is there under its name.
async fn send(
    (mut sender, mut receiver): (Sender, Receiver),
    source: &mut Source,
    bar: &Bar,
) -> Result<Copied, Failure> {
    bar.begin(source.size);
    sender.control(&Control::File { size: source.size, mode: source.mode }).await;
    let mut ready = false;
    while !ready {
        ready = matches!(heard(&mut receiver).await?, Some(Said::Ready));
    }
    // The device may break off long before all is sent.
    let mut copied = None;
    let mut sending = Box::pin(send_all(&mut sender, source, bar));
    let end = loop {
        tokio::select! {
            sent = &mut sending, if copied.is_none() => copied = Some(sent?),
            said = heard(&mut receiver) => match (said?, &copied) {
                (Some(Said::Done(done)), Some(copied)) if done == *copied => break done,
                (Some(Said::Done(_)), _) => return Err(differs()),
                (Some(Said::Ready | Said::File { .. } | Said::Bytes(_)) | None, _) => {}
            },
        }
    };
    drop(sending);
    sender.close().await;
    Ok(end)
}

/// Sends as many bytes as were announced, and their digest. Never ends when the stream is over: the other direction tells why.
async fn send_all(sender: &mut Sender, source: &mut Source, bar: &Bar) -> Result<Copied, Failure> {
    let mut hash = digest::Context::new(&SHA256);
    let mut sent = 0;
    while let Some(bytes) = source.next(CHUNK_BYTES).await? {
        hash.update(&bytes);
        sent += bytes.len() as u64;
        if !sender.bytes(bytes).await {
            return std::future::pending().await;
        }
        bar.at(sent);
    }
    let copied = Copied { size: sent, sha256: hex(hash) };
    let done = Control::Done { size: copied.size, sha256: copied.sha256.clone() };
    if sender.control(&done).await { Ok(copied) } else { std::future::pending().await }
}

/// Receives a file. It gets its name when all of it is there, and is what the device said it is.
async fn receive(
    (mut sender, mut receiver): (Sender, Receiver),
    target: &local::Target,
    bar: &Bar,
) -> Result<Copied, Failure> {
    let (mut sink, mut hash, mut size, mut received) = (None::<Sink>, digest::Context::new(&SHA256), 0, 0);
    let copied = loop {
        match (heard(&mut receiver).await?, &mut sink) {
            (Some(Said::File { size: announced, mode }), None) => {
                size = announced;
                bar.begin(size);
                sink = Some(Sink::create(target, mode)?);
            }
            (Some(Said::Bytes(bytes)), Some(sink)) => {
                received += bytes.len() as u64;
                // A device that goes on for ever fills no disk.
                if received > size {
                    return Err(differs());
                }
                hash.update(&bytes);
                sink.write(&bytes).await?;
                bar.at(received);
            }
            (Some(Said::Done(done)), Some(_)) => break done,
            (Some(Said::Ready) | None, _) => {}
            (Some(Said::File { .. } | Said::Bytes(_) | Said::Done(_)), _) => return Err(differs()),
        }
    };
    if (Copied { size: received, sha256: hex(hash) }) != copied || received != size {
        return Err(differs());
    }
    if let Some(sink) = sink {
        sink.finish().await?;
    }
    sender.close().await;
    Ok(copied)
}

/// What is said of a file.
#[derive(Debug)]
enum Said {
    Ready,
    File { size: u64, mode: u32 },
    Bytes(Bytes),
    Done(Copied),
}

/// The next thing that matters here; `None` for one that does not.
async fn heard(receiver: &mut Receiver) -> Result<Option<Said>, Failure> {
    match receiver.next().await? {
        Heard::Bytes(bytes) => Ok(Some(Said::Bytes(bytes))),
        Heard::Gone => Err(stream::gone()),
        Heard::Control(Control::Ready) => Ok(Some(Said::Ready)),
        Heard::Control(Control::File { size, mode }) => Ok(Some(Said::File { size, mode })),
        Heard::Control(Control::Done { size, sha256 }) => {
            Ok(Some(Said::Done(Copied { size, sha256: sha256.to_ascii_lowercase() })))
        }
        Heard::Control(Control::Failed { code, message }) => Err(Failure::Device { code, message }),
        Heard::Control(Control::Closed { reason, message }) => Err(Failure::Closed { reason, message }),
        Heard::Control(Control::Warning { seconds_left, reason }) => {
            crate::output::note(&stream::warning(seconds_left, reason.as_deref()));
            Ok(None)
        }
        Heard::Control(
            Control::Resize { .. }
            | Control::Screen { .. }
            | Control::Signal { .. }
            | Control::Eof
            | Control::Exit { .. }
            | Control::Joined { .. }
            | Control::Left { .. },
        ) => Ok(None),
    }
}

fn hex(hash: digest::Context) -> String {
    HEXLOWER.encode(hash.finish().as_ref())
}

fn differs() -> Failure {
    Failure::Other(anyhow::anyhow!("what arrived is not what was sent: nothing was kept"))
}

/// How far it is, for whoever looks on and has to wait.
#[derive(Debug)]
struct Bar {
    bar: ProgressBar,
    began: Instant,
    is_live: bool,
}

impl Bar {
    fn new(output: &Output) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        let style = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
        bar.set_style(style.expect("the template is a constant and right"));
        Self { bar, began: Instant::now(), is_live: output.live }
    }

    fn begin(&self, size: u64) {
        self.bar.set_length(size);
    }

    fn at(&self, bytes: u64) {
        if self.is_live && self.bar.is_hidden() && self.began.elapsed() > BAR_AFTER {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        self.bar.set_position(bytes);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::stream::far::{Far, SESSION};

    use super::*;

    const HELLO: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

    fn done(size: u64, sha256: &str) -> Control {
        Control::Done { size, sha256: sha256.to_owned() }
    }

    fn bar() -> Bar {
        Bar::new(&Output::new(true))
    }

    /// What is there after a device has said this, and how the copy ended.
    async fn received(said: Vec<Result<&'static [u8], Control>>) -> (Option<String>, Result<Copied, Failure>) {
        let far = Far::start(async |mut leg| {
            for said in said {
                match said {
                    Ok(bytes) => leg.send(bytes).await,
                    Err(control) => leg.say(&control).await,
                }
            }
        })
        .await;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hello");
        let stream = stream::open(&far.client(), SESSION, &[]).await.unwrap();
        let end = receive(stream, &local::target(&path, "/hello").unwrap(), &bar()).await;
        far.end().await;
        let count = fs::read_dir(directory.path()).unwrap().count();
        let text = fs::read_to_string(&path).ok();
        assert_eq!(count, usize::from(text.is_some()), "something else was left");
        (text, end)
    }

    fn file(size: u64) -> Result<&'static [u8], Control> {
        Err(Control::File { size, mode: 0o600 })
    }

    #[tokio::test]
    async fn a_file_is_received_whole() {
        let said = vec![Err(Control::Ready), file(5), Ok(b"he"), Ok(b"llo"), Err(done(5, HELLO))];
        let (text, end) = received(said).await;
        assert_eq!(text.as_deref(), Some("hello"));
        assert_eq!(end.unwrap(), Copied { size: 5, sha256: HELLO.to_owned() });
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(received(vec![file(0), Err(done(0, empty))]).await.0.as_deref(), Some(""));
    }

    #[tokio::test]
    async fn nothing_is_kept_of_what_is_not_what_it_should_be() {
        let cut = || Control::Closed { reason: "grant_revoked".to_owned(), message: String::new() };
        let lacking = Control::Failed { code: "not_found".to_owned(), message: String::new() };
        for (said, exit_code) in [
            (vec![file(5), Ok(b"hullo".as_slice()), Err(done(5, HELLO))], 1),
            (vec![file(5), Ok(b"hell"), Err(done(4, HELLO))], 1),
            (vec![file(4), Ok(b"hello"), Err(done(5, HELLO))], 1),
            (vec![file(9), Ok(b"hello"), Err(done(5, HELLO))], 1),
            (vec![Ok(b"hello".as_slice()), Err(done(5, HELLO))], 1),
            (vec![file(5), Ok(b"hello")], 7),
            (vec![file(5), Ok(b"he"), Err(cut())], 9),
            (vec![Err(lacking)], 6),
        ] {
            let words = format!("{said:?}");
            let (text, end) = received(said).await;
            assert_eq!((text, end.unwrap_err().exit_code()), (None, exit_code), "{words}");
        }
    }

    /// Sends `hello`, after the device has said that it is ready.
    async fn sent(far: &Far) -> Result<Copied, Failure> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hello");
        fs::write(&path, "hello").unwrap();
        let mut source = Source::open(&path).await.unwrap();
        let stream = stream::open(&far.client(), SESSION, &[]).await.unwrap();
        send(stream, &mut source, &bar()).await
    }

    #[tokio::test]
    async fn a_file_is_sent_and_what_the_device_has_is_compared() {
        for (digest, is_right) in [(HELLO, true), (&HELLO.replace('2', "3"), false)] {
            let digest = digest.to_owned();
            let far = Far::start(async move |mut leg| {
                let Some(announced) = leg.next().await else { panic!("nothing was announced") };
                assert!(announced.to_text().unwrap().contains(r#""type":"file","size":5"#), "{announced}");
                leg.say(&Control::Ready).await;
                let (bytes, end) = leg.bytes().await;
                assert_eq!(
                    (bytes, end.unwrap().to_text().unwrap()),
                    (b"hello".to_vec(), done(5, HELLO).to_text().as_str())
                );
                leg.say(&done(5, &digest)).await;
            })
            .await;
            assert_eq!(sent(&far).await.is_ok(), is_right);
            far.end().await;
        }
    }

    #[tokio::test]
    async fn a_device_that_says_it_has_what_was_never_sent_is_not_believed() {
        let far = Far::start(async |mut leg| {
            leg.say(&Control::Ready).await;
            leg.say(&done(5, &HELLO.replace('2', "3"))).await;
        })
        .await;
        assert_eq!(sent(&far).await.unwrap_err().exit_code(), 1);
    }

    #[tokio::test]
    async fn a_device_that_refuses_is_heard() {
        let far = Far::start(async |mut leg| {
            leg.say(&Control::Failed { code: "not_allowed".to_owned(), message: "no such root".to_owned() }).await;
        })
        .await;
        let failure = sent(&far).await.unwrap_err();
        assert_eq!(failure.exit_code(), 6);
        assert!(failure.report(false).unwrap().contains("not allowed\n  no such root"), "{failure:?}");
    }
}
