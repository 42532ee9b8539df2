//! A map that every event reads and every deploy changes. A read takes no lock: it is of a copy that nobody changes any
//! more. A change copies one shard, so that a node which holds thousands of components does not copy all of them for each.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hash, RandomState};

use arc_swap::ArcSwap;

/// How many parts the map has. Of ten thousand entries, one has about 150.
const SHARDS: usize = 64;

/// The map. Values are cloned on their way out: they are meant to be `Arc`s.
pub(crate) struct Shards<K, V> {
    shards: [ArcSwap<HashMap<K, V>>; SHARDS],
    hasher: RandomState,
}

impl<K, V> Default for Shards<K, V> {
    fn default() -> Self {
        Self { shards: std::array::from_fn(|_| ArcSwap::default()), hasher: RandomState::new() }
    }
}

impl<K: Eq + Hash + Clone, V: Clone> Shards<K, V> {
    /// What `key` stands for.
    pub(crate) fn get(&self, key: &K) -> Option<V> {
        self.shard(key).load().get(key).cloned()
    }

    /// Makes of the value of a key another one, or none. Called again where someone else changed the shard meanwhile.
    pub(crate) fn change(&self, key: &K, mut change: impl FnMut(Option<V>) -> Option<V>) {
        self.shard(key).rcu(|shard| {
            let mut shard = HashMap::clone(shard);
            if let Some(value) = change(shard.remove(key)) {
                shard.insert(key.clone(), value);
            }
            shard
        });
    }

    /// Every value. Shards are read one after another: this is no picture of one moment.
    pub(crate) fn values(&self) -> impl Iterator<Item = V> {
        self.shards.iter().flat_map(|shard| shard.load().values().cloned().collect::<Vec<_>>())
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.load().len()).sum()
    }

    fn shard(&self, key: &K) -> &ArcSwap<HashMap<K, V>> {
        &self.shards[self.hasher.hash_one(key) as usize % SHARDS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_is_found_until_it_is_taken() {
        let map = Shards::default();
        (0..1_000).for_each(|n| map.change(&n, |_| Some(n * 2)));
        assert_eq!((map.len(), map.get(&7), map.get(&1_000)), (1_000, Some(14), None));
        map.change(&7, |before| before.map(|n| n + 1));
        map.change(&8, |_| None);
        assert_eq!((map.get(&7), map.get(&8), map.values().count()), (Some(15), None, 999));
    }
}
