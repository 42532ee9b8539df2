//! Settles each message as its body says, through `trellis:messaging`, for the tests of the host. See [`act`] for the
//! words. What came is written first: `seen/{body}` counts deliveries of a body, `last/{body}` holds subject, attempt
//! and headers of the latest, `about/{body}` what else is known of it, `tick/{time}` counts starts of a timer's tick. In keys,
//! `-` stands for whatever is no letter or digit: NATS takes few characters.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use trellis_component::keyvalue::Store;
use trellis_component::messaging::{Message, OutMessage, Refusal, publish, request};

trellis_component::messages!(on_message);

/// Messages that this sandbox had.
static HAD: AtomicU32 = AtomicU32::new(0);

fn on_message(message: Message) -> Result<(), Refusal> {
    let store = Store::open_default()?;
    let body = message.text();
    store.increment(&key("seen", &body), 1)?;
    if let Some(time) = message.header("trellis-tick-time") {
        store.increment(&key("tick", time), 1)?;
    }
    let headers: Vec<String> = message.headers.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let seen = format!("{} attempt={} {}", message.subject, message.attempt, headers.join(" "));
    store.set(&key("last", &body), seen.trim_end())?;
    let (had, published_ms) = (HAD.fetch_add(1, Ordering::Relaxed), message.published_ms.unwrap_or_default());
    store.set(&key("about", &body), format!("source={} published_ms={published_ms} had={had}", message.source))?;
    act(&store, &message, &body)
}

fn key(of: &str, text: &str) -> String {
    format!("{of}/{}", text.replace(|c: char| !c.is_ascii_alphanumeric(), "-"))
}

/// The first word of the body: `retry-twice` refuses two attempts and takes the third; `publish S` publishes `from
/// {subject}` on S; `publish-then-trap S` does so and traps; `request S` asks on S and stores the answer; `answer`
/// answers whoever asked; `charge-once` acts as DELIVERY.md has it; `sleep N` takes N ms; `turn N` does so and stores which of its
/// subject's it was, as `turn/{body}`; `memory` asks for more and more of it. Any other word is ok.
fn act(store: &Store, message: &Message, body: &str) -> Result<(), Refusal> {
    let (word, rest) = body.split_once(' ').unwrap_or((body, ""));
    let out = || OutMessage::new(rest, format!("from {}", message.subject)).header("by", "messages");
    match word {
        "retry" => return Err(Refusal::retry("as asked")),
        "retry-soon" => return Err(Refusal::retry_after(Duration::from_millis(50), "as asked")),
        "retry-twice" if message.attempt <= 2 => {
            return Err(Refusal::retry_after(Duration::from_millis(50), "not yet"));
        }
        "dead-letter" => return Err(Refusal::dead_letter("as asked")),
        "drop" => return Err(Refusal::drop("as asked")),
        "trap" => panic!("as asked"),
        "loop" => loop {
            std::hint::black_box(0);
        },
        "memory" => {
            let mut all = Vec::new();
            loop {
                all.push(std::hint::black_box(vec![1_u8; 1 << 20]));
            }
        }
        "publish" => publish(out())?,
        "publish-then-trap" => {
            publish(out())?;
            panic!("after the publish");
        }
        "request" => {
            let answer = request(OutMessage::new(rest, "answer"), Duration::from_secs(5))?;
            store.set(&key("answer", rest), answer.body)?;
        }
        "charge-once" => once(store, message)?,
        "answer" => message.answer(format!("answer to {}", message.subject))?,
        "turn" => {
            let turn = store.increment(&key("turns", &message.subject), 1)?;
            std::thread::sleep(Duration::from_millis(rest.parse().unwrap_or(100)));
            store.set(&key("turn", body), turn.to_string())?;
        }
        "sleep" => std::thread::sleep(Duration::from_millis(rest.parse().unwrap_or(100))),
        _ => {}
    }
    Ok(())
}

/// Acts outside once, however often the message comes.
fn once(store: &Store, message: &Message) -> Result<(), Refusal> {
    let done = key("done", &message.id);
    if store.exists(&done)? {
        return Ok(()); // an earlier attempt came to its end
    }
    // Read and written in one step: of all attempts, on whatever nodes, exactly one gets 1. Who gets more may repeat what
    // an earlier one began, and does so under the same id.
    let attempt = store.increment(&key("begun", &message.id), 1)?;
    charge(store, message, attempt)?;
    store.set(&done, "1")?;
    Ok(())
}

/// Stands for a service that takes the id as its key, and whose first answer is not heard.
fn charge(store: &Store, message: &Message, attempt: u64) -> Result<(), Refusal> {
    store.set(&key("charged", &message.text()), format!("attempt {attempt}"))?;
    assert!(attempt > 1, "the answer got lost");
    Ok(())
}
