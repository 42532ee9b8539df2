//! A call of an interface of the component's own, from another component or from outside.

use std::collections::BTreeMap;

use bytes::Bytes;
use tokio::time::timeout;
use trellis_wire::{Error, Outcome, Reply};
use wasmtime::Store;
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, ComponentExportIndex, InstancePre, Val};

use crate::host::custom::obstacle;
use crate::inspect::{InterfaceName, Wake};
use crate::run::Sandbox;
use crate::state::State;
use crate::value::{self, ValueError};

/// The functions of a component's own that can be called, by interface (with its version) and name.
pub(crate) struct Functions {
    pre: InstancePre<State>,
    exports: BTreeMap<(String, String), ComponentExportIndex>,
}

impl Functions {
    /// Finds them. What has other than plain values is left out: it cannot be called from another sandbox.
    pub(crate) fn of(code: &Component, pre: InstancePre<State>) -> Self {
        let mut exports = BTreeMap::new();
        for (interface, export) in code.component_type().exports(code.engine()) {
            let own = interface.parse::<InterfaceName>().is_ok_and(|it| matches!(Wake::by(&it), Some(Wake::Invoke(_))));
            let (true, ComponentItem::ComponentInstance(instance)) = (own, export.ty) else { continue };
            let index = code.get_export_index(None, interface);
            for (function, item) in instance.exports(code.engine()) {
                let callable = matches!(item.ty, ComponentItem::ComponentFunc(ty) if obstacle(&ty).is_none());
                let index = index.and_then(|index| code.get_export_index(Some(&index), function));
                if let (true, Some(index)) = (callable, index) {
                    exports.insert((interface.to_owned(), function.to_owned()), index);
                }
            }
        }
        Self { pre, exports }
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.exports.is_empty()
    }
}

/// A called function and what it is given.
pub(crate) struct Invocation {
    pub(crate) interface: String,
    pub(crate) function: String,
    pub(crate) params: Bytes,
}

/// Calls a function.
pub(crate) async fn call(functions: &Functions, invocation: Invocation, mut sandbox: Sandbox) -> Outcome {
    let Invocation { interface, function, params } = invocation;
    let named = format!("{interface}.{function}");
    let Some(index) = functions.exports.get(&(interface, function)) else {
        return Err(Error::Unusable(format!("the component has no function {named} on plain values")).into());
    };
    let ended = timeout(sandbox.limits.timeout, invoke(functions, index, &params, &mut sandbox.store)).await;
    match sandbox.verdict(ended)? {
        Ok(results) => Ok(Reply::Values(results.into())),
        Err(why) => Err(Error::Unusable(format!("{named}: {why}")).into()),
    }
}

async fn invoke(
    functions: &Functions,
    index: &ComponentExportIndex,
    params: &[u8],
    store: &mut Store<State>,
) -> wasmtime::Result<Result<Vec<u8>, ValueError>> {
    let guest = functions.pre.instantiate_async(&mut *store).await?;
    store.data().outside.instantiated();
    let function = guest.get_func(&mut *store, index).expect("it was found in this component when it was loaded");
    let ty = function.ty(&*store);
    let params = match value::decode(ty.params().map(|(_, ty)| ty), params) {
        Ok(params) => params,
        Err(why) => return Ok(Err(why)),
    };
    let mut results = vec![Val::Bool(false); ty.results().len()];
    function.call_async(&mut *store, &params, &mut results).await?;
    Ok(value::encode(ty.results(), &results))
}
