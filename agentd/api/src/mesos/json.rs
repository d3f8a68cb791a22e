//! The JSON dialect: text to a message by its description, and values to ASCII text.

use std::collections::HashMap;
use std::io::{self, Write};

use base64::Engine;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use base64::engine::{DecodePaddingMode, general_purpose};
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value};
use serde::Serialize;
use serde_json::Value as Json;
use serde_json::ser::{Formatter, Serializer};

use super::required::below;
use crate::problem::Violation;

/// Base64 as clients write it: with padding, or without.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// How deep messages may lie in each other.
const DEEPEST: usize = 32;

/// Reads a message. Unknown fields are skipped, as Mesos does.
pub fn read(descriptor: &MessageDescriptor, text: &[u8]) -> Result<DynamicMessage, Violation> {
    let value: Json =
        serde_json::from_slice(text).map_err(|error| Violation::new("", format!("the body is no JSON: {error}")))?;
    message(descriptor, &value, "", DEEPEST)
}

fn message(descriptor: &MessageDescriptor, json: &Json, path: &str, depth: usize) -> Result<DynamicMessage, Violation> {
    let Json::Object(map) = json else { return Err(wrong(path, json, "an object")) };
    let Some(depth) = depth.checked_sub(1) else {
        return Err(Violation::new(path, format!("found more than {DEEPEST} objects in each other, expected fewer")));
    };
    let mut message = DynamicMessage::new(descriptor.clone());
    for (name, json) in map {
        if json.is_null() {
            continue;
        }
        let Some(field) = descriptor.get_field_by_name(name) else { continue };
        let path = below(path, name);
        let value = if field.is_list() {
            let Json::Array(items) = json else { return Err(wrong(&path, json, "a list")) };
            let items = items.iter().enumerate().map(|(n, item)| one(&field, item, &format!("{path}[{n}]"), depth));
            Value::List(items.collect::<Result<_, _>>()?)
        } else if field.is_map() {
            Value::Map(entries(&field, json, &path, depth)?)
        } else {
            one(&field, json, &path, depth)?
        };
        message.set_field(&field, value);
    }
    Ok(message)
}

/// A map, whose keys are text in every message there is.
fn entries(
    field: &FieldDescriptor,
    json: &Json,
    path: &str,
    depth: usize,
) -> Result<HashMap<MapKey, Value>, Violation> {
    let (Json::Object(map), Kind::Message(entry)) = (json, field.kind()) else {
        return Err(wrong(path, json, "an object"));
    };
    let value = entry.map_entry_value_field();
    let entries = map.iter().filter(|(_, json)| !json.is_null());
    entries.map(|(key, json)| Ok((MapKey::String(key.clone()), one(&value, json, &below(path, key), depth)?))).collect()
}

fn one(field: &FieldDescriptor, json: &Json, path: &str, depth: usize) -> Result<Value, Violation> {
    let kind = field.kind();
    let value = match &kind {
        Kind::Message(descriptor) => return message(descriptor, json, path, depth).map(Value::Message),
        Kind::Enum(descriptor) => {
            let found = json.as_str().and_then(|name| descriptor.get_value_by_name(name));
            return found.map(|value| Value::EnumNumber(value.number())).ok_or_else(|| {
                let names: Vec<String> = descriptor.values().take(40).map(|value| value.name().to_owned()).collect();
                wrong(path, json, &format!("one of {}", names.join(", ")))
            });
        }
        Kind::String => json.as_str().map(|text| Value::String(text.to_owned())),
        Kind::Bytes => json.as_str().and_then(|text| BASE64.decode(text).ok()).map(|bytes| Value::Bytes(bytes.into())),
        Kind::Bool => json.as_bool().map(Value::Bool),
        Kind::Double => number(json, Json::as_f64).map(Value::F64),
        Kind::Float => number(json, Json::as_f64).map(|number| Value::F32(number as f32)),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => {
            number(json, Json::as_i64).and_then(|number| number.try_into().ok()).map(Value::I32)
        }
        Kind::Uint32 | Kind::Fixed32 => {
            number(json, Json::as_u64).and_then(|number| number.try_into().ok()).map(Value::U32)
        }
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => number(json, Json::as_i64).map(Value::I64),
        Kind::Uint64 | Kind::Fixed64 => number(json, Json::as_u64).map(Value::U64),
    };
    value.ok_or_else(|| wrong(path, json, expected(&kind)))
}

fn expected(kind: &Kind) -> &'static str {
    match kind {
        Kind::String => "text",
        Kind::Bytes => "base64 text",
        Kind::Bool => "true or false",
        Kind::Double | Kind::Float => "a number",
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => "a whole number of 32 bits",
        Kind::Uint32 | Kind::Fixed32 => "a whole number of 32 bits, not negative",
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => "a whole number of 64 bits",
        Kind::Uint64 | Kind::Fixed64 => "a whole number of 64 bits, not negative",
        Kind::Message(_) | Kind::Enum(_) => "something else",
    }
}

/// A number, also one that was written as text.
fn number<T: std::str::FromStr>(json: &Json, read: impl FnOnce(&Json) -> Option<T>) -> Option<T> {
    match json {
        Json::String(text) => text.parse().ok(),
        // what other languages make of a whole number
        Json::Number(number) if number.is_f64() => read(json)
            .or_else(|| number.as_f64().filter(|n| n.fract() == 0.0).and_then(|n| format!("{n}").parse().ok())),
        _ => read(json),
    }
}

fn wrong(path: &str, found: &Json, expected: &str) -> Violation {
    let shown = match found {
        Json::Array(_) => "a list".to_owned(),
        Json::Object(_) => "an object".to_owned(),
        other => other.to_string().chars().take(80).collect(),
    };
    Violation::new(path, format!("found {shown}, expected {expected}"))
}

/// Writes ASCII only: some clients count characters where bytes are meant.
#[derive(Debug, Clone, Copy)]
pub struct Ascii;

impl Formatter for Ascii {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, out: &mut W, fragment: &str) -> io::Result<()> {
        if fragment.is_ascii() {
            return out.write_all(fragment.as_bytes());
        }
        let mut units = [0; 2];
        for character in fragment.chars() {
            if character.is_ascii() {
                out.write_all(&[character as u8])?;
            } else {
                for unit in character.encode_utf16(&mut units) {
                    write!(out, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }
}

/// A serializer of one line of ASCII.
pub fn writer(out: &mut Vec<u8>) -> Serializer<&mut Vec<u8>, Ascii> {
    Serializer::with_formatter(out, Ascii)
}

/// Why a value cannot be written as JSON.
pub type JsonFault = serde_json::Error;

/// A value as one line of ASCII.
pub fn to_ascii(value: &impl Serialize) -> Result<Vec<u8>, JsonFault> {
    let mut out = Vec::new();
    value.serialize(&mut writer(&mut out))?;
    Ok(out)
}

/// Bytes as padded base64.
pub fn base64(bytes: &[u8], out: &mut String) {
    general_purpose::STANDARD.encode_string(bytes, out);
}
