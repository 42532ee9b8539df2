//! The OpenAPI document, made from the table of routes and the types' own schemas: it cannot say anything else than
//! what is served.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::routes::Route;
use super::types::Problem;

/// The document.
pub(super) fn document(routes: &[Route]) -> Value {
    let mut schemas =
        SchemaSettings::draft2020_12().with(|s| s.definitions_path = "/components/schemas".into()).into_generator();
    let problem = schemas.subschema_for::<Problem>();
    let mut paths = Map::new();
    for route in routes {
        let mut operation = json!({
            "summary": route.summary,
            "parameters": parameters(route.path),
            "description": match route.role {
                None => "Anyone may ask.".into(),
                Some(role) => format!("Needs a token with role `{role}`, where there are tokens."),
            },
            "security": if route.role.is_some() { json!([{}, {"token": []}]) } else { json!([{}]) },
            "responses": {
                "200": {"description": "Done."},
                "default": {"description": "A problem.", "content": {"application/json": {"schema": problem}}},
            },
        });
        if let Some(gives) = route.gives {
            operation["responses"]["200"]["content"] = json!({"application/json": {"schema": gives(&mut schemas)}});
        }
        if let Some(takes) = route.takes {
            let content = json!({"application/json": {"schema": takes(&mut schemas)}});
            operation["requestBody"] = json!({"required": true, "content": content});
        }
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method] = operation;
    }
    json!({
        "openapi": "3.1.0",
        "info": {"title": "Trellis admin API", "version": env!("CARGO_PKG_VERSION"), "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {
            "schemas": schemas.take_definitions(true),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    })
}

/// `{app}` in a path is a parameter.
fn parameters(path: &str) -> Vec<Value> {
    let names = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    names.map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}})).collect()
}
