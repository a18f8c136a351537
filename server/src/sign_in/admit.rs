//! What a verified identity makes of the person here. All of it is one transaction: whoever is let in has its token by the
//! role that it has now, and whoever is not has none any more.

use aws_lc_rs::digest;
use cloudlink_proto::ids::{DeviceId, PersonId, TenantId, TokenId};
use data_encoding::HEXLOWER;
use serde_json::json;
use sqlx::PgConnection;

use super::{Identity, SignIn};
use crate::model::audit::{Actor, PLATFORM, Subject};
use crate::model::new_id;
use crate::model::opening::EndReason;
use crate::model::person::Role;
use crate::model::token::{Kind, Token};
use crate::secret::{self, Purpose, TokenHash};
use crate::store::audit::audit_append;
use crate::store::command::{CalledBack, Cancellation, command_cancel_in_txn, command_lock_in_txn};
use crate::store::opening::{Closing, opening_end_in_txn, opening_lock_in_txn};
use crate::store::sign_in::{
    Known, SignedIn, id_token_spend, person_create_signed_in, person_free_name, person_of_identity,
    person_shut_out_by_groups, person_update_signed_in, sign_in_lock, tenant_list_named,
};
use crate::store::token::{NewToken, token_create_of_kind, token_revoke_all};
use crate::store::{Store, StoreError, Visibility};

/// What the tokens of sign-ins are called.
const TOKEN_NAME: &str = "sign-in";

/// Why somebody whom the provider knows is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// In no group that means anything here.
    NoRole,
    /// In groups of several roles, or of several tenants.
    SeveralRoles,
    /// An administrator has shut it out.
    ShutOut,
    /// The ID token was traded before.
    Replayed,
}

impl Refusal {
    /// Name in the audit log.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::NoRole => "no_role",
            Self::SeveralRoles => "several_roles",
            Self::ShutOut => "shut_out",
            Self::Replayed => "replayed",
        }
    }
}

/// What came of it, and who is to be told.
#[derive(Debug)]
pub(crate) struct Admission {
    pub(crate) outcome: Result<(Token, secret::Token), Refusal>,
    /// May do less than before.
    pub(crate) changed: Option<PersonId>,
    pub(crate) called_back: Vec<CalledBack>,
    pub(crate) ended: Vec<DeviceId>,
}

impl Admission {
    fn of(outcome: Result<(Token, secret::Token), Refusal>) -> Self {
        Self { outcome, changed: None, called_back: Vec::new(), ended: Vec::new() }
    }
}

/// Lets somebody in, or keeps it out.
pub(crate) async fn admit(
    store: &Store,
    sign_in: &SignIn,
    identity: &Identity,
    id_token: TokenHash,
    kind: Kind,
) -> Result<Admission, StoreError> {
    let mut transaction = store.begin(Visibility::All).await?;
    let admission = admit_in_txn(&mut transaction, sign_in, identity, id_token, kind).await?;
    store.commit(transaction).await?;
    Ok(admission)
}

async fn admit_in_txn(
    connection: &mut PgConnection,
    sign_in: &SignIn,
    identity: &Identity,
    id_token: TokenHash,
    kind: Kind,
) -> Result<Admission, StoreError> {
    sign_in_lock(connection).await?;
    let known = person_of_identity(connection, &identity.issuer, &identity.subject).await?;
    if !id_token_spend(connection, id_token, identity.expires_at).await? {
        return refuse(connection, identity, known.as_ref(), Refusal::Replayed).await;
    }
    let (role, tenant) = match role(connection, sign_in, identity).await? {
        Ok(role) => role,
        Err(refusal) => return refuse(connection, identity, known.as_ref(), refusal).await,
    };
    if known.as_ref().is_some_and(|known| !known.active && !known.shut_out_by_groups) {
        return refuse(connection, identity, known.as_ref(), Refusal::ShutOut).await;
    }
    let name = name(connection, identity, tenant, known.as_ref()).await?;
    let now = SignedIn { name: &name, email: identity.email.as_deref(), role, tenant };
    let mut admission = Admission::of(Err(Refusal::NoRole));
    let person = match &known {
        None => create(connection, identity, now).await?,
        Some(known) => {
            update(connection, known, now, &mut admission).await?;
            known.id
        }
    };
    let secret = secret::Token::generate(Purpose::Api);
    let id = TokenId::from_uuid(new_id());
    let expires_in = sign_in.session_for;
    let new =
        NewToken { id, person, name: TOKEN_NAME, secret: secret.hash(), expires_in, not_after: None, scopes: None };
    let token = token_create_of_kind(connection, kind, new).await?;
    let details = json!({"person_id": token.person_id, "kind": token.kind, "role": role.name()});
    let actor = Actor::Person { id: person.as_uuid(), name: name.clone() };
    let (subject, chain) = (Subject::new("token", token.id), tenant.unwrap_or(PLATFORM));
    audit_append(connection, chain, &actor, "sign_in.succeeded", subject, details).await?;
    admission.outcome = Ok((token, secret));
    Ok(admission)
}

/// The one role that the groups stand for. An operator who were also a tenant's approver would let itself in.
async fn role(
    connection: &mut PgConnection,
    sign_in: &SignIn,
    identity: &Identity,
) -> Result<Result<(Role, Option<TenantId>), Refusal>, StoreError> {
    let claimed = sign_in.groups.claimed(&identity.groups);
    let tenants: Vec<_> = claimed.tenants.into_iter().collect();
    let tenants = if tenants.is_empty() { Vec::new() } else { tenant_list_named(connection, &tenants).await? };
    let mut roles: Vec<_> = tenants.into_iter().map(|tenant| (Role::Tenant, Some(tenant))).collect();
    roles.extend(claimed.admin.then_some((Role::Admin, None)));
    roles.extend(claimed.operator.then_some((Role::Operator, None)));
    Ok(match roles.as_slice() {
        [] => Err(Refusal::NoRole),
        [role] => Ok(*role),
        _ => Err(Refusal::SeveralRoles),
    })
}

/// Names are for people to read and unique: who comes second to a name has its address there, or a part of who it is.
async fn name(
    connection: &mut PgConnection,
    identity: &Identity,
    tenant: Option<TenantId>,
    known: Option<&Known>,
) -> Result<String, StoreError> {
    let mut names = vec![identity.name.clone()];
    names.extend(identity.email.clone().filter(|email| email.chars().count() <= 128));
    let whole = digest::digest(&digest::SHA256, format!("{}\0{}", identity.issuer, identity.subject).as_bytes());
    let short: String = identity.name.chars().take(100).collect();
    let hex = HEXLOWER.encode(whole.as_ref().get(..8).unwrap_or_default());
    names.push(format!("{short} ({hex})"));
    let free = person_free_name(connection, &names, tenant, known.map(|known| known.id)).await?;
    // Somebody has taken even that: it is as unique as the hash of it all.
    Ok(free.unwrap_or_else(|| HEXLOWER.encode(whole.as_ref())))
}

async fn create(connection: &mut PgConnection, identity: &Identity, now: SignedIn<'_>) -> Result<PersonId, StoreError> {
    let id = PersonId::from_uuid(new_id());
    person_create_signed_in(connection, id, &identity.issuer, &identity.subject, now).await?;
    let details = json!({"name": now.name, "role": now.role.name(), "by": "sign_in"});
    let subject = Subject::new("person", id.as_uuid());
    audit_append(connection, now.tenant.unwrap_or(PLATFORM), &server(), "person.created", subject, details).await?;
    Ok(id)
}

async fn update(
    connection: &mut PgConnection,
    known: &Known,
    now: SignedIn<'_>,
    admission: &mut Admission,
) -> Result<(), StoreError> {
    let is_other = (known.role, known.tenant) != (now.role, now.tenant);
    if is_other {
        cut(connection, known, admission).await?;
    }
    person_update_signed_in(connection, known.id, now).await?;
    let is_same = !is_other && known.active && known.name == now.name && known.email.as_deref() == now.email;
    if is_same {
        return Ok(());
    }
    let details = json!({
        "name": now.name, "role": now.role.name(), "tenant_id": now.tenant.map(TenantId::as_uuid), "active": true,
        "before": {"name": known.name, "role": known.role.name(), "tenant_id": known.tenant.map(TenantId::as_uuid),
                   "active": known.active},
        "by": "sign_in",
    });
    let subject = Subject::new("person", known.id.as_uuid());
    // Each tenant that it concerns sees it: the one that it leaves, and the one that it comes to.
    let (before, after) = (known.tenant.unwrap_or(PLATFORM), now.tenant.unwrap_or(PLATFORM));
    audit_append(connection, before, &server(), "person.updated", subject, details.clone()).await?;
    if after != before {
        audit_append(connection, after, &server(), "person.updated", subject, details).await?;
    }
    Ok(())
}

/// Whoever is not let in has lost what it had, except when it was the token that was no good.
async fn refuse(
    connection: &mut PgConnection,
    identity: &Identity,
    known: Option<&Known>,
    refusal: Refusal,
) -> Result<Admission, StoreError> {
    let mut admission = Admission::of(Err(refusal));
    if let Some(known) = known
        && matches!(refusal, Refusal::NoRole | Refusal::SeveralRoles)
    {
        cut(connection, known, &mut admission).await?;
        person_shut_out_by_groups(connection, known.id).await?;
    }
    let id = known.map(|known| known.id.as_uuid()).unwrap_or_default();
    let chain = known.and_then(|known| known.tenant).unwrap_or(PLATFORM);
    let details = json!({"name": identity.name, "reason": refusal.name()});
    audit_append(connection, chain, &server(), "sign_in.refused", Subject::new("person", id), details).await?;
    Ok(admission)
}

/// Ends everything that the person has.
async fn cut(connection: &mut PgConnection, known: &Known, admission: &mut Admission) -> Result<(), StoreError> {
    admission.changed = Some(known.id);
    let open = command_lock_in_txn(connection, Cancellation::OfPerson(known.id)).await?;
    let openings = opening_lock_in_txn(connection, Closing::OfPerson(known.id)).await?;
    token_revoke_all(connection, known.id).await?;
    let (actor, code) = (server().to_json(), "operator_inactive");
    let message = "the operator who asked for it has another role, or none";
    admission.called_back = command_cancel_in_txn(connection, &open, actor.clone(), code, message).await?;
    admission.ended = opening_end_in_txn(connection, &openings, actor, EndReason::OperatorShutOut).await?;
    Ok(())
}

fn server() -> Actor {
    Actor::Server { name: "cloudlinkd".to_owned() }
}
