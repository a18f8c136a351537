//! What can be typed: one module a noun.

mod access;
mod audit;
mod command;
mod completion;
mod config;
mod cp;
mod device;
mod email;
mod enroll_token;
mod forward;
mod grant;
mod group;
mod instruction;
mod isolation;
mod key;
mod link_test;
mod node;
mod opening;
mod openvpn_profile;
mod person;
mod plan_storm;
mod receipt;
mod recording;
mod rollout;
mod sample;
mod session;
mod shell;
mod status;
mod support;
mod tenant;
mod threshold;
mod token;
mod transport_report;
mod update;
mod watch;
mod webhook;

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use serde_json::Value;

use crate::argument::Limit;
use crate::client::{Answer, Client, List};
use crate::connection::{self, Environment, Wish};
use crate::failure::{EXIT_CODES, Failure};
use crate::output::{Output, plain};

/// Reach devices inside customers' buildings, while and only while their owners allow it
#[derive(Debug, Parser)]
#[command(name = "cloudlink", disable_version_flag = true, after_long_help = EXIT_CODES, after_help = "Exit codes: see --help")]
#[command(propagate_version = false, max_term_width = 100, arg_required_else_help = true)]
pub(crate) struct Line {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Global {
    // Not a comment, in which rustdoc would see a link.
    #[arg(
        long,
        help = "Address of the API, as in https://cloudlink.example:8443",
        global = true,
        help_heading = "Options of all commands",
        value_name = "URL",
        env = "CLOUDLINK_API",
        hide_env_values = true
    )]
    api: Option<String>,
    /// File with the certificates (PEM) of the only authorities to trust; without it, those of the system
    #[arg(
        long,
        global = true,
        help_heading = "Options of all commands",
        value_name = "FILE",
        env = "CLOUDLINK_CA",
        hide_env_values = true
    )]
    ca: Option<PathBuf>,
    /// Name of the stored sign-in to use
    #[arg(
        long,
        global = true,
        help_heading = "Options of all commands",
        value_name = "NAME",
        env = "CLOUDLINK_PROFILE",
        hide_env_values = true
    )]
    profile: Option<String>,
    /// Print the API's JSON instead of tables; errors are JSON, too
    #[arg(long, global = true, help_heading = "Options of all commands")]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Sign in, and store the token for the commands that follow
    Login(session::Login),
    /// Forget the stored token, and have the server refuse it from now on
    Logout(session::Logout),
    /// Show who you are to the API
    Whoami,
    /// List devices
    Devices(device::List),
    /// Show, change or revoke one device
    #[command(subcommand)]
    Device(device::Device),
    /// Selectors with a name: @NAME in a selector means what the group says at that moment
    #[command(subcommand)]
    Group(group::Group),
    /// List groups of devices
    Groups {
        #[command(flatten)]
        limit: Limit,
    },
    /// What devices are to be like: documents, by device and by label, and who is not like that
    #[command(subcommand)]
    Config(config::Config),
    /// The same command to many devices: planned, tried on a few, then batch by batch
    #[command(subcommand)]
    Rollout(rollout::Rollout),
    /// Single-use tokens with which new devices enroll
    #[command(subcommand)]
    EnrollToken(enroll_token::EnrollToken),
    /// Ask to be let in, and answer: access requests and policies
    #[command(subcommand)]
    Access(access::Access),
    /// Permission for operators, given by a customer
    #[command(subcommand)]
    Grant(grant::Grant),
    /// List grants
    Grants(grant::List),
    /// Keys with which a customer signs grants
    #[command(subcommand)]
    Key(key::Key),
    /// Restart a device's operating system
    Reboot(instruction::Reboot),
    /// Switch a device off; somebody has to go there to switch it on again
    Shutdown(instruction::Shutdown),
    /// Restart a service on a device
    Restart(instruction::Restart),
    /// Install another operating system on a device
    UpdateOs(update::UpdateOs),
    /// Install another agent on a device
    UpdateAgent(update::UpdateAgent),
    /// Put another image in place of a container's on a device
    UpdateContainer(update::UpdateContainer),
    /// Let a device measure itself now, or show what it measured last
    Metrics(instruction::Metrics),
    /// Test how fast the way to a device is, in both directions
    LinkTest(link_test::LinkTest),
    /// List commands, newest first
    Commands(command::List),
    /// Show, call back or watch one command
    #[command(subcommand)]
    Command(command::Command),
    /// Ports of devices that are open for support
    #[command(subcommand)]
    Opening(opening::Opening),
    /// List openings, newest first
    Openings(opening::List),
    /// A terminal on a device: your own, or somebody's that is live
    Shell(shell::Shell),
    /// Reach TCP ports of a device, or of its neighbours, as if they were here
    Forward(forward::Forward),
    /// Copy a file to a device, or from it
    Cp(cp::Cp),
    /// Terminals, port forwards and file copies, live or over
    #[command(subcommand)]
    Support(support::Support),
    /// What was recorded of support sessions
    #[command(subcommand)]
    Recording(recording::Recording),
    /// The audit log: who did what
    Audit(audit::Audit),
    /// How devices are kept apart, and the proof of it
    #[command(subcommand)]
    Isolation(isolation::Isolation),
    TransportReport(transport_report::Show),
    /// What was done under a grant, signed
    #[command(subcommand)]
    Receipt(receipt::Receipt),
    /// List tenants
    Tenants(tenant::List),
    /// Show, create or change a tenant
    #[command(subcommand)]
    Tenant(tenant::Tenant),
    /// List people
    People(person::List),
    /// Create or deactivate a person or robot
    #[command(subcommand)]
    Person(person::Person),
    /// API tokens
    #[command(subcommand)]
    Token(token::Token),
    Status(status::Show),
    /// Nodes of the cluster: how they are, and sending their devices to other nodes
    #[command(subcommand)]
    Node(node::NodeVerb),
    /// Where other systems are told of events
    #[command(subcommand)]
    Webhook(webhook::Webhook),
    /// What devices may measure before webhooks are told
    #[command(subcommand)]
    Threshold(threshold::Threshold),
    /// List devices that are across a threshold
    Alerts(threshold::Alerts),
    /// Print a script that completes this command line in a shell
    Completion(completion::Completion),
    /// Print this program's version
    Version,
}

impl Line {
    #[must_use]
    pub(crate) fn is_json(&self) -> bool {
        self.global.json
    }

    pub(crate) async fn run(self) -> Result<(), Failure> {
        let context = Context { output: Output::new(self.global.json), global: self.global };
        let context = &context;
        match self.verb {
            Verb::Login(login) => login.run(context).await,
            Verb::Logout(logout) => logout.run(context).await,
            Verb::Whoami => session::whoami(context).await,
            Verb::Devices(list) => list.run(context).await,
            Verb::Device(verb) => verb.run(context).await,
            Verb::Group(verb) => verb.run(context).await,
            Verb::Groups { limit } => group::Group::List { limit }.run(context).await,
            Verb::Config(verb) => Box::pin(verb.run(context)).await,
            Verb::Rollout(verb) => Box::pin(verb.run(context)).await,
            Verb::EnrollToken(verb) => verb.run(context).await,
            Verb::Access(verb) => Box::pin(verb.run(context)).await,
            Verb::Grant(verb) => verb.run(context).await,
            Verb::Grants(list) => list.run(context).await,
            Verb::Key(key) => key.run(context).await,
            Verb::Reboot(reboot) => Box::pin(reboot.run(context)).await,
            Verb::Shutdown(shutdown) => Box::pin(shutdown.run(context)).await,
            Verb::Restart(restart) => Box::pin(restart.run(context)).await,
            Verb::UpdateOs(update) => Box::pin(update.run(context)).await,
            Verb::UpdateAgent(update) => Box::pin(update.run(context)).await,
            Verb::UpdateContainer(update) => Box::pin(update.run(context)).await,
            Verb::Metrics(metrics) => Box::pin(metrics.run(context)).await,
            Verb::LinkTest(test) => Box::pin(test.run(context)).await,
            Verb::Commands(list) => list.run(context).await,
            Verb::Command(verb) => Box::pin(verb.run(context)).await,
            Verb::Opening(verb) => Box::pin(verb.run(context)).await,
            Verb::Openings(list) => list.run(context).await,
            Verb::Shell(shell) => Box::pin(shell.run(context)).await,
            Verb::Forward(forward) => Box::pin(forward.run(context)).await,
            Verb::Cp(cp) => Box::pin(cp.run(context)).await,
            Verb::Support(verb) => Box::pin(verb.run(context)).await,
            Verb::Recording(verb) => Box::pin(verb.run(context)).await,
            Verb::Audit(audit) => audit.run(context).await,
            Verb::Isolation(verb) => verb.run(context).await,
            Verb::TransportReport(show) => show.run(context).await,
            Verb::Receipt(verb) => verb.run(context).await,
            Verb::Tenants(list) => list.run(context).await,
            Verb::Tenant(verb) => verb.run(context).await,
            Verb::People(list) => list.run(context).await,
            Verb::Person(verb) => verb.run(context).await,
            Verb::Token(verb) => verb.run(context).await,
            Verb::Status(show) => show.run(context).await,
            Verb::Node(verb) => Box::pin(verb.run(context)).await,
            Verb::Webhook(verb) => verb.run(context).await,
            Verb::Threshold(verb) => verb.run(context).await,
            Verb::Alerts(alerts) => alerts.run(context).await,
            Verb::Completion(completion) => completion.run(),
            Verb::Version => version(context),
        }
    }
}

fn version(context: &Context) -> Result<(), Failure> {
    let version = env!("CARGO_PKG_VERSION");
    if context.output.json {
        return context.output.json(&serde_json::json!({ "version": version }));
    }
    context.output.line(&format!("cloudlink {version}"))
}

/// What every command needs.
#[derive(Debug)]
pub(crate) struct Context {
    global: Global,
    pub(crate) output: Output,
}

impl Context {
    pub(crate) fn client(&self) -> Result<Client, Failure> {
        Client::new(&connection::connection(&self.wish(), &environment())?)
    }

    fn wish(&self) -> Wish {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        Wish {
            api: given(&self.global.api),
            ca: self.global.ca.clone().filter(|path| !path.as_os_str().is_empty()),
            profile: given(&self.global.profile),
        }
    }

    /// The file of `--ca`.
    pub(crate) fn ca(&self) -> Option<PathBuf> {
        self.wish().ca
    }

    /// Lists things: as one JSON array, or as a table with a word about what is missing.
    fn list<T>(&self, list: &List<T>, table: impl FnOnce() -> crate::output::Table) -> Result<(), Failure> {
        if self.output.json {
            let items: Vec<&Value> = list.items.iter().map(|item| &item.json).collect();
            self.output.json(&items)?;
        } else if list.items.is_empty() {
            self.output.note("none");
        } else {
            self.output.table(&table())?;
        }
        if list.has_more {
            self.output.note(&format!("There are more than these {}: see --limit.", list.items.len()));
        }
        Ok(())
    }

    /// Shows one thing.
    fn show<T>(&self, answer: &Answer<T>, table: impl FnOnce() -> crate::output::Table) -> Result<(), Failure> {
        if self.output.json { self.output.json(&answer.json) } else { self.output.table(&table()) }
    }

    /// Shows a new secret: alone on standard output, so that it can be stored without being parsed out.
    fn show_secret(&self, json: &Value, secret: Option<&str>, about: &str) -> Result<(), Failure> {
        if self.output.json {
            return self.output.json(json);
        }
        self.output.note(about);
        self.output.line(secret.ok_or_else(|| anyhow::anyhow!("the server did not give the secret"))?)
    }
}

fn environment() -> Environment<'static> {
    Environment::new(&|name| std::env::var_os(name))
}

/// Asks before what cannot be undone from afar. A script is not asked: it said what it wants.
fn confirm(question: &str, yes: bool) -> Result<(), Failure> {
    if yes || !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Ok(());
    }
    let mut stderr = io::stderr().lock();
    let _ = write!(stderr, "{} [y/N] ", plain(question));
    let _ = stderr.flush();
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(|error| Failure::Other(error.into()))?;
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        return Ok(());
    }
    Err(Failure::Usage("not confirmed, nothing was done".to_owned()))
}
