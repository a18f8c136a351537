//! Where a person is mailed to.

use clap::Args;

use super::Context;
use crate::failure::Failure;
use crate::output::{Cell, Table};
use crate::resolve;

#[derive(Debug, Args)]
pub(crate) struct Email {
    /// Name or id; `me`: your own
    person: String,
    /// The mail address from now on; without it, the present one is shown
    address: Option<String>,
    /// Send no mail any more
    #[arg(long, conflicts_with = "address")]
    remove: bool,
}

impl Email {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        let id = if self.person == "me" {
            client.me().await?.value.id
        } else {
            resolve::person(&client, &self.person).await?.value.id
        };
        let answer = match (&self.address, self.remove) {
            (None, false) => client.email(id).await?,
            (address, _) => client.email_set(id, address.as_deref()).await?,
        };
        context.show(&answer, || {
            let mut table = Table::record();
            table.field("mail to", Cell::or_none(answer.value.email.clone()));
            table
        })
    }
}
