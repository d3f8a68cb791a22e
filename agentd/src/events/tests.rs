//! Ids and kept events over ends of the daemon and of the host.

use super::*;

fn layout(folder: &tempfile::TempDir) -> Layout {
    let layout = Layout { run: folder.path().join("run"), state: folder.path().join("state") };
    std::fs::create_dir_all(&layout.state).unwrap();
    layout
}

fn publish(events: &Events, count: usize) {
    (0..count).for_each(|n| events.publish("k", Subject::default(), n.to_string()));
}

fn ids(events: &Events, after: u64) -> Vec<u64> {
    events.since(after).events.iter().map(|event| event.id).collect()
}

#[test]
fn the_ring_keeps_the_last_and_ids_go_up_by_one() {
    let events = Events::default();
    publish(&events, KEPT + 10);
    let mut all = events.since(0);
    assert_eq!((all.events.len(), all.events[0].id, all.lost), (KEPT, 11, None));
    assert!(all.events.windows(2).all(|w| w[1].id == w[0].id + 1));
    assert_eq!(events.since(KEPT as u64 + 9).events.len(), 1);
    assert_eq!(events.since(4).lost, Some((5, 10)));
    assert_eq!(events.since(10).lost, None);
    events.publish("k", Subject::default(), "last");
    assert_eq!(all.channel.try_recv().unwrap().message, "last");
}

#[test]
fn a_new_daemon_goes_on_where_the_last_one_was_killed() {
    let folder = tempfile::tempdir().unwrap();
    let layout = layout(&folder);
    let events = Events::open(&layout).unwrap();
    publish(&events, 3);
    // as after SIGKILL
    std::mem::forget(events);
    let events = Events::open(&layout).unwrap();
    assert_eq!(ids(&events, 0), [1, 2, 3]);
    publish(&events, 2 * LINES + 5);
    drop(events);
    let events = Events::open(&layout).unwrap();
    let kept = ids(&events, 0);
    assert_eq!((kept.len(), kept.last()), (KEPT, Some(&(2 * LINES as u64 + 8))));
    publish(&events, 1);
    assert_eq!(ids(&events, 2 * LINES as u64 + 8), [2 * LINES as u64 + 9]);
    assert_eq!(std::fs::read_dir(layout.events()).unwrap().count(), 2);
    // a line that was cut short is not told, and not built upon
    std::fs::write(layout.events().join("last"), "{\"id\":").unwrap();
    drop(events);
    let events = Events::open(&layout).unwrap();
    publish(&events, 1);
    drop(events);
    let kept = ids(&Events::open(&layout).unwrap(), 0);
    assert!(kept.windows(2).all(|pair| pair[1] == pair[0] + 1), "{kept:?}");
}

#[test]
fn frequent_events_give_way_to_each_other_and_not_others_to_them() {
    let folder = tempfile::tempdir().unwrap();
    let layout = layout(&folder);
    let events = Events::open(&layout).unwrap();
    publish(&events, 10);
    for _ in 0..3 * KEPT {
        events.publish_at("container-exec", Subject::default(), jiff::Timestamp::now(), String::new());
    }
    let rare = |events: &Events| ids(events, 0).into_iter().filter(|id| *id <= 10).count();
    assert_eq!((rare(&events), ids(&events, 0).len()), (10, KEPT));
    let kept_before = ids(&events, 0);
    // whoever knew the first ten is told that some after them are gone, and gets the rest
    let since = events.since(10);
    let first = since.events[0].id;
    assert_eq!((since.lost, since.events.len()), (Some((11, first - 1)), KEPT - 10));
    assert_eq!(events.since(first).lost, None);
    // also after a kill, whose events are at least those of the files
    std::mem::forget(events);
    let events = Events::open(&layout).unwrap();
    assert_eq!((rare(&events), ids(&events, 0)), (10, kept_before));
    assert_eq!(events.since(10).lost, Some((11, first - 1)));
    // others still push out the oldest: half of the ring is theirs at least
    publish(&events, KEPT);
    assert_eq!(ids(&events, 0).len(), KEPT);
    assert!(events.since(0).events.iter().filter(|event| event.kind == "k").count() >= KEPT / 2);
}

#[test]
fn ids_are_never_given_twice_when_the_lines_are_gone() {
    let folder = tempfile::tempdir().unwrap();
    let layout = layout(&folder);
    let events = Events::open(&layout).unwrap();
    publish(&events, 7);
    drop(events);
    // a reboot
    std::fs::remove_dir_all(&layout.run).unwrap();
    let events = Events::open(&layout).unwrap();
    let since = events.since(7);
    assert_eq!((since.lost, since.events.len()), (Some((8, RESERVED)), 0));
    publish(&events, 1);
    assert_eq!(ids(&events, 7), [RESERVED + 1]);
    drop(events);
    // lines that are ahead of the mark are another host's
    std::fs::remove_file(layout.event_mark()).unwrap();
    let events = Events::open(&layout).unwrap();
    publish(&events, 1);
    assert_eq!(ids(&events, 0), [1]);
    assert_eq!(events.since(900).lost, Some((0, 0)));
    assert_eq!(ids(&events, 900), [1]);
}

#[test]
fn a_folder_that_cannot_be_written_costs_no_id() {
    let folder = tempfile::tempdir().unwrap();
    let layout = layout(&folder);
    let events = Events::open(&layout).unwrap();
    publish(&events, 2);
    events.ring().disk.as_mut().unwrap().file = Some(File::open("/dev/null").unwrap());
    publish(&events, 2);
    assert_eq!(ids(&events, 0), [1, 2, 3, 4]);
    drop(events);
    let events = Events::open(&layout).unwrap();
    publish(&events, 1);
    assert!(ids(&events, 0)[0] > 4);
}
