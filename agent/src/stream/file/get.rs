//! A file from the device.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use aws_lc_rs::digest;
use bytes::Bytes;
use cloudlink_proto::link::message::FileGet;
use cloudlink_proto::stream::{CHUNK_BYTES, Control};
use data_encoding::HEXLOWER;
use rustix::fs::{Mode, OFlags, fstat, openat};
use tokio::sync::mpsc;

use super::place::{Place, must_be_file};
use super::{CHUNKS_WAITING_MAX, Fault, Files, blocking};
use crate::stream::end::End;
use crate::stream::leg::{Heard, Leg, Receiver, Sender};

/// Sends a file as it was when it was opened; what is appended later is not part of it.
pub(in crate::stream) async fn get(leg: &mut Leg, asked: &FileGet, files: &Files) -> End {
    match give(leg, asked, files).await {
        Ok(()) => End::Done,
        Err(end) => end,
    }
}

async fn give(leg: &mut Leg, asked: &FileGet, files: &Files) -> Result<(), End> {
    let source = {
        let (files, path) = (files.clone(), asked.path.clone());
        blocking(move || Source::open(&files, Path::new(&path))).await?
    };
    let Leg { sender, receiver, line } = leg;
    tokio::select! {
        sent = send(sender, source) => sent,
        end = nothing(receiver) => Err(end),
        end = line.broken() => Err(end),
    }
}

async fn send(sender: &mut Sender, source: Source) -> Result<(), End> {
    sender.say(&Control::Ready).await?;
    sender.say(&Control::File { size: source.size, mode: source.mode }).await?;
    let (chunks, mut queue) = mpsc::channel(CHUNKS_WAITING_MAX);
    let reading = tokio::spawn(blocking(move || source.read(&chunks)));
    while let Some(chunk) = queue.recv().await {
        sender.pass(chunk).await?;
    }
    let broke = |_| End::failed("io_error", "the reading broke off");
    let (size, sha256) = reading.await.map_err(broke)??;
    sender.say(&Control::Done { size, sha256 }).await
}

/// The client has nothing to say.
async fn nothing(receiver: &mut Receiver) -> End {
    loop {
        match receiver.next().await {
            Ok(Heard::Control(Control::Eof)) => {}
            Ok(Heard::Control(other)) => return End::Protocol(format!("{other:?} of a file from the device")),
            Ok(Heard::Bytes(_)) => return End::Protocol("bytes of a file from the device".to_owned()),
            Err(end) => return end,
        }
    }
}

/// A file that is open.
struct Source {
    file: File,
    size: u64,
    mode: u32,
    /// What is not said to be larger than it is read up to this.
    bytes_max: u64,
}

impl Source {
    fn open(files: &Files, path: &Path) -> Result<Self, Fault> {
        let place = Place::of_existing(files, path)?;
        // Looked at first: opening a device can do something.
        let gone = || Fault::Io { what: "open it", source: std::io::ErrorKind::NotFound.into() };
        must_be_file(&place.stat()?.ok_or_else(gone)?)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = openat(&place.directory, &place.name, flags, Mode::empty()).map_err(Fault::errno("open it"))?;
        let stat = fstat(&file).map_err(Fault::errno("look at it"))?;
        must_be_file(&stat)?;
        let size = u64::try_from(stat.st_size).unwrap_or_default();
        let bytes_max = files.settings.bytes_max;
        if size > bytes_max {
            return Err(Fault::TooLarge(bytes_max));
        }
        Ok(Self { file: file.into(), size, mode: stat.st_mode & 0o777, bytes_max })
    }

    /// Reads all. How much it was, and its digest.
    fn read(self, chunks: &mpsc::Sender<Bytes>) -> Result<(u64, String), Fault> {
        // Files of the system that are made as they are read have no size.
        let limit = if self.size == 0 { self.bytes_max + 1 } else { self.size };
        let mut rest = self.file.take(limit);
        let mut context = digest::Context::new(&digest::SHA256);
        let mut size = 0;
        loop {
            let mut chunk = Vec::with_capacity(CHUNK_BYTES);
            rest.by_ref().take(CHUNK_BYTES as u64).read_to_end(&mut chunk).map_err(Fault::io("read it"))?;
            if chunk.is_empty() {
                return Ok((size, HEXLOWER.encode(context.finish().as_ref())));
            }
            size += chunk.len() as u64;
            if size > self.bytes_max {
                return Err(Fault::TooLarge(self.bytes_max));
            }
            context.update(&chunk);
            if chunks.blocking_send(chunk.into()).is_err() {
                return Err(Fault::Cut);
            }
        }
    }
}
