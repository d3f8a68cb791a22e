//! Requests for sessions, and the frames of those that are attached.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| agentd_fuzz::sessions(bytes));

#[cfg(not(fuzzing))]
fn main() {
    agentd_fuzz::walk("sessions", agentd_fuzz::sessions);
}
