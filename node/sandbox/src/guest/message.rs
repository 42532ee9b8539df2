//! A message for a guest: `trellis:messaging/handler`, or wasmCloud's `wasmcloud:messaging/handler`.

use std::time::Duration;

use tokio::time::timeout;
use trellis_wire::{Message, Outcome, Reply, Settle};
use wasmtime::Store;

use self::trellis::exports::trellis::messaging::handler as ours;
use self::wasmcloud::exports::wasmcloud::messaging::handler as theirs;
use crate::host::stdio::cut;
use crate::run::Sandbox;
use crate::state::State;

pub(crate) use self::trellis::GuestPre as TrellisPre;
pub(crate) use self::wasmcloud::GuestPre as WasmcloudPre;

/// The longest reason that is kept with a message.
const REASON_BYTES_MAX: usize = 4 * 1024;

mod trellis {
    wasmtime::component::bindgen!({
        path: "../../sdk/wit",
        inline: "package trellis:sandbox; world guest { export trellis:messaging/handler@0.1.0; }",
        world: "trellis:sandbox/guest",
        exports: { default: async },
    });
}

mod wasmcloud {
    wasmtime::component::bindgen!({
        path: "../../sdk/wit",
        inline: "package trellis:sandbox; world guest { export wasmcloud:messaging/handler@0.2.0; }",
        world: "trellis:sandbox/guest",
        exports: { default: async },
    });
}

/// Hands a message to the guest, with all that is known of it.
pub(crate) async fn handle(guest: &TrellisPre<State>, message: Message, mut sandbox: Sandbox) -> Outcome {
    let message = ours::Message {
        subject: message.subject,
        body: message.body.into(),
        headers: message.headers,
        reply_to: message.reply_to,
        id: message.id,
        attempt: message.attempt,
        published_ms: message.published_ms,
        source: std::mem::take(&mut sandbox.source),
    };
    let ended = timeout(sandbox.limits.timeout, call(guest, message, &mut sandbox.store)).await;
    let settle = match sandbox.verdict(ended)? {
        Ok(()) => Settle::Ack,
        Err(ours::Refusal::Retry(retry)) => Settle::Retry {
            after: retry.after_ms.map(Duration::from_millis),
            reason: cut(retry.reason, REASON_BYTES_MAX),
        },
        Err(ours::Refusal::DeadLetter(reason)) => Settle::DeadLetter(cut(reason, REASON_BYTES_MAX)),
        Err(ours::Refusal::Drop(reason)) => Settle::Drop(cut(reason, REASON_BYTES_MAX)),
    };
    Ok(Reply::Settle(settle))
}

async fn call(
    guest: &TrellisPre<State>,
    message: ours::Message,
    store: &mut Store<State>,
) -> wasmtime::Result<Result<(), ours::Refusal>> {
    let guest = guest.instantiate_async(&mut *store).await?;
    store.data().outside.instantiated();
    guest.trellis_messaging_handler().call_handle(store, &message).await
}

/// Hands a message to a guest that was written for wasmCloud. Its plain `err` means: try again after the link's back-off.
pub(crate) async fn handle_wasmcloud(guest: &WasmcloudPre<State>, message: Message, mut sandbox: Sandbox) -> Outcome {
    let message =
        theirs::BrokerMessage { subject: message.subject, body: message.body.into(), reply_to: message.reply_to };
    let ended = timeout(sandbox.limits.timeout, call_wasmcloud(guest, message, &mut sandbox.store)).await;
    let settle = match sandbox.verdict(ended)? {
        Ok(()) => Settle::Ack,
        Err(reason) => Settle::Retry { after: None, reason: cut(reason, REASON_BYTES_MAX) },
    };
    Ok(Reply::Settle(settle))
}

async fn call_wasmcloud(
    guest: &WasmcloudPre<State>,
    message: theirs::BrokerMessage,
    store: &mut Store<State>,
) -> wasmtime::Result<Result<(), String>> {
    let guest = guest.instantiate_async(&mut *store).await?;
    store.data().outside.instantiated();
    guest.wasmcloud_messaging_handler().call_handle_message(store, &message).await
}
