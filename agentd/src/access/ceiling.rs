//! The ceiling of a principal: how much of the host its pods and sessions may reach.
//!
//! A pod that is run and a container that is entered are held against it alike: what one may not start, one may not use
//! through a shell either.

use std::io;
use std::path::{Component, Path, PathBuf};

use agentd_api::pod::{Container, ImageKind, NetworkMode, PodSpec, SeccompChoice};
use agentd_api::problem::Violation;
use agentd_api::session::ExecRequest;
use agentd_isolators::capabilities::default_mask;
use percent_encoding::percent_decode_str;

/// What pods and sessions of a principal may ask for. The default is nothing of this.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ceiling {
    /// No limit at all.
    pub everything: bool,
    /// Folders of the host at or below which volumes, artifacts and local images may be.
    pub host_paths: Vec<PathBuf>,
    /// The host's network.
    pub host_network: bool,
    /// Capabilities beyond the default ones, without `CAP_`.
    pub capabilities: Vec<String>,
    /// Another filter of system calls than the built-in one, or none.
    pub own_seccomp: bool,
    /// Containers on the host's own files.
    pub image_less: bool,
    /// Processes with user id 0 outside of a user namespace.
    pub host_root: bool,
    /// Sources of secrets; a `*` at the end stands for any rest.
    pub secrets: Vec<String>,
}

impl Ceiling {
    /// No limit.
    pub fn unlimited() -> Self {
        Self { everything: true, ..Self::default() }
    }

    /// Raises this one by another.
    pub fn add(&mut self, other: &Self) {
        self.everything |= other.everything;
        self.host_paths.extend_from_slice(&other.host_paths);
        self.host_network |= other.host_network;
        self.capabilities.extend_from_slice(&other.capabilities);
        self.own_seccomp |= other.own_seccomp;
        self.image_less |= other.image_less;
        self.host_root |= other.host_root;
        self.secrets.extend_from_slice(&other.secrets);
    }

    /// What of a pod is above the ceiling, with paths as in the pod.
    pub fn check_pod(&self, pod: &PodSpec) -> Vec<Violation> {
        let mut above = self.check_reach(pod);
        if !self.everything && !self.host_root && !pod.agentd.user_namespace {
            for (at, container) in pod.containers.iter().enumerate() {
                let user = container.user.as_ref().or(pod.user.as_ref());
                above.extend(root_fault(user.map(String::as_str)).map(|found| {
                    let cure = "name a user by a number other than 0, or set agentd.userNamespace";
                    Violation::new(format!("containers[{at}].user"), format!("{found}; {cure}"))
                }));
            }
        }
        above
    }

    /// What of an exec request into a container of a pod is above the ceiling.
    pub fn check_exec(&self, request: &ExecRequest, pod: &PodSpec) -> Vec<Violation> {
        let mut above = self.check_inside(pod);
        if self.everything {
            return above;
        }
        for (at, name) in request.capabilities.iter().enumerate() {
            if !self.gives(name) {
                let message = format!("found {name}, expected {}", listed(&self.capabilities));
                above.push(Violation::new(format!("capabilities[{at}]"), message));
            }
        }
        if let Some(image) = &request.image
            && image.kind == ImageKind::Oci
            && !self.reaches_image(&image.id)
        {
            above.push(Violation::new("image.id", format!("found {}, expected {}", image.id, self.folders())));
        }
        if !self.host_root && !pod.agentd.user_namespace {
            let chosen = |container: &&Container| request.container.as_ref().is_none_or(|name| *name == container.name);
            let mut users: Vec<Option<&str>> = match &request.user {
                Some(user) => vec![Some(user)],
                // the user of another image is that image's
                None if request.image.is_some() => vec![None],
                None => pod
                    .containers
                    .iter()
                    .filter(chosen)
                    .map(|container| container.user.as_ref().or(pod.user.as_ref()).map(String::as_str))
                    .collect(),
            };
            users.dedup();
            if let Some(found) = users.into_iter().find_map(root_fault) {
                above.push(Violation::new("user", format!("{found}; name a user by a number other than 0")));
            }
        }
        above
    }

    /// What of a pod is above the ceiling for whoever wants to act inside of it, apart from the user.
    pub fn check_inside(&self, pod: &PodSpec) -> Vec<Violation> {
        let within = |fault: Violation| Violation::new(format!("pod.{}", fault.path), fault.message);
        self.check_reach(pod).into_iter().map(within).collect()
    }

    /// What is above the ceiling for whoever copies files out of or into a container: copies are made with the rights of the
    /// container's user.
    pub fn check_files(&self, pod: &PodSpec, container: &str) -> Vec<Violation> {
        let mut above = self.check_inside(pod);
        if !self.everything && !self.host_root && !pod.agentd.user_namespace {
            let named = pod.containers.iter().position(|one| one.name == container);
            let at = named.map(|at| (at, &pod.containers[at]));
            above.extend(at.and_then(|(at, one)| {
                let found = root_fault(one.user.as_ref().or(pod.user.as_ref()).map(String::as_str))?;
                let message = format!("{found}; copies are made with the rights of that user");
                Some(Violation::new(format!("pod.containers[{at}].user"), message))
            }));
        }
        above
    }

    /// Whether a path of the host may be read for somebody, as one that a pod names may.
    pub fn check_path(&self, path: &str) -> Option<Violation> {
        let fault = || Violation::new("path", format!("found {path}, expected {}", self.folders()));
        (!self.everything && !self.reaches(Path::new(path))).then(fault)
    }

    fn check_reach(&self, pod: &PodSpec) -> Vec<Violation> {
        let mut above = Vec::new();
        if self.everything {
            return above;
        }
        let mut fault = |path: String, message: String| above.push(Violation::new(path, message));
        let host_network = pod.networks.iter().any(|network| network.mode == NetworkMode::Host)
            || (pod.networks.is_empty() && !pod.agentd.isolated_network);
        if host_network && !self.host_network {
            let cure = "name a network, or set agentd.isolatedNetwork";
            fault("networks".into(), format!("found the host's network; {cure}"));
        }
        for (at, volume) in pod.volumes.iter().enumerate() {
            if let Some(path) = &volume.host
                && !self.reaches(Path::new(path))
            {
                fault(format!("volumes[{at}].host"), format!("found {path}, expected {}", self.folders()));
            }
        }
        for (name, secret) in &pod.secrets {
            if !self.secrets.iter().any(|pattern| matches(pattern, &secret.source)) {
                let expected = listed(&self.secrets);
                fault(format!("secrets.{name}.source"), format!("found {}, expected {expected}", secret.source));
            }
        }
        for (at, container) in pod.containers.iter().enumerate() {
            let at = format!("containers[{at}]");
            match &container.image {
                None if !self.image_less => fault(
                    format!("{at}.image"),
                    "found none, which gives the container files of the host; name an image".into(),
                ),
                Some(image) if image.kind == ImageKind::Oci && !self.reaches_image(&image.id) => {
                    fault(format!("{at}.image.id"), format!("found {}, expected {}", image.id, self.folders()));
                }
                _ => {}
            }
            for (n, artifact) in container.artifacts.iter().enumerate() {
                let file = artifact.uri.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("file:"));
                if file && !self.reaches_file(artifact.uri.get(5..).unwrap_or_default()) {
                    let expected = self.folders();
                    fault(format!("{at}.artifacts[{n}].uri"), format!("found {}, expected {expected}", artifact.uri));
                }
            }
            for (n, name) in container.agentd.capabilities.add.iter().enumerate() {
                if !self.gives(name) {
                    let expected = listed(&self.capabilities);
                    fault(format!("{at}.agentd.capabilities.add[{n}]"), format!("found {name}, expected {expected}"));
                }
            }
            if container.agentd.seccomp != SeccompChoice::Default && !self.own_seccomp {
                let found = match &container.agentd.seccomp {
                    SeccompChoice::Profile(name) => format!("the profile {name}"),
                    _ => "unconfined".to_owned(),
                };
                fault(format!("{at}.agentd.seccomp"), format!("found {found}, expected the built-in filter (default)"));
            }
        }
        above
    }

    /// Whether a path of the host is at or below one of the folders, as it is written and with its links resolved.
    fn reaches(&self, path: &Path) -> bool {
        let below = |path: &Path| {
            self.host_paths.iter().any(|folder| {
                let real = std::fs::canonicalize(folder);
                path.starts_with(folder) || real.is_ok_and(|folder| path.starts_with(folder))
            })
        };
        if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) || !below(path) {
            return false;
        }
        // of what is not there yet, the part that is there tells
        for part in path.ancestors().take_while(|part| below(part)) {
            match std::fs::canonicalize(part) {
                Ok(real) => return below(&real),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(_) => return false,
            }
        }
        true
    }

    /// The same for a local image, whose tag may stand behind its path.
    fn reaches_image(&self, id: &str) -> bool {
        let path = id.rsplit_once(':').map_or(id, |(path, _)| path);
        self.reaches(Path::new(path)) && self.reaches(Path::new(id))
    }

    /// The same for what stands behind `file:`.
    fn reaches_file(&self, rest: &str) -> bool {
        let path = rest.strip_prefix("//").unwrap_or(rest);
        percent_decode_str(path).decode_utf8().is_ok_and(|path| self.reaches(Path::new(path.as_ref())))
    }

    /// Whether a capability is one of the default set or of the ceiling.
    fn gives(&self, name: &str) -> bool {
        let name = capability(name);
        agentd_isolators::capabilities::bit(&name).is_some_and(|bit| bit & default_mask() != 0)
            || self.capabilities.contains(&name)
    }

    fn folders(&self) -> String {
        match self.host_paths.as_slice() {
            [] => "no path of the host".to_owned(),
            folders => {
                let folders: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
                format!("a path at or below {}, links resolved", folders.join(", "))
            }
        }
    }
}

/// What is wrong with a user where it may not be root of the host. A name may stand for 0 in the image's own files.
fn root_fault(user: Option<&str>) -> Option<String> {
    let Some(user) = user else {
        return Some("found no user, which may be root of the host".to_owned());
    };
    let id = user.split(':').next().unwrap_or(user);
    // read as whoever resolves it does: what is no id there is looked up as a name
    match agentd_isolators::rootfs::user::number(id) {
        Some(0) => Some(format!("found {user}, which is root of the host")),
        Some(_) => None,
        None => Some(format!("found {user}, a name that an image may give to root of the host")),
    }
}

/// A capability in upper case, without `CAP_`.
pub fn capability(name: &str) -> String {
    let upper = name.to_ascii_uppercase();
    upper.strip_prefix("CAP_").unwrap_or(&upper).to_owned()
}

fn listed(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { format!("one of {}", names.join(", ")) }
}

fn matches(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == name, |start| name.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pod that is below every ceiling, changed.
    fn pod(change: impl FnOnce(&mut serde_json::Value)) -> PodSpec {
        let mut json = serde_json::json!({
            "id": "/a", "user": "1000", "networks": [{"mode": "container"}],
            "containers": [{
                "name": "c", "resources": {"cpus": 0.1, "mem": 32}, "image": {"kind": "DOCKER", "id": "x"},
                "exec": {"command": {"shell": "true"}}
            }]
        });
        change(&mut json);
        agentd_api::parse::pod(json.to_string().as_bytes()).unwrap_or_else(|faults| panic!("{faults:?}"))
    }

    type Change<'a> = Box<dyn Fn(&mut serde_json::Value) + 'a>;

    fn paths(faults: &[Violation]) -> Vec<&str> {
        faults.iter().map(|fault| fault.path.as_str()).collect()
    }

    #[test]
    fn each_ceiling_holds_and_can_be_raised() {
        let none = Ceiling::default();
        assert_eq!(none.check_pod(&pod(|_| {})), []);
        let folder = tempfile::Builder::new().prefix("agentd-test-ceiling-").tempdir().unwrap();
        let inside = folder.path().join("data");
        std::fs::create_dir(&inside).unwrap();
        let file = format!("file://{}/x", inside.display());
        let set = |pointer: &'static str, value: serde_json::Value| -> Change<'_> {
            Box::new(move |json| {
                let (parent, name) = pointer.rsplit_once('/').unwrap();
                json.pointer_mut(parent).unwrap()[name] = value.clone();
            })
        };
        let host_paths = Ceiling { host_paths: vec![folder.path().into()], ..Ceiling::default() };
        let volumes = serde_json::json!([{"name": "v", "host": inside}]);
        let cases: Vec<(&str, Change<'_>, Ceiling)> = vec![
            ("networks", set("/networks", serde_json::json!([])), Ceiling { host_network: true, ..Ceiling::default() }),
            (
                "networks",
                set("/networks", serde_json::json!([{"mode": "host"}])),
                Ceiling { host_network: true, ..Ceiling::default() },
            ),
            (
                "volumes[0].host",
                Box::new(move |json: &mut serde_json::Value| {
                    json["volumes"] = volumes.clone();
                    json["containers"][0]["volumeMounts"] = serde_json::json!([{"name": "v", "mountPath": "/v"}]);
                }),
                host_paths.clone(),
            ),
            (
                "containers[0].artifacts[0].uri",
                set("/containers/0/artifacts", serde_json::json!([{"uri": file}])),
                host_paths.clone(),
            ),
            (
                "containers[0].image.id",
                set("/containers/0/image", serde_json::json!({"kind": "OCI", "id": inside})),
                host_paths,
            ),
            (
                "containers[0].image",
                set("/containers/0/image", serde_json::Value::Null),
                Ceiling { image_less: true, ..Ceiling::default() },
            ),
            (
                "containers[0].agentd.capabilities.add[0]",
                set("/containers/0/agentd", serde_json::json!({"capabilities": {"add": ["NET_ADMIN", "CHOWN"]}})),
                Ceiling { capabilities: vec!["NET_ADMIN".into()], ..Ceiling::default() },
            ),
            (
                "containers[0].agentd.seccomp",
                set("/containers/0/agentd", serde_json::json!({"seccomp": "unconfined"})),
                Ceiling { own_seccomp: true, ..Ceiling::default() },
            ),
            (
                "containers[0].agentd.seccomp",
                set("/containers/0/agentd", serde_json::json!({"seccomp": {"profile": "own"}})),
                Ceiling { own_seccomp: true, ..Ceiling::default() },
            ),
            (
                "secrets.s.source",
                Box::new(|json: &mut serde_json::Value| {
                    json["secrets"] = serde_json::json!({"s": {"source": "team-a"}});
                    json["environment"] = serde_json::json!({"S": {"secret": "s"}});
                }),
                Ceiling { secrets: vec!["team-*".into()], ..Ceiling::default() },
            ),
            ("containers[0].user", set("/user", "0".into()), Ceiling { host_root: true, ..Ceiling::default() }),
            ("containers[0].user", set("/user", "root".into()), Ceiling { host_root: true, ..Ceiling::default() }),
            (
                "containers[0].user",
                set("/user", serde_json::Value::Null),
                Ceiling { host_root: true, ..Ceiling::default() },
            ),
        ];
        for (field, change, raised) in cases {
            let spec = pod(|json| change(json));
            assert_eq!(paths(&none.check_pod(&spec)), [field]);
            assert_eq!(raised.check_pod(&spec), [], "{field}");
            assert_eq!(Ceiling::unlimited().check_pod(&spec), [], "{field}");
        }
    }

    #[test]
    fn a_user_namespace_makes_root_harmless() {
        let spec = pod(|json| {
            json["user"] = serde_json::Value::Null;
            json["agentd"] = serde_json::json!({"userNamespace": true});
        });
        assert_eq!(Ceiling::default().check_pod(&spec), []);
    }

    #[test]
    fn links_do_not_lead_out_of_the_folders() {
        let folder = tempfile::Builder::new().prefix("agentd-test-ceiling-").tempdir().unwrap();
        std::os::unix::fs::symlink("/etc", folder.path().join("out")).unwrap();
        let ceiling = Ceiling { host_paths: vec![folder.path().into()], ..Ceiling::default() };
        assert!(ceiling.reaches(&folder.path().join("later")));
        assert!(!ceiling.reaches(&folder.path().join("out")));
        assert!(!ceiling.reaches(&folder.path().join("out/not-there/yet")));
        assert!(!ceiling.reaches(&folder.path().join("../x")));
        let shown = folder.path().display();
        assert!(!ceiling.reaches(Path::new(&format!("{shown}x"))));
        assert!(ceiling.reaches_file(&format!("//{shown}/a")));
        assert!(!ceiling.reaches_file(&format!("//{shown}/%2e%2e/x")));
        assert!(!ceiling.reaches_file(&format!("//localhost{shown}/a")));
        assert!(!ceiling.reaches_image(&format!("{shown}/out:tag")));
        assert!(ceiling.reaches_image(&format!("{shown}/image:tag")));
        assert_eq!(ceiling.check_path(&format!("{shown}/image.tar")), None);
        assert_eq!(ceiling.check_path(&format!("{shown}/out")).unwrap().path, "path");
        assert!(Ceiling::default().check_path("/srv").is_some() && Ceiling::unlimited().check_path("/srv").is_none());
    }

    #[test]
    fn exec_is_held_to_the_container_and_to_the_request() {
        let none = Ceiling::default();
        let request = |json: serde_json::Value| ExecRequest::parse(json.to_string().as_bytes()).unwrap();
        let plain = request(serde_json::json!({"command": ["sh"]}));
        assert_eq!(none.check_exec(&plain, &pod(|_| {})), []);
        let more = request(serde_json::json!({"command": ["sh"], "capabilities": ["CAP_SYS_PTRACE"], "user": "0"}));
        assert_eq!(paths(&none.check_exec(&more, &pod(|_| {}))), ["capabilities[0]", "user"]);
        let raised = Ceiling { capabilities: vec!["SYS_PTRACE".into()], host_root: true, ..Ceiling::default() };
        assert_eq!(raised.check_exec(&more, &pod(|_| {})), []);
        // a container above the ceiling is not entered
        let host = pod(|json| json["networks"] = serde_json::json!([]));
        assert_eq!(paths(&none.check_exec(&plain, &host)), ["pod.networks"]);
        let root = pod(|json| json["user"] = serde_json::Value::Null);
        assert_eq!(paths(&none.check_exec(&plain, &root)), ["user"]);
        let other = request(serde_json::json!({"command": ["sh"], "user": "1000:1000"}));
        assert_eq!(none.check_exec(&other, &root), []);
        // files are read and written as the container's user, whom the request does not choose
        assert_eq!(none.check_files(&pod(|_| {}), "c"), []);
        assert_eq!(paths(&none.check_files(&root, "c")), ["pod.containers[0].user"]);
        assert_eq!(paths(&none.check_files(&host, "c")), ["pod.networks"]);
        assert_eq!(Ceiling { host_root: true, ..Ceiling::default() }.check_files(&root, "c"), []);
        // a debug container runs as its own image's user, wherever that image is
        let debug = request(serde_json::json!({"image": {"kind": "DOCKER", "id": "tools"}, "command": ["sh"]}));
        assert_eq!(paths(&none.check_exec(&debug, &pod(|_| {}))), ["user"]);
        let image = serde_json::json!({"kind": "OCI", "id": "/srv/images/tools:1"});
        let debug = request(serde_json::json!({"image": image, "command": ["sh"], "user": "1000"}));
        assert_eq!(paths(&none.check_exec(&debug, &pod(|_| {}))), ["image.id"]);
        let raised = Ceiling { host_paths: vec!["/srv/images".into()], ..Ceiling::default() };
        assert_eq!(raised.check_exec(&debug, &pod(|_| {})), []);
        // what looks like a number, and is looked up as a name
        for odd in ["+1000", "4294967295", "00", " 1000", "1000 ", ":1000", "-1", "root", "0:1000"] {
            let odd = request(serde_json::json!({"command": ["sh"], "user": odd}));
            assert_eq!(paths(&none.check_exec(&odd, &root)), ["user"], "{:?}", odd.user);
        }
    }
}
