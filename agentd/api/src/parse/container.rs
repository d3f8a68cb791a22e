//! Readers of a container and of what it holds beside agentd's own settings.

use super::extension::{container_extension, mount_extension};
use super::fields;
use super::format;
use super::network::endpoint;
use super::pod::{environment, labels, most};
use super::reader::{Object, Place};
use crate::pod::{
    Artifact, Command, Container, ContainerResources, Exec, ExecCheck, HealthCheck, HttpCheck, Image, ImageKind,
    Lifecycle, TcpCheck, VolumeMount,
};

/// An entry of `containers`.
pub(super) fn container(at: &Place) -> Container {
    let o = at.object(&fields::CONTAINER);
    Container {
        name: o.at("name").required("the name of the container").text(format::name).unwrap_or_default(),
        exec: o.at("exec").optional(exec),
        resources: resources(&o.at("resources").required("an object, at least {}")),
        endpoints: o.at("endpoints").list(endpoint),
        image: o.at("image").optional(image),
        environment: environment(&o.at("environment")),
        user: o.at("user").text(format::user),
        labels: labels(&o.at("labels")),
        health_check: o.at("healthCheck").optional(health_check),
        volume_mounts: o.at("volumeMounts").list(volume_mount),
        artifacts: o.at("artifacts").list(artifact),
        lifecycle: lifecycle(&o.at("lifecycle")),
        agentd: container_extension(&o.at("agentd")),
    }
}

fn exec(at: &Place) -> Exec {
    let o = at.object(&fields::EXEC);
    let override_entrypoint = o.at("overrideEntrypoint");
    let exec = Exec { command: command(&o), override_entrypoint: override_entrypoint.flag() };
    if matches!(exec.command, Command::Shell(_)) && exec.override_entrypoint == Some(false) {
        override_entrypoint
            .fault("false has no meaning for a shell command, which replaces the entrypoint; use `argv`");
    }
    exec
}

/// The field `command` of an object.
fn command(of: &Object) -> Command {
    let at = of.at("command").required("{\"shell\": \"…\"} or {\"argv\": [\"…\"]}");
    let o = at.object(&fields::COMMAND);
    let (shell, argv) = (o.at("shell"), o.at("argv"));
    if at.is_present() && shell.is_present() == argv.is_present() {
        o.fault("expected exactly one of `shell` and `argv`");
    }
    if argv.is_present() {
        let words = argv.list_of(|word| word.text(format::any));
        if argv.is_empty_list() || words.first().is_some_and(String::is_empty) {
            argv.fault("expected the program and its arguments, the program not empty");
        }
        Command::Argv(words)
    } else {
        Command::Shell(shell.text(format::filled).unwrap_or_default())
    }
}

fn resources(at: &Place) -> ContainerResources {
    let o = at.object(&fields::RESOURCES);
    let default = ContainerResources::default();
    ContainerResources {
        cpus: o.at("cpus").number(0.001..=most::CPUS).unwrap_or(default.cpus),
        mem: o.at("mem").number(0.001..=most::MIB).unwrap_or(default.mem),
        disk: o.at("disk").number(0.0..=most::MIB).unwrap_or(default.disk),
        gpus: o.at("gpus").whole(0..=most::COUNT).map_or(default.gpus, |count| count as u32),
    }
}

/// `image` of a container, or of a debug container.
pub(super) fn image(at: &Place) -> Image {
    let o = at.object(&fields::IMAGE);
    let kind =
        o.at("kind").required("\"DOCKER\" or \"OCI\"").word(&[("DOCKER", ImageKind::Docker), ("OCI", ImageKind::Oci)]);
    let id_format = match kind {
        Some(ImageKind::Oci) => format::layout_path,
        Some(ImageKind::Docker) | None => format::image_id,
    };
    Image {
        kind: kind.unwrap_or(ImageKind::Docker),
        id: o.at("id").required("the reference of the image").text(id_format).unwrap_or_default(),
        force_pull: o.at("forcePull").flag().unwrap_or_default(),
    }
}

fn health_check(at: &Place) -> HealthCheck {
    let o = at.object(&fields::HEALTH_CHECK);
    let seconds = |name, least, default| o.at(name).number(least..=most::SECONDS).unwrap_or(default);
    HealthCheck {
        http: o.at("http").optional(http_check),
        tcp: o.at("tcp").optional(tcp_check),
        exec: o.at("exec").optional(|at| ExecCheck { command: command(&at.object(&fields::EXEC_CHECK)) }),
        grace_period_seconds: seconds("gracePeriodSeconds", 0.0, 300.0),
        interval_seconds: seconds("intervalSeconds", 0.001, 60.0),
        max_consecutive_failures: o
            .at("maxConsecutiveFailures")
            .whole(0..=most::COUNT)
            .map_or(3, |failures| failures as u32),
        timeout_seconds: seconds("timeoutSeconds", 0.001, 20.0),
        delay_seconds: seconds("delaySeconds", 0.0, 15.0),
    }
}

fn http_check(at: &Place) -> HttpCheck {
    let o = at.object(&fields::HTTP_CHECK);
    HttpCheck {
        endpoint: endpoint_name(&o),
        path: o.at("path").text(format::url_path),
        scheme: o.at("scheme").word(&[("HTTP", "HTTP"), ("HTTPS", "HTTPS")]).map(str::to_owned),
    }
}

fn tcp_check(at: &Place) -> TcpCheck {
    TcpCheck { endpoint: endpoint_name(&at.object(&fields::TCP_CHECK)) }
}

fn endpoint_name(of: &Object) -> String {
    of.at("endpoint").required("the name of an endpoint of this container").text(format::any).unwrap_or_default()
}

fn volume_mount(at: &Place) -> VolumeMount {
    let o = at.object(&fields::VOLUME_MOUNT);
    VolumeMount {
        name: o.at("name").required("the name of a volume of the pod").text(format::any).unwrap_or_default(),
        mount_path: o
            .at("mountPath")
            .required("the path in the container")
            .text(format::mount_path)
            .unwrap_or_default(),
        read_only: o.at("readOnly").flag().unwrap_or_default(),
        agentd: mount_extension(&o.at("agentd")),
    }
}

fn artifact(at: &Place) -> Artifact {
    let o = at.object(&fields::ARTIFACT);
    let uri = o.at("uri").required("an http, https or file URI");
    let artifact = Artifact {
        uri: uri.text(format::artifact_uri).unwrap_or_default(),
        extract: o.at("extract").flag().unwrap_or_default(),
        executable: o.at("executable").flag().unwrap_or_default(),
        cache: o.at("cache").flag().unwrap_or_default(),
        dest_path: o.at("destPath").text(format::relative_path),
    };
    let destination = o.at("destPath");
    if !destination.is_present() && format::artifact_uri(&artifact.uri).is_ok() && !format::names_a_file(&artifact.uri)
    {
        destination.fault("missing; the URI ends without a file name, so say where the file goes");
    }
    artifact
}

fn lifecycle(at: &Place) -> Lifecycle {
    let o = at.object(&fields::LIFECYCLE);
    Lifecycle { kill_grace_period_seconds: o.at("killGracePeriodSeconds").number(0.0..=most::SECONDS) }
}
