//! What a container runs, from its specification and the configuration of its image, by Marathon's rules.

use agentd_api::pod::{Command, Container};

use crate::ImageRoot;

/// `PATH` where neither image nor pod sets one.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Where a container finds its sandbox.
pub const SANDBOX: &str = "/mnt/mesos/sandbox";

/// Program and arguments of a container; none when neither it nor its image has a command.
///
/// A command replaces the image's entrypoint and command. With `overrideEntrypoint: false` it becomes the arguments of
/// the image's entrypoint, in place of the image's command.
pub fn argv(container: &Container, image: Option<&ImageRoot>) -> Option<Vec<Vec<u8>>> {
    let bytes = |words: &[String]| words.iter().map(|word| word.clone().into_bytes()).collect::<Vec<_>>();
    let mut argv = Vec::new();
    match (&container.exec, image) {
        (Some(exec), image) => {
            if let (Some(image), Some(false)) = (image, exec.override_entrypoint) {
                argv = bytes(&image.entrypoint);
            }
            match &exec.command {
                Command::Shell(line) => {
                    argv.extend([b"/bin/sh".to_vec(), b"-c".to_vec(), line.clone().into_bytes()]);
                }
                Command::Argv(words) => argv.extend(bytes(words)),
            }
        }
        (None, Some(image)) => {
            argv = bytes(&image.entrypoint);
            argv.extend(bytes(&image.cmd));
        }
        (None, None) => {}
    }
    (!argv.is_empty()).then_some(argv)
}

/// The environment of a container: that of its image below `extra` (`NAME=value`, the later of two wins), and a `PATH`.
/// The order is that of the first mention of each name.
pub fn merge_env(image: &[String], extra: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut merged: Vec<Vec<u8>> = Vec::with_capacity(image.len() + extra.len() + 2);
    let mut places = std::collections::HashMap::new();
    for entry in image.iter().map(String::as_bytes).chain(extra.iter().map(Vec::as_slice)) {
        // an entry without a name would confuse programs; images have been seen with them
        let Some(end) = entry.iter().position(|byte| *byte == b'=').filter(|end| *end > 0) else { continue };
        match places.entry(entry[..end].to_vec()) {
            std::collections::hash_map::Entry::Occupied(place) => merged[*place.get()] = entry.to_vec(),
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(merged.len());
                merged.push(entry.to_vec());
            }
        }
    }
    set_default(&mut merged, "PATH", DEFAULT_PATH);
    merged
}

/// Adds `name=value` unless the environment has the name.
pub(super) fn set_default(env: &mut Vec<Vec<u8>>, name: &str, value: &str) {
    let prefix = format!("{name}=");
    if !env.iter().any(|entry| entry.starts_with(prefix.as_bytes())) {
        env.push([prefix.as_bytes(), value.as_bytes()].concat());
    }
}

/// The working directory: the container's own, else the image's, else the sandbox. A relative one of the container is
/// below the sandbox, one of the image below its root.
pub fn workdir(container: &Container, image: Option<&ImageRoot>) -> String {
    let absolute = |path: &str, base: &str| {
        if path.starts_with('/') { path.to_owned() } else { format!("{base}/{path}") }
    };
    match (&container.agentd.workdir, image) {
        (Some(path), _) if !path.is_empty() => absolute(path, SANDBOX),
        (_, Some(image)) if !image.workdir.is_empty() => absolute(&image.workdir, ""),
        _ => SANDBOX.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use agentd_api::pod::{Exec, Lifecycle};

    use super::*;

    fn container(exec: Option<Exec>) -> Container {
        Container {
            name: "c".to_owned(),
            exec,
            resources: agentd_api::pod::ContainerResources::default(),
            endpoints: Vec::new(),
            image: None,
            environment: std::collections::BTreeMap::new(),
            user: None,
            labels: std::collections::BTreeMap::new(),
            health_check: None,
            volume_mounts: Vec::new(),
            artifacts: Vec::new(),
            lifecycle: Lifecycle::default(),
            agentd: agentd_api::pod::ContainerExtension::default(),
        }
    }

    fn words(argv: Option<Vec<Vec<u8>>>) -> Vec<String> {
        argv.unwrap_or_default().into_iter().map(|word| String::from_utf8(word).unwrap()).collect()
    }

    #[test]
    fn commands_follow_marathon() {
        let image =
            ImageRoot { entrypoint: vec!["/entry".to_owned()], cmd: vec!["serve".to_owned()], ..ImageRoot::default() };
        let exec = |command, override_entrypoint| Some(Exec { command, override_entrypoint });
        let own = Command::Argv(vec!["a".to_owned(), "b".to_owned()]);
        assert_eq!(words(argv(&container(None), Some(&image))), ["/entry", "serve"]);
        assert_eq!(words(argv(&container(exec(own.clone(), None)), Some(&image))), ["a", "b"]);
        assert_eq!(words(argv(&container(exec(own.clone(), Some(true))), Some(&image))), ["a", "b"]);
        assert_eq!(words(argv(&container(exec(own.clone(), Some(false))), Some(&image))), ["/entry", "a", "b"]);
        assert_eq!(words(argv(&container(exec(own, Some(false))), None)), ["a", "b"]);
        let shell = Command::Shell("echo hi".to_owned());
        assert_eq!(words(argv(&container(exec(shell, None)), Some(&image))), ["/bin/sh", "-c", "echo hi"]);
        assert_eq!(argv(&container(None), None), None);
        assert_eq!(argv(&container(None), Some(&ImageRoot::default())), None);
    }

    #[test]
    fn the_later_value_wins_and_path_is_never_missing() {
        let image = ["A=1", "B=2", "=x", "broken"].map(str::to_owned);
        let extra = [b"B=3".to_vec(), b"C=a=b".to_vec(), b"B=4".to_vec()];
        let merged = merge_env(&image, &extra);
        let path = format!("PATH={DEFAULT_PATH}");
        let expected: Vec<&[u8]> = vec![b"A=1", b"B=4", b"C=a=b", path.as_bytes()];
        assert_eq!(merged, expected);
        assert_eq!(merge_env(&["PATH=/x".to_owned()], &[]), [b"PATH=/x".to_vec()]);
    }

    #[test]
    fn the_working_directory_is_absolute() {
        let mut own = container(None);
        let image = ImageRoot { workdir: "srv".to_owned(), ..ImageRoot::default() };
        assert_eq!(workdir(&own, None), SANDBOX);
        assert_eq!(workdir(&own, Some(&image)), "/srv");
        own.agentd.workdir = Some("data".to_owned());
        assert_eq!(workdir(&own, Some(&image)), "/mnt/mesos/sandbox/data");
    }
}
