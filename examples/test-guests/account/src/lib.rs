//! Settles each message as its body says and keeps account of it, for the torture of brokers. A body is a word and a
//! number, N; the header `lane` says in whose order it is, if in any. See [`act`] for the words.
//!
//! | key | what it holds |
//! | --- | --- |
//! | `seen/N` | how often a sandbox began with it |
//! | `done/N` | how often one came to an end with it that is ok |
//! | `lane/L` | the latest message of a lane that was begun |
//! | `late/L` | how often one of the lane began or ended after a later one had begun |
//! | `nap/N` | from when to when one napped with it, in milliseconds of the clock |

use std::time::{Duration, SystemTime};

use trellis_component::keyvalue::{Error, Store};
use trellis_component::messaging::{Message, Refusal};

/// Long enough that those overlap which may.
const NAP: Duration = Duration::from_millis(100);

trellis_component::messages!(on_message);

fn on_message(message: Message) -> Result<(), Refusal> {
    let body = message.text();
    let parts = body.split_once(' ').and_then(|(word, n)| Some((word, n.parse().ok()?)));
    let (word, n) = parts.ok_or_else(|| Refusal::dead_letter("the body is no word and number"))?;
    let store = Store::open_default()?;
    store.increment(&format!("seen/{n}"), 1)?;
    let lane = message.header("lane").filter(|lane| !lane.is_empty());
    let watch = || lane.map_or(Ok(()), |lane| watch_order(&store, lane, n));
    watch()?;
    if word == "nap" {
        nap(&store, n)?;
    }
    act(word, message.attempt)?;
    watch()?;
    store.increment(&format!("done/{n}"), 1)?;
    Ok(())
}

/// `retry-twice` refuses two attempts and takes the third; `sleep` takes longer than it may. Any other word is ok, `nap` after
/// a while.
fn act(word: &str, attempt: u32) -> Result<(), Refusal> {
    match word {
        "retry-twice" if attempt <= 2 => return Err(Refusal::retry_after(Duration::from_millis(50), "not yet")),
        "dead-letter" => return Err(Refusal::dead_letter("as asked")),
        "drop" => return Err(Refusal::drop("as asked")),
        "trap" => panic!("as asked"),
        "loop" => loop {
            std::hint::black_box(0);
        },
        "sleep" => std::thread::sleep(Duration::from_secs(600)),
        _ => {}
    }
    Ok(())
}

fn nap(store: &Store, n: u64) -> Result<(), Error> {
    let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis());
    let began = now();
    std::thread::sleep(NAP);
    store.set(&format!("nap/{n}"), format!("{began} {}", now()))
}

fn watch_order(store: &Store, lane: &str, n: u64) -> Result<(), Error> {
    let key = format!("lane/{lane}");
    let latest = store.get(&key)?.and_then(|text| String::from_utf8(text).ok()?.parse().ok()).unwrap_or(0);
    if n > latest {
        store.set(&key, n.to_string())?;
    } else if n < latest {
        store.increment(&format!("late/{lane}"), 1)?;
    }
    Ok(())
}
