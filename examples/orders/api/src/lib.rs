//! Takes orders over HTTP: checks them, stores them, and says on `orders.placed` that they are there.
//!
//! | request | answer |
//! | --- | --- |
//! | `POST /orders` | 201 and the order with its number, or 400 and what is wrong with it |
//! | `GET /orders/{number}` | the order, with its invoice once there is one |
//! | `GET /orders` | the numbers of all orders, and how many there are |
//! | `GET /health` | 200 while the store answers |

use serde::{Deserialize, Serialize};
use trellis_component::http::{Request, Response};
use trellis_component::keyvalue::Store;
use trellis_component::log;
use trellis_component::messaging::{OutMessage, publish};

trellis_component::http!(handle);

/// Largest order taken, in bytes of JSON.
const ORDER_BYTES_MAX: usize = 64 * 1024;
/// Most lines of one order.
const LINES_MAX: usize = 100;

/// An order as a customer sends it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewOrder {
    customer: String,
    lines: Vec<Line>,
}

/// One line of an order.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    article: String,
    quantity: u32,
    /// Price of one piece, in cents.
    price_cents: u64,
}

/// An order as it is stored under `order/{number}` and published.
#[derive(Serialize, Deserialize)]
struct Order {
    number: u64,
    customer: String,
    lines: Vec<Line>,
}

/// What `orders-invoice` makes of an order; only shown here.
#[derive(Serialize, Deserialize)]
struct Invoice {
    total_cents: u64,
    currency: String,
}

fn handle(request: Request) -> Result<Response, Response> {
    match (request.method(), request.path()) {
        ("POST", "/orders") => place(request),
        ("GET", "/orders") => list(),
        ("GET", "/health") => health(),
        ("GET", path) => match path.strip_prefix("/orders/").map(str::parse) {
            Some(Ok(number)) => show(number),
            Some(Err(_)) => Err(problem(400, "an order's number is a number, as in /orders/7")),
            None => Err(problem(404, "there is /orders, /orders/{number} and /health")),
        },
        (_, "/orders") => Err(problem(405, "orders are listed by GET and placed by POST").header("allow", "GET, POST")),
        _ => Err(problem(404, "there is /orders, /orders/{number} and /health")),
    }
}

/// Stores the order before it is published, so that whoever hears of it finds it.
fn place(request: Request) -> Result<Response, Response> {
    let new: NewOrder = request.json(ORDER_BYTES_MAX)?;
    check(&new).map_err(|why| problem(400, &why))?;
    let store = Store::open_default()?;
    // One step, however many sandboxes count at the same time: each order has a number of its own.
    let number = store.increment("orders", 1)?;
    let order = Order { number, customer: new.customer, lines: new.lines };
    store.set_json(&format!("order/{number}"), &order)?;
    publish(OutMessage::json("orders.placed", &order)?)?;
    log::info!("order {number} of {} with {} lines", order.customer, order.lines.len());
    Ok(Response::json(&order).status(201).header("location", format!("/orders/{number}")))
}

fn check(order: &NewOrder) -> Result<(), String> {
    if order.customer.trim().is_empty() {
        return Err("`customer` is empty".into());
    }
    if order.lines.is_empty() || order.lines.len() > LINES_MAX {
        return Err(format!("an order has 1 to {LINES_MAX} lines; this one has {}", order.lines.len()));
    }
    match order.lines.iter().position(|line| line.quantity == 0 || line.article.trim().is_empty()) {
        Some(i) => Err(format!("line {} has no article or no quantity", i + 1)),
        None => Ok(()),
    }
}

fn show(number: u64) -> Result<Response, Response> {
    #[derive(Serialize)]
    struct Shown {
        #[serde(flatten)]
        order: Order,
        invoice: Option<Invoice>,
    }

    let store = Store::open_default()?;
    let order = store.get_json(&format!("order/{number}"))?;
    let order: Order = order.ok_or_else(|| problem(404, &format!("there is no order {number}")))?;
    let invoice = store.get_json(&format!("invoice/{number}"))?;
    Ok(Response::json(&Shown { order, invoice }))
}

fn list() -> Result<Response, Response> {
    #[derive(Serialize)]
    struct Listed {
        count: usize,
        orders: Vec<u64>,
    }

    let mut orders = Vec::new();
    for key in Store::open_default()?.keys() {
        if let Some(number) = key?.strip_prefix("order/") {
            orders.extend(number.parse::<u64>());
        }
    }
    // Keys are ordered as text, where 10 comes before 9.
    orders.sort_unstable();
    Ok(Response::json(&Listed { count: orders.len(), orders }))
}

fn health() -> Result<Response, Response> {
    Store::open_default()?.exists("orders")?;
    Ok(Response::text("ok\n"))
}

/// `{"error": "..."}`.
fn problem(status: u16, text: &str) -> Response {
    #[derive(Serialize)]
    struct Problem<'a> {
        error: &'a str,
    }

    Response::json(&Problem { error: text }).status(status)
}
