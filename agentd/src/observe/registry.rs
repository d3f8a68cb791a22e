//! Who is who: from the id of a container's cgroup2 directory to the pod, instance and container that it is.
//!
//! An identity is entered before the container's program begins and stays for a while after its end as a *tombstone*, with
//! the figures that the container left, so that one more scrape sees the totals and no late event is without its container.
//! Each start of a container is an identity of its own: its cgroup is made anew, so its counters begin at zero.
//!
//! This is a table under a lock, with the time given from outside; it makes no calls of the kernel.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use agentd_api::pod::PodSpec;
use agentd_ebpf::observe::Figures;
use agentd_isolators::cgroup::{ContainerCgroup, Controller, Driver, Placement};
use agentd_metrics::container::{Directories, Place, Reading};

/// Label of a pod that says in which namespace it is shown; without it the first role of its placement counts.
pub const NAMESPACE_LABEL: &str = "agentd.namespace";

/// Namespace of a pod that names none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// One start of a container, as everything that is counted is told of.
#[derive(Debug, Clone, PartialEq)]
pub struct Identity {
    /// Id (inode) of its cgroup2 directory.
    pub cgroup: u64,
    /// Id of its pod, with the leading slash.
    pub pod: String,
    /// Id of its instance.
    pub instance: String,
    /// Its name.
    pub container: String,
    /// Its place in the pod.
    pub slot: u32,
    /// Which start of it this is, from 1 on.
    pub attempt: u32,
    /// Its image as the pod names it.
    pub image: Option<String>,
    /// The namespace that it is shown in.
    pub namespace: String,
    /// Whether its stacks may be sampled.
    pub profiled: bool,
    /// Where its files are.
    pub directories: Directories,
}

impl Identity {
    /// The identity of a start of a container.
    pub fn of(driver: &Driver, spec: &PodSpec, cgroup: &ContainerCgroup, attempt: u32) -> Option<Self> {
        let container = spec.containers.get(cgroup.slot() as usize)?;
        Some(Self {
            cgroup: cgroup.cgroup_id(),
            pod: spec.id.clone(),
            instance: cgroup.instance().to_owned(),
            container: container.name.clone(),
            slot: cgroup.slot(),
            attempt,
            image: container.image.as_ref().map(|image| image.id.clone()),
            namespace: namespace(spec),
            profiled: crate::profile::wanted::of_pod(spec).is_some(),
            directories: directories(driver, cgroup),
        })
    }

    /// The container's id in metrics: no other start of any container of this host has it.
    pub fn id(&self) -> String {
        format!("{}/{}/{}", self.instance, self.container, self.attempt)
    }
}

/// The namespace that a pod is shown in: its label [`NAMESPACE_LABEL`], else the first role of its placement that is a name.
pub fn namespace(spec: &PodSpec) -> String {
    let role = || spec.scheduling.placement.accepted_resource_roles.iter().find(|role| *role != "*");
    let given = spec.labels.get(NAMESPACE_LABEL).filter(|name| !name.is_empty()).or_else(role);
    given.map_or_else(|| DEFAULT_NAMESPACE.to_owned(), Clone::clone)
}

fn directories(driver: &Driver, cgroup: &ContainerCgroup) -> Directories {
    let (layout, path) = (driver.layout(), cgroup.cgroup_path().trim_start_matches('/'));
    let place = |controller| match layout.placement(controller) {
        Placement::V2 => Place::Unified,
        Placement::V1(mount) => Place::V1(mount.join(path)),
        Placement::Absent => Place::Absent,
    };
    Directories {
        unified: layout.unified.as_deref().map(|mount| mount.join(path)).unwrap_or_default(),
        cpu: place(Controller::Cpu),
        // CPU time of a v1 host is told by the cgroup2 tree, which every container has a directory in
        cpuacct: None,
        memory: place(Controller::Memory),
        pids: place(Controller::Pids),
        io: place(Controller::Io),
        hugetlb: place(Controller::Hugetlb),
    }
}

/// What a container has left.
#[derive(Debug, Clone)]
pub struct Ended {
    /// When it ended.
    pub at: Instant,
    /// The last reading of its cgroup, without what it no longer uses.
    pub last: Reading,
    /// What the programs counted, once they have forgotten it; until then they still have it.
    pub figures: Option<Box<Figures>>,
}

/// An identity with what is known of it.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Who.
    pub identity: Arc<Identity>,
    /// Since when the programs count for it.
    pub since: SystemTime,
    /// None while it runs.
    pub ended: Option<Arc<Ended>>,
}

/// The table.
#[derive(Debug, Default)]
pub struct Registry {
    entries: Mutex<HashMap<u64, Entry>>,
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters an identity. Earlier starts of the same container that nobody saw end are ended with it; their ids are given, so
    /// that the caller may leave them to their tombstones.
    pub fn enter(&self, identity: Identity, since: SystemTime, now: Instant) {
        let mut entries = self.lock();
        for earlier in entries.values_mut() {
            let same = earlier.identity.instance == identity.instance && earlier.identity.slot == identity.slot;
            if same && earlier.identity.cgroup != identity.cgroup && earlier.ended.is_none() {
                earlier.ended = Some(Arc::new(Ended { at: now, last: Reading::default(), figures: None }));
            }
        }
        let known = entries.get(&identity.cgroup).filter(|known| *known.identity == identity && known.ended.is_none());
        let since = known.map_or(since, |known| known.since);
        entries.insert(identity.cgroup, Entry { identity: Arc::new(identity), since, ended: None });
    }

    /// Says from when on the programs count, for all that are known: they have just begun.
    pub fn begin(&self, since: SystemTime) {
        for entry in self.lock().values_mut() {
            entry.since = since;
        }
    }

    /// Ends a container. A second end changes nothing.
    pub fn end(&self, cgroup: u64, last: Reading, now: Instant) {
        if let Some(entry) = self.lock().get_mut(&cgroup)
            && entry.ended.is_none()
        {
            entry.ended = Some(Arc::new(Ended { at: now, last: remains(last), figures: None }));
        }
    }

    /// Ends whatever of an instance has not ended yet.
    pub fn end_instance(&self, instance: &str, now: Instant) {
        for entry in self.lock().values_mut() {
            if entry.identity.instance == instance && entry.ended.is_none() {
                entry.ended = Some(Arc::new(Ended { at: now, last: Reading::default(), figures: None }));
            }
        }
    }

    /// Tombstones that are older than `keep`.
    pub fn due(&self, keep: Duration, now: Instant) -> Vec<u64> {
        let over = |entry: &Entry| entry.ended.as_ref().is_some_and(|end| now.duration_since(end.at) >= keep);
        self.lock().iter().filter(|(_, entry)| over(entry)).map(|(cgroup, _)| *cgroup).collect()
    }

    /// The oldest tombstone whose figures the programs still hold, so that there is room for a container that runs.
    pub fn oldest(&self) -> Option<u64> {
        let entries = self.lock();
        let held = entries.iter().filter_map(|(cgroup, entry)| {
            entry.ended.as_ref().filter(|end| end.figures.is_none()).map(|end| (end.at, *cgroup))
        });
        held.min().map(|(_, cgroup)| cgroup)
    }

    /// Keeps the figures of an ended container that the programs have forgotten.
    pub fn keep(&self, cgroup: u64, figures: Figures) {
        if let Some(entry) = self.lock().get_mut(&cgroup)
            && let Some(ended) = &mut entry.ended
        {
            Arc::make_mut(ended).figures = Some(Box::new(figures));
        }
    }

    /// Takes an identity out. Events of its cgroup are nobody's from here on.
    pub fn remove(&self, cgroup: u64) -> Option<Entry> {
        self.lock().remove(&cgroup)
    }

    /// The identity of a cgroup, also for a while after its end.
    pub fn get(&self, cgroup: u64) -> Option<Arc<Identity>> {
        self.lock().get(&cgroup).map(|entry| Arc::clone(&entry.identity))
    }

    /// The identity of a container's last start, also for a while after its end.
    pub fn last_of(&self, instance: &str, slot: u32) -> Option<Arc<Identity>> {
        let entries = self.lock();
        let of = entries.values().map(|entry| &entry.identity);
        let of = of.filter(|identity| identity.instance == instance && identity.slot == slot);
        of.max_by_key(|identity| identity.attempt).cloned()
    }

    /// All entries, by pod, instance, slot and attempt.
    pub fn all(&self) -> Vec<Entry> {
        let mut all: Vec<Entry> = self.lock().values().cloned().collect();
        all.sort_by(|a, b| {
            let key = |entry: &Entry| (entry.identity.slot, entry.identity.attempt);
            (&a.identity.pod, &a.identity.instance, key(a)).cmp(&(&b.identity.pod, &b.identity.instance, key(b)))
        });
        all
    }

    /// What a container has left; none while it runs, and for one that is not known.
    pub fn ended(&self, cgroup: u64) -> Option<Arc<Ended>> {
        self.lock().get(&cgroup)?.ended.clone()
    }

    /// How many run, and how many have ended and are kept.
    pub fn count(&self) -> (usize, usize) {
        let entries = self.lock();
        let ended = entries.values().filter(|entry| entry.ended.is_some()).count();
        (entries.len() - ended, ended)
    }
}

/// Most starts of a container that have ended and are shown. Of a container that ends again and again they would fill its
/// pod's budget of series, and take from the others'; what the pod's own cgroup counts has them all.
pub const SHOWN: usize = 4;

/// The entries that are shown: all that run, and of those that have ended the last [`SHOWN`] of each container of a pod.
pub fn shown(entries: &[Entry]) -> Vec<&Entry> {
    fn container(entry: &Entry) -> (&str, &str) {
        (&entry.identity.pod, &entry.identity.container)
    }
    let mut ends: HashMap<(&str, &str), Vec<Instant>> = HashMap::new();
    for entry in entries {
        if let Some(end) = &entry.ended {
            ends.entry(container(entry)).or_default().push(end.at);
        }
    }
    // when the last one ended that is not shown
    let hidden: HashMap<(&str, &str), Instant> = ends
        .into_iter()
        .filter_map(|(of, mut ends)| {
            ends.sort_unstable_by(|one, other| other.cmp(one));
            Some((of, *ends.get(SHOWN)?))
        })
        .collect();
    let is_shown = |entry: &&Entry| {
        let hidden = hidden.get(&container(entry));
        entry.ended.as_ref().is_none_or(|end| hidden.is_none_or(|hidden| end.at > *hidden))
    };
    entries.iter().filter(is_shown).collect()
}

/// What stays of a reading when the container has ended: what it counted, and not what it held.
fn remains(reading: Reading) -> Reading {
    use agentd_metrics::container::Memory;
    let Memory { faults, major_faults, limit_hits, high_hits, oom, oom_kills, .. } = reading.memory;
    Reading {
        cpu: reading.cpu,
        memory: Memory { faults, major_faults, limit_hits, high_hits, oom, oom_kills, ..Memory::default() },
        pressure: reading.pressure,
        io: reading.io,
        ..Reading::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(cgroup: u64, instance: &str, slot: u32, attempt: u32) -> Identity {
        Identity {
            cgroup,
            pod: "/app/web".to_owned(),
            instance: instance.to_owned(),
            container: format!("c{slot}"),
            slot,
            attempt,
            image: None,
            namespace: DEFAULT_NAMESPACE.to_owned(),
            profiled: false,
            directories: Directories::default(),
        }
    }

    fn enter(registry: &Registry, cgroup: u64, instance: &str, slot: u32, attempt: u32, now: Instant) {
        registry.enter(identity(cgroup, instance, slot, attempt), SystemTime::UNIX_EPOCH, now);
    }

    #[test]
    fn an_ended_container_is_known_until_its_tombstone_is_over() {
        let (registry, start, keep) = (Registry::default(), Instant::now(), Duration::from_mins(1));
        enter(&registry, 7, "a", 0, 1, start);
        assert_eq!(registry.get(7).unwrap().id(), "a/c0/1");
        assert!(registry.due(keep, start + keep * 2).is_empty());
        let mut last = Reading::default();
        last.cpu.usage = Some(5);
        last.memory.usage = Some(1 << 20);
        last.memory.faults = Some(9);
        registry.end(7, last, start);
        // the second is late and empty
        registry.end(7, Reading::default(), start + keep);
        let entry = registry.all().remove(0);
        let ended = entry.ended.unwrap();
        assert_eq!((ended.last.cpu.usage, ended.last.memory.faults), (Some(5), Some(9)));
        assert_eq!(ended.last.memory.usage, None, "what it held is free");
        assert!(registry.due(keep, start + Duration::from_secs(59)).is_empty());
        assert_eq!(registry.ended(7).map(|ended| ended.last.cpu.usage), Some(Some(5)));
        assert!(registry.ended(8).is_none());
        assert_eq!(registry.due(keep, start + keep), [7]);
        assert_eq!(registry.count(), (0, 1));
        assert!(registry.remove(7).is_some());
        assert!(registry.get(7).is_none());
    }

    #[test]
    fn another_start_is_another_identity_and_ends_the_one_before() {
        let (registry, start) = (Registry::default(), Instant::now());
        enter(&registry, 7, "a", 0, 1, start);
        enter(&registry, 8, "a", 1, 1, start);
        enter(&registry, 9, "a", 0, 2, start + Duration::from_secs(1));
        assert_eq!(registry.count(), (2, 1));
        let ids: Vec<String> = registry.all().iter().map(|entry| entry.identity.id()).collect();
        assert_eq!(ids, ["a/c0/1", "a/c0/2", "a/c1/1"]);
        assert_eq!(registry.last_of("a", 0).map(|identity| identity.attempt), Some(2));
        assert_eq!(registry.last_of("b", 0), None);
        registry.end_instance("b", start);
        assert_eq!(registry.count(), (2, 1));
        registry.end_instance("a", start);
        assert_eq!(registry.count(), (0, 3));
    }

    #[test]
    fn the_oldest_tombstone_makes_room_and_keeps_its_figures() {
        let (registry, start) = (Registry::default(), Instant::now());
        for cgroup in 1..=3 {
            enter(&registry, cgroup, "a", cgroup as u32, 1, start);
        }
        assert_eq!(registry.oldest(), None, "none has ended");
        registry.end(2, Reading::default(), start + Duration::from_secs(1));
        registry.end(1, Reading::default(), start + Duration::from_secs(2));
        assert_eq!(registry.oldest(), Some(2));
        registry.keep(2, Figures::default());
        assert_eq!(registry.oldest(), Some(1));
        // one that runs has none to keep
        registry.keep(3, Figures::default());
        assert!(registry.all().iter().all(|entry| entry.identity.cgroup != 3 || entry.ended.is_none()));
        assert_eq!(registry.get(2).unwrap().cgroup, 2);
    }

    #[test]
    fn of_a_container_that_ends_again_and_again_the_last_ends_are_shown() {
        let (registry, begun) = (Registry::default(), Instant::now());
        for attempt in 1..=20 {
            let at = begun + Duration::from_secs(u64::from(attempt));
            // a pod that is started anew as a whole has another instance each time
            enter(&registry, u64::from(attempt), ["a", "b", "c"][attempt as usize % 3], 0, attempt, at);
            registry.end(u64::from(attempt), Reading::default(), at);
        }
        enter(&registry, 21, "b", 0, 21, begun);
        enter(&registry, 31, "a", 1, 1, begun);
        enter(&registry, 32, "c", 2, 1, begun);
        registry.end(32, Reading::default(), begun);
        let all = registry.all();
        let mut found: Vec<u64> = shown(&all).iter().map(|entry| entry.identity.cgroup).collect();
        found.sort_unstable();
        assert_eq!(found, [17, 18, 19, 20, 21, 31, 32]);
        assert_eq!(all.len(), 23, "the others are known all the same");
    }

    #[test]
    fn entering_again_goes_on_and_beginning_counts_anew() {
        let (registry, now) = (Registry::default(), Instant::now());
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        registry.enter(identity(7, "a", 0, 1), at(1), now);
        registry.enter(identity(7, "a", 0, 1), at(2), now);
        assert_eq!(registry.all()[0].since, at(1));
        registry.begin(at(3));
        assert_eq!(registry.all()[0].since, at(3));
        // an inode that is given out again is a new container
        registry.end(7, Reading::default(), now);
        registry.enter(identity(7, "b", 0, 1), at(4), now);
        assert_eq!((registry.all()[0].since, registry.count()), (at(4), (1, 0)));
    }

    #[test]
    fn a_namespace_is_a_label_or_a_role() {
        let parse = |extra: &str| {
            let text = format!(
                r#"{{"id":"/a","containers":[{{"name":"c","exec":{{"command":{{"shell":"true"}}}},"resources":{{"cpus":1,"mem":64}}}}]{extra}}}"#
            );
            agentd_api::parse::pod(text.as_bytes()).unwrap()
        };
        let roles = r#","scheduling":{"placement":{"acceptedResourceRoles":["*","prod"]}}"#;
        assert_eq!(namespace(&parse("")), "default");
        assert_eq!(namespace(&parse(roles)), "prod");
        assert_eq!(namespace(&parse(&format!(r#"{roles},"labels":{{"agentd.namespace":"x"}}"#))), "x");
    }
}
