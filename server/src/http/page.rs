//! Lists, page by page. A cursor holds the position after the last item shown, so that a list that changes meanwhile neither
//! repeats items nor leaves any out. It is opaque to callers, and gives no access: what is shown is decided anew each time.

use data_encoding::BASE64URL_NOPAD;
use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

use super::problem::Problem;

const LIMIT_MAX: u32 = 200;
const LIMIT_DEFAULT: u32 = 50;
/// Version of the cursor's form, its first byte.
const CURSOR_VERSION: u8 = 1;
const CURSOR_BYTES: usize = 1 + 8 + 16;

/// Where the items of a list stand: newest first, equal times by id.
pub(crate) type Position = (OffsetDateTime, Uuid);

/// Part of a list.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct Page<T> {
    pub(crate) items: Vec<T>,
    /// `cursor` of the next page; null on the last one.
    pub(crate) next_cursor: Option<String>,
}

/// The part that is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    limit: u32,
    pub(crate) after: Option<Position>,
}

impl Window {
    pub(crate) fn new(limit: Option<u32>, cursor: Option<&str>) -> Result<Self, Problem> {
        Ok(Self { limit: check_limit(limit)?, after: cursor.map(decode).transpose()? })
    }

    /// One more than is shown: whether it is there tells whether there is a next page.
    pub(crate) fn fetch_limit(self) -> i64 {
        i64::from(self.limit) + 1
    }

    /// The page, of what was fetched.
    pub(crate) fn page<T>(self, items: Vec<T>, position: impl Fn(&T) -> Position) -> Page<T> {
        cut(items, self.limit, |item| encode(position(item)))
    }
}

/// The part that is asked for, of a list that is numbered, newest first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NumberWindow {
    limit: u32,
    pub(crate) before: Option<i64>,
}

impl NumberWindow {
    pub(crate) fn new(limit: Option<u32>, cursor: Option<&str>) -> Result<Self, Problem> {
        let before = cursor.map(|cursor| decode_number(cursor).ok_or_else(foreign_cursor)).transpose()?;
        Ok(Self { limit: check_limit(limit)?, before })
    }

    pub(crate) fn fetch_limit(self) -> i64 {
        i64::from(self.limit) + 1
    }

    pub(crate) fn page<T>(self, items: Vec<T>, number: impl Fn(&T) -> i64) -> Page<T> {
        cut(items, self.limit, |item| encode_number(number(item)))
    }

    /// Of a list of which only what is above `looked_to` was looked through: there may be more below it.
    pub(crate) fn page_above<T>(self, items: Vec<T>, number: impl Fn(&T) -> i64, looked_to: i64) -> Page<T> {
        let mut page = self.page(items, number);
        if page.next_cursor.is_none() && looked_to > 0 {
            page.next_cursor = Some(encode_number(looked_to + 1));
        }
        page
    }
}

fn cut<T>(mut items: Vec<T>, limit: u32, cursor: impl Fn(&T) -> String) -> Page<T> {
    let limit = usize::try_from(limit).expect("at most LIMIT_MAX");
    let has_more = items.len() > limit;
    items.truncate(limit);
    let next_cursor = if has_more { items.last().map(cursor) } else { None };
    Page { items, next_cursor }
}

fn check_limit(limit: Option<u32>) -> Result<u32, Problem> {
    let limit = limit.unwrap_or(LIMIT_DEFAULT);
    let is_fine = (1..=LIMIT_MAX).contains(&limit);
    is_fine.then_some(limit).ok_or_else(|| Problem::bad_request(format!("`limit` must be 1 to {LIMIT_MAX}.")))
}

fn encode((time, id): Position) -> String {
    // The database counts in microseconds since 2000: any of its times fits.
    let micros = i64::try_from(time.unix_timestamp_nanos() / 1000).expect("a time of the database fits");
    let mut bytes = Vec::with_capacity(CURSOR_BYTES);
    bytes.push(CURSOR_VERSION);
    bytes.extend(micros.to_be_bytes());
    bytes.extend(id.as_bytes());
    BASE64URL_NOPAD.encode(&bytes)
}

fn decode(cursor: &str) -> Result<Position, Problem> {
    decode_bytes(cursor).ok_or_else(foreign_cursor)
}

fn foreign_cursor() -> Problem {
    Problem::bad_request("`cursor` is not one that this list gave. Start without it.")
}

fn encode_number(number: i64) -> String {
    let mut bytes = vec![CURSOR_VERSION];
    bytes.extend(number.to_be_bytes());
    BASE64URL_NOPAD.encode(&bytes)
}

fn decode_number(cursor: &str) -> Option<i64> {
    let bytes = BASE64URL_NOPAD.decode(cursor.as_bytes()).ok()?;
    let (version, number) = bytes.split_first()?;
    let number = i64::from_be_bytes(number.try_into().ok()?);
    (*version == CURSOR_VERSION).then_some(number)
}

fn decode_bytes(cursor: &str) -> Option<Position> {
    let bytes = BASE64URL_NOPAD.decode(cursor.as_bytes()).ok()?;
    let (version, rest) = bytes.split_first()?;
    let (micros, id) = rest.split_first_chunk::<8>()?;
    if *version != CURSOR_VERSION {
        return None;
    }
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(i64::from_be_bytes(*micros)) * 1000).ok()?;
    Some((time, Uuid::from_slice(id).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_holds_its_position() {
        let position = (time::macros::datetime!(2026-11-21 10:11:12.123456 UTC), Uuid::from_u128(7));
        assert_eq!(decode(&encode(position)).unwrap(), position);
    }

    #[test]
    fn what_no_list_gave_is_no_cursor() {
        let mut too_late = vec![CURSOR_VERSION];
        too_late.extend(i64::MAX.to_be_bytes());
        too_late.extend([0; 16]);
        let too_late = BASE64URL_NOPAD.encode(&too_late);
        let valid = encode((OffsetDateTime::UNIX_EPOCH, Uuid::nil()));
        for cursor in ["", "AQ", "ü", "AAAA AAAA", &too_late, &valid[1..], &format!("{valid}A"), &"A".repeat(10_000)] {
            assert!(decode(cursor).is_err(), "{cursor:.40}");
        }
    }

    #[test]
    fn the_last_page_has_no_cursor() {
        let window = Window::new(Some(2), None).unwrap();
        let position = |n: &u128| (OffsetDateTime::UNIX_EPOCH, Uuid::from_u128(*n));
        assert!(window.page(vec![1, 2], position).next_cursor.is_none());
        let page = window.page(vec![1, 2, 3], position);
        assert_eq!(page.items, [1, 2]);
        assert_eq!(page.next_cursor, Some(encode(position(&2))));
    }

    #[test]
    fn a_cursor_of_another_kind_of_list_is_refused() {
        let number = encode_number(7);
        assert_eq!(decode_number(&number), Some(7));
        assert!(Window::new(None, Some(&number)).is_err());
        assert!(NumberWindow::new(None, Some(&encode((OffsetDateTime::UNIX_EPOCH, Uuid::nil())))).is_err());
    }

    #[test]
    fn limits_are_checked() {
        assert!(Window::new(Some(0), None).is_err());
        assert!(Window::new(Some(LIMIT_MAX + 1), None).is_err());
        assert_eq!(Window::new(None, None).unwrap().fetch_limit(), 51);
    }
}
