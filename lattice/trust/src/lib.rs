//! Who is who: what makes a frame of the bus one of a member's, and of nobody else's.
//!
//! - `secret` is a node's key pair: signatures, and what it agrees on with another node;
//! - `seal` is a node's seal: it closes words for one node, signs words for all, and opens what others closed;
//! - `window` finds what came before; `start` tells the starts of one node's process apart;
//! - `token` is the join token: what a joiner proves that it has, and what the lattice proves that it knows of it.
//!
//! Two kinds of words travel between members. A word for one node is *sealed*: encrypted and authenticated
//! (ChaCha20-Poly1305) under a key that follows from the key pairs of both, from the present start of both, and from the
//! subject. Nobody else can make, change, read, redirect or repeat it. A word for all is *announced*: hidden from whoever
//! has not the lattice's secret, signed (Ed25519) by its sender, and numbered.
//!
//! No clock takes part. What one start of a node said is bound to that start, and what it said to one start of another
//! node is bound to that one too; within both, words are counted. A clock that is wrong therefore opens nothing and
//! closes nobody out.
//!
//! Nothing in this crate does I/O, reads a clock or draws a random number. It is the only one that knows cryptography.

mod error;
mod head;
mod seal;
mod secret;
mod start;
mod token;
mod window;

pub use error::{Distrust, Refused};
pub use seal::{Asked, Book, Opened, Presented, Seal, Ticket, presented};
pub use secret::{NodeSecret, SecretError};
pub use start::Start;
pub use token::{Proof, TOKEN_CHARS_MIN, Token, TokenKey};
