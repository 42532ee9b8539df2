//! What a node says of itself, cut into pages; and what others were told, so that only what is new is said again.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;

use trellis_manifest::Tech;
use trellis_wire::{ComponentKey, LinkId, frame};

use super::sign::{Beat, Counts};
use crate::board::{All, Board, Mark, Noted};

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

/// What is on a node's board, cut into pages. It is made anew when the board changes, and not for each heartbeat: there may
/// be thousands of components, with nothing new of any.
///
/// What is on which page follows from its name alone, so that one component more is news on one page only.
pub(crate) struct Pages {
    pub(super) revision: u64,
    /// The first is there even if it is empty.
    pub(super) pages: Vec<Page>,
}

/// What is on one page.
#[derive(Clone, Default)]
pub(super) struct Page {
    /// With whether it is held beside the deployed version.
    pub(super) components: Noted<(ComponentKey, bool)>,
    pub(super) links: Noted<(LinkId, Option<Tech>)>,
}

impl Pages {
    pub(crate) fn of(board: &Board) -> Self {
        // Read first: what changes in between makes the pages anew.
        let revision = board.revision();
        let All { components, links } = board.all();
        let sized = |name: u64, bytes: usize| (name, bytes + MORE_BYTES_MAX);
        let of_components = components.iter().map(|one| sized(hash(&one.0), frame::encode(one).len()));
        let of_links = links.iter().map(|one| sized(hash(&one.0.0), frame::encode(one).len()));
        let names: Vec<(u64, usize)> = of_components.chain(of_links).collect();
        let mut pages = vec![Page::default(); count(&names)];
        let mut nth = names.iter().map(|(name, _)| page(*name, pages.len())).collect::<Vec<_>>().into_iter();
        for (one, nth) in components.into_iter().zip(&mut nth) {
            pages[nth].components.push(one);
        }
        for (one, nth) in links.into_iter().zip(nth) {
            pages[nth].links.push(one);
        }
        Self { revision, pages }
    }
}

/// How many pages there must be, so that none is too large.
fn count(names: &[(u64, usize)]) -> usize {
    let mut pages = 1;
    loop {
        let mut bytes = vec![0; pages];
        names.iter().for_each(|(name, more)| bytes[page(*name, pages)] += more);
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

fn hash(name: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish()
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
    /// The pages to look at with the next heartbeat: all when the board changed, and else one in turn, for the board does not
    /// know when a broker is gone.
    pub(super) fn next_look(&mut self, pages: &Pages) -> Range<usize> {
        let count = pages.pages.len();
        self.beats += 1;
        if self.revision.replace(pages.revision) != Some(pages.revision) {
            if self.pages.len() != count {
                self.pages = vec![Default::default(); count];
            }
            return 0..count;
        }
        let nth = page(self.beats, count);
        nth..nth + 1
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
