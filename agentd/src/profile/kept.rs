//! What is kept of each container's profile: the last minutes, in memory. Those of a container that has ended stay until
//! they are as old. Bounded as a whole: past that, the oldest minute of all goes first.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use agentd_api::pod::PodSpec;

use super::gathered::{Frame, Gathered, Weight};

/// Minutes that are kept.
pub const MINUTES: u64 = 15;
/// Memory for all of them, in bytes.
const MOST: usize = 32 << 20;

/// Whose profile it is.
#[derive(Debug, Clone)]
pub struct Subject {
    /// The pod, as it was specified.
    pub spec: Arc<PodSpec>,
    /// Id of the instance.
    pub instance: String,
    /// Name of the container.
    pub container: String,
    /// Its place in the pod.
    pub slot: usize,
}

/// Which profiles are meant.
#[derive(Debug, Clone, Copy)]
pub struct Which<'a> {
    /// Id of the pod.
    pub pod: &'a str,
    /// Only of this instance.
    pub instance: Option<&'a str>,
    /// Only of containers of this name.
    pub container: Option<&'a str>,
}

impl Which<'_> {
    fn has(&self, subject: &Subject) -> bool {
        subject.spec.id == self.pod
            && self.instance.is_none_or(|id| id == subject.instance)
            && self.container.is_none_or(|name| name == subject.container)
    }
}

#[derive(Debug)]
struct Entry {
    subject: Subject,
    /// Oldest first, each with its number since 1970.
    minutes: VecDeque<(u64, Gathered)>,
}

/// The profiles of all containers, by the id of their cgroup.
#[derive(Debug, Default)]
pub struct Kept {
    entries: HashMap<u64, Entry>,
    /// Minutes that went for want of memory.
    pub dropped: u64,
}

impl Kept {
    /// Makes a container known.
    pub fn know(&mut self, container: u64, subject: Subject) {
        self.entries.entry(container).or_insert_with(|| Entry { subject, minutes: VecDeque::new() });
    }

    /// A container that is known.
    pub fn subject(&self, container: u64) -> Option<&Subject> {
        self.entries.get(&container).map(|entry| &entry.subject)
    }

    /// Counts a stack of a container that is known. `second` is the time, in seconds since 1970.
    pub fn add(&mut self, container: u64, second: u64, stack: &[Frame], weight: Weight) {
        let Some(entry) = self.entries.get_mut(&container) else { return };
        let minute = second / 60;
        // a clock that was set back does not bring old minutes back
        if entry.minutes.back().is_none_or(|(last, _)| *last < minute) {
            entry.minutes.push_back((minute, Gathered::default()));
        }
        if let Some((_, gathered)) = entry.minutes.back_mut() {
            gathered.add(stack, weight);
        }
    }

    /// Forgets what is old or too much, and containers of which nothing is left and that `alive` does not have.
    pub fn prune(&mut self, second: u64, alive: impl Fn(u64) -> bool) {
        let oldest = (second / 60).saturating_sub(MINUTES);
        for entry in self.entries.values_mut() {
            while entry.minutes.front().is_some_and(|(minute, _)| *minute < oldest) {
                entry.minutes.pop_front();
            }
        }
        let minutes = |entry: &Entry| entry.minutes.iter().map(|(_, one)| one.bytes()).sum::<usize>();
        let mut bytes: usize = self.entries.values().map(minutes).sum();
        while bytes > MOST {
            let oldest = self.entries.values_mut().filter(|entry| !entry.minutes.is_empty());
            let Some(entry) = oldest.min_by_key(|entry| entry.minutes.front().map(|(minute, _)| *minute)) else {
                break;
            };
            if let Some((_, gone)) = entry.minutes.pop_front() {
                bytes -= gone.bytes();
                self.dropped += 1;
            }
        }
        self.entries.retain(|container, entry| !entry.minutes.is_empty() || alive(*container));
    }

    /// The specification of a pod of which something is kept; the newest where there are several.
    pub fn spec(&self, pod: &str) -> Option<Arc<PodSpec>> {
        let of = self.entries.values().filter(|entry| entry.subject.spec.id == pod);
        let newest = of.max_by_key(|entry| entry.minutes.back().map(|(minute, _)| *minute));
        newest.map(|entry| Arc::clone(&entry.subject.spec))
    }

    /// What is kept of the last `minutes`, all containers that are meant together; none where none is known.
    pub fn read(&self, which: Which<'_>, second: u64, minutes: u64) -> Option<Gathered> {
        let from = (second / 60).saturating_sub(minutes);
        let mut found = None;
        for entry in self.entries.values().filter(|entry| which.has(&entry.subject)) {
            let sum: &mut Gathered = found.get_or_insert_default();
            for (_, gathered) in entry.minutes.iter().filter(|(minute, _)| *minute >= from) {
                sum.merge(gathered);
            }
        }
        found
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::super::gathered::tests::frame;
    use super::*;

    fn subject(pod: &str, container: &str) -> Subject {
        let spec: PodSpec = serde_json::from_value(serde_json::json!({ "id": pod, "containers": [] })).unwrap();
        Subject { spec: Arc::new(spec), instance: "i".to_owned(), container: container.to_owned(), slot: 0 }
    }

    #[test]
    fn minutes_age_and_ended_containers_go_with_their_last_one() {
        let mut kept = Kept::default();
        kept.know(1, subject("/a", "web"));
        kept.know(2, subject("/a", "side"));
        let stack = [frame("/bin/app", "f", 1)];
        for minute in 100..120 {
            kept.add(1, minute * 60, &stack, Weight::of(1, 49));
        }
        kept.add(9, 0, &stack, Weight::of(1, 49));
        kept.prune(119 * 60, |_| false);
        assert!(kept.subject(2).is_none());
        let which = Which { pod: "/a", instance: None, container: Some("web") };
        let count = |kept: &Kept, minutes| kept.read(which, 119 * 60, minutes).map(|all| all.total().samples);
        assert_eq!((count(&kept, MINUTES), count(&kept, 4)), (Some(16), Some(5)));
        assert!(kept.read(Which { container: Some("side"), ..which }, 119 * 60, 15).is_none());
        kept.prune(200 * 60, |_| false);
        assert!(kept.is_empty() && kept.spec("/a").is_none());
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_goes_first() {
        let mut kept = Kept::default();
        kept.know(1, subject("/a", "web"));
        kept.know(2, subject("/b", "web"));
        let name = "f".repeat(8000);
        for container in [1, 2] {
            for minute in 0..10 {
                for number in 0..400 {
                    let stack = [frame("/bin/app", &name, number)];
                    kept.add(container, minute * 60, &stack, Weight::of(1, 49));
                }
            }
        }
        kept.prune(9 * 60, |_| true);
        assert!(kept.dropped > 0);
        let which = Which { pod: "/b", instance: None, container: None };
        assert_eq!(kept.read(which, 9 * 60, 0).unwrap().total().samples, 400);
        assert!(kept.read(which, 9 * 60, 15).unwrap().total().samples < 4000);
    }
}
