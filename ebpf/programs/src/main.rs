//! Programs in the kernel that watch containers. `ebpf/src/observe` loads them, `ebpf/common` has the layouts.
//!
//! A group is a file; a program that stands on several rungs has a function for each: `…_btf` (a tracepoint with types),
//! `…_raw` (a raw tracepoint), `…_tp` (a tracepoint of tracefs), `…_cg` (on the pods' cgroup).
//!
//! What is `unsafe` here is of four kinds, and the kernel's verifier proves the first three before a program is loaded: calls
//! of helpers, pointers that a map gave (valid until the program returns, also when the entry is taken out meanwhile), and
//! fields behind a pointer that the kernel typed. The fourth are `&mut` to a map's value, which another CPU or an interrupt
//! may change: values of per-CPU maps whose group no interrupt runs are changed as they are, and all others are only
//! overwritten as whole words or added to by [`histogram::add`].

#![no_std]
#![no_main]
// the atomic add of BPF's first versions is reached no other way
#![feature(core_intrinsics)]
#![allow(internal_features, reason = "the feature above is one")]

mod block;
mod events;
mod histogram;
mod kernel;
mod maps;
mod net;
mod process;
mod sched;

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// The kernel gives helpers that read its memory only to programs under a licence that is compatible with the GPL.
#[link_section = "license"]
#[no_mangle]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
