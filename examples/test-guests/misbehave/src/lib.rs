//! Does by path what a component should not, for the tests of the host.
//!
//! | path | what it does |
//! | --- | --- |
//! | `/loop` | computes for ever |
//! | `/alloc` | takes memory for ever |
//! | `/trap`, `/panic` | traps |
//! | `/never` | waits for ever, without computing |
//! | `/noreply` | returns without a response |
//! | `/huge` | streams 1 GiB, or `?bytes=N` |
//! | `/break` | begins a body and breaks it off |
//! | `/slow?ms=N` | answers after a while; 1,000 ms unless said |
//! | `/echo` | streams the request's body back |
//! | `/sink` | reads the request's body to its end, and says how long it was |
//! | `/twice` | sends one response and traps after it |
//! | `/count` | counts in a static; always 1, since every sandbox is fresh |
//! | `/config` | its configuration, a line each |
//! | `/out?url=U` | the status and body of a request to U |
//! | anything else | `ok` |

use std::hint::black_box;
use std::io::{self, Write as _};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use trellis_component::bindings::http::Guest;
use trellis_component::bindings::http::types::{IncomingRequest, ResponseOutparam};
use trellis_component::config;
use trellis_component::http::{__answer, Request, Response, get};

/// The macro `http!` cannot return without a response, so this exports by hand.
struct Misbehave;

trellis_component::bindings::http::export_http!(Misbehave with_types_in trellis_component::bindings::http);

impl Guest for Misbehave {
    fn handle(request: IncomingRequest, response: ResponseOutparam) {
        let path = request.path_with_query().unwrap_or_default();
        if path == "/noreply" {
            return;
        }
        __answer(request, response, handle);
        assert_ne!(path, "/twice", "after the response");
    }
}

static COUNT: AtomicU32 = AtomicU32::new(0);

fn handle(request: Request) -> Result<Response, Response> {
    let number = |name: &str, default: u64| request.query_value(name).and_then(|n| n.parse().ok()).unwrap_or(default);
    match request.path() {
        "/loop" => compute_for_ever(),
        "/alloc" => allocate_for_ever(),
        "/trap" => std::process::abort(),
        "/panic" => panic!("as asked"),
        "/never" => loop {
            std::thread::sleep(Duration::from_secs(3_600));
        },
        "/huge" => {
            let bytes = number("bytes", 1 << 30);
            Ok(Response::stream(move |out| io::copy(&mut io::Read::take(io::repeat(b'x'), bytes), out).map(drop)))
        }
        "/break" => Ok(Response::stream(|out| {
            out.write_all(b"the beginning")?;
            out.flush()?;
            Err(io::Error::other("broken off, as asked"))
        })),
        "/slow" => {
            std::thread::sleep(Duration::from_millis(number("ms", 1_000)));
            Ok(Response::text("slow"))
        }
        "/echo" => {
            let mut body = request.into_body();
            Ok(Response::stream(move |out| io::copy(&mut body, out).map(drop)))
        }
        "/sink" => match io::copy(&mut request.into_body(), &mut io::sink()) {
            Ok(bytes) => Ok(Response::text(bytes.to_string())),
            Err(why) => Err(Response::text(why.to_string()).status(500)),
        },
        "/count" => Ok(Response::text((COUNT.fetch_add(1, Ordering::Relaxed) + 1).to_string())),
        "/config" => {
            let lines = config::all().into_iter().map(|(key, value)| format!("{key}={value}\n"));
            Ok(Response::text(lines.collect::<String>()))
        }
        "/out" => outgoing(&request.query_value("url").unwrap_or_default()),
        _ => Ok(Response::text("ok")),
    }
}

fn compute_for_ever() -> ! {
    let mut n = 0_u64;
    loop {
        n = black_box(n.wrapping_add(1));
    }
}

fn allocate_for_ever() -> ! {
    let mut held = Vec::new();
    loop {
        held.push(black_box(vec![1_u8; 1 << 20]));
    }
}

fn outgoing(url: &str) -> Result<Response, Response> {
    let answer =
        get(url).timeout(Duration::from_secs(5)).send().map_err(|why| Response::text(why.to_string()).status(502))?;
    let status = answer.status;
    let body = answer.body.bytes(1 << 20)?;
    Ok(Response::text(format!("{status} {}", String::from_utf8_lossy(&body))))
}
