//! A guest of WASI 0.2 that does, by path, subject or argument, whatever a test asks for.

use std::cell::Cell;
use std::io::Write;

use exports::trellis::messaging::handler::{Guest as Handler, Message, Refusal};
use exports::wasi::cli0_2_12::run::Guest as Run;
use exports::wasi::http0_2_12::incoming_handler::Guest as Incoming;
use trellis::messaging::producer::{self, OutMessage};
use trellis::messaging::types::Retry;
use wasi::http0_2_12::types::{
    Fields, IncomingRequest, Method, OutgoingBody, OutgoingRequest, OutgoingResponse, ResponseOutparam, Scheme,
};
use wasi::keyvalue::{atomics, batch, store};

wit_bindgen::generate!({
    path: "../../../../../sdk/wit",
    inline: "
        package test:guest;
        world classic {
            include trellis:guest/imports@0.1.0;
            export wasi:http/incoming-handler@0.2.12;
            export trellis:messaging/handler@0.1.0;
            export wasi:cli/run@0.2.12;
        }",
    world: "test:guest/classic",
    generate_all,
});

struct Guest;
export!(Guest);

thread_local! {
    static RUNS: Cell<u32> = const { Cell::new(0) };
}

static mut SCRIBBLED: [u8; 100_000] = [0; 100_000];

impl Incoming for Guest {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let path = request.path_with_query().unwrap_or_default();
        match path.as_str() {
            "/hello" => respond(out, "hello"),
            "/echo" => {
                let body = request.consume().unwrap();
                let stream = body.stream().unwrap();
                let mut bytes = Vec::new();
                while let Ok(chunk) = stream.blocking_read(4096) {
                    bytes.extend(chunk);
                }
                respond(out, &String::from_utf8(bytes).unwrap());
            }
            "/scribble" => respond(out, &scribble()),
            "/loop" => loop {
                std::hint::black_box(());
            },
            "/sleep" => wasi::clocks0_2_12::monotonic_clock::subscribe_duration(3_600_000_000_000).block(),
            "/grow" => {
                let mut all = Vec::new();
                loop {
                    all.push(vec![1_u8; 1 << 20]);
                    std::hint::black_box(&all);
                }
            }
            "/panic" => panic!("the oven is cold"),
            "/exit" => wasi::cli0_2_12::exit::exit(Err(())),
            "/silent" => {}
            "/refuse" => ResponseOutparam::set(out, Err(wasi::http0_2_12::types::ErrorCode::ConfigurationError)),
            "/break" => {
                let (_body, stream) = begin(out, None);
                stream.blocking_write_and_flush(b"half").unwrap();
                panic!("broke after the head");
            }
            "/break-after-a-while" => {
                let (_body, stream) = begin(out, None);
                stream.blocking_write_and_flush(b"half").unwrap();
                wasi::clocks0_2_12::monotonic_clock::subscribe_duration(50_000_000).block();
                panic!("broke after the head");
            }
            "/twice" => twice(out),
            "/drop" => {
                let (body, stream) = begin(out, None);
                stream.blocking_write_and_flush(b"half").unwrap();
                drop(stream);
                drop(body);
            }
            "/stream" => stream(out),
            "/after" => {
                respond(out, "answered");
                wasi::clocks0_2_12::monotonic_clock::subscribe_duration(50_000_000).block();
                log("worked on after the answer");
            }
            "/keyvalue" => respond(out, &keyvalue().unwrap_or_else(|why| format!("{why:?}"))),
            "/keys" => respond(out, &keys().unwrap_or_else(|why| format!("{why:?}"))),
            "/outgoing" => respond(out, &outgoing()),
            "/config" => {
                let get = |key: &str| wasi::config0_2_0_rc_1::store::get(key).unwrap();
                let all = wasi::config0_2_0_rc_1::store::get_all().unwrap();
                respond(out, &format!("{:?} {:?} {all:?}", get("greeting"), get("empty")));
            }
            "/world" => respond(out, &world()),
            "/log" => {
                log("from the log");
                println!("to stdout");
                eprint!("to stderr");
                respond(out, "logged");
            }
            "/hoard" => {
                let hoard: Vec<Fields> = (0..1_000_000).map(|_| Fields::new()).collect();
                respond(out, &format!("it has {}", hoard.len()));
            }
            "/headers-16" | "/headers-64" => {
                let bytes = if path == "/headers-16" { 16 << 10 } else { 64 << 10 };
                let set = Fields::new().set("x", &[vec![b'x'; bytes]]);
                respond(out, &format!("{set:?}"));
            }
            "/publish" => {
                let message = OutMessage {
                    subject: "orders.new".into(),
                    body: b"1".to_vec(),
                    headers: vec![("a".into(), "b".into())],
                    reply_to: None,
                };
                let published = producer::publish(&message);
                let published_to = producer::publish_to("other", &message);
                let answer = producer::request(&message, 250);
                respond(out, &format!("{published:?} {published_to:?} {answer:?}"));
            }
            other => respond(out, &format!("no such path: {other}")),
        }
    }
}

fn begin(out: ResponseOutparam, length: Option<u64>) -> (OutgoingBody, wasi::io::streams::OutputStream) {
    let headers = Fields::new();
    if let Some(length) = length {
        headers.set("content-length", &[length.to_string().into_bytes()]).unwrap();
    }
    let response = OutgoingResponse::new(headers);
    let body = response.body().unwrap();
    ResponseOutparam::set(out, Ok(response));
    let stream = body.write().unwrap();
    (body, stream)
}

fn respond(out: ResponseOutparam, text: &str) {
    let (body, stream) = begin(out, None);
    for chunk in text.as_bytes().chunks(4096) {
        stream.blocking_write_and_flush(chunk).unwrap();
    }
    drop(stream);
    OutgoingBody::finish(body, None).unwrap();
}

fn log(message: &str) {
    wasi::logging::logging::log(wasi::logging::logging::Level::Info, "guest", message);
}

/// Says what it found of an earlier run, and leaves much behind.
fn scribble() -> String {
    RUNS.set(RUNS.get() + 1);
    let found = unsafe { (*&raw const SCRIBBLED).iter().filter(|byte| **byte != 0).count() };
    unsafe { SCRIBBLED = [7; 100_000] };
    let mut heap = vec![0_u8; 2 << 20];
    heap.fill(9);
    std::mem::forget(std::hint::black_box(heap));
    format!("run {}, {found} bytes scribbled", RUNS.get())
}

/// Answers twice with one parameter, which the types forbid.
fn twice(out: ResponseOutparam) {
    let handle = out.take_handle();
    let again = unsafe { (ResponseOutparam::from_handle(handle), ResponseOutparam::from_handle(handle)) };
    let response = |status| {
        let response = OutgoingResponse::new(Fields::new());
        response.set_status_code(status).unwrap();
        Ok(response)
    };
    ResponseOutparam::set(again.0, response(201));
    ResponseOutparam::set(again.1, response(202));
}

/// Writes 64 MiB and says how far it is.
fn stream(out: ResponseOutparam) {
    let (body, stream) = begin(out, Some(64 << 20));
    let chunk = [b'x'; 4096];
    for mebibyte in 1..=64 {
        for _ in 0..256 {
            stream.blocking_write_and_flush(&chunk).unwrap();
        }
        log(&format!("wrote {mebibyte} MiB"));
    }
    drop(stream);
    OutgoingBody::finish(body, None).unwrap();
    log("wrote all");
}

fn keyvalue() -> Result<String, store::Error> {
    let bucket = store::open("")?;
    let absent = bucket.get("a")?;
    bucket.set("a", b"1")?;
    let set = bucket.get("a")?.map(|value| String::from_utf8_lossy(&value).into_owned());
    let count = atomics::increment(&bucket, "n", 2)?;
    batch::set_many(&bucket, &[("b".into(), b"2".to_vec())])?;
    let many = batch::get_many(&bucket, &["b".into(), "z".into()])?;
    batch::delete_many(&bucket, &["b".into()])?;
    let (a, b) = (bucket.exists("a")?, bucket.exists("b")?);
    bucket.delete("a")?;
    let text = atomics::increment(&bucket, "text", 1);
    Ok(format!("{absent:?} {set:?} {count} {many:?} {a} {b} {text:?}"))
}

fn keys() -> Result<String, store::Error> {
    let bucket = store::open("default")?;
    for key in ["a", "b", "c", "d", "e"] {
        bucket.set(key, b"")?;
    }
    let mut pages = Vec::new();
    let mut cursor = Some(0);
    while let Some(at) = cursor {
        let page = bucket.list_keys(Some(at))?;
        pages.push(page.keys.join(","));
        cursor = page.cursor;
    }
    Ok(pages.join(" | "))
}

fn outgoing() -> String {
    let request = OutgoingRequest::new(Fields::new());
    request.set_method(&Method::Get).unwrap();
    request.set_scheme(Some(&Scheme::Http)).unwrap();
    request.set_authority(Some("example.test")).unwrap();
    request.set_path_with_query(Some("/weather")).unwrap();
    let future = wasi::http0_2_12::outgoing_handler::handle(request, None).unwrap();
    future.subscribe().block();
    match future.get().unwrap().unwrap() {
        Err(code) => format!("{code:?}"),
        Ok(response) => {
            let body = response.consume().unwrap();
            let stream = body.stream().unwrap();
            let mut text = Vec::new();
            while let Ok(chunk) = stream.blocking_read(4096) {
                text.extend(chunk);
            }
            format!("{} {}", response.status(), String::from_utf8(text).unwrap())
        }
    }
}

/// What there is of the world outside.
fn world() -> String {
    let variables = std::env::vars().count();
    let arguments = std::env::args().count();
    let folders = wasi::filesystem0_2_12::preopens::get_directories().len();
    let input = std::io::read_to_string(std::io::stdin()).map_err(|why| why.kind());
    let tcp = std::net::TcpStream::connect("127.0.0.1:80").map(drop).map_err(|why| why.kind());
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").map(drop).map_err(|why| why.kind());
    let name = std::net::ToSocketAddrs::to_socket_addrs("localhost:80").map(|addresses| addresses.count());
    format!("{variables} {arguments} {folders} {input:?} tcp {} udp {} name {}", tcp.is_ok(), udp.is_ok(), name.is_ok())
}

impl Handler for Guest {
    fn handle(message: Message) -> Result<(), Refusal> {
        let text = String::from_utf8_lossy(&message.body).into_owned();
        match message.subject.as_str() {
            "ok" => Ok(()),
            "retry" => Err(Refusal::Retry(Retry { reason: text, after_ms: None })),
            "retry-later" => Err(Refusal::Retry(Retry { reason: text, after_ms: Some(1500) })),
            "dead-letter" => Err(Refusal::DeadLetter(text)),
            "drop" => Err(Refusal::Drop(text)),
            "scribble" => Err(Refusal::Drop(scribble())),
            "describe" => Err(Refusal::Drop(format!("{message:?}"))),
            "trap" => panic!("cannot handle {text}"),
            _ => loop {
                std::hint::black_box(());
            },
        }
    }
}

impl Run for Guest {
    fn run() -> Result<(), ()> {
        let arguments: Vec<String> = std::env::args().collect();
        println!("{}", arguments.join(" "));
        eprintln!("{} variables", std::env::vars().count());
        match arguments.get(1).map(String::as_str) {
            Some("fail") => Err(()),
            Some("exit") => std::process::exit(3),
            Some("panic") => panic!("the run panicked"),
            Some("loop") => loop {
                std::hint::black_box(());
            },
            Some("much") => {
                std::io::stdout().write_all(&vec![b'x'; 3 << 20]).unwrap();
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
