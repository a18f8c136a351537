//! Fetches an artifact into one file of our own name: no more than what was announced, only from where the configuration allows,
//! over breaks, and not for ever. Whatever the other side does, only a file whose digest is right is used.

use std::io;
use std::path::Path;
use std::time::Duration;

use aws_lc_rs::digest;
use bytes::Bytes;
use cloudlink_certs::TrustAnchor;
use data_encoding::HEXLOWER;
use http::{HeaderMap, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use nix::fcntl::OFlag;
use nix::sys::statvfs::statvfs;
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use crate::chain;
use crate::command::Update as Order;
use crate::config::{Proxies, Update as Limits};
use crate::dial;
use crate::disk;
use crate::executor::Failure;
use crate::machine;
use crate::tls;

/// The most redirects of one attempt.
const REDIRECTS_MAX: usize = 5;
/// Until the head of an answer is there.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// The head of an answer, in bytes.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Over so long the slowest rate is measured.
const PACE_OVER: Duration = Duration::from_secs(20);
/// An attempt that brought less than this was of no use.
const PROGRESS_BYTES_MIN: u64 = 64 * 1024;
/// The longest pause before another attempt.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// What is left free on the disk.
const SPARED_BYTES: u64 = 16 * 1024 * 1024;

/// One artifact, and what it may cost.
pub(super) struct Download<'a> {
    pub(super) order: &'a Order,
    pub(super) limits: &'a Limits,
    pub(super) proxies: &'a Proxies,
    pub(super) path: &'a Path,
    /// Made when it is first needed.
    pub(super) tls: &'a (dyn Fn() -> Result<tls::Client, Failure> + Send + Sync),
    /// Told how many bytes are there.
    pub(super) told: &'a (dyn Fn(u64) + Send + Sync),
}

/// Why an attempt did not bring the whole file.
enum Broken {
    /// Another attempt may.
    Again(Failure),
    Final(Failure),
}

impl Download<'_> {
    /// Leaves a whole file whose digest is right, or none.
    pub(super) async fn fetch(&self) -> Result<(), Failure> {
        let fetched = match timeout(self.limits.download_within, self.fetch_over_breaks()).await {
            Ok(Ok(())) => verify(self.path, &self.order.sha256).await,
            Ok(Err(failure)) => Err(failure),
            Err(_) => {
                let seconds = self.limits.download_within.as_secs();
                Err(Failure::new("download_timeout", format!("the artifact was not there after {seconds} s")))
            }
        };
        if fetched.is_err()
            && let Err(error) = disk::remove_if_there(self.path)
        {
            tracing::warn!(%error, "an artifact of no use cannot be removed");
        }
        fetched
    }

    async fn fetch_over_breaks(&self) -> Result<(), Failure> {
        let mut file = open(self.path).await.map_err(disk_failure)?;
        let mut have = file.metadata().await.map_err(disk_failure)?.len();
        if have > self.order.size {
            start_over(&mut file, &mut have).await.map_err(disk_failure)?;
        }
        self.check_space(self.order.size - have)?;
        let (mut best, mut futile) = (have, 0_u64);
        while have < self.order.size {
            let failure = match Box::pin(self.attempt(&mut file, &mut have)).await {
                Ok(()) => break,
                Err(Broken::Final(failure)) => return Err(failure),
                Err(Broken::Again(failure)) => failure,
            };
            futile = if have >= best.saturating_add(PROGRESS_BYTES_MIN) { 0 } else { futile + 1 };
            best = best.max(have);
            if futile > self.limits.retries {
                return Err(failure);
            }
            tracing::info!(
                code = failure.code,
                reason = failure.message,
                have,
                "the artifact is not whole: trying again"
            );
            sleep(Duration::from_secs(1 << futile.min(10)).min(PAUSE_MAX)).await;
        }
        file.sync_all().await.map_err(disk_failure)
    }

    fn check_space(&self, missing: u64) -> Result<(), Failure> {
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        let found = statvfs(directory).map_err(|errno| disk_failure(errno.into()))?;
        let free = found.blocks_available().saturating_mul(found.fragment_size());
        if free >= missing.saturating_add(SPARED_BYTES) {
            return Ok(());
        }
        let path = directory.display();
        Err(Failure::new("no_space", format!("{path} has {free} bytes free; the artifact needs {missing} more")))
    }

    /// Follows redirects to an answer, and takes what it holds.
    async fn attempt(&self, file: &mut File, have: &mut u64) -> Result<(), Broken> {
        let mut url = allowed(self.limits, &self.order.url).map_err(Broken::Final)?;
        for _ in 0..=REDIRECTS_MAX {
            // Held for as long as its answer is read.
            let (answer, _connection) = self.ask(&url, *have).await?;
            match answer.status() {
                StatusCode::OK => {
                    start_over(file, have).await.map_err(|error| Broken::Final(disk_failure(error)))?;
                    self.check_length(answer.headers(), 0).map_err(Broken::Final)?;
                    return self.take(answer.into_body(), file, have).await;
                }
                StatusCode::PARTIAL_CONTENT => {
                    self.check_range(answer.headers(), *have).map_err(Broken::Final)?;
                    return self.take(answer.into_body(), file, have).await;
                }
                status if status.is_redirection() => {
                    url = follow(self.limits, &url, answer.headers()).map_err(Broken::Final)?;
                }
                status => {
                    let failure = Failure::new("http_status", format!("the server of the artifact answered {status}"));
                    let passes = status.is_server_error()
                        || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT);
                    return Err(if passes { Broken::Again(failure) } else { Broken::Final(failure) });
                }
            }
        }
        let message = format!("there were more than {REDIRECTS_MAX} redirects");
        Err(Broken::Final(Failure::new("too_many_redirects", message)))
    }

    async fn ask(&self, url: &Uri, have: u64) -> Result<(Response<Incoming>, AbortOnDropHandle<()>), Broken> {
        let unreachable =
            |why: String| Broken::Again(Failure::new("unreachable", format!("the artifact cannot be fetched: {why}")));
        let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
        let is_tls = url.scheme_str() == Some("https");
        let port = url.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        // A file that is no good does not become better by waiting.
        let tls = if is_tls { Some((self.tls)().map_err(Broken::Final)?) } else { None };
        let wire = dial::open_other(self.proxies, host, port, tls.as_ref());
        let wire = wire.await.map_err(|error| unreachable(chain(&error)))?;

        let asked = async {
            let mut client = hyper::client::conn::http1::Builder::new();
            let (mut sender, connection) = client.max_buf_size(HEAD_BYTES_MAX).handshake(TokioIo::new(wire)).await?;
            let connection = AbortOnDropHandle::new(tokio::spawn(async move {
                // What goes wrong shows where the answer is read.
                let _ = connection.await;
            }));
            let path = url.path_and_query().map_or("/", |path| path.as_str());
            let mut request = Request::get(path)
                .header(header::HOST, url.authority().map_or("", |authority| authority.as_str()))
                .header(header::USER_AGENT, machine::AGENT)
                .header(header::ACCEPT_ENCODING, "identity");
            if have > 0 {
                request = request.header(header::RANGE, format!("bytes={have}-"));
            }
            let request = request.body(Empty::<Bytes>::new()).map_err(Asked::Request)?;
            Ok::<_, Asked>((sender.send_request(request).await?, connection))
        };
        match timeout(ANSWER_WITHIN, asked).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(unreachable(chain(&error))),
            Err(_) => Err(unreachable(format!("no answer within {} s", ANSWER_WITHIN.as_secs()))),
        }
    }

    fn check_length(&self, headers: &HeaderMap, have: u64) -> Result<(), Failure> {
        let length = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        match length {
            Some(length) if have.checked_add(length) != Some(self.order.size) => Err(self.size_mismatch()),
            _ => Ok(()),
        }
    }

    fn check_range(&self, headers: &HeaderMap, have: u64) -> Result<(), Failure> {
        let range = headers.get(header::CONTENT_RANGE).and_then(|range| range.to_str().ok());
        let (span, total) = range.and_then(|range| range.strip_prefix("bytes ")?.split_once('/')).unwrap_or_default();
        let start = span.split_once('-').and_then(|(start, _)| start.parse::<u64>().ok());
        if start != Some(have) || (total != "*" && total.parse() != Ok(self.order.size)) {
            return Err(self.size_mismatch());
        }
        Ok(())
    }

    fn size_mismatch(&self) -> Failure {
        let message = format!("the artifact at that address has not the announced {} bytes", self.order.size);
        Failure::new("size_mismatch", message)
    }

    async fn take(&self, mut body: Incoming, file: &mut File, have: &mut u64) -> Result<(), Broken> {
        let (begun, at_first) = (Instant::now(), *have);
        let (mut pace_ends, mut pace_from) = (begun + PACE_OVER, *have);
        loop {
            let frame = timeout_at(pace_ends, body.frame()).await;
            if Instant::now() >= pace_ends {
                self.check_pace(*have - pace_from)?;
                (pace_ends, pace_from) = (Instant::now() + PACE_OVER, *have);
            }
            let chunk = match frame {
                Err(_) => continue,
                Ok(None) => break,
                Ok(Some(Err(error))) => return Err(Broken::Again(Failure::new("truncated", chain(&error)))),
                Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
            };
            if *have + chunk.len() as u64 > self.order.size {
                return Err(Broken::Final(self.size_mismatch()));
            }
            file.write_all(&chunk).await.map_err(|error| Broken::Final(disk_failure(error)))?;
            *have += chunk.len() as u64;
            (self.told)(*have);
            if let Some(rate) = self.limits.rate_max {
                let due = Duration::from_millis((*have - at_first).saturating_mul(1000) / rate);
                sleep_until(begun + due).await;
            }
        }
        file.flush().await.map_err(|error| Broken::Final(disk_failure(error)))?;
        if *have == self.order.size {
            return Ok(());
        }
        let message = format!("the artifact ended after {have} of {} bytes", self.order.size);
        Err(Broken::Again(Failure::new("truncated", message)))
    }

    fn check_pace(&self, bytes: u64) -> Result<(), Broken> {
        let seconds = PACE_OVER.as_secs();
        if bytes >= self.limits.rate_min.saturating_mul(seconds) {
            return Ok(());
        }
        let message = format!("only {bytes} bytes came in {seconds} s");
        Err(Broken::Again(Failure::new("too_slow", message)))
    }
}

/// Why a request was not answered.
#[derive(Debug, thiserror::Error)]
enum Asked {
    #[error("it is no request")]
    Request(#[source] http::Error),
    #[error("the connection is of no use")]
    Connection(#[from] hyper::Error),
}

/// A URL that the configuration allows.
pub(super) fn allowed(limits: &Limits, text: &str) -> Result<Uri, Failure> {
    let refused = |why: String| Failure::new("source_not_allowed", why);
    let url: Uri = text.parse().map_err(|_| refused("the address of the artifact is not a URL".to_owned()))?;
    match url.scheme_str() {
        Some("https") => {}
        Some("http") if limits.plain_http => {}
        _ => return Err(refused("artifacts come by https, or by http with update.plain_http".to_owned())),
    }
    let names_nobody = url.authority().is_some_and(|authority| !authority.as_str().contains('@'));
    let host = url.host().unwrap_or_default().to_ascii_lowercase();
    if !names_nobody || !limits.hosts.contains(&host) {
        return Err(refused(format!("{host:?} is not among update.hosts of the device's configuration")));
    }
    Ok(url)
}

/// Where a redirect leads: only to where an artifact may come from anyway, and never from TLS to none.
fn follow(limits: &Limits, from: &Uri, headers: &HeaderMap) -> Result<Uri, Failure> {
    let refused = |why: &str| Failure::new("redirect_refused", format!("a redirect {why}"));
    let location = headers.get(header::LOCATION).and_then(|location| location.to_str().ok());
    let location = location.ok_or_else(|| refused("says not where to"))?;
    let target = if location.starts_with('/') && !location.starts_with("//") {
        let authority = from.authority().map_or("", |authority| authority.as_str());
        format!("{}://{authority}{location}", from.scheme_str().unwrap_or_default())
    } else {
        location.to_owned()
    };
    let target = allowed(limits, &target).map_err(|failure| refused(&format!("leads astray: {}", failure.message)))?;
    if from.scheme_str() == Some("https") && target.scheme_str() != Some("https") {
        return Err(refused("leads from https to http"));
    }
    Ok(target)
}

async fn open(path: &Path) -> io::Result<File> {
    let mut options = tokio::fs::OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(disk::MODE_SECRET);
    // Nothing else may stand under our name.
    options.custom_flags(OFlag::O_NOFOLLOW.bits());
    let mut file = options.open(path).await?;
    file.seek(io::SeekFrom::End(0)).await?;
    Ok(file)
}

async fn start_over(file: &mut File, have: &mut u64) -> io::Result<()> {
    file.set_len(0).await?;
    file.seek(io::SeekFrom::Start(0)).await?;
    *have = 0;
    Ok(())
}

/// What is installed is what lies on the disk: that is what is looked at.
async fn verify(path: &Path, sha256: &str) -> Result<(), Failure> {
    let mut file = File::open(path).await.map_err(disk_failure)?;
    let mut context = digest::Context::new(&digest::SHA256);
    let mut chunk = vec![0; 256 * 1024];
    loop {
        match file.read(&mut chunk).await.map_err(disk_failure)? {
            0 => break,
            count => context.update(&chunk[..count]),
        }
    }
    let found = HEXLOWER.encode(context.finish().as_ref());
    if found == sha256 {
        return Ok(());
    }
    Err(Failure::new("digest_mismatch", format!("the artifact has the digest {found}, and not the announced one")))
}

fn disk_failure(error: io::Error) -> Failure {
    Failure::new("disk", format!("the artifact cannot be kept: {}", chain(&error)))
}

/// A client of its own for the hosts of artifacts: they are not the server.
pub(super) fn client(ca_file: &Path, earliest: time::OffsetDateTime) -> Result<tls::Client, Failure> {
    let failure = |why: String| {
        Failure::new("ca_file", format!("the roots in {} cannot be used for artifacts: {why}", ca_file.display()))
    };
    let pem = std::fs::read(ca_file).map_err(|error| failure(error.to_string()))?;
    let anchor = TrustAnchor::from_pem(&pem).map_err(|error| failure(chain(&error)))?;
    tls::Client::new(&anchor, None, tls::Bounds { earliest, own_end: None }).map_err(|error| failure(chain(&error)))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use rstest::rstest;

    use super::*;
    use crate::config::Config;

    fn limits() -> Limits {
        let text = "state_dir = \"/s\"\n[server]\nhost = \"a.test\"\nca_file = \"/ca\"\n\
                    [update]\nhosts = [\"u.test\", \"V.test\"]\nplain_http = true\n";
        Config::parse(text).unwrap().update
    }

    #[rstest]
    #[case("https://u.test/a", true)]
    #[case("http://u.test:8080/../a?b", true)]
    #[case("https://v.TEST/", true)]
    #[case("https://w.test/a", false)]
    #[case("https://u.test.w.test/a", false)]
    #[case("https://u.test@w.test/a", false)]
    #[case("https://w.test@u.test/a", false)]
    #[case("ftp://u.test/a", false)]
    #[case("file:///etc/passwd", false)]
    #[case("/etc/passwd", false)]
    #[case("", false)]
    fn artifacts_come_from_where_the_configuration_says(#[case] url: &str, #[case] is_allowed: bool) {
        assert_eq!(allowed(&limits(), url).is_ok(), is_allowed);
        let tls_only = Limits { plain_http: false, ..limits() };
        assert_eq!(allowed(&tls_only, url).is_ok(), is_allowed && url.starts_with("https"));
    }

    #[rstest]
    #[case("/b?c", Some("https://u.test:8443/b?c"))]
    #[case("https://v.test/b", Some("https://v.test/b"))]
    #[case("http://u.test/b", None)]
    #[case("//v.test/b", None)]
    #[case("b", None)]
    #[case("https://w.test/b", None)]
    #[case("file:///etc/passwd", None)]
    fn redirects_lead_to_no_weaker_place(#[case] location: &str, #[case] to: Option<&str>) {
        let from = "https://u.test:8443/a".parse().unwrap();
        let headers = HeaderMap::from_iter([(header::LOCATION, HeaderValue::from_str(location).unwrap())]);
        let followed = follow(&limits(), &from, &headers).map(|url| url.to_string());
        assert_eq!(followed.ok().as_deref(), to);
        assert!(follow(&limits(), &from, &HeaderMap::new()).is_err());
    }
}
