//! Who is calling, and whether the route is open to it. [`admit`] stands before every handler; the table in `router` says
//! with which roles.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use axum::extract::{ConnectInfo, FromRequestParts, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use cloudlink_proto::ids::{PersonId, TenantId, TokenId};
use http::request::Parts;
use http::uri::Authority;
use http::{Extensions, HeaderMap, HeaderValue, Method, header};
use tokio::time::Instant;
use uuid::Uuid;

use super::Context;
use super::limit::Exceeded;
use super::problem::{Kind, Problem};
use crate::model::api_scope::ApiScope;
use crate::model::audit::{Actor, PLATFORM};
use crate::model::person::Role;
use crate::model::token::{Kind as TokenKind, Session};
use crate::secret::{Purpose, TokenHash};
use crate::store::token::{Reign, token_authenticate};
use crate::store::{Visibility, single};

/// The cookie that a browser signs in with. The prefix has browsers keep it to this host, and to https.
pub(crate) const COOKIE: &str = "__Host-cloudlink";

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

    /// Whose tokens it rules.
    pub(crate) fn reign(&self) -> Reign {
        match (self.session.role, self.session.tenant) {
            (Role::Admin, _) => Reign::Everybody,
            (Role::Tenant, Some(tenant)) if !self.session.is_service => Reign::Tenant(self.session.person, tenant),
            (Role::Operator | Role::Tenant, _) => Reign::Oneself(self.session.person),
        }
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

/// Who may call a route.
#[derive(Clone, Copy, Debug)]
pub(super) struct Admission {
    pub(super) roles: &'static [Role],
    /// `None`: any valid token will do.
    pub(super) scope: Option<ApiScope>,
}

/// Lets callers with one of the roles, and a token for the scope, through to the handler.
pub(super) async fn admit(
    State((context, admission)): State<(Context, Admission)>,
    mut request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let (address, secret) = (counted_address(request.extensions()), Presented::of(request.headers()));
    let caller = authenticate(&context, address, secret).await?;
    if caller.session.kind == TokenKind::Browser && changes_something(&request) && !is_same_origin(&request) {
        return Err(Problem::new(
            Kind::CrossSite,
            "A browser sent this, and did not say that it comes from our pages.",
        ));
    }
    if !admission.roles.contains(&caller.role()) {
        let role = caller.role().name();
        return Err(Problem::new(Kind::Forbidden, format!("Your role is {role}, and this route is not open to it.")));
    }
    if let Some(scope) = admission.scope.filter(|scope| !caller.session.allows(*scope)) {
        let detail = format!("This route needs a token with the scope `{}`; yours was made without it.", scope.name());
        return Err(Problem::new(Kind::ScopeRequired, detail));
    }
    context.limits.tokens.take(caller.token(), Instant::now()).map_err(too_many_requests)?;
    request.extensions_mut().insert(caller);
    Ok(next.run(request).await)
}

async fn authenticate(context: &Context, address: IpAddr, presented: Option<Presented>) -> Result<Caller, Problem> {
    context.limits.failures.look(address, Instant::now()).map_err(too_many_failures)?;
    let session = match presented {
        Some(presented) => presented.look_up(context).await?,
        None => None,
    };
    let Some(session) = session else {
        // Refused anyway, so whether this was the last that was free does not matter.
        let _ = context.limits.failures.take(address, Instant::now());
        return Err(unauthenticated());
    };
    Ok(Caller { session })
}

/// A token, and how it came.
#[derive(Clone, Copy, Debug)]
struct Presented {
    secret: TokenHash,
    is_cookie: bool,
}

impl Presented {
    /// Whoever sends a header means it: the cookie is then not looked at.
    fn of(headers: &HeaderMap) -> Option<Self> {
        if headers.contains_key(header::AUTHORIZATION) {
            return bearer_token(headers).map(|secret| Self { secret, is_cookie: false });
        }
        let secret = TokenHash::of_presented(Purpose::Api, cookie(headers, COOKIE)?)?;
        Some(Self { secret, is_cookie: true })
    }

    /// What was made for a browser comes in its cookie, and nothing else does.
    async fn look_up(self, context: &Context) -> Result<Option<Session>, Problem> {
        let session = single!(context.store, |connection| token_authenticate(connection, self.secret))?;
        Ok(session.filter(|session| (session.kind == TokenKind::Browser) == self.is_cookie))
    }
}

/// The hash of the token, if there is exactly one and it has the form of a token.
fn bearer_token(headers: &HeaderMap) -> Option<TokenHash> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| TokenHash::of_presented(Purpose::Api, token))?
}

/// The value of the one cookie of this name.
pub(crate) fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let all = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut values = all
        .flat_map(|text| text.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .filter_map(|(key, value)| (key == name).then_some(value));
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    Some(value)
}

/// A WebSocket begins as a GET, and browsers open one to whomever a page names.
fn changes_something(request: &Request) -> bool {
    !matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS)
        || request.headers().contains_key(header::UPGRADE)
}

/// Whether the browser says that one of our own pages made the request. Every browser that speaks TLS 1.3 says one or the other.
fn is_same_origin(request: &Request) -> bool {
    let headers = request.headers();
    // HTTP/2 names the host in the request's address.
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let host = host.or_else(|| request.uri().authority().map(Authority::as_str));
    let site = headers.get("sec-fetch-site");
    let origin = headers.get(header::ORIGIN);
    let is_ours = |origin: &HeaderValue| {
        let origin = origin.to_str().ok().and_then(|origin| origin.strip_prefix("https://"));
        host.is_some() && origin == host
    };
    match (site, origin) {
        (Some(site), Some(origin)) => site == "same-origin" && is_ours(origin),
        (Some(site), None) => site == "same-origin",
        (None, Some(origin)) => is_ours(origin),
        (None, None) => false,
    }
}

/// What failures are counted by. Whoever has one IPv6 address has its /64.
pub(crate) fn counted_address(extensions: &Extensions) -> IpAddr {
    let address = extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip().to_canonical());
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

pub(crate) fn too_many_failures(Exceeded(wait): Exceeded) -> Problem {
    let detail = "Too many requests without a valid token came from your address. Wait, then use a valid one.";
    Problem::new(Kind::TooManyRequests, detail).retry_after(wait)
}

fn too_many_requests(Exceeded(wait): Exceeded) -> Problem {
    Problem::new(Kind::TooManyRequests, "Your token is used too often. Wait as Retry-After says.").retry_after(wait)
}
