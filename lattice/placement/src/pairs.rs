//! Two maps side by side.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A key with what it has in the one map and in the other; at least one of them has it.
type Pair<'a, K, V> = (&'a K, Option<&'a V>, Option<&'a V>);

/// Every key of either map, in order, with what it has in each.
pub(crate) fn pairs<'a, K: Ord, V>(
    one: &'a BTreeMap<K, V>,
    other: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = Pair<'a, K, V>> {
    let (mut ones, mut others) = (one.iter().peekable(), other.iter().peekable());
    std::iter::from_fn(move || {
        let order = match (ones.peek(), others.peek()) {
            (Some((one, _)), Some((other, _))) => one.cmp(other),
            (Some(_), None) => Ordering::Less,
            (None, _) => Ordering::Greater,
        };
        let one = if order.is_le() { ones.next() } else { None };
        let other = if order.is_ge() { others.next() } else { None };
        let (key, _) = one.or(other)?;
        Some((key, one.map(|(_, value)| value), other.map(|(_, value)| value)))
    })
}

/// Whether both are there, and one and the same in memory.
pub(crate) fn is_same<T>(one: Option<&Arc<T>>, other: Option<&Arc<T>>) -> bool {
    matches!((one, other), (Some(one), Some(other)) if Arc::ptr_eq(one, other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_either_comes_once_and_in_order() {
        let (one, other) = (BTreeMap::from([(1, 'a'), (3, 'b')]), BTreeMap::from([(2, 'c'), (3, 'd'), (4, 'e')]));
        let found: Vec<_> = pairs(&one, &other).map(|(key, one, other)| (*key, one.copied(), other.copied())).collect();
        assert_eq!(
            found,
            [(1, Some('a'), None), (2, None, Some('c')), (3, Some('b'), Some('d')), (4, None, Some('e'))]
        );
    }
}
