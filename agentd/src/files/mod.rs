//! Files of containers, reached from the daemon: copied out and in as tar streams, listed and read below a host folder.
//!
//! A container may rename, link and mount while the daemon works in its tree. So nothing here resolves a path twice:
//! every step is an `openat2` from a descriptor that is held (confined to the tree, magic links refused), the type is
//! asked of the descriptor, and the file is opened through that same descriptor. Devices, FIFOs and sockets are never
//! opened, and nothing on a filesystem that is no store of files (procfs, sysfs, cgroups, …) is.
//!
//! - `tree`: the descriptors: confined opening, types, filesystems.
//! - [`container`]: the tree of a running container, and the rights with which the daemon works there.
//! - [`pack`] makes a tar stream of what lies there (`header` writes it); [`unpack`] takes one (`archive` reads it).
//! - [`transfer`]: the thread of one copy, and the bounded channel between it and the body of a call.
//! - [`sandbox`]: lists and reads below a folder of the host that a container writes.

pub(crate) mod archive;
pub mod container;
mod error;
pub(crate) mod header;
pub mod pack;
pub mod sandbox;
#[cfg(test)]
mod tests;
pub mod transfer;
pub(crate) mod tree;
pub mod unpack;

pub use error::FilesError;
