//! What a node says of itself, cut into pages; and what others were told, so that only what is new is said again.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use trellis_manifest::Tech;
use trellis_wire::{ComponentKey, LinkId, frame};

use super::sign::{Beat, Counts};
use crate::board::{All, Board, Mark, Noted, name_of, name_of_component};

/// How much one page says of components and links, in bytes.
pub(super) const PAGE_BYTES_MAX: usize = 32 * 1024;
/// What a page says of one component or link besides what is on the board, at most: counts, or an address.
const MORE_BYTES_MAX: usize = 64;
/// So many pages are more than a node has room for.
const PAGES_MAX: usize = 1_024;
/// Counts go out with every so many heartbeats; new faults with the next one.
const COUNTS_EVERY: u64 = 5;
/// Within so many heartbeats all counts are said again, changed or not: one that was missed is wrong for no longer.
const COUNTS_AGAIN: u64 = 60;
/// How many components one heartbeat gives counts of; those of others go with the next ones.
pub(super) const COUNTS_MAX: usize = 1_000;

/// What is on a node's board, cut into pages. They are made anew where the board changes, and not for each heartbeat: there
/// may be thousands of components, with nothing new of any.
///
/// What is on which page follows from its name alone, so that one component more is news on one page only.
pub(crate) struct Pages {
    pub(super) revision: u64,
    /// The first is there even if it is empty.
    pub(super) pages: Vec<Arc<Page>>,
}

/// What is on one page.
#[derive(Default)]
pub(super) struct Page {
    /// With whether it is held beside the deployed version.
    pub(super) components: Noted<(ComponentKey, bool)>,
    pub(super) links: Noted<(LinkId, Option<Tech>)>,
    /// The revision of the board that it was made by.
    revision: u64,
    /// At most so much is said of all this.
    bytes: usize,
}

impl Pages {
    pub(crate) fn of(board: &Board) -> Self {
        // Read first: what changes in between makes the pages anew.
        let revision = board.revision();
        let all = board.all(|_| true);
        let sizes = all.components.iter().map(|one| (name_of_component(&one.0.0, one.0.1), size(one)));
        let sizes: Vec<_> = sizes.chain(all.links.iter().map(|one| (name_of(&one.0.0), size(one)))).collect();
        let mut pages: Vec<Page> = Vec::new();
        let count = count(&sizes);
        pages.resize_with(count, || Page { revision, ..Page::default() });
        put(all, |name, pages| &mut pages[page(name, count)], &mut pages);
        Self { revision, pages: pages.into_iter().map(Arc::new).collect() }
    }

    /// Those of the board as it is now, made from what they were.
    pub(crate) fn next(&self, board: &Board) -> Self {
        let count = self.pages.len();
        let (revision, Some(news)) = board.news_since(self.revision) else { return Self::of(board) };
        let mut changed: BTreeMap<usize, Page> =
            news.into_iter().map(|name| (page(name, count), Page { revision, ..Page::default() })).collect();
        let all = board.all(|name| changed.contains_key(&page(name, count)));
        put(all, |name, changed| changed.get_mut(&page(name, count)).expect("no others were asked for"), &mut changed);
        if count < PAGES_MAX && changed.values().any(|page| page.bytes > PAGE_BYTES_MAX) {
            return Self::of(board);
        }
        let mut pages = self.pages.clone();
        changed.into_iter().for_each(|(nth, page)| pages[nth] = Arc::new(page));
        Self { revision, pages }
    }
}

/// Puts everything on its page.
fn put<P>(all: All, of: impl Fn(u64, &mut P) -> &mut Page, pages: &mut P) {
    for one in all.components {
        let page = of(name_of_component(&one.0.0, one.0.1), pages);
        page.bytes += size(&one);
        page.components.push(one);
    }
    for one in all.links {
        let page = of(name_of(&one.0.0), pages);
        page.bytes += size(&one);
        page.links.push(one);
    }
}

/// How much is said of something on a page, in bytes at most.
fn size(one: &impl Serialize) -> usize {
    frame::encode(one).len() + MORE_BYTES_MAX
}

/// How many pages there must be, so that none is too large.
fn count(sizes: &[(u64, usize)]) -> usize {
    let mut pages = 1;
    loop {
        let mut bytes = vec![0; pages];
        sizes.iter().for_each(|(name, more)| bytes[page(*name, pages)] += more);
        if pages == PAGES_MAX || bytes.into_iter().all(|bytes| bytes <= PAGE_BYTES_MAX) {
            return pages;
        }
        pages *= 2;
    }
}

/// The page of a name; or whose turn it is.
fn page(name: u64, pages: usize) -> usize {
    usize::try_from(name % pages as u64).expect("fewer than pages, which are a usize")
}

/// The counts of everything on all pages, as they were last looked up.
#[derive(Default)]
pub(crate) struct Counted {
    /// How many events there had been on the node while none ran, and which pages that was.
    at: Option<(u64, u64)>,
    counts: Vec<Vec<Counts>>,
}

impl Counted {
    /// The counts now. They are looked up unless nothing ran since they last were: `at_rest` is how many events there were,
    /// if none runs.
    pub(super) fn now(
        &mut self,
        pages: &Pages,
        at_rest: Option<u64>,
        look_up: impl Fn(&Page) -> Vec<Counts>,
    ) -> &[Vec<Counts>] {
        let at = at_rest.map(|events| (events, pages.revision));
        if at.is_none() || self.at != at {
            self.counts = pages.pages.iter().map(|page| look_up(page)).collect();
            self.at = at;
        }
        &self.counts
    }
}

/// What others were told.
#[derive(Default)]
pub(crate) struct Told {
    pages: Vec<(Option<Mark>, Vec<Counts>)>,
    beats: u64,
    /// Which revision of the board that was.
    revision: Option<u64>,
}

impl Told {
    /// The pages to look at with the next heartbeat: those that changed with the board, and one in turn, for the board does
    /// not know when a broker is gone.
    pub(super) fn next_look(&mut self, pages: &Pages) -> Vec<usize> {
        let count = pages.pages.len();
        self.beats += 1;
        let before = self.revision.replace(pages.revision);
        if self.pages.len() != count {
            self.pages = vec![Default::default(); count];
        }
        let in_turn = page(self.beats, count);
        let is_due = |nth: &usize| *nth == in_turn || before.is_none_or(|before| pages.pages[*nth].revision > before);
        (0..count).filter(is_due).collect()
    }

    /// Takes what a page says now. Whether that is news.
    pub(super) fn page(&mut self, beat: &mut Beat) -> bool {
        let mark = Some(beat.mark());
        let told = &mut self.pages[usize::from(beat.page)];
        let is_news = told.0 != mark;
        if is_news {
            *told = (mark, beat.numbered().map(|(_, one)| one.counts).collect());
        }
        is_news
    }

    /// The marks of all pages.
    pub(super) fn marks(&self) -> Vec<Mark> {
        self.pages.iter().filter_map(|(mark, _)| *mark).collect()
    }

    /// Takes the counts of all pages, after what is new on them. Those to be told.
    pub(super) fn counts(&mut self, now: &[Vec<Counts>]) -> Vec<(u16, u16, Counts)> {
        let (beats, mut news) = (self.beats, Vec::new());
        let is_due = |(nth, told, now): (usize, &Counts, &Counts)| {
            now.faults != told.faults
                || (now != told && beats.is_multiple_of(COUNTS_EVERY))
                || nth as u64 % COUNTS_AGAIN == beats % COUNTS_AGAIN
        };
        // Each time from another page on, so that no page waits for ever where there is not room for all.
        let first = page(beats, now.len());
        for of in (first..now.len()).chain(0..first) {
            for (nth, (told, now)) in self.pages[of].1.iter_mut().zip(&now[of]).enumerate() {
                if is_due((of + nth, told, now)) && news.len() < COUNTS_MAX {
                    *told = *now;
                    let short = |n: usize| u16::try_from(n).expect("no page has so many, and no node so many pages");
                    news.push((short(of), short(nth), *now));
                }
            }
        }
        news
    }
}
