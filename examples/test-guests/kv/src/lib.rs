//! Key-value over HTTP, for the tests of the host. The path is the key; `?store=L` chooses a link by name.
//!
//! | request | what it does |
//! | --- | --- |
//! | `GET /{key}` | the value, or 404 |
//! | `HEAD /{key}` | 200 or 404 |
//! | `PUT /{key}` | writes the body |
//! | `DELETE /{key}` | removes it |
//! | `POST /{key}?by=N` | adds N (1 unless said) and gives the new number |
//! | `GET /?keys` | every key, a line each |
//! | `PATCH /` | the values of the keys in the body, a line each; `-` where there is none |
//! | `POST /?batch` | sets, reads and deletes three keys at once |
//!
//! What the store refuses is a 500 with its words.

use trellis_component::http::{Request, Response};
use trellis_component::keyvalue::{Error, Store};

trellis_component::http!(handle);

fn handle(request: Request) -> Response {
    answer(request).unwrap_or_else(|why| Response::text(format!("{why:?}")).status(500))
}

fn answer(request: Request) -> Result<Response, Error> {
    let store = Store::open(&request.query_value("store").unwrap_or_default())?;
    let key = request.path().trim_start_matches('/').to_owned();
    match (request.method(), key.as_str()) {
        ("GET", "") => keys(&store),
        ("POST", "") => batch(&store),
        ("PATCH", "") => many(&store, &String::from_utf8_lossy(&bytes(request)?)),
        ("GET", key) => Ok(match store.get(key)? {
            Some(value) => Response::new(200).body(value),
            None => Response::new(404),
        }),
        ("HEAD", key) => Ok(Response::new(if store.exists(key)? { 200 } else { 404 })),
        ("PUT", key) => {
            store.set(key, bytes(request)?)?;
            Ok(Response::new(204))
        }
        ("DELETE", key) => store.delete(key).map(|()| Response::new(204)),
        ("POST", key) => {
            let by = request.query_value("by").and_then(|by| by.parse().ok()).unwrap_or(1);
            Ok(Response::text(store.increment(key, by)?.to_string()))
        }
        _ => Ok(Response::new(405)),
    }
}

fn bytes(request: Request) -> Result<Vec<u8>, Error> {
    request.bytes(32 << 20).map_err(|why| Error::Other(why.to_string()))
}

fn many(store: &Store, keys: &str) -> Result<Response, Error> {
    let values = store.get_many(&keys.lines().collect::<Vec<_>>())?;
    let line = |value: Option<Vec<u8>>| value.map_or("-".into(), |v| String::from_utf8_lossy(&v).into_owned()) + "\n";
    Ok(Response::text(values.into_iter().map(line).collect::<String>()))
}

fn keys(store: &Store) -> Result<Response, Error> {
    let keys: Result<String, Error> = store.keys().map(|key| Ok(key? + "\n")).collect();
    keys.map(Response::text)
}

fn batch(store: &Store) -> Result<Response, Error> {
    store.set_many(&[("batch-a", b"1"), ("batch-b", b"2"), ("batch-c", b"3")])?;
    let before = store.get_many(&["batch-c", "batch-none", "batch-a"])?;
    store.delete_many(&["batch-a", "batch-b", "batch-c"])?;
    let after = store.get_many(&["batch-a", "batch-b", "batch-c"])?;
    let text = |values: Vec<Option<Vec<u8>>>| -> String {
        let each =
            values.into_iter().map(|value| value.map_or("-".into(), |v| String::from_utf8_lossy(&v).into_owned()));
        each.collect::<Vec<_>>().join(" ")
    };
    Ok(Response::text(format!("{} / {}", text(before), text(after))))
}
