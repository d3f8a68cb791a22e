//! As much of JSON Schema as the document's schemas use. A keyword that is not known here is an error, so that no schema
//! says something that nobody checks.

use serde_json::Value;

use super::super::schema;

/// What is wrong with a value.
pub fn faults(schema: &'static Value, value: &Value, path: &str) -> Vec<String> {
    let mut faults = Vec::new();
    check(schema, value, path, &mut faults);
    faults
}

fn check(rules: &'static Value, value: &Value, path: &str, faults: &mut Vec<String>) {
    let number = |limit: &Value| limit.as_f64().unwrap();
    let count = |limit: &Value| limit.as_u64().unwrap() as usize;
    let length = value.as_str().map_or(0, |text| text.chars().count());
    let elements = value.as_array().map_or(0, Vec::len);
    let members = value.as_object().map_or(0, serde_json::Map::len);
    for (keyword, rule) in rules.as_object().unwrap_or_else(|| panic!("{path}: no schema")) {
        let kept = match keyword.as_str() {
            "description" | "properties" | "required" | "additionalProperties" | "items" => true,
            "$ref" => {
                let name = rule.as_str().unwrap().strip_prefix("#/components/schemas/").unwrap();
                check(schema(name), value, path, faults);
                true
            }
            "type" => match rule.as_str().unwrap() {
                "string" => value.is_string(),
                "integer" => value.is_i64() || value.is_u64(),
                "number" => value.is_number(),
                "boolean" => value.is_boolean(),
                "array" => value.is_array(),
                "object" => value.is_object(),
                other => panic!("{path}: unknown type {other}"),
            },
            "enum" => rule.as_array().unwrap().contains(value),
            "oneOf" => {
                let fits = |schema: &&'static Value| self::faults(schema, value, path).is_empty();
                rule.as_array().unwrap().iter().filter(fits).count() == 1
            }
            "minimum" => value.as_f64().is_none_or(|value| value >= number(rule)),
            "maximum" => value.as_f64().is_none_or(|value| value <= number(rule)),
            "exclusiveMinimum" => value.as_f64().is_none_or(|value| value > number(rule)),
            "exclusiveMaximum" => value.as_f64().is_none_or(|value| value < number(rule)),
            "minLength" => length >= count(rule),
            "maxLength" => length <= count(rule),
            "minItems" => elements >= count(rule),
            "maxItems" => elements <= count(rule),
            "minProperties" => members >= count(rule),
            "maxProperties" => members <= count(rule),
            "pattern" => {
                regex::Regex::new(rule.as_str().unwrap()).unwrap().is_match(value.as_str().unwrap_or_default())
            }
            "format" => {
                assert_eq!(rule, "date-time");
                value.as_str().is_some_and(|text| text.parse::<jiff::Timestamp>().is_ok())
            }
            other => panic!("{path}: unknown keyword {other}"),
        };
        if !kept {
            faults.push(format!("{path}: {value} breaks {keyword}: {rule}"));
        }
    }
    for (index, item) in value.as_array().into_iter().flatten().enumerate().filter(|_| rules["items"].is_object()) {
        check(&rules["items"], item, &format!("{path}[{index}]"), faults);
    }
    for name in rules["required"].as_array().into_iter().flatten() {
        if value.is_object() && value.get(name.as_str().unwrap()).is_none() {
            faults.push(format!("{path}: {name} is missing"));
        }
    }
    for (name, member) in value.as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        match (rules["properties"].get(name), &rules["additionalProperties"]) {
            (Some(rule), _) | (None, rule @ Value::Object(_)) => check(rule, member, &path, faults),
            (None, Value::Bool(false)) => faults.push(format!("{path} is unknown")),
            (None, _) => {}
        }
    }
}
