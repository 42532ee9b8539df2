//! Data directories that were put back from older copies: what was acknowledged is gone there, and others count on it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use openraft::error::RPCError;
use openraft::network::{RPCOption, RaftNetwork as _, RaftNetworkFactory as _};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse};
use openraft::{CommittedLeaderId, EntryPayload, Vote};
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};
use trellis_bus::members::Known;
use trellis_bus::{Bus, Sealed, Wire};
use trellis_placement::Applied;
use trellis_wire::frame;
use trellis_wire::subject::{self, RaftRpc};

use super::lattice::{Lattice, all_marked, leader_of};
use super::{PATIENCE, has_mark, lattice_id, lattice_name, mark, sealed, watched};
use crate::held::Held;
use crate::message::{Answer, Ask};
use crate::network::Network;
use crate::types::{LogEntry, LogId, Member};
use crate::{RaftError, open};

/// A copy of a node's file, to be put back later.
struct Copy {
    from: PathBuf,
    kept: TempDir,
}

impl Copy {
    fn of(lattice: &Lattice, n: usize) -> Self {
        let (from, kept) = (lattice.dirs[n - 1].path().join("raft.redb"), TempDir::new().unwrap());
        std::fs::copy(&from, kept.path().join("raft.redb")).unwrap();
        Self { from, kept }
    }

    fn put_back(self) {
        std::fs::copy(self.kept.path().join("raft.redb"), &self.from).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_that_was_put_back_is_told_and_stops_and_the_others_go_on() {
    let lattice = Lattice::new(3);
    let mut rafts = lattice.voters().await;
    let at = (leader_of(&rafts.iter().collect::<Vec<_>>()).await + 1) % 3;
    let gone = rafts.remove(at);
    gone.shutdown().await;
    let copy = Copy::of(&lattice, at + 1);
    let gone = open(lattice.options(at + 1)).await.unwrap();
    for n in 0..9 {
        assert_eq!(gone.propose(mark(n)).await, Ok(Applied::Done));
    }
    all_marked(&[&gone], 8).await;
    // Whoever leads hears of it with the next append.
    all_marked(&rafts.iter().collect::<Vec<_>>(), 8).await;
    gone.shutdown().await;
    copy.put_back();

    let back = open(lattice.options(at + 1)).await.unwrap();
    let why = watched(back.failed(), "it is told", Option::is_some).await.unwrap();
    assert!(matches!(&why, RaftError::WentBack { known, holds, .. } if known > holds), "{why}");
    assert!(why.is_parted() && why.to_string().contains("start with an empty --data-dir"), "{why}");
    for (n, raft) in (10..).zip(&rafts) {
        assert_eq!(raft.propose(mark(n)).await, Ok(Applied::Done));
        assert_eq!(*raft.failed().borrow(), None);
    }
    for raft in rafts.iter().chain([&back]) {
        raft.shutdown().await;
    }
}

/// Nobody who knows what was agreed on is there when those meet who do not. Whoever knows it must not go along unnoticed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_knows_what_the_lattice_has_lost_says_so_and_stops() {
    let lattice = Lattice::new(3);
    let mut rafts = lattice.voters().await;
    let leader = leader_of(&rafts.iter().collect::<Vec<_>>()).await;
    let (follower, third) = ((leader + 1) % 3, (leader + 2) % 3);
    rafts[follower].shutdown().await;
    let copy = Copy::of(&lattice, follower + 1);
    rafts[follower] = open(lattice.options(follower + 1)).await.unwrap();
    let name = (third + 1).to_string();
    lattice.wire.partition(&[&[name.as_str()]]);
    assert_eq!(rafts[follower].propose(mark(1)).await, Ok(Applied::Done));
    all_marked(&[&rafts[leader]], 1).await;
    rafts[follower].shutdown().await;
    rafts[leader].shutdown().await;
    copy.put_back();
    lattice.wire.heal();

    rafts[follower] = open(lattice.options(follower + 1)).await.unwrap();
    let others = [&rafts[follower], &rafts[third]];
    leader_of(&others).await;
    assert_eq!(others[1].propose(mark(2)).await, Ok(Applied::Done));
    assert!(!has_mark(&others[1].state().borrow(), 1), "it is lost");

    let knows = open(lattice.options(leader + 1)).await.unwrap();
    let why = watched(knows.failed(), "it says so", Option::is_some).await.unwrap();
    assert!(matches!(why, RaftError::Contradicted { .. }), "{why}");
    assert!(has_mark(&knows.state().borrow(), 1));
    assert_eq!(others[0].propose(mark(3)).await, Ok(Applied::Done));
    for raft in others.into_iter().chain([&knows]) {
        raft.shutdown().await;
    }
}

/// A member that gives these answers to appends, and then passes on what else it is told.
async fn answering(sealed: Sealed, answers: Vec<AppendEntriesResponse<u128>>) -> mpsc::Receiver<Ask> {
    tokio::spawn(sealed.be_greeted().await.unwrap());
    let subject = |rpc| subject::raft(&lattice_name(), sealed.node(), rpc);
    let mut appends = sealed.listen(&subject(RaftRpc::Append)).await.unwrap();
    let mut rest = sealed.listen(&subject(RaftRpc::Forward)).await.unwrap();
    let (told, hears) = mpsc::channel(8);
    tokio::spawn(async move {
        for answer in answers {
            let asked = appends.next().await.unwrap().unwrap();
            sealed.answer(asked.reply.unwrap(), &frame::encode(&Answer::Append(answer))).await.unwrap();
        }
        while let Some(Ok(asked)) = rest.next().await {
            sealed.answer(asked.reply.unwrap(), &frame::encode(&Answer::Held(None))).await.unwrap();
            told.send(frame::decode(&asked.body).unwrap()).await.unwrap();
        }
    });
    hears
}

#[tokio::test]
async fn an_answer_that_goes_back_is_none_to_openraft() {
    use AppendEntriesResponse::{Conflict, PartialSuccess, Success};
    let wire = Wire::default();
    let [ours, theirs] = [1, 2].map(|n| {
        let sealed = sealed(n, Bus::Memory(wire.end(&n.to_string())));
        sealed.seal().read(Arc::new(Known::new(lattice_id(7), [])));
        sealed
    });
    let mut hears = answering(theirs, vec![Success, Conflict, PartialSuccess(at(7)), Conflict, Conflict]).await;
    let state = watch::channel(Arc::default()).1;
    let mut network = Network {
        sealed: ours,
        expected: Some(lattice_id(7)),
        held: Held::new(state.clone()),
        state,
        pause: Duration::ZERO,
        silences: Default::default(),
    };
    let mut peer = network.new_client(2, &Member::default()).await;
    let vote = Vote::new_committed(3, 1);
    let mut append = async |prev: Option<LogId>, upto: u64| {
        let next = prev.map_or(0, |prev| prev.index + 1);
        let entry = |index| LogEntry { log_id: at(index).unwrap(), payload: EntryPayload::Blank };
        let entries = (next..=upto).map(entry).collect();
        let request = AppendEntriesRequest { vote, prev_log_id: prev, entries, leader_commit: None };
        peer.append_entries(request, RPCOption::new(PATIENCE)).await
    };
    assert_eq!(append(None, 5).await.unwrap(), Success);
    assert_eq!(append(at(6), 6).await.unwrap(), Conflict, "it never had that one");
    assert_eq!(append(at(5), 9).await.unwrap(), PartialSuccess(at(7)));
    assert_eq!(append(at(8), 8).await.unwrap(), Conflict, "nor that one");
    let why = append(at(7), 7).await.unwrap_err();
    assert!(matches!(&why, RPCError::Unreachable(why) if why.to_string().contains("went back")), "{why}");
    let told = hears.recv().await.unwrap();
    assert!(matches!(told, Ask::WentBack(by, known) if by == vote && Some(known) == at(7)), "{told:?}");
    assert_eq!(network.held.known(2, vote, at(6)), Some(6));
}

fn at(index: u64) -> Option<LogId> {
    Some(LogId::new(CommittedLeaderId::new(3, 1), index))
}
