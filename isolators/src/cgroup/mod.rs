//! cgroup

/// stand-in, replaced by the driver's
#[derive(Debug)]
pub struct ContainerCgroup;
