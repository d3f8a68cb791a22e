//! Overlays: image layers stacked into one tree, as a detached mount.
//!
//! Layers are named to the kernel as `/proc/self/fd/<n>`: short enough for every limit (255 bytes for one value of
//! `fsconfig`, a page for all options of `mount(2)`), free of `:` and `,`, and telling a container that reads its
//! `mountinfo` nothing of the host's paths. From Linux 6.7 the layers go in one by one; before, the classic `mount(2)`
//! does it in the thread's scratch folder.

use std::ffi::CString;
use std::fmt::Write as _;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen,
};

use super::thread::{Attached, Attributes, MountThread, descriptor_path, open_below, open_dir, set_attributes};

/// The most lower layers that overlayfs stacks.
pub const MAX_LAYERS: usize = 500;
/// The most lower layers where they must fit into one page of mount options.
const MAX_CLASSIC_LAYERS: usize = 200;

/// An overlay to mount.
#[derive(Debug, Clone, Copy)]
pub struct Overlay<'a> {
    /// Folders of the lower layers, the topmost first. Resolved in the thread's mount namespace.
    pub lower: &'a [PathBuf],
    /// Folder with the empty folders `upper` and `work`, opened in the thread's mount namespace; none for an overlay
    /// without writes, which needs two lower layers.
    pub writable: Option<BorrowedFd<'a>>,
    /// Skips syncing of the upper layer, which otherwise delays the unmount by writing out the whole file system below
    /// it. An upper layer mounted this way cannot be mounted again.
    pub volatile: bool,
    /// User namespace by which the ids of the lower layers are mapped. The upper one keeps the host's ids: overlayfs
    /// works in it as the host's root, whom an idmapped mount does not know.
    pub idmap: Option<BorrowedFd<'a>>,
}

impl MountThread {
    /// A detached overlay with `attributes` (whose `idmap` is not used: overlays map ids in their layers).
    pub fn overlay(&self, overlay: &Overlay<'_>, attributes: Attributes<'_>) -> io::Result<OwnedFd> {
        let most = if self.appends_layers() { MAX_LAYERS } else { MAX_CLASSIC_LAYERS };
        if overlay.lower.is_empty() || overlay.lower.len() > most {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{} layers, expected 1 to {most}; squash the image", overlay.lower.len()),
            ));
        }
        let mut lower = Vec::with_capacity(overlay.lower.len());
        for path in overlay.lower {
            let layer =
                open_dir(path).map_err(|e| io::Error::new(e.kind(), format!("layer {}: {e}", path.display())))?;
            lower.push(layer);
        }
        let mut attached = Vec::new();
        if overlay.idmap.is_some() {
            for layer in &mut lower {
                *layer = self.mapped(&*layer, overlay.idmap, &mut attached)?;
            }
        }
        let folders = match overlay.writable {
            None => None,
            Some(folder) => Some((open_below(folder, "upper")?, open_below(folder, "work")?)),
        };
        let upper = folders.as_ref().map(|(upper, work)| (descriptor_path(upper), descriptor_path(work)));
        let paths: Vec<String> = lower.iter().map(descriptor_path).collect();
        let mount = if self.appends_layers() {
            append(&paths, upper.as_ref(), overlay.volatile)?
        } else {
            self.classic(&paths, upper.as_ref(), overlay.volatile)?
        };
        set_attributes(&mount, false, Attributes { idmap: None, ..attributes })?;
        Ok(mount)
    }

    /// A detached read-only view of layers without an upper one: a plain clone for a single layer.
    pub fn overlay_readonly(&self, lower: &[PathBuf], attributes: Attributes<'_>) -> io::Result<OwnedFd> {
        let attributes = Attributes { read_only: true, ..attributes };
        if let [single] = lower {
            return self.clone_tree(open_dir(single)?, Path::new(""), false, attributes);
        }
        self.overlay(&Overlay { lower, writable: None, volatile: false, idmap: attributes.idmap }, attributes)
    }

    /// An idmapped clone of a folder, attached in the scratch folder because overlayfs before Linux 6.15 takes layers
    /// only from the mounter's own namespace.
    fn mapped<'a>(
        &'a self,
        folder: impl AsFd,
        idmap: Option<BorrowedFd<'_>>,
        attached: &mut Vec<Attached<'a>>,
    ) -> io::Result<OwnedFd> {
        let clone = self.clone_tree(folder, Path::new(""), false, Attributes { idmap, ..Attributes::default() })?;
        attached.push(self.attach(&clone)?);
        Ok(clone)
    }

    fn classic(&self, lower: &[String], upper: Option<&(String, String)>, volatile: bool) -> io::Result<OwnedFd> {
        let mut options = format!("lowerdir={}", lower.join(":"));
        if let Some((upper, work)) = upper {
            let _ = write!(options, ",upperdir={upper},workdir={work}");
            if volatile {
                options.push_str(",volatile");
            }
        }
        let options = CString::new(options).map_err(io::Error::other)?;
        let place = self.place()?;
        rustix::mount::mount("overlay", place.path(), "overlay", MountFlags::empty(), options.as_c_str())?;
        self.clone_tree(open_dir(&place.path())?, Path::new(""), false, Attributes::default())
    }
}

fn append(lower: &[String], upper: Option<&(String, String)>, volatile: bool) -> io::Result<OwnedFd> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", "overlay")?;
    for layer in lower {
        fsconfig_set_string(&context, "lowerdir+", layer)?;
    }
    if let Some((upper, work)) = upper {
        fsconfig_set_string(&context, "upperdir", upper)?;
        fsconfig_set_string(&context, "workdir", work)?;
        if volatile {
            fsconfig_set_flag(&context, "volatile")?;
        }
    }
    fsconfig_create(&context)?;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
}

/// Mounts an overlay of two empty folders the new way. Kernels before 6.5 accept any key and fail only at the end.
pub(super) fn probe_append(thread: &MountThread) -> io::Result<()> {
    let tmpfs = thread.tmpfs(&super::Tmpfs::new(1 << 16, 0o700), Attributes::default())?;
    let _place = thread.attach(&tmpfs)?;
    let mut folders = Vec::new();
    for name in ["a", "b"] {
        rustix::fs::mkdirat(&tmpfs, name, Mode::RWXU)?;
        folders.push(open_below(&tmpfs, name)?);
    }
    let paths: Vec<String> = folders.iter().map(descriptor_path).collect();
    append(&paths, None, false).map(drop)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn the_classic_way_stacks_as_many_layers_as_fit() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: mounts can only be made by root");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let mut lower = Vec::new();
        for n in 0..MAX_CLASSIC_LAYERS {
            let layer = folder.path().join(format!("a:b,{n}"));
            std::fs::create_dir(&layer).unwrap();
            std::fs::write(layer.join("which"), n.to_string()).unwrap();
            std::fs::write(layer.join(format!("own-{n}")), "x").unwrap();
            lower.push(open_dir(&layer).unwrap());
        }
        std::fs::create_dir_all(folder.path().join("upper")).unwrap();
        std::fs::create_dir_all(folder.path().join("work")).unwrap();
        let path = folder.path();
        let root = super::super::Mounter::start(1)
            .unwrap()
            .run(|thread| {
                // descriptors must come from the thread's own namespace
                let lower: Vec<_> =
                    (0..lower.len()).map(|n| open_dir(&path.join(format!("a:b,{n}"))).unwrap()).collect();
                let paths: Vec<String> = lower.iter().map(descriptor_path).collect();
                let (upper, work) = (open_dir(&path.join("upper")).unwrap(), open_dir(&path.join("work")).unwrap());
                let upper = (descriptor_path(&upper), descriptor_path(&work), upper, work);
                Ok(thread.classic(&paths, Some(&(upper.0.clone(), upper.1.clone())), true).unwrap())
            })
            .unwrap();
        let open = |name: &str| {
            rustix::fs::openat(&root, name, rustix::fs::OFlags::RDONLY, Mode::empty()).map(std::fs::File::from)
        };
        let mut text = String::new();
        open("which").unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "0");
        assert!(open(&format!("own-{}", MAX_CLASSIC_LAYERS - 1)).is_ok());
        rustix::fs::mkdirat(&root, "new", Mode::RWXU).unwrap();
        assert!(path.join("upper/new").is_dir());
    }
}
