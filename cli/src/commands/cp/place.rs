//! Where a file is: here, or on a device.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::failure::Failure;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Here(PathBuf),
    There { device: String, path: String },
}

/// From where to where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way<'a> {
    ToDevice { local: &'a Path, device: &'a str, path: &'a str },
    FromDevice { device: &'a str, path: &'a str, local: &'a Path },
}

impl FromStr for Place {
    type Err = Infallible;

    /// As scp has it: a colon is a device's if there is no slash before it.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text.split_once(':') {
            Some((device, path)) if !device.is_empty() && !device.contains('/') => {
                Self::There { device: device.to_owned(), path: path.to_owned() }
            }
            Some(_) | None => Self::Here(PathBuf::from(text)),
        })
    }
}

pub(super) fn way<'a>(from: &'a Place, to: &'a Place) -> Result<Way<'a>, Failure> {
    let way = match (from, to) {
        (Place::Here(local), Place::There { device, path }) => Way::ToDevice { local, device, path },
        (Place::There { device, path }, Place::Here(local)) => Way::FromDevice { device, path, local },
        (Place::Here(_), Place::Here(_)) => {
            return Err(usage("neither of the two is on a device", "A file on a device is DEVICE:PATH."));
        }
        (Place::There { .. }, Place::There { .. }) => {
            return Err(usage("one of the two must be here", "Copy it here first, and from here to the other device."));
        }
    };
    let (Way::ToDevice { path, .. } | Way::FromDevice { path, .. }) = way;
    if !path.starts_with('/') || path.ends_with('/') {
        return Err(usage(
            "a path on a device is absolute, and that of a file",
            "As in gw-1:/var/log/syslog; directories are not copied.",
        ));
    }
    Ok(way)
}

fn usage(what: &str, hint: &str) -> Failure {
    Failure::Usage(format!("{what}\n{hint}"))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn place(text: &str) -> Place {
        text.parse().unwrap()
    }

    #[rstest]
    #[case("gw-1:/etc/hosts", Some(("gw-1", "/etc/hosts")))]
    #[case("gw-1:/a:b", Some(("gw-1", "/a:b")))]
    #[case("./a:b", None)]
    #[case("/a:b", None)]
    #[case(":b", None)]
    #[case("a", None)]
    #[case("-", None)]
    fn a_colon_before_any_slash_is_a_devices(#[case] text: &str, #[case] there: Option<(&str, &str)>) {
        let expected = match there {
            Some((device, path)) => Place::There { device: device.to_owned(), path: path.to_owned() },
            None => Place::Here(PathBuf::from(text)),
        };
        assert_eq!(place(text), expected);
    }

    #[rstest]
    #[case("a", "b")]
    #[case("gw-1:/a", "gw-2:/b")]
    #[case("a", "gw-1:b")]
    #[case("a", "gw-1:")]
    #[case("gw-1:/etc/", "a")]
    fn what_is_no_copy_of_a_file_is_refused(#[case] from: &str, #[case] to: &str) {
        assert_eq!(way(&place(from), &place(to)).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn goes_both_ways() {
        let (here, there) = (place("a"), place("gw-1:/b"));
        let local = Path::new("a");
        assert_eq!(way(&here, &there).unwrap(), Way::ToDevice { local, device: "gw-1", path: "/b" });
        assert_eq!(way(&there, &here).unwrap(), Way::FromDevice { device: "gw-1", path: "/b", local });
    }
}
