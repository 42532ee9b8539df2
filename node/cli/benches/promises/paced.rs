//! Load that does not wait for its replies: so many requests a second, however those before went. `wrk` asks only as fast as
//! it is answered, and takes the times of refused requests among the others.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::task::JoinSet;

use crate::table::Times;

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Paced {
    /// How long those with 2xx took, from when they were due.
    pub(crate) accepted: Times,
    /// Refused with 503 and `Retry-After`.
    pub(crate) refused: u64,
    /// Anything else: another status, a 503 that does not say when to come again, a broken connection.
    pub(crate) others: u64,
    /// From the first request to the last reply.
    pub(crate) took: Duration,
}

/// Asks for `path` over so many connections, `each` after the one before on each of them, or as soon as there is a reply where
/// `each` is zero.
pub(crate) fn paced(at: SocketAddr, path: &str, connections: u32, each: Duration, lasts: Duration) -> Paced {
    let request = format!("GET {path} HTTP/1.1\r\nhost: {at}\r\n\r\n");
    Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let (mut asking, began) = (JoinSet::new(), Instant::now());
        for nth in 0..connections {
            let first = began + each * nth / connections;
            asking.spawn(ask(at, request.clone(), first, each, began + lasts));
        }
        let mut all = Paced::default();
        while let Some(one) = asking.join_next().await {
            let one = one.unwrap();
            all.accepted.extend(one.accepted);
            all.refused += one.refused;
            all.others += one.others;
        }
        all.took = began.elapsed();
        all
    })
}

async fn ask(at: SocketAddr, request: String, first: Instant, each: Duration, until: Instant) -> Paced {
    let (mut came, mut due, mut connection) = (Paced::default(), first, None);
    while due < until {
        tokio::time::sleep_until(due.into()).await;
        // A timer of tokio's is up to a millisecond late, which is not the server's.
        let asked = if due.elapsed() < Duration::from_millis(2) { Instant::now() } else { due };
        match answered(&mut connection, at, &request).await {
            Some(Answer::Accepted) => came.accepted.push(asked.elapsed()),
            Some(Answer::Refused) => came.refused += 1,
            other => {
                came.others += 1;
                connection = connection.filter(|_| other.is_some());
            }
        }
        due = if each.is_zero() { Instant::now() } else { due + each };
    }
    came
}

enum Answer {
    Accepted,
    Refused,
    Other,
}

/// Sends one request and reads its reply. `None`: the connection broke.
async fn answered(connection: &mut Option<TcpStream>, at: SocketAddr, request: &str) -> Option<Answer> {
    let stream = match connection {
        Some(stream) => stream,
        none => none.insert(TcpStream::connect(at).await.ok()?),
    };
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut reply = Vec::with_capacity(512);
    loop {
        if stream.read_buf(&mut reply).await.ok()? == 0 {
            return None;
        }
        if let Some((head, missing)) = head_of(&reply)
            && missing == 0
        {
            return Some(match head.split(' ').nth(1)? {
                status if status.starts_with('2') => Answer::Accepted,
                "503" if head.contains("retry-after:") => Answer::Refused,
                _ => Answer::Other,
            });
        }
    }
}

/// The head of a reply, in lower case, and how much of its body is still to come.
fn head_of(reply: &[u8]) -> Option<(String, usize)> {
    let end = reply.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&reply[..end]).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok())?;
    Some((head, (end + length).saturating_sub(reply.len())))
}
