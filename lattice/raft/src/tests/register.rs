//! The app register is linearizable: what clients of a simulated lattice saw of one app's version, while things went
//! wrong, is explained by one order of all they did. Checked by stateright's tester on real histories.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use stateright::semantics::register::{Register, RegisterOp, RegisterRet};
use stateright::semantics::{ConsistencyTester as _, LinearizabilityTester};
use tokio::time::sleep;
use trellis_manifest::App;
use trellis_placement::{Command, Entry, Release, State};
use trellis_wire::{AppName, CommandId, Digest};
use uuid::Uuid;

use super::simulated::{Simulated, replayed, simulate};
use crate::Raft;

/// How many seeds are run unless the environment says otherwise.
const SEEDS: u64 = 16;
/// How many clients there are, and what each does: the tester tries orders, of which there are many.
const CLIENTS: u64 = 4;
const OPERATIONS: u64 = 9;
/// How many times something goes wrong.
const ROUNDS: usize = 10;

/// The version of the app that runs or is on its way; none while it is undeployed.
type Version = Option<u64>;

/// What clients did and saw, and when.
struct History {
    tester: Mutex<LinearizabilityTester<u64, Register<Version>>>,
    clients: AtomicU64,
    /// How many operations were not answered.
    unanswered: AtomicU64,
    answered: AtomicU64,
}

impl History {
    fn new() -> Arc<Self> {
        let tester = Mutex::new(LinearizabilityTester::new(Register(None)));
        Arc::new(Self {
            tester,
            clients: AtomicU64::new(0),
            unanswered: AtomicU64::new(0),
            answered: AtomicU64::new(0),
        })
    }

    /// Somebody who does one thing after the other.
    fn client(self: &Arc<Self>) -> Client {
        Client { history: self.clone(), id: self.clients.fetch_add(1, Ordering::Relaxed) }
    }

    fn is_linearizable(&self) -> bool {
        self.tester.lock().unwrap().is_consistent()
    }
}

struct Client {
    history: Arc<History>,
    id: u64,
}

impl Client {
    fn invoke(&self, operation: RegisterOp<Version>) {
        self.history.tester.lock().unwrap().on_invoke(self.id, operation).unwrap();
    }

    fn done(&self, returned: RegisterRet<Version>) {
        self.history.answered.fetch_add(1, Ordering::Relaxed);
        self.history.tester.lock().unwrap().on_return(self.id, returned).unwrap();
    }

    /// Without an answer an operation may take effect at any time from now on. Whoever waited for it goes on as another.
    fn gives_up(&mut self) {
        self.history.unanswered.fetch_add(1, Ordering::Relaxed);
        self.id = self.history.clients.fetch_add(1, Ordering::Relaxed);
    }

    /// Deploys a version, or undeploys. Asked again until it is answered, or three times.
    async fn write(&mut self, lattice: &Simulated, dice: &mut StdRng, version: Version) {
        let entry = entry(version, dice.random());
        self.invoke(RegisterOp::Write(version));
        for _ in 0..3 {
            if let Some(raft) = lattice.any(dice)
                && raft.propose(entry.clone()).await.is_ok()
            {
                return self.done(RegisterRet::WriteOk);
            }
            sleep(Duration::from_millis(dice.random_range(10..500))).await;
        }
        self.gives_up();
    }

    /// Asks for the status, with a barrier or without.
    async fn read(&mut self, raft: &Raft, barrier: bool) {
        self.invoke(RegisterOp::Read);
        if barrier && raft.read_barrier().await.is_err() {
            return self.gives_up();
        }
        let version = version(&raft.state().borrow());
        self.done(RegisterRet::ReadOk(version));
    }
}

fn app() -> AppName {
    "shop".parse().unwrap()
}

fn entry(version: Version, id: u128) -> Entry {
    let command = match version {
        None => Command::Undeploy(app()),
        Some(version) => {
            let manifest = Digest::new([0; 32]);
            let (app, artifacts) = (App::new(app()), Default::default());
            Command::Deploy(Box::new(Release {
                app,
                version: version.to_string(),
                artifacts,
                manifest,
                replace: false,
            }))
        }
    };
    Entry { id: CommandId::new(Uuid::from_u128(id)), at_ms: 0, command }
}

fn version(state: &State) -> Version {
    let versions = state.app(&app())?;
    versions.newer().or(versions.deployed()).map(|release| release.version.parse().unwrap())
}

async fn client(lattice: Arc<Simulated>, history: Arc<History>, mut dice: StdRng, barrier: bool) {
    let mut client = history.client();
    for _ in 0..OPERATIONS {
        match dice.random_range(0..10) {
            0..5 => {
                if let Some(raft) = lattice.any(&mut dice) {
                    client.read(&raft, barrier).await;
                }
            }
            5..9 => {
                // No two writes are alike, so that a read says which it saw.
                let version = Some(dice.random());
                client.write(&lattice, &mut dice, version).await;
            }
            _ => client.write(&lattice, &mut dice, None).await,
        }
        sleep(Duration::from_millis(dice.random_range(1..3_000))).await;
    }
}

/// What clients of a stormy lattice saw.
async fn history(seed: u64, barrier: bool) -> Arc<History> {
    let lattice = Simulated::of(3).await;
    let history = History::new();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|n| {
            let dice = StdRng::seed_from_u64(seed ^ (n + 1) << 32);
            tokio::spawn(client(lattice.clone(), history.clone(), dice, barrier))
        })
        .collect();
    lattice.storm(seed, ROUNDS).await;
    for client in clients {
        client.await.unwrap();
    }
    lattice.seen();
    lattice.shutdown().await;
    history
}

#[test]
fn simulate_what_clients_see_of_an_app_is_linearizable() {
    simulate(SEEDS, async |seed| {
        let history = history(seed, true).await;
        let [answered, unanswered] =
            [&history.answered, &history.unanswered].map(|count| count.load(Ordering::Relaxed));
        println!("seed {seed}: {answered} operations answered, {unanswered} not");
        assert!(history.is_linearizable(), "{:#?}", history.tester.lock().unwrap());
    });
}

/// The checker sees what it is there for: a read past the barrier shows what was.
#[test]
fn simulate_a_stale_read_is_rejected() {
    simulate(1, async |seed| {
        let lattice = Simulated::of(3).await;
        let dice = &mut StdRng::seed_from_u64(seed);
        for (barrier, is_linearizable) in [(true, true), (false, false)] {
            let history = History::new();
            let (mut one, mut other) = (history.client(), history.client());
            one.write(&lattice, dice, Some(1)).await;
            lattice.states().await;
            let cut_off = (0..3).find(|at| !lattice.raft(*at).unwrap().leadership().borrow().me).unwrap();
            lattice.alone(cut_off);
            let others = (0..3).find(|at| *at != cut_off).unwrap();
            one.invoke(RegisterOp::Write(Some(2)));
            lattice.raft(others).unwrap().propose(entry(Some(2), dice.random())).await.unwrap();
            one.done(RegisterRet::WriteOk);
            other.read(&lattice.raft(cut_off).unwrap(), barrier).await;
            lattice.heal();
            assert_eq!(history.is_linearizable(), is_linearizable, "with a barrier: {barrier}");
            let removed = entry(None, dice.random());
            lattice.raft(others).unwrap().propose(removed).await.unwrap();
            lattice.states().await;
        }
        lattice.shutdown().await;
    });
}

/// Nor does it need a case that was made for it.
#[test]
fn simulate_stale_reads_in_a_storm_are_rejected() {
    let rejected = AtomicU64::new(0);
    simulate(SEEDS, async |seed| {
        if !history(seed, false).await.is_linearizable() {
            rejected.fetch_add(1, Ordering::Relaxed);
        }
    });
    let rejected = rejected.into_inner();
    println!("{rejected} histories of stale reads are rejected");
    assert!(rejected > 0 || replayed().is_some());
}
