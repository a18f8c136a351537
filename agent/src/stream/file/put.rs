//! A file to the device: it appears whole under its name, or not at all.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::PathBuf;

use aws_lc_rs::{digest, rand};
use bytes::Bytes;
use cloudlink_proto::link::message::FilePut;
use cloudlink_proto::stream::Control;
use data_encoding::HEXLOWER;
use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, Stat, Uid, fchmod, fchown, fstatvfs, linkat, openat, renameat, unlinkat,
};
use rustix::io::Errno;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::place::{Place, must_be_file};
use super::{CHUNKS_WAITING_MAX, Fault, Files, blocking};
use crate::stream::end::End;
use crate::stream::leg::{Heard, Leg, Receiver};

/// Of the permission bits, these are applied. A file that comes from afar never runs as its owner.
const MODE_BITS: u32 = 0o777;
/// As long as it is not whole, nobody else has anything of it.
const MODE_PARTIAL: u32 = 0o600;
/// What a file is called that is not whole yet, where the system wants it to have a name.
const PARTIAL_SUFFIX: &str = ".cloudlink-part";

/// What goes to the disk.
enum Chunk {
    Bytes(Bytes),
    /// All are there.
    Done {
        sha256: String,
    },
}

/// Takes a file, and puts it into its place.
pub(in crate::stream) async fn put(leg: &mut Leg, asked: &FilePut, files: &Files) -> End {
    match take(leg, asked, files).await {
        Ok(()) => End::Done,
        Err(end) => end,
    }
}

async fn take(leg: &mut Leg, asked: &FilePut, files: &Files) -> Result<(), End> {
    let partial = {
        let (files, asked) = (files.clone(), asked.clone());
        blocking(move || Partial::begin(&files, &asked)).await?
    };
    leg.sender.say(&Control::Ready).await?;
    let Leg { sender, receiver, line } = leg;
    let sha256 = tokio::select! {
        taken = receive(receiver, asked, partial) => taken?,
        end = line.broken() => return Err(end),
    };
    sender.say(&Control::Done { size: asked.size, sha256 }).await
}

/// All that the client sends, to the disk. When this is dropped, nothing is left there.
async fn receive(receiver: &mut Receiver, asked: &FilePut, partial: Partial) -> Result<String, End> {
    let (chunks, queue) = mpsc::channel(CHUNKS_WAITING_MAX);
    let cut = CancellationToken::new();
    let _cut_when_dropped = cut.clone().drop_guard();
    let writing = tokio::spawn(blocking(move || partial.write(queue, &cut)));
    let passed = pass(receiver, asked, &chunks).await;
    drop(chunks);
    if let Err(Some(end)) = passed {
        return Err(end);
    }
    let broke = |_| End::failed("io_error", "the writing broke off");
    Ok(writing.await.map_err(broke)??)
}

/// `Err(None)` when the disk takes nothing more: why, is told by whoever writes.
async fn pass(receiver: &mut Receiver, asked: &FilePut, chunks: &mpsc::Sender<Chunk>) -> Result<(), Option<End>> {
    let mismatch = |found| Some(Fault::Size { expected: asked.size, found }.into());
    let mut is_announced = false;
    let mut received = 0;
    loop {
        let chunk = match receiver.next().await.map_err(Some)? {
            Heard::Control(Control::File { size, .. }) if !is_announced => {
                is_announced = true;
                if size != asked.size {
                    return Err(mismatch(size));
                }
                continue;
            }
            Heard::Bytes(bytes) if is_announced => {
                received += bytes.len() as u64;
                if received > asked.size {
                    return Err(mismatch(received));
                }
                Chunk::Bytes(bytes)
            }
            Heard::Control(Control::Done { size, sha256 }) if is_announced => {
                if size != asked.size || received != asked.size {
                    return Err(mismatch(received));
                }
                Chunk::Done { sha256 }
            }
            Heard::Bytes(_) => return Err(Some(End::Protocol("bytes before the file".to_owned()))),
            Heard::Control(other) => return Err(Some(End::Protocol(format!("{other:?} of a file")))),
        };
        let is_last = matches!(chunk, Chunk::Done { .. });
        chunks.send(chunk).await.map_err(|_| None)?;
        if is_last {
            return Ok(());
        }
    }
}

/// A file that is not whole yet.
struct Partial {
    place: Place,
    file: File,
    /// Its name, if it has one: then it is removed when it does not get its own.
    name: Option<OsString>,
    mode: Mode,
    /// What it takes the place of.
    former: Option<Stat>,
}

impl Partial {
    fn begin(files: &Files, asked: &FilePut) -> Result<Self, Fault> {
        if asked.size > files.settings.bytes_max {
            return Err(Fault::TooLarge(files.settings.bytes_max));
        }
        let place = Place::of_new(files, &PathBuf::from(&asked.path))?;
        let former = place.stat()?;
        if let Some(former) = &former {
            must_be_file(former)?;
        }
        let disk = fstatvfs(&place.directory).map_err(Fault::errno("look at the disk"))?;
        if disk.f_bavail.saturating_mul(disk.f_frsize) < asked.size {
            return Err(Fault::NoSpace);
        }
        let (file, name) = create(&place)?;
        Ok(Self { place, file, name, mode: Mode::from_raw_mode(asked.mode & MODE_BITS), former })
    }

    /// Writes all, and gives the file its name if it came as it was sent. Its digest.
    fn write(mut self, mut queue: mpsc::Receiver<Chunk>, cut: &CancellationToken) -> Result<String, Fault> {
        let mut context = digest::Context::new(&digest::SHA256);
        loop {
            match queue.blocking_recv() {
                Some(Chunk::Bytes(bytes)) => {
                    context.update(&bytes);
                    self.file.write_all(&bytes).map_err(Fault::io("write it"))?;
                }
                Some(Chunk::Done { sha256 }) => {
                    let found = HEXLOWER.encode(context.finish().as_ref());
                    if !found.eq_ignore_ascii_case(&sha256) {
                        return Err(Fault::Digest);
                    }
                    self.settle(cut)?;
                    return Ok(found);
                }
                None => return Err(Fault::Cut),
            }
        }
    }

    fn settle(&mut self, cut: &CancellationToken) -> Result<(), Fault> {
        if let Some(former) = &self.former {
            // It goes on to belong to whom it belonged to, where the agent may give it away.
            let (owner, group) = (Uid::from_raw(former.st_uid), Gid::from_raw(former.st_gid));
            let _ = fchown(&self.file, Some(owner), Some(group));
        }
        fchmod(&self.file, self.mode).map_err(Fault::errno("set its permissions"))?;
        self.file.sync_all().map_err(Fault::io("write it"))?;
        // What waited for the disk may have waited beyond the end of the grant.
        if cut.is_cancelled() {
            return Err(Fault::Cut);
        }
        self.rename()?;
        let sync = |directory: OwnedFd| File::from(directory).sync_all();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = openat(&self.place.directory, ".", flags, Mode::empty());
        // It has its name: that a power cut might undo this is no reason to say that it failed.
        let synced = directory.map_err(Into::into).and_then(sync);
        if let Err(error) = synced {
            tracing::warn!(%error, "a file's name may not outlast a power cut");
        }
        Ok(())
    }

    fn rename(&mut self) -> Result<(), Fault> {
        if self.name.is_none() {
            let name = partial_name()?;
            let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            linkat(CWD, own, &self.place.directory, &name, AtFlags::SYMLINK_FOLLOW)
                .map_err(Fault::errno("give it a name"))?;
            self.name = Some(name);
        }
        let Some(name) = &self.name else { return Ok(()) };
        renameat(&self.place.directory, name, &self.place.directory, &self.place.name)
            .map_err(Fault::errno("give it its name"))?;
        self.name = None;
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            let _ = unlinkat(&self.place.directory, name, AtFlags::empty());
        }
    }
}

/// A new file, without a name if the file system can do that: then nothing is left of it whatever happens.
fn create(place: &Place) -> Result<(File, Option<OsString>), Fault> {
    let mode = Mode::from_raw_mode(MODE_PARTIAL);
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    match openat(&place.directory, ".", flags | OFlags::TMPFILE, mode) {
        Ok(file) => return Ok((file.into(), None)),
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT | Errno::INVAL) => {}
        Err(errno) => return Err(Fault::errno("make it")(errno)),
    }
    let name = partial_name()?;
    let created = openat(&place.directory, &name, flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW, mode);
    created.map(|file| (file.into(), Some(name))).map_err(Fault::errno("make it"))
}

fn partial_name() -> Result<OsString, Fault> {
    let mut random = [0; 12];
    let failed = |_| Fault::Io { what: "make a name", source: std::io::Error::other("there are no random numbers") };
    rand::fill(&mut random).map_err(failed)?;
    Ok(format!(".{}{PARTIAL_SUFFIX}", HEXLOWER.encode(&random)).into())
}
