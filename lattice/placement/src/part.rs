//! Parts: how a command reaches the log that is too long for one entry. Each part is an entry of its own; the state puts
//! them together, and does what the command says when the last one comes. So an app of any length that a frame takes is
//! in the state, where the planner, which does no I/O, reads it.
//!
//! The last part has the command's own id: a command that is proposed again is applied once, as any other.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use trellis_wire::{CommandId, frame};
use uuid::Uuid;

use crate::command::EntryTooLarge;
use crate::{Applied, Command, Entry, Refusal, State};

/// The longest command, in bytes, as the wire's frames are written.
pub const COMMAND_BYTES_MAX: usize = frame::FRAME_BYTES_MAX;

/// How much of a command one part tells, in bytes.
const PART_BYTES_MAX: usize = 48 * 1024;

/// How many commands may be half told at one time. One more pushes out the oldest, whose proposer is refused and says so.
pub const UNFINISHED_MAX: usize = 4;

/// One part of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// The id of the whole command.
    whole: CommandId,
    /// Which part this is, from 0 on.
    nth: u16,
    /// Which is the last.
    last: u16,
    bytes: Vec<u8>,
}

impl Entry {
    /// What is to be proposed, one entry after the other, so that this one takes effect with the last: itself, or parts of
    /// it where the log does not take it whole.
    ///
    /// # Errors
    /// It is too large even so; the text says what to do about it.
    pub fn into_parts(self) -> Result<Vec<Self>, EntryTooLarge> {
        if self.fits() {
            return Ok(vec![self]);
        }
        self.check_size()?;
        let (id, at_ms, frame) = (self.id, self.at_ms, frame::encode(&self.command));
        let chunks = frame.chunks(PART_BYTES_MAX);
        let last = u16::try_from(chunks.len() - 1).expect("a command is no longer than a frame");
        let entry = |(nth, bytes): (u16, &[u8])| {
            let part = Part { whole: id, nth, last, bytes: bytes.into() };
            Self { id: if nth == last { id } else { before(id, nth) }, at_ms, command: Command::Part(part) }
        };
        Ok((0..).zip(chunks).map(entry).collect())
    }
}

/// The id of a part that is not the last: another one than any that is minted, and the same each time.
fn before(whole: CommandId, nth: u16) -> CommandId {
    CommandId::new(Uuid::from_u128(whole.uuid().as_u128().wrapping_add(1 + u128::from(nth))))
}

/// Commands of which not all parts are there yet, oldest first.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unfinished(VecDeque<Told>);

/// What was told of a command so far.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Told {
    whole: CommandId,
    /// Which part comes next.
    next: u16,
    bytes: Vec<u8>,
}

impl Unfinished {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn find(&self, whole: CommandId) -> Option<&Told> {
        self.0.iter().find(|told| told.whole == whole)
    }

    /// Keeps a part that is not the last.
    fn keep(&mut self, part: &Part) {
        if part.nth == 0 {
            self.forget(part.whole);
            if self.0.len() == UNFINISHED_MAX {
                self.0.pop_front();
            }
            self.0.push_back(Told { whole: part.whole, next: 0, bytes: Vec::new() });
        }
        for told in self.0.iter_mut().filter(|told| told.whole == part.whole) {
            told.bytes.extend_from_slice(&part.bytes);
            told.next += 1;
        }
    }

    fn forget(&mut self, whole: CommandId) {
        self.0.retain(|told| told.whole != whole);
    }
}

impl State {
    /// Commands of which not all parts are there yet.
    pub fn unfinished(&self) -> &Unfinished {
        &self.unfinished
    }

    /// The same state with these commands half told, as a snapshot has them.
    #[must_use]
    pub fn resuming(mut self, unfinished: Unfinished) -> Self {
        self.unfinished = Arc::new(unfinished);
        self
    }

    /// Takes one part; with the last, does what the whole says. A refusal changes nothing here either.
    pub(crate) fn take_part(&mut self, entry: &Entry, part: &Part) -> Result<Applied, Refusal> {
        // The first part begins anew, whatever was told before.
        let told = self.unfinished.find(part.whole).filter(|_| part.nth > 0);
        let (next, before) = told.map_or((0, 0), |told| (told.next, told.bytes.len()));
        if part.nth != next || before + part.bytes.len() > COMMAND_BYTES_MAX {
            return Err(Refusal::PartMissing);
        }
        if part.nth < part.last {
            Arc::make_mut(&mut self.unfinished).keep(part);
            return Ok(Applied::Done);
        }
        let mut frame = told.map(|told| told.bytes.clone()).unwrap_or_default();
        frame.extend_from_slice(&part.bytes);
        let command = match frame::decode(&frame) {
            Ok(Command::Part(_)) | Err(_) => return Err(Refusal::PartMissing),
            Ok(command) => command,
        };
        let applied = self.change(&Entry { id: entry.id, at_ms: entry.at_ms, command })?;
        Arc::make_mut(&mut self.unfinished).forget(part.whole);
        Ok(applied)
    }
}
