//! In between: the operator asks to be let in, the customer lets it in for less, and a terminal is recorded and accounted for.

use std::path::PathBuf;

use cloudlink_tests::api::text;
use cloudlink_tests::fleet::LINK_LIMIT;
use cloudlink_tests::poll::wait_for;

use crate::stage::{DEVICE, Expect, Person, Stage, chapter, shown};

/// Gives back where the receipt is.
pub(crate) async fn run(stage: &Stage) -> anyhow::Result<PathBuf> {
    chapter("The operator asks", "For a terminal, for an hour. The customer answers: for ten minutes.");
    let request = ["access", "request", "--device", DEVICE, "--scope", "shell:open", "--for", "1h"];
    let reason = ["--reason", "see what leaks", "--ticket", "4711"];
    stage.cloudlink(Person::Operator, &[&request[..], &reason].concat(), Expect::Success).await?;
    let requests = stage.ask(Person::Customer, &["access", "list"]).await?;
    let id = text(&requests[0], "id")?;
    stage.cloudlink(Person::Customer, &["access", "show", &id], Expect::Success).await?;
    let approve = ["access", "approve", &id, "--for", "10m", "--comment", "not longer"];
    stage.cloudlink(Person::Customer, &approve, Expect::Success).await?;

    chapter(
        "A terminal on the device",
        "What is typed and shown goes through the server, is recorded there, and ends with the grant.",
    );
    let shell = ["shell", DEVICE, "--reason", "see what leaks"];
    stage.type_into(Person::Operator, &shell, "uname --kernel-name; echo It is the cache.\n").await?;
    let sessions = stage.ask(Person::Customer, &["support", "list"]).await?;
    let session = text(&sessions[0], "id")?;
    // What came of it is written when the last byte is.
    wait_for("the end of the recording", LINK_LIMIT, async || {
        let shown = stage.ask(Person::Customer, &["recording", "show", &session]).await?;
        anyhow::ensure!(!shown["digest"].is_null(), "{shown}");
        Ok(())
    })
    .await?;
    stage.cloudlink(Person::Customer, &["support", "show", &session], Expect::Success).await?;
    stage.cloudlink(Person::Customer, &["recording", "play", &session, "--at-once"], Expect::Success).await?;

    chapter(
        "The receipt",
        "When a grant is over, its customer has one signed document of everything that was done under it.",
    );
    let grants = stage.ask(Person::Customer, &["grant", "list"]).await?;
    let grant = text(&grants[0], "id")?;
    stage.cloudlink(Person::Customer, &["grant", "revoke", &grant], Expect::Success).await?;
    wait_for("the receipt", LINK_LIMIT, async || stage.ask(Person::Customer, &["receipt", "show", &grant]).await)
        .await?;
    let receipt = stage.path("receipt.jws");
    let show = ["receipt", "show", &grant, "--output", &shown(&receipt)?];
    stage.cloudlink(Person::Customer, &show, Expect::Success).await?;
    Ok(receipt)
}
