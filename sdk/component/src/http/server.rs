//! Answering a request.

use std::io::{self, Write as _};

use super::body::Head;
use super::{Body, BodyWriter, Headers, method_to_text};
use crate::bindings::http::types::{IncomingRequest, OutgoingResponse, ResponseOutparam};

/// A request that has arrived. Its body may still be on the way.
#[derive(Debug)]
pub struct Request {
    method: String,
    path_and_query: String,
    authority: Option<String>,
    headers: Headers,
    body: Body,
}

impl Request {
    fn new(request: IncomingRequest) -> Self {
        let body = request.consume().expect("the body of a fresh request is taken once, here");
        Self {
            method: method_to_text(request.method()),
            path_and_query: request.path_with_query().unwrap_or_else(|| "/".into()),
            authority: request.authority(),
            headers: Headers::read(&request.headers()),
            body: Body::new(body, Head::Request(request)),
        }
    }

    /// The method, such as `GET`.
    pub fn method(&self) -> &str {
        &self.method
    }

    /// The path as it was sent, without the query: `/orders/7`.
    pub fn path(&self) -> &str {
        self.path_and_query.split_once('?').map_or(self.path_and_query.as_str(), |(path, _)| path)
    }

    /// The path with the query: `/orders?limit=10`.
    pub fn path_and_query(&self) -> &str {
        &self.path_and_query
    }

    /// The query as it was sent: `limit=10&name=a%20b`.
    pub fn query(&self) -> Option<&str> {
        self.path_and_query.split_once('?').map(|(_, query)| query)
    }

    /// The first value of this name in the query, decoded.
    pub fn query_value(&self, name: &str) -> Option<String> {
        find(self.query()?, name)
    }

    /// The host that the request names, with the port where it has one.
    pub fn authority(&self) -> Option<&str> {
        self.authority.as_deref().or_else(|| self.header("host"))
    }

    /// The first header of this name; case does not matter.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)
    }

    /// All headers.
    pub fn headers(&self) -> &Headers {
        &self.headers
    }

    /// The body, to be read as it comes.
    pub fn into_body(self) -> Body {
        self.body
    }

    /// The whole body, if it has at most this many bytes.
    ///
    /// # Errors
    /// It is longer, or it broke off.
    pub fn bytes(self, bytes_max: usize) -> io::Result<Vec<u8>> {
        self.body.bytes(bytes_max)
    }

    /// The body read from JSON, if it has at most this many bytes.
    ///
    /// # Errors
    /// A response that says what is wrong: 413 for too long, 400 for anything else.
    #[cfg(feature = "json")]
    pub fn json<T: serde::de::DeserializeOwned>(self, bytes_max: usize) -> Result<T, Response> {
        let body = self.bytes(bytes_max).map_err(|why| {
            let status = if why.kind() == io::ErrorKind::FileTooLarge { 413 } else { 400 };
            Response::text(format!("{why}\n")).status(status)
        })?;
        serde_json::from_slice(&body).map_err(|why| Response::text(format!("not as expected: {why}\n")).status(400))
    }
}

/// The first value of this name in a query.
fn find(query: &str, name: &str) -> Option<String> {
    let mut pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.find(|(key, _)| decode(key) == name).map(|(_, value)| decode(value))
}

/// Decodes `%20` and `+`; what is no UTF-8 is replaced.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let escaped = || std::str::from_utf8(after.get(..2)?).ok().and_then(|hex| u8::from_str_radix(hex, 16).ok());
        let (byte, taken) = match first {
            b'+' => (b' ', 1),
            b'%' => escaped().map_or((b'%', 1), |byte| (byte, 3)),
            other => (other, 1),
        };
        bytes.push(byte);
        rest = &rest[taken..];
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A response: 200 with an empty body, unless said otherwise.
pub struct Response {
    status: u16,
    headers: Headers,
    content: Content,
}

/// Writes a streaming body.
type Writer = Box<dyn FnOnce(&mut BodyWriter) -> io::Result<()>>;

enum Content {
    Whole(Vec<u8>),
    Stream(Writer),
}

impl Response {
    /// An empty response of this status.
    pub fn new(status: u16) -> Self {
        Self { status, headers: Headers::default(), content: Content::Whole(Vec::new()) }
    }

    /// Text.
    pub fn text(text: impl Into<String>) -> Self {
        Self::new(200).header("content-type", "text/plain; charset=utf-8").body(text.into())
    }

    /// A web page.
    pub fn html(html: impl Into<String>) -> Self {
        Self::new(200).header("content-type", "text/html; charset=utf-8").body(html.into())
    }

    /// A value as JSON.
    ///
    /// # Panics
    /// The value cannot be JSON, such as a map whose keys are no text.
    #[cfg(feature = "json")]
    pub fn json<T: serde::Serialize + ?Sized>(value: &T) -> Self {
        let body = serde_json::to_vec(value).unwrap_or_else(|why| panic!("the response cannot be JSON: {why}"));
        Self::new(200).header("content-type", "application/json").body(body)
    }

    /// A body that `write` writes piece by piece, after the head is sent. When `write` fails, the body breaks off.
    pub fn stream(write: impl FnOnce(&mut BodyWriter) -> io::Result<()> + 'static) -> Self {
        Self { content: Content::Stream(Box::new(write)), ..Self::new(200) }
    }

    /// Sets the status.
    #[must_use]
    pub fn status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// Adds a header, beside others of the name.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.headers.append(name, value);
        self
    }

    /// Sets the body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.content = Content::Whole(body.into());
        self
    }

    /// Sends it.
    fn send(mut self, to: ResponseOutparam) {
        // RFC 9110, 8.6: these two have no body, and 204 may not say how long it is.
        let bodiless = matches!(self.status, 204 | 304);
        if let Content::Whole(body) = &self.content
            && !bodiless
            && self.headers.get_bytes("content-length").is_none()
        {
            self.headers.append("content-length", body.len().to_string());
        }
        let headers = self.headers.write().unwrap_or_else(|why| panic!("the response cannot be sent: {why}"));
        let response = OutgoingResponse::new(headers);
        let status = self.status;
        response.set_status_code(status).unwrap_or_else(|()| panic!("{status} is no HTTP status"));
        let body = response.body().expect("the body of a fresh response is taken once, here");
        ResponseOutparam::set(to, Ok(response));
        let mut writer = BodyWriter::new(body);
        let written = match self.content {
            Content::Whole(body) => writer.write_all(&body),
            Content::Stream(write) => write(&mut writer),
        };
        match written {
            Ok(()) => {
                if let Err(why) = writer.finish() {
                    eprintln!("the response body was refused: {why}");
                }
            }
            // Whoever asked has gone; there is nobody to tell.
            Err(why) if why.kind() == io::ErrorKind::BrokenPipe => {}
            Err(why) => eprintln!("the response body breaks off: {why}"),
        }
    }
}

/// What a function for HTTP may return.
pub trait IntoResponse {
    /// The response.
    fn into_response(self) -> Response;
}

impl IntoResponse for Response {
    fn into_response(self) -> Response {
        self
    }
}

impl IntoResponse for &str {
    fn into_response(self) -> Response {
        Response::text(self)
    }
}

impl IntoResponse for String {
    fn into_response(self) -> Response {
        Response::text(self)
    }
}

/// No content.
impl IntoResponse for () {
    fn into_response(self) -> Response {
        Response::new(204)
    }
}

/// The status, and the rest.
impl<R: IntoResponse> IntoResponse for (u16, R) {
    fn into_response(self) -> Response {
        self.1.into_response().status(self.0)
    }
}

impl<R: IntoResponse, E: IntoResponse> IntoResponse for Result<R, E> {
    fn into_response(self) -> Response {
        self.map_or_else(IntoResponse::into_response, IntoResponse::into_response)
    }
}

/// `?` on an error: a 500. The error goes to the log and not to whoever asked, who may be anyone.
impl<E: std::error::Error> From<E> for Response {
    fn from(why: E) -> Self {
        eprintln!("error: {why}");
        Self::text("internal error\n").status(500)
    }
}

/// Calls the author's function and sends what it returns; the macro's half.
#[doc(hidden)]
pub fn answer<R: IntoResponse>(request: IncomingRequest, to: ResponseOutparam, handle: impl FnOnce(Request) -> R) {
    handle(Request::new(request)).into_response().send(to);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_decoded_and_the_first_value_counts() {
        let query = "name=a%20b+c&n=1&n=2&flag&broken=%zz%4&%6b=v&%C3%A9=%C3%A9";
        let found = |name: &str| find(query, name);
        assert_eq!(found("name").as_deref(), Some("a b c"));
        assert_eq!(found("n").as_deref(), Some("1"));
        assert_eq!(found("flag").as_deref(), Some(""));
        assert_eq!(found("broken").as_deref(), Some("%zz%4"));
        assert_eq!(found("k").as_deref(), Some("v"));
        assert_eq!(found("\u{e9}").as_deref(), Some("\u{e9}"));
        assert_eq!(found("none"), None);
    }

    #[test]
    fn what_a_function_may_return_becomes_a_response() {
        let status = |response: Response| response.status;
        assert_eq!(status("text".into_response()), 200);
        assert_eq!(status(().into_response()), 204);
        assert_eq!(status((404, "no").into_response()), 404);
        assert_eq!(status(Err::<Response, _>((409, String::new())).into_response()), 409);
        let hidden = Response::from(io::Error::other("the password is wrong"));
        let Content::Whole(body) = &hidden.content else { panic!("an error is answered whole") };
        assert_eq!((hidden.status, body.as_slice()), (500, &b"internal error\n"[..]));
    }
}
