//! Prints what was ordered: `trellis run orders/report`, or `trellis run orders/report -- --top 3`.

use serde::Deserialize;
use trellis_component::keyvalue::Store;

trellis_component::run!(main);

/// What is needed of an invoice.
#[derive(Deserialize)]
struct Invoice {
    total_cents: u64,
}

fn main(arguments: Vec<String>) -> Result<(), String> {
    let top = top(&arguments)?;
    let store = Store::open_default().map_err(|why| why.to_string())?;
    let mut invoices = invoices(&store).map_err(|why| why.to_string())?;
    let total: u64 = invoices.iter().map(|(_, cents)| cents).sum();
    println!("{} invoices, {}.{:02} in all", invoices.len(), total / 100, total % 100);
    invoices.sort_unstable_by_key(|(number, cents)| (std::cmp::Reverse(*cents), *number));
    for (number, cents) in invoices.iter().take(top) {
        println!("order {number}: {}.{:02}", cents / 100, cents % 100);
    }
    Ok(())
}

/// How many orders to print: none, unless `--top N` says so.
fn top(arguments: &[String]) -> Result<usize, String> {
    match arguments {
        [] => Ok(0),
        [flag, number] if flag == "--top" => number.parse().map_err(|_| format!("`{number}` is no number of orders")),
        _ => Err("usage: report [--top N]".into()),
    }
}

/// Number and total of every invoice.
fn invoices(store: &Store) -> Result<Vec<(u64, u64)>, trellis_component::keyvalue::Error> {
    let mut invoices = Vec::new();
    for key in store.keys() {
        let key = key?;
        let Some(Ok(number)) = key.strip_prefix("invoice/").map(str::parse) else { continue };
        if let Some(Invoice { total_cents }) = store.get_json(&key)? {
            invoices.push((number, total_cents));
        }
    }
    Ok(invoices)
}
