//! A small HTTP/1.1 client that shows what came over the wire, half a response included: a library would hide just what
//! the tests look at.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long a client waits for the next byte, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);

/// A whole response.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    /// Names in lower case.
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The text of a 200.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.status, 200, "{self:#?}\n{}", self.text());
        self.text()
    }
}

/// Opens a connection.
pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    try_connect(address).unwrap()
}

fn try_connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Asks for a path. An error is a connection that was refused, or that ended before its response did.
pub(crate) fn get(address: SocketAddr, path: &str) -> io::Result<Response> {
    send(address, "GET", path, &[], b"")
}

/// Sends a request with a body.
pub(crate) fn send(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> io::Result<Response> {
    let mut stream = try_connect(address)?;
    stream.write_all(head(method, path, headers, body.len()).as_bytes())?;
    stream.write_all(body)?;
    read(&mut BufReader::new(stream))
}

/// The head of a request; a `host` among the headers takes the place of the usual one.
pub(crate) fn head(method: &str, path: &str, headers: &[(&str, &str)], body_bytes: usize) -> String {
    let host = if headers.iter().any(|(name, _)| *name == "host") { "" } else { "host: localhost\r\n" };
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("{method} {path} HTTP/1.1\r\n{host}connection: close\r\ncontent-length: {body_bytes}\r\n{headers}\r\n")
}

/// Reads a whole response.
pub(crate) fn read(from: &mut impl BufRead) -> io::Result<Response> {
    let mut response = read_head(from)?;
    let mut body = Vec::new();
    read_body(from, &response, &mut body)?;
    response.body = body;
    Ok(response)
}

/// Reads the head alone.
pub(crate) fn read_head(from: &mut impl BufRead) -> io::Result<Response> {
    let status = line(from)?;
    let status = status.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or(ErrorKind::InvalidData)?;
    let mut headers = Vec::new();
    loop {
        let line = line(from)?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    Ok(Response { status, headers, body: Vec::new() })
}

/// Reads the body that belongs to a head into `into`. How long it was.
pub(crate) fn read_body(from: &mut impl BufRead, head: &Response, into: &mut impl Write) -> io::Result<u64> {
    if head.status == 204 {
        return Ok(0);
    }
    if head.header("transfer-encoding") != Some("chunked") {
        let length = head.header("content-length").map(|length| length.parse().unwrap());
        return piece(from, length.ok_or(ErrorKind::InvalidData)?, into);
    }
    let mut bytes = 0;
    loop {
        let length = u64::from_str_radix(&line(from)?, 16).map_err(|_| ErrorKind::InvalidData)?;
        bytes += piece(from, length, into)?;
        line(from)?;
        if length == 0 {
            return Ok(bytes);
        }
    }
}

fn piece(from: &mut impl BufRead, bytes: u64, into: &mut impl Write) -> io::Result<u64> {
    if io::copy(&mut from.take(bytes), into)? < bytes {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes)
}

fn line(from: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    if from.read_line(&mut line)? == 0 {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok(line.trim_end().to_owned())
}
