//! Who is calling, and whether the route is open to it. [`admit`] stands before every handler; the table in `router` says
//! with which roles.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use axum::extract::{ConnectInfo, FromRequestParts, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use cloudlink_proto::ids::{PersonId, TenantId, TokenId};
use http::request::Parts;
use http::{HeaderMap, header};
use tokio::time::Instant;
use uuid::Uuid;

use super::Context;
use super::limit::Exceeded;
use super::problem::{Kind, Problem};
use crate::model::audit::{Actor, PLATFORM};
use crate::model::person::Role;
use crate::model::token::Session;
use crate::secret::{Purpose, TokenHash};
use crate::store::Visibility;
use crate::store::token::token_authenticate;

/// Somebody with a valid token, on a route that is open to its role.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    session: Session,
}

impl Caller {
    pub(crate) fn session(&self) -> &Session {
        &self.session
    }

    pub(crate) fn person(&self) -> PersonId {
        self.session.person
    }

    pub(crate) fn token(&self) -> TokenId {
        self.session.token
    }

    pub(crate) fn role(&self) -> Role {
        self.session.role
    }

    /// The own tenant of a tenant's user.
    pub(crate) fn tenant(&self) -> Option<TenantId> {
        self.session.tenant
    }

    /// The rows that this caller may see at all.
    pub(crate) fn visibility(&self) -> Visibility {
        match self.session.tenant {
            Some(tenant) => Visibility::Tenant(tenant),
            None => Visibility::All,
        }
    }

    /// The chain of the audit log for what this caller does to itself.
    pub(crate) fn chain(&self) -> TenantId {
        self.session.tenant.unwrap_or(PLATFORM)
    }

    pub(crate) fn actor(&self) -> Actor {
        Actor::Person { id: self.session.person.as_uuid(), name: self.session.name.clone() }
    }

    /// The operator's id, when only what names it may be seen.
    pub(crate) fn operator(&self) -> Option<Uuid> {
        (self.session.role == Role::Operator).then(|| self.session.person.as_uuid())
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        // Fails closed on a route that the table does not have.
        parts.extensions.get().cloned().ok_or_else(unauthenticated)
    }
}

/// Lets callers with one of the roles through to the handler.
pub(super) async fn admit(
    State((context, roles)): State<(Context, &'static [Role])>,
    mut request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let (address, secret) = (counted_address(&request), bearer_token(request.headers()));
    let caller = authenticate(&context, address, secret).await?;
    if !roles.contains(&caller.role()) {
        let role = caller.role().name();
        return Err(Problem::new(Kind::Forbidden, format!("Your role is {role}, and this route is not open to it.")));
    }
    context.limits.tokens.take(caller.token(), Instant::now()).map_err(too_many_requests)?;
    request.extensions_mut().insert(caller);
    Ok(next.run(request).await)
}

async fn authenticate(context: &Context, address: IpAddr, secret: Option<TokenHash>) -> Result<Caller, Problem> {
    context.limits.failures.look(address, Instant::now()).map_err(too_many_failures)?;
    let session = match secret {
        Some(secret) => token_authenticate(&mut *context.store.connection().await?, secret).await?,
        None => None,
    };
    let Some(session) = session else {
        // Refused anyway, so whether this was the last that was free does not matter.
        let _ = context.limits.failures.take(address, Instant::now());
        return Err(unauthenticated());
    };
    Ok(Caller { session })
}

/// The hash of the token, if there is exactly one and it has the form of a token.
fn bearer_token(headers: &HeaderMap) -> Option<TokenHash> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| TokenHash::of_presented(Purpose::Api, token))?
}

/// What failures are counted by. Whoever has one IPv6 address has its /64.
fn counted_address(request: &Request) -> IpAddr {
    let address = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip().to_canonical());
    match address.unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED)) {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
    }
}

fn unauthenticated() -> Problem {
    let detail =
        "The token is missing, unknown, expired or revoked. Send `Authorization: Bearer clk_…`, or log in again.";
    Problem::new(Kind::Unauthenticated, detail)
}

fn too_many_failures(Exceeded(wait): Exceeded) -> Problem {
    let detail = "Too many requests without a valid token came from your address. Wait, then use a valid one.";
    Problem::new(Kind::TooManyRequests, detail).retry_after(wait)
}

fn too_many_requests(Exceeded(wait): Exceeded) -> Problem {
    Problem::new(Kind::TooManyRequests, "Your token is used too often. Wait as Retry-After says.").retry_after(wait)
}
