//! Readers of networks and endpoints.

use super::fields;
use super::format;
use super::pod::labels;
use super::reader::Place;
use crate::pod::{Endpoint, Network, NetworkMode, Protocol};

/// An entry of `networks`.
pub(super) fn network(at: &Place) -> Network {
    let o = at.object(&fields::NETWORK);
    Network {
        name: o.at("name").text(format::name),
        mode: o
            .at("mode")
            .word(&[("container", NetworkMode::Container), ("host", NetworkMode::Host)])
            .unwrap_or_default(),
        labels: labels(&o.at("labels")),
    }
}

/// An entry of `endpoints`.
pub(super) fn endpoint(at: &Place) -> Endpoint {
    let o = at.object(&fields::ENDPOINT);
    let protocols = o.at("protocol").set_of(|one| one.word(&[("tcp", Protocol::Tcp), ("udp", Protocol::Udp)]));
    Endpoint {
        name: o.at("name").required("the name of the endpoint").text(format::name).unwrap_or_default(),
        container_port: o.at("containerPort").whole(1..=65_535).map(|port| port as u16),
        host_port: o.at("hostPort").whole(0..=65_535).map(|port| port as u16),
        protocol: if protocols.is_empty() { vec![Protocol::Tcp] } else { protocols },
        labels: labels(&o.at("labels")),
    }
}
