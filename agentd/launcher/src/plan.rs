//! What a container is, as data: everything that its first process needs to know, decided by agentd beforehand.
//!
//! A plan travels in a memfd beside a list of descriptors; mounts and files are named by their index in that list, so
//! that the launcher never resolves a path of the host.

use crate::wire::{Decoder, Encoder, Malformed};

/// What a mount point is made as when it does not exist in the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetKind {
    /// An empty directory.
    Directory,
    /// An empty regular file.
    File,
}

/// One step of building the container's mount tree. Steps run in order, after the root is attached and before the
/// pivot. Each target is an absolute path inside the container, resolved below the root by `openat2(RESOLVE_IN_ROOT)`,
/// missing components created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountStep {
    /// Attaches the detached mount `fd` (index into the descriptors) at `target`.
    Attach {
        /// Index of the detached mount's descriptor.
        fd: u32,
        /// Absolute path inside the container.
        target: Vec<u8>,
        /// What to create when `target` is missing.
        create: TargetKind,
    },
    /// A new proc of the container's pid namespace at `/proc` (nosuid, nodev, noexec).
    Proc,
    /// A new read-only sysfs at `/sys` of the pod's network namespace (nosuid, nodev, noexec).
    Sysfs,
    /// A read-only cgroup2 view below the container's cgroup namespace at `/sys/fs/cgroup`.
    Cgroup,
    /// A new tmpfs at `/dev` of at most `size` bytes with the standard links (`fd`, `stdin`, `ptmx`, …); the plan's
    /// [`ContainerPlan::devices`] are made in it.
    Dev {
        /// Size limit in bytes.
        size: u64,
    },
    /// A new devpts instance at `/dev/pts` (newinstance, ptmxmode 0666, mode 0620, gid 5).
    Devpts,
    /// The pod's shared memory at `/dev/shm`.
    Shm,
    /// The pod's POSIX message queues at `/dev/mqueue`.
    Mqueue,
    /// A new tmpfs at `target` (nosuid, nodev).
    Tmpfs {
        /// Absolute path inside the container.
        target: Vec<u8>,
        /// Size limit in bytes.
        size: u64,
        /// Mode of its root directory, e.g. 0o1777.
        mode: u32,
    },
    /// Creates a symbolic link (parents created); an existing name is left alone.
    Symlink {
        /// Absolute path of the link.
        path: Vec<u8>,
        /// What it points to.
        to: Vec<u8>,
    },
    /// Creates a directory; an existing one is left alone.
    Directory {
        /// Absolute path.
        path: Vec<u8>,
        /// Mode.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// Writes a new file (on a tmpfs root or tmpfs mount that agentd made; never follows links).
    File {
        /// Absolute path.
        path: Vec<u8>,
        /// Content.
        content: Vec<u8>,
        /// Mode.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// Attaches a mount that pod-init holds for the pod at `/volumes/<name>` (see `Request::Hold`).
    Held {
        /// Name given to `Hold`.
        name: Vec<u8>,
        /// Path below the held mount, resolved beneath it without links; empty for the mount itself.
        sub_path: Vec<u8>,
        /// Absolute path inside the container.
        target: Vec<u8>,
        /// Whether it is attached read-only.
        read_only: bool,
    },
    /// Remounts the mount at `target` read-only.
    ReadOnly {
        /// Absolute path inside the container.
        target: Vec<u8>,
    },
}

/// A character device node to make in the private `/dev` (mode bits without the type).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceNode {
    /// Path relative to `/dev`, e.g. `null` or `nvidia0`.
    pub name: String,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits, e.g. 0o666.
    pub mode: u32,
}

/// A resource limit as `setrlimit(2)` takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rlimit {
    /// `RLIMIT_*` number.
    pub resource: u32,
    /// Soft limit; `u64::MAX` is infinity.
    pub soft: u64,
    /// Hard limit; `u64::MAX` is infinity.
    pub hard: u64,
}

/// Capability sets as 64-bit masks (bit n = capability n). The inheritable set is always empty (CVE-2022-29162).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CapabilitySets {
    /// Bounding set.
    pub bounding: u64,
    /// Effective and permitted set of the first process (before exec; exec by a non-root user clears it).
    pub permitted: u64,
}

/// Everything that the container's first process needs. See the module's prose.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ContainerPlan {
    /// Program and arguments. Element 0 is searched for in the environment's `PATH` inside the container when it has
    /// no slash. Never empty.
    pub argv: Vec<Vec<u8>>,
    /// Environment as `NAME=value`.
    pub env: Vec<Vec<u8>>,
    /// Absolute working directory inside the container; created when missing.
    pub cwd: Vec<u8>,
    /// User id inside the container.
    pub uid: u32,
    /// Group id inside the container.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// File mode creation mask.
    pub umask: u32,
    /// Index of the detached mount that is the root.
    pub root: u32,
    /// Whether the root is remounted read-only at the end.
    pub root_readonly: bool,
    /// Steps that build the mount tree.
    pub mounts: Vec<MountStep>,
    /// Device nodes in `/dev`.
    pub devices: Vec<DeviceNode>,
    /// Paths hidden by an empty read-only tmpfs (directories) or `/dev/null` (files); absent ones are passed over.
    pub masked: Vec<Vec<u8>>,
    /// Paths bound over themselves read-only; absent ones are passed over.
    pub readonly: Vec<Vec<u8>>,
    /// Capabilities.
    pub capabilities: CapabilitySets,
    /// Whether `no_new_privs` is set. With a seccomp filter and without `CAP_SYS_ADMIN` it must be.
    pub no_new_privs: bool,
    /// Seccomp filters as arrays of `struct sock_filter` (8 bytes each), installed in order, the last one first in
    /// effect.
    pub seccomp: Vec<Vec<u8>>,
    /// Resource limits.
    pub rlimits: Vec<Rlimit>,
    /// `oom_score_adj`; a value that the kernel refuses (EACCES without CAP_SYS_RESOURCE) falls to the lowest allowed.
    pub oom_score_adj: i32,
    /// Index of the user namespace (already mapped) that is entered after the mounts are made; absent for none.
    pub user_namespace: Option<u32>,
    /// Index of a network namespace to enter instead of the pod's (host mode).
    pub network_namespace: Option<u32>,
    /// For a process that joins a container with a root of its own (debug container): where in that root the container's
    /// mounts appear. Absent for all others, which see the container's root.
    pub target: Option<Vec<u8>>,
}

impl MountStep {
    fn encode(&self, e: &mut Encoder) {
        match self {
            Self::Attach { fd, target, create } => {
                e.u8(0);
                e.u32(*fd);
                e.bytes(target);
                e.bool(*create == TargetKind::Directory);
            }
            Self::Proc => e.u8(1),
            Self::Sysfs => e.u8(2),
            Self::Cgroup => e.u8(3),
            Self::Dev { size } => {
                e.u8(4);
                e.u64(*size);
            }
            Self::Devpts => e.u8(5),
            Self::Shm => e.u8(6),
            Self::Mqueue => e.u8(7),
            Self::Tmpfs { target, size, mode } => {
                e.u8(8);
                e.bytes(target);
                e.u64(*size);
                e.u32(*mode);
            }
            Self::Symlink { path, to } => {
                e.u8(9);
                e.bytes(path);
                e.bytes(to);
            }
            Self::Directory { path, mode, uid, gid } => {
                e.u8(10);
                e.bytes(path);
                e.u32(*mode);
                e.u32(*uid);
                e.u32(*gid);
            }
            Self::File { path, content, mode, uid, gid } => {
                e.u8(11);
                e.bytes(path);
                e.bytes(content);
                e.u32(*mode);
                e.u32(*uid);
                e.u32(*gid);
            }
            Self::Held { name, sub_path, target, read_only } => {
                e.u8(13);
                e.bytes(name);
                e.bytes(sub_path);
                e.bytes(target);
                e.bool(*read_only);
            }
            Self::ReadOnly { target } => {
                e.u8(12);
                e.bytes(target);
            }
        }
    }

    fn decode(d: &mut Decoder<'_>) -> Result<Self, Malformed> {
        Ok(match d.u8()? {
            0 => Self::Attach {
                fd: d.u32()?,
                target: d.bytes()?,
                create: if d.bool()? { TargetKind::Directory } else { TargetKind::File },
            },
            1 => Self::Proc,
            2 => Self::Sysfs,
            3 => Self::Cgroup,
            4 => Self::Dev { size: d.u64()? },
            5 => Self::Devpts,
            6 => Self::Shm,
            7 => Self::Mqueue,
            8 => Self::Tmpfs { target: d.bytes()?, size: d.u64()?, mode: d.u32()? },
            9 => Self::Symlink { path: d.bytes()?, to: d.bytes()? },
            10 => Self::Directory { path: d.bytes()?, mode: d.u32()?, uid: d.u32()?, gid: d.u32()? },
            11 => Self::File { path: d.bytes()?, content: d.bytes()?, mode: d.u32()?, uid: d.u32()?, gid: d.u32()? },
            12 => Self::ReadOnly { target: d.bytes()? },
            13 => Self::Held { name: d.bytes()?, sub_path: d.bytes()?, target: d.bytes()?, read_only: d.bool()? },
            _ => return Err(Malformed("unknown mount step")),
        })
    }
}

impl ContainerPlan {
    /// The plan as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut e = Encoder::default();
        e.list(&self.argv, |e, v| e.bytes(v));
        e.list(&self.env, |e, v| e.bytes(v));
        e.bytes(&self.cwd);
        e.u32(self.uid);
        e.u32(self.gid);
        e.list(&self.groups, |e, v| e.u32(*v));
        e.u32(self.umask);
        e.u32(self.root);
        e.bool(self.root_readonly);
        e.list(&self.mounts, |e, v| v.encode(e));
        e.list(&self.devices, |e, v| {
            e.bytes(v.name.as_bytes());
            e.u32(v.major);
            e.u32(v.minor);
            e.u32(v.mode);
        });
        e.list(&self.masked, |e, v| e.bytes(v));
        e.list(&self.readonly, |e, v| e.bytes(v));
        e.u64(self.capabilities.bounding);
        e.u64(self.capabilities.permitted);
        e.bool(self.no_new_privs);
        e.list(&self.seccomp, |e, v| e.bytes(v));
        e.list(&self.rlimits, |e, v| {
            e.u32(v.resource);
            e.u64(v.soft);
            e.u64(v.hard);
        });
        e.i32(self.oom_score_adj);
        e.option(self.user_namespace.as_ref(), |e, v| e.u32(*v));
        e.option(self.network_namespace.as_ref(), |e, v| e.u32(*v));
        // last and only where there is one, so that a pod-init of an older version reads all other plans
        if let Some(target) = &self.target {
            e.bytes(target);
        }
        e.0
    }

    /// Reads a plan back.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut d = Decoder(bytes);
        let text = |d: &mut Decoder<'_>| String::from_utf8(d.bytes()?).map_err(|_| Malformed("text is not UTF-8"));
        let plan = Self {
            argv: d.list(Decoder::bytes)?,
            env: d.list(Decoder::bytes)?,
            cwd: d.bytes()?,
            uid: d.u32()?,
            gid: d.u32()?,
            groups: d.list(Decoder::u32)?,
            umask: d.u32()?,
            root: d.u32()?,
            root_readonly: d.bool()?,
            mounts: d.list(MountStep::decode)?,
            devices: d.list(|d| Ok(DeviceNode { name: text(d)?, major: d.u32()?, minor: d.u32()?, mode: d.u32()? }))?,
            masked: d.list(Decoder::bytes)?,
            readonly: d.list(Decoder::bytes)?,
            capabilities: CapabilitySets { bounding: d.u64()?, permitted: d.u64()? },
            no_new_privs: d.bool()?,
            seccomp: d.list(Decoder::bytes)?,
            rlimits: d.list(|d| Ok(Rlimit { resource: d.u32()?, soft: d.u64()?, hard: d.u64()? }))?,
            oom_score_adj: d.i32()?,
            user_namespace: d.option(Decoder::u32)?,
            network_namespace: d.option(Decoder::u32)?,
            target: if d.end().is_ok() { None } else { Some(d.bytes()?) },
        };
        d.end()?;
        if plan.argv.is_empty() {
            return Err(Malformed("empty argv"));
        }
        Ok(plan)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_survives_the_wire_and_truncation_is_refused() {
        let plan = ContainerPlan {
            argv: vec![b"/bin/true".to_vec()],
            env: vec![b"A=b".to_vec()],
            cwd: b"/".to_vec(),
            mounts: vec![
                MountStep::Attach { fd: 3, target: b"/data".to_vec(), create: TargetKind::File },
                MountStep::Proc,
                MountStep::Tmpfs { target: b"/tmp".to_vec(), size: 1 << 20, mode: 0o1777 },
                MountStep::File { path: b"/etc/hosts".to_vec(), content: b"x".to_vec(), mode: 0o644, uid: 1, gid: 2 },
            ],
            devices: vec![DeviceNode { name: "null".into(), major: 1, minor: 3, mode: 0o666 }],
            rlimits: vec![Rlimit { resource: 7, soft: 1, hard: u64::MAX }],
            user_namespace: Some(8),
            network_namespace: Some(9),
            ..ContainerPlan::default()
        };
        let beside = ContainerPlan { target: Some(b"/target".to_vec()), ..plan.clone() };
        let whole = plan.encode();
        for plan in [plan, beside] {
            let bytes = plan.encode();
            assert_eq!(ContainerPlan::decode(&bytes), Ok(plan));
            // the target comes last: without it, it is the plan of one that has none
            for n in (0..bytes.len()).filter(|n| *n != whole.len()) {
                assert!(ContainerPlan::decode(&bytes[..n]).is_err(), "accepted {n} of {} bytes", bytes.len());
            }
        }
    }
}
