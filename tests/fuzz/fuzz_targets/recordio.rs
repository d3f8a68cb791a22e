//! Streams of records, however they are cut.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| agentd_fuzz::recordio(bytes));

#[cfg(not(fuzzing))]
fn main() {
    agentd_fuzz::walk("recordio", agentd_fuzz::recordio);
}
