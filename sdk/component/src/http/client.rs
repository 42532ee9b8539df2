//! Making a request.

use std::fmt;
use std::io::{self, Write as _};
use std::time::Duration;

use super::body::Head;
use super::{Body, BodyWriter, Headers, text_to_method};
use crate::bindings::http::outgoing_handler;
use crate::bindings::http::types::{ErrorCode, IncomingResponse, OutgoingRequest, RequestOptions, Scheme};

/// A GET.
pub fn get(url: impl Into<String>) -> Outgoing {
    request("GET", url)
}

/// A POST with a body.
pub fn post(url: impl Into<String>, body: impl Into<Vec<u8>>) -> Outgoing {
    request("POST", url).body(body)
}

/// A request of any method.
pub fn request(method: &str, url: impl Into<String>) -> Outgoing {
    Outgoing { method: method.into(), url: url.into(), headers: Headers::default(), body: Vec::new(), timeout: None }
}

/// A request to be made.
#[derive(Debug, Clone)]
#[must_use = "nothing is sent before `send`"]
pub struct Outgoing {
    method: String,
    url: String,
    headers: Headers,
    body: Vec<u8>,
    timeout: Option<Duration>,
}

impl Outgoing {
    /// Adds a header.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.headers.append(name, value);
        self
    }

    /// Sets the body.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// How long each may take: connecting, the head of the response, and every piece of its body.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Sends it and waits for the head of the response.
    ///
    /// # Errors
    /// No link grants the host, nothing listens there, or it took too long.
    pub fn send(self) -> Result<Incoming, Error> {
        let request = self.prepare()?;
        let writer = BodyWriter::new(request.body().expect("the body of a fresh request is taken once, here"));
        let response = outgoing_handler::handle(request, self.options()).map_err(Error::from_code)?;
        send_body(writer, &self.body)?;
        response.subscribe().block();
        let response = response.get().expect("the response is there after its pollable");
        let response = response.expect("the response is taken once, here").map_err(Error::from_code)?;
        Ok(Incoming::new(response))
    }

    fn prepare(&self) -> Result<OutgoingRequest, Error> {
        let (scheme, authority, path) = split(&self.url)?;
        let mut headers = self.headers.clone();
        if !self.body.is_empty() && headers.get_bytes("content-length").is_none() {
            headers.append("content-length", self.body.len().to_string());
        }
        let request = OutgoingRequest::new(headers.write().map_err(Error)?);
        let refused = |what: &str| Error(format!("the {what} of {} {} is malformed", self.method, self.url));
        request.set_method(&text_to_method(&self.method)).map_err(|()| refused("method"))?;
        request.set_scheme(Some(&scheme)).map_err(|()| refused("scheme"))?;
        request.set_authority(Some(authority)).map_err(|()| refused("host"))?;
        request.set_path_with_query(Some(&path)).map_err(|()| refused("path"))?;
        Ok(request)
    }

    fn options(&self) -> Option<RequestOptions> {
        let nanoseconds = u64::try_from(self.timeout?.as_nanos()).unwrap_or(u64::MAX);
        let options = RequestOptions::new();
        let set = [
            options.set_connect_timeout(Some(nanoseconds)),
            options.set_first_byte_timeout(Some(nanoseconds)),
            options.set_between_bytes_timeout(Some(nanoseconds)),
        ];
        assert!(set.iter().all(Result::is_ok), "the host takes no timeouts for outgoing requests");
        Some(options)
    }
}

/// Writes the body. A receiver that answers without reading all of it is no error: the answer counts.
fn send_body(mut writer: BodyWriter, body: &[u8]) -> Result<(), Error> {
    match writer.write_all(body) {
        Ok(()) => writer.finish().map_err(Error),
        Err(why) if why.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(why) => Err(Error(format!("the request body broke off: {why}"))),
    }
}

/// Splits a URL into scheme, authority, and path with query.
fn split(url: &str) -> Result<(Scheme, &str, String), Error> {
    let (scheme, rest) = match url.split_once("://") {
        Some(("http", rest)) => (Scheme::Http, rest),
        Some(("https", rest)) => (Scheme::Https, rest),
        _ => return Err(Error(format!("`{url}` is no URL; it begins with http:// or https://"))),
    };
    // What follows `#` is not sent.
    let rest = rest.split_once('#').map_or(rest, |(sent, _)| sent);
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    Ok((scheme, authority, path))
}

/// A response that has arrived. Its body may still be on the way.
#[derive(Debug)]
#[non_exhaustive]
pub struct Incoming {
    /// The status, such as 200.
    pub status: u16,
    /// Its headers.
    pub headers: Headers,
    /// Its body.
    pub body: Body,
}

impl Incoming {
    fn new(response: IncomingResponse) -> Self {
        let body = response.consume().expect("the body of a fresh response is taken once, here");
        Self {
            status: response.status(),
            headers: Headers::read(&response.headers()),
            body: Body::new(body, Head::Response(response)),
        }
    }
}

/// Why a request got no response. The text is for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error(String);

impl Error {
    fn from_code(code: ErrorCode) -> Self {
        match code {
            ErrorCode::HttpRequestDenied => {
                Self("no link grants this host: add a link to an http provider and name it in `allowed_hosts`".into())
            }
            ErrorCode::InternalError(Some(why)) => Self(why),
            other => Self(format!("{other:?}")),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(why: io::Error) -> Self {
        Self(why.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_split() {
        let check = |url: &str, authority: &str, path: &str| {
            let (scheme, found, rest) = split(url).unwrap();
            assert_eq!((found, rest.as_str()), (authority, path), "{url}");
            assert_eq!(matches!(scheme, Scheme::Https), url.starts_with("https"));
        };
        check("https://example.org", "example.org", "/");
        check("http://127.0.0.1:8080/a/b?c=d#e", "127.0.0.1:8080", "/a/b?c=d");
        check("http://example.org?c=/d", "example.org", "/?c=/d");
        for url in ["example.org", "ftp://example.org", ""] {
            assert!(split(url).unwrap_err().to_string().contains("http://"), "{url}");
        }
    }
}
