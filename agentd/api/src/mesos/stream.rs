//! Records of the streams that agentd sends: output of a container, and signs of life.

use std::time::Duration;

use prost::Message;

use super::v1::DurationInfo;
use super::v1::agent::ProcessIo;
use super::v1::agent::process_io::{self, control, data};
use super::{Format, json, recordio};

/// Most bytes of output in one record.
pub const PIECE: usize = 64 << 10;

/// One record of output, with its length before it; `error` tells standard error from standard output.
pub fn output(format: Format, error: bool, bytes: &[u8]) -> Vec<u8> {
    let kind = if error { data::Type::Stderr } else { data::Type::Stdout };
    match format {
        // written straight away: this is what streams consist of
        Format::Json => {
            let mut text = String::with_capacity(bytes.len() / 3 * 4 + 64);
            text.push_str("{\"type\":\"DATA\",\"data\":{\"type\":\"");
            text.push_str(kind.as_str_name());
            text.push_str("\",\"data\":\"");
            json::base64(bytes, &mut text);
            text.push_str("\"}}");
            recordio::encode(text.as_bytes())
        }
        Format::Protobuf => {
            let data = process_io::Data { r#type: Some(kind as i32), data: Some(bytes.to_vec()) };
            let record = ProcessIo { r#type: Some(process_io::Type::Data as i32), data: Some(data), control: None };
            recordio::encode(&record.encode_to_vec())
        }
    }
}

/// A record that says that the stream goes on, with its length before it. `interval` is the time to the next one.
pub fn heartbeat(format: Format, interval: Duration) -> Vec<u8> {
    let nanoseconds = i64::try_from(interval.as_nanos()).unwrap_or(i64::MAX);
    match format {
        Format::Json => recordio::encode(
            format!(
                "{{\"type\":\"CONTROL\",\"control\":{{\"type\":\"HEARTBEAT\",\"heartbeat\":{{\"interval\":\
                 {{\"nanoseconds\":{nanoseconds}}}}}}}}}"
            )
            .as_bytes(),
        ),
        Format::Protobuf => {
            let heartbeat = control::Heartbeat { interval: Some(DurationInfo { nanoseconds }) };
            let control = process_io::Control {
                r#type: Some(control::Type::Heartbeat as i32),
                tty_info: None,
                heartbeat: Some(heartbeat),
            };
            let record =
                ProcessIo { r#type: Some(process_io::Type::Control as i32), data: None, control: Some(control) };
            recordio::encode(&record.encode_to_vec())
        }
    }
}
