//! A container engine of a test's own: dockerd and a registry, from Debian's packages, in namespaces of their own.
//!
//! Nothing of it reaches the network or other tests: the images are made here, of one static program, and go through a registry that only
//! this engine can see. The end of the namespaces takes everything with it, as a power cut would, which is also how it is used.

pub mod relay;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use data_encoding::{BASE64, BASE64URL};
use nix::unistd::geteuid;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::sleep;

use crate::fleet;
use crate::poll::wait_for;
use crate::program::Program;

/// Debian's static one.
const BUSYBOX: &str = "/bin/busybox";
const LINKS: [&str; 5] = ["sh", "sleep", "cat", "test", "true"];
/// In the engine's network.
const REGISTRY: &str = "127.0.0.1:5000";
/// Who may use the registry. In base64 the password has what tells one alphabet from the other.
const USER: &str = "device";
const PASSWORD: &str = "s?e~c>r?~~>??t:~";
const PASSWORD_HASH: &str = "$2b$05$abcdefghijklmnopqrstuuY0HlfJxjhlVJptiblHY6I31AufpzEXW";
/// How long the engine may take to begin, or a request.
const ENGINE_LIMIT: Duration = Duration::from_secs(60);

/// `$1`: the directory, `$2`: the parent of all control groups.
const POWER_ON: &str = r#"
ip link set lo up
docker-registry serve "$1/registry.yml" >>"$1/registry.log" 2>&1 &
rm -rf "$1/engine.sock" "$1/engine.pid" "$1/exec"
until curl -s -o "$1/registry.said" http://127.0.0.1:5000/v2/; do sleep 0.1; done
exec dockerd --data-root "$1/data" --exec-root "$1/exec" --pidfile "$1/engine.pid" --host "unix://$1/engine.sock" \
    --cgroup-parent "$2" --bridge none --iptables=false --ip6tables=false --ip-forward=false --ip-masq=false
"#;

/// A running engine. Gone when it is dropped, with all containers.
#[derive(Debug)]
pub struct Engine {
    directory: TempDir,
    program: Option<Program>,
}

/// What an image is to be.
#[derive(Clone, Copy, Debug)]
pub struct Image<'a> {
    /// The end of its repository.
    pub name: &'a str,
    /// What it runs, in a shell.
    pub command: &'a str,
    /// Its check, in a shell.
    pub check: Option<&'a str>,
    /// Bytes that cannot be compressed.
    pub bytes: usize,
}

/// Runs until it is told to end.
pub const RUNS: &str = "trap 'exit 0' TERM; while :; do sleep 0.1; done";

/// Runs a test with an engine, or says in one line why that is not possible here.
pub async fn test(name: &str, body: impl AsyncFnOnce(Engine) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let why = match lacking() {
        Some(what) => what.to_owned(),
        None => match Engine::start().await {
            Ok(engine) => return body(engine).await,
            Err(error) => format!("{error:#}"),
        },
    };
    // Not `eprintln!`, which the test runner keeps to itself while a test passes.
    writeln!(std::io::stderr(), "skipped: {name}: {}", why.lines().last().unwrap_or_default())?;
    Ok(())
}

/// What it takes to run an engine, and is not there.
fn lacking() -> Option<&'static str> {
    let has = |program: &&str| {
        Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
    };
    if !geteuid().is_root() {
        Some("only root may run a container engine")
    } else if !["dockerd", "docker-registry", "curl", "ip", "unshare"].iter().all(has) || !Path::new(BUSYBOX).exists() {
        Some("it takes the packages docker.io, docker-registry, busybox-static, curl, iproute2 and util-linux")
    } else {
        None
    }
}

impl Engine {
    async fn start() -> anyhow::Result<Self> {
        let directory = fleet::directory()?;
        let at = directory.path();
        let registry = format!(
            "version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {0}/registry}}}}\n\
             http: {{addr: '{REGISTRY}'}}\nauth: {{htpasswd: {{realm: test, path: {0}/htpasswd}}}}\n",
            at.display()
        );
        fs::write(at.join("htpasswd"), format!("{USER}:{PASSWORD_HASH}\n"))?;
        fs::write(at.join("registry.yml"), registry)?;
        make_root(&at.join("root"))?;
        let mut engine = Self { directory, program: None };
        engine.power_on().await?;
        Ok(engine)
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.path("engine.sock")
    }

    /// A path in the directory of the engine, which is gone with it.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Starts it on what it has kept.
    pub async fn power_on(&mut self) -> anyhow::Result<()> {
        let mut command = Command::new("setpriv");
        // The outer one does not heed SIGTERM.
        command
            .args(["--pdeathsig", "KILL", "--", "unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc"])
            .args(["--kill-child", "sh", "-ec", POWER_ON, "sh"])
            .arg(self.directory.path())
            .arg(self.cgroup());
        let log = self.path("engine.log");
        let mut program = Program::start("dockerd", command, &log)?;
        let up = wait_for("the container engine", ENGINE_LIMIT, async || {
            let (status, _) = self.ask("GET", "/images/json", None).await?;
            ensure!(status == 200, "status {status}");
            Ok(())
        });
        let up = tokio::select! {
            up = up => up,
            ended = end(&mut program) => ended,
        };
        if up.is_err() {
            program.kill()?;
        }
        self.program = Some(program);
        up.with_context(|| {
            let said = fs::read_to_string(&log).unwrap_or_default();
            format!("the container engine does not run here: {}", said.lines().last().unwrap_or_default())
        })
    }

    /// All that runs ends at once, as when the power goes.
    pub fn power_cut(&mut self) -> anyhow::Result<()> {
        if let Some(mut program) = self.program.take() {
            program.kill()?;
        }
        Ok(())
    }

    /// Makes an image, and has the registry keep it. Its name by digest; the engine knows it no more.
    pub async fn publish(&self, image: Image<'_>) -> anyhow::Result<String> {
        let repository = repository(image.name);
        let root = self.path("root");
        let file = root.join("bytes");
        let mut random = fs::File::open("/dev/urandom")?;
        let mut content = fs::File::create(&file)?;
        std::io::copy(&mut std::io::Read::take(&mut random, image.bytes as u64), &mut content)?;
        let archive = self.path("root.tar");
        let made = Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&archive).arg(".").status()?;
        ensure!(made.success(), "tar: {made}");

        let command = json!(["/bin/sh", "-c", image.command]);
        let mut changes =
            vec![format!("CMD {command}"), format!("ENV OF_IMAGE={}", image.name), "VOLUME /data".to_owned()];
        if let Some(check) = image.check {
            let check = json!(["/bin/sh", "-c", check]);
            changes.push(format!("HEALTHCHECK --interval=1s --timeout=60s --retries=2 CMD {check}"));
        }
        let changes: String = changes.iter().map(|change| format!("&changes={}", escaped(change))).collect();
        let path = format!("/images/create?fromSrc=-&repo={}&tag=made{changes}", escaped(&repository));
        self.done("POST", &path, Some(&format!("@{}", archive.display()))).await?;
        let path = format!("/images/{repository}/push?tag=made");
        let said = self.done("POST", &path, None).await?;
        let digest = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let digest = digest.filter_map(|line| line["aux"]["Digest"].as_str().map(str::to_owned)).next();
        let digest = digest.with_context(|| format!("it was not pushed: {said}"))?;
        self.done("DELETE", &format!("/images/{repository}:made"), None).await?;
        Ok(format!("{repository}@{digest}"))
    }

    /// Has the engine get an image that was published.
    pub async fn pull(&self, image: &str) -> anyhow::Result<()> {
        let (repository, digest) = image.split_once('@').context("by digest")?;
        let path = format!("/images/create?fromImage={}&tag={}", escaped(repository), escaped(digest));
        self.done("POST", &path, None).await.map(|_| ())
    }

    /// Makes a container and starts it. Its id.
    pub async fn run(&self, name: &str, image: &str, configuration: Value) -> anyhow::Result<String> {
        self.pull(image).await?;
        let mut configuration = configuration;
        configuration["Image"] = image.into();
        let made =
            self.done("POST", &format!("/containers/create?name={name}"), Some(&configuration.to_string())).await?;
        let id = serde_json::from_str::<Value>(&made)?["Id"].as_str().context("no id")?.to_owned();
        self.done("POST", &format!("/containers/{id}/start"), None).await?;
        Ok(id)
    }

    /// All that is known of a container; `None` if there is none.
    pub async fn container(&self, name: &str) -> anyhow::Result<Option<Value>> {
        match self.ask("GET", &format!("/containers/{name}/json"), None).await? {
            (200, said) => Ok(Some(serde_json::from_str(&said)?)),
            (404, _) => Ok(None),
            (status, said) => bail!("{name}: {status} {said}"),
        }
    }

    /// The names of all containers that begin so, in order.
    pub async fn names(&self, beginning: &str) -> anyhow::Result<Vec<String>> {
        let listed: Value = serde_json::from_str(&self.done("GET", "/containers/json?all=1", None).await?)?;
        let names = listed.as_array().into_iter().flatten().filter_map(|container| container["Names"][0].as_str());
        let names = names.map(|name| name.trim_start_matches('/')).filter(|name| name.starts_with(beginning));
        let mut names: Vec<String> = names.map(str::to_owned).collect();
        names.sort();
        Ok(names)
    }

    /// Whether it has an image.
    pub async fn has_image(&self, image: &str) -> anyhow::Result<bool> {
        Ok(self.ask("GET", &format!("/images/{image}/json"), None).await?.0 == 200)
    }

    /// The answer, which must be a success.
    pub async fn done(&self, method: &str, path: &str, body: Option<&str>) -> anyhow::Result<String> {
        let (status, said) = self.ask(method, path, body).await?;
        ensure!((200..300).contains(&status) && !said.contains("errorDetail"), "{method} {path}: {status} {said}");
        Ok(said)
    }

    /// Status and body. A body to send is JSON, or an archive behind an `@`.
    pub async fn ask(&self, method: &str, path: &str, body: Option<&str>) -> anyhow::Result<(u16, String)> {
        let mut command = tokio::process::Command::new("curl");
        let limit = ENGINE_LIMIT.as_secs().to_string();
        let login = BASE64URL.encode(json!({ "username": USER, "password": PASSWORD }).to_string().as_bytes());
        command.args(["-s", "-m", &limit, "-w", "\n%{http_code}", "-X", method]);
        command.args(["-H", &format!("X-Registry-Auth: {login}"), "--unix-socket"]);
        command.arg(self.socket()).arg(format!("http://engine{path}"));
        if let Some(body) = body {
            let kind = if body.starts_with('@') { "application/x-tar" } else { "application/json" };
            command.args(["-H", &format!("Content-Type: {kind}"), "--data-binary", body]);
        }
        let output = command.output().await?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let (said, status) = said.rsplit_once('\n').context("no status")?;
        Ok((status.parse()?, said.to_owned()))
    }

    fn cgroup(&self) -> String {
        self.directory.path().file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.power_cut();
        // The kernel keeps them, empty, for each of its controllers.
        for controller in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let group = controller.path().join(self.cgroup());
            for container in fs::read_dir(&group).into_iter().flatten().flatten() {
                let _ = fs::remove_dir(container.path());
            }
            let _ = fs::remove_dir(group);
        }
        let _ = fs::remove_dir(Path::new("/sys/fs/cgroup").join(self.cgroup()));
    }
}

/// The repository of an image of this name.
#[must_use]
pub fn repository(name: &str) -> String {
    format!("{REGISTRY}/vendor/{name}")
}

/// Waits until a program has ended that should go on.
async fn end(program: &mut Program) -> anyhow::Result<()> {
    loop {
        if let Some(status) = program.exit_status()? {
            bail!("it ended with {status}");
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// What lets into the registry, as Docker keeps it in a file.
#[must_use]
pub fn logins() -> String {
    json!({ "auths": { REGISTRY: { "auth": BASE64.encode(format!("{USER}:{PASSWORD}").as_bytes()) } } }).to_string()
}

fn make_root(root: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(root.join("bin"))?;
    fs::copy(BUSYBOX, root.join("bin/busybox"))?;
    for link in LINKS {
        symlink("busybox", root.join("bin").join(link))?;
    }
    Ok(())
}

/// For a query.
fn escaped(text: &str) -> String {
    text.bytes()
        .map(|byte| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}
