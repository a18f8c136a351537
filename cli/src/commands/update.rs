//! Updates of a device: an artifact that it fetches, checks and gives to its own installer, or an image for one of its containers.

use clap::Args;
use serde_json::json;

use super::Context;
use super::instruction::Common;
use crate::failure::Failure;
use crate::resolve;

#[derive(Debug, Args)]
pub(crate) struct UpdateOs {
    #[command(flatten)]
    update: Update,
}

#[derive(Debug, Args)]
pub(crate) struct UpdateAgent {
    #[command(flatten)]
    update: Update,
}

#[derive(Debug, Args)]
pub(crate) struct UpdateContainer {
    #[command(flatten)]
    common: Common,
    /// Name of the container on the device
    #[arg(long, value_name = "NAME")]
    container: String,
    /// The image by its digest, such as registry.example.com/vendor/app@sha256:9f86…; a tag is not taken
    #[arg(long, value_name = "IMAGE")]
    image: String,
    /// Why, for the record
    #[arg(long)]
    reason: String,
}

#[derive(Debug, Args)]
struct Update {
    #[command(flatten)]
    common: Common,
    /// From where the device fetches the artifact
    #[arg(long)]
    url: String,
    /// SHA-256 of the artifact, as `sha256sum` prints it
    #[arg(long, value_name = "DIGEST")]
    sha256: String,
    /// Size of the artifact, in bytes
    #[arg(long, value_name = "BYTES")]
    size: u64,
    /// What the device will say that it runs; with anything else, it is no success
    #[arg(long, value_name = "VERSION")]
    to_version: String,
    /// Why, for the record
    #[arg(long)]
    reason: String,
}

impl UpdateOs {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        self.update.run(context, "os.update").await
    }
}

impl UpdateAgent {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        self.update.run(context, "agent.update").await
    }
}

impl UpdateContainer {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        let device = resolve::device(&client, &self.common.device).await?;
        let arguments = json!({ "container": self.container, "image": self.image });
        let body = json!({ "kind": "container.update", "arguments": arguments, "reason": self.reason });
        self.common.run(context, &client, &device, body).await
    }
}

impl Update {
    async fn run(&self, context: &Context, kind: &str) -> Result<(), Failure> {
        let client = context.client()?;
        let device = resolve::device(&client, &self.common.device).await?;
        let arguments =
            json!({ "url": self.url, "sha256": self.sha256, "size": self.size, "version": self.to_version });
        let body = json!({ "kind": kind, "arguments": arguments, "reason": self.reason });
        self.common.run(context, &client, &device, body).await
    }
}
