//! The provider against a real mosquitto, with permits that a test counts and events that a test handles.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed, which is what it is for")]

mod capped;
mod kept;
mod lab;
mod once;
mod ordered;
mod passing;
mod tls;
