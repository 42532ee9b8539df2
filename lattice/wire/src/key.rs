//! Keys: a node's public key, and the secret of a lattice. What they are good for is `trellis-trust`'s to know; here they are
//! only carried, compared and written.
//!
//! As text it is an nkey of NATS (ADR-14) of the kind for servers: prefix byte, key and CRC-16 in base32, which begins
//! with `N`. People can so tell it from other keys, and a typing error is found.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::IdError;

/// The kind of nkey: `N`, for a server.
const PREFIX: u8 = 13 << 3;
/// How long a key is as text.
const TEXT_BYTES: usize = 56;
/// RFC 4648, without padding.
const BASE32: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// The public half of the key pair that is minted with a node's data directory (Ed25519). Written `N...`, 56 characters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeKey([u8; 32]);

impl NodeKey {
    /// Takes a public key that its owner made.
    pub const fn new(key: [u8; 32]) -> Self {
        Self(key)
    }

    /// The 32 bytes.
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut raw = vec![PREFIX];
        raw.extend(self.0);
        raw.extend(crc16(&raw).to_le_bytes());
        // 35 bytes are 56 digits of five bits.
        let digit = |n: usize| (0..5).fold(0, |digit, bit| digit << 1 | bit_of(&raw, 5 * n + bit));
        let text: String = (0..8 * raw.len() / 5).map(|n| char::from(BASE32[digit(n)])).collect();
        f.pad(&text)
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for NodeKey {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let rule = match text.len() == TEXT_BYTES && text.starts_with('N') {
            true => "its characters do not fit together: one of them is another than the node says",
            false => "56 characters that begin with N are expected",
        };
        match nkeys::from_public_key(text) {
            Ok((PREFIX, key)) => Ok(Self(key)),
            _ => Err(IdError { text: text.into(), what: "node key", rule }),
        }
    }
}

impl Serialize for NodeKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { self.0.serialize(serializer) }
    }
}

impl<'de> Deserialize<'de> for NodeKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
        } else {
            <[u8; 32]>::deserialize(deserializer).map(Self)
        }
    }
}

/// What all members of a lattice share and nobody else has: it hides what they announce to each other. Minted when the
/// lattice is founded; it travels with the state only.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LatticeSecret([u8; 32]);

impl LatticeSecret {
    /// Takes bytes that nobody can guess.
    pub const fn new(secret: [u8; 32]) -> Self {
        Self(secret)
    }

    /// The 32 bytes.
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for LatticeSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LatticeSecret")
    }
}

fn bit_of(bytes: &[u8], bit: usize) -> usize {
    usize::from(bytes[bit / 8] >> (7 - bit % 8) & 1)
}

/// CRC-16/XMODEM.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte) << 8, |crc, _| crc << 1 ^ if crc & 0x8000 == 0 { 0 } else { 0x1021 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_written_as_nkeys_writes_it() {
        for n in 0..20 {
            let pair = nkeys::KeyPair::new_from_raw(nkeys::KeyPairType::Server, [n; 32]).unwrap();
            let key: NodeKey = pair.public_key().parse().unwrap();
            assert_eq!(key.to_string(), pair.public_key());
        }
        let user = nkeys::KeyPair::new_from_raw(nkeys::KeyPairType::User, [1; 32]).unwrap().public_key();
        for wrong in ["", "NABC", user.as_str(), "é"] {
            let refused = wrong.parse::<NodeKey>().unwrap_err().to_string();
            assert!(refused.contains("56 characters that begin with N"), "{refused}");
        }
        // The last characters are a checksum of the others.
        let key = nkeys::KeyPair::new_from_raw(nkeys::KeyPairType::Server, [1; 32]).unwrap().public_key();
        let mistyped = key[..20].to_owned() + if &key[20..21] == "A" { "B" } else { "A" } + &key[21..];
        let refused = mistyped.parse::<NodeKey>().unwrap_err().to_string();
        assert!(refused.contains("one of them is another"), "{refused}");
    }
}
