//! Interfaces that the host does not know: another component's, or a provider's own. They are linked by their types, one
//! component at a time, and each call goes outside as bytes. Only functions on plain values can be linked so.

use bytes::Bytes;
use trellis_wire::{Answer, Call, CallError};
use wasmtime::StoreContextMut;
use wasmtime::component::types::{ComponentFunc, ComponentInstance, ComponentItem};
use wasmtime::component::{Component, Linker, Type, Val};

use crate::component::ComponentError;
use crate::inspect::{self, InterfaceName};
use crate::state::State;
use crate::value;

/// A linker with what the component imports beyond what the host serves; none if that is nothing.
pub(crate) fn link(linker: &Linker<State>, code: &Component) -> Result<Option<Linker<State>>, ComponentError> {
    let mut extended = None;
    for (name, import) in code.component_type().imports(code.engine()) {
        let unknown = name.parse::<InterfaceName>().is_ok_and(|interface| !inspect::is_served(&interface));
        if let (true, ComponentItem::ComponentInstance(instance)) = (unknown, import.ty) {
            link_instance(extended.get_or_insert_with(|| linker.clone()), code, name, &instance)?;
        }
    }
    Ok(extended)
}

fn link_instance(
    linker: &mut Linker<State>,
    code: &Component,
    interface: &str,
    instance: &ComponentInstance,
) -> Result<(), ComponentError> {
    let invalid = |why: wasmtime::Error| ComponentError::Invalid(format!("{why:#}"));
    let mut into = linker.instance(interface).map_err(invalid)?;
    for (function, item) in instance.exports(code.engine()) {
        match item.ty {
            ComponentItem::ComponentFunc(ty) => {
                if let Some(obstacle) = obstacle(&ty) {
                    return Err(cannot_pass(interface, function, obstacle));
                }
                let (interface, name) = (interface.to_owned(), function.to_owned());
                into.func_new_async(function, move |store, ty, params, results| {
                    invoke(store, ty, interface.clone(), name.clone(), params, results)
                })
                .map_err(invalid)?;
            }
            ComponentItem::Type(_) => {}
            _ => return Err(cannot_pass(interface, function, "a resource")),
        }
    }
    Ok(())
}

fn cannot_pass(interface: &str, function: &str, obstacle: &str) -> ComponentError {
    ComponentError::Unsupported(format!(
        "it imports {interface}, which this node does not serve; between components only functions on plain values pass, \
         and `{function}` is or takes {obstacle}"
    ))
}

/// What keeps a function from being called across sandboxes, in words.
pub(crate) fn obstacle(ty: &ComponentFunc) -> Option<&'static str> {
    if ty.async_() {
        return Some("async");
    }
    ty.params().map(|(_, ty)| ty).chain(ty.results()).find_map(|ty| value::not_plain(&ty))
}

type Called<'a> = Box<dyn Future<Output = wasmtime::Result<()>> + Send + 'a>;

fn invoke<'a>(
    store: StoreContextMut<'a, State>,
    ty: ComponentFunc,
    interface: String,
    function: String,
    params: &'a [Val],
    results: &'a mut [Val],
) -> Called<'a> {
    Box::new(async move {
        let outside = store.data().outside.clone();
        let link = store.data().links.chosen(unversioned(&interface)).to_owned();
        let params = value::encode(ty.params().map(|(_, ty)| ty), params)?;
        let called = format!("{interface}.{function}");
        let call = Call::Invoke { interface, function, params: Bytes::from(params) };
        let answered = match outside.call(&link, call).await {
            Ok(Answer::Values(bytes)) => value::decode(ty.results(), &bytes)
                .map_err(|why| CallError::Other(format!("the answer to {called} does not fit: {why}")))?,
            Ok(other) => return Err(super::wrong_answer(&other).into()),
            // As it is: whose failure it is gets decided where the run ends.
            Err(why) => vec![own_error(&ty, &why).ok_or(why)?],
        };
        for (result, value) in results.iter_mut().zip(answered) {
            *result = value;
        }
        Ok(())
    })
}

fn unversioned(interface: &str) -> &str {
    interface.split_once('@').map_or(interface, |(name, _)| name)
}

/// The interface's own error with the text, where it has one that can hold a text. Else the run ends with it.
fn own_error(ty: &ComponentFunc, why: &CallError) -> Option<Val> {
    match ty.results().next()? {
        Type::Result(result) if matches!(result.err(), Some(Type::String)) => {
            Some(Val::Result(Err(Some(Box::new(Val::String(why.to_string()))))))
        }
        _ => None,
    }
}
