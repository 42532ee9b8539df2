//! HTTP: answering requests, and making them.
//!
//! ```
//! use trellis_component::http::{IntoResponse, Request, Response};
//!
//! trellis_component::http!(handle);
//!
//! fn handle(request: Request) -> Result<Response, Response> {
//!     match (request.method(), request.path()) {
//!         ("GET", "/hello") => {
//!             let name = request.query_value("name").unwrap_or_else(|| "world".into());
//!             Ok(Response::text(format!("hello {name}")))
//!         }
//!         // The whole body in memory, up to 1 MiB. `?` turns an error into a 500.
//!         ("POST", "/length") => Ok(Response::text(request.bytes(1 << 20)?.len().to_string())),
//!         // A body that streams through: no more than a piece of it is in memory at a time.
//!         ("POST", "/echo") => {
//!             let mut body = request.into_body();
//!             Ok(Response::stream(move |out| std::io::copy(&mut body, out).map(drop)))
//!         }
//!         _ => Err(Response::text("no such page\n").status(404)),
//!     }
//! }
//! ```
//!
//! Making a request needs a link to an http provider, whose `allowed_hosts` names the host:
//!
//! ```
//! # fn f() -> Result<(), trellis_component::http::Error> {
//! let answer = trellis_component::http::get("https://example.org/rates").send()?;
//! assert_eq!(answer.status, 200);
//! let rates = answer.body.bytes(1 << 20)?;
//! # Ok(())
//! # }
//! ```

mod body;
mod client;
mod server;

pub use body::{Body, BodyWriter};
pub use client::{Error, Incoming, Outgoing, get, post, request};
#[doc(hidden)]
pub use server::answer as __answer;
pub use server::{IntoResponse, Request, Response};

use crate::bindings::http::types::{Fields, Method};

/// Headers in order; a name may come twice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, Vec<u8>)>);

impl Headers {
    /// The first value of this name as text; case does not matter. `None` also where it is no text.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.get_bytes(name).and_then(|value| std::str::from_utf8(value).ok())
    }

    /// The first value of this name.
    pub fn get_bytes(&self, name: &str) -> Option<&[u8]> {
        self.iter().find(|(header, _)| header.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// Adds a header, beside others of the name.
    pub fn append(&mut self, name: impl Into<String>, value: impl Into<Vec<u8>>) {
        self.0.push((name.into(), value.into()));
    }

    /// Every header in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_slice()))
    }

    fn read(fields: &Fields) -> Self {
        Self(fields.entries())
    }

    /// # Errors
    /// The text names what is wrong: a name or value that no header may have.
    fn write(&self) -> Result<Fields, String> {
        let names = || self.0.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
        Fields::from_list(&self.0).map_err(|why| format!("one of the headers {} is not allowed: {why:?}", names()))
    }
}

fn method_to_text(method: Method) -> String {
    match method {
        Method::Get => "GET".into(),
        Method::Head => "HEAD".into(),
        Method::Post => "POST".into(),
        Method::Put => "PUT".into(),
        Method::Delete => "DELETE".into(),
        Method::Connect => "CONNECT".into(),
        Method::Options => "OPTIONS".into(),
        Method::Trace => "TRACE".into(),
        Method::Patch => "PATCH".into(),
        Method::Other(other) => other,
    }
}

fn text_to_method(text: &str) -> Method {
    match text {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        "POST" => Method::Post,
        "PUT" => Method::Put,
        "DELETE" => Method::Delete,
        "CONNECT" => Method::Connect,
        "OPTIONS" => Method::Options,
        "TRACE" => Method::Trace,
        "PATCH" => Method::Patch,
        other => Method::Other(other.into()),
    }
}
