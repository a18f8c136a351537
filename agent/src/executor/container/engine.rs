//! The container engine, over its Unix socket. What it says is bounded, and reaches nobody but as a short text.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bollard::auth::DockerCredentials;
use bollard::errors::Error;
use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, ContainerSummary, ContainerUpdateBody, CreateImageInfo,
    EndpointSettings, ImageInspect, NetworkConnectRequest, RestartPolicy,
};
use bollard::query_parameters::{
    CreateContainerOptions, CreateImageOptions, ListContainersOptions, RemoveContainerOptions, RemoveImageOptions,
    RenameContainerOptions, StopContainerOptions,
};
use bollard::{API_DEFAULT_VERSION, BollardRequest, Docker};
use futures_util::{Stream, TryStreamExt as _};
use http::header::{HOST, HeaderValue};
use http::{Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use nix::sys::statvfs::statvfs;
use tokio::io::{AsyncRead, AsyncReadExt as _, ReadBuf};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// How long the engine may take for anything but to pull an image and to stop a container.
const ASKED_WITHIN: Duration = Duration::from_secs(120);
/// The longest that it may take to begin with an answer.
const ANSWERED_WITHIN: Duration = Duration::from_secs(1800);
/// The largest answer that is taken.
const ANSWER_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// All that is taken while an image is pulled. Some engines say ten times a second how far each layer is, and it may take hours.
const PULL_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// The longest line of it: each is one message, and is gathered whole.
const PULL_LINE_BYTES_MAX: usize = 64 * 1024;
/// Of what the engine says for people.
const SAID_BYTES_MAX: usize = 512;
/// In which a login for a registry goes.
const LOGIN: &str = "X-Registry-Auth";
/// How much longer it may take to stop a container than the container may.
const STOP_SLACK: Duration = Duration::from_secs(60);

/// The engine of this device.
pub(super) struct Engine {
    docker: Docker,
}

/// What the engine would not do, or that it cannot be asked.
#[derive(Debug)]
pub(super) struct Trouble {
    /// Of its answer, if there was one.
    status: Option<u16>,
    said: String,
}

impl Engine {
    /// In the newest version of the API that both sides know, so that none says what the other does not understand.
    pub(super) async fn open(socket: &Path) -> Result<Self, Trouble> {
        let socket = socket.to_owned();
        let transport = move |request| ask(socket.clone(), request);
        let docker = Docker::connect_with_custom_transport(
            transport,
            Some("http://engine"),
            ANSWERED_WITHIN.as_secs(),
            API_DEFAULT_VERSION,
        )?;
        Ok(Self { docker: within(ASKED_WITHIN, docker.negotiate_version()).await? })
    }

    pub(super) async fn container(&self, name: &str) -> Result<ContainerInspectResponse, Trouble> {
        within(ASKED_WITHIN, self.docker.inspect_container(name, None)).await
    }

    /// Those with this label, or all; also those that do not run.
    pub(super) async fn containers(&self, label: Option<String>) -> Result<Vec<ContainerSummary>, Trouble> {
        let filters = label.map(|label| HashMap::from([("label".to_owned(), vec![label])]));
        let options = ListContainersOptions { all: true, filters, ..ListContainersOptions::default() };
        within(ASKED_WITHIN, self.docker.list_containers(Some(options))).await
    }

    pub(super) async fn image(&self, name: &str) -> Result<ImageInspect, Trouble> {
        within(ASKED_WITHIN, self.docker.inspect_image(name)).await
    }

    /// Has an image pulled. The engine stops when the stream is dropped.
    pub(super) fn pull(
        &self,
        repository: &str,
        digest: &str,
        login: Option<DockerCredentials>,
    ) -> impl Stream<Item = Result<CreateImageInfo, Trouble>> + use<> {
        let options = CreateImageOptions {
            from_image: Some(repository.to_owned()),
            tag: Some(digest.to_owned()),
            ..CreateImageOptions::default()
        };
        self.docker.create_image(Some(options), None, login).map_err(Trouble::from)
    }

    /// How much is free where images are kept.
    pub(super) async fn free_space(&self) -> Result<FreeSpace, Trouble> {
        let info = within(ASKED_WITHIN, self.docker.info()).await?;
        let directory =
            info.docker_root_dir.ok_or_else(|| Trouble::new("the engine does not say where it keeps images"))?;
        Ok(FreeSpace { directory: directory.into() })
    }

    pub(super) async fn create(&self, name: &str, body: ContainerCreateBody) -> Result<String, Trouble> {
        let options = CreateContainerOptions { name: Some(name.to_owned()), ..CreateContainerOptions::default() };
        Ok(within(ASKED_WITHIN, self.docker.create_container(Some(options), body)).await?.id)
    }

    pub(super) async fn connect(&self, id: &str, network: &str, endpoint: EndpointSettings) -> Result<(), Trouble> {
        let request = NetworkConnectRequest { container: id.to_owned(), endpoint_config: Some(endpoint) };
        within(ASKED_WITHIN, self.docker.connect_network(network, request)).await
    }

    pub(super) async fn set_restart_policy(&self, id: &str, policy: RestartPolicy) -> Result<(), Trouble> {
        let body = ContainerUpdateBody { restart_policy: Some(policy), ..ContainerUpdateBody::default() };
        within(ASKED_WITHIN, self.docker.update_container(id, body)).await
    }

    pub(super) async fn start(&self, id: &str) -> Result<(), Trouble> {
        within(ASKED_WITHIN, self.docker.start_container(id, None)).await
    }

    /// With a signal, and then by force. It need not run.
    pub(super) async fn stop(&self, id: &str, seconds: i32) -> Result<(), Trouble> {
        let options = StopContainerOptions { t: Some(seconds), ..StopContainerOptions::default() };
        let limit = Duration::from_secs(u64::try_from(seconds).unwrap_or_default()) + STOP_SLACK;
        within(limit, self.docker.stop_container(id, Some(options))).await
    }

    pub(super) async fn rename(&self, id: &str, name: &str) -> Result<(), Trouble> {
        let options = RenameContainerOptions { name: name.to_owned() };
        within(ASKED_WITHIN, self.docker.rename_container(id, options)).await
    }

    /// With the volumes that were made for it alone, if so wanted. It need not be there.
    pub(super) async fn remove(&self, id: &str, volumes: bool) -> Result<(), Trouble> {
        let options = RemoveContainerOptions { force: true, v: volumes, ..RemoveContainerOptions::default() };
        match within(ASKED_WITHIN, self.docker.remove_container(id, Some(options))).await {
            Err(trouble) if trouble.is_missing() => Ok(()),
            removed => removed,
        }
    }

    /// Unless something uses it.
    pub(super) async fn remove_image(&self, id: &str) -> Result<(), Trouble> {
        let removed = self.docker.remove_image(id, None::<RemoveImageOptions>, None);
        within(ASKED_WITHIN, removed).await.map(|_| ())
    }
}

/// Where images are kept, which may be another file system than that of the agent.
#[derive(Debug)]
pub(super) struct FreeSpace {
    pub(super) directory: PathBuf,
}

impl FreeSpace {
    pub(super) fn bytes(&self) -> io::Result<u64> {
        let found = statvfs(&self.directory)?;
        Ok(found.blocks_available().saturating_mul(found.fragment_size()))
    }
}

/// One request, on a connection of its own: that it ends tells the engine that nobody waits any more.
async fn ask(socket: PathBuf, request: BollardRequest) -> Result<Response<Incoming>, Error> {
    let (reader, writer) = UnixStream::connect(socket).await?.into_split();
    let is_pull = request.uri().path().ends_with("/images/create");
    let (bytes_max, line_bytes_max) =
        if is_pull { (PULL_BYTES_MAX, PULL_LINE_BYTES_MAX) } else { (ANSWER_BYTES_MAX, usize::MAX) };
    let reader = ShortLines { reader: reader.take(bytes_max), line_bytes: 0, line_bytes_max };
    let stream = tokio::io::join(reader, writer);
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to the container engine broke");
        }
    });
    let (mut head, body) = request.into_parts();
    head.uri = head.uri.path_and_query().cloned().map_or_else(Uri::default, Uri::from);
    head.headers.insert(HOST, HeaderValue::from_static("engine"));
    if let Some(login) = head.headers.get_mut(LOGIN) {
        // Engines read the other base64, and take what they cannot read for no login.
        let text = String::from_utf8_lossy(login.as_bytes()).replace('+', "-").replace('/', "_");
        *login = HeaderValue::try_from(text).map_err(http::Error::from)?;
        login.set_sensitive(true);
    }
    Ok(sender.send_request(BollardRequest::from_parts(head, body)).await?)
}

/// Breaks off at a line that is too long.
struct ShortLines<R> {
    reader: R,
    /// Of the line that is being read.
    line_bytes: usize,
    line_bytes_max: usize,
}

impl<R: AsyncRead + Unpin> AsyncRead for ShortLines<R> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.reader).poll_read(cx, buffer))?;
        for part in buffer.filled()[before..].split_inclusive(|byte| *byte == b'\n') {
            self.line_bytes += part.len();
            if self.line_bytes > self.line_bytes_max {
                return Poll::Ready(Err(io::Error::other("the container engine says too much at once")));
            }
            if part.ends_with(b"\n") {
                self.line_bytes = 0;
            }
        }
        Poll::Ready(Ok(()))
    }
}

async fn within<T>(limit: Duration, asked: impl Future<Output = Result<T, Error>>) -> Result<T, Trouble> {
    match timeout(limit, asked).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(Trouble::new(&format!("the engine did not answer within {} s", limit.as_secs()))),
    }
}

impl Trouble {
    pub(super) fn new(said: &str) -> Self {
        let shown = |character: char| if character.is_control() { char::REPLACEMENT_CHARACTER } else { character };
        let mut said: String = said.chars().take(SAID_BYTES_MAX).map(shown).collect();
        said.truncate(said.floor_char_boundary(SAID_BYTES_MAX));
        Self { status: None, said }
    }

    /// Whether the engine knows of no such thing.
    pub(super) fn is_missing(&self) -> bool {
        self.status == Some(404)
    }

    /// Whether the engine wants to know who asks, or does not let them.
    pub(super) fn is_denied(&self) -> bool {
        matches!(self.status, Some(401 | 403))
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.said)
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        if let Error::DockerResponseServerError { status_code, message } = error {
            return Self { status: Some(status_code), ..Self::new(&message) };
        }
        Self::new(&crate::chain(&error))
    }
}
