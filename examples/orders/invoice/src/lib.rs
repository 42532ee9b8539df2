//! Writes an invoice for each order that is placed. A message on `orders.placed` wakes it.
//!
//! The same message may come twice: a broker delivers again what a node was handling when it died. So the invoice is
//! stored under the order's number, and writing it again changes nothing.

use serde::{Deserialize, Serialize};
use trellis_component::keyvalue::Store;
use trellis_component::messaging::{Message, Refusal};
use trellis_component::{config, log};

trellis_component::messages!(on_message);

/// What is needed of an order.
#[derive(Deserialize)]
struct Order {
    number: u64,
    lines: Vec<Line>,
}

#[derive(Deserialize)]
struct Line {
    quantity: u32,
    price_cents: u64,
}

/// What is stored under `invoice/{number}`.
#[derive(Serialize)]
struct Invoice {
    total_cents: u64,
    currency: String,
}

fn on_message(message: Message) -> Result<(), Refusal> {
    // What is no order now will be none later: to the dead letters, where someone can look at it.
    let order: Order = message.json()?;
    let total_cents = total_cents(&order).ok_or_else(|| Refusal::dead_letter("the total is beyond 64 bits"))?;
    let currency = config::get("currency").unwrap_or_else(|| "EUR".into());
    log::info!("order {}: {total_cents} cents {currency}, attempt {}", order.number, message.attempt);
    // A store that is not there now may be there in a moment: `?` tries the message again.
    Store::open_default()?.set_json(&format!("invoice/{}", order.number), &Invoice { total_cents, currency })?;
    Ok(())
}

fn total_cents(order: &Order) -> Option<u64> {
    order
        .lines
        .iter()
        .try_fold(0_u64, |total, line| total.checked_add(line.price_cents.checked_mul(line.quantity.into())?))
}
