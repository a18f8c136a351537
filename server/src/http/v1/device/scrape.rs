//! `GET /metrics`: what a tenant's devices measured last, in Prometheus' text format.

use axum::extract::State;
use axum::response::IntoResponse;
use http::header;
use prometheus::{GaugeVec, Opts, Registry, TEXT_FORMAT, TextEncoder};

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::problem::Problem;
use crate::http::request::NoQuery;
use crate::store::sample::{Scraped, sample_scrape};

/// Devices in one answer.
const DEVICES_MAX: usize = 5000;
const LABELS: [&str; 2] = ["device_id", "device"];

/// What the own devices measured last, in Prometheus' text format
///
/// For a Prometheus server of the tenant's own. Active devices, at most 5,000; reports of the last ten minutes.
#[utoipa::path(get, path = "/metrics", operation_id = "metrics_scrape", tag = "devices",
    responses((status = 200, body = String, content_type = "text/plain")))]
#[tracing::instrument(name = "http.device.scrape", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    _: NoQuery,
) -> Result<impl IntoResponse, Problem> {
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let mut devices = sample_scrape(&mut transaction, DEVICES_MAX).await?;
    drop(transaction);
    let is_cut = devices.len() > DEVICES_MAX;
    devices.truncate(DEVICES_MAX);
    let text = tokio::task::spawn_blocking(move || exposition(&devices, is_cut)).await.ok().and_then(Result::ok);
    let text = text.ok_or_else(Problem::internal)?;
    Ok(([(header::CONTENT_TYPE, TEXT_FORMAT)], text))
}

fn exposition(devices: &[Scraped], is_cut: bool) -> prometheus::Result<String> {
    let registry = Registry::new();
    let family = |name: &str, help: &str| -> prometheus::Result<GaugeVec> {
        let family = GaugeVec::new(Opts::new(format!("cloudlink_device_{name}"), help), &LABELS)?;
        registry.register(Box::new(family.clone()))?;
        Ok(family)
    };
    let linked = family("linked", "1 while the device has a live link.")?;
    let reported = family("report_timestamp_seconds", "When the report was received that the other metrics are from.")?;
    let measured = FAMILIES.map(|(name, help, of)| (family(name, help), of));
    for device in devices {
        let labels = [device.device_id.to_string(), device.name.clone()];
        let labels = [labels[0].as_str(), labels[1].as_str()];
        linked.with_label_values(&labels).set(if device.is_linked { 1.0 } else { 0.0 });
        let Some(reported_at) = device.received_at else { continue };
        reported.with_label_values(&labels).set(reported_at);
        for (family, of) in &measured {
            if let (Ok(family), Some(value)) = (family, of(device)) {
                family.with_label_values(&labels).set(value);
            }
        }
    }
    let cut = prometheus::Gauge::new(
        "cloudlink_devices_left_out",
        "1 when there are more devices than one answer has; the rest is not here.",
    )?;
    cut.set(if is_cut { 1.0 } else { 0.0 });
    registry.register(Box::new(cut))?;
    TextEncoder::new().encode_to_string(&registry.gather())
}

type Of = fn(&Scraped) -> Option<f64>;

/// In base units, as Prometheus has it.
const FAMILIES: [(&str, &str, Of); 11] = [
    ("cpu_ratio", "How busy the processors are, 0 to 1.", |device| {
        device.number("cpu_percent").map(|percent| percent / 100.0)
    }),
    ("memory_used_bytes", "Memory that is in use.", |device| device.number("memory_used_bytes")),
    ("memory_size_bytes", "Memory that there is.", |device| device.number("memory_total_bytes")),
    ("disk_used_bytes", "What is used of the file system of /.", |device| device.number("disk_used_bytes")),
    ("disk_size_bytes", "The size of the file system of /.", |device| device.number("disk_total_bytes")),
    ("temperature_celsius", "The hottest sensor.", |device| device.number("temperature_celsius")),
    ("load1", "Load average over one minute.", |device| device.number("load_1m")),
    ("load5", "Load average over five minutes.", |device| device.number("load_5m")),
    ("load15", "Load average over fifteen minutes.", |device| device.number("load_15m")),
    ("uptime_seconds", "Time since the device booted.", |device| device.number("uptime_seconds")),
    ("clock_offset_seconds", "How far the device's clock is ahead of the server's.", |device| {
        device.number("clock_offset_ms").map(|milliseconds| milliseconds / 1000.0)
    }),
];

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::json;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
    use uuid::Uuid;

    use super::*;
    use crate::http::problem::Kind;
    use crate::http::testing::Scene;

    fn device(name: &str, report: serde_json::Value) -> Scraped {
        Scraped {
            device_id: Uuid::nil(),
            name: name.to_owned(),
            is_linked: true,
            received_at: Some(1.5),
            report: Some(report),
        }
    }

    #[test]
    fn names_are_escaped_and_what_was_not_measured_is_absent() {
        let report = json!({"cpu_percent": 25, "uptime_seconds": 18_446_744_073_709_551_615_u64, "load_1m": "much", "surprise": 1});
        let text = exposition(&[device("a\"b\\c\nd", report)], true).unwrap();
        let labels = r#"{device="a\"b\\c\nd",device_id="00000000-0000-0000-0000-000000000000"}"#;
        for line in [
            format!("cloudlink_device_linked{labels} 1"),
            format!("cloudlink_device_report_timestamp_seconds{labels} 1.5"),
            format!("cloudlink_device_cpu_ratio{labels} 0.25"),
            "cloudlink_devices_left_out 1".to_owned(),
        ] {
            assert!(text.lines().any(|there| there == line), "{line}\n{text}");
        }
        assert!(
            !text.contains("load1{") && !text.contains("surprise") && !text.contains("temperature_celsius{"),
            "{text}"
        );
        assert_eq!(text.lines().filter(|line| !line.starts_with('#')).count(), 5, "{text}");
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn a_tenant_scrapes_its_own_devices(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        scene.link(scene.device).await;
        let report = "insert into device_metrics (device_id, tenant_id, received_at, report)
                      select id, tenant_id, now(), '{\"cpu_percent\": 50}' from devices";
        sqlx::query(report).execute(&scene.root).await.unwrap();
        let scrape = async || scene.get("/metrics").by(&scene.customer).send().await;
        let answer = scrape().await;
        assert_eq!((answer.status, answer.header("content-type")), (StatusCode::OK, "text/plain; version=0.0.4"));
        let of =
            |value: &str, name: &str| format!("{name}{{device=\"lobby\",device_id=\"{}\"}} {value}\n", scene.device);
        for line in [of("1", "cloudlink_device_linked"), of("0.5", "cloudlink_device_cpu_ratio")] {
            assert!(answer.text.contains(&line), "{}", answer.text);
        }
        assert!(
            !answer.text.contains(&scene.other_device.to_string()) && !answer.text.contains("ward"),
            "{}",
            answer.text
        );
        // What is old says nothing about now; that there is no link does.
        let age = "update device_metrics set received_at = now() - interval '11 minutes' where device_id = $1";
        scene.sql(age, scene.device.as_uuid()).await;
        scene
            .sql("update links set closed_at = now(), close_reason = 'x' where device_id = $1", scene.device.as_uuid())
            .await;
        let answer = scrape().await;
        assert!(answer.text.contains(&of("0", "cloudlink_device_linked")), "{}", answer.text);
        assert!(!answer.text.contains("cpu_ratio{"), "{}", answer.text);
        for somebody in [&scene.admin, &scene.operator] {
            scene.get("/metrics").by(somebody).send().await.expect_problem(Kind::Forbidden);
        }
        scene
            .sql("update devices set state = 'revoked', revoked_at = now() where id = $1", scene.device.as_uuid())
            .await;
        assert!(!scrape().await.text.contains("lobby"));
    }
}
