//! Which required fields a message lacks. prost gives those their default instead of a fault.

use prost_reflect::{Cardinality, DynamicMessage, MapKey, ReflectMessage, Value};

use crate::problem::Violation;

/// Refuses a message that lacks a required field, by the path of the first one.
pub fn check(message: &DynamicMessage) -> Result<(), Violation> {
    walk(message, "")
}

fn walk(message: &DynamicMessage, path: &str) -> Result<(), Violation> {
    for field in message.descriptor().fields() {
        if field.cardinality() == Cardinality::Required && !message.has_field(&field) {
            return Err(Violation::new(below(path, field.name()), "missing"));
        }
    }
    for (field, value) in message.fields() {
        let path = below(path, field.name());
        match value {
            Value::Message(inner) => walk(inner, &path)?,
            Value::List(items) => {
                for (n, item) in items.iter().enumerate() {
                    if let Value::Message(inner) = item {
                        walk(inner, &format!("{path}[{n}]"))?;
                    }
                }
            }
            Value::Map(entries) => {
                for (key, entry) in entries {
                    if let (MapKey::String(key), Value::Message(inner)) = (key, entry) {
                        walk(inner, &below(&path, key))?;
                    }
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// The path of a field below another. A name that a client chose is shortened.
pub fn below(path: &str, name: &str) -> String {
    let name: String = name.chars().take(80).collect();
    if path.is_empty() { name } else { format!("{path}.{name}") }
}
