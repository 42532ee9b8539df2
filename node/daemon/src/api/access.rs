//! Who may do what with the admin API: tokens with roles. One role includes those before it.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;
use sha2::{Digest as _, Sha256};

/// What a token lets its holder do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Look: status, logs, metrics.
    Read,
    /// Deploy and stop apps, upload, publish, invoke, change config.
    Deploy,
    /// Change the lattice itself: its nodes, and who may join.
    Admin,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Deploy => "deploy",
            Self::Admin => "admin",
        })
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = [Self::Read, Self::Deploy, Self::Admin].into_iter().find(|role| role.to_string() == text);
        known.ok_or_else(|| format!("`{text}` is no role; there are read, deploy and admin"))
    }
}

/// The tokens of an admin API. Only what is needed to know them again is kept.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Tokens(Vec<(Role, [u8; 32])>);

impl Tokens {
    /// Adds a token.
    pub fn add(&mut self, role: Role, token: &str) {
        self.0.push((role, Sha256::digest(token).into()));
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What a token allows. Takes as long whichever token it is, or nearly is.
    pub(crate) fn role(&self, token: &str) -> Option<Role> {
        let given: [u8; 32] = Sha256::digest(token).into();
        self.0.iter().filter(|(_, known)| same(&given, known)).map(|(role, _)| *role).max()
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(role, _)| role)).finish()
    }
}

/// Compares in a time that does not tell how much fits.
fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.iter().zip(b).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_its_highest_role_and_is_not_shown() {
        let mut tokens = Tokens::default();
        tokens.add(Role::Read, "looks");
        tokens.add(Role::Read, "both");
        tokens.add(Role::Deploy, "both");
        assert_eq!(tokens.role("looks"), Some(Role::Read));
        assert_eq!(tokens.role("both"), Some(Role::Deploy));
        assert_eq!((tokens.role("look"), tokens.role("")), (None, None));
        assert_eq!(format!("{tokens:?}"), "[Read, Read, Deploy]");
        assert!(Role::Read < Role::Deploy && Role::Deploy < Role::Admin);
        assert!("root".parse::<Role>().unwrap_err().contains("read, deploy and admin"));
    }
}
