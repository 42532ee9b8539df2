//! Lines in the node's log, each with the component and the event it belongs to.
//!
//! ```
//! # fn f(id: u32) {
//! trellis_component::log::info!("order {id} is placed");
//! trellis_component::log::warn!("order {id} has no lines");
//! # }
//! ```
//!
//! The module that speaks is noted with the line. What is printed with `println!` and `eprintln!` reaches the log too,
//! without a level.

pub use crate::bindings::log::logging::Level;
#[doc(inline)]
pub use crate::{
    __log_critical as critical, __log_debug as debug, __log_error as error, __log_info as info, __log_trace as trace,
    __log_warn as warn,
};

/// Writes one line. `context` says which part of the component speaks; it may be empty.
pub fn log(level: Level, context: &str, message: &str) {
    crate::bindings::log::logging::log(level, context, message);
}

/// A step on the way.
#[doc(hidden)]
#[macro_export]
macro_rules! __log_trace {
    ($($text:tt)+) => { $crate::log::log($crate::log::Level::Trace, module_path!(), &format!($($text)+)) };
}

/// For whoever debugs the component.
#[doc(hidden)]
#[macro_export]
macro_rules! __log_debug {
    ($($text:tt)+) => { $crate::log::log($crate::log::Level::Debug, module_path!(), &format!($($text)+)) };
}

/// For whoever runs it.
#[doc(hidden)]
#[macro_export]
macro_rules! __log_info {
    ($($text:tt)+) => { $crate::log::log($crate::log::Level::Info, module_path!(), &format!($($text)+)) };
}

/// Something is odd.
#[doc(hidden)]
#[macro_export]
macro_rules! __log_warn {
    ($($text:tt)+) => { $crate::log::log($crate::log::Level::Warn, module_path!(), &format!($($text)+)) };
}

/// Something failed.
#[doc(hidden)]
#[macro_export]
macro_rules! __log_error {
    ($($text:tt)+) => { $crate::log::log($crate::log::Level::Error, module_path!(), &format!($($text)+)) };
}

/// Something failed and nothing after it can go well.
#[doc(hidden)]
#[macro_export]
macro_rules! __log_critical {
    ($($text:tt)+) => { $crate::log::log($crate::log::Level::Critical, module_path!(), &format!($($text)+)) };
}
