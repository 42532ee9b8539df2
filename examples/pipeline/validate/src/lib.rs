//! Checks each order, takes its coupon off, and passes it on to be charged. A message of the queue `orders` wakes it.
//!
//! What it publishes leaves only when it has said ok, so an order that it refuses is never charged.

use serde::{Deserialize, Serialize};
use trellis_component::config;
use trellis_component::messaging::{Message, OutMessage, Refusal, publish};

trellis_component::messages!(on_message);

#[derive(Deserialize)]
struct Order {
    number: u64,
    customer: String,
    cents: u64,
    coupon: Option<String>,
}

/// What `charge` is woken with.
#[derive(Serialize)]
struct Charge {
    number: u64,
    customer: String,
    cents: u64,
}

fn on_message(message: Message) -> Result<(), Refusal> {
    // What is no order now will be none at the next attempt: to the dead letters, where someone can look at it.
    let Order { number, customer, cents, coupon } = message.json()?;
    if customer.trim().is_empty() {
        return Err(Refusal::dead_letter(format!("order {number} has no customer")));
    }
    let off = coupon.map_or(Ok(0), |coupon| discount(&coupon, cents))?;
    publish(OutMessage::json("charges", &Charge { number, customer, cents: cents - off })?)?;
    Ok(())
}

/// A coupon takes one part in so many off: the config `coupon.SPRING: "10"` is a tenth.
fn discount(coupon: &str, cents: u64) -> Result<u64, Refusal> {
    let parts = config::get(&format!("coupon.{coupon}"));
    let parts: Option<u64> = parts.and_then(|parts| parts.parse().ok());
    let parts = parts.ok_or_else(|| Refusal::dead_letter(format!("there is no coupon `{coupon}`")))?;
    // Nobody thought of a coupon of no parts. The README shows what becomes of its orders.
    Ok(cents / parts)
}
