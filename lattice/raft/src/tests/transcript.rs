//! What happens in a simulation, line by line on its clock: every message, every fault, every entry that is applied.

use std::collections::HashSet;
use std::fmt::Display;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex};

use tokio::time::Instant;
use trellis_bus::{Passing, Wire};

/// How many lines are shown before the first that differs.
const SHOWN: usize = 20;

/// The lines of one simulation. Clones share them.
#[derive(Clone)]
pub(super) struct Transcript {
    begun: Instant,
    lines: Arc<Mutex<Vec<String>>>,
    is_shown: bool,
}

impl Transcript {
    /// Begins now. Each line is shown at once if that is asked for.
    pub(super) fn new(is_shown: bool) -> Self {
        Self { begun: Instant::now(), lines: Arc::default(), is_shown }
    }

    pub(super) fn note(&self, what: impl Display) {
        let line = format!("{:>9.3} {what}", self.begun.elapsed().as_secs_f64());
        if self.is_shown {
            println!("{line}");
        }
        self.lines.lock().unwrap().push(line);
    }

    /// Notes every message on a wire: its bytes as a number, and for how many microseconds each copy is under way.
    pub(super) fn tap(&self, wire: &Wire) {
        let (transcript, mut greetings) = (self.clone(), HashSet::new());
        wire.tap(move |Passing { from, to, message, delays }| {
            let subject = &message.subject;
            let is_greeting = subject.contains(".greet.") || greetings.contains(subject);
            if is_greeting {
                greetings.extend(message.reply.clone());
            }
            // The nonce of a greeting is the operating system's.
            let bytes = if is_greeting { 0 } else { digest(&message.payload) };
            let (length, delays) = (message.payload.len(), delays.iter().map(|delay| delay.as_micros()));
            let delays: Vec<_> = delays.collect();
            transcript.note(format_args!("{from} -> {to} {subject} {length} {bytes:016x} {delays:?}"));
        });
    }

    /// One number for all of it.
    pub(super) fn digest(&self) -> u64 {
        digest(&*self.lines.lock().unwrap())
    }

    /// How many lines there are.
    pub(super) fn len(&self) -> usize {
        self.lines.lock().unwrap().len()
    }

    /// Where two transcripts part, for people.
    pub(super) fn parts_from(&self, other: &Self) -> Option<String> {
        let (ours, theirs) = (self.lines.lock().unwrap(), other.lines.lock().unwrap());
        let length = ours.len().max(theirs.len());
        let at = (0..length).find(|at| ours.get(*at) != theirs.get(*at))?;
        let before = ours[at.saturating_sub(SHOWN)..at].join("\n");
        Some(format!("line {at} of {length}:\n{before}\n< {:?}\n> {:?}", ours.get(at), theirs.get(at)))
    }
}

fn digest(what: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}
