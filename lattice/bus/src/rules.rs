//! What is checked before anything is sent, the same for every bus. Source for headers: NATS ADR-4.

use trellis_wire::pattern::{self, Malformed};

use crate::BusError;

impl From<Malformed> for BusError {
    fn from(malformed: Malformed) -> Self {
        Self::Subject(malformed.to_string())
    }
}

/// A subject to subscribe to, and a queue group: any text without spaces.
pub(crate) fn check_subscription(subject: &str, group: Option<&str>) -> Result<(), BusError> {
    pattern::check(subject)?;
    match group {
        Some(group) if group.is_empty() || group.chars().any(|c| c.is_whitespace() || c.is_control()) => {
            Err(BusError::Subject(format!("`{group}` is no queue group: text without spaces is expected")))
        }
        _ => Ok(()),
    }
}

/// Headers that can be written: printable ASCII names without a colon, values without line breaks.
pub(crate) fn check_headers(headers: &[(&str, &str)]) -> Result<(), BusError> {
    for (name, value) in headers {
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_graphic() && b != b':') {
            return Err(BusError::Header(format!(
                "`{name}` is no header name: printable ASCII without `:` is expected"
            )));
        }
        if value.contains(['\r', '\n']) {
            return Err(BusError::Header(format!("the value of header `{name}` holds a line break")));
        }
    }
    Ok(())
}

/// How many bytes the headers take on the wire of NATS: a version line, a line for each, an empty line.
pub(crate) fn headers_bytes(headers: &[(&str, &str)]) -> usize {
    const FRAME: usize = "NATS/1.0\r\n\r\n".len();
    const LINE: usize = ": \r\n".len();
    if headers.is_empty() {
        return 0;
    }
    FRAME + headers.iter().map(|(name, value)| name.len() + value.len() + LINE).sum::<usize>()
}
