//! Whatever bytes come in, the parser answers, and what it accepts reads back as the same pod.

use agentd_api::parse;
use proptest::prelude::*;
use serde_json::Value;

const FULL: &str = include_str!("full-pod.json");

/// One change of a document: at the value that `place` picks, of the kind that `kind` picks.
fn mutate(value: &mut Value, mut place: usize, kind: u8, other: &Value) {
    let target = {
        let mut current = value;
        loop {
            let size = match &*current {
                Value::Array(items) => items.len(),
                Value::Object(map) => map.len(),
                _ => 0,
            };
            if size == 0 || place.is_multiple_of(7) {
                break current;
            }
            let index = (place / 7) % size;
            place = place / 7 / size;
            current = match current {
                Value::Array(items) => &mut items[index],
                Value::Object(map) => map.values_mut().nth(index).unwrap(),
                _ => unreachable!("it has a size"),
            };
        }
    };
    match (kind % 6, target) {
        (0, Value::Object(map)) => {
            map.insert("agentd".to_owned(), other.clone());
        }
        (1, Value::Object(map)) => {
            let key = map.keys().nth(place % map.len().max(1)).cloned();
            key.and_then(|key| map.remove(&key));
        }
        (2, Value::Array(items)) => {
            let first = items.first().cloned();
            items.extend(first);
        }
        (3, Value::Array(items)) => items.clear(),
        (4, Value::String(text)) => text.push_str("/../\0"),
        (_, target) => *target = other.clone(),
    }
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        "(/|[.]{1,2}|[a-z]{1,3}){0,5}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 5, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            proptest::collection::btree_map(
                prop_oneof![
                    "[a-z]{1,8}",
                    Just("name".to_owned()),
                    Just("agentd".to_owned()),
                    Just("resources".to_owned())
                ],
                inner,
                0..5
            )
            .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Whatever comes in, the answer is a pod that reads back, or faults.
fn holds(json: &[u8]) -> Result<(), TestCaseError> {
    match parse::pod(json) {
        Ok(spec) => {
            let value = serde_json::to_value(&spec).unwrap();
            prop_assert_eq!(parse::pod_value(&value), Ok(spec));
        }
        Err(violations) => prop_assert!(!violations.is_empty()),
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 1024, ..ProptestConfig::default() })]

    #[test]
    fn changed_documents_never_panic(
        changes in proptest::collection::vec((any::<usize>(), any::<u8>(), any_value()), 1..6),
    ) {
        let mut value: Value = serde_json::from_str(FULL).unwrap();
        for (place, kind, other) in changes {
            mutate(&mut value, place, kind, &other);
        }
        holds(value.to_string().as_bytes())?;
    }

    #[test]
    fn any_document_never_panics(value in any_value()) {
        holds(value.to_string().as_bytes())?;
    }

    #[test]
    fn changed_bytes_never_panic(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
        whole in any::<bool>(),
    ) {
        let mut bytes = FULL.as_bytes().to_vec();
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if !whole {
            bytes.truncate(cut.index(bytes.len()));
        }
        holds(&bytes)?;
    }
}
