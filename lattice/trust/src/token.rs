//! The join token. A key pair follows from it and from the lattice's id, by a function that is slow on purpose. The
//! lattice keeps the public half: it can check who has the token and cannot pass for one who has. A joiner signs what the
//! leader drew for it. The lattice in turn proves that it keeps that half, which nobody learns from the wire.

use std::fmt;
use std::num::NonZeroU32;

use ring::signature::{Ed25519KeyPair, KeyPair as _};
use ring::{hmac, pbkdf2};
use serde::{Deserialize, Serialize};
use trellis_wire::{LatticeId, NodeId, NodeKey};
use zeroize::Zeroizing;

use crate::secret::signed_by;

/// The shortest token that a lattice is founded with. Whoever hears a join can try tokens out, slowly; a drawn token of
/// this length is out of reach.
pub const TOKEN_CHARS_MIN: usize = 16;
/// How slow: some tenths of a second for each try.
const ROUNDS: NonZeroU32 = NonZeroU32::new(200_000).expect("it is not zero");

/// What a joiner is told out of band.
pub struct Token {
    lattice: LatticeId,
    pair: Ed25519KeyPair,
}

/// What the lattice keeps of its token: a public key that is told to nobody.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TokenKey([u8; 32]);

/// What proves that whoever made it has the token, to one leader, for one question.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof(Vec<u8>);

impl Token {
    /// The token of a lattice. Takes some tenths of a second of a core.
    pub fn new(lattice: LatticeId, text: &str) -> Self {
        let salt = [b"trellis token 1 ", lattice.uuid().as_bytes().as_slice()].concat();
        let mut seed = Zeroizing::new([0; 32]);
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, ROUNDS, &salt, text.trim().as_bytes(), &mut *seed);
        Self { lattice, pair: Ed25519KeyPair::from_seed_unchecked(&*seed).expect("any 32 bytes are a seed") }
    }

    /// What the lattice keeps.
    pub fn key(&self) -> TokenKey {
        TokenKey(self.pair.public_key().as_ref().try_into().expect("a public key of Ed25519 has 32 bytes"))
    }

    /// Proves to whoever drew `challenge` that the node with this id and key has the token.
    pub fn prove(&self, challenge: &[u8; 16], node: NodeId, key: NodeKey) -> Proof {
        Proof(self.pair.sign(&claim(self.lattice, challenge, node, key)).as_ref().to_vec())
    }
}

impl TokenKey {
    /// Whether the proof is for this challenge, node and key.
    pub fn accepts(&self, proof: &Proof, lattice: LatticeId, challenge: &[u8; 16], node: NodeId, key: NodeKey) -> bool {
        signed_by(&self.0, &claim(lattice, challenge, node, key), &proof.0)
    }

    /// Vouches for what the lattice says to a joiner.
    pub fn vouch(&self, said: &[u8]) -> Proof {
        Proof(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &self.0), said).as_ref().to_vec())
    }

    /// Whether whoever said it keeps the same half of the token.
    pub fn vouches(&self, said: &[u8], proof: &Proof) -> bool {
        hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, &self.0), said, &proof.0).is_ok()
    }
}

fn claim(lattice: LatticeId, challenge: &[u8; 16], node: NodeId, key: NodeKey) -> Vec<u8> {
    let (lattice, node) = (lattice.uuid(), node.uuid());
    [b"trellis join\0", lattice.as_bytes().as_slice(), challenge, node.as_bytes(), key.bytes()].concat()
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token of lattice {}", self.lattice)
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenKey")
    }
}

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Proof")
    }
}

#[cfg(test)]
mod tests {
    use trellis_wire::frame;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_token_proves_itself_for_one_node_one_lattice_and_one_challenge() {
        let lattice = |n| LatticeId::new(Uuid::from_u128(n));
        let node = |n| NodeId::new(Uuid::from_u128(n));
        let (key, other) = (NodeKey::new([1; 32]), NodeKey::new([2; 32]));
        let token = Token::new(lattice(1), "correct horse battery");
        let kept = token.key();
        let proof = token.prove(&[7; 16], node(1), key);
        assert!(kept.accepts(&proof, lattice(1), &[7; 16], node(1), key));
        assert!(!kept.accepts(&proof, lattice(1), &[8; 16], node(1), key), "another challenge");
        assert!(!kept.accepts(&proof, lattice(1), &[7; 16], node(2), key), "another node");
        assert!(!kept.accepts(&proof, lattice(1), &[7; 16], node(1), other), "another key");
        assert!(!kept.accepts(&proof, lattice(2), &[7; 16], node(1), key), "another lattice");
        let wrong = Token::new(lattice(1), "correct horse batterz");
        assert!(!kept.accepts(&wrong.prove(&[7; 16], node(1), key), lattice(1), &[7; 16], node(1), key));
        let elsewhere = Token::new(lattice(2), "correct horse battery");
        assert!(elsewhere.key() != kept, "one text in two lattices is two tokens");
        assert!(!kept.accepts(&frame::decode(&[1, 0]).unwrap(), lattice(1), &[7; 16], node(1), key), "an empty proof");
    }

    #[test]
    fn the_lattice_proves_that_it_keeps_the_token_and_shows_neither() {
        let lattice = LatticeId::new(Uuid::from_u128(1));
        let [ours, wrong] = ["correct horse battery", "something else entirely"].map(|text| Token::new(lattice, text));
        let vouched = ours.key().vouch(b"this is the lattice");
        assert!(ours.key().vouches(b"this is the lattice", &vouched));
        assert!(
            !ours.key().vouches(b"this is a lattice", &vouched)
                && !wrong.key().vouches(b"this is the lattice", &vouched)
        );
        let shown = format!("{ours:?} {:?} {vouched:?}", ours.key());
        assert!(!shown.contains("horse") && shown.len() < 100, "{shown}");
    }
}
