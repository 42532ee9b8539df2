//! Ids and names. Each is a type of its own, checked where it enters, so that no function takes a bare string for one.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Why a text is no id or name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no {what}: {rule}")]
pub struct IdError {
    /// The text as it was given.
    pub text: String,
    /// The kind of id, such as `app name`.
    pub what: &'static str,
    /// The rule that it breaks.
    pub rule: &'static str,
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// Takes a UUID that its owner made.
            pub const fn new(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The UUID inside.
            pub const fn uuid(self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let refused = |_| IdError { text: text.into(), what: $what, rule: "a UUID is expected" };
                Uuid::try_parse(text).map(Self).map_err(refused)
            }
        }
    };
}

uuid_id! {
    /// A node: UUID v7, minted with its data directory. A wiped data directory is a new node.
    NodeId, "node id"
}
uuid_id! {
    /// A lattice, minted at bootstrap: two lattices of one name have different ids.
    LatticeId, "lattice id"
}

/// Where in a lattice's id its incarnation is added.
const INCARNATION_SHIFT: u32 = 16;

impl LatticeId {
    /// How frames name this lattice after it was recovered so many times: by another id, which nobody takes for its own who
    /// has not heard of that. Builds that know of no incarnations do not, either.
    #[must_use]
    pub fn of_incarnation(self, number: u32) -> Self {
        let (id, mask) = (self.0.as_u128(), u128::from(u32::MAX) << INCARNATION_SHIFT);
        let sum = ((id & mask) >> INCARNATION_SHIFT) as u32;
        Self(Uuid::from_u128(id & !mask | u128::from(sum.wrapping_add(number)) << INCARNATION_SHIFT))
    }

    /// Which incarnation of this lattice frames name so. `None`: it is another lattice.
    pub fn incarnation(self, named: Self) -> Option<u32> {
        let part = |id: Self| (id.0.as_u128() >> INCARNATION_SHIFT) as u32;
        let number = part(named).wrapping_sub(part(self));
        (self.of_incarnation(number) == named).then_some(number)
    }
}

uuid_id! {
    /// A Raft command: the state machine applies each id once.
    CommandId, "command id"
}
uuid_id! {
    /// One event, from its source to its settlement.
    EventId, "event id"
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $rule:literal, $check:expr) => {
        $(#[$doc])*
        /// A clone shares the text: maps by names are copied with every change of a lattice's state.
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks and takes a name.
            ///
            /// # Errors
            /// The rule that the text breaks.
            pub fn new(text: &str) -> Result<Self, IdError> {
                let check: fn(&str) -> bool = $check;
                if check(text) {
                    Ok(Self(text.into()))
                } else {
                    Err(IdError { text: text.into(), what: $what, rule: $rule })
                }
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;

            fn try_from(text: String) -> Result<Self, IdError> {
                Self::new(&text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.as_str().into()
            }
        }
    };
}

name! {
    /// A lattice's name: one NATS subject token of at most 64 characters.
    LatticeName, "lattice name", "1 to 64 of a-z, A-Z, 0-9, `-` and `_` are allowed",
    |text| (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}
name! {
    /// An app's name. wadm's rule (wadm 0.21, validation): `^[-\w]+$`, and here at most 253 bytes.
    AppName, "app name", "1 to 253 letters, digits, `-` and `_` are allowed",
    |text| (1..=253).contains(&text.len()) && text.chars().all(|c| c == '-' || c == '_' || c.is_alphanumeric())
}
name! {
    /// A manifest entry's name: a component's or a provider's.
    ComponentName, "component name", "1 to 253 bytes without control characters and `/` are expected",
    |text| (1..=253).contains(&text.len()) && !text.chars().any(|c| c.is_control() || c == '/')
}
name! {
    /// A link's name: `default` unless said otherwise.
    LinkName, "link name", "1 to 253 bytes without control characters are expected",
    |text| (1..=253).contains(&text.len()) && !text.chars().any(char::is_control)
}

impl Default for LinkName {
    fn default() -> Self {
        Self("default".into())
    }
}

/// A component or provider, wherever it runs: the pair (app, name).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ComponentKey {
    /// The app whose manifest declares it.
    pub app: AppName,
    /// Its name in that manifest.
    pub name: ComponentName,
}

impl fmt::Display for ComponentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.app, self.name)
    }
}

impl fmt::Debug for ComponentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ComponentKey {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let Some((app, name)) = text.split_once('/') else {
            return Err(IdError { text: text.into(), what: "component", rule: "APP/COMPONENT is expected" });
        };
        Ok(Self { app: app.parse()?, name: name.parse()? })
    }
}

/// The SHA-256 of an artifact. Written `sha256:<64 hex digits>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Takes a SHA-256 that its owner computed.
    pub const fn new(sha256: [u8; 32]) -> Self {
        Self(sha256)
    }

    /// The 32 bytes.
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// 64 lower-case hex digits, without the `sha256:` prefix.
    pub fn hex(&self) -> String {
        let digit = |nibble: u8| char::from(b"0123456789abcdef"[usize::from(nibble)]);
        self.0.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 0xf)]).collect()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = IdError;

    /// Takes 64 hex digits, with or without `sha256:` before them.
    fn from_str(text: &str) -> Result<Self, IdError> {
        let refused = || IdError { text: text.into(), what: "digest", rule: "sha256: and 64 hex digits are expected" };
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        if hex.len() != 64 || !hex.is_ascii() {
            return Err(refused());
        }
        let mut sha256 = [0; 32];
        for (i, byte) in sha256.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).map_err(|_| refused())?;
        }
        Ok(Self(sha256))
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { self.0.serialize(serializer) }
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
        } else {
            <[u8; 32]>::deserialize(deserializer).map(Self)
        }
    }
}

/// The number of a plan: each committed delta is one higher than its parent. A node refuses an older one.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl Generation {
    /// The generation after this one.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_where_they_enter() {
        assert!(AppName::new("orders-2_b").is_ok());
        assert!(AppName::new("").is_err());
        assert!(AppName::new("a b").is_err());
        assert!(LatticeName::new("a.b").is_err(), "a dot would make two subject tokens");
        assert!("orders/api".parse::<ComponentKey>().is_ok());
        assert!("orders".parse::<ComponentKey>().is_err());
    }

    #[test]
    fn an_incarnation_is_told_from_another_lattice() {
        for text in ["01890a5d-ac96-774b-bcce-b302099a8057", "01890a5d-ac96-774b-bfff-ffffffff8057"] {
            let id: LatticeId = text.parse().unwrap();
            assert_eq!(id.of_incarnation(0), id);
            for number in [0, 1, 2, 70_000, u32::MAX] {
                assert_eq!(id.incarnation(id.of_incarnation(number)), Some(number));
            }
            assert_eq!(id.of_incarnation(1).incarnation(id.of_incarnation(3)), Some(2));
            let other: LatticeId = "01890a5d-ac96-774b-bcce-b302099a8058".parse().unwrap();
            assert_eq!(id.incarnation(other), None);
        }
    }

    #[test]
    fn a_digest_reads_what_it_writes() {
        let digest = Digest::new(std::array::from_fn(|i| i as u8 * 7));
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert_eq!(digest.hex().parse(), Ok(digest));
        assert!("sha256:é".parse::<Digest>().is_err());
        assert!("sha256:00".parse::<Digest>().is_err());
    }
}
