//! Secrets: texts that a node reads where it runs. They are never encoded, so none can get into the log, the state, a
//! message or an API; and `Debug` hides them, so none gets into a line of a log.

use std::collections::BTreeMap;
use std::fmt;

/// A text that nobody but its user is to see.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret(String);

impl Secret {
    /// Takes a secret, without the line break that files end with.
    pub fn new(text: &str) -> Self {
        Self(text.trim_end_matches(['\r', '\n']).into())
    }

    /// The secret itself, for the one that is to check it. What is made of it must not be logged either.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Secrets by the names that a manifest gives them.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Secrets(BTreeMap<String, Secret>);

impl Secrets {
    /// The secret of that name. An empty one counts as absent, as a config value does.
    pub fn get(&self, name: &str) -> Option<&Secret> {
        self.0.get(name).filter(|secret| !secret.0.is_empty())
    }

    /// Sets a secret, replacing one of the same name.
    pub fn set(&mut self, name: impl Into<String>, secret: Secret) {
        self.0.insert(name.into(), secret);
    }
}

impl<N: Into<String>> FromIterator<(N, Secret)> for Secrets {
    fn from_iter<I: IntoIterator<Item = (N, Secret)>>(pairs: I) -> Self {
        Self(pairs.into_iter().map(|(name, secret)| (name.into(), secret)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_names_and_no_values() {
        let secrets = Secrets::from_iter([("password", Secret::new("hunter2\n"))]);
        assert_eq!(secrets.get("password").unwrap().expose(), "hunter2");
        assert_eq!(format!("{secrets:?}"), r#"Secrets({"password": Secret})"#);
    }

    #[test]
    fn an_empty_secret_is_none_and_inner_blanks_stay() {
        let secrets = Secrets::from_iter([("empty", Secret::new("\r\n")), ("padded", Secret::new(" a b \n"))]);
        assert_eq!(secrets.get("empty"), None);
        assert_eq!(secrets.get("padded").unwrap().expose(), " a b ");
    }
}
