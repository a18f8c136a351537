//! RFC 9457 problem details, and the same made from whatever else a server or a proxy answers.

use serde_json::{Value, json};

const TYPE_PREFIX: &str = "urn:cloudlink:problem:";

#[derive(Clone, Debug)]
pub(crate) struct Problem {
    pub(crate) status: u16,
    pub(crate) title: String,
    pub(crate) detail: Option<String>,
    pub(crate) request_id: Option<String>,
    /// As it came.
    pub(crate) json: Value,
}

impl Problem {
    /// From the body of an answer, or from its status alone when that is no JSON object.
    #[must_use]
    pub(crate) fn from_body(status: u16, body: &[u8]) -> Self {
        match serde_json::from_slice(body) {
            Ok(value @ Value::Object(_)) => Self::from_json(status, value),
            Ok(_) | Err(_) => Self::from_json(
                status,
                json!({
                    "type": "about:blank", "title": format!("the server answered with HTTP status {status}"), "status": status,
                    "detail": "The answer is not of Cloudlink's API: is the address right?",
                }),
            ),
        }
    }

    #[must_use]
    pub(crate) fn from_json(status: u16, json: Value) -> Self {
        let text = |name: &str| json[name].as_str().map(str::to_owned);
        Self {
            status,
            title: text("title").unwrap_or_else(|| format!("the server answered with HTTP status {status}")),
            detail: text("detail"),
            request_id: text("request_id"),
            json,
        }
    }

    /// The stable name of what happened; empty when the answer is not one of our API.
    #[must_use]
    pub(crate) fn kind(&self) -> &str {
        self.json["type"].as_str().and_then(|kind| kind.strip_prefix(TYPE_PREFIX)).unwrap_or_default()
    }
}
