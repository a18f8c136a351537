//! `POST /auth/session`: trades what proves who somebody is for a token that calls the API. The first administrator's token is good
//! for one such trade.

use std::time::Duration;

use axum::extract::State;
use axum::response::IntoResponse;
use cloudlink_proto::ids::{PersonId, TokenId};
use http::{Extensions, StatusCode};
use serde::Deserialize;
use serde_json::json;

use crate::http::Context;
use crate::http::auth::counted_address;
use crate::http::problem::{Kind, Problem, respond_as_problem};
use crate::http::request::{Json, NoQuery};
use crate::http::sign_in::{Attempt, sign_in_off};
use crate::http::v1::token::create::TokenCreated;
use crate::model::audit::{Actor, PLATFORM, Subject};
use crate::model::new_id;
use crate::model::token::Kind as TokenKind;
use crate::secret::{Purpose, Token, TokenHash};
use crate::store::audit::audit_append;
use crate::store::person::person_show;
use crate::store::token::{Bootstrap, NewToken, bootstrap_use, token_create_of_kind};
use crate::store::{StoreError, Visibility};

/// How long the first administrator's session is valid: there may be no other way in yet.
const FIRST_SESSION: Duration = Duration::from_secs(90 * 24 * 3600);

#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SessionCreate {
    /// The first administrator's, `clb_…`. It works once.
    bootstrap_token: Option<String>,
    /// Of the OpenID provider, for the client of command lines (`GET /auth/config`). It works once, while it is new.
    id_token: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RouteError {
    #[error("nothing to trade, or more than one thing")]
    NotOne,
    #[error("no such token")]
    Unknown,
    #[error("the token was used before")]
    UsedUp,
    #[error(transparent)]
    Refused(#[from] Problem),
    #[error(transparent)]
    Store(#[from] StoreError),
}

respond_as_problem!(RouteError);

impl From<RouteError> for Problem {
    fn from(error: RouteError) -> Self {
        match error {
            RouteError::NotOne => Self::bad_request("The body must hold one of `bootstrap_token` and `id_token`."),
            RouteError::Unknown => {
                let detail = "There is no such token, or it has expired. Look for the one that is in admin.token now.";
                Self::new(Kind::SignInFailed, detail)
            }
            RouteError::UsedUp => Self::new(
                Kind::TokenUsedUp,
                "This token was traded for a session before. If that was not you, somebody else is administrator: revoke its \
                 tokens. docs/SIGN-IN.md says how to get another one.",
            ),
            RouteError::Refused(problem) => problem,
            RouteError::Store(error) => error.into(),
        }
    }
}

/// Sign in from the command line
#[utoipa::path(post, path = "/auth/session", operation_id = "auth_session", tag = "auth", request_body = SessionCreate,
    responses((status = 201, body = TokenCreated)))]
#[tracing::instrument(name = "http.auth.session", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    extensions: Extensions,
    _: NoQuery,
    Json(request): Json<SessionCreate>,
) -> Result<impl IntoResponse, RouteError> {
    let attempt = Attempt::begin(&context, counted_address(&extensions)).await?;
    let traded = match (request.bootstrap_token, request.id_token) {
        (Some(token), None) => {
            let traded = bootstrap(&context, &token).await;
            if matches!(traded, Err(RouteError::Unknown | RouteError::UsedUp)) {
                attempt.count(None).await?;
                context.metrics.sign_ins.with_label_values(&["failed"]).inc();
            }
            let traded = traded?;
            context.metrics.sign_ins.with_label_values(&["succeeded"]).inc();
            traded
        }
        (None, Some(id_token)) => {
            let sign_in = context.sign_in.as_ref().ok_or_else(sign_in_off)?;
            let identity = sign_in.provider.verify_cli(&id_token).await;
            let (created, secret) = attempt.finish(sign_in, &id_token, identity, TokenKind::Session).await?;
            TokenCreated { created, token: secret.expose().to_owned() }
        }
        (None, None) | (Some(_), Some(_)) => return Err(RouteError::NotOne),
    };
    Ok((StatusCode::CREATED, Json(traded)))
}

async fn bootstrap(context: &Context, token: &str) -> Result<TokenCreated, RouteError> {
    let hash = TokenHash::of_presented(Purpose::Bootstrap, token).ok_or(RouteError::Unknown)?;
    let mut transaction = context.store.begin(Visibility::All).await?;
    let person = match bootstrap_use(&mut transaction, hash).await? {
        Bootstrap::Used { person, .. } => person,
        Bootstrap::UsedUp { token, person } => {
            let subject = Subject::new("token", token.as_uuid());
            let details = json!({"person_id": person.as_uuid(), "reason": "used_up"});
            let actor = Actor::Server { name: "cloudlinkd".to_owned() };
            audit_append(&mut transaction, PLATFORM, &actor, "token.refused", subject, details).await?;
            context.store.commit(transaction).await?;
            return Err(RouteError::UsedUp);
        }
        Bootstrap::Unknown => return Err(RouteError::Unknown),
    };
    let name = person_show(&mut transaction, person).await?.ok_or(RouteError::Unknown)?.name;
    let actor = Actor::Person { id: person.as_uuid(), name };
    let secret = Token::generate(Purpose::Api);
    let new = session(person, "first session", &secret, FIRST_SESSION);
    let created = token_create_of_kind(&mut transaction, TokenKind::Session, new).await?;
    let details = json!({"name": created.name, "person_id": created.person_id, "by": TokenKind::Bootstrap.name()});
    let subject = Subject::new("token", created.id);
    audit_append(&mut transaction, PLATFORM, &actor, "token.created", subject, details).await?;
    context.store.commit(transaction).await?;
    Ok(TokenCreated { created, token: secret.expose().to_owned() })
}

fn session<'a>(person: PersonId, name: &'a str, secret: &Token, expires_in: Duration) -> NewToken<'a> {
    let id = TokenId::from_uuid(new_id());
    NewToken { id, person, name, secret: secret.hash(), expires_in, not_after: None, scopes: None }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::json;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::Settings;
    use crate::http::problem::Kind;
    use crate::http::testing::Scene;
    use crate::model::audit::PLATFORM;
    use crate::secret::{Purpose, Token};
    use crate::store::Visibility;
    use crate::store::first_admin::{first_admin_create, first_admin_reset};

    /// A scene whose administrator has not signed in yet, and its token.
    async fn scene(pool: PgPoolOptions, database: PgConnectOptions) -> (Scene, Token) {
        let settings = Settings { failures_burst: 3, ..Settings::default() };
        let scene = Scene::with_settings(pool, database, settings).await;
        sqlx::raw_sql(
            "delete from api_tokens where person_id in (select id from people where role = 'admin');
                       delete from people where role = 'admin'",
        )
        .execute(&scene.root)
        .await
        .unwrap();
        let token = Token::generate(Purpose::Bootstrap);
        let mut transaction = scene.store.begin(Visibility::All).await.unwrap();
        assert!(first_admin_create(&mut transaction, token.hash()).await.unwrap());
        scene.store.commit(transaction).await.unwrap();
        (scene, token)
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn the_first_administrators_token_works_once(pool: PgPoolOptions, database: PgConnectOptions) {
        let (scene, token) = scene(pool, database).await;
        let trade = |token: &Token| scene.post("/auth/session").json(json!({"bootstrap_token": token.expose()})).send();
        // It calls nothing by itself.
        let call = scene.get("/me").header("authorization", &format!("Bearer {}", token.expose()));
        call.send().await.expect_problem(Kind::Unauthenticated);
        let made = trade(&token).await.expect(StatusCode::CREATED);
        assert_eq!(made["kind"], "session");
        let call = scene.get("/me").header("authorization", &format!("Bearer {}", made["token"].as_str().unwrap()));
        let me = call.send().await.expect(StatusCode::OK);
        assert_eq!((&me["role"], &me["token_id"]), (&json!("admin"), &made["id"]));
        trade(&token).await.expect_problem(Kind::TokenUsedUp);
        let refused = scene.audited(PLATFORM).await;
        assert_eq!(refused, ["person.created", "token.created", "token.refused"]);
        // Whoever guesses is stopped.
        trade(&Token::generate(Purpose::Bootstrap)).await.expect_problem(Kind::SignInFailed);
        trade(&Token::generate(Purpose::Bootstrap)).await.expect_problem(Kind::TooManyRequests);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn of_two_who_show_it_at_once_one_is_let_in(pool: PgPoolOptions, database: PgConnectOptions) {
        let (scene, token) = scene(pool, database).await;
        let trade = || scene.post("/auth/session").json(json!({"bootstrap_token": token.expose()})).send();
        let (one, other) = tokio::join!(trade(), trade());
        let mut statuses = [one.status, other.status];
        statuses.sort();
        assert_eq!(statuses, [StatusCode::CREATED, StatusCode::FORBIDDEN]);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn who_has_the_host_gets_another_one(pool: PgPoolOptions, database: PgConnectOptions) {
        let (scene, token) = scene(pool, database).await;
        let trade = |token: &Token| scene.post("/auth/session").json(json!({"bootstrap_token": token.expose()})).send();
        trade(&token).await.expect(StatusCode::CREATED);
        let again = Token::generate(Purpose::Bootstrap);
        let mut transaction = scene.store.begin(Visibility::All).await.unwrap();
        assert!(first_admin_reset(&mut transaction, again.hash()).await.unwrap());
        scene.store.commit(transaction).await.unwrap();
        trade(&again).await.expect(StatusCode::CREATED);
        trade(&again).await.expect_problem(Kind::TokenUsedUp);
    }
}
