//! Every route, with the roles that may call it: [`table`] is the one place. What it says is enforced before the handler runs,
//! shown in the OpenAPI document as `x-roles` (and with `scope` as `x-scope`), and held against strangers by the tests at the bottom.

use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use tokio::time::Instant;
use tower_http::catch_panic::CatchPanicLayer;
use tracing::Instrument;
use utoipa::openapi::extensions::Extensions;
use utoipa::openapi::path::{Operation, Paths};
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::{ContentBuilder, InfoBuilder, OpenApi, OpenApiBuilder, Ref, RefOr, ResponseBuilder};
use utoipa::{PartialSchema, ToSchema};
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouter};
use utoipa_axum::routes;

use super::auth::Admission;
use super::problem::{Problem, ProblemDetails};
use super::traced::Traced;
use super::{BODY_BYTES_MAX, Context, auth, console, v1};
use crate::model::api_scope::ApiScope;
use crate::model::new_id;
use crate::model::person::Role::{self, Admin, Operator, Tenant};

/// The longest request id that is taken from a caller, in characters.
const REQUEST_ID_CHARS_MAX: usize = 64;
/// The route of a request that is for none.
pub(super) const UNMATCHED: &str = "unmatched";
static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Who may call what. A tenant's user sees its own tenant only; what an operator sees is up to the handler.
fn table(routes: Routes) -> Routes {
    routes
        .open(routes!(v1::auth::config::handler))
        .open(routes!(v1::auth::login::handler))
        .open(routes!(v1::auth::callback::handler))
        .open(routes!(v1::auth::session::handler))
        .admit(&[Admin, Operator, Tenant], routes!(v1::auth::logout::handler))
        .admit(&[Admin, Operator, Tenant], routes!(v1::me::show::handler))
        .admit(&[Admin, Operator, Tenant], routes!(v1::event::stream::handler))
        .admit(&[Admin], routes!(v1::tenant::create::handler))
        .admit(&[Admin], routes!(v1::tenant::list::handler))
        .admit(&[Admin, Tenant], routes!(v1::tenant::show::handler))
        .admit(&[Admin, Tenant], routes!(v1::tenant::update::handler))
        .admit(&[Admin, Tenant], routes!(v1::tenant::isolation_statement::handler))
        .admit(&[Admin, Tenant], routes!(v1::person::create::handler))
        .admit(&[Admin, Tenant], routes!(v1::person::list::handler))
        .admit(&[Admin, Tenant], routes!(v1::person::update::handler))
        .admit(&[Admin, Operator, Tenant], routes!(v1::person::email::show))
        .admit(&[Admin, Operator, Tenant], routes!(v1::person::email::set))
        .admit(&[Admin, Operator, Tenant], routes!(v1::token::create::handler))
        .admit(&[Admin, Operator, Tenant], routes!(v1::token::list::handler))
        .admit(&[Admin, Operator, Tenant], routes!(v1::token::revoke::handler))
        .admit(&[Admin, Tenant], routes!(v1::enrollment_token::create::handler))
        .admit(&[Admin, Tenant], routes!(v1::enrollment_token::list::handler))
        .admit(&[Admin, Operator, Tenant], routes!(v1::device::list::handler))
        .admit(&[Admin, Operator, Tenant], routes!(v1::device::show::handler))
        .admit(&[Admin, Tenant], routes!(v1::device::update::handler))
        .admit(&[Admin, Tenant], routes!(v1::device::revoke::handler))
        .admit(&[Admin, Tenant], routes!(v1::device::quarantine::handler))
        .admit(&[Admin, Tenant], routes!(v1::device::release::handler))
        .admit(&[Admin, Operator, Tenant], routes!(v1::device::drop::handler))
        .admit(&[Operator, Tenant], routes!(v1::device::metrics::handler))
        .admit(&[Operator, Tenant], routes!(v1::device::sample::handler))
        .admit(&[Operator, Tenant], routes!(v1::device::link_test::handler))
        .admit(&[Tenant], routes!(v1::device::scrape::handler))
        .admit(&[Admin, Operator, Tenant], routes!(v1::device::boot::handler))
        .admit(&[Admin, Operator, Tenant], routes!(v1::device::openvpn_profile::handler))
        .admit(&[Admin, Operator, Tenant], routes!(v1::group::create::handler))
        .admit(&[Admin, Operator, Tenant], routes!(v1::group::list::handler))
        .admit(&[Admin, Operator, Tenant], routes!(v1::group::show::handler))
        .admit(&[Admin, Operator, Tenant], routes!(v1::group::update::handler))
        .admit(&[Admin, Operator, Tenant], routes!(v1::group::delete::handler))
        .admit(&[Admin, Operator, Tenant], routes!(v1::transport_report::show::handler))
        .admit(&[Admin, Operator, Tenant], routes!(v1::network::show::handler))
        .admit(&[Admin, Tenant], routes!(v1::configuration::create::handler))
        .admit(&[Admin, Operator, Tenant], routes!(v1::configuration::show::list))
        .admit(&[Admin, Operator, Tenant], routes!(v1::configuration::show::handler))
        .admit(&[Admin, Tenant], routes!(v1::configuration::update::handler))
        .admit(&[Admin, Tenant], routes!(v1::configuration::update::rollback))
        .admit(&[Admin, Operator, Tenant], routes!(v1::configuration::show::versions))
        .admit(&[Admin, Operator, Tenant], routes!(v1::configuration::show::version))
        .admit(&[Admin, Operator, Tenant], routes!(v1::configuration::show::device))
        .admit(&[Admin, Operator, Tenant], routes!(v1::configuration::show::drift))
        .admit(&[Admin, Operator, Tenant], routes!(v1::configuration::schema::show))
        .admit(&[Admin], routes!(v1::configuration::schema::set))
        .admit(&[Tenant], routes!(v1::grant::create::handler))
        .admit(&[Admin, Operator, Tenant], routes!(v1::grant::list::handler))
        .admit(&[Admin, Operator, Tenant], routes!(v1::grant::show::handler))
        .admit(&[Admin, Tenant], routes!(v1::grant::receipt::handler))
        .admit(&[Tenant], routes!(v1::grant::revoke::handler))
        .admit(&[Tenant], routes!(v1::grant::extend::handler))
        .admit(&[Tenant], routes!(v1::signing_key::create::handler))
        .admit(&[Tenant], routes!(v1::signing_key::list::handler))
        .admit(&[Tenant], routes!(v1::signing_key::require::handler))
        .admit(&[Tenant], routes!(v1::signing_key::revoke::handler))
        .admit(&[Operator], routes!(v1::access_request::create::handler))
        .admit(&[Admin, Operator, Tenant], routes!(v1::access_request::list::handler))
        .admit(&[Admin, Operator, Tenant], routes!(v1::access_request::show::handler))
        .admit(&[Tenant], routes!(v1::access_request::approve::handler))
        .admit(&[Tenant], routes!(v1::access_request::deny::handler))
        .admit(&[Operator, Tenant], routes!(v1::access_request::withdraw::handler))
        .admit(&[Tenant], routes!(v1::access_policy::create::handler))
        .admit(&[Tenant], routes!(v1::access_policy::list::handler))
        .admit(&[Tenant], routes!(v1::access_policy::show::handler))
        .admit(&[Tenant], routes!(v1::access_policy::approve::handler))
        .admit(&[Tenant], routes!(v1::access_policy::revoke::handler))
        .admit(&[Operator], routes!(v1::command::create::handler))
        .admit(&[Admin, Operator, Tenant], routes!(v1::command::list::handler))
        .admit(&[Admin, Operator, Tenant], routes!(v1::command::show::handler))
        .admit(&[Operator, Tenant], routes!(v1::command::cancel::handler))
        .admit(&[Admin, Operator, Tenant], routes!(v1::command::event::handler))
        .admit(&[Operator], routes!(v1::rollout::plan::handler))
        .admit(&[Admin, Operator, Tenant], routes!(v1::rollout::list::handler))
        .admit(&[Admin, Operator, Tenant], routes!(v1::rollout::show::handler))
        .admit(&[Admin, Operator, Tenant], routes!(v1::rollout::execution::handler))
        .admit(&[Operator], routes!(v1::rollout::apply::handler))
        .admit(&[Operator, Tenant], routes!(v1::rollout::change::pause))
        .admit(&[Operator], routes!(v1::rollout::change::resume))
        .admit(&[Operator, Tenant], routes!(v1::rollout::change::cancel))
        .admit(&[Operator], routes!(v1::opening::create::handler))
        .admit(&[Admin, Operator, Tenant], routes!(v1::opening::list::handler))
        .admit(&[Admin, Operator, Tenant], routes!(v1::opening::show::handler))
        .admit(&[Operator, Tenant], routes!(v1::opening::close::handler))
        .admit(&[Admin, Operator, Tenant], routes!(v1::recording::list::handler))
        .admit(&[Admin, Operator, Tenant], routes!(v1::recording::show::handler))
        .admit(&[Admin, Operator, Tenant], routes!(v1::recording::content::handler))
        .admit(&[Operator], routes!(v1::support_session::create::handler))
        .admit(&[Admin, Operator, Tenant], routes!(v1::support_session::list::handler))
        .admit(&[Admin, Operator, Tenant], routes!(v1::support_session::show::handler))
        .admit(&[Operator, Tenant], routes!(v1::support_session::close::handler))
        .admit(&[Operator, Tenant], routes!(v1::support_session::stream::handler))
        .admit(&[Admin], routes!(v1::isolation_proof::create::handler))
        .admit(&[Admin, Operator], routes!(v1::isolation_proof::list::handler))
        .admit(&[Admin, Operator], routes!(v1::isolation_proof::show::handler))
        .admit(&[Admin], routes!(v1::status::show::handler))
        .admit(&[Admin, Operator], routes!(v1::node::list::handler))
        .admit(&[Admin, Operator], routes!(v1::node::show::handler))
        .admit(&[Admin], routes!(v1::node::drain::handler))
        .admit(&[Admin], routes!(v1::node::resume::handler))
        .admit(&[Admin], routes!(v1::storm_plan::show::handler))
        .admit(&[Admin, Tenant], routes!(v1::webhook::create::handler))
        .admit(&[Admin, Tenant], routes!(v1::webhook::list::handler))
        .admit(&[Admin, Tenant], routes!(v1::webhook::show::handler))
        .admit(&[Admin, Tenant], routes!(v1::webhook::disable::handler))
        .admit(&[Admin, Tenant], routes!(v1::webhook::rotate::handler))
        .admit(&[Admin, Tenant], routes!(v1::webhook::test::handler))
        .admit(&[Admin, Tenant], routes!(v1::webhook::delivery::handler))
        .admit(&[Tenant], routes!(v1::threshold::create::handler))
        .admit(&[Tenant], routes!(v1::threshold::list::handler))
        .admit(&[Tenant], routes!(v1::threshold::show::handler))
        .admit(&[Tenant], routes!(v1::threshold::update::handler))
        .admit(&[Tenant], routes!(v1::threshold::delete::handler))
        .admit(&[Tenant], routes!(v1::threshold::alert::handler))
        .admit(&[Admin, Tenant], routes!(v1::audit::list::handler))
        .admit(&[Admin, Tenant], routes!(v1::audit::export::handler))
}

/// The API, to be served on the people port.
pub fn router(context: Context) -> Router {
    let (api, document) = table(Routes::new(Some(context.clone()))).finish();
    let document = Bytes::from(serde_json::to_vec(&document).expect("the document is plain data"));
    let document = get(move || async move { ([(header::CONTENT_TYPE, "application/json")], document) });
    wrap(api.route("/openapi.json", document).fallback(console::serve), context)
}

/// Puts around the routes what holds for every request, known or not.
fn wrap(routes: Router<Context>, context: Context) -> Router {
    routes
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(from_fn_with_state(context.clone(), limit_time))
        .layer(CatchPanicLayer::new())
        .layer(from_fn_with_state(context.clone(), finish))
        .with_state(context)
}

/// The contract that [`router`] serves, as OpenAPI 3.1.
#[must_use]
pub fn openapi() -> OpenApi {
    table(Routes::new(None)).finish().1
}

/// Routes that cannot be added without saying who may call them.
struct Routes {
    /// None when only the document is asked for.
    context: Option<Context>,
    router: OpenApiRouter<Context>,
}

impl Routes {
    fn new(context: Option<Context>) -> Self {
        Self { context, router: OpenApiRouter::default() }
    }

    fn admit(self, roles: &'static [Role], (schemas, mut paths, methods): UtoipaMethodRouter<Context>) -> Self {
        let mut admission = Admission { roles, scope: None };
        for_operations(&mut paths, |method, operation| {
            let scope = scope::of(method, operation);
            // Several methods in one line would be held to the scope of the last.
            debug_assert!(admission.scope.is_none() || admission.scope == scope, "one line a method");
            admission.scope = scope;
            declare(operation, admission);
        });
        let methods = match &self.context {
            Some(context) => guard(methods, context.clone(), admission),
            None => methods,
        };
        Self { router: self.router.routes((schemas, paths, methods)), ..self }
    }

    /// A route that is there to find out who somebody is. It sees to its limits itself.
    fn open(self, (schemas, mut paths, methods): UtoipaMethodRouter<Context>) -> Self {
        for_operations(&mut paths, |_, operation| {
            operation
                .extensions
                .get_or_insert_default()
                .merge(Extensions::from_iter([("x-open", serde_json::json!(true))]));
            operation.security = Some(Vec::new());
            declare_problems(operation);
        });
        Self { router: self.router.routes((schemas, paths, methods)), ..self }
    }

    fn finish(self) -> (Router<Context>, OpenApi) {
        OpenApiRouter::with_openapi(frame()).nest("/api/v1", self.router).split_for_parts()
    }
}

fn guard(methods: MethodRouter<Context>, context: Context, admission: Admission) -> MethodRouter<Context> {
    methods.route_layer(from_fn_with_state((context, admission), auth::admit))
}

fn for_operations(paths: &mut Paths, mut visit: impl FnMut(&'static Method, &mut Operation)) {
    for item in paths.paths.values_mut() {
        let operations = [
            (&Method::GET, &mut item.get),
            (&Method::POST, &mut item.post),
            (&Method::PATCH, &mut item.patch),
            (&Method::PUT, &mut item.put),
            (&Method::DELETE, &mut item.delete),
        ];
        for (method, operation) in operations {
            if let Some(operation) = operation {
                visit(method, operation);
            }
        }
    }
}

/// Writes into the document what holds for every operation that is not open to all.
fn declare(operation: &mut Operation, Admission { roles, scope }: Admission) {
    let names: Vec<_> = roles.iter().map(|role| role.name()).collect();
    let scope = scope.map(ApiScope::name);
    let extensions = [("x-roles", serde_json::json!(names)), ("x-scope", serde_json::json!(scope))];
    operation.extensions.get_or_insert_default().merge(Extensions::from_iter(extensions));
    operation.security = Some(["token", "cookie"].map(|name| SecurityRequirement::new(name, [] as [&str; 0])).into());
    declare_problems(operation);
}

fn declare_problems(operation: &mut Operation) {
    let problem = RefOr::Ref(Ref::from_schema_name(ProblemDetails::name()));
    let content = ContentBuilder::new().schema(Some(problem)).build();
    let response = ResponseBuilder::new().description("Any error").content("application/problem+json", content).build();
    operation.responses.responses.insert("default".to_owned(), RefOr::T(response));
}

/// The document without its routes.
fn frame() -> OpenApi {
    let info = InfoBuilder::new().title("Cloudlink").version("1").description(Some("See docs/API.md.")).build();
    let token = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("clk_…").build();
    let components = utoipa::openapi::ComponentsBuilder::new()
        .schema(ProblemDetails::name(), ProblemDetails::schema())
        .security_scheme("token", SecurityScheme::Http(token))
        .security_scheme("cookie", SecurityScheme::ApiKey(ApiKey::Cookie(ApiKeyValue::new(auth::COOKIE))))
        .build();
    OpenApiBuilder::new().info(info).components(Some(components)).build()
}

/// Answers in time, whatever the handler waits for.
async fn limit_time(State(context): State<Context>, request: Request, next: Next) -> Response {
    match tokio::time::timeout(context.request_within, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Problem::unavailable().into_response(),
    }
}

/// The outermost layer: names the request, counts it, gives errors their shape, and sets the headers of every answer.
async fn finish(State(context): State<Context>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = request_id(request.headers());
    let route =
        request.extensions().get::<MatchedPath>().map_or_else(|| UNMATCHED.to_owned(), |path| path.as_str().to_owned());
    let (traced, request) = Traced::begin(&context.tracer, request, &route);
    let trace_id = traced.trace_id();
    let span = tracing::info_span!("http.request", method = %request.method(), route, request_id = id, trace_id);
    let mut response = async { Problem::render(next.run(request).await, &id) }.instrument(span).await;
    traced.end(&response, &id);
    set_headers(&mut response, &id);
    let class = format!("{}xx", response.status().as_u16() / 100);
    context.metrics.requests.with_label_values(&[route.as_str(), &class]).inc();
    context.metrics.request_seconds.with_label_values(&[&route]).observe(started.elapsed().as_secs_f64());
    response
}

/// The caller's own id, if it can be logged and echoed without harm.
fn request_id(headers: &HeaderMap) -> String {
    let is_sane = |id: &&str| {
        (1..=REQUEST_ID_CHARS_MAX).contains(&id.len())
            && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    };
    let given = headers.get(&REQUEST_ID).and_then(|id| id.to_str().ok()).filter(is_sane);
    given.map_or_else(|| new_id().to_string(), str::to_owned)
}

fn set_headers(response: &mut Response, request_id: &str) {
    let is_of_console = response.extensions().get::<console::Served>().is_some();
    let headers = response.headers_mut();
    let request_id = HeaderValue::from_str(request_id).expect("checked, or a UUID");
    headers.insert(REQUEST_ID.clone(), request_id);
    for (name, value) in [
        (header::CACHE_CONTROL, "no-store"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::STRICT_TRANSPORT_SECURITY, "max-age=31536000"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ] {
        // The console says for itself what may be kept, and what its pages may do.
        if !is_of_console || !headers.contains_key(&name) {
            headers.insert(name, HeaderValue::from_static(value));
        }
    }
}

mod scope;
#[cfg(test)]
mod tests;
