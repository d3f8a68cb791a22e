//! Builds the static `testbox` program and writes the container images that hold it and nothing else.
//!
//! [`program`] runs the build, [`layout`] (feature `layout`, on by default) writes OCI image layouts and docker archives.
//! The program's applets are described in `main.rs`.

#[cfg(feature = "layout")]
pub mod layout;
pub mod program;
