//! What an ordered link holds of its queue: every message that the server gave it and that is not off, by position. Pure:
//! times are given, in the caller's milliseconds.
//!
//! RabbitMQ says of no message where it stands, so arrivals are counted. When the channel breaks, the server gives all that is
//! not acknowledged out again, in its order and before what is new. A message is known then by what it is, its mark: it keeps
//! its position, its claim, and what became of it. Of two that are equal in all, one is as good as the other. Until all are
//! back, nothing is given that stands behind one which is not.

use std::collections::{BTreeMap, HashMap};

use trellis_provider::delivery::CLAIM;

/// How long after the last that came back the rest is awaited.
const GONE_MS: u64 = 5_000;

/// Messages as `T`.
#[derive(Debug)]
pub(crate) struct Outstanding<T> {
    /// The last position, and the last number of a claim.
    last: u128,
    claims: u64,
    held: BTreeMap<u128, Held<T>>,
    claimed: HashMap<u64, u128>,
    /// Until when those that are not here are awaited.
    awaited_until_ms: u64,
}

#[derive(Debug)]
struct Held<T> {
    message: T,
    mark: u64,
    /// The server gave it out on the channel that stands.
    here: bool,
    /// It was given before.
    given: bool,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It may be given from then on.
    Waits { due_ms: u64 },
    /// It is given, until then.
    Claimed { number: u64, ends_ms: u64 },
}

/// A message that is given.
#[derive(Debug)]
pub(crate) struct Given<'a, T> {
    /// Names the claim.
    pub(crate) number: u64,
    pub(crate) position: u128,
    /// A claim on it has just ended.
    pub(crate) ended: bool,
    pub(crate) message: &'a mut T,
}

impl<T> Default for Outstanding<T> {
    fn default() -> Self {
        let (held, claimed) = Default::default();
        Self { last: 0, claims: 0, held, claimed, awaited_until_ms: 0 }
    }
}

impl<T> Outstanding<T> {
    /// The message that is held and not here, of which this is another giving out. It is here then.
    pub(crate) fn back(&mut self, mark: u64, now_ms: u64) -> Option<&mut T> {
        let held = self.held.values_mut().find(|held| !held.here && held.mark == mark)?;
        held.here = true;
        self.awaited_until_ms = now_ms.saturating_add(GONE_MS);
        Some(&mut held.message)
    }

    /// Holds one that is new, behind all others, to be given from `due_ms` on.
    pub(crate) fn hold(&mut self, mark: u64, message: T, due_ms: u64) {
        self.last += 1;
        self.held.insert(self.last, Held { message, mark, here: true, given: false, state: State::Waits { due_ms } });
    }

    /// The channel broke: none is here, and all are awaited on the next one.
    pub(crate) fn lost(&mut self) {
        self.held.values_mut().for_each(|held| held.here = false);
        self.awaited_until_ms = u64::MAX;
    }

    /// The next channel stands.
    pub(crate) fn opened(&mut self, now_ms: u64) {
        self.awaited_until_ms = now_ms.saturating_add(GONE_MS);
    }

    /// Forgets those that did not come back. Returns how many.
    pub(crate) fn forget_gone(&mut self, now_ms: u64) -> usize {
        if now_ms < self.awaited_until_ms {
            return 0;
        }
        let gone: Vec<_> = self.held.extract_if(.., |_, held| !held.here).map(|(_, held)| held.state).collect();
        for state in &gone {
            if let State::Claimed { number, .. } = state {
                self.claimed.remove(number);
            }
        }
        gone.len()
    }

    /// Forgets all.
    pub(crate) fn clear(&mut self) {
        self.held.clear();
        self.claimed.clear();
    }

    /// Those that may be given now, in their order, up to `max`.
    fn next(&mut self, max: usize, now_ms: u64) -> impl Iterator<Item = (&u128, &mut Held<T>)> {
        let here = self.held.iter_mut().take_while(|(_, held)| held.here);
        here.filter(move |(_, held)| held.state.until_ms() <= now_ms).take(max)
    }

    /// How many may be given now.
    pub(crate) fn ready(&mut self, now_ms: u64) -> usize {
        self.next(usize::MAX, now_ms).count()
    }

    /// When one more may be given, or one is known not to come back.
    pub(crate) fn next_ms(&self, now_ms: u64) -> Option<u64> {
        let later =
            self.held.values().map(|held| if held.here { held.state.until_ms() } else { self.awaited_until_ms });
        later.filter(|at_ms| *at_ms > now_ms).min()
    }

    /// Those that [`Outstanding::give`] would give.
    pub(crate) fn look(&mut self, max: usize, now_ms: u64) -> impl Iterator<Item = (u128, &mut T)> {
        self.next(max, now_ms).map(|(position, held)| (*position, &mut held.message))
    }

    /// A message by its position.
    pub(crate) fn at(&mut self, position: u128) -> Option<&mut T> {
        self.held.get_mut(&position).map(|held| &mut held.message)
    }

    /// Gives up to `max`, each under a new claim.
    pub(crate) fn give(&mut self, max: usize, now_ms: u64, mut to: impl FnMut(Given<'_, T>)) {
        let (mut number, mut given, mut ended) = (self.claims, Vec::new(), Vec::new());
        for (position, held) in self.next(max, now_ms) {
            number += 1;
            let state = State::Claimed { number, ends_ms: ends_ms(now_ms) };
            let before = std::mem::replace(&mut held.state, state);
            held.given = true;
            if let State::Claimed { number, .. } = before {
                ended.push(number);
            }
            given.push((number, *position));
            let ended = matches!(before, State::Claimed { .. });
            to(Given { number, position: *position, ended, message: &mut held.message });
        }
        self.claims = number;
        self.claimed.retain(|number, _| !ended.contains(number));
        self.claimed.extend(given);
    }

    /// The message under a claim, and whether it is here; `None`: the claim has ended.
    pub(crate) fn claimed(&mut self, number: u64) -> Option<(&mut T, bool)> {
        let held = self.held.get_mut(self.claimed.get(&number)?)?;
        Some((&mut held.message, held.here))
    }

    /// A claim lasts from now on.
    pub(crate) fn extend(&mut self, number: u64, now_ms: u64) {
        let Some(held) = self.claimed.get(&number).and_then(|position| self.held.get_mut(position)) else { return };
        held.state = State::Claimed { number, ends_ms: ends_ms(now_ms) };
    }

    /// A message is off.
    pub(crate) fn off(&mut self, number: u64) -> Option<T> {
        let position = self.claimed.remove(&number)?;
        self.held.remove(&position).map(|held| held.message)
    }

    /// A message waits again, until then.
    pub(crate) fn give_back(&mut self, number: u64, due_ms: u64) {
        let Some(held) = self.claimed.remove(&number).and_then(|position| self.held.get_mut(&position)) else { return };
        held.state = State::Waits { due_ms };
    }

    /// How many were given and are not off, and how many of them may not be given now.
    pub(crate) fn out(&self, now_ms: u64) -> (u64, u64) {
        let given = || self.held.values().filter(|held| held.given);
        let later = given().filter(|held| !held.here || held.state.until_ms() > now_ms);
        (given().count() as u64, later.count() as u64)
    }

    /// How many wait, and how many are given. What is not here waits at the server.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let waits = self.held.values().filter(|held| held.here && matches!(held.state, State::Waits { .. }));
        (waits.count() as u64, self.claimed.len() as u64)
    }
}

impl State {
    const fn until_ms(self) -> u64 {
        match self {
            Self::Waits { due_ms } => due_ms,
            Self::Claimed { ends_ms, .. } => ends_ms,
        }
    }
}

fn ends_ms(now_ms: u64) -> u64 {
    now_ms.saturating_add(u64::try_from(CLAIM.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Carries out a script and tells what came of each line.
    ///
    /// `new NAME [DUE]`, `again NAME` as the server does it, `lost`, `opened`, `give MAX`, `off|extend NUMBER`,
    /// `back NUMBER DUE`, `at MS`. A message is its own mark up to its first digit: `a1` and `a2` are twins.
    fn told(script: &str) -> String {
        let (mut held, mut now_ms, mut told) = (Outstanding::<String>::default(), 0, String::new());
        for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let came = if line.starts_with('#') { String::new() } else { act(&mut held, &mut now_ms, line) };
            let arrow = if came.is_empty() { "" } else { " -> " };
            told.push_str(&format!("{line}{arrow}{came}\n"));
        }
        told
    }

    fn act(held: &mut Outstanding<String>, now_ms: &mut u64, line: &str) -> String {
        let words: Vec<_> = line.split(' ').collect();
        let number = |at: usize| words.get(at).map_or(0, |word| word.parse().unwrap());
        let mark = || u64::from(words[1].as_bytes()[0]);
        match words[0] {
            "new" => held.hold(mark(), words[1].into(), number(2)),
            "again" => return held.back(mark(), *now_ms).map_or("unknown".into(), |known| known.clone()),
            "lost" => held.lost(),
            "opened" => held.opened(*now_ms),
            "give" => return given(held, usize::try_from(number(1)).unwrap(), *now_ms),
            "off" => return held.off(number(1)).unwrap_or("its claim has ended".into()),
            "extend" => held.extend(number(1), *now_ms),
            "back" => held.give_back(number(1), number(2)),
            "at" => {
                *now_ms = number(1);
                let gone = held.forget_gone(*now_ms);
                let next = held.next_ms(*now_ms).map_or("never".into(), |next_ms| next_ms.to_string());
                return format!("{} ready, next {next}, {gone} gone, {:?}", held.ready(*now_ms), held.counts());
            }
            other => panic!("{other}"),
        }
        String::new()
    }

    fn given(held: &mut Outstanding<String>, max: usize, now_ms: u64) -> String {
        let mut given = Vec::new();
        held.give(max, now_ms, |Given { number, position, ended, message }| {
            let ended = if ended { " whose claim ended" } else { "" };
            given.push(format!("{message}{ended} at {position} by {number}"));
        });
        if given.is_empty() { "nothing".into() } else { given.join(", ") }
    }

    #[test]
    fn what_comes_back_keeps_its_place_and_its_claim() {
        insta::assert_snapshot!(told(
            "# in order; what is given back waits, and comes before what is new
             new a
             new b
             new c
             give 2
             back 1 700
             give 5
             at 500
             new d
             at 700
             give 1
             off 2
             # a claim ends unless it is extended
             at 9000
             extend 4
             at 10600
             give 9
             off 3
             # the channel breaks: a is worked on, c and d are out, and nothing is given before they are back
             lost
             at 11000
             give 9
             opened
             new e
             at 11100
             again a
             give 9
             again c
             again d
             at 11200
             give 9
             off 4
             # who is not back in time is gone, with its claim
             lost
             opened
             again c
             again e
             at 16200
             off 6
             at 21300
             give 9"
        ));
    }

    #[test]
    fn of_twins_one_is_as_good_as_the_other() {
        insta::assert_snapshot!(told(
            "new a1
             new b
             new a2
             give 1
             lost
             opened
             # as many come back as are held, in whatever order they are known
             again a
             again b
             again a
             # one more is a new one
             again a
             new a3
             give 9
             off 1"
        ));
    }
}
