use toml::de::DeValue;

use super::section::section;
use super::value::{Value, quoted};

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Human on a terminal, else JSON.
    Auto,
    Human,
    Json,
}

impl Value for Format {
    const EXPECTED: &'static str = "\"auto\", \"human\" or \"json\"";

    fn from_text(text: &str) -> Option<Self> {
        match text {
            "auto" => Some(Self::Auto),
            "human" => Some(Self::Human),
            "json" => Some(Self::Json),
            _ => None,
        }
    }

    fn show(&self) -> Option<String> {
        let name = match self {
            Self::Auto => "auto",
            Self::Human => "human",
            Self::Json => "json",
        };
        Some(quoted(name))
    }
}

/// What is logged: directives of tracing-subscriber.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter(String);

impl Filter {
    #[must_use]
    pub fn directives(&self) -> tracing_subscriber::EnvFilter {
        tracing_subscriber::EnvFilter::new(&self.0)
    }
}

impl Value for Filter {
    const EXPECTED: &'static str = "a log filter, as \"info\" or \"info,cloudlink_server::link=debug\"";

    fn from_text(text: &str) -> Option<Self> {
        tracing_subscriber::EnvFilter::try_new(text).ok().map(|_| Self(text.to_owned()))
    }

    fn from_toml(value: &DeValue<'_>) -> Option<Self> {
        value.as_str().and_then(Self::from_text)
    }

    fn show(&self) -> Option<String> {
        Some(quoted(&self.0))
    }
}

section! {
    /// The log, on standard error.
    pub struct Log in "log" {
        /// `json` for machines, `human` for people, `auto`: human on a terminal, else JSON.
        format: Format = Format::Auto;
        /// What is logged: a level, and levels for parts.
        filter: Filter = Filter("info,sqlx=warn".to_owned());
    }
}
