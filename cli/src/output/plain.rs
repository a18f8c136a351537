//! Text of others, made harmless: what a device or a customer called itself must not steer the reader's terminal.

use std::borrow::Cow;
use std::io;

use serde_json::ser::{Formatter, PrettyFormatter};

/// Whether a terminal may act on the character instead of showing it, or show others in another order because of it.
fn is_active(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// The text with each active character written out, as in `\u{1b}`.
#[must_use]
pub(crate) fn plain(text: &str) -> Cow<'_, str> {
    if !text.contains(is_active) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_active(c) { safe.extend(c.escape_default()) } else { safe.push(c) }
    }
    Cow::Owned(safe)
}

/// JSON, indented unless `compact`, in which active characters are escaped: the same values to a machine.
#[derive(Debug, Default)]
pub(crate) struct SafeJson {
    pretty: PrettyFormatter<'static>,
    compact: bool,
}

impl SafeJson {
    #[must_use]
    pub(crate) fn compact() -> Self {
        Self { compact: true, ..Self::default() }
    }
}

macro_rules! delegate {
    ($($method:ident($($argument:ident: $kind:ty),*));+ $(;)?) => {$(
        fn $method<W: ?Sized + io::Write>(&mut self, writer: &mut W $(, $argument: $kind)*) -> io::Result<()> {
            if self.compact {
                serde_json::ser::CompactFormatter.$method(writer $(, $argument)*)
            } else {
                self.pretty.$method(writer $(, $argument)*)
            }
        }
    )+};
}

impl Formatter for SafeJson {
    delegate! {
        begin_array();
        end_array();
        begin_array_value(first: bool);
        end_array_value();
        begin_object();
        end_object();
        begin_object_key(first: bool);
        begin_object_value();
        end_object_value();
    }

    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        while let Some((at, c)) = rest.char_indices().find(|(_, c)| is_active(*c)) {
            writer.write_all(&rest.as_bytes()[..at])?;
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(writer, "\\u{unit:04x}")?;
            }
            rest = &rest[at + c.len_utf8()..];
        }
        writer.write_all(rest.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Serialize;

    use super::*;

    fn json(value: &serde_json::Value, formatter: SafeJson) -> String {
        let mut bytes = Vec::new();
        value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, formatter)).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn writes_out_what_would_steer_a_terminal() {
        assert_eq!(plain("gw-1"), "gw-1");
        assert_eq!(plain("Größe 東京 é"), "Größe 東京 é");
        assert_eq!(plain("a\u{1b}[2Jb"), "a\\u{1b}[2Jb");
        assert_eq!(plain("a\nb\tc\r"), "a\\nb\\tc\\r");
        assert_eq!(plain("\u{9b}31m\u{7f}"), "\\u{9b}31m\\u{7f}");
        assert_eq!(plain("moc.\u{202e}live"), "moc.\\u{202e}live");
    }

    #[test]
    fn indents_like_serde_json() {
        let value = serde_json::json!({"a": [1, {"b": null}], "c": {}, "d": []});
        assert_eq!(json(&value, SafeJson::default()), serde_json::to_string_pretty(&value).unwrap());
        assert_eq!(json(&value, SafeJson::compact()), serde_json::to_string(&value).unwrap());
    }

    proptest! {
        #[test]
        fn nothing_active_is_left(text in any::<String>()) {
            prop_assert!(!plain(&text).contains(is_active));
            prop_assert!(!json(&text.into(), SafeJson::compact()).contains(is_active));
        }

        #[test]
        fn json_means_the_same(text in any::<String>()) {
            let value = serde_json::json!({ text.clone(): text });
            prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&json(&value, SafeJson::default())).unwrap(), value);
        }
    }
}
