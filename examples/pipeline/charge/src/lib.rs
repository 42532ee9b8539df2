//! Charges each order at the payment service, which is slow and takes few requests at a time. A message of the queue
//! `charges` wakes it.
//!
//! The same message may come twice: a queue gives out again what a node was working on when it died. The service is told
//! the order's number as the key of the request, and charges nothing twice under one key.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use trellis_component::http::post;
use trellis_component::messaging::{Message, Refusal};
use trellis_component::{config, log, secrets};

trellis_component::messages!(on_message);

/// How long the service may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// When to ask again what the service had no room for.
const AGAIN: Duration = Duration::from_millis(500);

#[derive(Deserialize, Serialize)]
struct Charge {
    number: u64,
    customer: String,
    cents: u64,
}

fn on_message(message: Message) -> Result<(), Refusal> {
    let charge: Charge = message.json()?;
    let number = charge.number;
    // `?` on any error: again, after the link's back-off.
    let request = post(config::required("payment_url")?, message.body.clone())
        .header("content-type", "application/json")
        .header("idempotency-key", number.to_string())
        .header("authorization", format!("Bearer {}", secrets::get("payment-key")?.reveal()))
        .timeout(PATIENCE);
    match request.send()?.status {
        200 => {
            log::info!("order {number}: charged {} cents, attempt {}", charge.cents, message.attempt);
            Ok(())
        }
        402 => Err(Refusal::dead_letter(format!("order {number} was declined"))),
        429 => Err(Refusal::retry_after(AGAIN, "the payment service has no room now")),
        status => Err(Refusal::retry(format!("the payment service answered {status}"))),
    }
}
