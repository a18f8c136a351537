//! Where a file is: a directory that is open, and a name in it. Between looking and opening, nothing on the way can be exchanged for
//! a link that leads elsewhere.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat, openat, statat};
use rustix::io::Errno;

use super::{Fault, Files};

/// A file, there or not.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) directory: OwnedFd,
    pub(super) name: OsString,
}

impl Place {
    /// Finds a file that is there.
    pub(super) fn of_existing(files: &Files, path: &Path) -> Result<Self, Fault> {
        let real = path.canonicalize().map_err(Fault::io("find it"))?;
        Self::at(files, &real)
    }

    /// Finds a file that is there, or is to be there in a directory that is.
    pub(super) fn of_new(files: &Files, path: &Path) -> Result<Self, Fault> {
        let real = match path.canonicalize() {
            Ok(real) => real,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let (Some(parent), Some(Component::Normal(name))) = (path.parent(), path.components().next_back())
                else {
                    return Err(Fault::IsDirectory);
                };
                parent.canonicalize().map_err(Fault::io("find its directory"))?.join(name)
            }
            Err(error) => return Err(Fault::io("find it")(error)),
        };
        Self::at(files, &real)
    }

    /// `real` has no links, as far as it is there.
    fn at(files: &Files, real: &Path) -> Result<Self, Fault> {
        let is_withheld = |withheld: &PathBuf| withheld.canonicalize().is_ok_and(|withheld| real.starts_with(withheld));
        if files.withheld.iter().any(is_withheld) {
            return Err(Fault::NotAllowed);
        }
        let roots = files.settings.roots.iter().filter_map(|root| root.canonicalize().ok());
        let root = roots.filter(|root| real.starts_with(root)).max_by_key(|root| root.as_os_str().len());
        let root = root.ok_or(Fault::NotAllowed)?;
        let below = real.strip_prefix(&root).map_err(|_| Fault::NotAllowed)?;
        let (Some(parent), Some(name)) = (below.parent(), below.file_name()) else {
            return Err(Fault::IsDirectory);
        };
        let mut directory = open_directory(CWD, &root)?;
        for component in parent.components() {
            let Component::Normal(component) = component else { return Err(Fault::NotAllowed) };
            directory = open_directory(&directory, Path::new(component))?;
        }
        Ok(Self { directory, name: name.to_owned() })
    }

    /// What is there under the name, if anything. Links are not followed: all that were there before are already.
    pub(super) fn stat(&self) -> Result<Option<Stat>, Fault> {
        match statat(&self.directory, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(Fault::errno("look at it")(errno)),
        }
    }
}

/// Refuses what is anything but a file.
pub(super) fn must_be_file(stat: &Stat) -> Result<(), Fault> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(()),
        FileType::Directory => Err(Fault::IsDirectory),
        FileType::Symlink
        | FileType::Fifo
        | FileType::Socket
        | FileType::CharacterDevice
        | FileType::BlockDevice
        | FileType::Unknown => Err(Fault::NotAFile),
    }
}

fn open_directory(within: impl std::os::fd::AsFd, path: &Path) -> Result<OwnedFd, Fault> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(within, path, flags, Mode::empty()).map_err(|errno| match errno {
        // It was another thing a moment ago.
        Errno::LOOP | Errno::NOTDIR => Fault::NotAllowed,
        errno => Fault::errno("open its directory")(errno),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::config;

    struct Tree {
        dir: tempfile::TempDir,
        files: Files,
    }

    impl Tree {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let at = |path: &str| dir.path().join(path);
            fs::create_dir_all(at("root/sub")).unwrap();
            fs::create_dir_all(at("root/state")).unwrap();
            fs::create_dir(at("root-not")).unwrap();
            for path in ["root/a", "root/sub/b", "root/state/key", "root-not/c", "outside"] {
                fs::write(at(path), path).unwrap();
            }
            let settings = config::File { roots: vec![at("root"), at("nowhere")], ..config::File::default() };
            let files = Files { settings, withheld: vec![at("root/state")] };
            Self { dir, files }
        }

        fn at(&self, path: &str) -> PathBuf {
            self.dir.path().join(path)
        }

        fn code(&self, path: &str) -> [&'static str; 2] {
            let code = |place: Result<Place, Fault>| place.map_or_else(|fault| fault.code(), |_| "found");
            let path = self.at(path);
            [code(Place::of_existing(&self.files, &path)), code(Place::of_new(&self.files, &path))]
        }
    }

    #[test]
    fn what_is_below_a_root_is_found() {
        let tree = Tree::new();
        for (path, codes) in [
            ("root/a", ["found", "found"]),
            ("root/sub/b", ["found", "found"]),
            ("root/sub/../a", ["found", "found"]),
            ("root/new", ["not_found", "found"]),
            ("root/sub/new", ["not_found", "found"]),
            ("root/none/new", ["not_found", "not_found"]),
            ("root/a/new", ["not_found", "not_found"]),
            ("root", ["is_directory", "is_directory"]),
            ("root/sub/..", ["is_directory", "is_directory"]),
        ] {
            assert_eq!(tree.code(path), codes, "{path}");
        }
    }

    #[test]
    fn nothing_leads_out_of_a_root() {
        let tree = Tree::new();
        let outside = tree.at("outside");
        symlink(&outside, tree.at("root/link")).unwrap();
        symlink("../outside", tree.at("root/relative")).unwrap();
        symlink(tree.dir.path(), tree.at("root/up")).unwrap();
        symlink("/", tree.at("root/slash")).unwrap();
        symlink(tree.at("new-outside"), tree.at("root/dangling")).unwrap();
        for path in [
            "outside",
            "root/../outside",
            "root-not/c",
            "root/link",
            "root/relative",
            "root/up/outside",
            "root/up/root-not/c",
            "root/slash/etc/passwd",
            "root/state/key",
            "root/sub/../state/key",
        ] {
            assert_eq!(tree.code(path), ["not_allowed"; 2], "{path}");
        }
        assert_eq!(tree.code("root/up/new")[1], "not_allowed");
        assert_eq!(tree.code("root/state/new")[1], "not_allowed");
        // A link that leads to nothing is itself what is there.
        let place = Place::of_new(&tree.files, &tree.at("root/dangling")).unwrap();
        assert!(matches!(must_be_file(&place.stat().unwrap().unwrap()), Err(Fault::NotAFile)));
    }

    #[test]
    fn a_link_that_stays_below_a_root_is_followed() {
        let tree = Tree::new();
        symlink("sub", tree.at("root/inner")).unwrap();
        symlink("sub/b", tree.at("root/b")).unwrap();
        assert_eq!(tree.code("root/inner/b"), ["found"; 2]);
        let place = Place::of_new(&tree.files, &tree.at("root/b")).unwrap();
        assert!(
            place.stat().unwrap().is_some_and(|stat| must_be_file(&stat).is_ok()),
            "it is the file, and not the link"
        );
    }

    /// What was a directory when it was looked at, and is a link when it is opened.
    #[test]
    fn a_directory_that_becomes_a_link_is_not_entered() {
        let tree = Tree::new();
        let real = tree.at("root/sub/b").canonicalize().unwrap();
        fs::rename(tree.at("root/sub"), tree.at("root/moved")).unwrap();
        symlink(tree.at("root-not"), tree.at("root/sub")).unwrap();
        assert!(matches!(Place::at(&tree.files, &real), Err(Fault::NotAllowed)));
    }
}
