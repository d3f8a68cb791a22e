//! `cgroup/io`: weight and limits of block I/O (`blkio` on v1).
//!
//! On v1 the limits hold for reads and for direct and synchronous writes only: the kernel writes buffered data back on
//! nobody's account there. Weight needs a scheduler that knows it (BFQ, or the cost model of cgroup v2), and is refused
//! where no device has one rather than written without effect.

use std::path::Path;
use std::sync::Arc;

use agentd_api::pod::{IoLimit, PodSpec};
use agentd_api::problem::Violation;

use super::driver::{Driver, absent_message};
use super::files::Tree;
use super::hierarchy::Controller;
use crate::{ContainerContext, Isolator, IsolatorError, Launch};

const NAME: &str = "cgroup/io";

/// The isolator `cgroup/io`.
#[derive(Debug)]
pub struct Io {
    driver: Arc<Driver>,
}

/// How this host takes a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WeightFile {
    /// `io.weight`, 1–10000.
    V2,
    /// `io.bfq.weight`, 1–1000.
    V2Bfq,
    /// `blkio.bfq.weight`, 1–1000.
    V1Bfq,
}

impl WeightFile {
    fn name(self) -> &'static str {
        match self {
            Self::V2 => "io.weight",
            Self::V2Bfq => "io.bfq.weight",
            Self::V1Bfq => "blkio.bfq.weight",
        }
    }

    fn most(self) -> u32 {
        if self == Self::V2 { 10_000 } else { 1000 }
    }
}

impl Io {
    /// With the host's driver.
    pub fn new(driver: Arc<Driver>) -> Self {
        Self { driver }
    }

    /// Which file takes a weight that some device heeds; none if no device does.
    fn weight_file(&self) -> Option<WeightFile> {
        let tree = self.driver.tree(Controller::Io)?;
        let bfq = scheduled_by_bfq(Path::new("/sys/block"));
        if !self.driver.is_v2(Controller::Io) {
            return bfq.then_some(WeightFile::V1Bfq);
        }
        let costed = tree.read("io.cost.qos").is_ok_and(|text| text.contains("enable=1"));
        match (costed, bfq) {
            (true, _) => Some(WeightFile::V2),
            (false, true) => Some(WeightFile::V2Bfq),
            (false, false) => None,
        }
    }

    fn apply(&self, context: &ContainerContext<'_>, live: bool) -> Result<(), IsolatorError> {
        let io = &context.container.agentd.io;
        let path = context.cgroup.cgroup_path();
        let v2 = self.driver.is_v2(Controller::Io);
        if io.weight.is_none() && io.limits.is_empty() {
            // an update may have taken the last limit away
            let marker = if v2 { "io.max" } else { "blkio.throttle.read_bps_device" };
            let managed = self.driver.tree(Controller::Io).is_some_and(|t| t.exists(&format!("{path}/{marker}")));
            if !(live && managed) {
                return Ok(());
            }
        }
        let tree = self.driver.demand(NAME, context.cgroup, Controller::Io)?;
        let mut wanted: Vec<((u32, u32), &IoLimit)> = Vec::new();
        for limit in &io.limits {
            let device = block_device(&limit.device).map_err(|why| IsolatorError::new(NAME, why))?;
            wanted.push((device, limit));
        }
        if live {
            clear(tree, path, v2, &wanted)?;
        }
        for ((major, minor), limit) in &wanted {
            let device = format!("{major}:{minor}");
            for (key, v1_file, value) in rates(limit) {
                let (file, text) = if v2 {
                    ("io.max", format!("{device} {key}={}", value.map_or_else(|| "max".to_owned(), |n| n.to_string())))
                } else {
                    // 0 lifts the limit
                    (v1_file, format!("{device} {}", value.unwrap_or(0)))
                };
                write(tree, &format!("{path}/{file}"), &text)?;
            }
        }
        if let Some(file) = self.weight_file() {
            let weight = io.weight.unwrap_or(100).clamp(1, file.most());
            let at = format!("{path}/{}", file.name());
            if io.weight.is_some() || tree.exists(&at) {
                write(tree, &at, &weight.to_string())?;
            }
        }
        Ok(())
    }
}

impl Isolator for Io {
    fn name(&self) -> &'static str {
        NAME
    }

    fn check(&self, pod: &PodSpec, violations: &mut Vec<Violation>) {
        for (i, container) in pod.containers.iter().enumerate() {
            let io = &container.agentd.io;
            let field = format!("containers[{i}].agentd.io");
            if io.weight.is_none() && io.limits.is_empty() {
                continue;
            }
            let Some(tree) = self.driver.tree(Controller::Io) else {
                let message = format!("{NAME}: {}", absent_message(Controller::Io));
                violations.push(Violation::new(field, message));
                continue;
            };
            if let Some(weight) = io.weight {
                match self.weight_file() {
                    None => violations.push(Violation::new(
                        format!("{field}.weight"),
                        format!(
                            "{NAME}: no block device of this host shares by weight; choose BFQ for one ('echo bfq > \
                             /sys/block/DEVICE/queue/scheduler') or leave the weight out"
                        ),
                    )),
                    Some(file) if weight > file.most() => violations.push(Violation::new(
                        format!("{field}.weight"),
                        format!("{NAME}: {weight} is more than {} takes on this host, {}", file.name(), file.most()),
                    )),
                    Some(_) => {}
                }
            }
            // cgroup2's root has no io.max; whether the kernel can throttle shows in the v1 root, or once enabled
            let v1 = !self.driver.is_v2(Controller::Io);
            if v1 && !io.limits.is_empty() && !tree.exists("blkio.throttle.read_bps_device") {
                violations.push(Violation::new(
                    format!("{field}.limits"),
                    format!("{NAME}: this kernel cannot limit block I/O (CONFIG_BLK_DEV_THROTTLING is off)"),
                ));
                continue;
            }
            for (j, limit) in io.limits.iter().enumerate() {
                if let Err(why) = block_device(&limit.device) {
                    violations.push(Violation::new(format!("{field}.limits[{j}].device"), format!("{NAME}: {why}")));
                }
            }
        }
    }

    fn prepare(&self, container: &ContainerContext<'_>, _launch: &mut Launch) -> Result<(), IsolatorError> {
        self.apply(container, false)
    }

    fn update(&self, container: &ContainerContext<'_>) -> Result<(), IsolatorError> {
        self.apply(container, true)
    }
}

fn write(tree: &Tree, file: &str, value: &str) -> Result<(), IsolatorError> {
    tree.write(file, value).map_err(|e| tree.error(NAME, &format!("write '{value}' to"), file, e))
}

/// The four rates of a limit, with the key in `io.max` and the file of v1.
fn rates(limit: &IoLimit) -> [(&'static str, &'static str, Option<u64>); 4] {
    [
        ("rbps", "blkio.throttle.read_bps_device", limit.read_bps),
        ("wbps", "blkio.throttle.write_bps_device", limit.write_bps),
        ("riops", "blkio.throttle.read_iops_device", limit.read_iops),
        ("wiops", "blkio.throttle.write_iops_device", limit.write_iops),
    ]
}

/// Lifts limits on devices that are no longer named.
fn clear(tree: &Tree, path: &str, v2: bool, wanted: &[((u32, u32), &IoLimit)]) -> Result<(), IsolatorError> {
    let named = |device: &str| wanted.iter().any(|((major, minor), _)| device == format!("{major}:{minor}"));
    let files: &[&str] = if v2 { &["io.max"] } else { &rates(&IoLimit::default()).map(|(_, file, _)| file) };
    for name in files {
        let file = format!("{path}/{name}");
        let text = tree.read(&file).map_err(|e| tree.error(NAME, "read", &file, e))?;
        for device in text.lines().filter_map(|line| line.split(' ').next()).filter(|device| !named(device)) {
            let value =
                if v2 { format!("{device} rbps=max wbps=max riops=max wiops=max") } else { format!("{device} 0") };
            write(tree, &file, &value)?;
        }
    }
    Ok(())
}

/// Number of the whole disk at a path, or what is wrong with it.
fn block_device(path: &str) -> Result<(u32, u32), String> {
    let stat =
        rustix::fs::stat(path).map_err(|e| format!("cannot find device '{path}': {e}; expected e.g. /dev/vda"))?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::BlockDevice {
        return Err(format!("'{path}' is not a block device; expected e.g. /dev/vda"));
    }
    let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    let sys = format!("/sys/dev/block/{major}:{minor}");
    if Path::new(&sys).join("partition").exists() {
        let disk = std::fs::canonicalize(&sys)
            .ok()
            .and_then(|at| Some(at.parent()?.file_name()?.to_str()?.to_owned()))
            .map_or_else(String::new, |disk| format!(" /dev/{disk}"));
        return Err(format!("'{path}' is a partition; the kernel limits whole disks, name the disk{disk}"));
    }
    Ok((major, minor))
}

/// Whether some block device is scheduled by BFQ.
fn scheduled_by_bfq(block: &Path) -> bool {
    std::fs::read_dir(block).into_iter().flatten().flatten().any(|device| {
        std::fs::read_to_string(device.path().join("queue/scheduler")).is_ok_and(|text| text.contains("[bfq]"))
    })
}
