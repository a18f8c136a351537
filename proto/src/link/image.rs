//! How the image of a container is named: by its digest. A tag may be another image tomorrow.

use super::{CONTAINER_BYTES_MAX, SHA256_BYTES};

/// The longest repository, in bytes.
pub(super) const REPOSITORY_BYTES_MAX: usize = 255;
/// What stands between the repository and the hexadecimal digits.
pub(super) const SEPARATOR: &str = "@sha256:";

/// The repository of `<repository>@sha256:<64 hexadecimal digits>`; `None` if it is anything else, such as a name with a tag.
#[must_use]
pub fn image_repository(image: &str) -> Option<&str> {
    let (repository, digits) = image.split_once(SEPARATOR)?;
    let is_digest =
        digits.len() == 2 * SHA256_BYTES && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    (is_digest && is_repository(repository)).then_some(repository)
}

/// Whether it can be the name of a container: 1 to 128 of `A-Z a-z 0-9 _ . -`, the first a letter or a digit.
#[must_use]
pub fn is_container_name(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    (1..=CONTAINER_BYTES_MAX).contains(&name.len())
        && name.bytes().all(is_allowed)
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
}

/// Parts of small letters between slashes. A port may follow the first, which is the registry's name then.
fn is_repository(name: &str) -> bool {
    let (first, path) = name.split_once('/').map_or((name, None), |(first, path)| (first, Some(path)));
    let first = match (first.split_once(':'), path) {
        (Some((host, port)), Some(_)) if is_port(port) => host,
        (Some(_), _) => return false,
        (None, _) => first,
    };
    name.len() <= REPOSITORY_BYTES_MAX
        && std::iter::once(first).chain(path.into_iter().flat_map(|path| path.split('/'))).all(is_part)
}

fn is_part(part: &str) -> bool {
    let is_plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    part.bytes().all(|byte| is_plain(&byte) || b"._-".contains(&byte))
        && [part.bytes().next(), part.bytes().last()].iter().all(|end| end.as_ref().is_some_and(is_plain))
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok_and(|port| port > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository(name: &str) -> Option<String> {
        image_repository(&format!("{name}{SEPARATOR}{}", "0a".repeat(SHA256_BYTES))).map(str::to_owned)
    }

    #[test]
    fn an_image_is_a_repository_and_a_digest() {
        for name in ["app", "vendor/app", "registry.example.com/vendor/app", "127.0.0.1:5000/app", "a-b/c__d.e"] {
            assert_eq!(repository(name).as_deref(), Some(name));
        }
        let long = format!("a/{}", "b".repeat(REPOSITORY_BYTES_MAX - 2));
        assert!(repository(&long).is_some() && repository(&format!("{long}b")).is_none());
    }

    #[test]
    fn nothing_else_is_one() {
        for name in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            "A",
            "a b",
            "app:1",
            "a/b:1",
            "registry:/app",
            "registry:0/app",
            "registry:+1/app",
            "registry:65536/app",
            "../a",
            "a/..",
            "a/.b",
            "a@b",
            "a\n",
            "ä",
            "http://a/b",
        ] {
            assert_eq!(repository(name), None, "{name:?}");
        }
        let digits = "ab".repeat(SHA256_BYTES);
        for image in [
            "app".to_owned(),
            "app:1.0".to_owned(),
            format!("app:1.0@sha256:{digits}"),
            format!("app@sha512:{digits}"),
            format!("app@sha256:{}", digits.to_uppercase()),
            format!("app@sha256:{}", &digits[1..]),
            format!("app@sha256:{digits}0"),
            format!("sha256:{digits}"),
        ] {
            assert_eq!(image_repository(&image), None, "{image}");
        }
    }

    #[test]
    fn names_of_containers_are_those_of_the_engine() {
        assert!(["a", "app", "App_1.b-c", &"a".repeat(128)].into_iter().all(is_container_name));
        assert!(!["", "-a", ".a", "_a", "a/b", "a b", "ä", &"a".repeat(129)].into_iter().any(is_container_name));
    }
}
