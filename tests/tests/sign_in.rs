//! Signing in against a real OpenID provider: browsers, command lines, groups, and everything that must not work.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use cloudlink_tests::api::{Answer, Api, text};
use cloudlink_tests::cli::Cli;
use cloudlink_tests::clock;
use cloudlink_tests::fleet::Fleet;
use cloudlink_tests::oidc::{Browser, Page, Provider};
use cloudlink_tests::poll::wait_for;
use cloudlink_tests::port;
use cloudlink_tests::server::Settings;
use data_encoding::BASE64URL_NOPAD;
use reqwest::header::{LOCATION, SET_COOKIE};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStderr};

/// For what happens by itself.
const LIMIT: Duration = Duration::from_secs(20);

/// A server that knows a provider, and the provider.
struct World {
    fleet: Fleet,
    provider: Provider,
    people: SocketAddr,
    directory: TempDir,
}

impl World {
    async fn start(more: &[&str]) -> anyhow::Result<Self> {
        let directory = TempDir::with_prefix("cloudlink-oidc-")?;
        let people = port::free()?;
        let public_url = format!("https://{people}");
        let provider = Provider::start(&directory.path().join("provider"), &public_url).await?;
        let mut set = provider.configuration(&public_url);
        set.extend(more.iter().map(|assignment| (*assignment).to_owned()));
        let settings = Settings { people: Some(people), set, ..Settings::default() };
        Ok(Self { fleet: Fleet::start_with(&settings).await?, provider, people, directory })
    }

    fn url(&self, path: &str) -> String {
        format!("https://{}/api/v1{path}", self.people)
    }

    fn browser(&self) -> anyhow::Result<Browser> {
        Browser::new(&[&self.fleet.server.ca_file(), &self.provider.ca_file])
    }

    /// Who there is at the provider, and in which groups.
    fn accounts(&self, people: &[(&str, &[&str])]) -> anyhow::Result<()> {
        let accounts = people.iter().map(|(name, groups)| {
            let account = json!({ "name": name, "email": format!("{name}@example.com"), "groups": groups });
            ((*name).to_owned(), account)
        });
        self.provider.accounts(&Value::Object(accounts.collect()))
    }

    fn nobody(&self) -> Api {
        self.fleet.admin.with_token("")
    }

    /// Trades an ID token, whatever comes of it.
    async fn trade(&self, id_token: &str) -> anyhow::Result<Answer> {
        let body = json!({ "id_token": id_token });
        self.nobody().call(Method::POST, "/auth/session", &[], Some(&body)).await
    }

    async fn sign_in(&self, somebody: &str) -> anyhow::Result<Answer> {
        self.trade(&self.provider.id_token("cloudlink-cli", somebody).await?).await
    }

    /// Somebody who is let in.
    async fn signed_in(&self, somebody: &str) -> anyhow::Result<Api> {
        let token = text(&self.sign_in(somebody).await?.success()?, "token")?;
        Ok(self.nobody().with_token(&token))
    }

    async fn audited(&self, action: &str) -> anyhow::Result<usize> {
        let page = self.fleet.admin.get("/audit?limit=200").await?;
        let entries = page["items"].as_array().into_iter().flatten();
        Ok(entries.filter(|entry| entry["entry"].as_str().is_some_and(|text| text.contains(action))).count())
    }
}

fn is_refused(answer: &Answer, problem: &str, reason: Option<&str>) -> anyhow::Result<()> {
    ensure!(answer.problem() == problem && answer.body["reason"].as_str() == reason, "expected {problem}: {answer:?}");
    Ok(())
}

fn problem(page: &Page) -> String {
    let body: Value = serde_json::from_str(&page.text).unwrap_or_default();
    body["type"].as_str().and_then(|kind| kind.rsplit(':').next()).unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_browser_signs_in_and_out() -> anyhow::Result<()> {
    let world = World::start(&[]).await?;
    world.accounts(&[("olga", &["support"])])?;
    let host = world.people.to_string();
    let login = world.url("/auth/login?return_to=/api/v1/me");

    // Through the provider's own pages, back to where it was going.
    let mut browser = world.browser()?;
    let me = browser.sign_in(&login, "olga").await?;
    ensure!(me.url.path() == "/api/v1/me" && me.status == StatusCode::OK, "{me:?}");
    let me: Value = serde_json::from_str(&me.text)?;
    ensure!(me["name"] == "olga" && me["role"] == "operator" && me["token_kind"] == "browser", "{me}");
    let cookie = browser.cookie(&host, "__Host-cloudlink").context("no cookie")?.to_owned();
    ensure!(browser.cookie(&host, "__Host-cloudlink-sign-in").is_none(), "what the way back needed is still there");

    // What comes back is good once, and in the browser that set out.
    let mut other = world.browser()?;
    let mut page = other.open(&login.parse()?, None).await?;
    let set_cookie = page.headers[SET_COOKIE].to_str()?.to_owned();
    for attribute in ["Secure", "HttpOnly", "SameSite=Lax", "Path=/"] {
        ensure!(set_cookie.contains(attribute), "{set_cookie}");
    }
    while page.headers.contains_key(LOCATION) && !page.headers[LOCATION].to_str()?.contains("/auth/callback") {
        let next = page.url.join(page.headers[LOCATION].to_str()?)?;
        page = other.open(&next, None).await?;
    }
    ensure!(page.text.contains("login"), "the provider does not ask who that is: {page:?}");
    let end = stop_at_callback(&mut other, &login, "olga").await?;
    let mut stranger = world.browser()?;
    let page = stranger.open(&end, None).await?;
    ensure!(problem(&page) == "sign_in_failed", "another browser comes in with it: {page:?}");
    let page = other.open(&end, None).await?;
    ensure!(page.status == StatusCode::SEE_OTHER, "{page:?}");
    let page = other.open(&end, None).await?;
    ensure!(problem(&page) == "sign_in_failed", "it works twice: {page:?}");
    let made_up = world.url("/auth/callback?code=c&state=s").parse()?;
    let page = other.open(&made_up, None).await?;
    ensure!(problem(&page) == "sign_in_failed", "{page:?}");
    let page = other.open(&world.url("/auth/login?return_to=//evil.example").parse()?, None).await?;
    ensure!(problem(&page) == "bad_request", "{page:?}");

    // Another site has no way to use it.
    let logout = |headers: &'static [(&'static str, &'static str)]| {
        let (api, cookie) = (world.nobody(), format!("__Host-cloudlink={cookie}"));
        async move {
            let headers = [&[("cookie", cookie.as_str())], headers].concat();
            api.call(Method::POST, "/auth/logout", &headers, None).await
        }
    };
    is_refused(&logout(&[]).await?, "cross_site", None)?;
    is_refused(&logout(&[("sec-fetch-site", "cross-site")]).await?, "cross_site", None)?;
    logout(&[("sec-fetch-site", "same-origin")]).await?.success()?;
    let me = browser.open(&world.url("/me").parse()?, None).await?;
    ensure!(problem(&me) == "unauthenticated", "{me:?}");
    Ok(())
}

/// Goes through the provider, and stops before it comes back.
async fn stop_at_callback(browser: &mut Browser, login: &str, somebody: &str) -> anyhow::Result<reqwest::Url> {
    let page = browser.open(&login.parse()?, None).await?;
    let provider = page.headers[LOCATION].to_str()?.to_owned();
    let end = browser.sign_in_until(&provider, somebody, "/auth/callback").await?;
    ensure!(end.url.path().ends_with("/auth/callback"), "{end:?}");
    Ok(end.url)
}

/// A command that tells an address to open, with what it says.
fn login(cli: &Cli, world: &World, way: &str) -> anyhow::Result<(Child, Lines<BufReader<ChildStderr>>)> {
    let (api, ca) = (world.fleet.server.api_url(), world.fleet.server.ca_file().display().to_string());
    let mut command = cli.command(&["login", "--api", &api, "--ca", &ca, way])?;
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let lines = BufReader::new(child.stderr.take().context("no standard error")?).lines();
    Ok((child, lines))
}

async fn told(lines: &mut Lines<BufReader<ChildStderr>>, before: &str) -> anyhow::Result<String> {
    tokio::time::timeout(LIMIT, async {
        loop {
            let line = lines.next_line().await?.context("it said nothing more")?;
            if let Some(address) = line.trim().strip_prefix(before) {
                return Ok(address.to_owned());
            }
        }
    })
    .await?
}

#[tokio::test]
async fn a_command_line_signs_in_with_a_browser_here_or_elsewhere() -> anyhow::Result<()> {
    let world = World::start(&[]).await?;
    world.accounts(&[("olga", &["support"]), ("tina", &["cloudlink-tenant-customer"])])?;

    let cli = Cli::new(&world.directory.path().join("olga"));
    let (child, mut lines) = login(&cli, &world, "--no-browser")?;
    let end = world.browser()?.sign_in(&told(&mut lines, "Open: ").await?, "olga").await?;
    ensure!(end.url.scheme() == "http" && end.url.host_str() == Some("127.0.0.1"), "{end:?}");
    // Somebody else's answer is not taken for it.
    let plain = reqwest::Client::builder().no_proxy().build()?;
    let mut wrong = end.url.clone();
    wrong.set_query(Some("code=c&state=made-up"));
    ensure!(plain.get(wrong).send().await?.status() == StatusCode::NOT_FOUND, "another's state is taken");
    ensure!(plain.get(end.url).send().await?.status() == StatusCode::OK, "the command line does not listen");
    let output = tokio::time::timeout(LIMIT, child.wait_with_output()).await??;
    ensure!(output.status.success(), "{}: {output:?}", world.fleet.server.log_text()?);
    let me = cli.json(&["whoami"]).await?;
    ensure!(me["name"] == "olga" && me["role"] == "operator" && me["token_kind"] == "session", "{me}");

    let cli = Cli::new(&world.directory.path().join("tina"));
    let (child, mut lines) = login(&cli, &world, "--device")?;
    let mut browser = world.browser()?;
    browser.sign_in(&told(&mut lines, "Or open: ").await?, "tina").await?;
    let output = tokio::time::timeout(LIMIT, child.wait_with_output()).await??;
    ensure!(output.status.success(), "{output:?}");
    let me = cli.json(&["whoami"]).await?;
    ensure!(me["role"] == "tenant" && me["tenant_id"] == world.fleet.tenant_id.as_str(), "{me}");

    // Signing out ends it on the server as well.
    let before = world.audited("token.revoked").await?;
    ensure!(cli.run(&["logout"]).await?.code == Some(0), "cannot sign out");
    let tenants = world.fleet.tenant.get("/audit?limit=200").await?.to_string();
    ensure!(tenants.contains("token.revoked") || world.audited("token.revoked").await? > before, "not revoked");
    ensure!(cli.run(&["whoami"]).await?.code == Some(3), "still signed in");

    // The first administrator's token was used up by the first sign-in of all.
    let file = world.fleet.server.bootstrap_token_file().display().to_string();
    let (api, ca) = (world.fleet.server.api_url(), world.fleet.server.ca_file().display().to_string());
    let again = cli.run(&["login", "--api", &api, "--ca", &ca, "--token-file", &file]).await?;
    ensure!(again.code == Some(3) && again.stderr.contains("works once"), "{again:?}");
    ensure!(world.audited("token.refused").await? == 1, "nobody is told");
    Ok(())
}

#[tokio::test]
async fn groups_say_who_somebody_is_and_a_change_ends_what_was() -> anyhow::Result<()> {
    let world = World::start(&["sign_in.lock_after_failures=100"]).await?;
    let tenant_group = format!("cloudlink-tenant-{}", world.fleet.tenant_id);
    world.accounts(&[
        ("ada", &["admins", "staff"]),
        ("olga", &["support"]),
        ("tina", &[&tenant_group]),
        ("nobody", &["staff", "cloudlink-tenant-elsewhere"]),
        ("both", &["support", "cloudlink-tenant-customer"]),
        ("operator", &["support"]),
    ])?;
    ensure!(world.signed_in("ada").await?.get("/me").await?["role"] == "admin", "ada");
    let tina = world.signed_in("tina").await?.get("/me").await?;
    ensure!(tina["tenant_id"] == world.fleet.tenant_id.as_str(), "{tina}");
    is_refused(&world.sign_in("nobody").await?, "sign_in_refused", Some("no_role"))?;
    is_refused(&world.sign_in("both").await?, "sign_in_refused", Some("several_roles"))?;
    // The fleet has somebody of that name, whom the provider does not know: it stays another.
    let namesake = world.signed_in("operator").await?.get("/me").await?;
    ensure!(namesake["id"] != world.fleet.operator_id.as_str(), "somebody became somebody else");
    ensure!(namesake["name"] == "operator@example.com", "{namesake}");

    // The same person, each time.
    let olga = world.signed_in("olga").await?;
    let again = world.signed_in("olga").await?;
    let me = olga.get("/me").await?;
    ensure!(me["id"] == again.get("/me").await?["id"], "olga became two");
    // Nobody else makes a token for who signs in.
    let body = json!({ "name": "n", "person_id": me["id"] });
    let answer = world.fleet.admin.call(Method::POST, "/tokens", &[], Some(&body)).await?;
    is_refused(&answer, "forbidden", None)?;

    // Another role: what was there under the old one is over.
    world.accounts(&[("olga", &["admins"])])?;
    let admin = world.signed_in("olga").await?;
    let now = admin.get("/me").await?;
    ensure!(now["role"] == "admin" && now["id"] == me["id"], "{now}");
    for old in [&olga, &again] {
        is_refused(&old.call(Method::GET, "/me", &[], None).await?, "unauthenticated", None)?;
    }
    // No group any more: nothing is left.
    world.accounts(&[("olga", &["staff"])])?;
    is_refused(&world.sign_in("olga").await?, "sign_in_refused", Some("no_role"))?;
    is_refused(&admin.call(Method::GET, "/me", &[], None).await?, "unauthenticated", None)?;
    // And back again, as what the group says.
    world.accounts(&[("olga", &["support"])])?;
    let back = world.signed_in("olga").await?;
    ensure!(back.get("/me").await?["id"] == me["id"], "olga became another");

    // Whom an administrator shuts out, no group lets in; its streams end with it.
    let device = world.fleet.device("gw").await?;
    world.fleet.grant(&device.id, &["metrics:read"]).await?;
    let patch = async |active: bool| {
        let path = format!("/people/{}", me["id"].as_str().unwrap_or_default());
        let body = json!({ "active": active });
        world.fleet.admin.call(Method::PATCH, &path, &[], Some(&body)).await?.success()
    };
    patch(false).await?;
    is_refused(&back.call(Method::GET, "/me", &[], None).await?, "unauthenticated", None)?;
    is_refused(&world.sign_in("olga").await?, "sign_in_refused", Some("shut_out"))?;
    patch(true).await?;
    world.signed_in("olga").await?;
    Ok(())
}

#[tokio::test]
async fn an_id_token_is_good_once_while_it_is_new_and_for_us() -> anyhow::Result<()> {
    let mut world = World::start(&["sign_in.lock_after_failures=100", "people.failures_burst=100"]).await?;
    world.accounts(&[("olga", &["support"])])?;
    let token = world.provider.id_token("cloudlink-cli", "olga").await?;
    world.trade(&token).await?.success()?;
    is_refused(&world.trade(&token).await?, "sign_in_refused", Some("replayed"))?;
    // The browser's client, and one that has nothing to do with us.
    let other = world.provider.id_token("something-else", "olga").await?;
    is_refused(&world.trade(&other).await?, "sign_in_failed", None)?;
    // Changed, unsigned, and none at all.
    let token = world.provider.id_token("cloudlink-cli", "olga").await?;
    let parts: Vec<&str> = token.split('.').collect();
    let unsigned = format!("eyJhbGciOiJub25lIn0.{}.", parts[1]);
    let symmetric = format!("eyJhbGciOiJIUzI1NiJ9.{}.{}", parts[1], parts[2]);
    let foreign = format!("{}.{}.{}", parts[0], other.split('.').nth(1).context("no claims")?, parts[2]);
    for bad in [unsigned.as_str(), &symmetric, &foreign, "", "a.b.c", &token[..token.len() - 8]] {
        is_refused(&world.trade(bad).await?, "sign_in_failed", None)?;
    }
    world.trade(&token).await?.success()?;

    // The provider exchanges its keys: the new ones are known at once, the old ones no more.
    let old = world.provider.id_token("cloudlink-cli", "olga").await?;
    world.provider.start_again(2).await?;
    wait_for("the new keys", LIMIT, async || world.sign_in("olga").await?.success()).await?;
    is_refused(&world.trade(&old).await?, "sign_in_failed", None)?;
    // Too late.
    let late = world.provider.id_token("cloudlink-cli", "olga").await?;
    let claims = BASE64URL_NOPAD.decode(late.split('.').nth(1).context("no claims")?.as_bytes())?;
    let end = serde_json::from_slice::<Value>(&claims)?["exp"].as_i64().context("it has no end")?;
    wait_for("the end of the ID token", LIMIT, async || {
        ensure!(clock::now().unix_timestamp() > end, "it is good still");
        Ok(())
    })
    .await?;
    is_refused(&world.trade(&late).await?, "sign_in_failed", None)?;

    // Without the provider nobody signs in, and everybody who is in stays.
    let olga = world.signed_in("olga").await?;
    world.provider.stop()?;
    olga.get("/me").await?;
    let mut browser = world.browser()?;
    wait_for("the provider to be missed", LIMIT, async || {
        let page = browser.open(&world.url("/auth/login").parse()?, None).await?;
        // What is known of it is good for a while: the browser is sent there, and finds nobody.
        ensure!(page.status == StatusCode::SEE_OTHER || problem(&page) == "provider_unavailable", "{page:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_server_whose_provider_never_answered_says_so() -> anyhow::Result<()> {
    let mut world = World::start(&[]).await?;
    world.provider.stop()?;
    let mut browser = world.browser()?;
    let page = browser.open(&world.url("/auth/login").parse()?, None).await?;
    ensure!(problem(&page) == "provider_unavailable" && page.headers.contains_key("retry-after"), "{page:?}");
    is_refused(&world.trade("e30.e30.e30").await?, "sign_in_failed", None)?;
    world.fleet.admin.get("/me").await?;
    Ok(())
}

#[tokio::test]
async fn who_fails_too_often_is_locked_out_for_a_while() -> anyhow::Result<()> {
    let world = World::start(&["sign_in.lock_after_failures=3", "sign_in.lock_seconds=4"]).await?;
    world.accounts(&[("olga", &["support"]), ("nobody", &[])])?;
    is_refused(&world.trade("a.b.c").await?, "sign_in_failed", None)?;
    is_refused(&world.sign_in("nobody").await?, "sign_in_refused", Some("no_role"))?;
    is_refused(&world.sign_in("nobody").await?, "sign_in_refused", Some("no_role"))?;
    // Now everybody at this address waits.
    let locked = world.sign_in("olga").await?;
    is_refused(&locked, "locked_out", None)?;
    let wait: u64 = locked.headers["retry-after"].to_str()?.parse()?;
    ensure!((1..=5).contains(&wait), "{wait}");
    for _ in 0..3 {
        is_refused(&world.sign_in("olga").await?, "locked_out", None)?;
    }
    ensure!(world.audited("sign_in.locked_out").await? == 1, "it is told once");
    // Whoever is in works on.
    world.fleet.operator.get("/me").await?;
    wait_for("the lock to open", LIMIT, async || world.sign_in("olga").await?.success()).await?;
    let metrics = world.fleet.server.operations("/metrics").await?.1;
    ensure!(metrics.contains("cloudlink_sign_ins_total{outcome=\"locked_out\"}"), "{metrics}");
    Ok(())
}

#[tokio::test]
async fn service_accounts_have_tokens_and_never_sign_in() -> anyhow::Result<()> {
    let fleet = Fleet::start().await?;
    let tenant = fleet.cli(fleet.tenant.token());
    tenant.json(&["person", "create", "night-shift", "--role", "tenant", "--service"]).await?;
    let arguments = ["token", "create", "ci", "--for", "night-shift", "--scope", "read", "--expires", "1d"];
    let made = tenant.json(&arguments).await?;
    let robot = fleet.cli(&text(&made, "token")?);
    let me = robot.json(&["whoami"]).await?;
    ensure!(me["kind"] == "service" && me["token_scopes"] == json!(["read"]), "{me}");
    robot.json(&["devices"]).await?;
    let refused = robot.run(&["enroll-token", "create", "gw"]).await?;
    ensure!(refused.code == Some(3) && refused.stderr.contains("scope"), "{refused:?}");
    let wider = robot.run(&["token", "create", "more", "--scope", "admin"]).await?;
    ensure!(wider.code == Some(3), "{wider:?}");
    // The vendor's administrator owns it not.
    let admin = fleet.cli(fleet.admin.token());
    ensure!(admin.run(&["token", "create", "x", "--for", "night-shift"]).await?.code == Some(3), "made for another's");
    tenant.json(&["person", "deactivate", "night-shift"]).await?;
    ensure!(robot.run(&["whoami"]).await?.code == Some(3), "it is still in");
    Ok(())
}
