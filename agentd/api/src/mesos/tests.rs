//! Calls and answers in both formats.

use proptest::prelude::*;
use prost::Message;
use serde_json::json;

use super::v1::agent::{self, ProcessIo, Response, call, response};
use super::v1::{ContainerId, FileInfo, TaskState, TimeInfo};
use super::*;

fn fault(text: &str) -> String {
    decode_json(text.as_bytes()).unwrap_err().to_string()
}

fn path(names: &[&str]) -> ContainerPath {
    ContainerPath::of(names.iter().copied()).unwrap()
}

#[test]
fn a_session_as_the_command_line_of_dcos_sends_it() {
    let text = json!({
        "type": "LAUNCH_NESTED_CONTAINER_SESSION",
        "launch_nested_container_session": {
            "container_id": {"value": "b2c7", "parent": {"value": "web", "parent": {"value": "0123456789ab", "parent": null}}},
            "command": {"value": "cat", "arguments": ["cat", "-u"], "shell": false, "environment": null},
            "container": {"type": "MESOS", "tty_info": {}, "volumes": []},
        },
        "kill_nested_container": null,
        "no_such_field": [1, {}],
    });
    let Call::Launch { container, command, info, session, .. } = decode_json(text.to_string().as_bytes()).unwrap()
    else {
        panic!("a launch")
    };
    assert_eq!((container.clone(), session), (path(&["0123456789ab", "web", "b2c7"]), true));
    assert_eq!((command.shell, command.value.as_deref()), (Some(false), Some("cat")));
    assert_eq!(command.arguments, ["cat", "-u"]);
    assert!(info.unwrap().tty_info.unwrap().window_size.is_none());
    assert_eq!(ContainerPath::read(&container.id(), "").unwrap(), container);
    assert_eq!(container.to_string(), "0123456789ab.web.b2c7");
}

#[test]
fn a_missing_field_is_named() {
    let call = |inner: &str| {
        format!(r#"{{"type":"LAUNCH_NESTED_CONTAINER_SESSION","launch_nested_container_session":{inner}}}"#)
    };
    assert_eq!(fault("{}"), "type: missing");
    assert_eq!(fault(r#"{"type":null}"#), "type: missing");
    assert_eq!(fault(r#"{"type":"WAIT_CONTAINER"}"#), "wait_container: missing");
    assert_eq!(
        fault(&call(r#"{"container_id":{"parent":{"value":"a"}}}"#)),
        "launch_nested_container_session.container_id.value: missing"
    );
    assert_eq!(fault(&call("{}")), "launch_nested_container_session.container_id: missing");
    let parent = fault(&call(r#"{"container_id":{"value":"a"},"command":{"value":"x"}}"#));
    assert!(parent.starts_with("launch_nested_container_session.container_id.parent: missing"), "{parent}");
    let none = fault(&call(r#"{"container_id":{"value":"a","parent":{"value":"b"}}}"#));
    assert_eq!(none, "launch_nested_container_session.command: missing");
    let variable = r#"{"container_id":{"value":"a","parent":{"value":"b"}},
        "command":{"environment":{"variables":[{"name":"A"},{"value":"B"}]}}}"#;
    assert_eq!(
        fault(&call(variable)),
        "launch_nested_container_session.command.environment.variables[1].name: missing"
    );
    // the same of protobuf, whose decoder gives a default instead
    let message = agent::Call {
        r#type: Some(call::Type::WaitContainer as i32),
        wait_container: Some(call::WaitContainer::default()),
        ..agent::Call::default()
    };
    let mut bytes = message.encode_to_vec();
    assert_eq!(decode_protobuf(&bytes).unwrap_err().path, "wait_container.container_id.value");
    bytes.truncate(bytes.len() - 2);
    bytes.extend_from_slice(&[0]);
    assert!(decode_protobuf(&bytes).is_err());
}

#[test]
fn a_wrong_value_is_named_with_what_was_expected() {
    assert!(
        fault(r#"{"type":"LAUNCH_ROCKET"}"#).starts_with(r#"type: found "LAUNCH_ROCKET", expected one of UNKNOWN"#)
    );
    assert!(fault(r#"{"type":3}"#).starts_with("type: found 3, expected one of"));
    let read = |offset: &str| format!(r#"{{"type":"READ_FILE","read_file":{{"path":"/a","offset":{offset}}}}}"#);
    assert_eq!(fault(&read("-1")), "read_file.offset: found -1, expected a whole number of 64 bits, not negative");
    assert_eq!(fault(&read("[]")), "read_file.offset: found a list, expected a whole number of 64 bits, not negative");
    for (text, offset) in [("7", 7), ("\"7\"", 7), ("7.0", 7), ("18446744073709551615", u64::MAX)] {
        let call = decode_json(read(text).as_bytes()).unwrap();
        assert_eq!(call, Call::ReadFile { path: "/a".into(), offset, length: None });
    }
    assert!(fault("[]").starts_with("found a list, expected an object"));
    assert!(fault("{").starts_with("the body is no JSON"));
    let id = |value: &str| {
        format!(
            r#"{{"type":"WAIT_CONTAINER","wait_container":{{"container_id":{{"value":"a","parent":{{"value":{value}}}}}}}}}"#
        )
    };
    for bad in [r#""a.b""#, r#""a b""#, r#""a/b""#, r#""""#, r#""../x""#, "\"\u{fc}\""] {
        let fault = fault(&id(bad));
        assert!(fault.starts_with("wait_container.container_id.parent.value: found"), "{fault}");
    }
    assert!(decode(Format::Json, &vec![b' '; MAX_CALL + 1]).unwrap_err().message.contains("at most"));
}

#[test]
fn depth_is_bounded() {
    let mut id = r#"{"value":"a"}"#.to_owned();
    for _ in 0..12 {
        id = format!(r#"{{"value":"a","parent":{id}}}"#);
    }
    let call = |id: &str| format!(r#"{{"type":"WAIT_CONTAINER","wait_container":{{"container_id":{id}}}}}"#);
    assert!(fault(&call(&id)).contains("more than 8 containers"));
    for _ in 0..40 {
        id = format!(r#"{{"value":"a","parent":{id}}}"#);
    }
    assert!(fault(&call(&id)).contains("more than 32 objects"));
    assert!(fault(&"[".repeat(100_000)).starts_with("the body is no JSON"));
    let mut deep = ContainerId { value: "a".into(), parent: None };
    for _ in 0..300 {
        deep = ContainerId { value: "a".into(), parent: Some(Box::new(deep)) };
    }
    let wait = call::WaitContainer { container_id: deep };
    let message = agent::Call {
        r#type: Some(call::Type::WaitContainer as i32),
        wait_container: Some(wait),
        ..Default::default()
    };
    assert!(decode_protobuf(&message.encode_to_vec()).is_err());
}

#[test]
fn input_records_are_read() {
    let record = |io: &str| {
        let text = format!(
            r#"{{"type":"ATTACH_CONTAINER_INPUT","attach_container_input":{{"type":"PROCESS_IO","process_io":{io}}}}}"#
        );
        decode_json(text.as_bytes())
    };
    let good = |io: &str| record(io).unwrap();
    assert_eq!(
        good(r#"{"type":"DATA","data":{"type":"STDIN","data":"aGkK"}}"#),
        Call::AttachInput(Input::Stdin(b"hi\n".to_vec()))
    );
    assert_eq!(good(r#"{"type":"DATA","data":{"type":"STDIN","data":""}}"#), Call::AttachInput(Input::Stdin(vec![])));
    assert_eq!(good(r#"{"type":"DATA","data":{"type":"STDIN"}}"#), Call::AttachInput(Input::Stdin(vec![])));
    assert_eq!(
        good(
            r#"{"type":"CONTROL","control":{"type":"HEARTBEAT","heartbeat":{"interval":{"nanoseconds":30000000000}}}}"#
        ),
        Call::AttachInput(Input::Heartbeat)
    );
    let resize =
        r#"{"type":"CONTROL","control":{"type":"TTY_INFO","tty_info":{"window_size":{"rows":24,"columns":80}}}}"#;
    assert_eq!(good(resize), Call::AttachInput(Input::Resize { rows: 24, columns: 80 }));
    for (bad, at) in [
        (r#"{"type":"DATA","data":{"type":"STDOUT","data":"aGkK"}}"#, "process_io.data.type"),
        (r#"{"type":"DATA","data":{"type":"STDIN","data":"%%"}}"#, "process_io.data.data"),
        (r#"{"type":"DATA"}"#, "process_io.data"),
        (r#"{"type":"CONTROL","control":{"type":"TTY_INFO"}}"#, "process_io.control.tty_info"),
        (&resize.replace("24", "65536"), "process_io.control.tty_info.window_size.rows"),
        (&resize.replace("\"rows\":24,", ""), "process_io.control.tty_info.window_size.rows"),
    ] {
        assert_eq!(record(bad).unwrap_err().path, format!("attach_container_input.{at}"), "{bad}");
    }
}

#[test]
fn answers_are_one_line_of_ascii_with_numbers_as_numbers() {
    let file = FileInfo {
        path: "/\u{fc}\u{1f980}\n".into(),
        nlink: Some(1),
        size: Some(1 << 60),
        mtime: Some(TimeInfo { nanoseconds: 1_700_000_000_000_000_000 }),
        mode: Some(0o100_644),
        uid: None,
        gid: None,
    };
    let answer = Response {
        r#type: Some(response::Type::ListFiles as i32),
        list_files: Some(response::ListFiles { file_infos: vec![file] }),
        ..Response::default()
    };
    let text = String::from_utf8(encode(Format::Json, &answer)).unwrap();
    assert_eq!(
        text,
        r#"{"type":"LIST_FILES","list_files":{"file_infos":[{"path":"/\u00fc\ud83e\udd80\n","nlink":1,"size":1152921504606846976,"mtime":{"nanoseconds":1700000000000000000},"mode":33188}]}}"#
    );
    assert_eq!(Response::decode(encode(Format::Protobuf, &answer).as_slice()).unwrap(), answer);
    let wait = response::WaitContainer {
        exit_status: Some(0),
        state: Some(TaskState::TaskStarting as i32),
        message: None,
        reason: None,
        limitation: None,
    };
    let answer = Response {
        r#type: Some(response::Type::WaitContainer as i32),
        wait_container: Some(wait),
        ..Response::default()
    };
    // a zero that is set is told
    assert_eq!(
        encode(Format::Json, &answer),
        br#"{"type":"WAIT_CONTAINER","wait_container":{"exit_status":0,"state":"TASK_STARTING"}}"#
    );
    assert_eq!(to_ascii(&json!({"a": "\u{e9}\"\u{1}"})).unwrap(), br#"{"a":"\u00e9\"\u0001"}"#);
}

#[test]
fn records_of_output_are_what_clients_read() {
    assert_eq!(
        output(Format::Json, false, b"hi\n"),
        b"54\n{\"type\":\"DATA\",\"data\":{\"type\":\"STDOUT\",\"data\":\"aGkK\"}}"
    );
    let mut decoder = recordio::Decoder::default();
    let record = output(Format::Protobuf, true, b"\xff");
    let record = decoder.feed(&mut record.as_slice()).unwrap().unwrap();
    let io = ProcessIo::decode(record.as_slice()).unwrap();
    let data = io.data.unwrap();
    assert_eq!((data.r#type, data.data.as_deref()), (Some(3), Some(&b"\xff"[..])));
    let beat = heartbeat(Format::Json, std::time::Duration::from_secs(5));
    let beat = decoder.feed(&mut beat.as_slice()).unwrap().unwrap();
    let beat: serde_json::Value = serde_json::from_slice(&beat).unwrap();
    assert_eq!(beat["control"]["heartbeat"]["interval"]["nanoseconds"], 5_000_000_000_i64);
    let beat = heartbeat(Format::Protobuf, std::time::Duration::from_secs(5));
    let beat = decoder.feed(&mut beat.as_slice()).unwrap().unwrap();
    assert_eq!(ProcessIo::decode(beat.as_slice()).unwrap().control.unwrap().r#type, Some(2));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode_json(&bytes);
        let _ = decode_protobuf(&bytes);
    }

    #[test]
    fn both_formats_say_the_same(value in "[a-z]{1,8}", parent in "[a-z]{1,8}", signal in any::<i32>()) {
        let id = ContainerId { value, parent: Some(Box::new(ContainerId { value: parent, parent: None })) };
        let message = agent::Call {
            r#type: Some(call::Type::KillContainer as i32),
            kill_container: Some(call::KillContainer { container_id: id.clone(), signal: Some(signal) }),
            ..agent::Call::default()
        };
        let text = json!({"type": "KILL_CONTAINER", "kill_container": {"signal": signal, "container_id":
            {"value": id.value, "parent": {"value": id.parent.as_ref().unwrap().value}}}});
        prop_assert_eq!(decode_protobuf(&message.encode_to_vec()), decode_json(text.to_string().as_bytes()));
    }
}
