//! Lanes: which message of an ordered link may run next. Pure: messages and what became of them come in, what to do comes
//! out; times are given.
//!
//! A lane holds the messages of one key, by their position. Its first may run when nothing of the key is under way, and
//! nothing that stands before it was given back: what a lane has no room for goes back to the broker and is remembered
//! until it comes again. A parked lane lets only replays pass, and the last that is replayed well opens it again.
//!
//! A backlog of few keys must not go back and forth between the broker and full lanes. So a message is given back for about
//! as long as its lane takes to come to it; and once [`LOOK_AHEAD`] are out so, nothing new is pulled but what lanes wait
//! for, unless looking further found messages that could be held.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

/// Messages that an ordered link may hold.
pub const LOOK_AHEAD: usize = 256;
/// Messages of one key among them.
pub const LANE_MAX: usize = 32;
/// Messages that were given back and are awaited. At the bound nothing new is pulled.
pub const BACK_MAX: usize = 4_096;
/// How long what has no room is given back for: no longer than a claim, since a new holder waits for it.
pub(super) const BACK: Duration = Duration::from_secs(8);
const BACK_MIN: Duration = Duration::from_millis(100);
/// How long a lane takes for a message, until it is known.
const PACE: Duration = Duration::from_millis(10);
/// It is worth looking further while one of so many new messages can be held.
const WORTH: usize = 32;
/// How long nothing is pulled for a lane that waits, after what was due did not come; and for one that is parked alone, after
/// what came was no replay.
const LATE_MS: u64 = 500;
/// How long after it was due a message that was given back is awaited, while the broker has nothing more to give out.
const BACK_GRACE_MS: u64 = 30_000;

/// The messages that an ordered link holds, as `T`.
#[derive(Debug)]
pub(super) struct Lanes<T> {
    lanes: HashMap<String, Lane<T>>,
    /// Keys in the order in which their lanes may run something, as far as they still may.
    turns: VecDeque<String>,
    /// Messages that are held: those that wait and those under way.
    held: usize,
    back: usize,
    /// Messages that may be out for lanes that are not parked before nothing new is pulled.
    reach: usize,
    /// New messages since that was set, and how many of them were of keys that had none, and could be held.
    looked: usize,
    found: usize,
    /// Until when nothing is pulled for a lane that waits, and for one that is parked.
    late_ms: u64,
    no_replay_ms: u64,
}

#[derive(Debug)]
struct Lane<T> {
    waiting: BTreeMap<u128, T>,
    /// Replays that wait for a parked lane.
    replays: VecDeque<(u128, T)>,
    busy: Option<Busy>,
    parked: bool,
    /// Where that stands which parked it, if it did here.
    parked_by: Option<u128>,
    /// What was given back, and when it is due.
    back: BTreeMap<u128, u64>,
    /// How long it takes for a message.
    pace: Duration,
}

/// What is under way: where it stands, whether it is a replay, and since when.
#[derive(Debug)]
struct Busy {
    position: u128,
    replay: bool,
    since_ms: u64,
}

impl<T> Default for Lane<T> {
    fn default() -> Self {
        let (waiting, replays, back) = (BTreeMap::new(), VecDeque::new(), BTreeMap::new());
        Self { waiting, replays, busy: None, parked: false, parked_by: None, back, pace: PACE }
    }
}

/// What came of a message that ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// It is off: acknowledged or dropped.
    Off,
    /// The same of a replay whose key has another dead letter.
    OffBeside,
    /// It is a dead letter, and the link goes on.
    Continue,
    /// It is a dead letter, and its key waits for someone to decide.
    Park,
    /// It was given back and is due then.
    Back {
        /// In the caller's milliseconds.
        due_ms: u64,
    },
}

impl<T> Default for Lanes<T> {
    fn default() -> Self {
        let (lanes, turns) = (HashMap::new(), VecDeque::new());
        let (looked, found, late_ms, no_replay_ms) = (0, 0, 0, 0);
        Self { lanes, turns, held: 0, back: 0, reach: LOOK_AHEAD, looked, found, late_ms, no_replay_ms }
    }
}

impl<T> Lanes<T> {
    /// How many more may be pulled. Where nothing new may be, as many as are due of what lanes wait for, or one that may be
    /// the replay that a parked lane waits for.
    pub(super) fn room(&self, now_ms: u64) -> usize {
        let held = LOOK_AHEAD.saturating_sub(self.held);
        let new = BACK_MAX.saturating_sub(self.back).min(self.reach.saturating_sub(self.moving()));
        match held.min(new) {
            0 => self.wanted(held, now_ms),
            room => room,
        }
    }

    /// How many lanes wait for, of so many that may be held.
    fn wanted(&self, held: usize, now_ms: u64) -> usize {
        let mut lanes = self.lanes.values();
        let due = match held {
            _ if now_ms < self.late_ms => 0,
            0 => usize::from(lanes.any(|lane| lane.is_blocked() && lane.due(now_ms) > 0)),
            held => lanes.map(|lane| lane.wants(now_ms)).sum::<usize>().min(held),
        };
        let may_be_replayed = held > 0 && now_ms >= self.no_replay_ms && self.has_parked();
        due.max(usize::from(may_be_replayed))
    }

    /// Whether nothing new is pulled before someone decides on what is parked.
    pub(super) fn is_full(&self) -> bool {
        self.back >= BACK_MAX && self.moving() == 0
    }

    /// Messages that are out for lanes that are not parked.
    fn moving(&self) -> usize {
        self.lanes.values().filter(|lane| !lane.parked).map(|lane| lane.back.len()).sum()
    }

    pub(super) fn has_parked(&self) -> bool {
        self.lanes.values().any(|lane| lane.parked)
    }

    /// Keys that are parked.
    pub(super) fn parked(&self) -> Vec<String> {
        let parked = self.lanes.iter().filter(|(_, lane)| lane.parked);
        parked.map(|(key, _)| key.clone()).collect()
    }

    /// Holds a message that was pulled. Returns one that there is no room for, and how long it is to be given back for; it
    /// is remembered. Of one key those that stand first are held.
    pub(super) fn offer(
        &mut self,
        key: &str,
        position: u128,
        replay: bool,
        message: T,
        now_ms: u64,
    ) -> Option<(T, Duration)> {
        let lane = self.lanes.entry(key.to_owned()).or_default();
        let is_new = lane.back.remove(&position).is_none();
        self.back -= usize::from(!is_new);
        self.turns.push_back(key.to_owned());
        if !replay {
            self.no_replay_ms = now_ms + LATE_MS;
        }
        let is_full = lane.waiting.len() + lane.replays.len() >= LANE_MAX || self.held >= LOOK_AHEAD;
        let is_held = !is_full && (!lane.parked || replay);
        let is_found = is_held && lane.is_idle();
        if is_held {
            match lane.parked {
                true => lane.replays.push_back((position, message)),
                false => drop(lane.waiting.insert(position, message)),
            }
            self.held += 1;
            self.saw(is_new, is_found, now_ms);
            return None;
        }
        let (last, message) = match lane.waiting.last_entry() {
            Some(last) if !lane.parked && *last.key() > position => {
                let last = last.remove_entry();
                lane.waiting.insert(position, message);
                last
            }
            _ => (position, message),
        };
        let wait = lane.wait(last, now_ms);
        lane.back.insert(last, due(now_ms, wait));
        self.back += 1;
        self.saw(is_new, is_found, now_ms);
        Some((message, wait))
    }

    /// Whether a message is new that was pulled, and was worth finding: by that it is known whether to look further.
    fn saw(&mut self, is_new: bool, is_found: bool, now_ms: u64) {
        if self.back == 0 {
            (self.reach, self.looked, self.found) = (LOOK_AHEAD, 0, 0);
        }
        self.looked += usize::from(is_new);
        self.found += usize::from(is_new && is_found);
        // The last few that are pulled may always be those that come back.
        if is_found || self.moving() + LANE_MAX < self.reach {
            return;
        }
        if self.looked > 0 && self.found * WORTH >= self.looked {
            (self.reach, self.looked, self.found) = ((self.reach * 2).min(BACK_MAX), 0, 0);
        } else if is_new && self.moving() > self.reach {
            // It came in the place of what was due.
            self.late_ms = now_ms + LATE_MS;
        }
    }

    /// The next message that may run, with its key. Until [`Lanes::ended`] nothing else of that key is given.
    pub(super) fn next(&mut self, now_ms: u64) -> Option<(String, T)> {
        for _ in 0..self.turns.len() {
            let key = self.turns.pop_front()?;
            let lane = self.lanes.get_mut(&key)?;
            if lane.busy.is_some() {
                // It has its turn again when that ends.
                continue;
            }
            if let Some((position, message, replay)) = lane.take() {
                lane.busy = Some(Busy { position, replay, since_ms: now_ms });
                return Some((key, message));
            }
        }
        None
    }

    /// What was given for a key has ended. Whether the key was parked by it or is no longer; `None`: neither.
    pub(super) fn ended(&mut self, key: &str, end: End, now_ms: u64) -> Option<bool> {
        let lane = self.lanes.get_mut(key)?;
        let Busy { position, replay, since_ms } = lane.busy.take()?;
        lane.pace = (lane.pace * 15 + Duration::from_millis(now_ms.saturating_sub(since_ms))) / 16;
        self.held -= 1;
        let before = lane.parked;
        match end {
            End::Off | End::Continue => lane.parked &= !replay || !lane.replays.is_empty(),
            End::OffBeside => {}
            End::Park => {
                lane.parked = true;
                lane.parked_by = (!replay).then_some(position).or(lane.parked_by);
            }
            End::Back { due_ms } => {
                lane.back.insert(position, due_ms);
                self.back += 1;
            }
        }
        let changed = (lane.parked != before).then_some(lane.parked);
        self.turn(key);
        changed
    }

    /// Whether what stands there parked its key: it is gone, unless it could not be made a dead letter.
    pub(super) fn is_parked_by(&self, key: &str, position: u128) -> bool {
        self.lanes.get(key).is_some_and(|lane| lane.parked && lane.parked_by == Some(position))
    }

    /// Parks a key that was parked before this began, or opens it because someone decided so.
    pub(super) fn park(&mut self, key: &str, parked: bool) {
        let lane = self.lanes.entry(key.to_owned()).or_default();
        (lane.parked, lane.parked_by) = (parked, None);
        self.turn(key);
    }

    /// Takes what waits in a parked lane, to be given back for [`BACK`]: it would keep others from being held.
    pub(super) fn hand_back(&mut self, key: &str, now_ms: u64) -> Vec<T> {
        let Some(lane) = self.lanes.get_mut(key) else { return Vec::new() };
        let waiting = std::mem::take(&mut lane.waiting);
        lane.back.extend(waiting.keys().map(|position| (*position, due(now_ms, BACK))));
        self.back += waiting.len();
        self.held -= waiting.len();
        waiting.into_values().collect()
    }

    /// When the last is due of what was given back.
    pub(super) fn last_due_ms(&self) -> Option<u64> {
        self.lanes.values().flat_map(|lane| lane.back.values()).copied().max()
    }

    /// Takes everything that waits, because the link ends.
    pub(super) fn take_all(&mut self) -> Vec<T> {
        let mut all = Vec::new();
        for lane in self.lanes.values_mut() {
            all.extend(std::mem::take(&mut lane.waiting).into_values());
            all.extend(std::mem::take(&mut lane.replays).into_iter().map(|(_, message)| message));
        }
        self.held -= all.len();
        all
    }

    /// The broker had nothing more to give out: what was due long before is not there any more. Returns how many such
    /// there were.
    pub(super) fn ran_dry(&mut self, now_ms: u64) -> usize {
        let mut gone = Vec::new();
        for (key, lane) in &mut self.lanes {
            let before = lane.back.len();
            lane.back.retain(|_, due_ms| due_ms.saturating_add(BACK_GRACE_MS) > now_ms);
            gone.extend((lane.back.len() < before).then(|| (key.clone(), before - lane.back.len())));
        }
        let count = gone.iter().map(|(_, count)| count).sum();
        self.back -= count;
        gone.iter().for_each(|(key, _)| self.turn(key));
        count
    }

    /// A lane may run something, or is not needed any more.
    fn turn(&mut self, key: &str) {
        let Some(lane) = self.lanes.get(key) else { return };
        if lane.is_idle() {
            self.lanes.remove(key);
        } else {
            self.turns.push_back(key.to_owned());
        }
    }
}

impl<T> Lane<T> {
    /// The first message, if it may run: where it stands, and whether it is a replay.
    fn take(&mut self) -> Option<(u128, T, bool)> {
        if self.parked {
            return self.replays.pop_front().map(|(position, message)| (position, message, true));
        }
        if let Some((position, message)) = self.replays.pop_front() {
            // It came while the lane was parked, and another opened it.
            self.waiting.insert(position, message);
        }
        let first = *self.waiting.first_key_value()?.0;
        if self.back.first_key_value().is_some_and(|(back, _)| *back < first) {
            return None;
        }
        self.waiting.pop_first().map(|(position, message)| (position, message, false))
    }

    /// Whether what waits cannot run before something comes back.
    fn is_blocked(&self) -> bool {
        let first = |positions: Option<&u128>| positions.copied();
        let (waiting, back) = (first(self.waiting.keys().next()), first(self.back.keys().next()));
        !self.parked && self.busy.is_none() && waiting.zip(back).is_some_and(|(waiting, back)| back < waiting)
    }

    /// How many are due of those that were given back.
    fn due(&self, now_ms: u64) -> usize {
        self.back.values().filter(|due_ms| **due_ms <= now_ms).count()
    }

    /// How many of those it has room for, once half of it is free.
    fn wants(&self, now_ms: u64) -> usize {
        match LANE_MAX.saturating_sub(self.waiting.len() + self.replays.len()) {
            room if room >= LANE_MAX / 2 && !self.parked => room.min(self.due(now_ms)),
            // What stands before all that waits takes the place of the last; it may be any of those that are due.
            _ if self.is_blocked() => self.due(now_ms).min(LANE_MAX),
            _ => 0,
        }
    }

    /// For how long a message is given back: until about half of what is held then is off, at the pace of the lane.
    fn wait(&self, position: u128, now_ms: u64) -> Duration {
        if self.parked {
            return BACK;
        }
        let under_way = self.busy.as_ref().map(|busy| Duration::from_millis(now_ms.saturating_sub(busy.since_ms)));
        let before = self.waiting.len() + self.back.range(..position).count();
        let before = u32::try_from(before.saturating_sub(LANE_MAX / 2)).unwrap_or(u32::MAX);
        // What is under way may take as long again.
        self.pace.saturating_mul(before).saturating_add(under_way.unwrap_or_default()).clamp(BACK_MIN, BACK)
    }

    fn is_idle(&self) -> bool {
        !self.parked
            && self.busy.is_none()
            && self.waiting.is_empty()
            && self.replays.is_empty()
            && self.back.is_empty()
    }
}

/// When what is given back for so long comes again.
fn due(now_ms: u64, wait: Duration) -> u64 {
    now_ms.saturating_add(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Carries out a script and tells what came of each line.
    ///
    /// `pull KEY POSITION [replay]`, `next`, `off|beside|continue|park|back KEY`, `open KEY`, `dry MS`.
    fn told(script: &str) -> String {
        let (mut lanes, mut told) = (Lanes::<String>::default(), String::new());
        for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let came = if line.starts_with('#') { String::new() } else { format!(" -> {}", act(&mut lanes, line)) };
            told.push_str(&format!("{line}{came}\n"));
        }
        told
    }

    fn act(lanes: &mut Lanes<String>, line: &str) -> String {
        let words: Vec<_> = line.split(' ').collect();
        let end = |lanes: &mut Lanes<String>, end| match lanes.ended(words[1], end, 0) {
            None => "ended".to_owned(),
            Some(true) => "parked".to_owned(),
            Some(false) => "open".to_owned(),
        };
        match words[0] {
            "pull" => {
                let position = words[2].parse().unwrap();
                match lanes.offer(words[1], position, words.len() > 3, format!("{}{}", words[1], words[2]), 0) {
                    None => "held".into(),
                    Some((message, _)) => format!("{message} goes back"),
                }
            }
            "next" => lanes.next(0).map_or("nothing".into(), |(_, message)| message),
            "off" => end(lanes, End::Off),
            "continue" => end(lanes, End::Continue),
            "beside" => end(lanes, End::OffBeside),
            "park" => {
                let parked = end(lanes, End::Park);
                format!("{parked}; {:?} go back", lanes.hand_back(words[1], 0))
            }
            "back" => end(lanes, End::Back { due_ms: 1_000 }),
            "open" => {
                lanes.park(words[1], false);
                "open".into()
            }
            "dry" => format!("{} are gone", lanes.ran_dry(words[1].parse().unwrap())),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn a_key_is_busy_until_its_message_is_off_and_other_keys_run_beside_it() {
        insta::assert_snapshot!(told(
            "pull a 1
             pull a 2
             pull b 3
             pull a 4
             next
             next
             next
             off a
             next
             # A message that is given back, since the node was short, keeps those behind it waiting.
             back a
             next
             pull a 2
             next
             off a
             next
             off b
             off a
             next"
        ));
    }

    #[test]
    fn a_dead_letter_parks_its_key_until_someone_decides() {
        insta::assert_snapshot!(told(
            "pull a 1
             pull a 2
             pull b 3
             next
             park a
             next
             pull a 2
             # Only a replay passes, and opens the lane when it is handled.
             pull a 9 replay
             next
             off a
             next
             pull a 2
             next
             # Where the link goes on, the next one runs.
             pull a 5
             continue a
             next
             # A replay that dies again keeps the key parked.
             park a
             pull a 11 replay
             next
             park a
             # Someone drops the letter.
             open a
             pull a 12
             next"
        ));
    }

    #[test]
    fn a_key_with_several_dead_letters_is_open_once_the_last_is_replayed_well() {
        insta::assert_snapshot!(told(
            "pull a 1
             next
             park a
             # Two are replayed: the first that is handled does not open the key.
             pull a 9 replay
             pull a 10 replay
             next
             off a
             next
             # Nor does one while another letter is there.
             beside a
             pull a 2
             pull a 11 replay
             next
             off a
             pull a 2
             next"
        ));
    }

    #[test]
    fn what_was_given_back_and_is_gone_from_the_broker_blocks_nobody_for_ever() {
        insta::assert_snapshot!(told(
            "pull a 1
             pull a 2
             next
             back a
             next
             dry 5000
             next
             dry 40000
             next"
        ));
    }

    #[test]
    fn one_key_takes_no_more_than_its_share_of_the_look_ahead() {
        let mut lanes = Lanes::default();
        let offered = (0..100).filter(|position| lanes.offer("hot", *position, false, (), 0).is_none()).count();
        assert_eq!((offered, lanes.room(0)), (LANE_MAX, LOOK_AHEAD - (100 - LANE_MAX)));
        for position in 100..1_000 {
            let _ = lanes.offer(&format!("key {position}"), position, false, (), 0);
        }
        assert_eq!((lanes.held, lanes.room(0)), (LOOK_AHEAD, 0));
        let back = (1_000..6_000).filter(|position| lanes.offer("hot", *position, false, (), 0).is_some()).count();
        assert_eq!((back, lanes.room(0)), (5_000, 0));
    }

    /// As a new holder takes it over: more than may be out, and all of a few keys.
    #[test]
    fn a_lane_that_has_nothing_but_what_is_out_gets_that() {
        let mut lanes = Lanes::default();
        for position in 0..6_000 {
            let _ = lanes.offer(&format!("key {}", position % 4), position, false, position, 0);
        }
        assert_eq!((lanes.held, lanes.back), (4 * LANE_MAX, 6_000 - 4 * LANE_MAX));
        while let Some((key, _)) = lanes.next(0) {
            lanes.ended(&key, End::Off, 0);
        }
        assert_eq!((lanes.held, lanes.room(0)), (0, 0), "nothing is due yet");
        let later_ms = due(0, BACK);
        assert_eq!(lanes.room(later_ms), 4 * LANE_MAX, "what the lanes have room for");
        assert_eq!(lanes.offer("key 1", 4 * 32 + 1, false, 129, later_ms), None);
        assert_eq!(lanes.next(later_ms), Some(("key 1".into(), 129)));
    }

    /// A broker that gives out first what is replayed, then what is due, then what is new; a handler that takes 10 ms.
    #[test]
    fn a_key_that_is_parked_before_a_long_backlog_is_opened_by_its_replay() {
        const ALL: u128 = BACK_MAX as u128 + 500;
        let (mut lanes, mut next, mut replay, mut done) = (Lanes::default(), 0, None, Vec::new());
        let (mut waits, mut running) = (std::collections::BTreeSet::<(u64, u128)>::new(), None::<(u64, u128)>);
        for now_ms in (0..120_000).step_by(10) {
            if let Some((_, position)) = running.take_if(|(ends_ms, _)| *ends_ms <= now_ms) {
                // Position 0 is what parks the key, and is replayed from another position.
                let end = if position == 0 { End::Park } else { End::Off };
                done.extend((position > 0).then_some(position));
                if lanes.ended("key", end, now_ms) == Some(true) {
                    waits.extend(lanes.hand_back("key", now_ms).into_iter().map(|held| (due(now_ms, BACK), held)));
                }
            }
            if now_ms == 20_000 {
                assert!(lanes.is_full() && done.is_empty(), "{} are out, {done:?} passed", lanes.back);
                replay = Some(2 * ALL);
            }
            let room = lanes.room(now_ms);
            let mut pulled: Vec<_> = replay.take_if(|_| room > 0).into_iter().collect();
            while pulled.len() < room && waits.first().is_some_and(|(due_ms, _)| *due_ms <= now_ms) {
                pulled.extend(waits.pop_first().map(|(_, position)| position));
            }
            while pulled.len() < room && next < ALL {
                pulled.push(next);
                next += 1;
            }
            pulled.sort_unstable();
            for position in pulled {
                if let Some((back, wait)) = lanes.offer("key", position, position > ALL, position, now_ms) {
                    waits.insert((due(now_ms, wait), back));
                }
            }
            if let Some((_, position)) = lanes.next(now_ms) {
                running = Some((now_ms + 10, position));
            }
        }
        assert_eq!(done, [2 * ALL].into_iter().chain(1..ALL).collect::<Vec<_>>());
    }

    #[test]
    fn a_key_that_stands_still_keeps_no_others_from_being_found_and_is_not_pulled_again_and_again() {
        // Of sixteen messages one is of another key, until the queue has only the one that stands still.
        let (mut lanes, mut now_ms, mut position, mut waits) = (Lanes::default(), 0, 0u128, Vec::new());
        let (mut others, mut given_back) = (0, 0);
        while now_ms < 60_000 {
            let came = |(due_ms, _): &mut (u64, u128)| *due_ms <= now_ms;
            let room = lanes.room(now_ms);
            let mut pulled: Vec<_> = waits.extract_if(.., came).take(room).map(|(_, position)| position).collect();
            while pulled.len() < room {
                pulled.push(position);
                position += 1;
            }
            for position in pulled {
                let key = if position % 16 == 3 && position < 20_000 { format!("{position}") } else { "still".into() };
                if let Some((position, wait)) = lanes.offer(&key, position, false, position, now_ms) {
                    given_back += 1;
                    waits.push((due(now_ms, wait), position));
                }
            }
            while let Some((key, _)) = lanes.next(now_ms) {
                if key != "still" {
                    lanes.ended(&key, End::Off, now_ms);
                    others += 1;
                }
            }
            now_ms += 20;
        }
        assert!(others > 250, "{others}: found among {BACK_MAX} that wait");
        assert!(given_back < BACK_MAX * 3, "{given_back}");
    }

    /// A broker that gives out first what is due, then what is new, and a handler that takes 10 ms, but now and then 200 ms.
    #[test]
    fn a_backlog_of_few_keys_is_given_back_about_once_and_its_lanes_do_not_wait_for_it() {
        for keys in [1, 2, 4] {
            let (mut lanes, mut now_ms, mut next, mut done, mut given_back) = (Lanes::default(), 0, 0u128, 0, 0);
            let (mut waits, mut running) = (Vec::<(u64, u128)>::new(), Vec::<(u64, String)>::new());
            while done < 2_000 {
                for (_, key) in running.extract_if(.., |(ends_ms, _)| *ends_ms <= now_ms) {
                    lanes.ended(&key, End::Off, now_ms);
                    done += 1;
                }
                let room = lanes.room(now_ms);
                waits.sort_unstable();
                let due_now = waits.partition_point(|(due_ms, _)| *due_ms <= now_ms).min(room);
                let mut pulled: Vec<_> = waits.drain(..due_now).map(|(_, position)| position).collect();
                while pulled.len() < room && next < 2_000 {
                    pulled.push(next);
                    next += 1;
                }
                pulled.sort_unstable();
                for position in pulled {
                    let key = format!("{}", position % keys);
                    if let Some((position, wait)) = lanes.offer(&key, position, false, position, now_ms) {
                        given_back += 1;
                        waits.push((due(now_ms, wait), position));
                    }
                }
                while let Some((key, position)) = lanes.next(now_ms) {
                    running.push((now_ms + if position / keys % 16 == 0 { 200 } else { 10 }, key));
                }
                now_ms += 1;
            }
            let least_ms = 2_000 / u64::try_from(keys).unwrap() * (200 + 15 * 10) / 16;
            assert!(now_ms < least_ms * 11 / 10, "{keys} keys: {now_ms} ms");
            assert!(given_back < 2_000 * 2, "{keys} keys: {given_back}");
        }
    }

    /// A broker that gives messages out in whatever order it likes, and runs that end as they like.
    #[test]
    fn whatever_comes_back_when_each_key_runs_in_order() {
        for seed in 0..200 {
            let mut random = <rand::rngs::StdRng as rand::SeedableRng>::seed_from_u64(seed);
            let mut draw = |below: usize| rand::Rng::random_range(&mut random, 0..below);
            let mut broker: Vec<u128> = (0..200).collect();
            let (mut lanes, mut running) = (Lanes::default(), Vec::<(String, u128)>::new());
            let mut handled: HashMap<String, Vec<u128>> = HashMap::new();
            let key = |position: u128| format!("{}", position * position % 7);
            // What was never given out comes in order; what was comes back before that, in any order.
            let (mut next_new, mut steps) = (0, 0);
            while handled.values().map(Vec::len).sum::<usize>() < 200 {
                steps += 1;
                let now_ms = steps;
                assert!(steps < 100_000, "seed {seed}: {lanes:?}, {broker:?}");
                let old: Vec<_> = broker.iter().copied().filter(|position| *position < next_new).collect();
                let pulled = match old.len() {
                    0 if lanes.room(now_ms) > 0 && next_new < 200 => Some(next_new),
                    0 => None,
                    count => Some(old[draw(count)]),
                };
                if let Some(position) = pulled.filter(|_| lanes.room(now_ms) > 0 && draw(3) > 0) {
                    next_new = next_new.max(position + 1);
                    broker.retain(|known| *known != position);
                    let back = lanes.offer(&key(position), position, false, position, now_ms);
                    broker.extend(back.map(|(position, _)| position));
                }
                running.extend(lanes.next(now_ms));
                if !running.is_empty() && draw(2) == 0 {
                    let (key, position) = running.swap_remove(draw(running.len()));
                    if draw(4) == 0 {
                        broker.push(position);
                        lanes.ended(&key, End::Back { due_ms: 0 }, now_ms);
                    } else {
                        handled.entry(key.clone()).or_default().push(position);
                        lanes.ended(&key, End::Off, now_ms);
                    }
                }
            }
            for (key, positions) in handled {
                assert!(positions.is_sorted(), "seed {seed}, key {key}: {positions:?}");
            }
            assert_eq!((lanes.held, lanes.room(steps)), (0, LOOK_AHEAD));
        }
    }
}
