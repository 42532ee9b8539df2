//! The breaker: a trigger pauses by itself when most of what it handles fails. Pure: times are given.
//!
//! It goes by how the last first attempts of the lattice ended, as far as this node knows of them. When more than half of
//! [`WINDOW`](super::window::WINDOW) failed, it opens: nothing is dead-lettered any more, and one message a minute is tried.
//! The first of those that goes well closes it, or a person. What began before it opened says nothing while it is open, nor
//! afterwards: so each run begins with a [`Leave`], which holds until the breaker opens or closes next.

use super::window::Window;

/// The time between two probes, in milliseconds.
pub const PROBE_EVERY_MS: u64 = 60_000;

/// The breaker of one trigger. Times are in one kind of milliseconds, whichever that is.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    /// The last first attempts, and those among them that other nodes were not told of.
    last: Window,
    untold: Window,
    open: Option<Open>,
    /// How often it opened and closed.
    changes: u64,
}

/// Leave to begin messages: as many as one likes, or one where it is a probe. It holds until the breaker opens or closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Leave {
    changes: u64,
    is_probe: bool,
}

impl Leave {
    pub(super) const fn is_probe(self) -> bool {
        self.is_probe
    }
}

#[derive(Debug, Clone, Copy)]
struct Open {
    since_ms: u64,
    /// When the next message may be tried.
    probe_ms: u64,
}

/// What a run did to the breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// It opened: so many of the last first attempts failed.
    Opened(usize),
    /// It closed.
    Closed,
}

impl Breaker {
    /// An attempt ended so that began with this leave. What was never run does not come here.
    pub(super) fn ran(&mut self, leave: Leave, attempt: u32, failed: bool, now_ms: u64) -> Option<Change> {
        if !self.holds(leave) {
            return None;
        }
        if self.open.is_some() {
            // A probe.
            return (!failed && self.close()).then_some(Change::Closed);
        }
        if attempt > 1 {
            return None;
        }
        self.last.push(now_ms, failed);
        self.untold.push(now_ms, failed);
        self.judged(now_ms)
    }

    /// Whether other nodes are to be told of what was not told them: something failed.
    pub(super) fn has_news(&self) -> bool {
        self.open.is_none() && !self.untold.is_empty() && self.last.failures() > 0
    }

    /// Takes what other nodes are to be told.
    pub(super) fn take_untold(&mut self) -> Window {
        std::mem::take(&mut self.untold)
    }

    /// They were not told of it.
    pub(super) fn untell(&mut self, untold: &Window, now_ms: u64) {
        self.untold = self.untold.with(untold, now_ms);
    }

    /// These are the last first attempts of the lattice.
    pub(super) fn told(&mut self, all: Window, now_ms: u64) -> Option<Change> {
        if self.open.is_some() {
            return None;
        }
        self.last = self.untold.with(&all, now_ms);
        self.judged(now_ms)
    }

    fn judged(&mut self, now_ms: u64) -> Option<Change> {
        if !self.last.is_bad() {
            return None;
        }
        self.reopen(now_ms, PROBE_EVERY_MS);
        Some(Change::Opened(self.last.failures()))
    }

    /// It is open on another node, or was before this one began. The next probe is due in so long.
    pub(super) fn reopen(&mut self, now_ms: u64, probe_in_ms: u64) {
        if self.open.is_none() {
            self.open = Some(Open { since_ms: now_ms, probe_ms: now_ms.saturating_add(probe_in_ms) });
            self.changes += 1;
        }
    }

    /// Whether it is open: since when.
    pub(super) fn open_since_ms(&self) -> Option<u64> {
        self.open.map(|open| open.since_ms)
    }

    /// Leave for the next messages. While it is open, a wait that is over is the probe's, and the next one begins.
    ///
    /// # Errors
    /// How long to wait, in ms.
    pub(super) fn leave(&mut self, now_ms: u64) -> Result<Leave, u64> {
        if let Some(open) = &mut self.open {
            let left = open.probe_ms.saturating_sub(now_ms);
            if left > 0 {
                return Err(left);
            }
            open.probe_ms = now_ms + PROBE_EVERY_MS;
        }
        Ok(Leave { changes: self.changes, is_probe: self.open.is_some() })
    }

    /// Whether it neither opened nor closed since.
    pub(super) const fn holds(&self, leave: Leave) -> bool {
        self.changes == leave.changes
    }

    /// Closes it, and counts anew. Whether it was open.
    pub(super) fn close(&mut self) -> bool {
        let was_open = self.open.is_some();
        *self = Self { changes: self.changes + u64::from(was_open), ..Self::default() };
        was_open
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fmt::Write as _;

    use super::*;

    /// A first attempt that begins and ends now.
    fn first(breaker: &mut Breaker, failed: bool, now_ms: u64) -> Option<Change> {
        let leave = breaker.leave(now_ms).unwrap();
        breaker.ran(leave, 1, failed, now_ms)
    }

    /// Carries out a script of lines `<second> <what happens> <to which messages>...`, and says what follows from each.
    fn told(script: &str) -> String {
        let (mut breaker, mut begun, mut told) = (Breaker::default(), BTreeMap::new(), String::new());
        for line in script.lines().map(str::trim) {
            let mut words = line.split(' ');
            let now_ms = words.next().unwrap().parse::<u64>().unwrap() * 1_000;
            let (what, names) = (words.next().unwrap(), words.collect::<Vec<_>>());
            let ended = |breaker: &mut Breaker, attempt, failed| -> Vec<String> {
                let changes = names.iter().map(|name| breaker.ran(begun[name], attempt, failed, now_ms));
                changes.flatten().map(|change| format!("{change:?}")).collect()
            };
            let follows = match what {
                "begin" => names.iter().map(|name| begin(&mut breaker, &mut begun, name, now_ms)).collect(),
                "well" => ended(&mut breaker, 1, false),
                "fails" => ended(&mut breaker, 1, true),
                "well-at-last" => ended(&mut breaker, 2, false),
                "25-fail" => {
                    (0..25).filter_map(|_| first(&mut breaker, true, now_ms)).map(|it| format!("{it:?}")).collect()
                }
                "pauses-elsewhere" => {
                    breaker.reopen(now_ms, 30_000);
                    Vec::new()
                }
                "a-person-resumes" => vec![format!("was open: {}", breaker.close())],
                _ => panic!("{line}"),
            };
            let state = if breaker.open_since_ms().is_some() { "open" } else { "closed" };
            writeln!(told, "{line:<32} {state:<6} {}", follows.join(", ")).unwrap();
        }
        told.lines().map(|line| format!("{}\n", line.trim_end())).collect()
    }

    fn begin<'a>(breaker: &mut Breaker, begun: &mut BTreeMap<&'a str, Leave>, name: &'a str, now_ms: u64) -> String {
        match breaker.leave(now_ms) {
            Ok(leave) => {
                begun.insert(name, leave);
                format!("{name} {}", if leave.is_probe() { "is a probe" } else { "may" })
            }
            Err(left) => format!("{name} waits {left} ms"),
        }
    }

    #[test]
    fn what_began_before_a_pause_neither_ends_nor_prolongs_it() {
        insta::assert_snapshot!(told(
            "0 begin slow late ill
             1 25-fail
             2 begin last
             2 fails last
             3 well slow
             3 fails ill
             4 begin next
             63 begin one two
             64 fails one
             65 well late
             123 begin three
             124 well three
             124 begin four
             125 well one
             125 fails slow
             126 25-fail
             127 well slow
             128 fails four"
        ));
    }

    #[test]
    fn a_pause_of_another_node_is_ended_by_no_run_from_before_it_and_by_no_probe_of_an_earlier_one() {
        insta::assert_snapshot!(told(
            "0 begin slow
             1 pauses-elsewhere
             2 well slow
             31 begin probe
             32 a-person-resumes
             33 begin after
             34 pauses-elsewhere
             35 well probe
             36 well-at-last after
             64 begin next
             65 well-at-last next
             66 pauses-elsewhere
             67 well next"
        ));
    }

    #[test]
    fn it_opens_when_more_than_half_of_the_last_fifty_failed() {
        let mut breaker = Breaker::default();
        for i in 0..200 {
            assert_eq!(first(&mut breaker, i % 2 == 0, 0), None, "half is not more than half");
        }
        let leave = breaker.leave(0).unwrap();
        assert_eq!(breaker.ran(leave, 2, true, 0), None, "later attempts do not count");
        assert_eq!(breaker.ran(leave, 1, true, 7), None, "the oldest of the last fifty was a failure too");
        assert_eq!(breaker.ran(leave, 1, true, 7), Some(Change::Opened(26)));
        assert_eq!((breaker.open_since_ms(), breaker.ran(leave, 1, true, 8)), (Some(7), None));
    }

    #[test]
    fn what_others_told_counts_like_its_own() {
        let (mut one, mut other) = (Breaker::default(), Breaker::default());
        for breaker in [&mut one, &mut other] {
            assert!(!breaker.has_news());
            (0..20).for_each(|_| assert_eq!(first(breaker, true, 5), None));
            assert!(breaker.has_news());
        }
        let all = one.take_untold().with(&Window::default(), 6);
        assert_eq!((one.told(all.clone(), 6), one.has_news()), (None, false));
        let untold = other.take_untold();
        other.untell(&untold, 7);
        assert!(other.has_news(), "the ledger was away");
        let all = other.take_untold().with(&all, 8);
        assert_eq!(other.told(all.clone(), 8), Some(Change::Opened(40)));
        assert_eq!((other.told(all, 9), other.has_news()), (None, false));
        assert_eq!(first(&mut other, false, 60_008), Some(Change::Closed));
        assert_eq!(first(&mut other, true, 60_009), None, "it counts anew");
    }

    #[test]
    fn a_new_trigger_needs_twenty_six_failures() {
        let mut breaker = Breaker::default();
        let opened = (0..26).position(|_| first(&mut breaker, true, 0).is_some());
        assert_eq!(opened, Some(25));
    }

    #[test]
    fn one_probe_a_minute() {
        let mut breaker = Breaker::default();
        (0..26).for_each(|_| _ = first(&mut breaker, true, 1_000));
        assert_eq!(breaker.leave(1_000), Err(60_000));
        let probe = breaker.leave(61_000).unwrap();
        assert!(probe.is_probe() && breaker.holds(probe));
        assert_eq!(breaker.leave(61_001), Err(59_999), "one");
        assert_eq!(breaker.ran(probe, 4, true, 61_500), None);
        let probe = breaker.leave(121_000).unwrap();
        assert_eq!(breaker.ran(probe, 5, false, 121_000), Some(Change::Closed));
        assert!(!breaker.holds(probe) && !breaker.leave(121_000).unwrap().is_probe());
        assert!(!breaker.close(), "it was closed");
    }
}
