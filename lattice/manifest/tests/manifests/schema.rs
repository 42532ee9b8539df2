//! The JSON Schema takes the manifests that are taken. The checker here knows the words that the schema uses, no more.

use serde_json::Value;
use trellis_manifest::json_schema;

use crate::corpus;

/// Why `value` does not fit `schema`, if it does not.
fn misfit(value: &Value, schema: &Value, root: &Value) -> Option<String> {
    let Some(schema) = schema.as_object() else { return (schema == false).then(|| "nothing fits".into()) };
    let known = [
        "$ref",
        "$defs",
        "$id",
        "$schema",
        "title",
        "description",
        "default",
        "deprecated",
        "format",
        "type",
        "const",
        "enum",
        "pattern",
        "minimum",
        "maximum",
        "properties",
        "required",
        "additionalProperties",
        "items",
        "anyOf",
        "oneOf",
    ];
    let unknown = schema.keys().find(|key| !known.contains(&key.as_str()));
    assert_eq!(unknown, None, "the checker does not know this word");
    if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
        let target = root.pointer(reference.trim_start_matches('#')).unwrap();
        if let Some(misfit) = misfit(value, target, root) {
            return Some(misfit);
        }
    }
    let fits_type = |name: &Value| match name.as_str().unwrap() {
        "string" => value.is_string(),
        "number" => value.is_number(),
        "integer" => value.is_u64() || value.is_i64(),
        "boolean" => value.is_boolean(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "null" => value.is_null(),
        other => panic!("{other}"),
    };
    let types = schema.get("type").map(|types| types.as_array().cloned().unwrap_or_else(|| vec![types.clone()]));
    if types.is_some_and(|types| !types.iter().any(fits_type)) {
        return Some(format!("{value} is not of type {}", schema["type"]));
    }
    let constant = schema.get("const").is_some_and(|constant| constant != value);
    let listed = schema.get("enum").and_then(Value::as_array).is_some_and(|values| !values.contains(value));
    let too_small = schema.get("minimum").and_then(Value::as_f64).zip(value.as_f64()).is_some_and(|(min, n)| n < min);
    let too_large = schema.get("maximum").and_then(Value::as_f64).zip(value.as_f64()).is_some_and(|(max, n)| n > max);
    if constant || listed || too_small || too_large {
        return Some(format!("{value} is not {schema:?}"));
    }
    below(value, schema, root)
}

fn below(value: &Value, schema: &serde_json::Map<String, Value>, root: &Value) -> Option<String> {
    for word in ["anyOf", "oneOf"] {
        let Some(choices) = schema.get(word).and_then(Value::as_array) else { continue };
        let misfits: Vec<_> = choices.iter().filter_map(|choice| misfit(value, choice, root)).collect();
        let fitting = choices.len() - misfits.len();
        if fitting == 0 || (word == "oneOf" && fitting > 1) {
            return Some(format!("{value}: {fitting} choices fit: {misfits:?}"));
        }
    }
    if let (Some(items), Some(values)) = (schema.get("items"), value.as_array()) {
        return values.iter().find_map(|value| misfit(value, items, root));
    }
    let object = value.as_object()?;
    let required = schema.get("required").and_then(Value::as_array).into_iter().flatten();
    if let Some(missing) = required.map(|key| key.as_str().unwrap()).find(|key| !object.contains_key(*key)) {
        return Some(format!("{missing} is missing in {value}"));
    }
    object.iter().find_map(|(key, value)| match schema.get("properties").and_then(|known| known.get(key)) {
        Some(known) => misfit(value, known, root),
        None => misfit(value, schema.get("additionalProperties")?, root).map(|why| format!("{key}: {why}")),
    })
}

fn check(yaml: &str) -> Option<String> {
    let schema = json_schema();
    misfit(&serde_saphyr::from_str(yaml).unwrap(), &schema, &schema)
}

#[test]
fn manifests_that_are_taken_fit_the_schema() {
    let whole = corpus("ours").into_iter().filter(|sample| sample.name == "delivery.yaml");
    // An editor may well underline a trait that is passed over.
    for sample in corpus("accepted").into_iter().filter(|sample| sample.name != "unknown-trait.yaml").chain(whole) {
        assert_eq!(check(&sample.yaml), None, "{}", sample.name);
    }
}

#[test]
fn manifests_with_wrong_keys_or_types_do_not() {
    let wrong = ["unknown-key-", "instances-text", "missing-keys", "link-fields", "unknown-type", "delivery-wrong"];
    let samples = corpus("refused").into_iter().chain(corpus("ours"));
    for sample in samples.filter(|sample| wrong.iter().any(|wrong| sample.name.starts_with(wrong))) {
        assert!(check(&sample.yaml).is_some(), "{}", sample.name);
    }
}
