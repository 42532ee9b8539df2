//! What a server gives again: messages of a session that are stored here, and of whose acknowledgement it does not know, since
//! a connection broke or a node died. They are told by the number under which they came: the server gives them again under the
//! same one, and says that it does. Handled again they would come after later ones of their order.
//!
//! A server may use a number anew once it is acknowledged. Most count on, so that a number is another message's only after
//! 65,535; but one that takes the lowest that is free might use it at once, for a message that is the same in every byte, whose
//! first sending got lost. So numbers are trusted only while each of the last came once: rather twice than never. A server that
//! was killed may have forgotten its last numbers, and counts on from an earlier one: what came under those does not count.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use trellis_wire::Message;
use uuid::Uuid;

use crate::client::Begins;
use crate::config::RECEIVE_MAX;

/// How many of the last messages are known: twice as many as a server may have out.
const KNOWN_MAX: usize = 2 * RECEIVE_MAX as usize;
/// Bytes of one in a note.
const MARK_BYTES: usize = 10;

/// The last messages of a session, oldest first.
#[derive(Debug, Clone)]
pub(crate) struct Given {
    /// The client's id: another session may have written to the same queue.
    session: String,
    marks: VecDeque<Mark>,
    /// Whether nothing new came since the connection began.
    is_resumed: bool,
}

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    /// The number under which it came.
    number: u16,
    /// What its content comes to.
    content: u64,
}

impl Given {
    /// Reads what [`Given::note`] wrote of a session.
    pub(crate) fn read(session: &str, note: &[u8]) -> Self {
        let mark = |bytes: &[u8; MARK_BYTES]| {
            let [a, b, content @ ..] = *bytes;
            Mark { number: u16::from_le_bytes([a, b]), content: u64::from_le_bytes(content) }
        };
        let marks = note.as_chunks().0.iter().map(mark).collect();
        Self { session: session.into(), marks, is_resumed: false }
    }

    /// What is to be kept beside the messages.
    pub(crate) fn note(&self) -> Bytes {
        let bytes = |mark: &Mark| mark.number.to_le_bytes().into_iter().chain(mark.content.to_le_bytes());
        self.marks.iter().flat_map(bytes).collect()
    }

    /// Something begins at the server. Whatever it gives in another session is another message.
    pub(crate) fn begin(&mut self, what: Begins) {
        self.is_resumed = true;
        if what == Begins::Session {
            self.marks.clear();
        }
    }

    /// Whether a message is stored already, that came under this number and that the server says it gives `again`. If not, it
    /// counts as stored from now on.
    pub(crate) fn is_stored(&mut self, number: u16, again: bool, message: &Message) -> bool {
        let mark = Mark { number, content: content(&self.session, message) };
        if again && self.marks.contains(&mark) && self.came_once_each() {
            return true;
        }
        if std::mem::take(&mut self.is_resumed) && self.came_once_each() {
            let known = self.marks.iter().position(|mark| mark.number == number);
            self.marks.truncate(known.unwrap_or(self.marks.len()));
        }
        if self.marks.len() == KNOWN_MAX {
            self.marks.pop_front();
        }
        self.marks.push_back(mark);
        false
    }

    fn came_once_each(&self) -> bool {
        let numbers: BTreeSet<u16> = self.marks.iter().map(|mark| mark.number).collect();
        numbers.len() == self.marks.len()
    }
}

/// The same for two messages only if they are of one session and the same in every byte.
fn content(session: &str, message: &Message) -> u64 {
    let Message { subject, body, reply_to, headers, .. } = message;
    let headers = headers.iter().flat_map(|(name, value)| [name.as_str(), value.as_str()]);
    let texts = [session, subject.as_str(), reply_to.as_deref().unwrap_or_default()].into_iter().chain(headers);
    let mut bytes = Vec::with_capacity(body.len() + 256);
    for part in texts.map(str::as_bytes).chain([&**body]) {
        // Its length before it, so that no two are the same together that are not each by itself.
        bytes.extend_from_slice(&part.len().to_le_bytes());
        bytes.extend_from_slice(part);
    }
    Uuid::new_v5(&Uuid::NAMESPACE_OID, &bytes).as_u64_pair().0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(body: &str) -> Message {
        Message { subject: "orders".into(), body: body.to_owned().into(), ..Message::default() }
    }

    /// What of these is stored, as number, again and body.
    fn stored<'a>(given: &mut Given, came: &[(u16, bool, &'a str)]) -> Vec<&'a str> {
        let new = came.iter().filter(|(number, again, body)| !given.is_stored(*number, *again, &message(body)));
        new.map(|(.., body)| *body).collect()
    }

    #[test]
    fn what_was_stored_and_is_given_again_is_not_stored_again() {
        let mut given = Given::read("one", &[]);
        assert_eq!(stored(&mut given, &[(1, false, "a"), (2, false, "b"), (3, false, "c")]), ["a", "b", "c"]);
        let (mut other, mut given) = (Given::read("other", &given.note()), Given::read("one", &given.note()));
        assert_eq!(stored(&mut other, &[(2, true, "b")]), ["b"], "of another session");
        let again = [(2, true, "b"), (3, true, "c"), (4, true, "d"), (5, false, "e")];
        assert_eq!(stored(&mut given, &again), ["d", "e"], "one that had not arrived is new");
        assert_eq!(stored(&mut given, &[(5, false, "e")]), ["e"], "a server that does not say so gives another one");
    }

    #[test]
    fn a_number_that_is_used_anew_is_another_message() {
        let mut given = Given::read("one", &[]);
        assert_eq!(stored(&mut given, &[(1, false, "on"), (1, true, "off")]), ["on", "off"], "by its content");
        assert_eq!(stored(&mut given, &[(1, true, "off")]), ["off"], "by its number, which came twice");
        given.begin(Begins::Session);
        assert_eq!(stored(&mut given, &[(1, true, "off")]), ["off"], "by its session");
    }

    #[test]
    fn a_server_that_was_killed_counts_on_from_what_it_remembers() {
        let mut given = Given::read("one", &[]);
        stored(&mut given, &[(1, false, "a"), (2, false, "b"), (3, false, "c"), (4, false, "d")]);
        given.begin(Begins::Connection);
        let came = [(2, true, "b"), (3, false, "e"), (4, false, "f")];
        assert_eq!(stored(&mut given, &came), ["e", "f"], "it has forgotten 3 and 4");
        given.begin(Begins::Connection);
        assert_eq!(
            stored(&mut given, &[(3, true, "e"), (4, true, "f"), (5, true, "g")]),
            ["g"],
            "and is trusted still"
        );
        // One that always takes the lowest is not.
        stored(&mut given, &[(1, false, "on"), (1, false, "on")]);
        given.begin(Begins::Connection);
        assert_eq!(stored(&mut given, &[(1, true, "on")]), ["on"]);
    }

    #[test]
    fn only_the_last_are_known() {
        let mut given = Given::read("one", &[]);
        let last = u16::try_from(KNOWN_MAX).unwrap() + 1;
        for number in 1..=last {
            assert!(!given.is_stored(number, false, &message("same")));
        }
        assert_eq!(given.note().len(), KNOWN_MAX * MARK_BYTES);
        assert!(!given.clone().is_stored(1, true, &message("same")));
        assert!(given.is_stored(2, true, &message("same")) && given.is_stored(last, true, &message("same")));
    }

    #[test]
    fn no_two_messages_come_to_the_same() {
        let of = |headers: &[(&str, &str)], body: &str| {
            let headers = headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
            content("one", &Message { headers, ..message(body) })
        };
        let all = [of(&[], ""), of(&[], "x"), of(&[("x", "")], ""), of(&[("", "x")], ""), of(&[("a", "b")], "x")];
        assert_eq!(BTreeSet::from(all).len(), all.len());
        assert_eq!(of(&[("a", "b")], "x"), all[4]);
    }
}
