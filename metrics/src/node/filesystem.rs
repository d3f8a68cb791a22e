//! Room on the host's file systems.

use std::path::{Path, PathBuf};

use super::mounts::{Mount, parse, wanted};
use super::read::{Label, Points, Reason, optional, text};
use super::room::{Answer, Room, Rooms};
use crate::catalogue::{host, node};
use crate::model::Number;

/// What is read and what is left out.
pub(super) struct Wanted<'a> {
    /// The kernel's /proc.
    pub(super) proc: &'a Path,
    /// Where the host's root is mounted.
    pub(super) root: &'a Path,
    /// Folders below which no mount has points.
    pub(super) folders: &'a [PathBuf],
    /// Most file systems with points.
    pub(super) most: usize,
}

/// Points of the file systems.
pub(super) fn filesystems(wants: &Wanted<'_>, rooms: &Rooms, points: &mut Points<'_>) -> Result<(), Reason> {
    // the table of process 1 is the host's; with `hidepid` it may not be there
    let table = match optional(&wants.proc.join("1/mountinfo")) {
        Ok(Some(table)) => table,
        Ok(None) | Err(_) => text(&wants.proc.join("self/mountinfo"))?,
    };
    let mounts: Vec<Mount> = parse(&table).into_iter().filter(|mount| wanted(mount, wants.folders)).collect();
    let (mut stuck, mut not_asked) = (Vec::new(), 0_u64);
    for mount in mounts.iter().take(wants.most) {
        let path = match mount.point.strip_prefix('/') {
            Some("") | None => wants.root.to_owned(),
            Some(below) => wants.root.join(below),
        };
        match rooms.ask(path) {
            Answer::Known(room) => put(mount, room.ok(), points),
            Answer::Stuck => {
                stuck.push(mount.point.as_str());
                put(mount, None, points);
            }
            Answer::NotAsked => {
                not_asked += 1;
                put(mount, None, points);
            }
        }
    }
    let past = mounts.len().saturating_sub(wants.most) as u64;
    for (reason, count) in [("limit", past), ("stuck", stuck.len() as u64), ("not-asked", not_asked)] {
        points.at(&host::FILESYSTEMS_OMITTED, [reason.into()], count);
    }
    if stuck.is_empty() && not_asked == 0 {
        return Ok(());
    }
    Err(format!(
        "found {} of {} file systems that do not answer ({}), expected all to; see to their servers, or unmount them with umount -l",
        stuck.len() as u64 + not_asked,
        mounts.len(),
        stuck.join(", ")
    ))
}

/// Points of one; without `room` only that it could not be asked.
fn put(mount: &Mount, room: Option<Room>, points: &mut Points<'_>) {
    let labels =
        || -> [Label; 3] { [mount.device.clone().into(), mount.kind.clone().into(), mount.point.clone().into()] };
    points.at(&node::FILESYSTEM_DEVICE_ERROR, labels(), u64::from(room.is_none()));
    points.at(&node::FILESYSTEM_READONLY, labels(), u64::from(mount.read_only));
    let Some(room) = room else { return };
    for (family, value) in [
        (&node::FILESYSTEM_SIZE, room.size),
        (&node::FILESYSTEM_FREE, room.free),
        (&node::FILESYSTEM_AVAIL, room.available),
        (&node::FILESYSTEM_FILES, room.files),
        (&node::FILESYSTEM_FILES_FREE, room.files_free),
    ] {
        points.at(family, labels(), value);
    }
    let mode = if mount.read_only { "ro" } else { "rw" };
    let [device, kind, point] = labels();
    let reserved = room.free.saturating_sub(room.available);
    let used = room.size.saturating_sub(room.free);
    for (state, value) in [("used", used), ("free", room.available), ("reserved", reserved)] {
        let labels = [device.clone(), point.clone(), kind.clone(), mode.into(), state.into()];
        points.at(&host::FILESYSTEM_USAGE, labels, Number::Whole(value));
    }
    points.at(&host::FILESYSTEM_LIMIT, [device, point, kind, mode.into()], room.size);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::node::read::tests::{filled, value, write};

    #[test]
    fn file_systems_have_room_and_a_missing_place_is_an_error_of_its_device() {
        let root = tempfile::tempdir().unwrap();
        write(
            root.path(),
            &[
                (
                    "proc/self/mountinfo",
                    "27 1 254:0 / / rw - ext4 /dev/vda rw\n28 27 254:1 / /data ro - xfs /dev/vdb rw\n\
                     29 27 254:2 / /gone rw - xfs /dev/vdc rw\n22 27 0:21 / /proc rw - proc proc rw\n",
                ),
                ("data/file", ""),
            ],
        );
        let proc = root.path().join("proc");
        let wants = Wanted { proc: &proc, root: root.path(), folders: &[], most: 10 };
        let rooms = Rooms::new(Duration::from_secs(10));
        let (batch, answer) = filled(|points| filesystems(&wants, &rooms, points));
        answer.unwrap();
        let data = ["/dev/vdb", "xfs", "/data"];
        assert_eq!(value(&batch, &node::FILESYSTEM_READONLY, &data), Some(1.0));
        assert_eq!(value(&batch, &node::FILESYSTEM_DEVICE_ERROR, &data), Some(0.0));
        let size = value(&batch, &node::FILESYSTEM_SIZE, &data).unwrap();
        assert!(size > 0.0);
        let state = |state| value(&batch, &host::FILESYSTEM_USAGE, &["/dev/vdb", "/data", "xfs", "ro", state]).unwrap();
        assert!((state("used") + state("free") + state("reserved") - size).abs() < 1.0);
        let gone = ["/dev/vdc", "xfs", "/gone"];
        assert_eq!(value(&batch, &node::FILESYSTEM_DEVICE_ERROR, &gone), Some(1.0));
        assert_eq!(value(&batch, &node::FILESYSTEM_SIZE, &gone), None);
        assert_eq!(value(&batch, &node::FILESYSTEM_DEVICE_ERROR, &["proc", "proc", "/proc"]), None);
        // the table of process 1 comes before our own, and what is past the limit is counted
        write(
            root.path(),
            &[("proc/1/mountinfo", "1 1 1:1 / / rw - ext4 /dev/a rw\n2 1 1:2 / /data rw - ext4 /dev/b rw\n")],
        );
        let (batch, answer) = filled(|points| filesystems(&Wanted { most: 1, ..wants }, &rooms, points));
        answer.unwrap();
        assert_eq!(batch.points(&node::FILESYSTEM_SIZE).len(), 1);
        assert_eq!(value(&batch, &host::FILESYSTEMS_OMITTED, &["limit"]), Some(1.0));
        let nowhere = Wanted { proc: Path::new("/nowhere"), root: root.path(), folders: &[], most: 1 };
        assert!(filled(|points| filesystems(&nowhere, &rooms, points)).1.unwrap_err().contains("does not exist"));
    }
}
