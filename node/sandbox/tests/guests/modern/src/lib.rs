//! A guest of WASI 0.3 that does, by path or argument, whatever a test asks for.

use std::cell::Cell;

use exports::wasi::cli0_3_0::run::Guest as Run;
use exports::wasi::http0_3_0::handler::Guest as Handler;
use wasi::http0_3_0::client;
use wasi::http0_3_0::types::{ErrorCode, Fields, Method, Request, Response, Scheme};

wit_bindgen::generate!({
    path: "../../../../../sdk/wit",
    inline: "
        package test:guest;
        world modern {
            include trellis:guest/http-async@0.1.0;
            import wasi:cli/environment@0.3.0;
            export wasi:cli/run@0.3.0;
        }",
    world: "test:guest/modern",
    generate_all,
});

struct Guest;
export!(Guest);

thread_local! {
    static RUNS: Cell<u32> = const { Cell::new(0) };
}

static mut SCRIBBLED: [u8; 100_000] = [0; 100_000];

impl Handler for Guest {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let path = request.get_path_with_query().unwrap_or_default();
        match path.as_str() {
            "/hello" => Ok(respond(b"hello".to_vec(), 1, After::Done)),
            "/echo" => {
                let (_, done) = wit_future::new(|| Ok(()));
                let (body, trailers) = Request::consume_body(request, done);
                Ok(Response::new(Fields::new(), Some(body), trailers).0)
            }
            "/scribble" => Ok(respond(scribble().into_bytes(), 1, After::Done)),
            "/loop" => loop {
                std::hint::black_box(());
            },
            "/sleep" => {
                wasi::clocks0_3_0::monotonic_clock::wait_for(3_600_000_000_000).await;
                Err(ErrorCode::LoopDetected)
            }
            "/grow" => {
                let mut all = Vec::new();
                loop {
                    all.push(vec![1_u8; 1 << 20]);
                    std::hint::black_box(&all);
                }
            }
            "/panic" => panic!("the oven is cold"),
            "/refuse" => Err(ErrorCode::ConfigurationError),
            "/break" => Ok(respond(b"half".to_vec(), 1, After::Panic)),
            "/stream" => Ok(respond(vec![b'x'; 1 << 20], 64, After::Done)),
            "/after" => Ok(respond(b"answered".to_vec(), 1, After::Work)),
            "/outgoing" => Ok(respond(outgoing().await.into_bytes(), 1, After::Done)),
            "/keyvalue" => {
                let bucket = wasi::keyvalue::store::open("").unwrap();
                let count = wasi::keyvalue::atomics::increment(&bucket, "n", 2);
                Ok(respond(format!("{count:?}").into_bytes(), 1, After::Done))
            }
            other => Ok(respond(format!("no such path: {other}").into_bytes(), 1, After::Done)),
        }
    }
}

enum After {
    Done,
    Panic,
    Work,
}

fn log(message: &str) {
    wasi::logging::logging::log(wasi::logging::logging::Level::Info, "guest", message);
}

/// Answers at once and writes the body behind it.
fn respond(chunk: Vec<u8>, times: usize, after: After) -> Response {
    let (mut body, reader) = wit_stream::new();
    let (trailers, trailers_reader) = wit_future::new(|| Ok(None));
    let (response, _) = Response::new(Fields::new(), Some(reader), trailers_reader);
    wit_bindgen::spawn_local(async move {
        for i in 1..=times {
            body.write_all(chunk.clone()).await;
            log(&format!("wrote {i} MiB"));
        }
        if matches!(after, After::Panic) {
            panic!("broke after the head");
        }
        drop(body);
        drop(trailers.write(Ok(None)).await);
        if matches!(after, After::Work) {
            wasi::clocks0_3_0::monotonic_clock::wait_for(50_000_000).await;
            log("worked on after the answer");
        }
    });
    response
}

/// Says what it finds of earlier runs, and leaves something to be found.
fn scribble() -> String {
    RUNS.set(RUNS.get() + 1);
    let found = unsafe { (*&raw const SCRIBBLED).iter().filter(|byte| **byte != 0).count() };
    unsafe { SCRIBBLED = [7; 100_000] };
    let mut heap = vec![0_u8; 2 << 20];
    heap.fill(9);
    std::mem::forget(std::hint::black_box(heap));
    format!("run {}, {found} bytes scribbled", RUNS.get())
}

async fn outgoing() -> String {
    let (_, trailers) = wit_future::new(|| Ok(None));
    let (request, _) = Request::new(Fields::new(), None, trailers, None);
    request.set_method(&Method::Get).unwrap();
    request.set_scheme(Some(&Scheme::Http)).unwrap();
    request.set_authority(Some("example.test")).unwrap();
    request.set_path_with_query(Some("/weather")).unwrap();
    match client::send(request).await {
        Err(code) => format!("{code:?}"),
        Ok(response) => {
            let status = response.get_status_code();
            let (_, done) = wit_future::new(|| Ok(()));
            let (body, _) = Response::consume_body(response, done);
            format!("{status} {}", String::from_utf8(body.collect().await).unwrap())
        }
    }
}

impl Run for Guest {
    async fn run() -> Result<(), ()> {
        let arguments = wasi::cli0_3_0::environment::get_arguments();
        println!("{}", arguments.join(" "));
        match arguments.get(1).map(String::as_str) {
            Some("fail") => Err(()),
            Some("sleep") => {
                wasi::clocks0_3_0::monotonic_clock::wait_for(3_600_000_000_000).await;
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
