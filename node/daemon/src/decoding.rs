//! Whatever a node decodes from the bus is understood or refused: every kind of message, cut, changed and lengthened.
//! What is understood is a message like any other, and what it leads to does not panic either.

use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use trellis_bus::hostile::change_and_decode;
use trellis_bus::members;
use trellis_placement::{Capacity, Incarnation, LogPoint, NodeFacts, Renewal};
use trellis_provider::delivery::{DeadLetter, Fate, Ran};
use trellis_trust::Token;
use trellis_wire::frame::{self, FrameError};
use trellis_wire::{
    Body, CallError, ComponentKey, Fault, Generation, LatticeId, LinkId, LinkName, Message, NodeId, RunOutput, Settle,
};
use uuid::Uuid;

use crate::board::{Health, Mark};
use crate::far::cargo;
use crate::far::message::{Ask, Back, Head, Offer, Origin, Piece, Taken, What, Word};
use crate::liveness::{Alive, Answer, Ask as PageAsk, Beat, Counts, OfComponent, OfLink, Sign};
use crate::telemetry::Carried;
use crate::triggers::{Question, Stands, Times, View};
use crate::{fetch, join};

/// Changes each message many times and decodes it. What is understood reads back as it is written.
#[track_caller]
fn check<T: Serialize + DeserializeOwned>(messages: &[T]) {
    for message in messages {
        change_and_decode(&frame::encode(message), |bytes| {
            let message: T = frame::decode(bytes)?;
            let again = frame::encode(&message);
            assert!(frame::decode::<T>(&again).is_ok_and(|read| frame::encode(&read) == again));
            Ok::<_, FrameError>(())
        });
    }
}

fn node(n: u128) -> NodeId {
    NodeId::new(Uuid::from_u128(n))
}

fn component() -> ComponentKey {
    "shop/api".parse().unwrap()
}

fn link() -> LinkId {
    let store = "shop/store".parse().unwrap();
    let id = LinkId::new(&component(), &store, &LinkName::default(), "wasi", "keyvalue", &["store".into()]);
    id.granting(&[("bucket", "orders")].into_iter().collect())
}

fn message() -> Message {
    let headers = vec![("trace".into(), "1".into()), ("trace".into(), "2".into())];
    Message { subject: "orders".into(), reply_to: Some("back".into()), headers, id: "17".into(), ..Message::default() }
}

fn heads() -> Vec<Head> {
    let headers = vec![("accept".into(), Bytes::from_static(b"*/*"))];
    let (method, uri) = ("POST".to_owned(), "http://shop.example/orders?n=1".to_owned());
    let http = |timeouts| Head::Http { method: method.clone(), uri: uri.clone(), headers: headers.clone(), timeouts };
    vec![
        http(None),
        http(Some([Duration::from_secs(1); 3])),
        Head::Message(message()),
        Head::Run(vec!["--all".into(), String::new()]),
        Head::Invoke { interface: "shop:math/add".into(), function: "add".into() },
        Head::KeyValue,
        Head::Publish(message()),
        Head::Request(message(), Duration::from_millis(1_500)),
        Head::TracedInvoke {
            interface: "shop:math/add".into(),
            function: "add".into(),
            within: Carried {
                traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into(),
                tracestate: Some("shop=7".into()),
            },
        },
    ]
}

fn backs() -> Vec<Back> {
    let headers = vec![("content-type".into(), Bytes::from_static(b"text/plain"))];
    let ran = Ran { digest: "sha256:00".into(), generation: 7, trace: "0af7".into() };
    vec![
        Back::Http { status: 200, headers },
        Back::Settle(Settle::Retry { after: Some(Duration::from_secs(2)), reason: "later".into() }),
        Back::Run(RunOutput { ok: true, ..RunOutput::default() }, 3),
        Back::Values,
        Back::Failed(Fault::Trap("unreachable".into()).into()),
        Back::KeyValue,
        Back::Published,
        Back::Message(message()),
        Back::CallFailed(CallError::Denied("no link".into())),
        Back::Delivered(Ok(Settle::Ack), ran),
        Back::Answer,
        Back::Took(3),
    ]
}

#[test]
fn offers_and_pieces_are_decoded_or_refused() {
    let origin = || Origin::Link(link(), "in".into());
    let mut all: Vec<What> = heads().into_iter().map(|head| What::Call { link: link(), head }).collect();
    all.extend([
        What::Event { component: component(), origin: Origin::Invoke, head: Head::Run(Vec::new()) },
        What::Deliver {
            component: component(),
            origin: origin(),
            head: Head::Message(message()),
            reserved: Some(Uuid::nil()),
        },
        What::Reserve { component: component(), origin: Origin::Component(link(), "v1".into()) },
        What::Send { component: component(), origin: origin(), link: link(), head: Head::Publish(message()) },
        What::Slot { component: component(), link: link() },
        What::Ask(Question::Decide(link(), "17".into(), Fate::Replay)),
        What::Publish { head: Head::Publish(message()) },
    ]);
    let offer = |what| {
        let (generation, exchange) = (Generation(9), Uuid::from_u128(1));
        let (within, first, whole) = (Duration::from_secs(30), Bytes::from_static(b"the beginning"), false);
        Ask::Offer(Box::new(Offer { generation, exchange, what, within, first, whole }))
    };
    let mut asks: Vec<Ask> = all.into_iter().map(offer).collect();
    asks.extend([Ask::Still(Uuid::from_u128(2)), Ask::Holds(component(), "v1".into())]);
    asks.push(Ask::Echo(component(), "v1".into()));
    check(&asks);
    check(&[Taken::Accepted, Taken::Busy("no permit".into()), Taken::Refused("no link".into()), Taken::Still(true)]);
    let done = |back| Taken::Done(Box::new(back), Bytes::from_static(b"all of it"));
    check(&backs().into_iter().map(done).collect::<Vec<_>>());

    let reply = |back| Word::Reply(Box::new(back), Bytes::from_static(b"the beginning"), true);
    let mut words: Vec<Word> = backs().into_iter().map(reply).collect();
    words.extend([Word::Chunk(3, Bytes::from_static(b"more")), Word::Credit(2), Word::Abort("gone".into())]);
    words.push(Word::End(4, vec![("grpc-status".into(), Bytes::from_static(b"0"))]));
    let piece = |word| Piece { exchange: Uuid::from_u128(3), to_asker: true, word };
    check(&words.into_iter().map(piece).collect::<Vec<_>>());
}

#[test]
fn heartbeats_are_decoded_or_refused() {
    let counts = Counts { running: 1, events: 300, faults: 2, tally: (7, 1) };
    let health = [Health::Ready, Health::Starting, Health::Failed("no".into()), Health::Unwell("gone".into())];
    let of_component =
        |health: &Health| (component(), OfComponent { mark: Mark::of(&1), health: health.clone(), counts });
    let of_link = |health: &Health| {
        (link(), OfLink { mark: Mark::of(&2), health: health.clone(), at: Some("http://127.0.0.1:8000".into()) })
    };
    let beat = Beat {
        generation: Generation(3),
        running: 5,
        page: 0,
        pages: 1,
        components: health.iter().map(of_component).collect(),
        links: health.iter().map(of_link).collect(),
        beside: vec![of_component(&Health::Ready)],
    };
    let renewal = Renewal { term: 3, edition: 4, lasts: Duration::from_secs(4) };
    let signs = [Sign::Beat(Box::new(beat.clone())), Sign::Goodbye, Sign::Renew(1), Sign::Renewed(node(1), 1, renewal)];
    check(&signs);
    let pages = vec![beat.mark(), Mark::of(&3)];
    let (generation, counts) = (Generation(3), vec![(0, 300, counts)]);
    let alive = Alive { generation, running: 5, applied: Some(300), pages, counts };
    check(&[Sign::Applied(300), Sign::Alive(Box::new(alive))]);
    check(&[Answer::Page(Box::new(beat)), Answer::NoSuch]);
    check(&[PageAsk::Page(300)]);
}

#[test]
fn the_words_of_joining_and_of_artifacts_are_decoded_or_refused() {
    let (lattice, key) = (LatticeId::new(Uuid::nil()), members::secret(node(1)).key());
    let token = Token::new(lattice, "the token of this lattice");
    let facts = NodeFacts {
        id: node(1),
        name: "laptop".into(),
        labels: [("zone".to_owned(), "cellar".to_owned())].into(),
        version: "0.1.0".into(),
        capacity: Capacity { permits: 100, memory_bytes: 1 << 30 },
        edge: false,
        key,
    };
    let proof = Some(token.prove(&[1; 16], node(1), key));
    let admit = join::Question::Admit { facts: Box::new(facts), lattice, challenge: [2; 16], proof };
    check(&[join::Question::Who([1; 16]), admit, join::Question::Incarnation([1; 16])]);
    let incarnation = Incarnation { number: 300, after: Some(LogPoint { term: 2, leader: node(2), index: 9 }) };
    let said = [
        join::Said::Present(Some([3; 16])),
        join::Said::Admitted,
        join::Said::Refused("no".into()),
        join::Said::Incarnation(incarnation),
        join::Said::AdmittedTo(300),
    ];
    let here = |said| join::Here { lattice, echo: [1; 16], said, members: vec![(node(2), key)] };
    let answer = |said| join::Answer::new(here(said), Some(&token.key()), node(1), (node(2), key));
    check(&said.map(answer));
    check(&[fetch::Ask::Chunk(crate::artifacts::Artifacts::digest(b"code"), 300_000)]);
    check(&[fetch::Chunk::Bytes(Bytes::from_static(b"code"), 4), fetch::Chunk::NotHere, fetch::Chunk::Busy]);
}

#[test]
fn what_nodes_say_of_their_triggers_is_decoded_or_refused() {
    let times = Times { count: 4, sum_us: 5_000 };
    let view = View {
        link: link(),
        component: component(),
        system: "nats".into(),
        held: 1,
        in_flight: 2,
        attempts: 3,
        outcomes: Default::default(),
        permit_wait: times,
        in_queue: times,
        run: times,
        paused_since_ms: Some(4),
        standing: Ok(Stands { waiting: 5, ..Stands::default() }),
        problem: Some("it lags".into()),
    };
    check(&[vec![view]]);
    let letter = DeadLetter {
        id: "17".into(),
        queue: "ORDERS".into(),
        component: component().to_string(),
        message: message(),
        attempts: 3,
        faults: vec!["unreachable".into()],
        kills: 0,
        reason: "max-faults".into(),
        detail: "it trapped".into(),
        at_ms: 1_764_000_000_000,
        ran: Ran::default(),
    };
    check(&[Some(letter)]);
}

/// Heads with any body, of the right kind and of every other.
#[tokio::test]
async fn whatever_is_put_together_is_an_event_a_call_or_an_answer_or_is_refused() {
    let bodies = || [&b""[..], &[frame::VERSION, 0xff, 0xff, 0xff, 0xff, 0x0f], &[0xff; 300]].map(Bytes::from_static);
    for body in bodies() {
        let body = || Body::from(body.clone());
        for (event, call) in heads().into_iter().zip(heads()) {
            drop(cargo::event_in(event, body()).await);
            drop(cargo::call_in(call, body()).await);
        }
        for back in backs().into_iter().zip(backs()).zip(backs()) {
            let ((outcome, answer), delivered) = back;
            drop(cargo::outcome_in(outcome, body()).await);
            drop(cargo::answer_in(answer, body()).await);
            drop(cargo::delivered_in(delivered, body()).await);
        }
    }
}

#[tokio::test]
async fn more_headers_than_a_map_takes_are_refused() {
    let headers = (0..40_000).map(|n| (format!("h{n}"), Bytes::new())).collect();
    let head = Head::Http { method: "GET".into(), uri: "/".into(), headers, timeouts: None };
    assert!(frame::encode(&head).len() < frame::FRAME_BYTES_MAX, "a frame has room for them");
    let refused = cargo::event_in(head, Body::empty()).await.unwrap_err();
    assert!(refused.to_string().contains("40000 headers"), "{refused}");
}
