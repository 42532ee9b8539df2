//! A node's key pair: Ed25519 for signatures (RFC 8032); the same pair as X25519 (RFC 7748) for what it agrees on with
//! another node.

use std::fmt;

use nkeys::{KeyPair, KeyPairType};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use trellis_wire::NodeKey;
use zeroize::Zeroizing;

/// The secret half of a node's key pair, with the public one.
pub struct NodeSecret {
    pair: Ed25519KeyPair,
    seed: Zeroizing<[u8; 32]>,
}

/// A text is no node's seed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it is no nkey seed of a node: 58 characters that begin with SN are expected")]
pub struct SecretError;

impl NodeSecret {
    /// The pair that follows from 32 bytes that nobody can guess.
    pub fn new(seed: [u8; 32]) -> Self {
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).expect("any 32 bytes are a seed");
        Self { pair, seed: Zeroizing::new(seed) }
    }

    /// Reads an nkey seed, `SN...`.
    ///
    /// # Errors
    /// It is none, or one of another kind of key.
    pub fn parse(text: &str) -> Result<Self, SecretError> {
        let pair = KeyPair::from_seed(text).map_err(|_| SecretError)?;
        if pair.key_pair_type() != KeyPairType::Server {
            return Err(SecretError);
        }
        let (_, seed) = nkeys::decode_seed(text).map_err(|_| SecretError)?;
        Ok(Self::new(seed))
    }

    /// The nkey seed. Whoever has it is this node.
    pub fn text(&self) -> Zeroizing<String> {
        let pair = KeyPair::new_from_raw(KeyPairType::Server, *self.seed).expect("any 32 bytes are a seed");
        Zeroizing::new(pair.seed().expect("it was made from a seed"))
    }

    /// The public half.
    pub fn key(&self) -> NodeKey {
        let bytes = self.pair.public_key().as_ref().try_into();
        NodeKey::new(bytes.expect("a public key of Ed25519 has 32 bytes"))
    }

    pub(crate) fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.pair.sign(message).as_ref().try_into().expect("a signature of Ed25519 has 64 bytes")
    }

    /// What this node and the one with that key can work out, and nobody else. `None`: it is no sound key.
    pub(crate) fn agree(&self, with: NodeKey) -> Option<Zeroizing<[u8; 32]>> {
        let theirs = ed25519_dalek::VerifyingKey::from_bytes(with.bytes()).ok().filter(|key| !key.is_weak())?;
        let mine = Zeroizing::new(ed25519_dalek::SigningKey::from_bytes(&self.seed).to_scalar_bytes());
        Some(Zeroizing::new(theirs.to_montgomery().mul_clamped(*mine).to_bytes()))
    }
}

impl fmt::Debug for NodeSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeSecret of {}", self.key())
    }
}

/// Whether the owner of `key` signed the message.
pub(crate) fn signed_by(key: &[u8; 32], message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, key).verify(message, signature).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_reads_what_it_writes_and_shows_nothing() {
        let secret = NodeSecret::new([7; 32]);
        let read = NodeSecret::parse(&secret.text()).unwrap();
        assert_eq!(read.key(), secret.key());
        assert_eq!(secret.key().to_string(), KeyPair::from_seed(&secret.text()).unwrap().public_key());
        assert!(!format!("{secret:?}").contains(secret.text().as_str()));
        let user = KeyPair::new_from_raw(KeyPairType::User, [7; 32]).unwrap().seed().unwrap();
        for wrong in ["", "SN", &user, &secret.key().to_string()] {
            assert!(NodeSecret::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn two_nodes_agree_and_a_third_does_not() {
        let [a, b, c] = [1, 2, 3].map(|n| NodeSecret::new([n; 32]));
        assert_eq!(a.agree(b.key()), b.agree(a.key()));
        assert_ne!(a.agree(b.key()), a.agree(c.key()));
        assert_eq!(a.agree(NodeKey::new([0; 32])), None, "a point of small order agrees with everyone");
        assert!(signed_by(a.key().bytes(), b"yes", &a.sign(b"yes")));
        assert!(
            !signed_by(a.key().bytes(), b"no", &a.sign(b"yes")) && !signed_by(b.key().bytes(), b"yes", &a.sign(b"yes"))
        );
    }
}
