//! The watch over roll-outs: when a version takes its next step, and when it is taken back. What nodes report, the time
//! and the state go in; commands come out, for the leader to propose. Time is a [`Duration`] since any fixed moment.
//!
//! No wall clock is compared with another one: a leader counts from when it saw a step itself.

use std::collections::BTreeMap;
use std::time::Duration;

use trellis_wire::AppName;

use crate::{Command, LAST_STEP, State};

/// How many events must have faulted before a version is taken back for it.
const FAULTS_MIN: u64 = 5;
/// And more than this share of all its events, in percent.
const FAULTS_PERCENT_MAX: u64 = 20;
/// How much of what is missing is said when a version is taken back, in characters.
const REASON_CHARS_MAX: usize = 600;

/// How careful a roll-out is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Care {
    /// A version that is not ready by then is taken back.
    pub ready_within: Duration,
    /// For so long its faults are counted, from its first events on.
    pub watch_for: Duration,
    /// How long each step takes at least, so that faults can show before the next.
    pub step_min: Duration,
}

impl Default for Care {
    fn default() -> Self {
        Self {
            ready_within: Duration::from_secs(120),
            watch_for: Duration::from_secs(60),
            step_min: Duration::from_secs(1),
        }
    }
}

/// How a version that is rolled out is doing, as nodes report it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// What is not ready yet on nodes that are not `--edge`, for people. Empty: it is ready for the next step.
    pub missing: Vec<String>,
    /// Events that the version handled.
    pub events: u64,
    /// Faults among them.
    pub faults: u64,
}

impl Progress {
    fn has_too_many_faults(&self) -> bool {
        self.faults >= FAULTS_MIN && self.faults * 100 > self.events * FAULTS_PERCENT_MAX
    }
}

/// The watch over every roll-out.
#[derive(Debug)]
pub struct Watch {
    care: Care,
    seen: BTreeMap<AppName, Seen>,
}

/// A roll-out as it was seen.
#[derive(Debug)]
struct Seen {
    version: String,
    step: u8,
    /// When it was first seen.
    since: Duration,
    /// When this step was.
    step_since: Duration,
    /// When the first step was that gave it events.
    first_events: Option<Duration>,
    /// Whether it was ready at the last step once: what is missing later is not the version's fault.
    was_ready: bool,
}

impl Watch {
    /// Nothing was seen yet.
    pub fn new(care: Care) -> Self {
        Self { care, seen: BTreeMap::new() }
    }

    /// What the leader is to do now.
    pub fn decide(&mut self, state: &State, now: Duration, progress: impl Fn(&AppName) -> Progress) -> Vec<Command> {
        self.look(state, now);
        let mut commands = Vec::new();
        for (app, seen) in &mut self.seen {
            commands.extend(seen.decide(app, &self.care, now, &progress(app)));
        }
        commands
    }

    /// Notes which roll-outs there are, and what step each is at. Every node does, so that whoever comes to lead knows
    /// since when.
    pub fn look(&mut self, state: &State, now: Duration) {
        self.seen.retain(|app, _| state.app(app).is_some_and(|versions| versions.rollout().is_some()));
        for (app, versions) in state.rolling() {
            let (Some(rollout), Some(newer)) = (versions.rollout(), versions.newer()) else { continue };
            let new = || Seen {
                version: newer.version.clone(),
                step: rollout.step,
                since: now,
                step_since: now,
                first_events: None,
                was_ready: false,
            };
            let seen = self.seen.entry(app.clone()).or_insert_with(new);
            // A version that is deployed again begins again.
            if seen.version != newer.version || rollout.step < seen.step {
                *seen = new();
            }
            if seen.step != rollout.step {
                (seen.step, seen.step_since) = (rollout.step, now);
            }
            if rollout.share() > 0 {
                seen.first_events.get_or_insert(now);
            }
        }
    }
}

impl Seen {
    fn decide(&mut self, app: &AppName, care: &Care, now: Duration, progress: &Progress) -> Option<Command> {
        let (app, version) = (app.clone(), self.version.clone());
        if self.first_events.is_some() && progress.has_too_many_faults() {
            let Progress { events, faults, .. } = progress;
            let why = format!("{faults} of its first {events} events faulted");
            return Some(Command::GiveUp { app, version, why });
        }
        let is_ready = progress.missing.is_empty();
        let lasted = now.saturating_sub(self.step_since);
        let is_over = match self.step {
            LAST_STEP => {
                self.was_ready |= is_ready;
                self.first_events.is_some_and(|first| now.saturating_sub(first) >= care.watch_for)
            }
            _ => lasted >= care.step_min,
        };
        if is_over && (is_ready || self.was_ready) {
            return Some(Command::Advance { app, version, step: self.step + 1 });
        }
        if !is_ready && !self.was_ready && now.saturating_sub(self.since) >= care.ready_within {
            let missing: String = progress.missing.join("; ").chars().take(REASON_CHARS_MAX).collect();
            let why = format!("it was not ready within {:?}: {missing}", care.ready_within);
            return Some(Command::GiveUp { app, version, why });
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use trellis_manifest::App;
    use trellis_wire::{CommandId, Digest};

    use super::*;
    use crate::{Entry, Release};

    /// An app whose second version is rolled out, a clock, and what nodes say.
    struct Scene {
        state: State,
        watch: Watch,
        now: Duration,
        commands: u64,
        progress: Progress,
    }

    impl Scene {
        fn new() -> Self {
            let (state, watch) = (State::default(), Watch::new(Care::default()));
            let mut scene = Self { state, watch, now: Duration::ZERO, commands: 0, progress: Progress::default() };
            ["1", "2"].iter().for_each(|version| scene.deploy(version));
            scene
        }

        fn app() -> AppName {
            "shop".parse().unwrap()
        }

        fn deploy(&mut self, version: &str) {
            let code = Digest::new([version.parse().unwrap(); 32]);
            let artifacts = BTreeMap::from([("api".parse().unwrap(), code)]);
            let (app, manifest) = (App::new(Self::app()), Digest::new([0; 32]));
            let mut release = Release { app, version: version.into(), artifacts, manifest, replace: false };
            release.app.description = Some(version.into());
            self.apply(Command::Deploy(Box::new(release)));
        }

        fn apply(&mut self, command: Command) {
            self.commands += 1;
            let id = format!("00000000-0000-0000-0000-{:012x}", self.commands).parse::<CommandId>().unwrap();
            self.state.apply(&Entry { id, at_ms: 0, command });
        }

        /// Lets a second pass, and does what is decided. What came of it, in words.
        fn second(&mut self) -> Option<String> {
            self.now += Duration::from_secs(1);
            let progress = self.progress.clone();
            let decided = self.watch.decide(&self.state, self.now, |_| progress.clone());
            let told = decided.first().map(|command| match command {
                Command::Advance { step, .. } => format!("step {step}"),
                Command::GiveUp { why, .. } => why.clone(),
                other => format!("{other:?}"),
            });
            decided.into_iter().for_each(|command| self.apply(command));
            told
        }

        /// After how many seconds something is decided, and what. `None`: nothing, within that many.
        fn next(&mut self, within: u64) -> Option<(u64, String)> {
            (1..=within).find_map(|n| Some((n, self.second()?)))
        }
    }

    fn is(n: u64, what: &str) -> Option<(u64, String)> {
        Some((n, what.into()))
    }

    #[test]
    fn a_version_that_is_well_takes_each_step_and_is_watched_for_a_minute() {
        let mut scene = Scene::new();
        assert_eq!(scene.next(9), is(2, "step 1"), "each step is seen for a second");
        assert_eq!(scene.next(9), is(2, "step 2"));
        assert_eq!(scene.next(9), is(2, "step 3"));
        scene.progress.missing = vec!["a node died meanwhile".into()];
        assert_eq!(scene.next(3), None);
        let (state, key) = (&scene.state, "shop/api".parse().unwrap());
        for (code, version) in [(Some(2), Some("2")), (Some(1), None), (None, Some("2"))] {
            assert_eq!(state.on_trial(&key, code.map(|code| Digest::new([code; 32]))), version, "{code:?}");
        }
        scene.progress.missing.clear();
        assert_eq!(scene.next(90), is(54, "step 4"), "a minute after its first events");
        let (state, key) = (&scene.state, "shop/api".parse().unwrap());
        assert_eq!(state.on_trial(&key, Some(Digest::new([2; 32]))), None, "it has proved itself");
        assert_eq!(scene.next(300), None);
        assert_eq!(scene.state.rolled_back(&Scene::app(), "2"), None);
    }

    #[test]
    fn a_version_that_is_not_ready_in_two_minutes_is_taken_back() {
        let mut scene = Scene::new();
        scene.progress.missing = vec!["api on b: no disk".into(), "link kv: refused".into()];
        let why = "it was not ready within 120s: api on b: no disk; link kv: refused";
        assert_eq!(scene.next(200), is(121, why));
        assert_eq!(scene.state.rolled_back(&Scene::app(), "2"), Some(why));
        assert_eq!(scene.next(200), None);

        // Deployed again, it has two minutes again; being ready at one step is not being ready at the next.
        scene.deploy("2");
        assert_eq!(scene.state.rolled_back(&Scene::app(), "2"), None);
        scene.progress.missing.clear();
        assert_eq!(scene.next(9), is(2, "step 1"));
        scene.progress.missing = vec!["link http: in use".into()];
        assert_eq!(scene.next(200), is(119, "it was not ready within 120s: link http: in use"));
    }

    #[test]
    fn five_faults_and_over_a_fifth_of_its_events_take_a_version_back() {
        for (events, faults, is_too_many) in
            [(4, 4, false), (5, 5, true), (25, 5, false), (24, 5, true), (1_000, 200, false), (1_000, 201, true)]
        {
            let mut scene = Scene::new();
            scene.next(9);
            scene.progress = Progress { events, faults, missing: vec!["not ready".into()] };
            let why = format!("{faults} of its first {events} events faulted");
            assert_eq!(scene.next(20), is_too_many.then_some((1, why)), "{faults} of {events}");
        }
    }

    #[test]
    fn faults_count_until_the_watch_is_over() {
        let mut scene = Scene::new();
        (0..3).for_each(|_| drop(scene.next(9)));
        scene.next(30);
        scene.progress = Progress { events: 10, faults: 9, missing: Vec::new() };
        assert_eq!(scene.next(1), is(1, "9 of its first 10 events faulted"));

        let mut scene = Scene::new();
        (0..4).for_each(|_| drop(scene.next(90)));
        scene.progress = Progress { events: 10, faults: 9, missing: Vec::new() };
        assert_eq!(scene.next(90), None, "it has proved itself");
    }

    #[test]
    fn a_new_leader_counts_from_when_it_saw_the_step() {
        let mut scene = Scene::new();
        scene.progress.missing = vec!["not ready".into()];
        assert_eq!(scene.next(100), None);
        scene.watch = Watch::new(Care::default());
        assert!(scene.next(200).is_some_and(|(after, _)| after == 121));
    }
}
