//! What a node said of itself, put together from its pages and from the counts that followed.

use std::collections::{BTreeMap, BTreeSet};

use trellis_wire::{ComponentKey, Generation, LinkId};

use super::sign::{Alive, Beat, OfComponent, OfLink};
use crate::board::{Health, Mark};
use crate::events::{self, Report};

/// What is known of a node.
#[derive(Default)]
pub(crate) struct Known {
    pub(super) generation: Generation,
    pub(super) running: u64,
    /// How many pages there are.
    count: u16,
    pages: BTreeMap<u16, (Mark, Beat)>,
    /// What each page should be; nothing of nodes that only say pages.
    marks: Vec<Mark>,
    /// What was known when there was another number of pages, until all of the new ones are here.
    former: Vec<Beat>,
}

impl Known {
    /// How a component is, in the other version of a roll-out if asked so.
    pub(super) fn component(&self, key: &ComponentKey, is_beside: bool) -> Option<&OfComponent> {
        let mut all = self.all().flat_map(|page| if is_beside { &page.beside } else { &page.components });
        all.find(|(one, _)| one == key).map(|(_, report)| report)
    }

    /// How a link is.
    pub(super) fn link(&self, id: &LinkId) -> Option<&OfLink> {
        let mut all = self.all().flat_map(|page| &page.links);
        all.find(|(one, _)| one == id).map(|(_, report)| report)
    }

    /// What is known, the newest first.
    fn all(&self) -> impl Iterator<Item = &Beat> {
        self.pages.values().map(|(_, page)| page).chain(&self.former)
    }

    /// The pages that are not as the node says they are.
    pub(super) fn missing(&self) -> impl Iterator<Item = u16> {
        let is_missing = |(nth, mark): (u16, &Mark)| {
            let known = self.pages.get(&nth).map(|(mark, _)| mark);
            (known != Some(mark)).then_some(nth)
        };
        (0..).zip(&self.marks).filter_map(is_missing)
    }

    /// Takes a heartbeat. What became of components since the last one.
    pub(super) fn alive(&mut self, alive: Alive) -> Vec<(ComponentKey, Report)> {
        (self.generation, self.running) = (alive.generation, alive.running);
        self.cut_into(u16::try_from(alive.pages.len()).unwrap_or(u16::MAX));
        self.marks = alive.pages;
        let mut reports = Vec::new();
        for (page, nth, counts) in alive.counts {
            let wanted = self.marks.get(usize::from(page));
            let known = self.pages.get_mut(&page).filter(|known| Some(&known.0) == wanted);
            let Some((key, one)) = known.and_then(|(_, page)| page.numbered().nth(nth.into())) else { continue };
            let faults = counts.faults.saturating_sub(one.counts.faults);
            if faults > 0 {
                reports.push((key.clone(), Report::Faulted(faults)));
            }
            one.counts = counts;
        }
        reports
    }

    /// Takes a page. What became of components since it was last here.
    pub(super) fn page(&mut self, page: Beat) -> Vec<(ComponentKey, Report)> {
        self.cut_into(page.pages);
        let mark = page.mark();
        // What was said last holds, also where no heartbeat names pages any more.
        if let Some(wanted) = self.marks.get_mut(usize::from(page.page)) {
            *wanted = mark;
        }
        let before = self.pages.insert(page.page, (mark, page.clone()));
        match before {
            Some((_, before)) => reports(&[&before], &[&page]),
            None if self.pages.len() < usize::from(self.count) => Vec::new(),
            // The first pages of a node that was never heard say how it is, not what happens.
            None => {
                let (former, now) = (std::mem::take(&mut self.former), self.pages.values().map(|(_, page)| page));
                let former: Vec<&Beat> = former.iter().collect();
                if former.is_empty() { Vec::new() } else { reports(&former, &now.collect::<Vec<_>>()) }
            }
        }
    }

    /// The node is lost: which components ran there until then. Should it come back, that they run is news.
    pub(super) fn lost(&mut self) -> BTreeSet<ComponentKey> {
        let pages = self.pages.values_mut().map(|(_, page)| page).chain(&mut self.former);
        let ready = pages.flat_map(|page| &mut page.components).filter(|(_, one)| one.health == Health::Ready);
        let mut ran = BTreeSet::new();
        for (key, one) in ready {
            one.health = Health::Starting;
            ran.insert(key.clone());
        }
        if !ran.is_empty() {
            // None is as the node says it is, so it is asked for.
            self.pages.values_mut().for_each(|(mark, page)| *mark = page.mark());
        }
        ran
    }

    /// With another number of pages, everything may be on another page.
    fn cut_into(&mut self, pages: u16) {
        if self.count != pages {
            if !self.pages.is_empty() {
                self.former = std::mem::take(&mut self.pages).into_values().map(|(_, page)| page).collect();
            }
            self.marks.clear();
            self.count = pages;
        }
    }
}

/// What is other in `now` than it was in `before`.
fn reports(before: &[&Beat], now: &[&Beat]) -> Vec<(ComponentKey, Report)> {
    let all = |pages: &[&'_ Beat]| -> BTreeMap<ComponentKey, OfComponent> {
        pages.iter().flat_map(|page| page.components.iter().cloned()).collect()
    };
    let links_before = before.iter().flat_map(|page| &page.links);
    let mut reports = events::pauses(links_before, now.iter().flat_map(|page| &page.links));
    let (before, now) = (all(before), all(now));
    for (key, one) in &now {
        let was = before.get(key);
        if one.health == Health::Ready && was.is_none_or(|was| was.health != Health::Ready) {
            reports.push((key.clone(), Report::Started));
        }
        // Counts begin anew with the process, and with each time that a component is held.
        let faults = one.counts.faults.saturating_sub(was.map_or(0, |was| was.counts.faults));
        if faults > 0 {
            reports.push((key.clone(), Report::Faulted(faults)));
        }
    }
    let gone = before.iter().filter(|(key, was)| was.health == Health::Ready && !now.contains_key(key));
    reports.extend(gone.map(|(key, _)| (key.clone(), Report::Stopped)));
    reports
}
