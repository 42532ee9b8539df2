//! Lines: both ends of each exchange, and the pieces that flow between them. One subscription for each node brings every
//! piece; here it finds the exchange it belongs to. What overflows, comes twice or leaves a gap breaks its exchange off
//! and nothing else.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use bytes::{Bytes, BytesMut};
use futures::FutureExt as _;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use trellis_bus::{BusError, Sealed, SealedError};
use trellis_placement::Life;
use trellis_wire::{Body, BodyError, NodeId, frame, subject};
use uuid::Uuid;

use super::cargo::{Rest, headers_in, headers_out};
use super::message::{Ask, Piece, Taken, Word};
use super::{CHUNK_BYTES_MAX, CREDITS, STILL_AGAIN, STILL_EVERY, TAKE_WAIT, UNANSWERED_MAX, UNANSWERED_MIN, unreached};
use crate::liveness::Liveness;

/// How many words of one exchange may wait: every chunk there is credit for, the reply and the end.
const WORDS_MAX: usize = CREDITS + 2;
/// How many exchanges are remembered that were broken off before they were offered.
const UNWANTED_MAX: usize = 1_024;

/// Every exchange of this node that is under way.
#[derive(Clone)]
pub(crate) struct Lines {
    sealed: Sealed,
    liveness: Arc<Liveness>,
    table: Arc<Mutex<Table>>,
}

#[derive(Default)]
struct Table {
    /// By exchange, and whether this node asked.
    open: HashMap<(Uuid, bool), Arc<End>>,
    /// Broken off by the asker before its offer came: an offer that was held up is not carried out any more.
    unwanted: VecDeque<(NodeId, Uuid)>,
}

/// What pieces of one exchange do at this end.
struct End {
    peer: NodeId,
    words: mpsc::Sender<Word>,
    credits: Semaphore,
    over: CancellationToken,
    why: OnceLock<String>,
}

/// One end of an exchange. Dropping it ends it here, and breaks it off there unless it was done.
pub(crate) struct Line {
    lines: Lines,
    exchange: Uuid,
    asked: bool,
    peer: NodeId,
    end: Arc<End>,
    words: Option<mpsc::Receiver<Word>>,
    /// Whether the exchange ends here with this value: a request's body alone does not end it.
    closes: bool,
    done: bool,
}

/// What is left of a line when its body has been handed on.
struct Leftover {
    line: Line,
    words: mpsc::Receiver<Word>,
    next: u32,
}

impl Lines {
    /// Nothing is under way.
    pub(crate) fn new(sealed: Sealed, liveness: Arc<Liveness>) -> Self {
        Self { sealed, liveness, table: Arc::default() }
    }

    /// Opens this node's end of an exchange with `peer`. `None`: the asker has broken it off already.
    pub(crate) fn open(&self, exchange: Uuid, asked: bool, peer: NodeId) -> Option<Line> {
        let (sender, words) = mpsc::channel(WORDS_MAX);
        let end = Arc::new(End {
            peer,
            words: sender,
            credits: Semaphore::new(CREDITS),
            over: CancellationToken::new(),
            why: OnceLock::new(),
        });
        let mut table = self.lock();
        if !asked && table.unwanted.contains(&(peer, exchange)) {
            return None;
        }
        table.open.insert((exchange, asked), end.clone());
        drop(table);
        Some(Line { lines: self.clone(), exchange, asked, peer, end, words: Some(words), closes: true, done: false })
    }

    /// Whether an exchange is under way here, at either end.
    pub(crate) fn is_open(&self, exchange: Uuid) -> bool {
        let table = self.lock();
        table.open.contains_key(&(exchange, false)) || table.open.contains_key(&(exchange, true))
    }

    /// Asks the other node whether an exchange is still under way there. `None`: it did not say in time.
    pub(crate) async fn is_still(&self, peer: NodeId, exchange: Uuid) -> Option<bool> {
        let (subject, question) = (subject::event(self.sealed.lattice(), peer), frame::encode(&Ask::Still(exchange)));
        match self.sealed.ask(peer, &subject, &question, TAKE_WAIT).await {
            Ok(answer) => match frame::decode(&answer) {
                Ok(Taken::Still(still)) => Some(still),
                _ => None,
            },
            // The server says at once that nobody listens there any more.
            Err(SealedError::Bus(BusError::NoResponders { .. })) => Some(false),
            Err(_) => None,
        }
    }

    /// Waits until an exchange is under way no more at the other node, and says why.
    pub(crate) async fn gone(&self, peer: NodeId, exchange: Uuid) -> String {
        let (mut pause, mut heard, mut ended) = (STILL_EVERY, Instant::now(), false);
        loop {
            sleep(pause).await;
            let still = self.is_still(peer, exchange).await;
            let unanswered = heard.elapsed();
            match still {
                // It may have ended just now, and what it said last may be here in a moment.
                Some(false) if ended => return format!("node {peer} was lost while it worked on it"),
                Some(still) => (pause, heard, ended) = (STILL_EVERY, Instant::now(), !still),
                None if unanswered >= UNANSWERED_MAX || (unanswered >= UNANSWERED_MIN && !self.is_heard(peer)) => {
                    return format!("node {peer} does not answer any more");
                }
                None => pause = STILL_AGAIN,
            }
        }
    }

    /// Heartbeats come from threads that guests do not share.
    fn is_heard(&self, peer: NodeId) -> bool {
        self.liveness.life(peer) == Life::Alive
    }

    /// Takes one piece from another node.
    pub(crate) fn take(&self, from: NodeId, piece: &[u8]) {
        let piece: Piece = match frame::decode(piece) {
            Ok(piece) => piece,
            Err(why) => return tracing::warn!(%from, "a piece of an exchange is malformed: {why}"),
        };
        let mut table = self.lock();
        let end = table.open.get(&(piece.exchange, piece.to_asker)).filter(|end| end.peer == from).cloned();
        let Some(end) = end else {
            if matches!(piece.word, Word::Abort(_)) && !piece.to_asker {
                if table.unwanted.len() == UNWANTED_MAX {
                    table.unwanted.pop_front();
                }
                table.unwanted.push_back((from, piece.exchange));
            }
            return;
        };
        drop(table);
        match piece.word {
            Word::Credit(count) => {
                let room = CREDITS.saturating_sub(end.credits.available_permits());
                end.credits.add_permits(room.min(count as usize));
            }
            Word::Abort(why) => end.break_off(why),
            word => end.hear(word),
        }
    }

    async fn send(&self, peer: NodeId, piece: &Piece) -> Result<(), SealedError> {
        self.sealed.tell(peer, &subject::stream(self.sealed.lattice(), peer), &frame::encode(piece)).await
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("no code panics while it holds this lock")
    }
}

impl End {
    fn hear(&self, word: Word) {
        if self.words.try_send(word).is_err() {
            self.break_off("more came than there was credit for".into());
        }
    }

    fn break_off(&self, why: String) {
        // The first reason is the one to tell.
        let _ = self.why.set(why);
        self.over.cancel();
    }
}

impl Line {
    /// Who is at the other end.
    pub(crate) const fn peer(&self) -> NodeId {
        self.peer
    }

    /// The exchange.
    pub(crate) const fn exchange(&self) -> Uuid {
        self.exchange
    }

    /// Resolves when the other side has broken it off, or the line is gone. Never otherwise.
    pub(crate) fn over(&self) -> CancellationToken {
        self.end.over.clone()
    }

    /// Why it was broken off.
    pub(crate) fn why(&self) -> String {
        self.end.why.get().cloned().unwrap_or_else(|| "it was broken off".into())
    }

    /// Nothing more is to be told to the other side.
    pub(crate) fn done(&mut self) {
        self.done = true;
    }

    /// Sends a word.
    pub(crate) async fn say(&self, word: Word) -> Result<(), SealedError> {
        let piece = Piece { exchange: self.exchange, to_asker: !self.asked, word };
        self.lines.send(self.peer, &piece).await
    }

    /// A word that came by another way than the line.
    pub(crate) fn hear(&self, word: Word) {
        self.end.hear(word);
    }

    /// Waits for the next word. `None`: it was broken off.
    pub(crate) async fn next(&mut self) -> Option<Word> {
        let words = self.words.as_mut()?;
        tokio::select! {
            biased;
            word = words.recv() => word,
            () = self.end.over.cancelled() => None,
        }
    }

    /// A handle to send a body with, while the line itself waits for the reply.
    pub(crate) fn outflow(&self) -> Outflow {
        let (lines, end) = (self.lines.clone(), self.end.clone());
        Outflow { lines, exchange: self.exchange, to_asker: !self.asked, peer: self.peer, end }
    }

    /// The body that comes in on this line after `first`. The line lives as long as the body is read.
    pub(crate) fn into_body(mut self, first: Bytes, whole: bool) -> Body {
        if whole {
            self.done();
            return first.into();
        }
        let words = self.words.take().expect("a line has one body");
        let body = incoming(Leftover { line: self, words, next: 0 }, first);
        Body::new(StreamBody::new(Box::pin(body)))
    }

    /// The request's body, as the answering side reads it while it keeps the line.
    pub(crate) fn request_body(&mut self, first: Bytes, whole: bool) -> Body {
        if whole {
            return first.into();
        }
        let words = self.words.take().expect("a line has one body");
        let twin = Self {
            lines: self.lines.clone(),
            exchange: self.exchange,
            asked: self.asked,
            peer: self.peer,
            end: self.end.clone(),
            words: None,
            closes: false,
            done: true,
        };
        let body = incoming(Leftover { line: twin, words, next: 0 }, first);
        Body::new(StreamBody::new(Box::pin(body)))
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.closes {
            self.lines.lock().open.remove(&(self.exchange, self.asked));
        }
        let was_over = self.end.over.is_cancelled();
        if self.closes {
            // What is still sent of a body has no reader any more.
            self.end.over.cancel();
        }
        if self.done || was_over {
            return;
        }
        let (lines, peer) = (self.lines.clone(), self.peer);
        let word = Word::Abort("nobody waits for it any more".into());
        let piece = Piece { exchange: self.exchange, to_asker: !self.asked, word };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            // A peer that is not told finds out when it asks.
            runtime.spawn(async move { drop(lines.send(peer, &piece).await) });
        }
    }
}

/// Chunks as frames of a body. Each one that is taken up gives credit for another.
fn incoming(line: Leftover, first: Bytes) -> impl futures::Stream<Item = Result<Frame<Bytes>, BodyError>> + Send {
    let begin = (Some(line), (!first.is_empty()).then_some(first));
    futures::stream::unfold(begin, async |(line, first)| {
        let mut line = line?;
        if let Some(first) = first {
            return Some((Ok(Frame::data(first)), (Some(line), None)));
        }
        match line.frame().await {
            Ok(Some((frame, false))) => Some((Ok(frame), (Some(line), None))),
            Ok(Some((frame, true))) => {
                line.line.done();
                Some((Ok(frame), (None, None)))
            }
            Ok(None) => {
                line.line.done();
                None
            }
            Err(why) => Some((Err(why), (None, None))),
        }
    })
}

impl Leftover {
    /// The next frame and whether it is the last; `None` at the end.
    async fn frame(&mut self) -> Result<Option<(Frame<Bytes>, bool)>, BodyError> {
        let broken = |why: String| BodyError::BrokenOff(why.into());
        let (peer, exchange) = (self.line.peer, self.line.exchange);
        let word = tokio::select! {
            biased;
            word = self.words.recv() => word,
            () = self.line.end.over.cancelled() => None,
            why = self.line.lines.gone(peer, exchange) => return Err(broken(why)),
        };
        match word {
            Some(Word::Chunk(number, bytes)) if number == self.next => {
                self.next += 1;
                self.line.say(Word::Credit(1)).await.map_err(|why| broken(unreached(peer, &why)))?;
                Ok(Some((Frame::data(bytes), false)))
            }
            Some(Word::End(count, trailers)) if count == self.next => {
                if trailers.is_empty() {
                    return Ok(None);
                }
                let trailers = headers_in(trailers).map_err(|why| broken(why.to_string()))?;
                Ok(Some((Frame::trailers(trailers), true)))
            }
            Some(_) => Err(broken("a piece was lost between two nodes".into())),
            None => Err(broken(self.line.why())),
        }
    }
}

/// Sends a body.
pub(crate) struct Outflow {
    lines: Lines,
    exchange: Uuid,
    to_asker: bool,
    peer: NodeId,
    end: Arc<End>,
}

impl Outflow {
    /// Sends what follows the beginning, chunk by chunk as there is credit. Whether all of it went.
    pub(crate) async fn send(self, rest: Rest) -> bool {
        let over = self.end.over.clone();
        let sent = tokio::select! {
            biased;
            () = over.cancelled() => return false,
            sent = self.flow(rest) => sent,
        };
        if let Err(why) = &sent {
            tracing::debug!(exchange = %self.exchange, why, "a body broke off");
            // The other side is told if it can be; else it finds out when it asks.
            drop(self.say(Word::Abort(why.clone())).await);
        }
        sent.is_ok()
    }

    async fn flow(&self, mut rest: Rest) -> Result<(), String> {
        let (mut number, mut trailers) = (0, Vec::new());
        let mut left = BytesMut::new();
        loop {
            let frame = match rest.read.pop_front() {
                Some(frame) => Some(frame),
                None if left.is_empty() => next_frame(&mut rest.body).await?,
                // What is there goes out together; what is not there is not waited for.
                None if left.len() < CHUNK_BYTES_MAX => match next_frame(&mut rest.body).now_or_never() {
                    Some(frame) => frame?,
                    None => {
                        self.chunk(&mut number, left.split().freeze()).await?;
                        continue;
                    }
                },
                None => {
                    self.chunk(&mut number, left.split_to(CHUNK_BYTES_MAX).freeze()).await?;
                    continue;
                }
            };
            match frame.map(Frame::into_data) {
                Some(Ok(data)) => left.extend_from_slice(&data),
                Some(Err(frame)) => {
                    trailers = frame.into_trailers().map(|trailers| headers_out(&trailers)).unwrap_or_default();
                }
                None => break,
            }
        }
        while !left.is_empty() {
            let bytes = left.split_to(CHUNK_BYTES_MAX.min(left.len())).freeze();
            self.chunk(&mut number, bytes).await?;
        }
        self.say(Word::End(number, trailers)).await.map_err(|why| unreached(self.peer, &why))
    }

    async fn chunk(&self, number: &mut u32, bytes: Bytes) -> Result<(), String> {
        tokio::select! {
            biased;
            credit = self.end.credits.acquire() => credit.expect("credits are never closed").forget(),
            // A slow reader is not ours to judge, one that is gone is.
            why = self.lines.gone(self.peer, self.exchange) => return Err(why),
        }
        self.say(Word::Chunk(*number, bytes)).await.map_err(|why| unreached(self.peer, &why))?;
        *number += 1;
        Ok(())
    }

    async fn say(&self, word: Word) -> Result<(), SealedError> {
        let piece = Piece { exchange: self.exchange, to_asker: self.to_asker, word };
        self.lines.send(self.peer, &piece).await
    }
}

async fn next_frame(body: &mut Option<Body>) -> Result<Option<Frame<Bytes>>, String> {
    match body {
        Some(body) => body.frame().await.transpose().map_err(|why| why.to_string()),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;
    use trellis_bus::members::members;
    use trellis_bus::{Bus, Memory};
    use trellis_placement::Patience;
    use trellis_wire::LatticeId;

    use super::*;
    use crate::far::cargo::Load;

    fn node(n: u32) -> NodeId {
        format!("0a0de000-0000-7000-8000-{n:012x}").parse().unwrap()
    }

    /// Both ends of one exchange on one bus, with what brings pieces to each.
    async fn ends() -> (Line, Line) {
        let mut lines = Vec::new();
        for sealed in members(&Bus::Memory(Memory::alone()), LatticeId::new(Uuid::nil()), [node(0), node(1)]) {
            let liveness = Arc::new(Liveness::new(sealed.node(), Patience::default()));
            let all = Lines::new(sealed.clone(), liveness);
            let mut pieces = sealed.listen(&subject::stream(sealed.lattice(), sealed.node())).await.unwrap();
            let taker = all.clone();
            tokio::spawn(sealed.be_greeted().await.unwrap());
            tokio::spawn(async move {
                while let Some(piece) = pieces.next().await {
                    let piece = piece.unwrap();
                    taker.take(piece.from, &piece.body);
                }
            });
            lines.push(all);
        }
        let exchange = Uuid::now_v7();
        (lines[0].open(exchange, true, node(1)).unwrap(), lines[1].open(exchange, false, node(0)).unwrap())
    }

    #[tokio::test]
    async fn a_long_body_arrives_whole_and_waits_for_its_reader() {
        let (asker, mut answerer) = ends().await;
        let sent: Vec<u8> = (0..5_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let load = Load::of(Body::new(Full::new(Bytes::from(sent.clone())))).unwrap();
        let body = answerer.request_body(load.first, false);
        let outflow = asker.outflow();
        let sending = tokio::spawn(outflow.send(load.rest.unwrap()));
        sleep(std::time::Duration::from_millis(50)).await;
        assert!(!sending.is_finished(), "eight chunks are under way, and nobody has taken any");
        let received = body.collect().await.unwrap().to_bytes();
        assert!(received == sent, "{} of {} bytes", received.len(), sent.len());
        assert!(sending.await.unwrap());
    }

    #[tokio::test]
    async fn a_line_that_is_dropped_breaks_the_other_end_off() {
        let (asker, answerer) = ends().await;
        let over = answerer.over();
        drop(asker);
        over.cancelled().await;
        assert_eq!(answerer.why(), "nobody waits for it any more");
    }

    #[tokio::test]
    async fn an_offer_that_was_broken_off_before_it_came_is_not_opened() {
        let [sealed] = members(&Bus::Memory(Memory::alone()), LatticeId::new(Uuid::nil()), [node(0)]);
        let lines = Lines::new(sealed, Arc::new(Liveness::new(node(0), Patience::default())));
        let exchange = Uuid::now_v7();
        let abort = Piece { exchange, to_asker: false, word: Word::Abort(String::new()) };
        lines.take(node(1), &frame::encode(&abort));
        assert!(lines.open(exchange, false, node(1)).is_none());
        assert!(lines.open(exchange, false, node(2)).is_some(), "another node's is another one");
        lines.take(node(1), b"what?");
        assert!(lines.open(Uuid::now_v7(), false, node(1)).is_some());
    }

    #[tokio::test]
    async fn another_member_puts_nothing_into_a_line() {
        let (asker, mut answerer) = ends().await;
        let (exchange, to_asker) = (asker.exchange(), false);
        let inject = |word| frame::encode(&Piece { exchange, to_asker, word });
        answerer.lines.take(node(2), &inject(Word::Chunk(0, Bytes::from_static(b"not yours"))));
        answerer.lines.take(node(2), &inject(Word::Abort("not yours".into())));
        asker.say(Word::Chunk(0, Bytes::from_static(b"mine"))).await.unwrap();
        assert!(matches!(answerer.next().await, Some(Word::Chunk(0, bytes)) if bytes == "mine"));
    }

    #[tokio::test]
    async fn more_than_there_is_credit_for_breaks_off() {
        let (asker, answerer) = ends().await;
        for number in 0..20 {
            asker.say(Word::Chunk(number, Bytes::from_static(b"x"))).await.unwrap();
        }
        answerer.over().cancelled().await;
        assert!(answerer.why().contains("credit"));
    }
}
