//! A node that answers what a test tells it to, and remembers what it was asked: the CLI's side of the admin API,
//! without the other side.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// What the CLI asked.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    /// `PUT /v1/config/x`.
    pub(crate) line: String,
    /// Header lines, names in lower case.
    pub(crate) headers: Vec<String>,
    pub(crate) body: Vec<u8>,
}

/// What it is answered: a status and a body.
pub(crate) type Answer = (u16, String);

/// The node. Its thread ends with the process.
pub(crate) struct Scripted {
    /// `http://127.0.0.1:PORT`.
    pub(crate) url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Scripted {
    /// Listens on a free port and answers one connection after the other. `answer` also gets how often the same was
    /// asked before.
    pub(crate) fn start(answer: impl Fn(&Asked, usize) -> Answer + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::<Asked>::new()));
        let memory = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                let request = read(&stream);
                let before = memory.lock().unwrap().iter().filter(|asked| asked.line == request.line).count();
                memory.lock().unwrap().push(request.clone());
                write(&stream, &request, answer(&request, before));
            }
        });
        Self { url, asked }
    }

    /// Everything that was asked, in order.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// Method and path of everything that was asked.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.asked().into_iter().map(|asked| asked.line).collect()
    }
}

fn read(stream: &TcpStream) -> Asked {
    let mut reader = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let first = lines.remove(0);
    let headers: Vec<_> = lines
        .iter()
        .map(|line| line.split_once(':').unwrap())
        .map(|(name, value)| format!("{}:{value}", name.to_lowercase()))
        .collect();
    let length =
        headers.iter().find_map(|header| header.strip_prefix("content-length: ")).map_or(0, |n| n.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    Asked { line: first.trim_end_matches(" HTTP/1.1").into(), headers, body }
}

fn write(mut stream: &TcpStream, request: &Asked, (status, body): Answer) {
    let length = body.len();
    let body = if request.line.starts_with("HEAD ") { String::new() } else { body };
    let head = format!("HTTP/1.1 {status} Said\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
}
