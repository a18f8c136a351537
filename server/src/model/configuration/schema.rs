//! JSON Schema, draft 2020-12, as far as its cost is known beforehand: nothing is fetched, no reference leads back to where it came from,
//! and patterns are matched in linear time.

use std::borrow::Cow;

use jsonschema::{Draft, PatternOptions, Validator};
use serde_json::Value;

/// The largest schema, in bytes.
pub const SCHEMA_BYTES_MAX: usize = 32_768;
/// The largest schema, in parts, with a reference counted as what it leads to: each is applied to a part of a document once at most.
const PARTS_MAX: usize = 4096;
/// Bytes that a compiled pattern may take.
const PATTERN_BYTES_MAX: usize = 256 * 1024;
const PATTERNS_MAX: usize = 128;
const DRAFT: &str = "https://json-schema.org/draft/2020-12/schema";
/// Other ways to say what a reference leads to, or where from. None of them is needed within one schema.
const UNWANTED: [&str; 6] = ["$id", "$anchor", "$dynamicAnchor", "$dynamicRef", "$recursiveAnchor", "$recursiveRef"];

/// A schema that may be used.
#[derive(Debug)]
pub struct Schema(Validator);

/// Why a schema may not be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    #[error("it has more than {SCHEMA_BYTES_MAX} bytes")]
    TooLong,
    #[error("it has more than {PARTS_MAX} parts, what references lead to included")]
    TooManyParts,
    #[error("it has more than {PATTERNS_MAX} patterns")]
    TooManyPatterns,
    #[error("`$schema` must be {DRAFT}, or left out")]
    Draft,
    #[error("`{0}` is not allowed in it")]
    Unwanted(&'static str),
    #[error("`$ref` must be a place in it, as `#/$defs/port`")]
    Reference,
    #[error("a `$ref` leads to where it came from")]
    Circle,
    #[error("at {place}: {what}")]
    Invalid { place: String, what: String },
}

/// Where a document is not as the schema says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at `{pointer}` it is not as `{rule}` of the schema says")]
pub struct Violation {
    /// JSON pointer (RFC 6901) into the document; empty for the whole.
    pub pointer: String,
    /// JSON pointer into the schema.
    pub rule: String,
}

impl Schema {
    /// Judges a schema, and makes it ready.
    pub fn compile(schema: &Value) -> Result<Self, SchemaError> {
        if schema.to_string().len() > SCHEMA_BYTES_MAX {
            return Err(SchemaError::TooLong);
        }
        if schema.get("$schema").is_some_and(|draft| draft != DRAFT) {
            return Err(SchemaError::Draft);
        }
        Walk { root: schema, parts: 0, patterns: 0, under: Vec::new() }.visit(schema)?;
        let patterns = PatternOptions::regex().size_limit(PATTERN_BYTES_MAX).dfa_size_limit(PATTERN_BYTES_MAX);
        let validator = jsonschema::options()
            .with_draft(Draft::Draft202012)
            .offline()
            .should_validate_formats(false)
            .with_pattern_options(patterns)
            .build(schema)
            .map_err(|error| SchemaError::Invalid {
                place: shortened(error.instance_path().as_str()),
                what: shortened(&error.to_string()),
            })?;
        Ok(Self(validator))
    }

    /// Whether a document is as it says.
    pub fn check(&self, document: &Value) -> Result<(), Violation> {
        self.0.validate(document).map_err(|error| Violation {
            pointer: shortened(error.instance_path().as_str()),
            rule: shortened(error.schema_path().as_str()),
        })
    }
}

/// What is told to people has an end.
fn shortened(text: &str) -> String {
    text.chars().take(200).map(|char| if char.is_control() { '\u{fffd}' } else { char }).collect()
}

/// Goes through all that a validator may go through.
struct Walk<'a> {
    root: &'a Value,
    parts: usize,
    patterns: usize,
    /// The references that it is behind.
    under: Vec<&'a str>,
}

impl<'a> Walk<'a> {
    fn visit(&mut self, part: &'a Value) -> Result<(), SchemaError> {
        self.parts += 1;
        if self.parts > PARTS_MAX {
            return Err(SchemaError::TooManyParts);
        }
        match part {
            Value::Array(items) => items.iter().try_for_each(|item| self.visit(item)),
            Value::Object(object) => {
                if let Some(unwanted) = UNWANTED.into_iter().find(|key| object.get(*key).is_some_and(Value::is_string))
                {
                    return Err(SchemaError::Unwanted(unwanted));
                }
                self.patterns += usize::from(object.get("pattern").is_some_and(Value::is_string));
                if let Some(Value::Object(patterns)) = object.get("patternProperties") {
                    self.patterns += patterns.len();
                }
                if self.patterns > PATTERNS_MAX {
                    return Err(SchemaError::TooManyPatterns);
                }
                if let Some(Value::String(reference)) = object.get("$ref") {
                    self.follow(reference)?;
                }
                object.values().try_for_each(|value| self.visit(value))
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Ok(()),
        }
    }

    fn follow(&mut self, reference: &'a str) -> Result<(), SchemaError> {
        let pointer = reference.strip_prefix('#').ok_or(SchemaError::Reference)?;
        if self.under.contains(&reference) {
            return Err(SchemaError::Circle);
        }
        let pointer =
            percent_encoding::percent_decode_str(pointer).decode_utf8().map_err(|_| SchemaError::Reference)?;
        let target = match pointer {
            Cow::Borrowed(pointer) => self.root.pointer(pointer),
            Cow::Owned(pointer) => self.root.pointer(&pointer),
        };
        let target = target.ok_or(SchemaError::Reference)?;
        self.under.push(reference);
        self.visit(target)?;
        self.under.pop();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use serde_json::json;

    use super::*;

    #[test]
    fn a_document_is_judged_and_the_place_is_told() {
        let schema = Schema::compile(&json!({
            "$schema": DRAFT,
            "type": "object",
            "properties": {"interval": {"$ref": "#/$defs/seconds"}, "a/b": {"type": "array", "items": {"type": "string"}}},
            "required": ["interval"],
            "additionalProperties": false,
            "$defs": {"seconds": {"type": "integer", "minimum": 1}},
        }))
        .unwrap();
        assert_eq!(schema.check(&json!({"interval": 60, "a/b": ["x"]})), Ok(()));
        for (document, pointer, rule) in [
            (json!({"interval": 0}), "/interval", "/$defs/seconds/minimum"),
            (json!({"interval": 1, "a/b": ["x", 1]}), "/a~1b/1", "/properties/a~1b/items/type"),
            (json!({}), "", "/required"),
            (json!({"interval": 1, "other": 1}), "", "/additionalProperties"),
        ] {
            let violation = schema.check(&document).unwrap_err();
            assert_eq!(violation.pointer, pointer, "{document}");
            assert!(violation.rule.ends_with(rule.rsplit('/').next().unwrap()), "{violation:?}");
        }
    }

    #[test]
    fn a_schema_that_costs_too_much_or_leads_elsewhere_is_refused() {
        let mut doubling = serde_json::Map::new();
        for n in 0..40 {
            let next = json!({"$ref": format!("#/$defs/d{}", n + 1)});
            doubling.insert(format!("d{n}"), json!({"allOf": [next, next]}));
        }
        doubling.insert("d40".to_owned(), json!(true));
        for (schema, expected) in [
            (json!({"description": "x".repeat(SCHEMA_BYTES_MAX)}), SchemaError::TooLong),
            (json!({"$ref": "#/$defs/d0", "$defs": doubling}), SchemaError::TooManyParts),
            (json!({"$ref": "#/$defs/a", "$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}}), SchemaError::Circle),
            (json!({"$ref": "#"}), SchemaError::Circle),
            (json!({"$ref": "https://example.com/schema.json"}), SchemaError::Reference),
            (json!({"$ref": "file:///etc/passwd"}), SchemaError::Reference),
            (json!({"$ref": "#/$defs/none"}), SchemaError::Reference),
            (json!({"$schema": "https://example.com/mine"}), SchemaError::Draft),
            (json!({"items": {"$id": "https://example.com/"}}), SchemaError::Unwanted("$id")),
            (json!({"items": {"$dynamicRef": "#x"}}), SchemaError::Unwanted("$dynamicRef")),
            (json!({"allOf": vec![json!({"pattern": "a"}); 129]}), SchemaError::TooManyPatterns),
        ] {
            assert_eq!(Schema::compile(&schema).err(), Some(expected), "{schema:.100}");
        }
        for schema in [
            json!({"type": "nothing"}),
            json!({"pattern": "("}),
            json!({"pattern": "(a{1000}){1000}"}),
            json!({"pattern": "(?=a)"}),
            json!([]),
        ] {
            assert!(matches!(Schema::compile(&schema), Err(SchemaError::Invalid { .. })), "{schema}");
        }
        // A property may be called whatever it likes.
        Schema::compile(&json!({"properties": {"$id": {"type": "string"}, "$ref": {"type": "string"}}})).unwrap();
    }

    #[test]
    fn a_pattern_for_which_others_need_forever_is_matched_at_once() {
        let schema = Schema::compile(&json!({"properties": {"a": {"pattern": "^(a+)+$"}}})).unwrap();
        let started = Instant::now();
        let document = json!({"a": format!("{}!", "a".repeat(50_000))});
        assert_eq!(schema.check(&document).unwrap_err().pointer, "/a");
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    }
}
