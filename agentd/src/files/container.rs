//! The tree of a running container, and the rights with which the daemon works in it.
//!
//! The tree is `/proc/<pid>/root` of the container's first process, opened through a descriptor of `/proc/<pid>` whose
//! cgroup was seen to be the container's: a process id that went to somebody else meanwhile is never touched.
//!
//! Work in the tree runs on a thread of its own that takes on the user, the groups and, of the capabilities that matter
//! for files, those of that first process, and then ends. So a copy can do what a program in the container can do and no
//! more: not around file permissions, and not around the disk limit, which the daemon's own rights would pass.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::process::{DumpableBehavior, Gid};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::error::FilesError;
use super::tree;
use crate::target::Target;

/// Largest file of procfs that is read here.
const MOST: usize = 64 << 10;

/// Whether the daemon was dumpable at first.
static DUMPABLE: OnceLock<Option<DumpableBehavior>> = OnceLock::new();

/// The tree of a running container.
#[derive(Debug)]
pub struct ContainerTree {
    root: OwnedFd,
    /// User and group ids of the container and of the host.
    pub ids: Ids,
    rights: Rights,
}

impl ContainerTree {
    /// Opens the tree of a running container. Blocking.
    pub fn open(target: &Target) -> Result<Self, FilesError> {
        let process = process(target.pid, &target.instance, Some(target.slot))?;
        let ended = || FilesError::Refused(format!("the container {} has ended", target.container));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(&process, "root", flags, Mode::empty()).map_err(|_| ended())?;
        let read = |name: &str| read_small(process.as_fd(), name).ok_or_else(ended);
        let ids = Ids { users: id_map(&read("uid_map")?), groups: id_map(&read("gid_map")?) };
        let rights = Rights::from_status(&read("status")?).ok_or_else(ended)?;
        Ok(Self { root, ids, rights })
    }

    /// A folder as a tree, with the rights that the thread has.
    #[cfg(test)]
    pub(super) fn of_folder(folder: &std::path::Path) -> Self {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, folder, flags, Mode::empty()).unwrap();
        Self { root, ids: Ids::default(), rights: Rights::default() }
    }

    /// Takes on the rights of the container's first process, for the rest of this thread's life.
    pub fn enter(&self) -> Result<(), FilesError> {
        let failed = |what: &str, error: rustix::io::Errno| FilesError::Io(format!("{what}: {error}"));
        let rights = &self.rights;
        // asked once, before the first thread changes it
        let before = *DUMPABLE.get_or_init(|| rustix::process::dumpable_behavior().ok());
        let groups: Vec<Gid> = rights.groups.iter().map(|group| Gid::from_raw(*group)).collect();
        rustix::thread::set_thread_groups(&groups).map_err(|error| failed("setgroups", error))?;
        // these two tell nothing; asking again with an id that does not exist gives the present one
        let none = u32::MAX;
        nix::unistd::setfsgid(rights.gid.into());
        nix::unistd::setfsuid(rights.uid.into());
        if nix::unistd::setfsgid(none.into()).as_raw() != rights.gid
            || nix::unistd::setfsuid(none.into()).as_raw() != rights.uid
        {
            let found = format!("the user {}:{} of the container cannot be taken on", rights.uid, rights.gid);
            return Err(FilesError::Io(found));
        }
        let wanted = CapabilitySet::from_bits_retain(rights.capabilities) & FILE_CAPABILITIES;
        let sets = CapabilitySets { effective: wanted, permitted: wanted, inheritable: CapabilitySet::empty() };
        rustix::thread::set_capabilities(None, sets).map_err(|error| failed("capset", error))?;
        // a thread that changes its user takes this from the whole process; the daemon's memory is no more secret than before
        if let Some(dumpable) = before {
            rustix::process::set_dumpable_behavior(dumpable).map_err(|error| failed("PR_SET_DUMPABLE", error))?;
        }
        Ok(())
    }

    /// A descriptor of what lies at an absolute path, nothing of it opened yet. Symbolic links lead where they lead inside
    /// the container; the last one is followed only if asked for.
    pub fn find(&self, path: &[u8], follow: bool) -> Result<(OwnedFd, Stat), FilesError> {
        let shown = tree::shown(path);
        let flags = if follow { OFlags::empty() } else { OFlags::NOFOLLOW };
        let held = tree::path_fd(self.root.as_fd(), path, flags, ResolveFlags::IN_ROOT)
            .map_err(|error| FilesError::of(&shown, error))?;
        let stat = rustix::fs::fstat(&held).map_err(|error| FilesError::of(&shown, error))?;
        if tree::kind(&stat) != FileType::Symlink {
            tree::check_store(&held, &shown)?;
        }
        Ok((held, stat))
    }

    /// Whether what has this owner and mode may be had: in a user namespace, the container's capabilities do not count
    /// for files of users that the namespace does not have.
    pub fn permits(&self, stat: &Stat, bits: u32) -> bool {
        let known = self.ids.users.inside(stat.st_uid).is_some() && self.ids.groups.inside(stat.st_gid).is_some();
        known || stat.st_mode & bits == bits
    }
}

/// The capabilities that matter for files, of those that a container may have. Not among them is `CAP_SYS_RESOURCE`, with
/// which disk limits do not count.
const FILE_CAPABILITIES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER);

/// A descriptor of `/proc/<pid>`, whose process belongs to the instance, and to the container at `slot` if one is given.
pub fn process(pid: u32, instance: &str, slot: Option<usize>) -> Result<OwnedFd, FilesError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let ended = || FilesError::Refused(format!("the process {pid} of the instance {instance} has ended"));
    let process = rustix::fs::openat(CWD, format!("/proc/{pid}"), flags, Mode::empty()).map_err(|_| ended())?;
    let cgroups = read_small(process.as_fd(), "cgroup").ok_or_else(ended)?;
    if belongs(&cgroups, instance, slot) { Ok(process) } else { Err(ended()) }
}

/// Whether some line of `/proc/<pid>/cgroup` lies below `pods/<instance>`, and `c<slot>` there.
fn belongs(cgroups: &str, instance: &str, slot: Option<usize>) -> bool {
    let slot = slot.map(|slot| format!("c{slot}"));
    cgroups.lines().filter_map(|line| line.splitn(3, ':').nth(2)).any(|path| {
        let parts: Vec<&str> = path.split('/').collect();
        parts.windows(2).enumerate().any(|(at, two)| {
            two == ["pods", instance] && slot.as_deref().is_none_or(|slot| parts.get(at + 2) == Some(&slot))
        })
    })
}

/// A small file of procfs; none where it is gone.
pub fn read_small(dir: BorrowedFd<'_>, name: &str) -> Option<String> {
    let file = rustix::fs::openat(dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    while bytes.len() < MOST {
        match rustix::io::read(&file, &mut piece) {
            Ok(0) => break,
            Ok(count) => bytes.extend_from_slice(&piece[..count]),
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return None,
        }
    }
    String::from_utf8(bytes).ok()
}

/// Ids of a user namespace and of the host.
#[derive(Debug, Default)]
pub struct Ids {
    /// Users.
    pub users: IdMap,
    /// Groups.
    pub groups: IdMap,
}

/// Ranges: first inside, first on the host, count. Without any, both are the same.
#[derive(Debug, Default)]
pub struct IdMap(Vec<(u32, u32, u32)>);

impl IdMap {
    /// The id on the host of one in the container.
    pub fn outside(&self, id: u32) -> Option<u32> {
        if self.0.is_empty() {
            return Some(id);
        }
        let range = |(inside, _, count): &&(u32, u32, u32)| id >= *inside && id - inside < *count;
        self.0.iter().find(range).and_then(|(inside, outside, _)| outside.checked_add(id - inside))
    }

    /// The id in the container of one on the host.
    pub fn inside(&self, id: u32) -> Option<u32> {
        if self.0.is_empty() {
            return Some(id);
        }
        let range = |(_, outside, count): &&(u32, u32, u32)| id >= *outside && id - outside < *count;
        self.0.iter().find(range).and_then(|(inside, outside, _)| inside.checked_add(id - outside))
    }
}

fn id_map(text: &str) -> IdMap {
    let ranges = text.lines().filter_map(|line| {
        let mut numbers = line.split_ascii_whitespace().map(str::parse::<u32>);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?))
    });
    IdMap(ranges.collect())
}

/// Of a process: what counts when it works with files. Ids are those of the host.
#[derive(Debug, Default)]
struct Rights {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    capabilities: u64,
}

impl Rights {
    /// From `/proc/<pid>/status`.
    fn from_status(status: &str) -> Option<Self> {
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        // real, effective, saved, of the filesystem
        let id = |name: &str| field(name)?.split_ascii_whitespace().nth(3)?.parse().ok();
        Some(Self {
            uid: id("Uid")?,
            gid: id("Gid")?,
            groups: field("Groups")?.split_ascii_whitespace().filter_map(|group| group.parse().ok()).collect(),
            capabilities: u64::from_str_radix(field("CapEff")?.trim(), 16).ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_cgroup() {
        let text = "5:memory:/agentd/pods/0123456789ab/c1\n0::/agentd/pods/0123456789ab/c1/init\n";
        assert!(belongs(text, "0123456789ab", Some(1)) && belongs(text, "0123456789ab", None));
        assert!(!belongs(text, "0123456789ab", Some(11)) && !belongs(text, "0123456789ab", Some(0)));
        assert!(!belongs(text, "0123456789a", None) && !belongs(text, "123456789ab", None));
        assert!(!belongs("0::/user.slice/pods\n", "user.slice", None));
        let own = std::process::id();
        assert!(matches!(process(own, "0123456789ab", None), Err(FilesError::Refused(_))));
    }

    #[test]
    fn ids_are_mapped_both_ways() {
        let whole = id_map("         0          0 4294967295\n");
        assert_eq!((whole.inside(7), whole.outside(7), whole.outside(u32::MAX)), (Some(7), Some(7), None));
        let map = id_map("0 1000000 65536\n100000 5 1\n");
        assert_eq!((map.outside(0), map.outside(65535), map.outside(65536)), (Some(1_000_000), Some(1_065_535), None));
        assert_eq!((map.inside(1_000_010), map.inside(5), map.inside(0)), (Some(10), Some(100_000), None));
        assert_eq!(IdMap::default().inside(3), Some(3));
    }

    #[test]
    fn rights_are_those_of_the_filesystem() {
        let status = "Name:\tx\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t9 10 \nCapEff:\t000000000000000b\n";
        let rights = Rights::from_status(status).unwrap();
        assert_eq!((rights.uid, rights.gid, rights.groups, rights.capabilities), (4, 8, vec![9, 10], 11));
        assert!(Rights::from_status("Uid:\t1\n").is_none());
    }
}
