//! How a guest is woken: one file for each kind of event.

pub(crate) mod command;
pub(crate) mod http;
mod http2;
mod http3;
pub(crate) mod invoke;
pub(crate) mod message;
mod reply;

use wasmtime::component::InstancePre;
use wasmtime_wasi::{p2, p3};
use wasmtime_wasi_http::{p2 as http_p2, p3 as http_p3};

use crate::state::State;

/// The export that HTTP requests wake.
#[derive(Clone)]
pub(crate) enum Http {
    P2(http_p2::bindings::ProxyPre<State>),
    P3(http_p3::bindings::ServicePre<State>),
}

impl Http {
    pub(crate) fn p2(pre: &InstancePre<State>) -> wasmtime::Result<Self> {
        http_p2::bindings::ProxyPre::new(pre.clone()).map(Self::P2)
    }

    pub(crate) fn p3(pre: &InstancePre<State>) -> wasmtime::Result<Self> {
        http_p3::bindings::ServicePre::new(pre.clone()).map(Self::P3)
    }
}

/// The export that messages wake.
pub(crate) enum Message {
    Trellis(message::TrellisPre<State>),
    Wasmcloud(message::WasmcloudPre<State>),
}

impl Message {
    pub(crate) fn trellis(pre: &InstancePre<State>) -> wasmtime::Result<Self> {
        message::TrellisPre::new(pre.clone()).map(Self::Trellis)
    }

    pub(crate) fn wasmcloud(pre: &InstancePre<State>) -> wasmtime::Result<Self> {
        message::WasmcloudPre::new(pre.clone()).map(Self::Wasmcloud)
    }
}

/// The export that runs wake.
pub(crate) enum Command {
    P2(p2::bindings::CommandPre<State>),
    P3(p3::bindings::CommandPre<State>),
}

impl Command {
    pub(crate) fn p2(pre: &InstancePre<State>) -> wasmtime::Result<Self> {
        p2::bindings::CommandPre::new(pre.clone()).map(Self::P2)
    }

    pub(crate) fn p3(pre: &InstancePre<State>) -> wasmtime::Result<Self> {
        p3::bindings::CommandPre::new(pre.clone()).map(Self::P3)
    }
}
