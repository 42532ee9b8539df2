//! Leases on this node: it grants them while it leads, and holds those that it is named for. Who may have which, and
//! until when, is decided by `placement::Lessor` and `placement::Lessee`; here is only when, and how it is carried out.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use trellis_placement::{LeaseMoves, LeasedLinks, Lessee, Lessor, Renewal, State};
use trellis_provider::{Lease, LeaseHolder, Permit, Token};
use trellis_raft::{Leadership, Raft};
use trellis_wire::{Error, LinkId, NodeId};

use crate::abortable::Abortable;

/// The leases of this node, and those that it grants.
pub(crate) struct Leases {
    origin: Instant,
    raft: Raft,
    sheet: Mutex<Sheet>,
    /// Something was renewed, or a link wants to know.
    changed: Notify,
}

struct Sheet {
    lessor: Lessor,
    lessee: Lessee,
    /// The links that run here and need a lease.
    holders: BTreeMap<LinkId, LeaseHolder>,
    /// Whether this node is renewed at all, for what may run only while it is; asked for once something may.
    own: Option<LeaseHolder>,
    /// What the leader is to grant, by the state that it was worked out for.
    wanted: (Arc<State>, LeasedLinks),
}

impl Leases {
    pub(crate) fn new(me: NodeId, lease: Duration, raft: Raft) -> Self {
        let sheet = Sheet {
            lessor: Lessor::new(lease),
            lessee: Lessee::new(me, rand::random()),
            holders: BTreeMap::new(),
            own: None,
            wanted: Default::default(),
        };
        Self { origin: Instant::now(), raft, sheet: Mutex::new(sheet), changed: Notify::new() }
    }

    /// The lease of a link, for the source that it starts.
    pub(crate) fn of(&self, link: &LinkId) -> Lease {
        let mut sheet = self.lock();
        let lease = sheet.holders.entry(link.clone()).or_insert_with(|| LeaseHolder::new().0).lease();
        self.changed.notify_one();
        lease
    }

    /// The node's own lease: held while the leader renews this node, whatever it is named for.
    pub(crate) fn of_node(&self) -> Lease {
        let lease = self.lock().own.get_or_insert_with(|| LeaseHolder::new().0).lease();
        self.changed.notify_one();
        lease
    }

    /// A link ends here.
    pub(crate) fn end(&self, link: &LinkId) {
        self.lock().holders.remove(link);
    }

    /// Whether this node has a link's lease now.
    pub(crate) fn has(&self, link: &LinkId) -> bool {
        let state = self.state();
        self.lock().lessee.holds(&state, self.now()).contains_key(link)
    }

    /// The number of a sign of life that is sent now, if this node needs a lease.
    pub(crate) fn sign(&self) -> Option<u64> {
        let (state, now) = (self.state(), self.now());
        let mut sheet = self.lock();
        (sheet.own.is_some() || sheet.lessee.is_named(&state)).then(|| sheet.lessee.send(now))
    }

    /// The leader's answer to a sign of life, if this node is the leader.
    pub(crate) fn answer(&self, node: NodeId) -> Option<Renewal> {
        // In this order: what is read second is never older.
        let acknowledged = self.raft.acknowledged().map(|at| at.saturating_duration_since(self.origin));
        let leads = self.raft.leadership().borrow().clone();
        let mut sheet = self.lock();
        if !leads.me || sheet.lessor.term() != Some(leads.term) {
            return None;
        }
        let (state, now) = (self.state(), self.now());
        sheet.lessor.renew(&state, node, acknowledged, now)
    }

    /// The leader answered the sign of life with this number.
    pub(crate) fn renewed(&self, number: u64, renewal: Renewal) {
        let state = self.state();
        self.lock().lessee.renewed(&state, number, renewal);
        self.changed.notify_one();
    }

    /// Keeps each link told whether this node has its lease. Runs for as long as the node does.
    pub(crate) async fn keep(&self) {
        let mut states = self.raft.state();
        loop {
            let state = states.borrow_and_update().clone();
            let left = self.tell(&state);
            tokio::select! {
                Ok(()) = states.changed() => {}
                () = self.changed.notified() => {}
                () = tokio::time::sleep(left.unwrap_or_default()), if left.is_some() => {}
                else => std::future::pending().await,
            }
        }
    }

    /// How long what was told holds, if nothing changes; `None`: this node has no lease.
    fn tell(&self, state: &State) -> Option<Duration> {
        let now = self.now();
        let sheet = self.lock();
        let has = sheet.lessee.holds(state, now);
        for (link, holder) in &sheet.holders {
            let token = has.get(link).copied().map(Token);
            if holder.lease().token() != token {
                tracing::info!(%link, ?token, "{}", if token.is_some() { "has the lease" } else { "lost the lease" });
            }
            holder.set(token);
        }
        let left = sheet.lessee.until().checked_sub(now).filter(|left| !left.is_zero());
        if let Some(own) = &sheet.own {
            own.set(left.map(|_| Token(1)));
        }
        left
    }

    /// Begins or ends to grant. Nothing is granted or renewed before this node's state shows all that was committed by
    /// whoever led before.
    pub(crate) async fn lead(&self, leads: &Leadership) {
        if !leads.me {
            self.lock().lessor.step_down();
        } else if self.lock().lessor.term() != Some(leads.term) {
            self.lock().lessor.step_down();
            let caught_up = self.raft.read_barrier().await;
            match caught_up {
                Ok(()) if *self.raft.leadership().borrow() == *leads => {
                    self.lock().lessor.lead(leads.term, self.now());
                }
                Ok(()) => {}
                Err(why) => tracing::debug!(%why, "leases wait"),
            }
        }
    }

    /// What is to change hands, if this node leads.
    pub(crate) fn decide(&self, state: &Arc<State>, is_alive: impl Fn(NodeId) -> bool) -> Option<LeaseMoves> {
        let mut sheet = self.lock();
        sheet.lessor.term()?;
        if !Arc::ptr_eq(&sheet.wanted.0, state) {
            let (before, wanted) = &sheet.wanted;
            sheet.wanted = (state.clone(), state.leased_since(before, wanted));
        }
        let Sheet { lessor, wanted: (_, wanted), .. } = &mut *sheet;
        lessor.decide(state, &wanted.links, is_alive, self.now())
    }

    fn state(&self) -> Arc<State> {
        self.raft.state().borrow().clone()
    }

    fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    fn lock(&self) -> MutexGuard<'_, Sheet> {
        self.sheet.lock().expect("no code panics while it holds this lock")
    }
}

/// A permit that is worth something only while its link's lease is held: what runs is aborted when that is lost.
pub(crate) fn leased(permit: Permit, mut lease: Lease, token: Token) -> Permit {
    Abortable::permit(permit, async move {
        lease.lost(token).await;
        Error::Busy("the lease was lost: another node has it, or this one is cut off".into())
    })
}
