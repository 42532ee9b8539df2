//! Lanes: which message of an ordered link may run next. Pure: messages and what became of them come in, what to do comes
//! out; times are given.
//!
//! A lane holds the messages of one key, by their position. Its first may run when nothing of the key is under way, and
//! nothing that stands before it was given back: what a lane has no room for goes back to the broker and is remembered
//! until it comes again. A parked lane lets only a replay pass, and what is replayed well opens it again.

use std::collections::{BTreeMap, HashMap, VecDeque};

/// Messages that an ordered link may hold.
pub const LOOK_AHEAD: usize = 256;
/// Messages of one key among them.
pub const LANE_MAX: usize = 32;
/// Messages that were given back and are awaited. At the bound nothing more is pulled.
pub const BACK_MAX: usize = 4_096;
/// How long after it was due a message that was given back is awaited, while the broker has nothing more to give out.
const BACK_GRACE_MS: u64 = 30_000;

/// The messages that an ordered link holds, as `T`.
#[derive(Debug)]
pub(super) struct Lanes<T> {
    lanes: HashMap<String, Lane<T>>,
    /// Keys in the order in which their lanes may run something, as far as they still may.
    turns: VecDeque<String>,
    held: usize,
    back: usize,
}

#[derive(Debug)]
struct Lane<T> {
    waiting: BTreeMap<u128, T>,
    /// Replays that wait for a parked lane.
    replays: VecDeque<(u128, T)>,
    /// What is under way: where it stands, and whether it is a replay.
    busy: Option<(u128, bool)>,
    parked: bool,
    /// What was given back, and when it is due.
    back: BTreeMap<u128, u64>,
}

impl<T> Default for Lane<T> {
    fn default() -> Self {
        let (waiting, replays, back) = (BTreeMap::new(), VecDeque::new(), BTreeMap::new());
        Self { waiting, replays, busy: None, parked: false, back }
    }
}

/// What came of a message that ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// It is off: acknowledged or dropped.
    Off,
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
        Self { lanes: HashMap::new(), turns: VecDeque::new(), held: 0, back: 0 }
    }
}

impl<T> Lanes<T> {
    /// How many more may be pulled. Where all room is taken and a lane waits for what was given back, one may.
    pub(super) fn room(&self) -> usize {
        match LOOK_AHEAD.saturating_sub(self.held) {
            room if room > 0 && self.back < BACK_MAX => room,
            _ => usize::from(self.lanes.values().any(Lane::is_blocked)),
        }
    }

    /// Messages that are held: those that wait and those under way.
    pub(super) const fn held(&self) -> usize {
        self.held
    }

    /// Keys that are parked.
    pub(super) fn parked(&self) -> Vec<String> {
        let parked = self.lanes.iter().filter(|(_, lane)| lane.parked);
        parked.map(|(key, _)| key.clone()).collect()
    }

    /// Holds a message that was pulled. Returns one that there is no room for: it is to be given back until `due_ms`, and
    /// is remembered. Of one key those that stand first are held.
    pub(super) fn offer(&mut self, key: &str, position: u128, replay: bool, message: T, due_ms: u64) -> Option<T> {
        let lane = self.lanes.entry(key.to_owned()).or_default();
        self.back -= usize::from(lane.back.remove(&position).is_some());
        self.turns.push_back(key.to_owned());
        let is_full = lane.waiting.len() + lane.replays.len() >= LANE_MAX || self.held >= LOOK_AHEAD;
        if lane.parked && replay && !is_full {
            lane.replays.push_back((position, message));
            self.held += 1;
            return None;
        }
        if !lane.parked && !is_full {
            lane.waiting.insert(position, message);
            self.held += 1;
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
        lane.back.insert(last, due_ms);
        self.back += 1;
        Some(message)
    }

    /// The next message that may run, with its key. Until [`Lanes::ended`] nothing else of that key is given.
    pub(super) fn next(&mut self) -> Option<(String, T)> {
        for _ in 0..self.turns.len() {
            let key = self.turns.pop_front()?;
            let lane = self.lanes.get_mut(&key)?;
            if lane.busy.is_some() {
                // It has its turn again when that ends.
                continue;
            }
            if let Some((position, message, replay)) = lane.take() {
                lane.busy = Some((position, replay));
                return Some((key, message));
            }
        }
        None
    }

    /// What was given for a key has ended. Whether the key was parked by it or is no longer; `None`: neither.
    pub(super) fn ended(&mut self, key: &str, end: End) -> Option<bool> {
        let lane = self.lanes.get_mut(key)?;
        let (position, replay) = lane.busy.take()?;
        self.held -= 1;
        let before = lane.parked;
        match end {
            End::Off | End::Continue => lane.parked &= !replay,
            End::Park => lane.parked = true,
            End::Back { due_ms } => {
                lane.back.insert(position, due_ms);
                self.back += 1;
            }
        }
        let changed = (lane.parked != before).then_some(lane.parked);
        self.turn(key);
        changed
    }

    /// Parks a key that was parked before this began, or opens it because someone decided so.
    pub(super) fn park(&mut self, key: &str, parked: bool) {
        self.lanes.entry(key.to_owned()).or_default().parked = parked;
        self.turn(key);
    }

    /// Takes what waits in a parked lane, to be given back until `due_ms`: it would keep others from being held.
    pub(super) fn hand_back(&mut self, key: &str, due_ms: u64) -> Vec<T> {
        let Some(lane) = self.lanes.get_mut(key) else { return Vec::new() };
        let waiting = std::mem::take(&mut lane.waiting);
        lane.back.extend(waiting.keys().map(|position| (*position, due_ms)));
        self.back += waiting.len();
        self.held -= waiting.len();
        waiting.into_values().collect()
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

    fn is_idle(&self) -> bool {
        !self.parked
            && self.busy.is_none()
            && self.waiting.is_empty()
            && self.replays.is_empty()
            && self.back.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Carries out a script and tells what came of each line.
    ///
    /// `pull KEY POSITION [replay]`, `next`, `off|continue|park|back KEY`, `open KEY`, `dry MS`.
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
        let end = |lanes: &mut Lanes<String>, end| match lanes.ended(words[1], end) {
            None => "ended".to_owned(),
            Some(true) => "parked".to_owned(),
            Some(false) => "open".to_owned(),
        };
        match words[0] {
            "pull" => {
                let position = words[2].parse().unwrap();
                match lanes.offer(words[1], position, words.len() > 3, format!("{}{}", words[1], words[2]), 1_000) {
                    None => "held".into(),
                    Some(message) => format!("{message} goes back"),
                }
            }
            "next" => lanes.next().map_or("nothing".into(), |(_, message)| message),
            "off" => end(lanes, End::Off),
            "continue" => end(lanes, End::Continue),
            "park" => {
                let parked = end(lanes, End::Park);
                format!("{parked}; {:?} go back", lanes.hand_back(words[1], 1_000))
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
        assert_eq!((offered, lanes.room()), (LANE_MAX, LOOK_AHEAD - LANE_MAX));
        for position in 100..1_000 {
            let _ = lanes.offer(&format!("key {position}"), position, false, (), 0);
        }
        assert_eq!((lanes.held(), lanes.room()), (LOOK_AHEAD, 0));
        let back = (1_000..10_000).filter(|position| lanes.offer("hot", *position, false, (), 0).is_some()).count();
        assert_eq!((back, lanes.room()), (9_000, 0));
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
                assert!(steps < 100_000, "seed {seed}: {lanes:?}, {broker:?}");
                let old: Vec<_> = broker.iter().copied().filter(|position| *position < next_new).collect();
                let pulled = match old.len() {
                    0 if lanes.room() > 0 && next_new < 200 => Some(next_new),
                    0 => None,
                    count => Some(old[draw(count)]),
                };
                if let Some(position) = pulled.filter(|_| lanes.room() > 0 && draw(3) > 0) {
                    next_new = next_new.max(position + 1);
                    broker.retain(|known| *known != position);
                    broker.extend(lanes.offer(&key(position), position, false, position, 0));
                }
                running.extend(lanes.next());
                if !running.is_empty() && draw(2) == 0 {
                    let (key, position) = running.swap_remove(draw(running.len()));
                    if draw(4) == 0 {
                        broker.push(position);
                        lanes.ended(&key, End::Back { due_ms: 0 });
                    } else {
                        handled.entry(key.clone()).or_default().push(position);
                        lanes.ended(&key, End::Off);
                    }
                }
            }
            for (key, positions) in handled {
                assert!(positions.is_sorted(), "seed {seed}, key {key}: {positions:?}");
            }
            assert_eq!((lanes.held(), lanes.room()), (0, LOOK_AHEAD));
        }
    }
}
