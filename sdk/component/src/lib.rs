//! Write a Trellis component in Rust: you write one function, and it runs in a fresh sandbox for each event.
//!
//! # An HTTP function
//!
//! ```
//! use trellis_component::http::{IntoResponse, Request, Response};
//!
//! trellis_component::http!(handle);
//!
//! fn handle(request: Request) -> impl IntoResponse {
//!     match (request.method(), request.path()) {
//!         ("GET", "/") => Response::text("hello"),
//!         _ => Response::text("there is only /").status(404),
//!     }
//! }
//! ```
//!
//! # A function that messages wake
//!
//! `Ok` takes the message off. An error says what to do instead: try again, put it aside for someone to look at, or
//! forget it. `?` on any error means: try again, after the link's back-off.
//!
//! ```
//! use trellis_component::keyvalue::Store;
//! use trellis_component::log;
//! use trellis_component::messaging::{Message, Refusal};
//!
//! trellis_component::messages!(on_message);
//!
//! fn on_message(message: Message) -> Result<(), Refusal> {
//!     let Ok(order) = std::str::from_utf8(&message.body) else {
//!         return Err(Refusal::dead_letter("the body is no text"));
//!     };
//!     let count = Store::open_default()?.increment("orders", 1)?;
//!     log::info!("order {order} is number {count}");
//!     Ok(())
//! }
//! ```
//!
//! # A function that is run by hand or by a timer
//!
//! ```
//! trellis_component::run!(greet);
//!
//! fn greet(arguments: Vec<String>) -> Result<(), String> {
//!     let name = arguments.first().ok_or("whom to greet? pass a name")?;
//!     println!("hello {name}");
//!     Ok(())
//! }
//! ```
//!
//! # What it may use
//!
//! | module | for | needs in the manifest |
//! | --- | --- | --- |
//! | [`http`] | answering requests, and making them | a link from, or to, an http provider |
//! | [`messaging`] | taking messages, publishing, requests with an answer | a link with a messaging provider |
//! | [`keyvalue`] | what must outlive the event | a link to a key-value provider |
//! | [`config`](mod@config) | the component's `config` | nothing |
//! | [`secrets`] | the component's `secrets` | nothing |
//! | [`log`] | lines in the node's log | nothing |
//!
//! A component imports only what it uses: without a call into [`keyvalue`] it asks for no key-value link. What it uses
//! without a link is refused at deploy, and the message shows the link to write.
//!
//! # Building
//!
//! ```toml
//! [lib]
//! crate-type = ["cdylib"]
//! ```
//!
//! `cargo build --release --target wasm32-wasip2` makes a component; `rustup target add wasm32-wasip2` adds the target
//! once. Nothing is kept between two events but what is stored: a `static` begins anew each time.
//!
//! # Features
//!
//! `json`: bodies and values as JSON, through `serde`.
//!
//! # Without the macros
//!
//! [`bindings`] has what wit-bindgen makes of the interfaces, for what the macros do not offer.

// The macros below expand in other crates and, for doc tests, here; both find this crate under one name.
extern crate self as trellis_component;

pub mod bindings;
pub mod config;
pub mod http;
pub mod keyvalue;
pub mod log;
pub mod messaging;
mod run;
pub mod secrets;

#[doc(hidden)]
pub use run::run as __run;
#[doc(hidden)]
pub use wit_bindgen::rt;

/// Wakes `$handle` for each HTTP request: `fn(Request) -> impl IntoResponse`. See [`http`].
#[macro_export]
macro_rules! http {
    ($handle:path) => {
        const _: () = {
            struct Component;

            impl $crate::bindings::http::Guest for Component {
                fn handle(
                    request: $crate::bindings::http::types::IncomingRequest,
                    response: $crate::bindings::http::types::ResponseOutparam,
                ) {
                    $crate::http::__answer(request, response, $handle);
                }
            }

    $crate::bindings::http::export_http!(Component with_types_in $crate::bindings::http);
        };
    };
}

/// Wakes `$on_message` for each message: `fn(Message) -> Result<(), Refusal>`. See [`messaging`].
#[macro_export]
macro_rules! messages {
    ($on_message:path) => {
        const _: () = {
            struct Component;

            impl $crate::bindings::messaging::Guest for Component {
                fn handle(
                    message: $crate::bindings::messaging::types::Message,
                ) -> Result<(), $crate::bindings::messaging::types::Refusal> {
                    $crate::messaging::__handle(message, $on_message)
                }
            }

    $crate::bindings::messaging::export_messaging!(Component with_types_in $crate::bindings::messaging);
        };
    };
}

/// Runs `$main` with the arguments of a run: `fn(Vec<String>) -> Result<(), impl Display>`. What it prints is kept; an
/// error is printed to standard error and ends the run as failed.
#[macro_export]
macro_rules! run {
    ($main:path) => {
        const _: () = {
            struct Component;

            impl $crate::bindings::run::Guest for Component {
                fn run() -> Result<(), ()> {
                    $crate::__run($main)
                }
            }

    $crate::bindings::run::export_run!(Component with_types_in $crate::bindings::run);
        };
    };
}
