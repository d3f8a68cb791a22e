//! `startAfter`: the named containers exist, and there is an order in which all can start.

use std::collections::{BTreeMap, VecDeque};

use super::unique;
use crate::parse::format::quoted;
use crate::parse::report::{Report, join_index};
use crate::pod::PodSpec;

pub(super) fn check(pod: &PodSpec, report: &Report) {
    let mut index_of: BTreeMap<&str, usize> = BTreeMap::new();
    for (index, container) in pod.containers.iter().enumerate() {
        // A repeated name, which is reported elsewhere, means the first.
        index_of.entry(container.name.as_str()).or_insert(index);
    }
    // For each container those that wait for it, and how many it waits for itself.
    let mut waiting = vec![Vec::new(); pod.containers.len()];
    let mut awaited = vec![0_usize; pod.containers.len()];
    // A container without a readable name may be the one that is missed.
    let names_known = !index_of.contains_key("");
    for (index, container) in pod.containers.iter().enumerate() {
        let list = path(index);
        let names = container.agentd.start_after.iter().enumerate();
        let names: Vec<_> = names.map(|(place, name)| (join_index(&list, place), name.as_str())).collect();
        unique(names.iter().map(|(path, name)| (path.clone(), *name)), "these names", report);
        for (path, name) in names.iter().filter(|(_, name)| !name.is_empty()) {
            match index_of.get(name) {
                None if !names_known => {}
                None => report.rule(path, format!("no container named {}; name containers of this pod", quoted(name))),
                Some(before) if *before == index => {
                    report.rule(path, "the container cannot wait for itself; remove its own name");
                }
                Some(before) => {
                    waiting[*before].push(index);
                    awaited[index] += 1;
                }
            }
        }
    }
    // Start whatever waits for nothing, over and over; who is left waits in a circle, or for one who does. A circle that
    // has been reported counts as started, so that the next one comes to light.
    let mut ready: VecDeque<usize> = (0..awaited.len()).filter(|index| awaited[*index] == 0).collect();
    loop {
        while let Some(started) = ready.pop_front() {
            for next in &waiting[started] {
                // Nothing is left to count down for a container that was in a circle.
                if awaited[*next] == 1 {
                    ready.push_back(*next);
                }
                awaited[*next] = awaited[*next].saturating_sub(1);
            }
        }
        let Some(circle) = circle(pod, &index_of, &awaited) else {
            break;
        };
        let names: Vec<_> =
            circle.iter().chain(circle.first()).map(|index| pod.containers[*index].name.as_str()).collect();
        let shown =
            if names.len() > 10 { format!("{} → …", names[..10].join(" → ")) } else { names.join(" → ") };
        let first = circle.iter().min().copied().unwrap_or_default();
        report.rule(&path(first), format!("the containers wait for each other in a circle ({shown}); break it"));
        for index in circle {
            awaited[index] = 0;
            ready.push_back(index);
        }
    }
}

fn path(container: usize) -> String {
    format!("containers[{container}].agentd.startAfter")
}

/// The containers of one circle, each waiting for the next, and the last for the first.
fn circle(pod: &PodSpec, index_of: &BTreeMap<&str, usize>, awaited: &[usize]) -> Option<Vec<usize>> {
    let mut current = awaited.iter().position(|count| *count > 0)?;
    let mut order: BTreeMap<usize, usize> = BTreeMap::new();
    let mut walked = Vec::new();
    // Each one that is left waits for another that is left, so the walk must come back to where it was.
    loop {
        if let Some(start) = order.get(&current) {
            return Some(walked.split_off(*start));
        }
        order.insert(current, walked.len());
        walked.push(current);
        let after = pod.containers[current].agentd.start_after.iter();
        current = after
            .filter_map(|name| index_of.get(name.as_str()).copied())
            .find(|before| *before != current && awaited[*before] > 0)?;
    }
}
