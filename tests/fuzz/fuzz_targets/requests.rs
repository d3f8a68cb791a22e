//! Bytes of a connection to the API's server.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| agentd_fuzz::api_server(bytes));

#[cfg(not(fuzzing))]
fn main() {
    agentd_fuzz::walk("requests", agentd_fuzz::api_server);
}
