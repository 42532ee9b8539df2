//! Leases: the right to do what must run once in the lattice, such as a timer or the pulling of an ordered queue.
//!
//! A node has a lease for as long as the leader renews it, and a few seconds at most after it last did. A source whose
//! [`Permits`](crate::Permits) have a lease works only while it is held: most simply in [`Lease::while_held`].

use std::fmt;

use tokio::sync::watch;

/// Names one grant of a lease. A later grant, wherever it is, has a higher one: whoever keeps the highest that it saw
/// (a database, a broker) can refuse a holder that does not know yet that it is none any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A link's lease, as a source sees it: now and then this node has it. Clones see the same.
#[derive(Debug, Clone)]
pub struct Lease(watch::Receiver<Option<Token>>);

/// The node's side of a [`Lease`]: says who has it. When it is dropped, the lease is over for good.
#[derive(Debug)]
pub struct LeaseHolder(watch::Sender<Option<Token>>);

impl LeaseHolder {
    /// A lease that is not held yet.
    pub fn new() -> (Self, Lease) {
        let (holder, lease) = watch::channel(None);
        (Self(holder), Lease(lease))
    }

    /// Another view of the lease.
    pub fn lease(&self) -> Lease {
        Lease(self.0.subscribe())
    }

    /// The lease is held under this token from now on; `None`: it is not. Who waits for that is woken.
    pub fn set(&self, token: Option<Token>) {
        self.0.send_if_modified(|now| std::mem::replace(now, token) != token);
    }
}

impl Lease {
    /// The token, if this node has the lease now.
    pub fn token(&self) -> Option<Token> {
        if self.0.has_changed().is_err() { None } else { *self.0.borrow() }
    }

    /// Waits until this node has the lease. Where it never will again, this waits for ever: drop it with the link.
    pub async fn held(&mut self) -> Token {
        let held = self.0.wait_for(Option::is_some).await.ok().and_then(|token| *token);
        // What the holder said last counts no more once it is gone.
        match held.filter(|_| self.0.has_changed().is_ok()) {
            Some(token) => token,
            None => std::future::pending().await,
        }
    }

    /// Waits until the grant of this token is over.
    pub async fn lost(&mut self, token: Token) {
        // An error means that nobody holds it for this node any more: lost, too.
        drop(self.0.wait_for(|now| *now != Some(token)).await);
    }

    /// Waits for the lease, then does `work` with its token until `work` is done (`Some`) or the lease is lost (`None`).
    /// Then `work` is dropped where it is: sandboxes that it waits for are aborted.
    pub async fn while_held<T>(&mut self, work: impl AsyncFnOnce(Token) -> T) -> Option<T> {
        let token = self.held().await;
        tokio::select! {
            biased;
            () = self.lost(token) => None,
            done = work(token) => Some(done),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn work_is_dropped_when_the_lease_is_lost_and_begins_anew_with_the_next() {
        let (holder, mut lease) = LeaseHolder::new();
        assert_eq!(lease.token(), None);
        holder.set(Some(Token(3)));
        assert_eq!(lease.while_held(async |token| token).await, Some(Token(3)));
        let (started, waits) = tokio::sync::oneshot::channel();
        let work = lease.while_held(async |_| {
            started.send(()).unwrap();
            std::future::pending::<()>().await;
        });
        let loses = async {
            waits.await.unwrap();
            // Another grant is another one, even where the lease was never seen free in between.
            holder.set(Some(Token(4)));
        };
        assert_eq!(tokio::join!(work, loses).0, None);
        assert_eq!(lease.token(), Some(Token(4)));
    }

    #[tokio::test]
    async fn a_lease_ends_with_its_holder() {
        let (holder, mut lease) = LeaseHolder::new();
        holder.set(Some(Token(1)));
        let other = holder.lease();
        drop(holder);
        assert_eq!((lease.token(), other.token()), (None, None));
        lease.lost(Token(1)).await;
        assert_eq!(lease.held().now_or_never(), None);
    }
}
