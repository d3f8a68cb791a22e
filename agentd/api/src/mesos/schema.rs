//! Bytes to messages and back, by the description of the messages.

use std::sync::LazyLock;

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, SerializeOptions};

use super::v1::agent::{Call, Response};
use super::{Format, json, required};
use crate::problem::Violation;

/// Largest call that is taken, bytes.
pub const MAX_CALL: usize = 1 << 20;

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(include_bytes!(concat!(env!("OUT_DIR"), "/mesos.bin")).as_slice())
        .expect("the build made the descriptors of sound files")
});

fn descriptor(name: &str) -> MessageDescriptor {
    POOL.get_message_by_name(name).expect("the message is one of those in proto/")
}

static CALL: LazyLock<MessageDescriptor> = LazyLock::new(|| descriptor("mesos.v1.agent.Call"));
static RESPONSE: LazyLock<MessageDescriptor> = LazyLock::new(|| descriptor("mesos.v1.agent.Response"));

/// A call as it was sent, with all of its required fields.
pub fn read(format: Format, bytes: &[u8]) -> Result<Call, Violation> {
    let whole = |message: String| Violation::new("", message);
    match format {
        Format::Json => {
            let message = json::read(&CALL, bytes)?;
            required::check(&message)?;
            message.transcode_to().map_err(|error| whole(format!("the call cannot be read: {error}")))
        }
        Format::Protobuf => {
            let refuse = |error: prost::DecodeError| {
                whole(format!("the body is no protobuf message mesos.v1.agent.Call: {error}"))
            };
            let message = DynamicMessage::decode(CALL.clone(), bytes).map_err(refuse)?;
            required::check(&message)?;
            Call::decode(bytes).map_err(refuse)
        }
    }
}

/// An answer's bytes.
pub fn encode(format: Format, response: &Response) -> Vec<u8> {
    match format {
        Format::Protobuf => response.encode_to_vec(),
        Format::Json => {
            let bytes = response.encode_to_vec();
            let message = DynamicMessage::decode(RESPONSE.clone(), bytes.as_slice())
                .expect("the types and the descriptors are made of one description");
            let options = SerializeOptions::new().stringify_64_bit_integers(false).use_proto_field_name(true);
            let mut out = Vec::with_capacity(bytes.len() * 2);
            let mut writer = json::writer(&mut out);
            message.serialize_with_options(&mut writer, &options).expect("memory can be written to");
            out
        }
    }
}
