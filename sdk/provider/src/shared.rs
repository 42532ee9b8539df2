//! What several share as long as one of them has it, such as a connection of links, or whose turn it is.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Values by key. One that nobody has any more is gone.
pub struct Shared<K, V>(Mutex<HashMap<K, Weak<V>>>);

impl<K: Eq + Hash + Clone, V> Shared<K, V> {
    /// The value of this key, made if nobody has one.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn get<E>(&self, key: &K, make: impl FnOnce() -> Result<Arc<V>, E>) -> Result<Arc<V>, E> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = open.get(key).and_then(Weak::upgrade) {
            return Ok(value);
        }
        open.retain(|_, value| value.strong_count() > 0);
        let value = make()?;
        open.insert(key.clone(), Arc::downgrade(&value));
        Ok(value)
    }
}

impl<K, V> Default for Shared<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K, V> fmt::Debug for Shared<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Shared({})", self.0.lock().unwrap_or_else(PoisonError::into_inner).len())
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    #[test]
    fn a_value_is_made_once_for_those_who_have_it() {
        let shared = Shared::<u8, String>::default();
        let make = |text: &str| Ok::<_, Infallible>(Arc::new(text.to_owned()));
        let one = shared.get(&1, || make("one")).unwrap();
        assert_eq!(*shared.get(&1, || make("another")).unwrap(), "one");
        drop(one);
        assert_eq!(*shared.get(&1, || make("anew")).unwrap(), "anew");
    }
}
