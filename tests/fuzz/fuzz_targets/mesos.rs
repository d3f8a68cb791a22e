//! Calls of the Mesos agent API, as JSON and as protobuf.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| agentd_fuzz::mesos(bytes));

#[cfg(not(fuzzing))]
fn main() {
    agentd_fuzz::walk("mesos", agentd_fuzz::mesos);
}
