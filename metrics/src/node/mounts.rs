//! `mountinfo`: what is mounted on the host, and which of that has points.

use std::path::PathBuf;

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    /// What is mounted, e.g. `/dev/vda`.
    pub(super) device: String,
    /// Where.
    pub(super) point: String,
    /// Kind of file system.
    pub(super) kind: String,
    /// Whether nothing can be written, through this mount or at all.
    pub(super) read_only: bool,
}

/// The mounts that can be reached, by their order in the table: of several at one place the last.
pub(super) fn parse(table: &str) -> Vec<Mount> {
    let mut mounts: Vec<Mount> = Vec::new();
    let mut places = std::collections::HashMap::new();
    for mount in table.lines().filter_map(line) {
        if let Some(place) = places.get(&mount.point) {
            mounts[*place] = mount;
        } else {
            places.insert(mount.point.clone(), mounts.len());
            mounts.push(mount);
        }
    }
    mounts
}

/// One line: see proc_pid_mountinfo(5).
fn line(line: &str) -> Option<Mount> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mut mount = mount.split(' ').skip(4);
    let (point, options) = (mount.next()?, mount.next()?);
    let mut file_system = file_system.split(' ');
    let (kind, device) = (file_system.next()?, file_system.next()?);
    let of_all = file_system.next().unwrap_or_default();
    let read_only = options.split(',').any(|option| option == "ro")
        || of_all.split(',').any(|option| matches!(option, "ro" | "emergency_ro"));
    Some(Mount { device: unescape(device), point: unescape(point), kind: unescape(kind), read_only })
}

/// Undoes the kernel's octal escapes: a backslash and three digits for each byte of space, tab, newline, `\` and `#`.
pub(super) fn unescape(text: &str) -> String {
    if !text.contains('\\') {
        return text.to_owned();
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code = match after {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] if *first == b'\\' => {
                Some((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'))
            }
            _ => None,
        };
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Kinds of file systems without space of their own, as node_exporter leaves them out unless told otherwise.
const KINDS: &[&str] = &[
    "autofs",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "erofs",
    "fusectl",
    "hugetlbfs",
    "iso9660",
    "mqueue",
    "nsfs",
    "overlay",
    "proc",
    "procfs",
    "pstore",
    "rpc_pipefs",
    "securityfs",
    "selinuxfs",
    "squashfs",
    "sysfs",
    "tracefs",
];

/// Whether a mount has points. Places are left out as node_exporter does it,
/// `^/(dev|proc|run/credentials/.+|sys|var/lib/docker/.+|var/lib/containers/storage/.+)($|/)`, and those below
/// `folders`.
pub(super) fn wanted(mount: &Mount, folders: &[PathBuf]) -> bool {
    let point = mount.point.as_str();
    let at_or_below =
        |folder: &str| point.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let below = |folder: &str| point.strip_prefix(folder).is_some_and(|rest| !rest.is_empty());
    !(KINDS.contains(&mount.kind.as_str())
        || ["/dev", "/proc", "/sys"].into_iter().any(at_or_below)
        || ["/run/credentials/", "/var/lib/docker/", "/var/lib/containers/storage/"].into_iter().any(below)
        || folders.iter().any(|folder| std::path::Path::new(point).starts_with(folder)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "22 27 0:21 / /proc rw,relatime - proc proc rw\n\
        30 25 0:27 / /srv rw,relatime - tmpfs first rw,size=24684092k\n\
        27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard\n\
        40 27 8:0 /a /my\\040data\\134x ro,relatime shared:1 master:2 - xfs /dev/sd\\011b rw\n\
        41 27 0:30 / /nfs rw - nfs4 server:/export ro,vers=4.2\n\
        42 27 0:31 / /srv rw - tmpfs second rw,emergency_ro\n\
        short line\n 1 2 3 - \n- - -\n\n";

    #[test]
    fn the_last_mount_at_a_place_counts_and_read_only_ones_are_told() {
        let mounts = parse(SAMPLE);
        let told: Vec<(&str, &str, &str, bool)> =
            mounts.iter().map(|m| (m.device.as_str(), m.point.as_str(), m.kind.as_str(), m.read_only)).collect();
        assert_eq!(
            told,
            [
                ("proc", "/proc", "proc", false),
                ("second", "/srv", "tmpfs", true),
                ("/dev/vda", "/", "ext4", false),
                ("/dev/sd\tb", "/my data\\x", "xfs", true),
                ("server:/export", "/nfs", "nfs4", true),
            ]
        );
    }

    #[test]
    fn escapes_are_undone_byte_by_byte() {
        for (text, plain) in [
            ("", ""),
            ("\\", "\\"),
            ("\\04", "\\04"),
            ("\\040", " "),
            ("\\134040", "\\040"),
            ("\\400", "\\400"),
            ("é\\303\\251", "éé"),
            ("\\377", "\u{fffd}"),
        ] {
            assert_eq!(unescape(text), plain, "{text}");
        }
    }

    #[test]
    fn what_node_exporter_leaves_out_is_left_out() {
        let mount = |point: &str, kind: &str| Mount {
            device: "d".to_owned(),
            point: point.to_owned(),
            kind: kind.to_owned(),
            read_only: false,
        };
        let folders = [PathBuf::from("/run/agentd")];
        for (point, kind) in [
            ("/", "ext4"),
            ("/run", "tmpfs"),
            ("/development", "xfs"),
            ("/mnt", "nfs4"),
            ("/var/lib/docker", "xfs"),
            ("/run/agentd2", "tmpfs"),
            ("/home", "btrfs"),
        ] {
            assert!(wanted(&mount(point, kind), &folders), "{point}");
        }
        for (point, kind) in [
            ("/dev/shm", "tmpfs"),
            ("/proc", "tmpfs"),
            ("/sys/x", "tmpfs"),
            ("/", "overlay"),
            ("/cg", "cgroup2"),
            ("/run/credentials/a.service", "ramfs"),
            ("/var/lib/docker/x", "ext4"),
            ("/run/agentd/pods/1", "tmpfs"),
        ] {
            assert!(!wanted(&mount(point, kind), &folders), "{point}");
        }
    }
}
