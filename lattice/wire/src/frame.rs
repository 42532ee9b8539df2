//! How a message is written: a version byte, then an append-only enum in postcard.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The version this build writes and the only one it reads.
pub const VERSION: u8 = 1;

/// The longest frame that is decoded, in bytes: NATS's default `max_payload`.
pub const FRAME_BYTES_MAX: usize = 1024 * 1024;

/// Why bytes are no frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// No byte at all.
    #[error("the frame is empty")]
    Empty,
    /// Longer than [`FRAME_BYTES_MAX`].
    #[error("the frame has {0} bytes; at most {FRAME_BYTES_MAX} are taken")]
    TooLarge(usize),
    /// Written by a build that speaks another version.
    #[error("the frame has version {0}; this build reads version {VERSION}: upgrade the older node")]
    Version(u8),
    /// The version fits, the rest does not.
    #[error("the frame is malformed: {0}")]
    Malformed(postcard::Error),
    /// Bytes are left after the message.
    #[error("the frame has {0} bytes too many")]
    Trailing(usize),
}

/// Writes a frame.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    postcard::to_extend(message, vec![VERSION]).expect("messages are plain data, which postcard can always write")
}

/// Reads a frame that [`encode`] wrote.
///
/// # Errors
/// The bytes come from a peer and may be anything; every way in which they can be wrong is a [`FrameError`].
pub fn decode<T: DeserializeOwned>(frame: &[u8]) -> Result<T, FrameError> {
    match decode_head(frame)? {
        (message, []) => Ok(message),
        (_, left) => Err(FrameError::Trailing(left.len())),
    }
}

/// Reads a frame that [`encode`] wrote and to which other bytes were added: the message, and those bytes.
///
/// # Errors
/// As for [`decode`]; no bytes are too many here.
pub fn decode_head<T: DeserializeOwned>(frame: &[u8]) -> Result<(T, &[u8]), FrameError> {
    if frame.len() > FRAME_BYTES_MAX {
        return Err(FrameError::TooLarge(frame.len()));
    }
    read(frame)
}

/// Reads a frame of any length that [`encode`] wrote: for whoever bounds it otherwise, since it came in pieces.
///
/// # Errors
/// As for [`decode`]; none is too large.
pub fn decode_any<T: DeserializeOwned>(frame: &[u8]) -> Result<T, FrameError> {
    match read(frame)? {
        (message, []) => Ok(message),
        (_, left) => Err(FrameError::Trailing(left.len())),
    }
}

fn read<T: DeserializeOwned>(frame: &[u8]) -> Result<(T, &[u8]), FrameError> {
    match frame.split_first() {
        None => Err(FrameError::Empty),
        Some((&VERSION, rest)) => postcard::take_from_bytes(rest).map_err(FrameError::Malformed),
        Some((&version, _)) => Err(FrameError::Version(version)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{KeyValue, Message};

    #[test]
    fn a_frame_reads_back_and_says_what_is_wrong() {
        let call = KeyValue::Increment("orders".into(), -3);
        let frame = encode(&call);
        assert_eq!(decode(&frame), Ok(call));
        assert_eq!(decode::<KeyValue>(&[]), Err(FrameError::Empty));
        assert_eq!(decode::<KeyValue>(&[9, 0]), Err(FrameError::Version(9)));
        assert_eq!(decode::<KeyValue>(&[&frame[..], &[0]].concat()), Err(FrameError::Trailing(1)));
    }

    proptest! {
        #[test]
        fn any_bytes_from_a_peer_are_decoded_or_refused(mut bytes: Vec<u8>) {
            if let Some(first) = bytes.first_mut() {
                *first = VERSION;
            }
            if let Ok(message) = decode::<Message>(&bytes) {
                prop_assert_eq!(decode::<Message>(&encode(&message)), Ok(message));
            }
        }
    }
}
