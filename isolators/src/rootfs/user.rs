//! Who a container runs as: names looked up in the `passwd` and `group` files of its own root.
//!
//! The files belong to the image, so they are opened below the root (a link out of it ends inside), must be regular,
//! and are read up to a limit.

use std::io::{self, Read as _};
use std::os::fd::AsFd;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, openat2};

/// Larger files are not read.
const MAX_FILE: u64 = 4 << 20;

/// A user, resolved.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Home directory, where `passwd` tells it.
    pub home: Option<String>,
}

/// Resolves `name|uid[:group|gid]` (empty: root) below `root`. The error is one line without the field's name.
pub fn resolve(root: impl AsFd, wanted: &str) -> Result<User, String> {
    let (name, group) = match wanted.split_once(':') {
        Some((name, group)) => (name, Some(group).filter(|group| !group.is_empty())),
        None => (wanted, None),
    };
    let name = if name.is_empty() { "0" } else { name };
    let passwd = read(&root, "etc/passwd")?;
    let entries: Vec<Vec<&str>> = passwd.lines().map(|line| line.split(':').collect()).collect();
    let id = |text: Option<&&str>| text.and_then(|text| number(text));
    // digits are always an id: an image must not have a user called "1000" who is 0
    let wanted_id = number(name);
    let entry = entries.iter().filter(|entry| entry.len() >= 4).find(|entry| match wanted_id {
        Some(_) => id(entry.get(2)) == wanted_id,
        None => entry[0] == name,
    });
    let mut user = match entry {
        Some(entry) => User {
            uid: id(entry.get(2)).ok_or_else(|| format!("the entry of {name:?} in /etc/passwd has no valid uid"))?,
            gid: id(entry.get(3)).ok_or_else(|| format!("the entry of {name:?} in /etc/passwd has no valid gid"))?,
            groups: Vec::new(),
            home: entry.get(5).filter(|home| home.starts_with('/')).map(|home| (*home).to_owned()),
        },
        None => User {
            uid: number(name).ok_or_else(|| {
                format!("user {name:?} is not in the container's /etc/passwd; expected a name from there or a number")
            })?,
            ..User::default()
        },
    };
    let text = read(&root, "etc/group")?;
    let groups = text.lines().map(|line| line.split(':').collect::<Vec<_>>()).filter(|entry| entry.len() >= 3);
    if let Some(group) = group {
        let mut groups = groups;
        let named = || groups.find(|entry| entry[0] == group).and_then(|entry| number(entry[2]));
        user.gid = number(group).or_else(named).ok_or_else(|| {
            format!("group {group:?} is not in the container's /etc/group; expected a name from there or a number")
        })?;
    } else if let Some(entry) = entry {
        // a group named by the pod stands alone, as Docker has it
        user.groups = groups
            .filter(|group| group.get(3).is_some_and(|members| members.split(',').any(|member| member == entry[0])))
            .filter_map(|group| number(group[2]))
            .filter(|gid| *gid != user.gid)
            .collect();
        user.groups.sort_unstable();
        user.groups.dedup();
        // the kernel's NGROUPS_MAX
        user.groups.truncate(65_536);
    }
    Ok(user)
}

/// An id: decimal digits only, and not one of the two that system calls take for "none".
pub fn number(text: &str) -> Option<u32> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|id| *id < u32::MAX - 1)
}

fn read(root: impl AsFd, path: &str) -> Result<String, String> {
    let failed = |e: io::Error| format!("cannot read the container's /{path}: {e}");
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = match openat2(root, path, flags, Mode::empty(), resolve) {
        // an image from scratch: numbers work
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(String::new()),
        Err(error) => return Err(failed(error.into())),
        Ok(file) => file,
    };
    let stat = rustix::fs::fstat(&file).map_err(|e| failed(e.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(format!("the container's /{path} is not a regular file; mend the image"));
    }
    let mut bytes = Vec::new();
    let read = std::fs::File::from(file).take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(failed)?;
    if read as u64 > MAX_FILE {
        return Err(format!("the container's /{path} is larger than {MAX_FILE} bytes; mend the image"));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(passwd: &str, group: &str) -> (tempfile::TempDir, std::os::fd::OwnedFd) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("etc")).unwrap();
        std::fs::write(folder.path().join("etc/passwd"), passwd).unwrap();
        std::fs::write(folder.path().join("etc/group"), group).unwrap();
        let fd = crate::mounter::open_dir(folder.path()).unwrap();
        (folder, fd)
    }

    #[test]
    fn names_numbers_and_groups_are_resolved() {
        let (_folder, root) = root(
            "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:33:w:/var/www:/bin/sh\nhuge:x:4294967295:0::/:/\n",
            "root:x:0:\nwww:x:33:\nlogs:x:40:web,root\nadm:x:41:web\n",
        );
        let web = User { uid: 33, gid: 33, groups: vec![40, 41], home: Some("/var/www".to_owned()) };
        assert_eq!(resolve(&root, "web"), Ok(web.clone()));
        assert_eq!(resolve(&root, "33"), Ok(web.clone()));
        assert_eq!(resolve(&root, "web:logs"), Ok(User { gid: 40, groups: Vec::new(), ..web }));
        assert_eq!(resolve(&root, "1234"), Ok(User { uid: 1234, ..User::default() }));
        assert_eq!(resolve(&root, "1234:77").map(|user| (user.uid, user.gid)), Ok((1234, 77)));
        assert_eq!(resolve(&root, "").map(|user| (user.uid, user.groups)), Ok((0, vec![40])));
        assert!(resolve(&root, "nobody").unwrap_err().contains("\"nobody\" is not in the container's /etc/passwd"));
        assert!(resolve(&root, "web:none").unwrap_err().contains("\"none\" is not in the container's /etc/group"));
        for bad in ["-1", "+5", "4294967295", "huge", "99999999999"] {
            assert!(resolve(&root, bad).is_err(), "{bad} was accepted");
        }
    }

    #[test]
    fn digits_are_an_id_whatever_the_image_calls_its_users() {
        let (_folder, root) = root("1000:x:0:0::/:/bin/sh\n7:x:5:5::/:/\n", "100:x:0:\nadm:x:41:1000\n");
        let user = resolve(&root, "1000").unwrap();
        assert_eq!((user.uid, user.gid, user.groups), (1000, 0, Vec::new()));
        assert_eq!(resolve(&root, "1000:100").map(|user| (user.uid, user.gid)), Ok((1000, 100)));
        assert_eq!(resolve(&root, "5").map(|user| user.gid), Ok(5));
    }

    #[test]
    fn a_link_out_of_the_root_ends_inside_and_odd_files_are_refused() {
        let (folder, root) = root("", "");
        let passwd = folder.path().join("etc/passwd");
        std::fs::remove_file(&passwd).unwrap();
        std::os::unix::fs::symlink("../../../../../../../../etc/passwd", &passwd).unwrap();
        // inside the root the link points to itself
        assert!(resolve(&root, "root").is_err());
        std::fs::remove_file(&passwd).unwrap();
        std::os::unix::fs::symlink("/proc/self/fd/0", &passwd).unwrap();
        assert!(resolve(&root, "root").is_err());
        std::fs::remove_file(&passwd).unwrap();
        std::fs::create_dir(&passwd).unwrap();
        assert!(resolve(&root, "0").unwrap_err().contains("not a regular file"));
        std::fs::remove_dir(&passwd).unwrap();
        let file = std::fs::File::create(&passwd).unwrap();
        file.set_len(MAX_FILE + 1).unwrap();
        assert!(resolve(&root, "0").unwrap_err().contains("larger than"));
    }
}
