//! `GET /devices`: newest first.

use axum::extract::State;
use cloudlink_proto::ids::TenantId;
use uuid::Uuid;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::page::{Page, Window};
use crate::http::problem::Problem;
use crate::http::request::{Json, Query};
use crate::http::selector::resolve;
use crate::model::device::{Device, Labels};
use crate::model::selector::{Draft, Selector, SelectorError};
use crate::store::device::{DeviceFilter, device_list};

/// For the document only: the parser knows no parameter that may come more than once.
#[derive(Debug, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what is read from pairs")]
pub(crate) struct DeviceQuery {
    /// Only devices that this selector fits, as in `site=north,role in (a,b),!retired,@group` (docs/ACCESS.md). Never empty.
    selector: Option<String>,
    /// `key:value`; repeat it for devices that have all of several labels.
    #[param(style = Form, explode)]
    label: Option<Vec<String>>,
    /// Only devices that have a live link, or only those that have none.
    linked: Option<bool>,
    /// Only devices that ought to be there and are neither linked nor polling, or only the others.
    silent: Option<bool>,
    /// Only devices that are in quarantine, or only those that are not.
    quarantined: Option<bool>,
    /// The exact name.
    name: Option<String>,
    /// With which the name begins, in the same case.
    name_prefix: Option<String>,
    tenant_id: Option<Uuid>,
    limit: Option<u32>,
    cursor: Option<String>,
}

/// Devices
#[utoipa::path(get, path = "/devices", operation_id = "device_list", tag = "devices", params(DeviceQuery),
    responses((status = 200, body = Page<Device>)))]
#[tracing::instrument(name = "http.device.list", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Query(pairs): Query<Vec<(String, String)>>,
) -> Result<Json<Page<Device>>, Problem> {
    let Asked { mut filter, draft, window } = parse(pairs)?;
    let mut transaction = context.store.begin(caller.visibility()).await?;
    if let Some(draft) = draft {
        let selector = resolve(&mut transaction, caller.tenant(), draft).await?.map_err(not_allowed)?;
        filter.selector = Some(match filter.selector {
            Some(labels) => selector.and(&labels).map_err(not_allowed)?,
            None => selector,
        });
    }
    let devices = device_list(&mut transaction, &filter, window.after, window.fetch_limit()).await?;
    Ok(Json(window.page(devices, |device| (device.enrolled_at, device.id))))
}

/// What the query says. The filter has the labels that are asked for one by one.
struct Asked {
    filter: DeviceFilter,
    draft: Option<Draft>,
    window: Window,
}

fn parse(pairs: Vec<(String, String)>) -> Result<Asked, Problem> {
    let (mut filter, mut labels, mut draft) = (DeviceFilter::default(), Labels::default(), None);
    let (mut limit, mut cursor) = (None, None);
    for (key, value) in pairs {
        let is_first = match key.as_str() {
            "label" => {
                let (key, value) = value.split_once(':').ok_or_else(|| malformed("label"))?;
                // The same key with two values fits no device: better said than shown as an empty list.
                labels.0.insert(key.to_owned(), value.to_owned()).is_none()
            }
            "selector" => draft.replace(Draft::parse(&value).map_err(not_allowed)?).is_none(),
            "linked" => filter.linked.replace(value.parse().map_err(|_| malformed("linked"))?).is_none(),
            "silent" => filter.silent.replace(value.parse().map_err(|_| malformed("silent"))?).is_none(),
            "quarantined" => filter.quarantined.replace(value.parse().map_err(|_| malformed("quarantined"))?).is_none(),
            "name" if !value.contains('\0') => filter.name.replace(value).is_none(),
            "name_prefix" if !value.contains('\0') => filter.name_prefix.replace(value).is_none(),
            "tenant_id" => {
                let id: TenantId = value.parse().map_err(|_| malformed("tenant_id"))?;
                filter.tenant.replace(id).is_none()
            }
            "limit" => limit.replace(value.parse().map_err(|_| malformed("limit"))?).is_none(),
            "cursor" => cursor.replace(value).is_none(),
            _ => return Err(Problem::bad_request("The query has a parameter that this route does not know.")),
        };
        if !is_first {
            return Err(Problem::bad_request(format!("`{key}` comes more than once.")));
        }
    }
    labels.check().map_err(|error| Problem::bad_request(format!("`label` is not allowed: {error}.")))?;
    if !labels.0.is_empty() {
        filter.selector = Some(Selector::try_from(&labels).map_err(not_allowed)?);
    }
    Ok(Asked { filter, draft, window: Window::new(limit, cursor.as_deref())? })
}

fn not_allowed(error: SelectorError) -> Problem {
    Problem::bad_request(format!("`selector` is not allowed: {error}."))
}

fn malformed(parameter: &str) -> Problem {
    Problem::bad_request(format!("The parameter `{parameter}` is malformed."))
}

#[cfg(test)]
mod tests {
    use cloudlink_proto::ids::DeviceId;
    use http::StatusCode;
    use serde_json::json;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::problem::Kind;
    use crate::http::testing::{Scene, Somebody};
    use crate::model::new_id;

    async fn names(scene: &Scene, somebody: &Somebody, query: &str) -> Vec<String> {
        let page = scene.get(&format!("/devices{query}")).by(somebody).send().await.expect(StatusCode::OK);
        let mut names: Vec<_> =
            page["items"].as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap().to_owned()).collect();
        names.sort();
        names
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn filters_by_label_link_and_name(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let roof = DeviceId::from_uuid(new_id());
        scene.insert_device(roof, scene.tenant, "roof", json!({"site": "north", "a:b": "ü ="})).await;
        scene.link(roof).await;
        for (query, expected) in [
            ("", &["lobby", "roof"][..]),
            ("?label=site:north", &["lobby", "roof"]),
            ("?label=site:north&linked=true", &["roof"]),
            ("?linked=false", &["lobby"]),
            ("?name=lobby", &["lobby"]),
            ("?name=lob", &[]),
            ("?name_prefix=lob", &["lobby"]),
            ("?name_prefix=LOB", &[]),
            ("?name_prefix=%25", &[]),
            ("?label=site:south", &[]),
            ("?linked=true&name=roof", &["roof"]),
            ("?label=site:north&label=floor:1", &[]),
            ("?selector=site%3Dnorth", &["lobby", "roof"]),
            ("?selector=site+in+(north,south),%22a:b%22", &["roof"]),
            ("?selector=site,!%22a:b%22", &["lobby"]),
            ("?selector=%22a:b%22!%3Dx", &["lobby", "roof"]),
            ("?selector=site&label=a:b:x", &[]),
            ("?selector=site!%3Dsouth&label=site:north&linked=true", &["roof"]),
        ] {
            assert_eq!(names(&scene, &scene.customer, query).await, expected, "{query}");
        }
        // Whoever is not linked and does not poll either is silent, unless it is not to come any more.
        assert_eq!(names(&scene, &scene.customer, "?silent=true").await, ["lobby"]);
        assert_eq!(names(&scene, &scene.customer, "?silent=false").await, ["roof"]);
        scene.poll(scene.device).await;
        assert!(names(&scene, &scene.customer, "?silent=true").await.is_empty());
        scene.sql("delete from polls where device_id = $1", scene.device.as_uuid()).await;
        scene
            .sql(
                "update devices set state = 'revoked', revoked_at = clock_timestamp() where id = $1",
                scene.device.as_uuid(),
            )
            .await;
        assert!(names(&scene, &scene.customer, "?silent=true").await.is_empty());
        // A tunnel without an agent is a link like any other.
        scene.tunnel(scene.device).await;
        assert_eq!(names(&scene, &scene.customer, "?linked=true").await, ["lobby", "roof"]);
        assert_eq!(names(&scene, &scene.operator, "").await, ["lobby", "roof", "ward"]);
        let of_tenant = format!("?tenant_id={}", scene.other_tenant);
        assert_eq!(names(&scene, &scene.operator, &of_tenant).await, ["ward"]);
        assert!(names(&scene, &scene.customer, &of_tenant).await.is_empty());
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn refuses_queries_that_it_does_not_know(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let long = format!("?label=a:{}", "x".repeat(64));
        let many: String = (0..65).map(|n| format!("&label=k{n}:v")).collect();
        let many = format!("?{}", &many[1..]);
        for query in [
            "?label=site",
            "?label=a:%00",
            "?name=%00",
            "?name_prefix=%00",
            "?linked=maybe",
            "?silent=maybe",
            "?quarantined=maybe",
            "?label=a:1&label=a:2",
            "?lable=a:b",
            "?selector=",
            "?selector=site%3D",
            "?selector=site&selector=site",
            "?selector=site%3Dnorth&label=site:south",
            "?selector=!site&label=site:south",
            "?selector=site%3D%00",
            &long,
            &many,
        ] {
            let answer = scene.get(&format!("/devices{query}")).by(&scene.operator).send().await;
            answer.expect_problem(Kind::BadRequest);
        }
    }
}
