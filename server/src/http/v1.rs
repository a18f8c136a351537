//! Version 1: one file an endpoint, its path as in the URL.

pub(super) mod me {
    pub(crate) mod show;
}
