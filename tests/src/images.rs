//! Images for tests: made of the static program of `agentd-testbox`.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

pub use agentd_testbox::layout::{Config, Content, Entry};
use serde_json::{Value, json};

/// The static multi-call program, built at its first use in this process.
pub fn testbox() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests lie in a workspace");
        agentd_testbox::program::build(workspace).unwrap_or_else(|error| panic!("{error}"))
    })
}

/// Writes an image into the OCI layout `dir` and returns the value of a container's `image`.
pub fn oci(dir: &Path, tag: &str, config: &Config) -> Value {
    agentd_testbox::layout::write(dir, tag, testbox(), config).expect("an image layout can be written");
    json!({"kind": "OCI", "id": format!("{}:{tag}", dir.display())})
}
