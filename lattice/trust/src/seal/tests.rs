//! What a seal takes and what it does not: members, a stranger with the whole wire, and any bytes at all.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use uuid::Uuid;

use super::*;

fn id(n: u8) -> NodeId {
    NodeId::new(Uuid::from_u128(n.into()))
}

fn lattice(n: u128) -> LatticeId {
    LatticeId::new(Uuid::from_u128(n))
}

struct Members(LatticeId, BTreeMap<NodeId, NodeKey>, u32);

impl Book for Members {
    fn lattice(&self) -> Option<LatticeId> {
        Some(self.0)
    }

    fn key(&self, node: NodeId) -> Option<NodeKey> {
        self.1.get(&node).copied()
    }

    fn secret(&self) -> Option<LatticeSecret> {
        Some(LatticeSecret::new([9; 32]))
    }

    fn incarnation(&self) -> u32 {
        self.2
    }
}

/// A start of node `n` in a lattice of nodes 1 to 3. Each start is later than the one before.
fn seal(n: u8) -> Seal {
    static STARTS: AtomicU64 = AtomicU64::new(1);
    let number = STARTS.fetch_add(1, Ordering::Relaxed);
    let seal = Seal::new(id(n), NodeSecret::new([n; 32]), Start { number, salt: number });
    seal.read(Arc::new(Members(lattice(1), keys(), 0)));
    seal
}

fn keys() -> BTreeMap<NodeId, NodeKey> {
    (1..=3).map(|n| (id(n), NodeSecret::new([n; 32]).key())).collect()
}

fn greet(seal: &Seal, other: &Seal) -> Result<(), Distrust> {
    let answer = other.greeted("greet", &Seal::greeting([5; 16]))?;
    seal.meet(other.node(), "greet", [5; 16], &answer)
}

/// Nodes 1 and 2, which have met.
fn pair() -> (Seal, Seal) {
    let (a, b) = (seal(1), seal(2));
    greet(&a, &b).unwrap();
    greet(&b, &a).unwrap();
    (a, b)
}

fn why(opened: Result<Opened, Distrust>) -> Distrust {
    opened.err().expect("it is not to be taken")
}

#[test]
fn a_word_and_its_answer_arrive_once() {
    let (a, b) = pair();
    let (word, asked) = a.seal(id(2), "call", b"how are you").unwrap();
    assert!(!word.windows(3).any(|part| part == b"how"), "nobody reads it on the way");
    let opened = b.open("call", &word).unwrap();
    assert_eq!((opened.from, &opened.body[..]), (id(1), &b"how are you"[..]));
    let answer = b.answer(opened.ticket.unwrap(), b"well");
    assert_eq!(a.open_answer(&asked, &answer).unwrap(), b"well");
    assert_eq!(why(b.open("call", &word)), Distrust::Replayed(id(1)));
    let (_, other) = a.seal(id(2), "call", b"how are you").unwrap();
    assert_eq!(a.open_answer(&other, &answer), Err(Distrust::Forged(id(2))), "it answers one question only");
    assert_eq!(b.notice("call", &word, &Distrust::Replayed(id(1))), None, "who repeats it must not spoil the answer");
    // A copy for another start is refused with a notice that is about this word, and not believed: it is not so.
    let about = b.notice("call", &word, &Distrust::OtherStart(id(1))).unwrap();
    assert_eq!(a.open_answer(&asked, &about), Err(Distrust::Forged(id(2))));
}

#[test]
fn words_come_in_any_order_and_each_subject_counts_for_itself() {
    let (a, b) = pair();
    let words: Vec<_> = (0..200).map(|_| a.seal(id(2), "call", b"x").unwrap().0).collect();
    for word in words.iter().rev() {
        b.open("call", word).unwrap();
    }
    assert!(words.iter().all(|word| why(b.open("call", word)) == Distrust::Replayed(id(1))));
    b.open("event", &a.seal(id(2), "event", b"x").unwrap().0).unwrap();
}

#[test]
fn a_word_is_for_one_node_one_subject_and_one_lattice() {
    let (a, b) = pair();
    let c = seal(3);
    let (word, _) = a.seal(id(2), "call", b"x").unwrap();
    assert_eq!(why(b.open("event", &word)), Distrust::Forged(id(1)), "it came on another subject");
    assert_eq!(why(c.open("call", &word)), Distrust::OtherStart(id(1)), "it is for another node");
    assert_eq!(why(a.open("call", &word)), Distrust::OtherStart(id(1)), "it came back");
    b.read(Arc::new(Members(lattice(2), BTreeMap::new(), 0)));
    assert_eq!(why(b.open("call", &word)), Distrust::OtherLattice { theirs: lattice(1), from: id(1) });
}

#[test]
fn members_of_two_incarnations_take_nothing_from_each_other_and_the_earlier_hears_of_it() {
    let (a, b) = pair();
    b.read(Arc::new(Members(lattice(1), keys(), 1)));
    let (word, asked) = a.seal(id(2), "raft", b"vote for me").unwrap();
    let why = b.open("raft", &word).err().unwrap();
    assert_eq!(why, Distrust::OtherIncarnation { theirs: 0, from: id(1) });
    assert_eq!(b.take_risen(), None, "that is an earlier one");
    let notice = b.notice("raft", &word, &why).unwrap();
    assert!(matches!(a.open_answer(&asked, &notice), Err(Distrust::Refused { why: Refused::OtherLattice(_), .. })));
    assert_eq!(a.take_risen(), Some(id(2)));
    let (later, earlier) = (b.announce("hb", b"x").unwrap(), a.announce("hb", b"x").unwrap());
    assert!(matches!(a.open("hb", &later), Err(Distrust::OtherIncarnation { theirs: 1, .. })));
    assert_eq!(a.take_risen(), Some(id(2)));
    assert!(matches!(b.open("hb", &earlier), Err(Distrust::OtherIncarnation { theirs: 0, .. })));
    assert!(matches!(greet(&a, &b), Err(Distrust::OtherIncarnation { theirs: 1, .. })));
    assert_eq!((a.take_risen(), b.take_risen()), (Some(id(2)), None));
    // In the same one they understand each other again.
    a.read(Arc::new(Members(lattice(1), keys(), 1)));
    greet(&a, &b).unwrap();
    assert_eq!(b.open("raft", &a.seal(id(2), "raft", b"x").unwrap().0).unwrap().body, b"x");
}

#[test]
fn who_is_no_member_is_not_heard_whatever_id_it_takes() {
    let (a, b) = pair();
    let stranger = seal(9);
    greet(&stranger, &b).unwrap();
    let (word, asked) = stranger.seal(id(2), "raft", b"vote for me").unwrap();
    assert_eq!(why(b.open("raft", &word)), Distrust::Unknown(id(9)));
    assert_eq!(b.take_unknown(), Some(id(9)));
    assert_eq!(b.take_unknown(), None);
    let notice = b.notice("raft", &word, &Distrust::Unknown(id(9))).unwrap();
    let told = stranger.open_answer(&asked, &notice).unwrap_err();
    assert_eq!(told, Distrust::Refused { by: id(2), why: Refused::Unknown });

    // The id of a member, the key of a stranger.
    let liar = Seal::new(id(1), NodeSecret::new([77; 32]), Start { number: 1 << 40, salt: 0 });
    liar.read(stranger.book().unwrap());
    greet(&liar, &b).unwrap();
    assert_eq!(why(b.open("raft", &liar.seal(id(2), "raft", b"x").unwrap().0)), Distrust::Forged(id(1)));
    assert_eq!(why(b.open("hb", &liar.announce("hb", b"x").unwrap())), Distrust::Forged(id(1)));
    b.open("raft", &a.seal(id(2), "raft", b"x").unwrap().0).unwrap();

    // A node that was forgotten is a stranger from then on.
    let (word, _) = a.seal(id(2), "raft", b"x").unwrap();
    b.read(Arc::new(Members(lattice(1), BTreeMap::new(), 0)));
    assert_eq!(why(b.open("raft", &word)), Distrust::Unknown(id(1)));
    b.introduce(id(1), a.key());
    b.open("raft", &word).unwrap();
}

#[test]
fn what_was_said_before_a_start_is_over_and_the_sender_hears_of_it() {
    let (a, b) = pair();
    let (word, asked) = a.seal(id(2), "call", b"x").unwrap();
    let b = {
        drop(b);
        seal(2)
    };
    let refused = why(b.open("call", &word));
    assert_eq!(refused, Distrust::OtherStart(id(1)));
    let notice = b.notice("call", &word, &refused).unwrap();
    let told = a.open_answer(&asked, &notice).unwrap_err();
    assert_eq!(told, Distrust::Refused { by: id(2), why: Refused::OtherStart });
    let (again, asked) = a.seal(id(2), "call", b"x").unwrap();
    b.open("call", &again).unwrap();
    assert_eq!(a.open_answer(&asked, &notice), Err(Distrust::Forged(id(2))), "a notice is about one word");

    // The sender starts again: what it said before is over too, and what it says now is heard without a greeting.
    let before = a.seal(id(2), "call", b"x").unwrap().0;
    let a = {
        drop(a);
        seal(1)
    };
    greet(&a, &b).unwrap();
    b.open("call", &a.seal(id(2), "call", b"x").unwrap().0).unwrap();
    assert_eq!(why(b.open("call", &before)), Distrust::OtherStart(id(1)));
}

/// Two processes may have one node's id and key: a data directory was copied.
#[test]
fn a_start_hears_of_a_later_one_of_its_own_node() {
    let (member, first) = pair();
    let beat = first.announce("hb", b"here").unwrap();
    let second = seal(2);
    assert_eq!(why(second.open("hb", &beat)), Distrust::OtherStart(id(2)));
    assert!(!second.is_superseded(), "the later one goes on");

    greet(&member, &second).unwrap();
    let (word, _) = member.seal(id(2), "raft", b"x").unwrap();
    let mut changed = word.clone();
    *changed.last_mut().unwrap() ^= 1;
    assert_eq!(why(first.open("raft", &changed)), Distrust::OtherStart(id(1)));
    assert!(!first.is_superseded(), "anyone may have made this");
    assert_eq!(why(first.open("raft", &word)), Distrust::OtherStart(id(1)));
    assert!(first.is_superseded(), "a member has met the later one");

    let (_, first) = pair();
    let second = seal(2);
    let beat = second.announce("hb", b"here").unwrap();
    assert_eq!(second.open("hb", &beat).unwrap().from, id(2));
    assert_eq!(why(first.open("hb", &beat)), Distrust::OtherStart(id(2)));
    assert!(first.is_superseded() && !second.is_superseded(), "it spoke itself");
}

#[test]
fn an_announcement_is_heard_once_after_its_sender_was_greeted() {
    let (a, b) = (seal(1), seal(2));
    let old: Vec<_> = (0..3).map(|_| a.announce("hb", b"alive").unwrap()).collect();
    assert!(!old[0].windows(5).any(|part| part == b"alive"), "only members read it");
    assert_eq!(why(b.open("hb", &old[2])), Distrust::NotMet(id(1)), "it may be from a time before this node began");
    greet(&b, &a).unwrap();
    assert_eq!(why(b.open("hb", &old[2])), Distrust::Replayed(id(1)), "it was said before the greeting");
    let new = a.announce("hb", b"alive").unwrap();
    assert_eq!(b.open("hb", &new).unwrap().body, b"alive");
    assert_eq!(why(b.open("hb", &new)), Distrust::Replayed(id(1)));
    assert_eq!(why(b.open("delta", &a.announce("hb", b"x").unwrap())), Distrust::Forged(id(1)), "another subject");

    let again = seal(1);
    assert_eq!(why(b.open("hb", &again.announce("hb", b"x").unwrap())), Distrust::NotMet(id(1)), "a later start");
    greet(&b, &again).unwrap();
    assert_eq!(why(b.open("hb", &a.announce("hb", b"x").unwrap())), Distrust::OtherStart(id(1)), "an earlier one");
    b.open("hb", &again.announce("hb", b"x").unwrap()).unwrap();
    b.open("hb", &b.announce("hb", b"my own").unwrap()).unwrap();
}

#[test]
fn a_greeting_is_answered_by_the_node_itself_and_now() {
    let (a, b, c) = (seal(1), seal(2), seal(3));
    let answer = b.greeted("greet", &Seal::greeting([5; 16])).unwrap();
    assert_eq!(a.meet(id(2), "greet", [6; 16], &answer), Err(Distrust::Forged(id(2))), "another greeting's answer");
    assert_eq!(a.meet(id(3), "greet", [5; 16], &answer), Err(Distrust::Forged(id(3))), "another node's answer");
    assert_eq!(a.seal(id(2), "call", b"x").err(), Some(Distrust::NotMet(id(2))));
    a.meet(id(2), "greet", [5; 16], &answer).unwrap();
    greet(&a, &c).unwrap();
    a.seal(id(2), "call", b"x").unwrap();
    let later = seal(2);
    greet(&a, &later).unwrap();
    assert_eq!(a.meet(id(2), "greet", [5; 16], &answer), Err(Distrust::OtherStart(id(2))), "an earlier start");
    let homeless = Seal::new(id(1), NodeSecret::new([1; 32]), Start { number: 1, salt: 1 });
    assert_eq!(homeless.greeted("greet", &Seal::greeting([5; 16])), Err(Distrust::NoLattice));
    assert_eq!(homeless.announce("hb", b"x"), Err(Distrust::NoLattice));
}

#[test]
fn whoever_presents_a_key_has_it() {
    let stranger = seal(9);
    let frame = stranger.present("join", b"let me in");
    let Presented { from, key, body } = presented("join", &frame).unwrap();
    assert_eq!((from, key, &body[..]), (id(9), stranger.key(), &b"let me in"[..]));
    assert_eq!(presented("other", &frame), Err(Distrust::Forged(id(9))));
    let mut other = frame.clone();
    let at = other.len() - SIGNATURE - 1;
    other[at] ^= 1;
    assert_eq!(presented("join", &other), Err(Distrust::Forged(id(9))));
}

/// What is on the wire stays as it is: a new kind of head goes to the end of its enum.
#[test]
fn heads_are_pinned() {
    let start = Start { number: 1, salt: 2 };
    let heads = [
        Head::Sealed { lattice: lattice(1), from: id(1), start, to: start, count: 3 },
        Head::Answer,
        Head::Notice { lattice: lattice(1), start, why: Refused::Unknown },
        Head::Announced { lattice: lattice(1), from: id(1), start, count: 3 },
        Head::Greeting { nonce: [0; 16] },
        Head::Greeted { lattice: lattice(1), start, announced: 3, nonce: [0; 16] },
        Head::Presented { from: id(1), key: NodeKey::new([0; 32]) },
    ];
    for (number, head) in heads.iter().enumerate() {
        let frame = frame::encode(head);
        assert_eq!((frame[0], usize::from(frame[1])), (frame::VERSION, number), "{head:?}");
    }
}

/// Every kind of frame, as node 1 or 2 would have sent it.
fn captured(a: &Seal, b: &Seal) -> Vec<Vec<u8>> {
    let (word, _) = a.seal(id(2), "s", b"word").unwrap();
    let notice = b.notice("s", &word, &Distrust::Unknown(id(1))).unwrap();
    let announced = a.announce("s", b"word").unwrap();
    let greeted = a.greeted("s", &Seal::greeting([5; 16])).unwrap();
    vec![word, notice, announced, greeted, Seal::greeting([5; 16]), a.present("s", b"word")]
}

proptest! {
    #[test]
    fn any_bytes_are_refused_and_harm_nothing(mut bytes in prop::collection::vec(any::<u8>(), 0..300), kind in 0_u8..9) {
        let (a, b) = pair();
        let (_, asked) = a.seal(id(2), "s", b"word").unwrap();
        for known in [false, true] {
            if let [version, head, ..] = &mut bytes[..] && known {
                (*version, *head) = (frame::VERSION, kind);
            }
            prop_assert!(b.open("s", &bytes).is_err());
            prop_assert!(a.open_answer(&asked, &bytes).is_err());
            prop_assert!(a.meet(id(2), "s", [5; 16], &bytes).is_err());
            prop_assert!(presented("s", &bytes).is_err());
            let refused = b.notice("s", &bytes, &Distrust::Unknown(id(1)));
            prop_assert!(refused.is_none_or(|notice| a.open_answer(&asked, &notice).is_err()));
        }
        b.open("s", &a.seal(id(2), "s", b"word").unwrap().0).unwrap();
    }

    #[test]
    fn a_captured_frame_that_was_changed_is_refused(kind in 0_usize..6, at: prop::sample::Index, change in 1_u8..) {
        let (a, b) = pair();
        let (_, asked) = a.seal(id(2), "s", b"word").unwrap();
        let mut frame = captured(&a, &b).swap_remove(kind);
        let at = at.index(frame.len());
        frame[at] ^= change;
        prop_assert!(b.open("s", &frame).is_err());
        prop_assert!(a.open_answer(&asked, &frame).is_err());
        prop_assert!(b.meet(id(1), "s", [5; 16], &frame).is_err());
        prop_assert!(presented("s", &frame).is_err());
        prop_assert!(presented("s", &frame[..at]).is_err() && b.open("s", &frame[..at]).is_err());
        b.open("s", &a.seal(id(2), "s", b"word").unwrap().0).unwrap();
    }
}
