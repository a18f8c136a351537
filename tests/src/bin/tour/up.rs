//! The stage, left to the user.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use cloudlink_tests::api::text;
use cloudlink_tests::machine::SERVICE;
use cloudlink_tests::program::binary;

use crate::demo::wait_for_link;
use crate::stage::{CONSOLE_CUSTOMER, CONSOLE_OPERATOR, DEVICE, Person, Ports, Stage, chapter};

/// How often to look whether everything still runs.
const LOOK_EVERY: Duration = Duration::from_secs(1);

pub(crate) async fn run(ports: Ports, environment: Option<PathBuf>) -> anyhow::Result<()> {
    chapter("A fleet", "The same as in `make demo`.");
    let mut stage = Stage::set(ports, true).await?;
    stage.people().await?;
    stage.enroll().await?;
    let device = text(&wait_for_link(&stage).await?, "id")?;
    let environment = Environment::write(environment.map_or_else(usual_path, Ok)?, &variables(&stage, &device).await?)?;
    tell(&stage, &device, &token(&stage, Person::Customer).await?, &environment.path);
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        stage.server.program().ensure_running()?;
    }
}

async fn token(stage: &Stage, person: Person) -> anyhow::Result<String> {
    match person {
        // The one in its file was used up by the sign-in.
        Person::Admin => text(&stage.ask(person, &["token", "create", "environment"]).await?, "token"),
        Person::Customer | Person::Operator => Ok(std::fs::read_to_string(stage.token_file(person))?.trim().to_owned()),
    }
}

/// The variables that everybody may use, in this order.
async fn variables(stage: &Stage, device: &str) -> anyhow::Result<Vec<(&'static str, String)>> {
    let identity = stage.device.state_dir().join("current.pem").display().to_string();
    let (api, ca) = (stage.server.api_url(), stage.server.ca_file().display().to_string());
    Ok(vec![
        ("DEVICE_ADDR", stage.server.device.to_string()),
        ("API_URL", api.clone()),
        ("CONSOLE_URL", stage.console().unwrap_or_default()),
        ("OPS_URL", format!("http://{}", stage.server.operations)),
        ("CA_FILE", ca.clone()),
        ("DEVICE_ID", device.to_owned()),
        // Certificate and key stand in one file.
        ("DEVICE_CERT", identity.clone()),
        ("DEVICE_KEY", identity),
        ("OPERATOR_TOKEN", token(stage, Person::Operator).await?),
        ("TENANT_TOKEN", token(stage, Person::Customer).await?),
        ("ADMIN_TOKEN", token(stage, Person::Admin).await?),
        ("CLOUDLINK", binary("cloudlink")?.display().to_string()),
        // What the command line itself reads.
        ("CLOUDLINK_API", api),
        ("CLOUDLINK_CA", ca),
        ("CLOUDLINK_CONFIG_DIR", stage.path("cli").display().to_string()),
    ])
}

fn tell(stage: &Stage, device: &str, token: &str, environment: &Path) {
    let text = format!(
        "console         {console}   (sign in as {CONSOLE_CUSTOMER}, the customer, or {CONSOLE_OPERATOR}, an operator, with any password;
                         browsers warn of the certificates, which are the demo's own)
         devices dial    {device_address}   (server name localhost)
         people call     {api}
         operations      http://{operations}/metrics
         demo device     {DEVICE}   {device}
         login token     {token}   (the customer's; the others are in the file below)

         In another terminal:

         . {environment}
         $CLOUDLINK devices --profile customer
         $CLOUDLINK reboot {DEVICE} --reason 'see what happens' --profile operator      # refused: no grant
         $CLOUDLINK grant create --device {DEVICE} --scope device:reboot --scope service:restart --scope metrics:read --for 15m --reason 'try it' --profile customer
         $CLOUDLINK reboot {DEVICE} --reason 'see what happens' --profile operator
         $CLOUDLINK restart {DEVICE} {SERVICE} --reason 'once more' --profile operator
         $CLOUDLINK audit --profile customer
         curl --cacert $CA_FILE -H \"Authorization: Bearer $TENANT_TOKEN\" $API_URL/api/v1/devices

         Ctrl-C stops everything.",
        console = stage.console().unwrap_or_default(),
        device_address = stage.server.device,
        api = stage.server.api_url(),
        operations = stage.server.operations,
        environment = environment.display(),
    );
    chapter("It is up", &text);
}

fn usual_path() -> anyhow::Result<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the crate is in the workspace")?;
    std::fs::create_dir_all(workspace.join("target"))?;
    Ok(workspace.join("target/up.env"))
}

/// `up.env`, there for as long as what it tells of.
#[derive(Debug)]
struct Environment {
    path: PathBuf,
}

impl Environment {
    fn write(path: PathBuf, variables: &[(&'static str, String)]) -> anyhow::Result<Self> {
        let mut text = String::new();
        for (name, value) in variables {
            writeln!(text, "export {name}='{}'", value.replace('\'', r"'\''"))?;
        }
        // It holds tokens. Made anew, for an old file keeps its mode.
        let _ = std::fs::remove_file(&path);
        let mut file: File = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        file.write_all(text.as_bytes())?;
        Ok(Self { path })
    }
}

impl Drop for Environment {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
