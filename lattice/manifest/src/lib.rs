//! placeholder

mod app;
mod delivery;

pub use app::{
    App, AppLink, Component, Image, Limits, NotBuilt, Policy, Provider, Scaler, Secret, Served, Spread, Tech,
};
pub use delivery::{Backoff, Dedupe, DedupeKey, Delivery, OnDeadLetter, OrderBy, Rate};
