//! mounter
