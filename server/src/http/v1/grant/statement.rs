//! Grants that the tenant has signed itself: what is stored is what was signed, and nothing else.

use cloudlink_certs::{GrantStatement, GrantStatementError, PublicKey};
use cloudlink_proto::ids::{SigningKeyId, TenantId};
use sqlx::PgConnection;
use time::Duration;

use crate::clock;
use crate::http::problem::{Kind, Problem};
use crate::model::grant::Grant;
use crate::model::signing_key::difference;
use crate::store::signing_key::signing_key_active_in_txn;

/// How much the clock of whoever signs may be ahead of ours.
const LEEWAY: Duration = Duration::minutes(2);

/// A statement that one of the tenant's keys has signed.
#[derive(Debug)]
pub(crate) struct Signed {
    pub(crate) text: String,
    pub(crate) statement: GrantStatement,
    key: SigningKeyId,
}

impl Signed {
    /// Reads a statement. Its key is not revoked before the end of this transaction.
    pub(crate) async fn open(connection: &mut PgConnection, tenant: TenantId, text: String) -> Result<Self, Problem> {
        let active = signing_key_active_in_txn(connection, tenant).await?;
        let keys: Vec<PublicKey> = active.iter().map(|active| active.key.clone()).collect();
        let (statement, id) = GrantStatement::open(&text, &keys).map_err(|error| not_taken(&error))?;
        let key = active.iter().find(|active| cloudlink_certs::KeyId::of(&active.key) == id);
        let key = key.map(|active| active.id).ok_or_else(Problem::not_found)?;
        let now = clock::now();
        if statement.tenant != tenant.as_uuid() {
            return Err(not_taken(&GrantStatementError::OtherTenant));
        }
        if statement.signed_at > now + LEEWAY {
            return Err(not_taken(&GrantStatementError::SignedLater { signed_at: statement.signed_at, now }));
        }
        if statement.ends_at <= now {
            return Err(not_taken(&GrantStatementError::Ended { ends_at: statement.ends_at, now }));
        }
        Ok(Self { text, statement, key })
    }

    /// For the row of the grant.
    pub(crate) fn stored(&self) -> (&str, SigningKeyId) {
        (&self.text, self.key)
    }

    /// Refuses a row that says something else than what was signed.
    pub(crate) fn check(&self, grant: &Grant) -> Result<(), Problem> {
        match difference(grant, &self.statement) {
            None => Ok(()),
            Some(member) => Err(Problem::unprocessable(format!(
                "The signed statement says something else than the grant would: see its `{member}`. Sign what is to be granted."
            ))),
        }
    }
}

/// What is said to whoever gives, or lengthens, a grant that must be signed and is not.
pub(crate) fn unsigned() -> Problem {
    Problem::new(
        Kind::GrantUnsigned,
        "Your tenant's grants must be signed: give a `statement` (`cloudlink grant create --sign-with key.pem`, see docs/SIGNED-GRANTS.md).",
    )
}

fn not_taken(error: &GrantStatementError) -> Problem {
    let why = std::error::Error::source(error).map_or_else(String::new, |why| format!(": {why}"));
    Problem::unprocessable(format!("`statement` is not taken: {error}{why}."))
}
