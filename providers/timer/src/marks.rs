//! What is known of a timer: which ticks were seen, and what became of those that are to run. Pure: time comes in as a
//! number, in milliseconds since 1970; what is to be kept comes out as a value that the ledger stores whole.
//!
//! A tick is claimed in the ledger before it starts, by whoever wins the write: so each tick has one start while the
//! ledger answers. The claim of a node that died ends by itself, and the tick starts once more.
//!
//! Clocks are set. Forward, the ticks in between were missed. Back, what waits waits no longer than before, and a tick that
//! was seen is not seen again; where more than one would come again, the timer goes on from the new time instead, since it
//! would stand still for too long.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use trellis_provider::delivery::{CLAIM, Record, Settlement};

use crate::schedule::Schedule;

/// A tick that is later than this is a missed one, in milliseconds: more than it takes until a dead node's claim has ended.
pub(crate) const LATE_MS: u64 = 15_000;
/// A clock that is behind by no more than this was corrected, or is another node's: it is waited for, in milliseconds.
const BEHIND_MAX_MS: u64 = 60_000;
/// Ticks that wait or run; further ones are left out.
pub(crate) const PENDING_MAX: usize = 1_000;
/// Texts of faults that are kept of one tick, the newest, and how long each may be, in bytes.
const FAULTS_KEPT_MAX: usize = 5;
const FAULT_BYTES_MAX: usize = 4 * 1_024;
/// Texts of faults that are kept of all ticks together, in bytes: the marks are one value of the ledger.
const FAULTS_BYTES_MAX: usize = 256 * 1_024;

/// What becomes of ticks that came while no node was there to see them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missed {
    /// Nothing.
    Skip,
    /// One run for all of them.
    Once,
    /// A run for each, for the newest so many.
    All(usize),
}

/// What becomes of a tick that comes while an earlier one is not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Overlap {
    /// It is left out.
    Skip,
    /// It waits for its turn.
    Queue,
    /// It runs beside the other.
    Allow,
}

/// How a timer ticks.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    pub(crate) schedule: Schedule,
    /// The schedule as it was written: another text is another schedule, which begins anew.
    pub(crate) written: String,
    pub(crate) missed: Missed,
    pub(crate) overlap: Overlap,
    /// Each tick starts up to so much later, in milliseconds, by a delay that is the same on every node.
    pub(crate) jitter_ms: u64,
    /// What tells the delays of timers apart that tick together.
    pub(crate) salt: String,
}

/// What the ledger keeps of a timer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Marks {
    written: String,
    /// Every tick up to here was seen.
    seen_ms: u64,
    /// When a node looked last, by its clock.
    looked_ms: u64,
    pending: VecDeque<Tick>,
}

/// A tick that is to run, or runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tick {
    /// When it was to be: its name.
    pub(crate) at_ms: u64,
    due_ms: u64,
    attempts: u32,
    faults: u32,
    pub(crate) fault_texts: Vec<String>,
    kills: u32,
    claim: Option<Held>,
}

/// A claim on a tick.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Held {
    by: u64,
    until_ms: u64,
}

/// A tick that was claimed, and what is known of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) at_ms: u64,
    /// Whoever claimed it: drawn anew for each claim.
    pub(crate) by: u64,
    pub(crate) attempt: u32,
    faults: u32,
    pub(crate) kills: u32,
}

impl Claim {
    /// What the policy decides by.
    pub(crate) fn record(&self, now_ms: u64) -> Record {
        let age = Duration::from_millis(now_ms.saturating_sub(self.at_ms));
        Record { attempt: self.attempt, faults: self.faults, kills: self.kills, age }
    }
}

impl Marks {
    /// A timer that begins now: what came before is no tick of it.
    pub(crate) fn begin(rules: &Rules, now_ms: u64) -> Self {
        Self { written: rules.written.clone(), seen_ms: now_ms, looked_ms: now_ms, ..Self::default() }
    }

    /// Whether there is something to [see](Self::see).
    pub(crate) fn has_news(&self, rules: &Rules, now_ms: u64) -> bool {
        let next = rules.schedule.after(self.seen_ms);
        self.written != rules.written || self.is_behind(now_ms) || next.is_some_and(|next| next <= now_ms)
    }

    /// Whether the clock was set back since a node looked last.
    const fn is_behind(&self, now_ms: u64) -> bool {
        now_ms + BEHIND_MAX_MS < self.looked_ms
    }

    /// Sees the ticks that came until now. How many were left out, because an earlier one is not done or too many wait.
    pub(crate) fn see(&mut self, rules: &Rules, now_ms: u64) -> usize {
        if self.is_behind(now_ms) {
            self.set_back(rules, now_ms);
        }
        self.looked_ms = self.looked_ms.max(now_ms);
        if self.written != rules.written {
            (self.written, self.seen_ms) = (rules.written.clone(), self.seen_ms.max(now_ms));
            return 0;
        }
        let most = if let Missed::All(most) = rules.missed { most } else { 1 };
        let mut ticks = rules.schedule.between(self.seen_ms, now_ms, most);
        let Some(newest) = ticks.last().copied() else { return 0 };
        self.seen_ms = newest;
        if rules.missed == Missed::Skip {
            ticks.retain(|tick| now_ms - tick <= LATE_MS);
        }
        let pending_max = if rules.overlap == Overlap::Skip { 1 } else { PENDING_MAX };
        let room = pending_max.saturating_sub(self.pending.len()).min(ticks.len());
        let due = ticks.iter().take(room).map(|at_ms| Tick::new(*at_ms, at_ms + delay(rules, *at_ms)));
        self.pending.extend(due);
        ticks.len() - room
    }

    /// Takes it that the clock was set back.
    fn set_back(&mut self, rules: &Rules, now_ms: u64) {
        let by_ms = self.looked_ms - now_ms;
        for tick in &mut self.pending {
            tick.due_ms = tick.due_ms.saturating_sub(by_ms);
            if let Some(held) = &mut tick.claim {
                held.until_ms = held.until_ms.min(now_ms + CLAIM_MS);
            }
        }
        let next = rules.schedule.after(now_ms);
        if next.is_some_and(|next| next < self.seen_ms) {
            self.seen_ms = now_ms;
        }
        self.looked_ms = now_ms;
    }

    /// Takes it that the clock was set forward while this node looked at it: what runs has not ended by that.
    pub(crate) fn set_forward(&mut self, by_ms: u64, now_ms: u64) {
        for held in self.pending.iter_mut().filter_map(|tick| tick.claim.as_mut()) {
            held.until_ms = held.until_ms.max((held.until_ms + by_ms).min(now_ms + CLAIM_MS));
        }
    }

    /// Claims up to `max` ticks that are due. `by` draws a number for each.
    pub(crate) fn claim(&mut self, rules: &Rules, now_ms: u64, max: usize, mut by: impl FnMut() -> u64) -> Vec<Claim> {
        let until_ms = now_ms + CLAIM_MS;
        let candidates = self.candidates(rules);
        let due = self.pending.iter_mut().take(candidates).filter(|tick| tick.free_ms() <= now_ms);
        due.take(max)
            .map(|tick| {
                tick.kills += u32::from(tick.claim.is_some());
                tick.attempts += 1;
                let by = by();
                tick.claim = Some(Held { by, until_ms });
                Claim { at_ms: tick.at_ms, by, attempt: tick.attempts, faults: tick.faults, kills: tick.kills }
            })
            .collect()
    }

    /// How many of those that wait may run now, were they due: where none may overtake another, the first.
    fn candidates(&self, rules: &Rules) -> usize {
        if rules.overlap == Overlap::Allow { self.pending.len() } else { 1 }
    }

    /// How many ticks could be claimed now, and when there is next something to do, if there is.
    pub(crate) fn outlook(&self, rules: &Rules, now_ms: u64) -> (usize, Option<u64>) {
        let waiting = self.pending.iter().take(self.candidates(rules)).map(Tick::free_ms);
        let due = waiting.clone().filter(|at| *at <= now_ms).count();
        let next = waiting.chain(rules.schedule.after(self.seen_ms.max(now_ms))).filter(|at| *at > now_ms).min();
        (due, next)
    }

    /// Carries out a settlement. `false`: the claim has ended, and the tick is another's.
    pub(crate) fn settle(&mut self, claim: &Claim, settlement: &Settlement, now_ms: u64) -> bool {
        let Some(index) = self.pending.iter().position(|tick| tick.is_held_by(claim)) else { return false };
        let tick = &mut self.pending[index];
        match settlement {
            Settlement::Ack | Settlement::Drop { .. } | Settlement::DeadLetter { .. } => {
                self.pending.remove(index);
            }
            Settlement::Retry { after, fault } => {
                tick.note(fault.as_deref());
                tick.claim = None;
                tick.due_ms = later(now_ms, *after);
                self.forget_texts();
            }
            Settlement::GiveBack { after } => {
                tick.attempts = tick.attempts.saturating_sub(1);
                tick.claim = None;
                tick.due_ms = tick.due_ms.max(later(now_ms, *after));
            }
        }
        true
    }

    /// Forgets texts of the oldest ticks until the rest fits.
    fn forget_texts(&mut self) {
        let bytes = |tick: &Tick| tick.fault_texts.iter().map(String::len).sum::<usize>();
        let mut all: usize = self.pending.iter().map(bytes).sum();
        for tick in &mut self.pending {
            if all <= FAULTS_BYTES_MAX {
                return;
            }
            all -= bytes(tick);
            tick.fault_texts.clear();
        }
    }

    /// Counts an attempt that ended, in a fault if in one, and goes on under the same claim.
    pub(crate) fn note(&mut self, claim: &Claim, fault: Option<&str>) {
        if let Some(tick) = self.pending.iter_mut().find(|tick| tick.is_held_by(claim)) {
            tick.attempts += 1;
            tick.note(fault);
            self.forget_texts();
        }
    }

    /// Has a tick start once more that was given up, whatever else waits.
    pub(crate) fn again(&mut self, at_ms: u64, now_ms: u64) {
        if self.pending.iter().all(|tick| tick.at_ms != at_ms) {
            self.pending.push_back(Tick::new(at_ms, now_ms));
        }
    }

    /// How many ticks wait, how many run, and when the oldest that waits was to be.
    pub(crate) fn standing(&self) -> (usize, usize, Option<u64>) {
        let waiting = self.pending.iter().filter(|tick| tick.claim.is_none());
        let oldest = waiting.clone().map(|tick| tick.at_ms).min();
        (waiting.clone().count(), self.pending.len() - waiting.count(), oldest)
    }

    /// Makes a claim last from now on. `false`: it has ended.
    pub(crate) fn extend(&mut self, claim: &Claim, now_ms: u64) -> bool {
        let held = self.pending.iter_mut().find(|tick| tick.is_held_by(claim)).and_then(|tick| tick.claim.as_mut());
        held.map(|held| held.until_ms = now_ms + CLAIM_MS).is_some()
    }

    /// A tick that is claimed.
    pub(crate) fn held(&self, claim: &Claim) -> Option<&Tick> {
        self.pending.iter().find(|tick| tick.is_held_by(claim))
    }
}

/// [`CLAIM`] in milliseconds.
const CLAIM_MS: u64 = CLAIM.as_secs() * 1_000;

impl Tick {
    const fn new(at_ms: u64, due_ms: u64) -> Self {
        Self { at_ms, due_ms, attempts: 0, faults: 0, fault_texts: Vec::new(), kills: 0, claim: None }
    }

    fn is_held_by(&self, claim: &Claim) -> bool {
        self.at_ms == claim.at_ms && self.claim.as_ref().is_some_and(|held| held.by == claim.by)
    }

    /// From when on it may be claimed.
    fn free_ms(&self) -> u64 {
        self.claim.as_ref().map_or(self.due_ms, |held| held.until_ms)
    }

    fn note(&mut self, fault: Option<&str>) {
        let Some(fault) = fault else { return };
        self.faults = self.faults.saturating_add(1);
        if self.fault_texts.len() == FAULTS_KEPT_MAX {
            self.fault_texts.remove(0);
        }
        self.fault_texts.push(fault[..fault.floor_char_boundary(FAULT_BYTES_MAX)].to_owned());
    }
}

fn later(now_ms: u64, after: Duration) -> u64 {
    now_ms.saturating_add(u64::try_from(after.as_millis()).unwrap_or(u64::MAX))
}

/// How much later than planned a tick starts: spread evenly, and the same on every node.
fn delay(rules: &Rules, at_ms: u64) -> u64 {
    if rules.jitter_ms == 0 {
        return 0;
    }
    // FNV-1a: a fixed function, so that nodes of different versions agree.
    let bytes = rules.salt.bytes().chain(at_ms.to_le_bytes());
    let hash =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    hash % (rules.jitter_ms + 1)
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use proptest::prelude::*;
    use trellis_provider::delivery::{Ran, Reason};
    use trellis_wire::frame;

    use super::*;

    /// A timer every ten seconds whose story is told line by line, in seconds.
    struct Story {
        rules: Rules,
        marks: Marks,
        claims: Vec<Claim>,
        drawn: u64,
        left_out: usize,
        told: String,
    }

    impl Story {
        fn new(missed: Missed, overlap: Overlap) -> Self {
            let (schedule, written) = (Schedule::Every { period_ms: 10_000 }, "every 10000".to_owned());
            let rules = Rules { schedule, written, missed, overlap, jitter_ms: 0, salt: String::new() };
            let marks = Marks::begin(&rules, 5_000);
            Self { rules, marks, claims: Vec::new(), drawn: 0, left_out: 0, told: String::new() }
        }

        /// A node looks, and claims what it may.
        fn look(&mut self, at: u64) -> &mut Self {
            let now = at * 1_000;
            self.left_out += self.marks.see(&self.rules, now);
            let drawn = &mut self.drawn;
            let claims = self.marks.claim(&self.rules, now, 10, || {
                *drawn += 1;
                *drawn
            });
            let said = |claim: &Claim| format!("{}#{}", claim.at_ms / 1_000, claim.attempt);
            let starts: Vec<_> = claims.iter().map(said).collect();
            let (due, next) = self.marks.outlook(&self.rules, now);
            assert_eq!(due, 0, "what may be claimed was claimed");
            let next = next.unwrap() / 1_000;
            writeln!(self.told, "{at}: starts {}; next look {next}", starts.join(" ")).unwrap();
            self.claims.extend(claims);
            // What the ledger gives back is what it was given.
            self.marks = frame::decode(&frame::encode(&self.marks)).unwrap();
            self
        }

        /// The oldest start ends.
        fn end(&mut self, at: u64, settlement: &Settlement) -> &mut Self {
            let claim = self.claims.remove(0);
            let counts = self.marks.settle(&claim, settlement, at * 1_000);
            writeln!(self.told, "{at}: {} ended{}", claim.at_ms / 1_000, if counts { "" } else { ", too late" })
                .unwrap();
            self
        }

        fn done(&mut self, at: u64) -> &mut Self {
            self.end(at, &Settlement::Ack)
        }
    }

    fn again(after: u64) -> Settlement {
        Settlement::Retry { after: Duration::from_secs(after), fault: Some("it trapped".into()) }
    }

    #[test]
    fn each_tick_starts_once_and_what_came_before_the_timer_does_not() {
        let mut story = Story::new(Missed::Once, Overlap::Skip);
        story.look(6).look(10).look(11).done(12).look(20).done(21).look(29);
        assert_eq!(
            story.told,
            "6: starts ; next look 10\n10: starts 10#1; next look 20\n11: starts ; next look 20\n10: ended\n"
                .replace("10: ended", "12: 10 ended")
                + "20: starts 20#1; next look 30\n21: 20 ended\n29: starts ; next look 30\n"
        );
    }

    #[test]
    fn of_missed_ticks_none_one_or_all_start() {
        let told = |missed| {
            let mut story = Story::new(missed, Overlap::Allow);
            story.look(10).done(11).look(78).look(80);
            story.told.lines().skip(2).map(|line| format!("{line}\n")).collect::<String>()
        };
        assert_eq!(told(Missed::Skip), "78: starts 70#1; next look 80\n80: starts 80#1; next look 88\n");
        assert_eq!(told(Missed::Once), "78: starts 70#1; next look 80\n80: starts 80#1; next look 88\n");
        assert_eq!(
            told(Missed::All(100)),
            "78: starts 20#1 30#1 40#1 50#1 60#1 70#1; next look 80\n80: starts 80#1; next look 88\n"
        );
        assert_eq!(told(Missed::All(2)), "78: starts 60#1 70#1; next look 80\n80: starts 80#1; next look 88\n");
        // Long after the last tick of a slow timer, `skip` starts nothing and `once` does.
        for (missed, starts) in [(Missed::Skip, 0), (Missed::Once, 1)] {
            let mut story = Story::new(missed, Overlap::Skip);
            story.rules.schedule = Schedule::Every { period_ms: 3_600_000 };
            story.look(3_600 + 16);
            assert_eq!(story.claims.len(), starts, "{missed:?}");
        }
    }

    #[test]
    fn a_tick_that_comes_too_early_is_left_out_waits_or_runs_beside() {
        let told = |overlap| {
            let mut story = Story::new(Missed::Once, overlap);
            story.look(10);
            story.marks.extend(&story.claims[0].clone(), 19_000);
            story.look(20).done(25).look(25);
            format!("{}left out {}\n", story.told, story.left_out)
        };
        assert_eq!(
            told(Overlap::Skip),
            "10: starts 10#1; next look 20\n20: starts ; next look 29\n25: 10 ended\n25: starts ; next look 30\nleft out 1\n"
        );
        assert_eq!(
            told(Overlap::Queue),
            "10: starts 10#1; next look 20\n20: starts ; next look 29\n25: 10 ended\n25: starts 20#1; next look 30\nleft out 0\n"
        );
        assert_eq!(
            told(Overlap::Allow),
            "10: starts 10#1; next look 20\n20: starts 20#1; next look 29\n25: 10 ended\n25: starts ; next look 30\nleft out 0\n"
        );
    }

    #[test]
    fn a_tick_whose_node_died_starts_again_and_the_dead_one_has_no_say() {
        let mut story = Story::new(Missed::Once, Overlap::Queue);
        story.look(10).look(19).look(20).done(21);
        let again = story.claims[0].clone();
        assert_eq!((again.kills, again.record(30_000).age), (1, Duration::from_secs(20)));
        story.done(22).look(23);
        assert_eq!(
            story.told,
            "10: starts 10#1; next look 20\n19: starts ; next look 20\n20: starts 10#2; next look 30\n21: 10 ended, too late\n\
             22: 10 ended\n23: starts 20#1; next look 30\n"
        );
    }

    #[test]
    fn what_fails_is_tried_again_and_what_is_given_back_was_no_attempt() {
        let mut story = Story::new(Missed::Once, Overlap::Skip);
        story
            .look(10)
            .end(11, &again(3))
            .look(12)
            .look(14)
            .end(15, &Settlement::GiveBack { after: Duration::ZERO })
            .look(15);
        assert_eq!(story.claims[0].faults, 1);
        assert_eq!(story.marks.held(&story.claims[0]).unwrap().fault_texts, ["it trapped"]);
        let dead = Settlement::DeadLetter { reason: Reason::MaxFaults { faults: 2 }, fault: None, ran: Ran::default() };
        story.end(16, &dead).look(20);
        assert_eq!(
            story.told,
            "10: starts 10#1; next look 20\n11: 10 ended\n12: starts ; next look 14\n14: starts 10#2; next look 20\n\
             15: 10 ended\n15: starts 10#2; next look 20\n16: 10 ended\n20: starts 20#1; next look 30\n"
        );
    }

    #[test]
    fn another_schedule_begins_anew() {
        let mut story = Story::new(Missed::Once, Overlap::Skip);
        story.look(10).done(11);
        (story.rules.schedule, story.rules.written) = (Schedule::Every { period_ms: 7_000 }, "every 7000".into());
        story.look(25).look(28);
        assert!(story.told.ends_with("25: starts ; next look 28\n28: starts 28#1; next look 35\n"), "{}", story.told);
    }

    #[test]
    fn a_clock_that_is_a_little_behind_starts_no_tick_twice() {
        let mut story = Story::new(Missed::Once, Overlap::Skip);
        story.look(60).done(61).look(15).look(30).look(70);
        assert_eq!(
            story.told,
            "60: starts 60#1; next look 70\n61: 60 ended\n15: starts ; next look 70\n30: starts ; next look 70\n\
             70: starts 70#1; next look 80\n"
        );
    }

    #[test]
    fn a_clock_set_back_by_hours_stops_neither_the_timer_nor_what_waits() {
        let mut story = Story::new(Missed::Once, Overlap::Queue);
        story.look(20_010);
        story.marks.extend(&story.claims[0].clone(), 20_015_000);
        // Five hours are taken back while one tick runs, on a node that dies then, and another waits for its turn.
        story.look(20_020).look(2_015).look(2_020).look(2_025).done(2_026).done(2_026);
        story.look(2_026).done(2_027).look(2_027).done(2_028).look(2_030);
        assert_eq!(
            story.told,
            "20010: starts 20010#1; next look 20020\n20020: starts ; next look 20025\n2015: starts ; next look 2020\n\
             2020: starts ; next look 2025\n2025: starts 20010#2; next look 2030\n2026: 20010 ended, too late\n\
             2026: 20010 ended\n2026: starts 20020#1; next look 2030\n2027: 20020 ended\n\
             2027: starts 2020#1; next look 2030\n2028: 2020 ended\n2030: starts 2030#1; next look 2040\n"
        );
    }

    #[test]
    fn a_tick_of_today_does_not_come_again_where_the_clock_is_set_back_by_hours() {
        let mut story = Story::new(Missed::Once, Overlap::Skip);
        story.rules.schedule = Schedule::Every { period_ms: 86_400_000 };
        story.look(86_405).done(86_406).look(80_000).look(86_500).look(172_800);
        assert_eq!(
            story.told,
            "86405: starts 86400#1; next look 86415\n86406: 86400 ended\n80000: starts ; next look 172800\n\
             86500: starts ; next look 172800\n172800: starts 172800#1; next look 172810\n"
        );
    }

    #[test]
    fn a_clock_set_forward_by_hours_is_a_time_of_missed_ticks_and_what_runs_goes_on() {
        let told = |missed, overlap| {
            let mut story = Story::new(missed, overlap);
            story.look(10);
            story.marks.set_forward(18_000_000, 18_012_000);
            story.look(18_012).done(18_013).look(18_013);
            story.told.lines().skip(1).map(|line| format!("{line}\n")).collect::<String>()
        };
        assert_eq!(
            told(Missed::Once, Overlap::Queue),
            "18012: starts ; next look 18020\n18013: 10 ended\n18013: starts 18010#1; next look 18020\n"
        );
        assert_eq!(
            told(Missed::All(2), Overlap::Allow),
            "18012: starts 18000#1 18010#1; next look 18020\n18013: 10 ended\n18013: starts ; next look 18020\n"
        );
        // Nothing is made up for, but the tick that is only just over.
        assert_eq!(told(Missed::Skip, Overlap::Queue), told(Missed::Once, Overlap::Queue));
    }

    /// What the clock does before a node looks, in seconds, and whether that node dies at once.
    fn looks() -> impl Strategy<Value = Vec<(i64, bool)>> {
        prop::collection::vec((prop_oneof![0..30_i64, -100..100_i64, -100_000..100_000_i64], any::<bool>()), 0..40)
    }

    proptest! {
        #[test]
        fn whatever_the_clock_did_ticks_come_soon_and_no_more_than_the_policy_lets_come(
            looks in looks(),
            missed in prop_oneof![Just(Missed::Skip), Just(Missed::Once), Just(Missed::All(5))],
            overlap in prop_oneof![Just(Overlap::Skip), Just(Overlap::Queue), Just(Overlap::Allow)],
        ) {
            let rules = Story::new(missed, overlap).rules;
            let mut now = 1_000_000_000;
            let (mut marks, mut drawn) = (Marks::begin(&rules, now), 0);
            let mut look = |now: u64, dies: bool| {
                marks.see(&rules, now);
                let claims = marks.claim(&rules, now, 1_000, || { drawn += 1; drawn });
                claims.iter().filter(|_| !dies).for_each(|claim| assert!(marks.settle(claim, &Settlement::Ack, now)));
                claims.len()
            };
            for &(by, dies) in &looks {
                now = now.saturating_add_signed(by * 1_000);
                look(now, dies);
            }
            // From here on the clock is right: what dead nodes left over is done, and then ticks come one by one.
            let starts: Vec<usize> = (0..400).map(|_| { now += 10_000; look(now, false) }).collect();
            let first = starts.iter().position(|starts| *starts > 0);
            prop_assert!(first.is_some_and(|first| first <= 8), "it stands still: {starts:?}");
            let most = looks.len() * 5 + 1;
            prop_assert!(starts.iter().all(|starts| *starts <= most), "it runs wild: {starts:?}");
            prop_assert!(starts[300..].iter().all(|starts| *starts == 1), "it does not come to rest: {starts:?}");
        }
    }

    #[test]
    fn jitter_is_bounded_and_spreads_timers_and_ticks() {
        let mut rules = Story::new(Missed::Once, Overlap::Skip).rules;
        (rules.jitter_ms, rules.salt) = (5_000, "a".into());
        let delays: Vec<u64> = (1..=1_000).map(|n| delay(&rules, n * 10_000)).collect();
        assert!(delays.iter().all(|delay| *delay <= 5_000));
        let mean = delays.iter().sum::<u64>() / 1_000;
        assert!((2_000..3_000).contains(&mean), "{mean}");
        rules.salt = "b".into();
        let others = (1..=1_000).map(|n| delay(&rules, n * 10_000)).collect::<Vec<_>>();
        assert!(delays.iter().zip(&others).filter(|(a, b)| a == b).count() < 50);
    }
}
