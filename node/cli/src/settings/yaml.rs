//! Shapes that a config file may choose between where a flag has only text: a list beside `a,b`, a map beside
//! `key=value`. Visitors keep the line of what is wrong, which an untagged enum would lose.

use std::fmt;

use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};

use crate::quantity::Pair;

/// `a,b` or `[a, b]`.
pub(super) fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    deserializer.deserialize_any(Texts).map(Some)
}

/// `{key: value}`, `[key=value]` or `key=value,key=value`.
pub(super) fn pairs<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<Pair>>, D::Error> {
    deserializer.deserialize_any(Pairs).map(Some)
}

struct Texts;

impl<'de> Visitor<'de> for Texts {
    type Value = Vec<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text or a list of texts")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(text.split(',').map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let mut texts = Vec::new();
        while let Some(text) = items.next_element()? {
            texts.push(text);
        }
        Ok(texts)
    }
}

struct Pairs;

impl<'de> Visitor<'de> for Pairs {
    type Value = Vec<Pair>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map, or a list of key=value")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        text.split(',').map(|pair| pair.parse().map_err(E::custom)).collect()
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let mut pairs = Vec::new();
        while let Some(text) = items.next_element::<String>()? {
            pairs.push(text.parse().map_err(A::Error::custom)?);
        }
        Ok(pairs)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let mut pairs = Vec::new();
        while let Some((key, value)) = entries.next_entry()? {
            pairs.push(Pair { key, value });
        }
        Ok(pairs)
    }
}
