//! Which tunnel has which address: an index by host number, read for each packet without a lock.

use std::collections::HashSet;
use std::iter;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use arc_swap::{ArcSwapOption, Guard};

use super::port::Line;
use crate::tunnel::slice::Slice;

/// Hosts whose places are made together: a slice is mostly empty.
const PAGE_HOSTS: u32 = 1024;

type Page = Box<[ArcSwapOption<Line>]>;

#[derive(Debug)]
pub(super) struct Directory {
    slice: Slice,
    pages: Box<[OnceLock<Page>]>,
}

impl Directory {
    pub(super) fn new(slice: Slice) -> Self {
        let pages = slice.hosts_max() / PAGE_HOSTS + 1;
        Self { slice, pages: iter::repeat_with(OnceLock::new).take(index(pages)).collect() }
    }

    /// Puts a tunnel in its place, and gives the one that was there before.
    pub(super) fn enter(&self, host: u32, line: Arc<Line>) -> Option<Arc<Line>> {
        let page = self.pages.get(index(host / PAGE_HOSTS))?;
        page.get_or_init(empty_page)[index(host % PAGE_HOSTS)].swap(Some(line))
    }

    /// Takes a tunnel out of its place, if it is still its own.
    pub(super) fn leave(&self, host: u32, line: &Arc<Line>) {
        if let Some(place) = self.place(host) {
            place.compare_and_swap(line, None);
        }
    }

    /// Whether a tunnel is in its place: nobody took it.
    pub(super) fn has(&self, host: u32, line: &Arc<Line>) -> bool {
        self.place(host).is_some_and(|place| place.load().as_ref().is_some_and(|found| Arc::ptr_eq(found, line)))
    }

    /// The tunnel that packets to this address go to.
    pub(super) fn find(&self, destination: IpAddr) -> Option<Guard<Option<Arc<Line>>>> {
        self.at(self.slice.host_of(destination)?)
    }

    /// The tunnel that has this host's place.
    pub(super) fn at(&self, host: u32) -> Option<Guard<Option<Arc<Line>>>> {
        let found = self.place(host)?.load();
        found.is_some().then_some(found)
    }

    /// All tunnels.
    pub(super) fn lines(&self) -> Vec<Arc<Line>> {
        self.pages.iter().filter_map(OnceLock::get).flatten().filter_map(ArcSwapOption::load_full).collect()
    }

    /// The hosts whose tunnels are of a kind.
    pub(super) fn hosts(&self, is_wanted: impl Fn(&Line) -> bool) -> HashSet<u32> {
        let pages = (0..).step_by(index(PAGE_HOSTS)).zip(&self.pages);
        let places = pages.filter_map(|(first, page)| Some((first..).zip(page.get()?))).flatten();
        places
            .filter(|(_, place)| place.load().as_ref().is_some_and(|line| is_wanted(line)))
            .map(|(host, _)| host)
            .collect()
    }

    fn place(&self, host: u32) -> Option<&ArcSwapOption<Line>> {
        self.pages.get(index(host / PAGE_HOSTS))?.get()?.get(index(host % PAGE_HOSTS))
    }
}

fn empty_page() -> Page {
    iter::repeat_with(ArcSwapOption::empty).take(index(PAGE_HOSTS)).collect()
}

fn index(number: u32) -> usize {
    usize::try_from(number).expect("a usize holds 32 bits on every system with TUN interfaces that this is built for")
}
