//! Measures the import of an image: `unpack <archive or OCI layout> [folder for the store] [runs]`.
//!
//! Each run makes a new store below the folder, imports the image, prints the time and removes the store.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use agentd_images::{Settings, Store};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let Some(source) = arguments.next().map(PathBuf::from) else {
        eprintln!("usage: unpack <archive or OCI layout> [folder for the store] [runs]");
        return ExitCode::FAILURE;
    };
    let folder = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let runs: u32 = arguments.next().and_then(|runs| runs.to_str()?.parse().ok()).unwrap_or(3);
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    for run in 1..=runs {
        let root = folder.join(format!("agentd-unpack-{}-{run}", std::process::id()));
        let begun = Instant::now();
        let result = Store::open(&root, Settings::default())
            .and_then(|store| runtime.block_on(store.import(&source, Some("measured:latest"), agentd_images::quiet())));
        let took = begun.elapsed();
        if let Err(error) = std::fs::remove_dir_all(&root) {
            eprintln!("{}: {error}", root.display());
        }
        match result {
            Ok(image) => println!(
                "run {run}: {:.3} s, {} layers, {} MiB unpacked, {}",
                took.as_secs_f64(),
                image.layers.len(),
                image.size >> 20,
                image.digest
            ),
            Err(error) => {
                eprintln!("{error}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
