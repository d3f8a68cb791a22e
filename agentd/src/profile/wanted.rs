//! Who is to be sampled, and how often: by label of the pod, or because somebody asked.

use agentd_api::pod::PodSpec;
use agentd_api::problem::Violation;
use agentd_ebpf::observe::profile::{FASTEST, SLOWEST};

/// Label of a pod whose containers are profiled all the time.
pub const LABEL: &str = "agentd.profile";
/// Samples each second and CPU where nobody says otherwise. No divisor of the usual timers, so that what happens at each of
/// their ticks is not seen always or never.
pub const USUAL: u32 = 49;

/// What the label says: samples each second, or none.
pub fn of_label(value: &str) -> Result<Option<u32>, String> {
    match value {
        "true" => Ok(Some(USUAL)),
        "false" => Ok(None),
        number => match number.parse() {
            Ok(hz) if (SLOWEST..=FASTEST).contains(&hz) => Ok(Some(hz)),
            _ => {
                let shown: String = value.chars().take(80).collect();
                Err(format!("found {shown:?}, expected true, false, or {SLOWEST} to {FASTEST} samples a second"))
            }
        },
    }
}

/// Samples each second that a pod's label asks for. A label that says nothing sound asks for none.
pub fn of_pod(pod: &PodSpec) -> Option<u32> {
    pod.labels.get(LABEL).and_then(|value| of_label(value).ok().flatten())
}

/// What is wrong with a pod's label.
pub fn check(pod: &PodSpec) -> Vec<Violation> {
    let fault = pod.labels.get(LABEL).and_then(|value| of_label(value).err());
    fault.map(|fault| Violation::new(format!("labels[{LABEL:?}]"), fault)).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_a_rate_or_a_word() {
        assert_eq!((of_label("true"), of_label("false")), (Ok(Some(49)), Ok(None)));
        assert_eq!((of_label("19"), of_label("99")), (Ok(Some(19)), Ok(Some(99))));
        for bad in ["", "18", "100", "-1", "49.5", "yes", "4294967345"] {
            assert!(of_label(bad).is_err(), "{bad}");
        }
        let mut pod: PodSpec = serde_json::from_value(serde_json::json!({ "id": "/a", "containers": [] })).unwrap();
        assert!(of_pod(&pod).is_none() && check(&pod).is_empty());
        pod.labels.insert(LABEL.to_owned(), "often".to_owned());
        assert_eq!((of_pod(&pod), check(&pod).len()), (None, 1));
    }
}
