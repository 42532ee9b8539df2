//! Where a link's messages come from. Each broker has a word of its own for it, and each takes `queue`, so that a manifest moves
//! between brokers.

use trellis_wire::Config;

use crate::LinkError;

/// The words that brokers have.
const WORDS: [&str; 3] = ["queue", "stream", "topic"];

/// The key by which a link names where its messages come from, a broker's `own` or `queue`, and what stands there; `None` where
/// it names nothing.
///
/// # Errors
/// Both are there.
pub fn queue<'a>(config: &'a Config, own: &'static str) -> Result<Option<(&'static str, &'a str)>, LinkError> {
    let named = |key: &'static str| Some((key, config.get(key)?));
    match (named(own), named("queue").filter(|_| own != "queue")) {
        (Some(_), Some(_)) => Err(LinkError::config(
            "queue",
            format!("stands beside `{own}`, which means the same here; keep one of the two"),
        )),
        (one, other) => Ok(one.or(other)),
    }
}

/// The same where a link must name one.
///
/// # Errors
/// Both are there, or neither; of a word of another broker it is said what to write instead.
pub fn need_queue<'a>(config: &'a Config, own: &'static str) -> Result<(&'static str, &'a str), LinkError> {
    let missing = || match foreign_word(config, own) {
        Some(why) => why,
        None => LinkError::config(own, "is missing: what wakes the component"),
    };
    queue(config, own)?.ok_or_else(missing)
}

/// What is wrong where a link names only in the word of another broker what its messages come from.
pub fn foreign_word(config: &Config, own: &'static str) -> Option<LinkError> {
    let word = WORDS.into_iter().find(|word| config.get(word).is_some())?;
    let meant = if own == "queue" { "`queue`".to_owned() } else { format!("`{own}`, or `queue` on any broker") };
    Some(LinkError::config(word, format!("is a word of another broker; write {meant}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needed(pairs: &[(&str, &str)], own: &'static str) -> Result<(&'static str, String), String> {
        let config = Config::from_iter(pairs.iter().copied());
        need_queue(&config, own).map(|(key, name)| (key, name.to_owned())).map_err(|why| why.to_string())
    }

    #[test]
    fn a_queue_is_named_by_the_brokers_word_or_by_queue() {
        assert_eq!(needed(&[("stream", "a"), ("topic", "b")], "stream"), Ok(("stream", "a".into())));
        assert_eq!(needed(&[("queue", "a")], "topic"), Ok(("queue", "a".into())));
        assert_eq!(needed(&[("queue", "a"), ("stream", "b")], "queue"), Ok(("queue", "a".into())));
        let why = needed(&[("queue", "a"), ("stream", "b")], "stream").unwrap_err();
        assert_eq!(why, "config `queue`: stands beside `stream`, which means the same here; keep one of the two");
        let why = needed(&[("stream", "a")], "queue").unwrap_err();
        assert_eq!(why, "config `stream`: is a word of another broker; write `queue`");
        let why = needed(&[("topic", "a")], "stream").unwrap_err();
        assert_eq!(why, "config `topic`: is a word of another broker; write `stream`, or `queue` on any broker");
        assert_eq!(
            needed(&[("queue", "")], "topic").unwrap_err(),
            "config `topic`: is missing: what wakes the component"
        );
    }
}
